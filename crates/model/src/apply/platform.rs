//! What nodes can run, and what follows for VMs: frozen processors, targets that fit, machine types.

use std::sync::Arc;

use crate::ClusterState;
use crate::DeviceProfile;
use crate::EventKind;
use crate::NodeId;
use crate::NodeRecord;
use crate::Platform;
use crate::Power;
use crate::Refused;
use crate::Severity;
use crate::VmId;
use crate::VmRecord;
use crate::apply::Context;
use crate::apply::vm_mut;
use crate::apply::vm_subject;
use crate::machine_version;
use crate::some_features;

pub(crate) fn node_platform(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: NodeId,
    platform: Option<&Arc<Platform>>,
) -> Result<(), Refused> {
    let record = state.node(id)?;
    if record.platform.as_ref() == platform {
        return Ok(());
    }
    let (name, subject) = (record.name.clone(), record.subject());
    let Some(platform) = platform else {
        state.nodes.insert(id, Arc::new(NodeRecord { platform: None, ..(**record).clone() }));
        let text = format!("{name} does not know what machines can be like on it; see its log");
        cx.event(EventKind::NodePlatform, Severity::Warning, subject, text, None);
        return Ok(());
    };
    platform.validate().map_err(Refused::Invalid)?;
    let kin = state.platforms().find(|(node, other)| node.id != id && platform.is_kin(other));
    let before = kin.map(|(_, other)| state.baseline(other));
    let others = state.platforms().any(|(node, _)| node.id != id);
    let platform_of = Some(platform.clone());
    let record = NodeRecord { platform: platform_of, ..(**state.node(id)?).clone() };
    state.nodes.insert(id, Arc::new(record));
    let after = state.baseline(platform);
    let (severity, text) = match before {
        None if others => (
            Severity::Warning,
            format!(
                "{name} has processors of another kind than the other nodes; no running VM can go \
                 between them"
            ),
        ),
        None => (Severity::Info, format!("{name} says what machines can be like on it")),
        Some(before) => {
            let lost: Vec<&String> = before.features.difference(&after.features).collect();
            match lost.is_empty() {
                true => (Severity::Info, format!("{name} can run what the other nodes run")),
                false => (
                    Severity::Warning,
                    format!(
                        "{name} lowers what VMs get that are started from now on: without {}; {}",
                        some_features(&lost),
                        kept_away(state, platform)
                    ),
                ),
            }
        }
    };
    cx.event(EventKind::NodePlatform, severity, subject, text, None);
    Ok(())
}

/// How many VMs cannot go to a node, in words.
fn kept_away(state: &ClusterState, platform: &Platform) -> String {
    let count = state
        .vms
        .values()
        .filter(|vm| keeps_cpu(vm))
        .filter_map(|vm| vm.cpu.as_ref())
        .filter(|cpu| platform.fits(cpu).is_err())
        .count();
    match count {
        0 => "all VMs that run can go there".to_owned(),
        1 => "1 VM can go there only when it was off and on again".to_owned(),
        many => format!("{many} VMs can go there only when they were off and on again"),
    }
}

/// Whether a guest lives on that has found out what its processors can do.
fn keeps_cpu(vm: &VmRecord) -> bool {
    vm.power != Power::Off
}

/// Fixes what a VM's processors have, at its cold start.
pub(crate) fn freeze(state: &mut ClusterState, id: VmId) -> Result<(), Refused> {
    let cpu = state.cpu_at_start(state.vm(id)?);
    vm_mut(state, id)?.cpu = cpu;
    Ok(())
}

/// Checks that a VM that keeps its guest can go on on a node; what is not known is no hindrance,
/// since QEMU itself refuses to start with processors that it cannot give.
pub(crate) fn admit(state: &ClusterState, vm: &VmRecord, to: NodeId) -> Result<(), Refused> {
    let node = state.node(to)?;
    let (Some(platform), Some(cpu)) = (node.platform.as_deref(), vm.cpu.as_ref()) else {
        return Ok(());
    };
    if !keeps_cpu(vm) {
        return Ok(());
    }
    platform.fits(cpu).map_err(|why| Refused::Processor {
        target: vm.name.clone(),
        node: node.name.clone(),
        why,
    })
}

pub(crate) fn upgrade(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: VmId,
) -> Result<(), Refused> {
    let vm = state.vm(id)?;
    if vm.deleted.is_some() {
        return Err(Refused::Deleted(vm.name.clone()));
    }
    if let Some(op) = vm.busy() {
        let verb = state.op(op)?.request.verb();
        return Err(Refused::Busy { target: vm.name.clone(), op, verb });
    }
    if vm.power != Power::Off {
        return Err(Refused::NeedsOff { what: "the machine type", target: vm.name.clone() });
    }
    let Some((virtio, legacy)) = state.common_machines() else {
        return Err(Refused::Invalid("no node has said yet which machine types it knows".into()));
    };
    let newest = match vm.spec.profile {
        DeviceProfile::Virtio => virtio,
        DeviceProfile::Legacy => legacy,
    };
    let old = vm.pinned.machine_type.clone();
    if machine_version(&newest) <= machine_version(&old) {
        return Err(Refused::Invalid(format!(
            "{} has {old} already, and the newest that all nodes know is {newest}",
            vm.name
        )));
    }
    let vm = vm_mut(state, id)?;
    vm.pinned.machine_type.clone_from(&newest);
    vm.revision = vm.revision.next();
    let text = format!("{} has {newest} from its next start on, before {old}", vm.name);
    let subject = vm_subject(vm);
    cx.event(EventKind::VmUpgraded, Severity::Info, subject, text, None);
    Ok(())
}
