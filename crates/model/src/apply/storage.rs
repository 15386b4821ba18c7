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
use crate::DiskId;
use crate::DiskSource;
use crate::DiskSpec;
use crate::EventKind;
use crate::Generation;
use crate::NodeId;
use crate::OpId;
use crate::OpOutcome;
use crate::OpRecord;
use crate::OpRequest;
use crate::Power;
use crate::Refused;
use crate::Severity;
use crate::Speaker;
use crate::StorageTarget;
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
    room_for_copy(vm, to)?;
    for disk in &vm.spec.disks {
        if let DiskSource::Image { image } = disk.source {
            volume::admit_image(state, image, target, vm.owner)?;
        }
    }
    Ok(())
}

fn room_for_copy(vm: &VmRecord, to: VmPlace) -> Result<(), Refused> {
    if vm.copies.len() >= COPIES_MAX && !vm.copies.contains(&to) {
        return Err(Refused::Limit { what: "left-over copies of it", most: COPIES_MAX });
    }
    Ok(())
}

/// Checks that the files of a running VM may go with it to a place of its target.
pub(crate) fn admit_with(
    state: &ClusterState,
    vm: &VmRecord,
    to: NodeId,
    target: &StorageTarget,
) -> Result<(), Refused> {
    match target.place {
        VmPlace::Node { node } if node == to => {}
        VmPlace::Node { node } => {
            let (node, to) = (&state.node(node)?.name, &state.node(to)?.name);
            return Err(Refused::Invalid(format!("{to} does not reach the disks of {node}")));
        }
        VmPlace::Volume { volume } => volume::admit_use(state, volume)?,
    }
    if vm.place() == target.place {
        return Err(Refused::Invalid(format!(
            "{} lies there already; migrate it without its storage",
            vm.name
        )));
    }
    room_for_copy(vm, target.place)?;
    // The engine copies what it can write; files are files.
    let running = matches!(vm.power, Power::Running | Power::Paused);
    match vm.spec.disks.iter().find(|disk| disk.read_only && running) {
        Some(disk) => Err(Refused::Invalid(format!(
            "disk {} of {} cannot be written, and such disks go along only with a VM that is off or \
             saved: muster vm save {}",
            disk.name, vm.name, vm.name
        ))),
        None => Ok(()),
    }
}

/// Disks whose image cannot be read from a place.
fn whole(state: &ClusterState, vm: &VmRecord, to: NodeId, place: VmPlace) -> Vec<DiskId> {
    let volume = match place {
        VmPlace::Node { .. } => None,
        VmPlace::Volume { volume } => Some(volume),
    };
    let cut_off = |disk: &&DiskSpec| match disk.source {
        DiskSource::Image { image } => volume::admit_image(state, image, volume, to).is_err(),
        DiskSource::Blank => false,
    };
    vm.spec.disks.iter().filter(cut_off).map(|disk| disk.id).collect()
}

/// The request with the disks that come whole.
pub(crate) fn with_whole(state: &ClusterState, request: &OpRequest) -> Result<OpRequest, Refused> {
    let mut request = request.clone();
    if let OpRequest::VmMigrate { vm, to, storage: Some(target), .. } = &mut request {
        target.whole = whole(state, &**state.vm(*vm)?, *to, target.place);
    }
    Ok(request)
}

/// Checks that every disk that came thin finds its image.
pub(crate) fn admit_whole(
    state: &ClusterState,
    vm: &VmRecord,
    to: NodeId,
    target: &StorageTarget,
) -> Result<(), Refused> {
    let now = whole(state, vm, to, target.place);
    if now.iter().all(|disk| target.whole.contains(disk)) {
        return Ok(());
    }
    Err(Refused::Invalid(format!("an image of {} went elsewhere meanwhile", vm.name)))
}

/// The place that came with a migration is the VM's, which has its new owner already.
pub(crate) fn came_along(vm: &mut VmRecord, from: VmPlace, target: &StorageTarget) {
    vm.volume = match target.place {
        VmPlace::Node { .. } => None,
        VmPlace::Volume { volume } => Some(volume),
    };
    vm.copies.retain(|copy| *copy != target.place);
    if !vm.copies.contains(&from) {
        vm.copies.push(from);
    }
    for disk in vm.spec.disks.iter_mut().filter(|disk| target.whole.contains(&disk.id)) {
        disk.source = DiskSource::Blank;
    }
    if !target.whole.is_empty() {
        vm.revision = vm.revision.next();
    }
}

impl VmRecord {
    /// The VM as it is when its files have come to a place with it; whose it is then does not matter
    /// here.
    pub fn in_storage(&self, target: &StorageTarget) -> Self {
        let mut there = self.clone();
        came_along(&mut there, self.place(), target);
        there
    }
}

impl ClusterState {
    /// Whether an operation under way makes, or still needs, what lies of a VM in a place that is not
    /// its own: then nobody may remove it.
    pub fn copy_in_use(&self, vm: &VmRecord, place: VmPlace) -> bool {
        let op = vm.busy().and_then(|op| self.ops.get(&op));
        op.is_some_and(|op| match &op.request {
            OpRequest::VmMoveStorage { to, .. } => *to == place,
            // The old place goes last, when the target is known to run.
            OpRequest::VmMigrate { storage, .. } => storage.is_some(),
            _ => false,
        })
    }
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
    if state.copy_in_use(vm, place) {
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
