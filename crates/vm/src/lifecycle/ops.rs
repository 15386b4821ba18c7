//! How operations are performed: the frame around the executors in `power` and `devices`.
//!
//! An executor returns `Step<T>`: it goes on with `?` and stops with a [`Stop`] that says why. The
//! frame turns that into the operation's one outcome, and brings the machine to the state which
//! that outcome names.

use std::time::Duration;

use model::ExitKind;
use model::OpFailure;
use model::OpOutcome;
use model::OpRecord;
use model::OpRequest;
use model::Power;
use model::VmRecord;
use tokio::time::Instant;

use crate::engine::EngineError;
use crate::engine::ExitInfo;
use crate::engine::MachineEvent;
use crate::engine::RunState;
use crate::image::ImageError;
use crate::lifecycle::Phase;
use crate::lifecycle::Progress;
use crate::lifecycle::driver::Driver;
use crate::lifecycle::driver::describe_exit;
use crate::lifecycle::driver::next_event;

/// Why an executor stopped before its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stop {
    /// Somebody asked for it.
    #[error("it was cancelled")]
    Cancelled,
    /// The operation's time is over.
    #[error("its time is over")]
    Deadline,
    /// The machine ended in the middle.
    #[error("the machine ended: {}", describe_exit(.0))]
    Ended(ExitInfo),
    /// The engine did not do it.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// An image tool did not do it.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A file of the VM cannot be written or read.
    #[error("{what}: {source}")]
    File {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The VM is another node's from here on, and so is the operation.
    #[error("it goes on at another node")]
    Left,
    /// The VM's volume is not there.
    #[error("{0}")]
    Volume(String),
    /// Something else, with its own words and next step.
    #[error("{message}")]
    Failed {
        /// A stable word.
        code: &'static str,
        /// What happened.
        message: String,
        /// What to do next.
        hint: String,
    },
}

pub(crate) type Step<T> = Result<T, Stop>;

/// What an executor has to know of the operation around it.
pub(crate) struct Task<'a> {
    pub(crate) op: &'a OpRecord,
    pub(crate) deadline: Instant,
}

impl Driver {
    /// Performs an operation to its one outcome; none, if that is another node's to tell.
    pub(crate) async fn perform(&mut self, record: &VmRecord, op: &OpRecord) -> Option<OpOutcome> {
        let left = op.deadline.since(self.host.ledger.now());
        let deadline = Instant::now() + Duration::from_millis(left.get());
        let task = Task { op, deadline };
        let step = match self.stop_at_once(record, op, left).await {
            Some(stop) => Err(stop),
            None => self.execute(record, &task).await,
        };
        match step {
            Ok(outcome) => Some(outcome),
            Err(Stop::Left) => None,
            Err(stop) => Some(self.stopped(record, op, stop).await),
        }
    }

    /// Why an operation is not even begun or gone on with, if it is not. One that has done already
    /// what cannot be taken back goes on to its end.
    async fn stop_at_once(
        &mut self,
        record: &VmRecord,
        op: &OpRecord,
        left: model::Millis,
    ) -> Option<Stop> {
        let stop = if op.cancel_requested() {
            Stop::Cancelled
        } else if left.get() == 0 {
            Stop::Deadline
        } else {
            return None;
        };
        let too_late = match &op.request {
            OpRequest::VmShutdown { .. } => self.run.is_none() && !self.unknown,
            // The VM is this node's already.
            OpRequest::VmMigrate { .. } => record.arrived_by() == Some(op.id),
            OpRequest::VmMoveStorage { to, .. } => record.place() == *to,
            OpRequest::VmStart { .. } | OpRequest::VmResume { .. } => match &self.run {
                // The guest goes on since an earlier daemon.
                Some(run) if run.info.generation == record.generation => {
                    matches!(run.machine.query_status().await, Ok(RunState::Running))
                }
                _ => false,
            },
            request => ends_machine(request),
        };
        (!too_late).then_some(stop)
    }

