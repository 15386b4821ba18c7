//! How operations and runs end, and what that makes of the VM or image.

use std::sync::Arc;

use crate::ClusterState;
use crate::CrashPolicy;
use crate::EventKind;
use crate::Exit;
use crate::ExitKind;
use crate::Generation;
use crate::ImageState;
use crate::Millis;
use crate::OpFailure;
use crate::OpId;
use crate::OpOutcome;
use crate::OpRecord;
use crate::OpRequest;
use crate::OpState;
use crate::Power;
use crate::Refused;
use crate::Severity;
use crate::Speaker;
use crate::Subject;
use crate::UnixMillis;
use crate::VmId;
use crate::VmRecord;
use crate::apply::Context;
use crate::apply::ha;
use crate::apply::image_subject;
use crate::apply::migrate;
use crate::apply::nics;
use crate::apply::platform;
use crate::apply::prune_ops;
use crate::apply::set;
use crate::apply::storage;
use crate::apply::vm_mut;
use crate::apply::vm_subject;

/// A VM that crashes more than this many times within [`CRASH_WINDOW`] stays off: what kills it
/// will most likely kill it again.
const RESTARTS_MAX: usize = 3;

/// How long a crash counts.
const CRASH_WINDOW: Millis = Millis::from_secs(600);

pub(crate) fn finish(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    op: OpId,
    outcome: &OpOutcome,
    by: Speaker,
) -> Result<(), Refused> {
    let record = state.op(op)?.clone();
    if !record.is_running() {
        return Err(Refused::OpEnded(op));
    }
    ha::admit_speaker(state, &record, by)?;
    if let Some(vm) = record.request.vm()
        && state.vm(vm)?.busy() != Some(op)
    {
        return Err(Refused::Invalid(format!("operation {op} is not the one under way")));
    }
    storage::admit_end(state, &record, outcome)?;
    let subject = subject_of(state, &record)?;
    match (record.request.vm(), record.request.image()) {
        (Some(vm), _) => finish_vm(state, cx, vm, &record, outcome)?,
        (None, Some(_)) => finish_image(state, cx, &record, outcome)?,
        (None, None) => {}
    }
    end_op(state, cx, &record, outcome, subject);
    prune_ops(state);
    Ok(())
}

/// Ends an operation of a VM whose record goes, whatever it was doing.
pub(crate) fn fail(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    op: OpId,
    failure: OpFailure,
) -> Result<(), Refused> {
    let record = state.op(op)?.clone();
    let subject = subject_of(state, &record)?;
    end_op(state, cx, &record, &OpOutcome::Failed { failure, power: None }, subject);
    Ok(())
}

fn subject_of(state: &ClusterState, record: &OpRecord) -> Result<Subject, Refused> {
    if let Some(vm) = record.request.vm() {
        return Ok(vm_subject(state.vm(vm)?));
    }
    record
        .request
        .image()
        .and_then(|image| state.images.get(&image))
        .map(|image| image_subject(image))
        .ok_or_else(|| Refused::Invalid("the operation is about nothing".to_owned()))
}

fn end_op(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    record: &OpRecord,
    outcome: &OpOutcome,
    subject: Subject,
) {
    let at = cx.proposal.at;
    let title = record.title();
    let (ended, kind, severity, text) = match outcome {
        OpOutcome::Done
        | OpOutcome::Saved { .. }
        | OpOutcome::Migrated { .. }
        | OpOutcome::Imported { .. } => {
            (OpState::Done { at }, EventKind::OpDone, Severity::Info, format!("{title}: done"))
        }
        OpOutcome::Failed { failure, .. } => (
            OpState::Failed { at, failure: failure.clone() },
            EventKind::OpFailed,
            Severity::Error,
            format!("{title}: {}", failure.message),
        ),
        OpOutcome::Cancelled { .. } => (
            OpState::Cancelled { at },
            EventKind::OpCancelled,
            Severity::Warning,
            format!("{title}: cancelled"),
        ),
    };
    if let Some(record) = state.ops.get_mut(&record.id) {
        Arc::make_mut(record).state = ended;
    }
    cx.event(kind, severity, subject, text, Some(record.id));
}

