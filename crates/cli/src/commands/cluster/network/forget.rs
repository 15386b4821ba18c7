//! `muster cluster network forget`.

use api::endpoint::ClusterNetworkForget;

use crate::context::Context;
use crate::error::CliError;

/// Forget name and role of a network of hosts.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster cluster network forget migration")]
pub(crate) struct Args {
    /// Its name.
    #[arg(value_name = "NAME")]
    network: String,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let reply = context.get::<ClusterNetworkForget>(&[&args.network]).await?;
    context.out.reply(&reply, |view| super::render(&context.out, view))
}