    async fn execute(&mut self, record: &VmRecord, task: &Task<'_>) -> Step<OpOutcome> {
        // A machine can be ended without its files; everything else needs them.
        if !matches!(task.op.request, OpRequest::VmOff { .. } | OpRequest::VmShutdown { .. }) {
            self.volume_ready(record)?;
        }
        match &task.op.request {
            OpRequest::VmCreate { .. } => self.create(record, task).await,
            OpRequest::VmStart { .. } => self.start(record, task).await,
            OpRequest::VmResume { .. } => match record.power {
                Power::Saved => self.start(record, task).await,
                _ => self.resume(record, task).await,
            },
            OpRequest::VmShutdown { patience, then_off, .. } => {
                let patience = Duration::from_millis(patience.get());
                self.shut_down(record, task, patience, *then_off).await
            }
            OpRequest::VmOff { .. } => {
                self.end_machine().await?;
                Ok(OpOutcome::Done)
            }
            OpRequest::VmPause { .. } => self.pause(task).await,
            OpRequest::VmSave { .. } => self.save(record, task).await,
            OpRequest::VmMigrate { to, policy, storage, .. } => {
                self.migrate(record, task, *to, *policy, storage.as_deref()).await
            }
            OpRequest::VmMoveStorage { to, .. } => self.move_storage(record, task, *to).await,
            OpRequest::VmReset { .. } => self.reset(task).await,
            OpRequest::VmDelete { .. } => {
                self.end_machine().await?;
                Ok(OpOutcome::Done)
            }
            OpRequest::VmPurge { .. } => {
                self.end_machine().await?;
                if !self.remove_copies(record).await {
                    tracing::warn!(vm = %record.name, "old copies of its files are left");
                }
                self.files.remove().map_err(file("its files cannot be removed"))?;
                Ok(OpOutcome::Done)
            }
            OpRequest::VmSet { change, .. } => self.set(record, task, change).await,
            OpRequest::DiskAdd { disk, .. } => self.add_disk(record, task, disk).await,
            OpRequest::DiskRemove { disk, .. } => self.remove_disk(record, task, *disk).await,
            OpRequest::DiskResize { disk, size, .. } => {
                self.resize_disk(record, task, *disk, *size).await
            }
            OpRequest::NicAdd { nic, .. } => self.add_nic(record, task, nic).await,
            OpRequest::NicRemove { nic, .. } => self.remove_nic(record, task, *nic).await,
            OpRequest::NicSet { nic, change, .. } => self.set_nic(record, task, *nic, change).await,
            OpRequest::ImageImport { .. } | OpRequest::ImageDelete { .. } => {
                Err(failed("internal", "an image operation came to a VM", "report this"))
            }
        }
    }

    /// Brings the VM to a named state after an operation that stopped, and says which.
    async fn stopped(&mut self, record: &VmRecord, op: &OpRecord, stop: Stop) -> OpOutcome {
        tracing::info!(vm = %record.name, op = %op.id, %stop, "op stops");
        self.untidy = true;
        let mut power = None;
        if let Stop::Ended(exit) = &stop {
            let detail = describe_exit(exit);
            let text = format!("it ended while it was to {}: {detail}", op.request.verb());
            self.note(model::Severity::Error, text);
            // Whether it is started again is decided as after every crash, once this has ended.
            self.forget_machine();
            self.lost = Some((ExitKind::Crashed, detail));
        }
        match &op.request {
            OpRequest::VmCreate { .. } => {
                if let Err(error) = self.files.remove() {
                    tracing::warn!(vm = %record.name, %error, "files of a failed creation are left");
                }
            }
            OpRequest::VmStart { .. } => power = Some(self.undo_start(record).await),
            OpRequest::VmResume { .. } if record.power == Power::Saved => {
                power = Some(self.undo_start(record).await);
            }
            OpRequest::VmSave { .. } => self.undo_save(record).await,
            OpRequest::VmMigrate { to, .. } if record.arrived_by() != Some(op.id) => {
                self.undo_migrate(op.id, *to).await;
            }
            OpRequest::VmSet { change, .. } => self.undo_set(record, change).await,
            OpRequest::DiskAdd { disk, .. } => self.undo_add_disk(disk).await,
            OpRequest::NicAdd { nic, .. } => self.undo_add_nic(nic.id).await,
            // Copies of disks are given up once the end is in the state (see `storage`).
            // A cable that was pulled for a move is put back in by the tidying that follows, and a
            // disk that was put aside is put back.
            _ => {}
        }
        self.observe().await;
        if self.run.is_none() {
            self.publisher.phase(Phase::Off);
        }
        match stop {
            Stop::Cancelled => OpOutcome::Cancelled { power },
            other => OpOutcome::Failed { failure: failure_of(&other), power },
        }
    }

