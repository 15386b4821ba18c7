//! What a node does about its own VMs that are being moved.
//!
//! ```text
//!   owner A, moving to B        running -> migrate -> running at B, and the move is over
//!                               that fails, or the move is a quick one:
//!                               running -> save -> saved -> VmRehome(B)
//!   owner B, moving to B        saved -> resume -> running, and the move is over
//!
//!   owner A, on its own disks   running, off or saved -> migrate with its files, and the move is over,
//!                               done or not; paused -> save -> saved
//! ```
//!
//! Level-triggered: each pass looks at the state alone, so a restart of the daemon in between changes
//! nothing.

use model::AtLimit;
use model::ClusterState;
use model::Command;
use model::MigratePolicy;
use model::NodeId;
use model::OpRequest;
use model::Power;
use model::Refused;
use model::StorageTarget;
use model::VmId;
use model::VmPlace;
use model::VmRecord;

/// What a node has to do for a VM that is being moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    /// Begin this operation.
    Begin(OpRequest),
    /// Give it away.
    Rehome {
        /// Which.
        vm: VmId,
        /// To whom.
        to: NodeId,
    },
}

/// What this node has to do now.
pub(super) fn next(state: &ClusterState, me: NodeId) -> Vec<Next> {
    state.vms.values().filter(|vm| vm.owner == me).filter_map(|vm| step(vm, me)).collect()
}

/// How many of this node's VMs are leaving it.
pub(super) fn going(state: &ClusterState, me: NodeId) -> usize {
    let leaves = |vm: &VmRecord| {
        vm.owner == me && vm.busy().is_some() && vm.moving.is_some_and(|moving| moving.to != me)
    };
    state.vms.values().filter(|vm| leaves(vm)).count()
}

/// The VM that would leave by this step with all of its memory, or with its files.
fn leaves(next: &Next) -> Option<VmId> {
    match next {
        Next::Begin(OpRequest::VmMigrate { vm, .. } | OpRequest::VmSave { vm }) => Some(*vm),
        Next::Begin(_) | Next::Rehome { .. } => None,
    }
}

/// How many would begin to leave.
pub(super) fn waiting(due: &[Next]) -> usize {
    due.iter().filter(|next| leaves(next).is_some()).count()
}

/// Those of the steps that may be taken now, where `room` more VMs may begin to leave: by their priority,
/// and among equal ones those first that do the least, by `works`. They are quickly away, and the others
/// then have the way for themselves.
pub(super) fn admitted(
    state: &ClusterState,
    due: Vec<Next>,
    room: usize,
    works: &dyn Fn(VmId) -> u32,
) -> Vec<Next> {
    let (mut leaving, mut admitted): (Vec<_>, Vec<_>) =
        due.into_iter().partition(|next| leaves(next).is_some());
    leaving.sort_by_cached_key(|next| {
        let vm = leaves(next).and_then(|vm| state.vms.get(&vm));
        vm.map(|vm| (vm.spec.ha.priority, works(vm.id), vm.id))
    });
    leaving.truncate(room);
    admitted.append(&mut leaving);
    admitted
}

fn step(vm: &VmRecord, me: NodeId) -> Option<Next> {
    let moving = vm.moving?;
    if vm.busy().is_some() {
        return None;
    }
    let id = vm.id;
    if moving.to == me {
        let resumes = vm.power == Power::Saved;
        return resumes.then_some(Next::Begin(OpRequest::VmResume { vm: id }));
    }
    if vm.volume.is_none() {
        return Some(Next::Begin(with_files(vm, moving.to)));
    }
    match vm.power {
        Power::Running if !moving.quick => {
            // It has to go: that its guest stands longer than it would like is the smaller evil.
            let policy = MigratePolicy { at_limit: AtLimit::Force, ..vm.spec.migration };
            Some(Next::Begin(OpRequest::VmMigrate { vm: id, to: moving.to, policy, storage: None }))
        }
        Power::Running | Power::Paused => Some(Next::Begin(OpRequest::VmSave { vm: id })),
        Power::Off | Power::Saved => Some(Next::Rehome { vm: id, to: moving.to }),
    }
}

/// The next step of a VM on its node's own disks.
fn with_files(vm: &VmRecord, to: NodeId) -> OpRequest {
    if vm.power == Power::Paused {
        return OpRequest::VmSave { vm: vm.id };
    }
    let policy = MigratePolicy { at_limit: AtLimit::Force, ..vm.spec.migration };
    let storage = StorageTarget { place: VmPlace::Node { node: to }, whole: Vec::new() };
    OpRequest::VmMigrate { vm: vm.id, to, policy, storage: Some(Box::new(storage)) }
}

/// What follows when the state refuses a step: a migration that may not begin ends the move, which would be
/// tried in vain for ever otherwise. Whoever wanted the VM moved sees it where it is, and a drain plans anew.
pub(super) fn refused(next: &Next, why: &Refused) -> Option<Command> {
    let Next::Begin(OpRequest::VmMigrate { vm, .. }) = next else { return None };
    // Something has happened to it meanwhile: the next pass sees what.
    let passes = matches!(why, Refused::Busy { .. } | Refused::WrongPower { .. });
    (!passes).then_some(Command::VmMove { vm: *vm, to: None, quick: false })
}

#[cfg(test)]
#[path = "moves_tests.rs"]
mod tests;
