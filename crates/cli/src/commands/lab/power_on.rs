//! `muster lab power-on`.

use lab::Cancel;
use lab::Lab;
use lab::NodeName;

use crate::error::CliError;
use crate::output::Output;

/// Give a node power: it starts as after a boot, with the disks that it had.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster lab power-on n2
  muster --no-wait lab power-on n2")]
pub(crate) struct Args {
    /// The node.
    node: NodeName,
}

pub(crate) fn run(args: &Args, lab: &Lab, wait: bool, out: Output) -> Result<(), CliError> {
    lab.power_on(args.node, wait, &Cancel::default())?;
    let what = if wait { "has power, and its daemon answers" } else { "has power" };
    out.done(&format!("{} {what}", args.node))
}
