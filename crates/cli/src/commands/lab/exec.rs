//! `muster lab exec`.

use std::ffi::OsString;

use lab::Lab;
use lab::NodeName;

use crate::error::CliError;

/// Run a command in a node; its output and exit code are the command's own.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster lab exec n1 -- muster vm list
  muster lab exec n2 -- ip address show")]
pub(crate) struct Args {
    /// The node.
    node: NodeName,
    /// The command.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

pub(crate) fn run(args: &Args, lab: &Lab) -> Result<(), CliError> {
    Err(lab.shell(args.node, &args.command)?.exec().into())
}
