//! `muster cluster evict`.

use api::endpoint::NodeEvict;

use crate::complete;
use crate::confirm::Unasked;
use crate::confirm::confirm;
use crate::context::Context;
use crate::error::CliError;

/// Take a node out of the cluster, whether it answers or not.
///
/// Its certificate is worth nothing from then on. To come back, its host must be set up anew and
/// join with a new token. A node that still answers should leave by itself: muster cluster leave.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster cluster evict host-3
  muster cluster evict host-3 --yes")]
pub(crate) struct Args {
    /// Name or id of the node.
    #[arg(value_name = "NODE", add = complete::nodes())]
    node: String,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let loss = format!("{} can come back only as a new node", args.node);
    confirm(context, args.yes, &loss, Unasked::Proceed)?;
    let reply = context.get::<NodeEvict>(&[&args.node]).await?;
    if context.out.json {
        return context.out.raw_json(&reply.raw);
    }
    context.out.done(&format!("{} is no longer a node of the cluster", args.node))
}