    /// What is left to do once the state knows the outcome.
    pub(crate) async fn after(&mut self, record: &VmRecord, op: &OpRecord, outcome: &OpOutcome) {
        match (&op.request, outcome) {
            // The saved memory is in the state now, so the machine may go.
            (OpRequest::VmSave { .. }, OpOutcome::Saved { .. }) => {
                // What does not go away is looked for again, and has no right to run.
                let _ = self.end_machine().await;
            }
            (OpRequest::VmOff { .. }, OpOutcome::Done) if record.power == Power::Saved => {
                self.files.drop_memory();
            }
            (OpRequest::VmStart { .. } | OpRequest::VmResume { .. }, OpOutcome::Done) => {
                self.files.drop_memory();
            }
            (OpRequest::DiskRemove { disk, .. }, OpOutcome::Done) => {
                self.drop_disk_file(record, *disk);
            }
            (OpRequest::NicSet { nic, change, .. }, OpOutcome::Done) => {
                self.after_nic_set(record, *nic, change).await;
            }
            _ => {}
        }
    }

    pub(crate) fn progress(&self, task: &Task<'_>, step: &str, done: u64, total: u64) {
        let progress = Progress { step: step.to_owned(), done, total };
        self.host.ledger.progress(task.op.id, progress);
    }

    /// Waits for an event for which `pick` gives a value, at most until `until`; `None` when that
    /// has passed. Shows other events meanwhile.
    pub(crate) async fn event<T>(
        &mut self,
        task: &Task<'_>,
        until: Instant,
        mut pick: impl FnMut(&MachineEvent) -> Option<T>,
    ) -> Step<Option<T>> {
        loop {
            let event = tokio::select! {
                // A guest that floods us with events must not keep an operation from its end.
                biased;
                stop = cancelled(&mut self.wanted, task) => return Err(stop),
                () = tokio::time::sleep_until(until) => return Ok(None),
                () = tokio::time::sleep_until(task.deadline) => return Err(Stop::Deadline),
                event = next_event(&mut self.run) => event,
            };
            if let Some(value) = pick(&event) {
                return Ok(Some(value));
            }
            match event {
                MachineEvent::Exited(exit) => return Err(Stop::Ended(exit)),
                other => self.show_event(&other).await,
            }
        }
    }

    /// The machine, or the failure that says that there is none.
    pub(crate) fn machine(&self) -> Step<std::sync::Arc<dyn crate::engine::Machine>> {
        match &self.run {
            Some(run) => Ok(run.machine.clone()),
            None => Err(failed(
                "not_running",
                "its process is not there",
                "start it again: muster vm start NAME",
            )),
        }
    }
}

/// Ends when the operation is cancelled; never otherwise.
pub(crate) async fn cancelled(
    wanted: &mut tokio::sync::watch::Receiver<Option<crate::lifecycle::Wanted>>,
    task: &Task<'_>,
) -> Stop {
    let id = task.op.id;
    let asked = |wanted: &Option<crate::lifecycle::Wanted>| match wanted {
        Some(wanted) => wanted.op.as_ref().is_some_and(|op| op.id == id && op.cancel_requested()),
        None => true,
    };
    // The guard of the watched value must not live across the wait below.
    let ended = wanted.wait_for(asked).await.is_err();
    if ended {
        // The daemon ends and this task with it.
        std::future::pending::<()>().await;
    }
    Stop::Cancelled
}