fn finish_vm(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: VmId,
    record: &OpRecord,
    outcome: &OpOutcome,
) -> Result<(), Refused> {
    let done = match outcome {
        OpOutcome::Done
        | OpOutcome::Saved { .. }
        | OpOutcome::Migrated { .. }
        | OpOutcome::Imported { .. } => true,
        OpOutcome::Failed { .. } | OpOutcome::Cancelled { .. } => false,
    };
    if !done && matches!(record.request, OpRequest::VmCreate { .. }) {
        let name = state.vm(id)?.name.key();
        state.vm_names.remove(&name);
        state.vms.remove(&id);
        return Ok(());
    }
    if done && matches!(record.request, OpRequest::VmPurge { .. }) {
        let subject = vm_subject(state.vm(id)?);
        cx.event(
            EventKind::VmPurged,
            Severity::Info,
            subject,
            format!("{} and its disks are gone", record.target),
            Some(record.id),
        );
        state.vms.remove(&id);
        return Ok(());
    }
    match outcome {
        OpOutcome::Failed { power: Some(power), .. }
        | OpOutcome::Cancelled { power: Some(power) } => {
            set_power(state, cx, id, *power, Some(record.id))?;
        }
        OpOutcome::Failed { power: None, .. } | OpOutcome::Cancelled { power: None } => {}
        _ => done_vm(state, cx, id, record, outcome)?,
    }
    let vm = vm_mut(state, id)?;
    vm.ops.retain(|op| *op != record.id);
    // A move whose save or resume failed is over; the VM stays where it is.
    if !done && matches!(record.request, OpRequest::VmSave { .. } | OpRequest::VmResume { .. }) {
        vm.moving = None;
    }
    if !done {
        let failure = match outcome {
            OpOutcome::Failed { failure, .. } => Some(failure),
            _ => None,
        };
        migrate::ended_early(vm, record, failure);
    }
    Ok(())
}

/// What a VM operation that did what it should makes of the record.
fn done_vm(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: VmId,
    record: &OpRecord,
    outcome: &OpOutcome,
) -> Result<(), Refused> {
    let op = Some(record.id);
    match &record.request {
        OpRequest::VmCreate { .. } => {
            let subject = vm_subject(state.vm(id)?);
            let text = format!("{} was created", record.target);
            cx.event(EventKind::VmCreated, Severity::Info, subject, text, op);
            Ok(())
        }
        OpRequest::VmStart { .. } | OpRequest::VmResume { .. } => {
            set_power(state, cx, id, Power::Running, op)?;
            ha::end_move(vm_mut(state, id)?);
            Ok(())
        }
        OpRequest::VmShutdown { .. } | OpRequest::VmOff { .. } => {
            let at = cx.proposal.at;
            let detail = format!("{} was asked for", record.request.verb());
            vm_mut(state, id)?.last_exit = Some(Exit { kind: ExitKind::Requested, detail, at });
            set_power(state, cx, id, Power::Off, op)
        }
        OpRequest::VmPause { .. } => set_power(state, cx, id, Power::Paused, op),
        OpRequest::VmSave { .. } => {
            let OpOutcome::Saved { saved } = outcome else {
                return Err(Refused::Invalid("a save must say what it wrote".to_owned()));
            };
            set_power(state, cx, id, Power::Saved, op)?;
            vm_mut(state, id)?.saved = Some(*saved);
            Ok(())
        }
        OpRequest::VmMigrate { .. } => {
            let OpOutcome::Migrated { measured } = outcome else {
                return Err(Refused::Invalid("a migration must say what it took".to_owned()));
            };
            migrate::done(state, id, record, *measured)
        }
        OpRequest::VmMoveStorage { to, .. } => storage::done(state, id, *to),
        OpRequest::VmReset { .. } | OpRequest::VmPurge { .. } => Ok(()),
        OpRequest::VmDelete { .. } => {
            let at = cx.proposal.at;
            let vm = vm_mut(state, id)?;
            vm.deleted = Some(at);
            let subject = vm_subject(vm);
            let key = vm.name.key();
            state.vm_names.remove(&key);
            let text = format!("{} was put in the recycle bin", record.target);
            cx.event(EventKind::VmDeleted, Severity::Info, subject, text, op);
            Ok(())
        }
        _ => change_spec(state, cx, id, record),
    }
}

fn change_spec(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: VmId,
    record: &OpRecord,
) -> Result<(), Refused> {
    let mut vm = crate::VmRecord::clone(state.vm(id)?);
    let old_key = vm.name.key();
    match &record.request {
        OpRequest::VmSet { change, .. } => {
            set::change(&mut vm, change);
            if let Some(name) = &change.name {
                vm.name = name.clone();
            }
        }
        OpRequest::DiskAdd { disk, .. } => vm.spec.disks.push(disk.clone()),
        OpRequest::DiskRemove { disk, .. } => vm.spec.disks.retain(|it| it.id != *disk),
        OpRequest::DiskResize { disk, size, .. } => {
            if let Some(disk) = vm.spec.disks.iter_mut().find(|it| it.id == *disk) {
                disk.size = *size;
            }
        }
        OpRequest::NicAdd { nic, .. } => vm.spec.nics.push(nic.clone()),
        OpRequest::NicRemove { nic, .. } => vm.spec.nics.retain(|it| it.id != *nic),
        OpRequest::NicSet { nic, change, .. } => {
            if let Some(nic) = vm.spec.nics.iter_mut().find(|it| it.id == *nic) {
                nics::change(nic, change);
            }
        }
        _ => {}
    }
    vm.spec.validate()?;
    vm.revision = vm.revision.next();
    let text = format!("{}: done", record.title());
    cx.event(EventKind::VmChanged, Severity::Info, vm_subject(&vm), text, Some(record.id));
    state.vm_names.remove(&old_key);
    state.vm_names.insert(vm.name.key(), id);
    state.vms.insert(id, Arc::new(vm));
    Ok(())
}

