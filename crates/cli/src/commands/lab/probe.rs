//! `muster lab probe`.

use lab::Lab;
use lab::Probe;
use lab::Wire;

use crate::commands::lab::json;
use crate::error::CliError;
use crate::output::Output;

/// Try whether packets pass between all nodes that have power.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster lab probe
  muster lab probe --network cluster --json")]
pub(crate) struct Args {
    /// Only on this network: mgmt, cluster, migration or vm. May be given more than once.
    #[arg(long, value_name = "NETWORK")]
    network: Vec<Wire>,
}

pub(crate) fn run(args: &Args, lab: &Lab, out: Output) -> Result<(), CliError> {
    let wires = if args.network.is_empty() { &Wire::ALL[..] } else { &args.network };
    let seen = lab.probe(wires)?;
    if out.json {
        return json(out, &seen);
    }
    let blocked: Vec<_> = seen.iter().filter(|one| !one.passes).map(line).collect();
    if blocked.is_empty() {
        return out.text(&format!("tried {} ways: packets pass on all", seen.len()));
    }
    let head = format!("tried {} ways; no packet passes on {}:", seen.len(), blocked.len());
    out.text(&format!("{head}\n{}", blocked.join("\n")))
}

fn line(probe: &Probe) -> String {
    format!("  {:<10} {} -> {}", probe.wire.to_string(), probe.from, probe.to)
}
