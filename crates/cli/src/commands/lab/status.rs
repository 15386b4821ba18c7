//! `muster lab status`.

use lab::Lab;
use lab::LabStatus;
use lab::NodeStatus;
use lab::Wire;

use crate::commands::lab::json;
use crate::error::CliError;
use crate::output::Output;
use crate::output::Tone;
use crate::output::table::Field;
use crate::output::table::List;
use crate::output::word;

/// Show the lab's nodes and the faults that hold.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster lab status
  muster lab status --json")]
pub(crate) struct Args {}

pub(crate) fn run(_args: &Args, lab: &Lab, out: Output) -> Result<(), CliError> {
    let status = lab.status()?;
    if out.json {
        return json(out, &status);
    }
    out.text(&render(out, &status))
}

fn render(out: Output, status: &LabStatus) -> String {
    let state = if status.up { "up" } else { "not whole; repair it with: muster lab up" };
    let mut lines = vec![
        format!("lab      {} ({state})", status.dir.display()),
        format!("share    {} is /muster/share in each node", status.share.display()),
        format!("bmc      {}", status.bmc),
    ];
    if let Some(device) = &status.host_link {
        lines.push(format!("link     {device} leads into {}", status.net));
    }
    let header = ["NODE", "POWER", "DAEMON", "MACHINES", "MANAGEMENT", "VM", "FENCE", "CLOCK"];
    let mut list = List::new(&out, &header);
    status.nodes.iter().for_each(|node| list.row(row(node)));
    lines.push(list.render("no nodes"));
    lines.extend(status.faults.iter().map(|fault| format!("fault: {fault}")));
    lines.join("\n")
}

fn row(node: &NodeStatus) -> Vec<Field> {
    let power = word(&node.power);
    let power = match power.as_str() {
        "on" => Field::toned(power, Tone::Good),
        "broken" => Field::toned(power, Tone::Bad),
        _ => Field::toned(power, Tone::Busy),
    };
    let daemon = match (node.daemon, node.answers) {
        (_, true) => Field::toned("answers", Tone::Good),
        (true, false) => Field::toned("silent", Tone::Busy),
        (false, false) => Field::toned("ended", Tone::Faint),
    };
    let address = |wire| node.addresses.get(&wire).map(ToString::to_string).unwrap_or_default();
    let clock = match node.clock_offset {
        0 => String::new(),
        seconds => format!("{seconds:+} s"),
    };
    vec![
        Field::from(node.name),
        power,
        daemon,
        Field::from(node.machines),
        Field::from(address(Wire::Mgmt)),
        Field::from(address(Wire::Vm)),
        Field::from(word(&node.fence)),
        Field::from(clock),
    ]
}