fn set_power(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: VmId,
    power: Power,
    op: Option<OpId>,
) -> Result<(), Refused> {
    let vm = vm_mut(state, id)?;
    if power != Power::Saved {
        vm.saved = None;
    }
    if vm.power == power {
        return Ok(());
    }
    vm.power = power;
    let word = match power {
        Power::Off => "is off",
        Power::Running => "runs",
        Power::Paused => "is paused",
        Power::Saved => "is saved",
    };
    let text = format!("{} {word}", vm.name);
    let subject = vm_subject(vm);
    cx.event(EventKind::VmPower, Severity::Info, subject, text, op);
    Ok(())
}

impl VmRecord {
    /// Whether it would be started again if it were ended now because its guest hangs. False where
    /// that was done too often lately: a guest that always hangs is left to an administrator.
    pub fn may_restart_hung(&self, now: UnixMillis) -> bool {
        let lately = self.crashes.iter().filter(|crash| now.since(**crash) < CRASH_WINDOW);
        lately.count() < RESTARTS_MAX
    }
}

pub(crate) fn exited(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: VmId,
    generation: Generation,
    exit: &Exit,
) -> Result<(), Refused> {
    let at = cx.proposal.at;
    let vm = state.vm(id)?;
    if vm.generation != generation {
        return Err(Refused::Invalid(format!(
            "run {generation} of {} is over since long; the present one is {}",
            vm.name, vm.generation
        )));
    }
    if !matches!(vm.power, Power::Running | Power::Paused) {
        return Ok(());
    }
    let vm = vm_mut(state, id)?;
    vm.last_exit = Some(exit.clone());
    let fault = match exit.kind {
        ExitKind::Crashed => Some((EventKind::VmCrashed, "crashed")),
        ExitKind::Hung => Some((EventKind::VmHung, "hung")),
        _ => None,
    };
    if let Some((kind, what)) = fault {
        vm.crashes.retain(|crash| at.since(*crash) < CRASH_WINDOW);
        vm.crashes.push(at);
        let text = format!("{} {what}: {}", vm.name, exit.detail);
        let subject = vm_subject(vm);
        cx.event(kind, Severity::Error, subject, text, None);
    }
    let vm = vm_mut(state, id)?;
    let again = match exit.kind {
        // Somebody stopped its processors, and what they stood at is lost: not ours to start.
        _ if vm.power == Power::Paused => false,
        ExitKind::GuestShutdown | ExitKind::Requested => false,
        ExitKind::HostRestart => true,
        ExitKind::Crashed => {
            vm.spec.on_crash == CrashPolicy::Restart && vm.crashes.len() <= RESTARTS_MAX
        }
        // Its owner looks at the limit before it ends a guest that only may be hung.
        ExitKind::Hung => vm.crashes.len() <= RESTARTS_MAX,
    };
    if !again {
        return set_power(state, cx, id, Power::Off, None);
    }
    vm.generation = vm.generation.next();
    vm.power = Power::Running;
    platform::freeze(state, id)?;
    let vm = vm_mut(state, id)?;
    let text = format!("{} is started again", vm.name);
    let subject = vm_subject(vm);
    cx.event(EventKind::VmRestarting, Severity::Warning, subject, text, None);
    Ok(())
}

fn finish_image(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    record: &OpRecord,
    outcome: &OpOutcome,
) -> Result<(), Refused> {
    let Some(id) = record.request.image() else { return Ok(()) };
    match (&record.request, outcome) {
        (
            OpRequest::ImageImport { .. },
            OpOutcome::Imported { virtual_size, file_size, sha256 },
        ) => {
            let Some(image) = state.images.get_mut(&id) else { return Ok(()) };
            let image = Arc::make_mut(image);
            image.state = ImageState::Ready {
                virtual_size: *virtual_size,
                file_size: *file_size,
                sha256: sha256.clone(),
            };
            let subject = image_subject(image);
            let text = format!("image {} can be used", record.target);
            cx.event(EventKind::ImageReady, Severity::Info, subject, text, Some(record.id));
        }
        (OpRequest::ImageImport { .. }, OpOutcome::Failed { .. } | OpOutcome::Cancelled { .. }) => {
            state.images.remove(&id);
        }
        (OpRequest::ImageDelete { .. }, OpOutcome::Done) => {
            if let Some(image) = state.images.remove(&id) {
                let text = format!("image {} is gone", record.target);
                let subject = image_subject(&image);
                cx.event(EventKind::ImageDeleted, Severity::Info, subject, text, Some(record.id));
            }
        }
        _ => return Err(Refused::Invalid("this outcome does not fit the operation".to_owned())),
    }
    Ok(())
}
