//! `muster lab isolate`.

use lab::Direction;
use lab::Lab;
use lab::NodeName;

use crate::commands::lab::tried;
use crate::error::CliError;
use crate::output::Output;

/// Cut a node off from everything on all networks, its guests too.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster lab isolate n1
  muster lab isolate n1 --in
  muster lab isolate n1 --out")]
pub(crate) struct Args {
    /// The node.
    node: NodeName,
    /// Only packets to it are dropped: it is heard and hears nothing.
    #[arg(long = "in", conflicts_with = "outgoing")]
    incoming: bool,
    /// Only packets from it are dropped: it hears and is not heard.
    #[arg(long = "out")]
    outgoing: bool,
}

pub(crate) fn run(args: &Args, lab: &Lab, out: Output) -> Result<(), CliError> {
    let node = args.node;
    let (which, what) = match (args.incoming, args.outgoing) {
        (true, _) => (Direction::In, format!("nothing reaches {node}")),
        (_, true) => (Direction::Out, format!("nothing comes from {node}")),
        _ => (Direction::Both, format!("{node} is isolated")),
    };
    tried(out, &what, &lab.isolate(node, which)?)
}
