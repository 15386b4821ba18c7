//! `muster lab thaw`.

use lab::Lab;
use lab::NodeName;

use crate::error::CliError;
use crate::output::Output;

/// Let a node go on that was made to hang. It does not know how long it stood still.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster lab thaw n1")]
pub(crate) struct Args {
    /// The node.
    node: NodeName,
}

pub(crate) fn run(args: &Args, lab: &Lab, out: Output) -> Result<(), CliError> {
    lab.set_frozen(args.node, false)?;
    out.done(&format!("{} goes on", args.node))
}
