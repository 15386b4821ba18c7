//! `muster lab power-off`.

use lab::Lab;
use lab::NodeName;
use serde_json::json;

use crate::error::CliError;
use crate::output::Output;

/// Take a node's power: everything in it is killed at once.
///
/// Its network devices and /run go with it; its disks stay. Its pretend BMC says "off".
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster lab power-off n2")]
pub(crate) struct Args {
    /// The node.
    node: NodeName,
}

pub(crate) fn run(args: &Args, lab: &Lab, out: Output) -> Result<(), CliError> {
    let ended = lab.power_off(args.node)?;
    let took = ended.took.as_millis();
    if out.json {
        let report = json!({ "processes": ended.processes, "took_ms": took });
        return out.raw_json(report.to_string().as_bytes());
    }
    let count = ended.processes;
    out.done(&format!("{} has no power; {count} processes were gone after {took} ms", args.node))
}
