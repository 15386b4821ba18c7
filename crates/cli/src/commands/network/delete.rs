//! `muster network delete`.

use api::endpoint::NetworkDelete;

use crate::complete;
use crate::context::Context;
use crate::error::CliError;

/// Remove a network that no adapter uses.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster network delete lab")]
pub(crate) struct Args {
    /// Name or id of the network.
    #[arg(value_name = "NAME", add = complete::networks())]
    network: String,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let reply = context.get::<NetworkDelete>(&[&args.network]).await?;
    if context.out.json {
        return context.out.raw_json(&reply.raw);
    }
    context.out.done(&format!("network {} is removed", args.network))
}
