//! `muster lab freeze`.

use lab::Lab;
use lab::NodeName;

use crate::error::CliError;
use crate::output::Output;

/// Make a node hang: all its processes stand still at once, machines too.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster lab freeze n1")]
pub(crate) struct Args {
    /// The node.
    node: NodeName,
}

pub(crate) fn run(args: &Args, lab: &Lab, out: Output) -> Result<(), CliError> {
    lab.set_frozen(args.node, true)?;
    out.done(&format!("{} hangs; let it go on with: muster lab thaw {}", args.node, args.node))
}