/// Does something that knows nothing of operations, until it is done, cancelled or out of time.
pub(crate) async fn race<T>(
    wanted: &mut tokio::sync::watch::Receiver<Option<crate::lifecycle::Wanted>>,
    task: &Task<'_>,
    work: impl Future<Output = T>,
) -> Step<T> {
    tokio::select! {
        biased;
        done = work => Ok(done),
        stop = cancelled(wanted, task) => Err(stop),
        () = tokio::time::sleep_until(task.deadline) => Err(Stop::Deadline),
    }
}

/// Whether an operation ends the machine whatever state it is in. Such a one cannot be stopped:
/// what it has ended does not come back.
pub(crate) fn ends_machine(request: &OpRequest) -> bool {
    matches!(
        request,
        OpRequest::VmOff { .. } | OpRequest::VmDelete { .. } | OpRequest::VmPurge { .. }
    )
}

pub(crate) fn failed(
    code: &'static str,
    message: impl Into<String>,
    hint: impl Into<String>,
) -> Stop {
    Stop::Failed { code, message: message.into(), hint: hint.into() }
}

pub(crate) fn file(what: &'static str) -> impl FnOnce(std::io::Error) -> Stop {
    move |source| Stop::File { what, source }
}

pub(crate) fn failure_of(stop: &Stop) -> OpFailure {
    let (code, hint): (&str, String) = match stop {
        Stop::Cancelled => ("cancelled", String::new()),
        Stop::Left => ("left", String::new()),
        Stop::Deadline => ("deadline", "try it again, or look at: muster event list".to_owned()),
        Stop::Ended(_) => ("machine_ended", "see why: muster event list".to_owned()),
        Stop::Engine(error) => (engine_code(error), engine_hint(error)),
        Stop::Image(_) => ("image", "check the image and the free space: muster node show".into()),
        Stop::File { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
            ("no_space", "free space on the node: muster node show".to_owned())
        }
        Stop::File { .. } => ("file", "check the data directory of the node".to_owned()),
        Stop::Volume(_) => ("volume", "see the volume on this node: muster volume list".to_owned()),
        Stop::Failed { code, hint, .. } => (code, hint.clone()),
    };
    OpFailure { code: code.to_owned(), message: stop.to_string(), hint }
}

fn engine_code(error: &EngineError) -> &'static str {
    match error {
        EngineError::Missing { .. } | EngineError::TooOld { .. } => "no_qemu",
        EngineError::NotRoot => "not_root",
        EngineError::Unsupported { .. } => "unsupported",
        EngineError::NoSlot => "no_slot",
        EngineError::OutOfRange { .. } => "out_of_range",
        EngineError::DiskBusy { .. } => "disk_busy",
        EngineError::Image { .. } => "disk_image",
        EngineError::Launch { .. } => "launch",
        EngineError::Restore(_) => "restore",
        EngineError::Hung { .. } => "hung",
        EngineError::HostMemory { .. } => "host_memory",
        _ => "engine",
    }
}

fn engine_hint(error: &EngineError) -> String {
    match error {
        EngineError::Missing { .. } | EngineError::TooOld { .. } => {
            "install it and try again; the daemon finds it by itself: muster node show"
        }
        EngineError::Hung { .. } | EngineError::Garbage(_) => "turn it off: muster vm off NAME",
        EngineError::OutOfRange { .. } => {
            "shut it down to change the limits: muster vm shutdown NAME"
        }
        EngineError::Restore(_) => {
            "start it afresh, which gives the saved memory up: muster vm off NAME, then start"
        }
        _ => "see what the node says: muster node show; muster event list",
    }
    .to_owned()
}
