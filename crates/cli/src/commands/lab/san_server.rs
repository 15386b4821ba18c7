//! `muster lab san-server`: the pretend SAN; started by `up`.

use lab::Lab;

use crate::error::CliError;

/// Be the lab's pretend SAN.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster lab san-server")]
pub(crate) struct Args {}

pub(crate) fn run(_args: &Args, lab: &Lab) -> Result<(), CliError> {
    Ok(lab::san::serve(lab)?)
}
