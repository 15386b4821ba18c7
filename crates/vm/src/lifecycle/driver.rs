//! The task that owns one VM on this node.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use model::Exit;
use model::ExitKind;
use model::Generation;
use model::NicId;
use model::OpId;
use model::OpOutcome;
use model::OpRecord;
use model::OpRequest;
use model::Power;
use model::Severity;
use model::VmId;
use model::VmRecord;
use tokio::sync::Semaphore;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::engine::Adopted;
use crate::engine::EngineError;
use crate::engine::ErrorClass;
use crate::engine::ExitInfo;
use crate::engine::GoneReason;
use crate::engine::Launched;
use crate::engine::Machine;
use crate::engine::MachineEvent;
use crate::engine::Origin;
use crate::engine::RunInfo;
use crate::engine::RunState;
use crate::guest::GuestServices;
use crate::lifecycle::Freshness;
use crate::lifecycle::Host;
use crate::lifecycle::LedgerError;
use crate::lifecycle::Phase;
use crate::lifecycle::RunStatus;
use crate::lifecycle::VmFiles;
use crate::lifecycle::Wanted;
use crate::lifecycle::hung;
use crate::lifecycle::machine::Actual;
use crate::lifecycle::machine::Cpus;
use crate::lifecycle::machine::Settle;
use crate::lifecycle::machine::is_of_present_run;
use crate::lifecycle::machine::settle;
use crate::lifecycle::migrate::let_go;
use crate::lifecycle::ops::Stop;
use crate::lifecycle::ops::ends_machine;
use crate::lifecycle::status::Publisher;

/// How long until a thing that cannot be had now (QEMU, storage, an answer) is tried again. Short
/// enough that a repaired host needs no hand, long enough to cost nothing.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// How long until it is looked again whether an old copy of a VM can be removed.
const COPIES_AGAIN: Duration = Duration::from_secs(60);

/// How long until a report that the state did not take is repeated.
const REPORT_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// How long a record stands before it is copied to the VM's directory: changes mostly come in rows,
/// and the next one must not wait for the disk.
const COPY_AFTER: Duration = Duration::from_secs(1);

/// Copies of records at one time, by all drivers: a daemon that starts with thousands of VMs looks
/// at all copies, and everybody else needs the disk, too.
static COPIES: Semaphore = Semaphore::const_new(2);

/// What a driver is made of.
pub(crate) struct Parts {
    pub(crate) host: Arc<Host>,
    pub(crate) vm: VmId,
    pub(crate) wanted: watch::Receiver<Option<Wanted>>,
    pub(crate) publisher: Publisher,
    pub(crate) consoles: watch::Sender<Option<Arc<dyn Machine>>>,
    pub(crate) services: watch::Sender<Option<GuestServices>>,
}

pub(crate) struct Driver {
    pub(crate) host: Arc<Host>,
    pub(crate) vm: VmId,
    pub(crate) files: VmFiles,
    pub(crate) wanted: watch::Receiver<Option<Wanted>>,
    pub(crate) publisher: Publisher,
    pub(crate) run: Option<Run>,
    consoles: watch::Sender<Option<Arc<dyn Machine>>>,
    pub(crate) services: watch::Sender<Option<GuestServices>>,
    /// A machine may be there and could not be asked: look again before anything else.
    pub(crate) unknown: bool,
    /// The machine was found, and it was not looked yet whether it is of the present run.
    found: bool,
    /// How a machine ended that nobody asked to end, until the state is told.
    pub(crate) lost: Option<(ExitKind, String)>,
    /// Something may be left over from an earlier daemon, operation or run.
    pub(crate) untidy: bool,
    retry_at: Option<Instant>,
    /// The record as it was copied last, and when the present one is to be.
    copied: Option<Arc<VmRecord>>,
    copy_at: Option<Instant>,
    pub(crate) hung: hung::Watch,
    /// The adapters that the VM had when it was known last: their ports go with it.
    nics: Vec<NicId>,
}

/// A machine that is there.
pub(crate) struct Run {
    pub(crate) machine: Arc<dyn Machine>,
    pub(crate) events: mpsc::Receiver<MachineEvent>,
    pub(crate) info: RunInfo,
}

