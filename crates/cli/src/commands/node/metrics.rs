//! `muster node metrics`.

use api::endpoint::NodeMetrics;

use crate::commands::node::show::only_node;
use crate::commands::vm::metrics::Time;
use crate::commands::vm::metrics::render;
use crate::complete;
use crate::context::Context;
use crate::error::CliError;

/// Show what a node used: processors, memory, disks, networks, and what its programs waited for.
///
/// Measured each second, and kept for a year at falling resolution.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster node metrics
  muster node metrics host-1 --since 30d")]
pub(crate) struct Args {
    /// Name or id of the node; the only one if left out.
    #[arg(value_name = "NAME", add = complete::nodes())]
    node: Option<String>,
    #[command(flatten)]
    time: Time,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let name = match args.node {
        Some(name) => name,
        None => only_node(context).await?,
    };
    let shown = context.query::<NodeMetrics>(&[&name], &args.time.query()).await?;
    context.out.reply(&shown, |view| render(&context.out, view))
}
