//! `muster lab cut`.

use lab::Lab;
use lab::NodeName;
use lab::Wire;

use crate::commands::lab::tried;
use crate::error::CliError;
use crate::output::Output;

/// Drop all packets between two nodes.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster lab cut n1 n2
  muster lab cut n1 n2 --network cluster --network mgmt
  muster lab cut n1 n3 --one-way")]
pub(crate) struct Args {
    /// A node.
    a: NodeName,
    /// Another one.
    b: NodeName,
    /// Only on this network: mgmt, cluster, migration or vm. May be given more than once.
    #[arg(long, value_name = "NETWORK")]
    network: Vec<Wire>,
    /// Only packets from the first node to the second.
    #[arg(long)]
    one_way: bool,
}

pub(crate) fn run(args: &Args, lab: &Lab, out: Output) -> Result<(), CliError> {
    let Args { a, b, network, one_way } = args;
    let wires = if network.is_empty() { &Wire::ALL[..] } else { network };
    let report = lab.cut(*a, *b, wires, *one_way)?;
    let words: Vec<_> = wires.iter().map(ToString::to_string).collect();
    let what = match one_way {
        true => format!("nothing passes from {a} to {b} on {}", words.join(", ")),
        false => format!("{a} and {b} are cut off on {}", words.join(", ")),
    };
    tried(out, &what, &report)
}
