//! `muster lab shell`.

use std::ffi::OsString;

use lab::Lab;
use lab::NodeName;

use crate::error::CliError;

/// Enter a node: a shell in its namespaces, or a command.
///
/// What runs there is part of the node: it dies with its power and freezes with it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster lab shell n1
  muster lab shell n1 -- muster vm list")]
pub(crate) struct Args {
    /// The node.
    node: NodeName,
    /// Command to run instead of a shell.
    #[arg(last = true)]
    command: Vec<OsString>,
}

pub(crate) fn run(args: &Args, lab: &Lab) -> Result<(), CliError> {
    Err(lab.shell(args.node, &args.command)?.exec().into())
}
