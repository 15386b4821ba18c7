//! `muster cluster confirm-off`.

use api::endpoint::NodeConfirmOff;
use api::fence::TypedNameBody;

use crate::commands::node::fence::wait;
use crate::complete;
use crate::confirm::typed;
use crate::context::Context;
use crate::error::CliError;

/// State that a node is off, as the proof that its machines may be started elsewhere.
///
/// Only for a node whose power you have cut or seen to be cut. If it still runs, its machines run
/// twice and their disks are destroyed. It is refused while the node renews its lease.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster cluster confirm-off host-2
  muster cluster confirm-off host-2 --typed host-2")]
pub(crate) struct Args {
    /// Name of the node.
    #[arg(value_name = "NODE", add = complete::nodes())]
    node: String,
    /// The node's name once more, instead of the question.
    #[arg(long, value_name = "NODE")]
    typed: Option<String>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let danger = format!(
        "If {} is not off, its machines run twice and their disks are destroyed",
        args.node
    );
    let confirm = typed(context, args.typed, &danger, "node")?;
    let body = TypedNameBody { confirm };
    let view = context.send::<NodeConfirmOff>(&[&args.node], &body).await?;
    wait(context, view, &args.node).await
}
