//! `muster node standby`.

use api::endpoint::NodeSetMode;
use api::ha::NodeModeBody;
use api::model::NodeMode;

use crate::complete;
use crate::context::Context;
use crate::error::CliError;

/// Keep the machines of a node where they are, but give it no new ones.
///
/// Use it for a host that is under suspicion, or to keep one free for a while. `muster node resume`
/// ends it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster node standby host-2")]
pub(crate) struct Args {
    /// Name or id of the node.
    #[arg(value_name = "NAME", add = complete::nodes())]
    node: String,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let body = NodeModeBody { mode: NodeMode::Standby, with_storage: false };
    let plan = context.send::<NodeSetMode>(&[&args.node], &body).await?;
    if context.out.json {
        return context.out.raw_json(&plan.raw);
    }
    context.out.done(&format!("node {} keeps its machines and takes no new ones", plan.value.node))
}
