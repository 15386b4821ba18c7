//! `muster whoami`.

use api::endpoint::WhoAmI;

use crate::context::Context;
use crate::error::CliError;
use crate::output::clean_line;
use crate::output::word;

/// Show who the daemon takes you for, and what you may do.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster whoami")]
pub(crate) struct Args {}

pub(crate) async fn run(_args: Args, context: &Context) -> Result<(), CliError> {
    let me = context.get::<WhoAmI>(&[]).await?;
    context.out.reply(&me, |me| clean_line(&format!("{} ({})", me.actor, word(&me.role))))
}
