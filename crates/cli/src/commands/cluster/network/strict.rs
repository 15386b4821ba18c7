//! `muster cluster network strict`.

use api::cluster_network::MigrationStrictBody;
use api::endpoint::MigrationStrict;
use clap::ValueEnum;

use crate::context::Context;
use crate::error::CliError;

/// Say whether machines move over networks with the migration role only.
///
/// Off (usual): where none of those networks works, they move over the ones of other calls, and an event
/// says so. On: they do not move then.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster cluster network strict on")]
pub(crate) struct Args {
    /// Whether only those.
    choice: Choice,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Choice {
    On,
    Off,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let body = MigrationStrictBody { strict: args.choice == Choice::On };
    let reply = context.send::<MigrationStrict>(&[], &body).await?;
    context.out.reply(&reply, |view| super::render(&context.out, view))
}
