//! `muster lab down`.

use lab::Lab;

use crate::error::CliError;
use crate::output::Output;

/// End the lab: all its processes, namespaces, cables and files, also the disks of its machines.
///
/// It takes away all there is, whatever step anything was killed at.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster lab down
  muster lab --dir /var/tmp/other down --force")]
pub(crate) struct Args {
    /// Also where the lab's state file is damaged or lost.
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(args: &Args, lab: &Lab, out: Output) -> Result<(), CliError> {
    lab.down(args.force)?;
    out.done(&format!("the lab in {} is gone", lab.dir().display()))
}