impl Driver {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { host, vm, wanted, publisher, consoles, services } = parts;
        let dir = wanted.borrow().as_ref().map(|wanted| (host.vms_dir)(&wanted.record));
        // A driver begins with a record; without one there would be nothing to drive.
        let files = VmFiles::new(&dir.unwrap_or_default(), vm);
        Self {
            host,
            vm,
            files,
            wanted,
            publisher,
            run: None,
            consoles,
            services,
            unknown: true,
            found: false,
            lost: None,
            untidy: true,
            retry_at: None,
            copied: None,
            copy_at: None,
            hung: hung::Watch::default(),
            nics: Vec::new(),
        }
    }

    /// Lives until the VM is gone from the state, or the daemon ends.
    pub(crate) async fn run(mut self) {
        let mut ended: Option<OpId> = None;
        loop {
            let known = !self.unknown || self.look().await;
            let wanted = self.wanted.borrow_and_update().clone();
            if let Some(wanted) = &wanted {
                self.nics = wanted.record.spec.nics.iter().map(|nic| nic.id).collect();
            }
            self.follow_place(wanted.as_ref());
            let Some(wanted) = wanted else {
                // What does not go away now is a stray, and is ended as one.
                let _ = self.end_machine().await;
                return;
            };
            if wanted.freshness == Freshness::MayBeOld {
                if !self.wait().await {
                    return;
                }
                continue;
            }
            let known = known && self.end_other_run(&wanted.record).await;
            match &wanted.op {
                Some(op) if ended == Some(op.id) => {}
                Some(op) if known || self.needs_no_machine(op) => {
                    if self.perform_and_report(&wanted.record, op).await {
                        ended = Some(op.id);
                    }
                    continue;
                }
                Some(op) => self.look_again_by(op),
                None if known => {
                    self.copy_soon(&wanted.record);
                    self.tell_guest(&wanted.record);
                    self.settle(&wanted.record).await;
                    self.watch_for_hangs(&wanted.record);
                }
                None => {}
            }
            if !self.wait().await {
                return;
            }
        }
    }

    /// Waits for something to do. False when the daemon ends.
    async fn wait(&mut self) -> bool {
        loop {
            let (retry_at, copy_at, look_at) = (self.retry_at, self.copy_at, self.hung.look_at);
            tokio::select! {
                changed = self.wanted.changed() => return changed.is_ok(),
                event = next_event(&mut self.run) => self.on_event(event).await,
                () = sleep_until(retry_at) => self.retry_at = None,
                () = sleep_until(copy_at) => self.copy_record().await,
                () = sleep_until(look_at) => {
                    if !self.look_for_hang().await {
                        continue;
                    }
                }
            }
            return true;
        }
    }

    /// Whether an operation can end although the machine cannot be spoken to: it ends the machine,
    /// or is to stop anyway.
    fn needs_no_machine(&self, op: &OpRecord) -> bool {
        ends_machine(&op.request) || op.cancel_requested() || op.deadline <= self.host.ledger.now()
    }

    fn look_again_by(&mut self, op: &OpRecord) {
        let left = Duration::from_millis(op.deadline.since(self.host.ledger.now()).get());
        self.retry_at = Some(Instant::now() + left.min(RETRY_AFTER));
    }

    /// Finds the machine that an earlier daemon has left, if it has. False if that is not known
    /// yet.
    async fn look(&mut self) -> bool {
        if let Some(launched) = self.arrival() {
            tracing::info!(vm = %self.vm, pid = launched.run.pid, "machine arrived");
            self.take(launched);
            self.unknown = false;
            return true;
        }
        match self.host.engine.adopt(self.vm).await {
            Ok(Adopted::Running(launched)) => {
                tracing::info!(vm = %self.vm, pid = launched.run.pid, "machine adopted");
                self.take(launched);
                self.found = true;
                self.observe().await;
            }
            Ok(Adopted::Gone(reason)) => {
                self.publisher.phase(Phase::Off);
                if self.may_be_old() {
                    // What that means is to be told to the newest state: it is looked at again then.
                    return false;
                }
                self.note_gone(reason).await;
            }
            Err(error) => {
                self.publisher.phase_with_note(Phase::Hung, &error.to_string());
                self.retry_at = Some(Instant::now() + RETRY_AFTER);
                return false;
            }
        }
        self.unknown = false;
        true
    }

    /// Whether the state has nothing yet that anything may be done by.
    fn may_be_old(&self) -> bool {
        let wanted = self.wanted.borrow();
        wanted.as_ref().is_some_and(|wanted| wanted.freshness == Freshness::MayBeOld)
    }

    /// Ends the machine that was found, if it is of another run than the record's, which is the newest.
    /// False if it does not go away.
    async fn end_other_run(&mut self, record: &VmRecord) -> bool {
        let Some(run) = self.run.as_ref().filter(|_| std::mem::take(&mut self.found)) else {
            return true;
        };
        let theirs = (run.info.generation, run.info.arrival);
        if is_of_present_run(record, theirs.0, theirs.1) {
            let machine = run.machine.clone();
            if let Ok(memory) = machine.memory_state().await {
                let_go(&*machine, record, &memory).await;
            }
            return true;
        }
        tracing::warn!(vm = %self.vm, ?theirs, "a run without right is ended");
        self.end_machine().await.is_ok()
    }

    /// The machine in which the guest has arrived by a migration, if it just has.
    fn arrival(&self) -> Option<Launched> {
        let op = self.record()?.arrived_by()?;
        self.host.arrivals.take(self.vm, op)
    }

    /// The machine in which the guest had arrived is not there.
    pub(crate) fn note_lost_on_arrival(&mut self) {
        if self.run.is_none() {
            let detail = "the machine that it had arrived in is gone".to_owned();
            self.lost.get_or_insert((ExitKind::HostRestart, detail));
        }
    }

    /// The machine is gone since an earlier daemon saw it: notes how, if the state thinks that it
    /// runs. [`Driver::settle`] tells the state, after the operation under way if there is one.
    async fn note_gone(&mut self, reason: GoneReason) {
        let expected =
            self.wanted.borrow().as_ref().is_some_and(|wanted| {
                matches!(wanted.record.power, Power::Running | Power::Paused)
            });
        if !expected {
            if reason != GoneReason::NoTrace {
                // Reported by itself where it fails.
                let _ = self.clean_up().await;
            }
            return;
        }
        self.lost = Some(match reason {
            GoneReason::Ended(exit) => (ExitKind::Crashed, describe_exit(&exit)),
            GoneReason::HostRebooted => (ExitKind::HostRestart, "the host was started".to_owned()),
            GoneReason::NoTrace | GoneReason::LaunchInterrupted => {
                (ExitKind::HostRestart, "the machine is no longer there".to_owned())
            }
        });
    }

    /// Makes a launched or adopted machine this driver's. What it is doing is still to be observed.
    pub(crate) fn take(&mut self, launched: Launched) {
        let Launched { machine, events, run } = launched;
        self.publisher.run(Some(RunStatus {
            info: run.clone(),
            cpus: 0,
            memory: model::Bytes::ZERO,
            balloon: None,
        }));
        self.consoles.send_replace(Some(machine.clone()));
        self.lost = None;
        self.hung = hung::Watch::default();
        self.run = Some(Run { machine: machine.clone(), events, info: run });
        self.start_services(machine);
    }

    /// Shows what the machine is now.
    pub(crate) async fn observe(&mut self) {
        let Some(run) = &self.run else { return };
        match run.machine.query_status().await {
            Ok(RunState::Running) => {
                self.publisher.phase(Phase::Running);
                self.services_paused(false);
            }
            Ok(RunState::IoError) => {
                self.publisher.phase_with_note(Phase::Paused, "its storage cannot be written");
                self.services_paused(true);
            }
            Ok(RunState::Prelaunch | RunState::Incoming) => {
                self.publisher.phase(Phase::Starting);
                self.services_paused(true);
            }
            Ok(_) => {
                self.publisher.phase(Phase::Paused);
                self.services_paused(true);
            }
            Err(error) => self.publisher.phase_with_note(Phase::Hung, &error.to_string()),
        }
        if let Ok(memory) = run.machine.memory_state().await {
            self.publisher.in_run(|run| run.memory = memory.present);
        }
        if let Ok(inventory) = run.machine.inventory().await {
            self.publisher.in_run(|run| run.cpus = inventory.vcpus.plugged);
        }
    }

    async fn actual(&mut self) -> Option<Actual> {
        let Some(run) = &self.run else { return Some(Actual::Absent) };
        let mut generation = run.info.generation;
        let cpus = match run.machine.query_status().await {
            Ok(RunState::Running) => Cpus::Run,
            // Half of a guest has no right to run, whatever its number.
            Ok(RunState::Incoming) => {
                generation = Generation::default();
                Cpus::Stand
            }
            Ok(RunState::ShutDown) => Cpus::ShutDown,
            Ok(RunState::IoError) => Cpus::StorageError,
            Ok(_) => Cpus::Stand,
            // Its end comes as an event; a hang is shown and looked at again.
            Err(error) => {
                self.publisher.phase_with_note(Phase::Hung, &error.to_string());
                self.retry_at = Some(Instant::now() + RETRY_AFTER);
                return None;
            }
        };
        Some(Actual::Present { generation, cpus })
    }

    async fn settle(&mut self, record: &VmRecord) {
        if self.run.is_none()
            && let Some((kind, detail)) = self.lost.take()
        {
            // First the state, then the traces: a daemon that dies in between finds the traces and
            // tells the same story again.
            if matches!(record.power, Power::Running | Power::Paused) {
                self.report_exit(record.generation, kind, detail).await;
            }
            let _ = self.clean_up().await;
            return;
        }
        if self.untidy && self.volume_ready(record).is_ok() {
            self.tidy(record).await;
        }
        let Some(actual) = self.actual().await else { return };
        let next = settle(record.power, record.generation, actual);
        if next != Settle::Nothing {
            tracing::info!(vm = %record.name, ?next, ?actual, power = ?record.power, "settling");
        }
        match next {
            Settle::Nothing => {
                if self.run.is_none() {
                    self.publisher.phase(Phase::Off);
                }
            }
            Settle::Launch => self.start_again(record).await,
            Settle::Reap => drop(self.end_machine().await),
            Settle::Continue => self.try_to_go_on().await,
            Settle::Pause => {
                self.try_on_machine("pause", |machine| async move { machine.pause().await }).await;
            }
            Settle::AwaitStorage => {
                self.try_to_go_on().await;
                self.retry_at = Some(Instant::now() + RETRY_AFTER);
            }
            Settle::ReportShutdown => {
                let detail = "the guest shut itself down".to_owned();
                self.report_exit(record.generation, ExitKind::GuestShutdown, detail).await;
                let _ = self.end_machine().await;
            }
            Settle::ReportLost => {
                let detail = "it was paused, and its process is gone".to_owned();
                self.report_exit(record.generation, ExitKind::Crashed, detail).await;
            }
        }
    }

    async fn try_to_go_on(&mut self) {
        let Some(run) = &self.run else { return };
        let machine = run.machine.clone();
        if let Err(stop) = self.let_go_on(&machine).await {
            self.note(Severity::Warning, format!("it cannot go on: {stop}"));
            self.retry_at = Some(Instant::now() + RETRY_AFTER);
        }
        self.observe().await;
    }

    async fn try_on_machine<F, R>(&mut self, what: &str, act: F)
    where
        F: FnOnce(Arc<dyn Machine>) -> R,
        R: Future<Output = Result<(), EngineError>>,
    {
        let Some(run) = &self.run else { return };
        if let Err(error) = act(run.machine.clone()).await {
            self.note(Severity::Warning, format!("it cannot {what}: {error}"));
            self.retry_at = Some(Instant::now() + RETRY_AFTER);
        }
        self.observe().await;
    }

    /// Starts a VM that should run and does not, without an operation: after a crash or a restart
    /// of the host.
    async fn start_again(&mut self, record: &VmRecord) {
        self.publisher.phase(Phase::Starting);
        let mut wanted = self.wanted.clone();
        let run = record.generation;
        let still = |wanted: &Wanted| {
            let record = &wanted.record;
            wanted.op.is_none() && record.power == Power::Running && record.generation == run
        };
        let booted = tokio::select! {
            booted = self.boot(record) => Some(booted),
            // Somebody wants something else: an engine that hangs must not keep them waiting.
            _ = wanted.wait_for(|wanted| !wanted.as_ref().is_some_and(still)) => None,
        };
        let error = match booted {
            Some(Ok(())) => return,
            Some(Err(error)) => error,
            None => return drop(self.end_machine().await),
        };
        let _ = self.end_machine().await;
        let (class, message) = match &error {
            Stop::Engine(error) => (error.class(), error.to_string()),
            Stop::Volume(problem) => (ErrorClass::Refused, problem.clone()),
            other => (ErrorClass::Failed, other.to_string()),
        };
        self.publisher.phase_with_note(Phase::Failed, &message);
        if class == ErrorClass::Refused {
            // The host cannot run it now, and trying often would use its restarts up.
            self.retry_at = Some(Instant::now() + RETRY_AFTER);
            return;
        }
        let detail = format!("it could not be started again: {message}");
        self.report_exit(record.generation, ExitKind::Crashed, detail).await;
    }

    /// False if it has to be performed again.
    async fn perform_and_report(&mut self, record: &Arc<VmRecord>, op: &Arc<OpRecord>) -> bool {
        tracing::info!(vm = %record.name, op = %op.id, verb = ?op.request.verb(), "op begins");
        let Some(outcome) = self.perform(record, op).await else { return true };
        tracing::info!(vm = %record.name, op = %op.id, outcome = ?outcome, "op ended");
        let taken = self.report(op.id, &outcome).await;
        self.untidy = true;
        if let (OpRequest::VmMoveStorage { to, .. }, false) = (&op.request, taken) {
            // A decision of which nothing was known has been taken in: that is gone through with.
            let knows = |wanted: &Option<Wanted>| {
                wanted.as_ref().is_none_or(|wanted| {
                    let over = wanted.op.as_ref().is_none_or(|now| now.id != op.id);
                    over || wanted.record.place() == *to
                })
            };
            let _ = tokio::time::timeout(RETRY_AFTER, self.wanted.wait_for(knows)).await;
            // Its volume may be away: that is not to be asked for without a pause.
            tokio::time::sleep(REPORT_AGAIN_AFTER).await;
            return false;
        }
        self.after(record, op, &outcome).await;
        true
    }

    /// The VM's files are where the state says.
    fn follow_place(&mut self, wanted: Option<&Wanted>) {
        if let Some(wanted) = wanted {
            self.files = VmFiles::new(&(self.host.vms_dir)(&wanted.record), self.vm);
        }
    }

    /// Reports until the state has it: an operation that has ended must not be performed again. False
    /// if the state refuses it.
    async fn report(&mut self, op: OpId, outcome: &OpOutcome) -> bool {
        loop {
            match self.host.ledger.finish(op, outcome.clone()).await {
                Ok(()) => return true,
                Err(LedgerError::Refused(refused)) => {
                    tracing::error!(vm = %self.vm, %op, %refused, "the state refuses an outcome");
                    return false;
                }
                Err(LedgerError::Unavailable(error)) => {
                    tracing::warn!(vm = %self.vm, %op, %error, "an outcome is reported again");
                    tokio::time::sleep(REPORT_AGAIN_AFTER).await;
                }
            }
        }
    }

    pub(crate) async fn report_exit(&mut self, run: Generation, kind: ExitKind, detail: String) {
        let exit = Exit { kind, detail, at: self.host.ledger.now() };
        loop {
            match self.host.ledger.exited(self.vm, run, exit.clone()).await {
                Ok(()) => break,
                // Another run is wanted since; what this one did no longer matters.
                Err(LedgerError::Refused(refused)) => {
                    tracing::info!(vm = %self.vm, %run, %refused, "a late exit");
                    break;
                }
                Err(LedgerError::Unavailable(error)) => {
                    tracing::warn!(vm = %self.vm, %error, "an exit is reported again");
                    tokio::time::sleep(REPORT_AGAIN_AFTER).await;
                }
            }
        }
        // What is wanted comes another way than the answer: acting on the record of before would
        // start a run that is over once more.
        let knows = |wanted: &Option<Wanted>| {
            wanted.as_ref().is_none_or(|wanted| {
                wanted.record.generation != run
                    || !matches!(wanted.record.power, Power::Running | Power::Paused)
            })
        };
        // An error says that the daemon ends, and this task with it.
        let _ = self.wanted.wait_for(knows).await;
        // Seen here, and still to be acted on.
        self.wanted.mark_changed();
    }

    /// An event while no operation is under way.
    async fn on_event(&mut self, event: MachineEvent) {
        let Some(run) = &self.run else { return };
        let generation = run.info.generation;
        match &event {
            MachineEvent::ShutDown(origin) => {
                tracing::info!(vm = %self.vm, ?origin, "guest has shut down");
                let detail = match origin {
                    Origin::Guest => "the guest shut itself down",
                    Origin::Host => "the guest was shut down from the host",
                };
                // First the state: a daemon that dies in between must not start it again.
                self.report_exit(generation, ExitKind::GuestShutdown, detail.to_owned()).await;
                let _ = self.end_machine().await;
            }
            MachineEvent::Exited(exit) => {
                let detail = describe_exit(exit);
                self.forget_machine();
                self.report_exit(generation, ExitKind::Crashed, detail).await;
                let _ = self.clean_up().await;
            }
            other => self.show_event(other).await,
        }
    }

    /// Shows what an event says; decides nothing.
    pub(crate) async fn show_event(&mut self, event: &MachineEvent) {
        match event {
            MachineEvent::Resumed | MachineEvent::Stopped | MachineEvent::Lagged(_) => {
                self.observe().await;
            }
            MachineEvent::AgentPort(true) => {
                if let Some(services) = self.guest() {
                    services.agent_came();
                }
            }
            MachineEvent::Panicked => {
                self.note(Severity::Error, "the guest's kernel has panicked".to_owned());
            }
            MachineEvent::VcpusChanged(count) => {
                self.publisher.in_run(|run| run.cpus = *count);
            }
            MachineEvent::MemoryChanged(present) => {
                self.publisher.in_run(|run| run.memory = *present);
            }
            MachineEvent::BalloonChanged(left) => {
                self.publisher.in_run(|run| run.balloon = Some(*left));
            }
            MachineEvent::DiskError { write, no_space, stopped, reason, .. } => {
                let verb = if *write { "written" } else { "read" };
                let why = if *no_space { "the host's storage is full" } else { reason };
                let stands = if *stopped { "; it stands until that is over" } else { "" };
                self.note(Severity::Error, format!("a disk cannot be {verb}: {why}{stands}"));
                self.observe().await;
                self.retry_at = Some(Instant::now() + RETRY_AFTER);
            }
            MachineEvent::Hung => {
                self.publisher.phase_with_note(Phase::Hung, "its process does not answer");
                let text = "its process does not answer; turn it off if it does not come back";
                self.note(Severity::Error, text.to_owned());
            }
            MachineEvent::Responsive => {
                self.note(Severity::Info, "its process answers again".to_owned());
                self.observe().await;
            }
            MachineEvent::DiskUnplugged(disk) => {
                self.untidy = true;
                self.note_let_go("disk", |record| record.spec.disk(*disk).map(|it| &it.name));
            }
            MachineEvent::NicUnplugged(nic) => {
                self.note_let_go("adapter", |record| record.spec.nic(*nic).map(|it| &it.name));
            }
            _ => {}
        }
    }

    /// A guest lets a device go after the operation that asked for it has ended without it.
    fn note_let_go(&self, what: &str, name: impl Fn(&VmRecord) -> Option<&model::Name>) {
        let wanted = self.wanted.borrow().clone();
        if let Some(name) = wanted.as_ref().and_then(|wanted| name(&wanted.record)) {
            let text = format!(
                "the guest has let {what} {name} go after its removal had failed; remove it \
                 again, or it comes back at the next start"
            );
            self.note(Severity::Warning, text);
        }
    }

    pub(crate) fn note(&self, severity: Severity, text: String) {
        self.host.ledger.note(self.vm, severity, text);
    }

    /// Ends the machine and everything of it, whether this driver knows it or not.
    ///
    /// # Errors
    /// A process does not go away; it is looked for again.
    pub(crate) async fn end_machine(&mut self) -> Result<(), EngineError> {
        if let Some(run) = &self.run {
            self.publisher.phase(Phase::Stopping);
            if let Err(error) = run.machine.kill().await {
                tracing::info!(vm = %self.vm, %error, "machine could not be ended politely");
            }
        }
        self.forget_machine();
        self.lost = None;
        self.clean_up().await
    }

    /// The machine is gone: forgets it. Its traces stay until [`Driver::clean_up`].
    pub(crate) fn forget_machine(&mut self) {
        self.consoles.send_replace(None);
        self.services.send_replace(None);
        self.run = None;
        self.untidy = true;
        self.publisher.run(None);
        self.publisher.phase(Phase::Off);
    }

    async fn clean_up(&mut self) -> Result<(), EngineError> {
        let reaped = self.host.engine.reap(self.vm).await;
        match &reaped {
            Ok(()) => self.unknown = false,
            Err(error) => {
                self.note(Severity::Error, format!("its process does not go away: {error}"));
                self.unknown = true;
                self.retry_at = Some(Instant::now() + RETRY_AFTER);
            }
        }
        let now = self.record().map(|record| record.spec.nics.iter().map(|nic| nic.id).collect());
        let nics: Vec<NicId> = now.unwrap_or_else(|| self.nics.clone());
        // Together, so that they can be closed in one go.
        futures::future::join_all(nics.iter().map(|nic| self.host.ports.close(*nic))).await;
        reaped
    }

    /// Removes what an earlier daemon, operation or run has left, and brings the cables to what
    /// the record says. Only without an operation under way.
    async fn tidy(&mut self, record: &VmRecord) {
        let mut in_use = Vec::new();
        if !self.settle_mirrors().await {
            self.retry_at = Some(Instant::now() + RETRY_AFTER);
            return;
        }
        if let Some(run) = &self.run {
            let machine = run.machine.clone();
            let Ok(inventory) = machine.inventory().await else { return };
            in_use.extend(inventory.disks.keys().copied());
            for nic in record.spec.nics.iter().filter(|nic| inventory.nics.contains_key(&nic.id)) {
                if let Err(error) = machine.set_link(nic.id, nic.link_up).await {
                    tracing::warn!(vm = %self.vm, nic = %nic.id, %error, "its cable is as it was");
                }
            }
        }
        if self.run.is_some() {
            self.keep_layout_if_it_can().await;
        }
        self.files.tidy(record, &in_use);
        self.untidy = !self.remove_copies(record).await;
        if self.untidy {
            self.retry_at.get_or_insert(Instant::now() + COPIES_AGAIN);
        }
    }

    /// Whether the VM's files can be touched.
    pub(crate) fn volume_ready(&self, record: &VmRecord) -> Result<(), Stop> {
        (self.host.volume_ready)(record).map_err(Stop::Volume)
    }

    fn copy_soon(&mut self, record: &Arc<VmRecord>) {
        if self.copied.as_ref().is_none_or(|copied| !Arc::ptr_eq(copied, record)) {
            self.copy_at.get_or_insert_with(|| Instant::now() + COPY_AFTER);
        }
    }

    async fn copy_record(&mut self) {
        self.copy_at = None;
        let Some(record) = self.record() else { return };
        if self.volume_ready(&record).is_err() {
            return;
        }
        let Ok(_turn) = COPIES.acquire().await else { return };
        let fresh = record.clone();
        let written = self.with_files(move |files| match files.dir().is_dir() {
            true => files.write_record(&fresh),
            // One without disks on this host has no directory.
            false => Ok(()),
        });
        if let Err(error) = written.await {
            tracing::warn!(vm = %record.name, %error, "the copy of the record is not up to date");
        }
        self.copied = Some(record);
    }

    /// Does something that waits for the disk, on a thread where nobody else waits with it.
    pub(crate) async fn with_files<T: Send + 'static>(
        &self,
        work: impl FnOnce(&VmFiles) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let files = self.files.clone();
        match tokio::task::spawn_blocking(move || work(&files)).await {
            Ok(done) => done,
            // It panicked, or the daemon ends and this task with it.
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

/// Ends at that time; never, if there is none.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The next event of the machine; never, while there is none.
pub(crate) async fn next_event(run: &mut Option<Run>) -> MachineEvent {
    let Some(run) = run else { return std::future::pending().await };
    match run.events.recv().await {
        Some(event) => event,
        // The engine promises `Exited` as the last event; a closed channel says the same.
        None => MachineEvent::Exited(ExitInfo::default()),
    }
}

pub(crate) fn describe_exit(exit: &ExitInfo) -> String {
    let how = match (exit.signal, exit.code) {
        (Some(signal), _) => format!("the process was ended by signal {signal}"),
        (None, Some(code)) => format!("the process ended with code {code}"),
        (None, None) => "the process ended".to_owned(),
    };
    match exit.stderr.lines().last() {
        Some(words) if !words.trim().is_empty() => format!("{how}: {}", words.trim()),
        _ => how,
    }
}
