//! `muster lab bmc`: the pretend BMC; started by `up`.

use lab::Lab;

use crate::error::CliError;

/// Be the lab's pretend BMC.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster lab bmc")]
pub(crate) struct Args {}

pub(crate) fn run(_args: &Args, lab: &Lab) -> Result<(), CliError> {
    Ok(lab::fence::serve(lab)?)
}
