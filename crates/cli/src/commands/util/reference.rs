//! `muster util reference`.

use crate::context::Context;
use crate::error::CliError;
use crate::reference;

/// Print the reference of all commands and exit codes, in Markdown.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster util reference > reference.md")]
pub(crate) struct Args {}

pub(crate) async fn run(_args: Args, context: &Context) -> Result<(), CliError> {
    context.out.bytes(reference::markdown().as_bytes())
}
