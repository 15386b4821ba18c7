//! Live migration: who may begin one, and the handover.
//!
//! The rule that nothing here may break (DESIGN.md section 4, rules 1 and 6): the source proposes the
//! handover only when its guest stands for good (or it has no process at all, and all of its files are
//! at the target), and lets it go on only after the *end* of the
//! operation is in the state. Both name the same operation, so that at most one of them takes effect.
//!
//! A VM that migrates with its files changes owner *and* place by that one command: at no moment does
//! a node own it that does not have its disks (docs/decisions/0022).

use crate::Arrival;
use crate::AtLimit;
use crate::ClusterState;
use crate::EventKind;
use crate::Generation;
use crate::MigrateReport;
use crate::MigrateResult;
use crate::Moving;
use crate::NO_CONVERGENCE;
use crate::NodeId;
use crate::OpFailure;
use crate::OpId;
use crate::OpRecord;
use crate::OpRequest;
use crate::Power;
use crate::Refused;
use crate::Severity;
use crate::Speaker;
use crate::StorageTarget;
use crate::VmId;
use crate::VmRecord;
use crate::apply::Context;
use crate::apply::ha;
use crate::apply::platform;
use crate::apply::storage;
use crate::apply::vm_mut;
use crate::apply::vm_subject;

/// Longest text about a way that was not the one that it should be.
const FALLBACK_CHARS_MAX: usize = 200;

/// Checks that a running VM may be sent to a node.
pub(crate) fn admit(
    state: &ClusterState,
    vm: &VmRecord,
    to: NodeId,
    storage: Option<&StorageTarget>,
) -> Result<(), Refused> {
    match storage {
        Some(target) => storage::admit_with(state, vm, to, target)?,
        None if vm.volume.is_some() => {}
        None => {
            return Err(Refused::Invalid(format!(
                "{} lies on its node's own disks, which must come with it: muster vm migrate {} \
                 --with-storage",
                vm.name, vm.name
            )));
        }
    }
    if vm.owner == to {
        return Err(Refused::Invalid(format!("{} is on that node already", vm.name)));
    }
    if vm.moving.is_some_and(|moving| moving.to != to || moving.quick) {
        return Err(Refused::Invalid(format!("{} is being moved already", vm.name)));
    }
    ha::admit_target(state, vm, to)?;
    platform::admit(state, vm, to)
}

pub(crate) fn hand_over(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: OpId,
    generation: Generation,
    report: &MigrateReport,
    by: Speaker,
) -> Result<(), Refused> {
    let op = state.op(id)?;
    if !op.is_running() {
        return Err(Refused::OpEnded(id));
    }
    let OpRequest::VmMigrate { vm: vm_id, to, ref storage, .. } = op.request else {
        return Err(Refused::Invalid(format!("{} is no migration", op.title())));
    };
    let storage = storage.clone();
    ha::admit_speaker(state, op, by)?;
    let vm = state.vm(vm_id)?;
    // What a node says that was fenced and lost the VM has been refused above; this refuses what
    // was said of a run that is over.
    if vm.owner != by.node || vm.generation != generation || vm.busy() != Some(id) {
        return Err(Refused::Invalid(format!("{} has changed hands meanwhile", vm.name)));
    }
    let still = matches!(vm.power, Power::Off | Power::Saved) && storage.is_some();
    if vm.power != Power::Running && !still {
        return Err(Refused::WrongPower {
            verb: op.request.verb(),
            target: vm.name.clone(),
            power: vm.power,
        });
    }
    ha::admit_target(state, vm, to)?;
    if still {
        platform::admit(state, vm, to)?;
    }
    if let Some(storage) = &storage {
        // What has changed since it was begun is found here: an image that went elsewhere.
        storage::admit_with(state, vm, to, storage)?;
        storage::admit_whole(state, vm, to, storage)?;
    }
    let target = state.node(to)?.name.clone();
    let vm = vm_mut(state, vm_id)?;
    let from = vm.place();
    vm.owner = to;
    if let Some(storage) = &storage {
        storage::came_along(vm, from, storage);
    }
    vm.generation = vm.generation.next();
    vm.arrival = Some(Arrival { generation: vm.generation, op: id });
    let what = if still { "belongs to" } else { "goes on on" };
    let text = format!("{} {what} {target}", vm.name);
    let subject = vm_subject(vm);
    if let Some(op) = state.ops.get_mut(&id) {
        std::sync::Arc::make_mut(op).migration = Some(Box::new(report.clone()));
    }
    cx.event(EventKind::VmMoved, Severity::Info, subject.clone(), text, Some(id));
    if let Some(fallback) = &report.fallback {
        let text = fallback.chars().take(FALLBACK_CHARS_MAX).collect();
        cx.event(EventKind::MigrationFallback, Severity::Warning, subject, text, Some(id));
    }
    Ok(())
}

/// What a migration that has ended well leaves behind.
pub(crate) fn done(
    state: &mut ClusterState,
    vm: VmId,
    record: &OpRecord,
    measured: MigrateResult,
) -> Result<(), Refused> {
    if state.vm(vm)?.arrived_by() != Some(record.id) {
        return Err(Refused::Invalid(format!("{}: nothing was handed over", record.title())));
    }
    ha::end_move(vm_mut(state, vm)?);
    if let Some(op) = state.ops.get_mut(&record.id) {
        let op = std::sync::Arc::make_mut(op);
        op.migration.get_or_insert_default().measured = Some(measured);
    }
    Ok(())
}

/// What becomes of the move that a migration was begun for, or that takes its place, when the
/// migration did not come to its end.
pub(crate) fn ended_early(vm: &mut VmRecord, record: &OpRecord, failure: Option<&OpFailure>) {
    let OpRequest::VmMigrate { to, policy, storage, .. } = &record.request else { return };
    let quick = match (failure, vm.moving) {
        // A saved one could not be resumed there: its disks are not.
        _ if storage.is_some() => false,
        // Somebody stopped it, or it has come and its guest was lost there.
        (None, _) => false,
        (Some(_), _) if vm.owner == *to => false,
        // A drain or a return to a preferred node goes on in the other way.
        (Some(_), Some(_)) => true,
        (Some(failure), None) => {
            failure.code == NO_CONVERGENCE && policy.at_limit == AtLimit::Quick
        }
    };
    vm.moving = quick.then_some(Moving { to: *to, resume: vm.power == Power::Running, quick });
}
