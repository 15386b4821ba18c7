//! `muster node show`.

use api::endpoint::NodeList;
use api::endpoint::NodeShow;
use api::model::NodeMode;
use api::types::NodeView;

use crate::complete;
use crate::context::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::output::Tone;
use crate::output::sheet::Sheet;
use crate::output::time;
use crate::output::word;

/// Show a node: what it has, what is wrong, how to reach it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster node show
  muster node show host-1 --json | jq -r .tls_fingerprint")]
pub(crate) struct Args {
    /// Name or id of the node; the only one if left out.
    #[arg(value_name = "NAME", add = complete::nodes())]
    node: Option<String>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let name = match args.node {
        Some(name) => name,
        None => only_node(context).await?,
    };
    let node = context.get::<NodeShow>(&[&name]).await?;
    context.out.reply(&node, |node| render(&context.out, node))
}

pub(crate) async fn only_node(context: &Context) -> Result<String, CliError> {
    let nodes = context.get::<NodeList>(&[]).await?.value;
    match nodes.as_slice() {
        [node] => Ok(node.id.to_string()),
        nodes => Err(CliError::usage(
            format!("there are {} nodes", nodes.len()),
            "name one of them: muster node list",
        )),
    }
}

fn render(out: &Output, node: &NodeView) -> String {
    let now = time::now();
    let mut sheet = Sheet::new(out);
    sheet.group(node.name.as_str());
    for problem in &node.problems {
        sheet.toned("problem", problem, Tone::Bad);
    }
    match node.mode {
        NodeMode::Active => {}
        NodeMode::Drain => sheet.toned("mode", "drain: its machines leave", Tone::Busy),
        NodeMode::Standby => sheet.toned("mode", "standby: it takes no new machines", Tone::Busy),
    }
    if let Some(until) = node.quarantine {
        let text = format!(
            "until {}: it was lost too often, and gets machines only where no other node can take \
             them; muster node resume {} ends that",
            time::both(until, now),
            node.name
        );
        sheet.toned("quarantine", text, Tone::Busy);
    }
    sheet.row("version", &node.version);
    sheet.row("daemon began", time::both(node.started, now));
    match &node.qemu {
        Some(version) => sheet.row("QEMU", version),
        None => sheet.toned("QEMU", "cannot be used", Tone::Bad),
    }
    sheet.row("accelerator", format!("{} ({})", word(&node.accelerator), node.accelerator_reason));
    sheet.toned("not enforced", node.missing_limits.join("; "), Tone::Busy);
    sheet.row("id", node.id);
    sheet.group("Resources");
    sheet.row("VMs running", node.vms_running);
    sheet.row("processors", node.cpus);
    let memory = format!(
        "{}, {} available, {} promised to VMs",
        node.memory, node.memory_available, node.memory_promised
    );
    sheet.row("memory", memory);
    if let Some(load) = &node.load {
        let waits = [
            ("processors", load.waits_for_cpu),
            ("memory", load.waits_for_memory),
            ("disks", load.waits_for_disks),
        ];
        let waits = waits.map(|(what, percent)| format!("{what} {percent}%")).join(", ");
        sheet.row("load", format!("{}% of its processors; waits for {waits}", load.cpu));
    }
    sheet.row("storage", format!("{}, {} free", node.storage, node.storage_available));
    if let Some(address) = &node.tls_address {
        sheet.group("API on TLS");
        sheet.row("address", address);
        sheet.opt("fingerprint", node.tls_fingerprint.as_ref());
    }
    if !node.reconcilers.is_empty() {
        sheet.group("Background work");
        for work in &node.reconcilers {
            let tone = if work.result == "ok" { Tone::Plain } else { Tone::Bad };
            let last = work.last_run.map_or("never ran".to_owned(), |at| time::relative(at, now));
            sheet.toned(&work.name, format!("{}, {last}", work.result), tone);
        }
    }
    sheet.render()
}
