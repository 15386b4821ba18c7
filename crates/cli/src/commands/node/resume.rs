//! `muster node resume`.

use api::endpoint::NodeSetMode;
use api::ha::NodeModeBody;
use api::model::NodeMode;

use crate::complete;
use crate::context::Context;
use crate::error::CliError;

/// Let a node take machines again, after a drain or a standby.
///
/// Machines that prefer it and may fail back come back by themselves after a minute.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster node resume host-2")]
pub(crate) struct Args {
    /// Name or id of the node.
    #[arg(value_name = "NAME", add = complete::nodes())]
    node: String,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let body = NodeModeBody { mode: NodeMode::Active, with_storage: false };
    let plan = context.send::<NodeSetMode>(&[&args.node], &body).await?;
    if context.out.json {
        return context.out.raw_json(&plan.raw);
    }
    context.out.done(&format!("node {} takes machines again", plan.value.node))
}
