//! `muster cluster network list`.

use api::endpoint::ClusterNetworkList;

use crate::context::Context;
use crate::error::CliError;

/// List the networks that hosts have in common, and what they are for.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster cluster network list
  muster cluster network list --json | jq '.networks[] | select(.missing != [])'")]
pub(crate) struct Args {}

pub(crate) async fn run(_args: Args, context: &Context) -> Result<(), CliError> {
    let view = context.get::<ClusterNetworkList>(&[]).await?;
    context.out.reply(&view, |view| super::render(&context.out, view))
}
