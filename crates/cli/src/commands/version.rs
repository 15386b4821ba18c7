//! `muster version`.

use api::endpoint::API_VERSION;
use api::endpoint::Version;

use crate::context::Context;
use crate::error::CliError;

/// Show the versions of this program and of the daemon.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster version
  muster version --json")]
pub(crate) struct Args {}

pub(crate) async fn run(_args: Args, context: &Context) -> Result<(), CliError> {
    let ours = env!("CARGO_PKG_VERSION");
    if context.out.json {
        let daemon = context.get::<Version>(&[]).await?;
        return context.out.raw_json(&daemon.raw);
    }
    context.out.text(&format!("muster {ours} (API {API_VERSION})"))?;
    // This program's own version is told even where no daemon answers.
    let daemon = context.get::<Version>(&[]).await?.value;
    let line = format!("daemon {} (API {})", daemon.version, daemon.api);
    context.out.text(&crate::output::clean_line(&line))
}
