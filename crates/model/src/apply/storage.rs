//! Moves of a VM's directory from one place to another: who may begin one, the one decision, and what
//! is left over.
//!
//! ```text
//!   begin        place: old    copies: new      half a copy may lie there from here on
//!   VmStorageMoved      new    copies: old      both are whole and durable, the guest stands
//!   VmCopyGone          new    copies: -        the old one is removed: always the last step
//! ```
//!
//! The rule that nothing here may break: a place that counts is never among the copies, so that who
//! removes copies cannot remove the VM. Once it has moved, the operation can only end well: the guest
//! does not go on from the old place any more.

use std::sync::Arc;

use crate::ClusterState;
use crate::DiskSource;
use crate::EventKind;
use crate::Generation;
use crate::OpId;
use crate::OpOutcome;
use crate::OpRecord;
use crate::OpRequest;
use crate::Refused;
use crate::Severity;
use crate::Speaker;
use crate::VmId;
use crate::VmPlace;
use crate::VmRecord;
use crate::apply::Context;
use crate::apply::ha;
use crate::apply::vm_mut;
use crate::apply::vm_subject;
use crate::apply::volume;

/// Most places where something of one VM may be left over: more are a sign that nobody removes them.
const COPIES_MAX: usize = 8;

/// Checks that a VM's directory may be moved to a place.
pub(crate) fn admit(state: &ClusterState, vm: &VmRecord, to: VmPlace) -> Result<(), Refused> {
    let target = match to {
        VmPlace::Node { node } if node == vm.owner => None,
        VmPlace::Node { node } => {
            let node = &state.node(node)?.name;
            return Err(Refused::Invalid(format!(
                "{} is on another node than {node}; migrate it there first, then move its storage",
                vm.name
            )));
        }
        VmPlace::Volume { volume } => {
            volume::admit_use(state, volume)?;
            Some(volume)
        }
    };
    if vm.place() == to {
        return Err(Refused::Invalid(format!("{} lies there already", vm.name)));
    }
    if vm.moving.is_some() {
        return Err(Refused::Invalid(format!("{} is being moved already", vm.name)));
    }
    if vm.copies.len() >= COPIES_MAX && !vm.copies.contains(&to) {
        return Err(Refused::Limit { what: "left-over copies of it", most: COPIES_MAX });
    }
    for disk in &vm.spec.disks {
        if let DiskSource::Image { image } = disk.source {
            volume::admit_image(state, image, target, vm.owner)?;
        }
    }
    Ok(())
}

/// Half a copy may lie there from now on.
pub(crate) fn begun(vm: &mut VmRecord, to: VmPlace) {
    if !vm.copies.contains(&to) {
        vm.copies.push(to);
    }
}

/// The one decision.
pub(crate) fn moved(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: OpId,
    generation: Generation,
    by: Speaker,
) -> Result<(), Refused> {
    let op = state.op(id)?;
    if !op.is_running() {
        return Err(Refused::OpEnded(id));
    }
    let OpRequest::VmMoveStorage { vm: vm_id, to } = op.request else {
        return Err(Refused::Invalid(format!("{} moves no storage", op.title())));
    };
    ha::admit_speaker(state, op, by)?;
    let vm = state.vm(vm_id)?;
    if vm.owner != by.node || vm.generation != generation || vm.busy() != Some(id) {
        return Err(Refused::Invalid(format!("{} has changed hands meanwhile", vm.name)));
    }
    if vm.place() == to {
        return Ok(());
    }
    // What has changed since it was begun, its volume or its owner, is found here.
    admit(state, vm, to)?;
    let vm = vm_mut(state, vm_id)?;
    let from = vm.place();
    vm.volume = match to {
        VmPlace::Node { .. } => None,
        VmPlace::Volume { volume } => Some(volume),
    };
    vm.copies.retain(|copy| *copy != to);
    vm.copies.push(from);
    let (name, subject) = (vm.name.clone(), vm_subject(vm));
    let text = match to {
        VmPlace::Node { node } => {
            format!("{name} lies on the disks of {} now", state.node(node)?.name)
        }
        VmPlace::Volume { volume } => {
            format!("{name} lies on volume {} now", state.find_volume(&volume.to_string())?.name)
        }
    };
    cx.event(EventKind::VmMoved, Severity::Info, subject, text, Some(id));
    Ok(())
}

/// Checks the end of a move of storage: one that was decided is gone through with.
pub(crate) fn admit_end(
    state: &ClusterState,
    record: &OpRecord,
    outcome: &OpOutcome,
) -> Result<(), Refused> {
    let OpRequest::VmMoveStorage { vm, to } = record.request else { return Ok(()) };
    let done = matches!(outcome, OpOutcome::Done);
    if state.vm(vm)?.place() == to && !done {
        return Err(Refused::Invalid(format!("{}: it has moved already", record.title())));
    }
    Ok(())
}

/// What a move that has ended well leaves behind.
pub(crate) fn done(state: &ClusterState, vm: VmId, to: VmPlace) -> Result<(), Refused> {
    let vm = state.vm(vm)?;
    if vm.place() != to {
        return Err(Refused::Invalid(format!("{} has not moved", vm.name)));
    }
    Ok(())
}

/// Somebody has looked, and there is nothing left.
pub(crate) fn copy_gone(state: &mut ClusterState, id: VmId, place: VmPlace) -> Result<(), Refused> {
    let vm = state.vm(id)?;
    if let Some(op) = vm.busy()
        && let OpRequest::VmMoveStorage { to, .. } = state.op(op)?.request
        && to == place
    {
        return Err(Refused::Invalid(format!("a copy of {} is being made there", vm.name)));
    }
    if vm.copies.contains(&place) {
        vm_mut(state, id)?.copies.retain(|copy| *copy != place);
    }
    Ok(())
}

/// A place that is gone has no copies; what lies there stays.
pub(crate) fn forget_copies(state: &mut ClusterState, place: VmPlace) {
    let has: Vec<VmId> =
        state.vms.values().filter(|vm| vm.copies.contains(&place)).map(|vm| vm.id).collect();
    for id in has {
        if let Some(vm) = state.vms.get_mut(&id) {
            Arc::make_mut(vm).copies.retain(|copy| *copy != place);
        }
    }
}
