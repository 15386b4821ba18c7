//! `muster lab restart`.

use lab::Cancel;
use lab::Lab;
use lab::NodeName;

use crate::error::CliError;
use crate::output::Output;

/// Kill a node's daemon at once and start it again; its guard and its machines go on.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster lab restart n1")]
pub(crate) struct Args {
    /// The node.
    node: NodeName,
}

pub(crate) fn run(args: &Args, lab: &Lab, out: Output) -> Result<(), CliError> {
    lab.restart(args.node, &Cancel::default())?;
    out.done(&format!("the daemon of {} was killed, and a new one answers", args.node))
}
