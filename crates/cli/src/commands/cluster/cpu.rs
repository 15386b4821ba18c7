//! `muster cluster cpu`.

use api::endpoint::ClusterCpu;
use api::model::some_features;
use api::platform::ClusterCpuView;
use api::platform::CpuGroupView;
use api::platform::VmCpuView;

use crate::context::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::output::Tone;
use crate::output::table::Field;
use crate::output::table::List;

/// Show what processors and machine types the nodes can give, and which machines cannot go everywhere.
///
/// A machine gets what all nodes of its kind have when it is switched on, and keeps it until it is
/// off. Another choice for one machine: muster vm set NAME --cpu-compat node|minimal.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster cluster cpu
  muster cluster cpu --json | jq '.vms[] | select(.kept_from != [])'")]
pub(crate) struct Args {}

pub(crate) async fn run(_args: Args, context: &Context) -> Result<(), CliError> {
    let view = context.get::<ClusterCpu>(&[]).await?;
    context.out.reply(&view, |view| render(&context.out, view))
}

fn render(out: &Output, view: &ClusterCpuView) -> String {
    let mut parts: Vec<String> = view.groups.iter().map(|group| nodes(out, group)).collect();
    if let Some(machine) = &view.machine {
        parts.push(format!("New machines are of type {machine}, which all nodes know.\n"));
    }
    if !view.unknown.is_empty() {
        let names: Vec<_> = view.unknown.iter().map(ToString::to_string).collect();
        parts.push(format!("Not known yet what can be on: {}\n", names.join(", ")));
    }
    if !view.vms.is_empty() {
        parts.push(machines(out, &view.vms));
    }
    parts.join("\n")
}

fn some_or_dash(features: &[String]) -> String {
    match features.is_empty() {
        true => "-".to_owned(),
        false => some_features(features),
    }
}

fn nodes(out: &Output, group: &CpuGroupView) -> String {
    let how = match group.accelerator {
        api::types::Accelerator::Kvm => "on KVM",
        api::types::Accelerator::Tcg => "emulated",
    };
    let all = match group.baseline.len() {
        0 => "nothing beyond it".to_owned(),
        count => format!("{count} features beyond it ({})", some_features(&group.baseline)),
    };
    let mut list = List::new(out, &["NODE", "ENGINE", "MACHINE TYPE", "HAS MORE", "LOWERS ALL BY"]);
    for node in &group.nodes {
        list.row(vec![
            Field::from(&node.name),
            Field::from(&node.engine),
            Field::from(&node.machine),
            Field::from(some_or_dash(&node.more)),
            match node.lowers.is_empty() {
                true => Field::from("-".to_owned()),
                false => Field::toned(some_features(&node.lowers), Tone::Busy),
            },
        ]);
    }
    let base = &group.base;
    format!("Machines that are switched on, {how}: {base}, {all}.\n{}", list.render("no nodes"))
}

fn machines(out: &Output, vms: &[VmCpuView]) -> String {
    let header = ["MACHINE", "NODE", "CANNOT GO TO", "OFF AND ON: GAINS", "LOSES", "UPGRADE TO"];
    let mut list = List::new(out, &header);
    for vm in vms {
        let kept: Vec<_> = vm.kept_from.iter().map(ToString::to_string).collect();
        list.row(vec![
            Field::from(&vm.name),
            Field::from(&vm.node),
            match kept.is_empty() {
                true => Field::from("-".to_owned()),
                false => Field::toned(kept.join(", "), Tone::Busy),
            },
            Field::from(some_or_dash(&vm.gains)),
            Field::from(some_or_dash(&vm.loses)),
            Field::from(vm.newer_machine.clone().unwrap_or_else(|| "-".to_owned())),
        ]);
    }
    list.render("no machines")
}
