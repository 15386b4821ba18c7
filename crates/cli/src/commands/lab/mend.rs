//! `muster lab mend`.

use lab::Lab;
use lab::NodeName;
use lab::Wire;

use crate::commands::lab::tried;
use crate::error::CliError;
use crate::output::Output;

/// End faults of the network: the cuts between two nodes, all of one node, or all there are.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster lab mend n1 n2
  muster lab mend n1 n2 --network cluster
  muster lab mend n3
  muster lab mend --all")]
pub(crate) struct Args {
    /// A node; alone, all its faults end: cuts, isolation, slow cables.
    #[arg(required_unless_present = "all")]
    a: Option<NodeName>,
    /// Another one: only the cuts between the two end.
    b: Option<NodeName>,
    /// Only on this network: mgmt, cluster, migration or vm. May be given more than once.
    #[arg(long, value_name = "NETWORK", requires = "b")]
    network: Vec<Wire>,
    /// All faults of the network end.
    #[arg(long, conflicts_with = "a")]
    all: bool,
}

pub(crate) fn run(args: &Args, lab: &Lab, out: Output) -> Result<(), CliError> {
    let wires = if args.network.is_empty() { &Wire::ALL[..] } else { &args.network };
    match (args.a, args.b) {
        (Some(a), Some(b)) => {
            let report = lab.mend(a, b, wires)?;
            tried(out, &format!("the cuts between {a} and {b} are mended"), &report)
        }
        (Some(a), None) => {
            tried(out, &format!("the network of {a} is mended"), &lab.mend_all(Some(a))?)
        }
        (None, _) => tried(out, "the network is mended", &lab.mend_all(None)?),
    }
}
