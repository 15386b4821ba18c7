//! `muster lab clock`.

use lab::Lab;
use lab::NodeName;

use crate::error::CliError;
use crate::output::Output;

/// Set how far a node's monotonic and boot clocks are ahead, while it has no power.
///
/// The kernel shows another clock to new processes only, so it counts from the next power-on. The
/// date cannot be moved: there is no namespace for it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster lab clock n1 --offset 3600
  muster lab clock n1 --offset=-60
  muster lab clock n1 --offset 0")]
pub(crate) struct Args {
    /// The node.
    node: NodeName,
    /// Seconds.
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    offset: i64,
}

pub(crate) fn run(args: &Args, lab: &Lab, out: Output) -> Result<(), CliError> {
    lab.set_clock(args.node, args.offset)?;
    let (node, offset) = (args.node, args.offset);
    out.done(&format!("from its next power-on, the clocks of {node} are {offset:+} s ahead"))
}
