//! What stands between a driver and its world: notes what is done, notes what must not be, and
//! stops the driver at a chosen call.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use model::Bytes;
use model::Command;
use model::DiskId;
use model::Exit;
use model::Generation;
use model::NicId;
use model::NicSpec;
use model::OpId;
use model::OpOutcome;
use model::Severity;
use model::UnixMillis;
use model::VmId;
use model::VmPlace;
use model::VolumeId;
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::Truth;
use super::VM;
use super::lock;
use crate::engine::Ability;
use crate::engine::Adopted;
use crate::engine::BalloonStats;
use crate::engine::CpuLimits;
use crate::engine::DiskPlan;
use crate::engine::Engine;
use crate::engine::EngineError;
use crate::engine::Extent;
use crate::engine::GoneReason;
use crate::engine::ImageSlot;
use crate::engine::Inventory;
use crate::engine::LaunchPlan;
use crate::engine::Launched;
use crate::engine::Layout;
use crate::engine::Machine;
use crate::engine::MemoryState;
use crate::engine::MigrateProgress;
use crate::engine::MigrateTuning;
use crate::engine::MirrorPlan;
use crate::engine::MirrorProgress;
use crate::engine::NicPlan;
use crate::engine::Outgoing;
use crate::engine::RestorePlan;
use crate::engine::RunInfo;
use crate::engine::RunState;
use crate::engine::SaveProgress;
use crate::engine::Stray;
use crate::engine::Switch;
use crate::engine::fake::FakeEngine;
use crate::lifecycle::Handover;
use crate::lifecycle::HandoverNote;
use crate::lifecycle::Ledger;
use crate::lifecycle::LedgerError;
use crate::lifecycle::Ports;
use crate::lifecycle::Progress;

/// Passes of one name at each end that are all worth a stop, and the distance of others.
const EACH: usize = 4;
const BETWEEN: usize = 16;

/// Lets a number of calls through, then stops the driver for good: before a call takes effect or
/// after it has.
pub(super) struct Gate {
    passes: AtomicUsize,
    stop_at: usize,
    stopped: watch::Sender<Option<&'static str>>,
    /// All passes by the names of their calls.
    calls: Mutex<Vec<&'static str>>,
}

impl Gate {
    pub(super) fn open() -> Arc<Self> {
        Self::at(usize::MAX)
    }

    /// Stops at the pass of that number, 0 being the first.
    pub(super) fn at(stop_at: usize) -> Arc<Self> {
        let (passes, calls) = (AtomicUsize::new(0), Mutex::default());
        Arc::new(Self { passes, stop_at, stopped: watch::channel(None).0, calls })
    }

    /// Numbers of the passes that are worth a stop, where whole calls are asked again and again: the
    /// first and the last ones of each name, and some between.
    pub(super) fn worth(&self) -> Vec<usize> {
        let calls = lock(&self.calls);
        let same = |call: &str, among: &[&str]| among.iter().filter(|it| **it == call).count();
        let rare = |n: usize| {
            let call = calls[n];
            same(call, &calls[..n]) < EACH || same(call, &calls[n + 1..]) < EACH
        };
        (0..calls.len()).filter(|n| rare(*n) || n % BETWEEN == 0).collect()
    }

    pub(super) async fn pass(&self, call: &'static str) {
        let pass = self.passes.fetch_add(1, Ordering::Relaxed);
        lock(&self.calls).push(call);
        if pass >= self.stop_at {
            if pass == self.stop_at {
                self.stopped.send_replace(Some(call));
            }
            std::future::pending::<()>().await;
        }
    }

    /// Waits until the driver has been stopped; gives the call.
    pub(super) async fn stopped(&self) -> &'static str {
        let mut stopped = self.stopped.subscribe();
        let call = stopped.wait_for(Option::is_some).await.unwrap();
        call.unwrap()
    }
}

/// What was seen of all daemons of a world.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) notes: Mutex<Vec<(Severity, String)>>,
    pub(super) ports: Mutex<BTreeSet<NicId>>,
    pub(super) refreshed: AtomicUsize,
    pub(super) links: Mutex<BTreeMap<NicId, bool>>,
    pub(super) launches: Mutex<Vec<Generation>>,
    pub(super) violations: Mutex<Vec<String>>,
    /// What the next adoption finds instead of what is there.
    pub(super) gone: Mutex<Option<GoneReason>>,
    /// Processes do not go away.
    pub(super) undead: Mutex<bool>,
    /// Volumes that are not there.
    pub(super) missing: Mutex<BTreeSet<VolumeId>>,
    /// Answers to decisions about storage are lost on their way.
    pub(super) unsure: Mutex<bool>,
    /// The state takes no reports.
    pub(super) deaf: Mutex<bool>,
    /// Who gives the right to write, and as which node, where that is looked at.
    pub(super) desk: Mutex<Option<(model::NodeId, Arc<super::rights::Desk>)>>,
    /// Runs that were made from a saved memory, with the run it is of.
    restored: Mutex<BTreeMap<Generation, Generation>>,
    /// Saved memory from which a guest has gone on.
    used: Mutex<BTreeSet<Generation>>,
}

impl Seen {
    /// All processes of the machine are gone here.
    pub(super) fn ended(&self) {
        if let Some((node, desk)) = &*lock(&self.desk) {
            desk.ended(*node);
        }
    }

    fn violation(&self, text: String) {
        lock(&self.violations).push(text);
    }
}

pub(super) struct ProbeLedger {
    pub(super) truth: Arc<Truth>,
    pub(super) seen: Arc<Seen>,
    pub(super) gate: Arc<Gate>,
    pub(super) speaker: model::Speaker,
}

impl ProbeLedger {
    async fn propose(&self, call: &'static str, command: Command) -> Result<(), LedgerError> {
        self.gate.pass(call).await;
        if *lock(&self.seen.deaf) {
            return Err(LedgerError::Unavailable("deaf".to_owned()));
        }
        let result = self.truth.propose(command);
        self.gate.pass(call).await;
        result.map(drop).map_err(LedgerError::from)
    }
}

#[async_trait]
impl Ledger for ProbeLedger {
    async fn finish(&self, op: OpId, outcome: OpOutcome) -> Result<(), LedgerError> {
        self.propose(
            "finish",
            Command::FinishOp { op, outcome: Box::new(outcome), by: self.speaker },
        )
        .await
    }

    async fn hand_over(&self, note: HandoverNote) -> Handover {
        let HandoverNote { op, generation, report } = note;
        let by = self.speaker;
        let report = Box::new(report);
        match self.propose("hand over", Command::VmHandover { op, generation, report, by }).await {
            Ok(()) => Handover::Done,
            Err(LedgerError::Refused(refused)) => Handover::Refused(refused.to_string()),
            Err(LedgerError::Unavailable(why)) => Handover::NotSent(why),
        }
    }

    async fn storage_moved(&self, op: OpId, generation: Generation) -> Handover {
        let unknown = *lock(&self.seen.unsure);
        let command = Command::VmStorageMoved { op, generation, by: self.speaker };
        match self.propose("storage moved", command).await {
            Ok(()) if unknown => Handover::Unknown("its answer was lost".to_owned()),
            Ok(()) => Handover::Done,
            Err(LedgerError::Refused(refused)) => Handover::Refused(refused.to_string()),
            Err(LedgerError::Unavailable(why)) => Handover::NotSent(why),
        }
    }

    async fn copy_gone(&self, vm: VmId, place: VmPlace) -> Result<(), LedgerError> {
        self.propose("copy gone", Command::VmCopyGone { vm, place }).await
    }

    async fn exited(&self, vm: VmId, run: Generation, exit: Exit) -> Result<(), LedgerError> {
        self.propose("exited", Command::VmExited { vm, generation: run, exit }).await
    }

    fn progress(&self, _op: OpId, _progress: Progress) {}

    fn note(&self, _vm: VmId, severity: Severity, text: String) {
        lock(&self.seen.notes).push((severity, text));
    }

    fn now(&self) -> UnixMillis {
        self.truth.now()
    }
}

pub(super) struct ProbePorts {
    pub(super) seen: Arc<Seen>,
    pub(super) gate: Arc<Gate>,
}

#[async_trait]
impl Ports for ProbePorts {
    async fn open(&self, _vm: VmId, nic: &NicSpec) -> Result<OwnedFd, String> {
        self.gate.pass("port open").await;
        lock(&self.seen.ports).insert(nic.id);
        self.gate.pass("port open").await;
        File::open("/dev/null").map(OwnedFd::from).map_err(|error| error.to_string())
    }

    async fn close(&self, nic: NicId) {
        self.gate.pass("port close").await;
        lock(&self.seen.ports).remove(&nic);
        self.gate.pass("port close").await;
    }

    async fn refresh(&self) {
        self.gate.pass("port refresh").await;
        self.seen.refreshed.fetch_add(1, Ordering::Relaxed);
        self.gate.pass("port refresh").await;
    }
}

pub(super) struct ProbeEngine {
    pub(super) engine: FakeEngine,
    pub(super) truth: Arc<Truth>,
    pub(super) seen: Arc<Seen>,
    pub(super) gate: Arc<Gate>,
}

impl ProbeEngine {
    fn wrap(&self, launched: Launched) -> Launched {
        let Launched { machine, events, run } = launched;
        let machine = ProbeMachine {
            machine,
            run: run.generation,
            seen: self.seen.clone(),
            gate: self.gate.clone(),
        };
        Launched { machine: Arc::new(machine), events, run }
    }

    /// The rules of DESIGN.md section 4, and that a saved memory is used once.
    fn check_launch(&self, plan: &LaunchPlan) {
        let state = self.truth.get();
        let Some(record) = state.vms.get(&plan.vm) else {
            return self.seen.violation("a VM is launched that is not in the state".to_owned());
        };
        let ours = plan.generation;
        if let Some(RestorePlan::Stream(op)) = &plan.restore {
            let next = record.generation.next();
            if ours != next && record.arrived_by() != Some(*op) {
                self.seen.violation(format!("run {ours} waits for a guest, and {next} is next"));
            }
            return;
        }
        if ours != record.generation {
            let is = record.generation;
            self.seen.violation(format!("run {ours} is launched and the present one is {is}"));
        }
        if lock(&self.seen.launches).iter().any(|earlier| *earlier > ours) {
            self.seen.violation(format!("run {ours} is launched after a later one"));
        }
        if record.power != model::Power::Running && record.ops.is_empty() {
            self.seen.violation(format!("a VM that is {:?} is launched", record.power));
        }
        lock(&self.seen.launches).push(ours);
        if plan.restore.is_some() {
            let Some(saved) = &record.saved else {
                return self.seen.violation("memory is used that the state does not know".into());
            };
            if lock(&self.seen.used).contains(&saved.generation) {
                self.seen.violation("a saved memory is used twice".to_owned());
            }
            lock(&self.seen.restored).insert(ours, saved.generation);
        } else {
            lock(&self.seen.restored).remove(&ours);
        }
    }
}

#[async_trait]
impl Engine for ProbeEngine {
    async fn ability(&self) -> Result<Ability, EngineError> {
        self.engine.ability().await
    }

    async fn launch(&self, plan: LaunchPlan) -> Result<Launched, EngineError> {
        self.gate.pass("launch").await;
        self.check_launch(&plan);
        let launched = self.engine.launch(plan).await?;
        self.gate.pass("launch").await;
        Ok(self.wrap(launched))
    }

    async fn adopt(&self, vm: VmId) -> Result<Adopted, EngineError> {
        self.gate.pass("adopt").await;
        let gone = lock(&self.seen.gone).take();
        if let Some(reason) = gone {
            self.engine.reap(vm).await?;
            return Ok(Adopted::Gone(reason));
        }
        match self.engine.adopt(vm).await? {
            Adopted::Running(launched) => Ok(Adopted::Running(self.wrap(launched))),
            Adopted::Gone(reason) => Ok(Adopted::Gone(reason)),
        }
    }

    async fn strays(&self) -> Result<Vec<Stray>, EngineError> {
        self.engine.strays().await
    }

    async fn reap(&self, vm: VmId) -> Result<(), EngineError> {
        self.gate.pass("reap").await;
        if *lock(&self.seen.undead) {
            return Err(EngineError::Undead { vm, what: "process 1".to_owned() });
        }
        let reaped = self.engine.reap(vm).await;
        self.seen.ended();
        self.gate.pass("reap").await;
        reaped
    }
}

struct ProbeMachine {
    machine: Arc<dyn Machine>,
    run: Generation,
    seen: Arc<Seen>,
    gate: Arc<Gate>,
}

/// A call to the machine behind, with the gate before and after it.
macro_rules! through {
    ($self:ident, $call:literal, $future:expr) => {{
        $self.gate.pass($call).await;
        let result = $future.await;
        $self.gate.pass($call).await;
        result
    }};
}

#[async_trait]
impl Machine for ProbeMachine {
    async fn query_status(&self) -> Result<RunState, EngineError> {
        through!(self, "query_status", self.machine.query_status())
    }

    async fn cont(&self) -> Result<(), EngineError> {
        self.gate.pass("cont").await;
        if let Some(saved) = lock(&self.seen.restored).get(&self.run) {
            lock(&self.seen.used).insert(*saved);
        }
        if let Some((node, desk)) = &*lock(&self.seen.desk) {
            desk.goes_on(*node);
        }
        let result = self.machine.cont().await;
        self.gate.pass("cont").await;
        result
    }

    async fn pause(&self) -> Result<(), EngineError> {
        through!(self, "pause", self.machine.pause())
    }

    async fn powerdown(&self) -> Result<(), EngineError> {
        through!(self, "powerdown", self.machine.powerdown())
    }

    async fn reset(&self) -> Result<(), EngineError> {
        through!(self, "reset", self.machine.reset())
    }

    async fn inject_nmi(&self) -> Result<(), EngineError> {
        self.machine.inject_nmi().await
    }

    async fn kill(&self) -> Result<(), EngineError> {
        self.gate.pass("kill").await;
        if *lock(&self.seen.undead) {
            return Err(EngineError::Undead { vm: VM, what: "process 1".to_owned() });
        }
        let result = self.machine.kill().await;
        self.seen.ended();
        self.gate.pass("kill").await;
        result
    }

    fn run(&self) -> RunInfo {
        self.machine.run()
    }

    fn layout(&self) -> Layout {
        self.machine.layout()
    }

    async fn inventory(&self) -> Result<Inventory, EngineError> {
        through!(self, "inventory", self.machine.inventory())
    }

    async fn save(&self, dst: File) -> Result<(), EngineError> {
        through!(self, "save", self.machine.save(dst))
    }

    async fn save_progress(&self) -> Result<SaveProgress, EngineError> {
        through!(self, "save_progress", self.machine.save_progress())
    }

    async fn save_cancel(&self) -> Result<(), EngineError> {
        through!(self, "save_cancel", self.machine.save_cancel())
    }

    async fn migrate_blockers(&self) -> Result<Vec<String>, EngineError> {
        self.machine.migrate_blockers().await
    }

    async fn dirty_rate(&self, window: Duration) -> Result<Bytes, EngineError> {
        through!(self, "dirty_rate", self.machine.dirty_rate(window))
    }

    async fn migrate(
        &self,
        tuning: MigrateTuning,
        switch: Switch,
    ) -> Result<Outgoing, EngineError> {
        through!(self, "migrate", self.machine.migrate(tuning, switch))
    }

    async fn migrate_switch(&self) -> Result<(), EngineError> {
        through!(self, "migrate_switch", self.machine.migrate_switch())
    }

    async fn migrate_tune(&self, tuning: MigrateTuning) -> Result<(), EngineError> {
        through!(self, "migrate_tune", self.machine.migrate_tune(tuning))
    }

    async fn migrate_progress(&self) -> Result<MigrateProgress, EngineError> {
        through!(self, "migrate_progress", self.machine.migrate_progress())
    }

    async fn migrate_cancel(&self) -> Result<(), EngineError> {
        through!(self, "migrate_cancel", self.machine.migrate_cancel())
    }

    async fn incoming(&self) -> Result<(), EngineError> {
        self.machine.incoming().await
    }

    async fn incoming_connect(&self) -> Result<UnixStream, EngineError> {
        self.machine.incoming_connect().await
    }

    fn loaded_at(&self) -> Option<tokio::time::Instant> {
        self.machine.loaded_at()
    }

    async fn announce(&self) -> Result<(), EngineError> {
        through!(self, "announce", self.machine.announce())
    }

    async fn plug_disk(&self, disk: DiskPlan) -> Result<(), EngineError> {
        through!(self, "plug_disk", self.machine.plug_disk(disk))
    }

    async fn unplug_disk(&self, disk: DiskId) -> Result<(), EngineError> {
        through!(self, "unplug_disk", self.machine.unplug_disk(disk))
    }

    async fn resize_disk(&self, disk: DiskId, size: Bytes) -> Result<(), EngineError> {
        through!(self, "resize_disk", self.machine.resize_disk(disk, size))
    }

    async fn mirror(&self, plan: MirrorPlan) -> Result<(), EngineError> {
        through!(self, "mirror", self.machine.mirror(plan))
    }

    async fn receive(&self, slots: &[ImageSlot]) -> Result<(), EngineError> {
        self.machine.receive(slots).await
    }

    async fn receive_connect(&self) -> Result<UnixStream, EngineError> {
        self.machine.receive_connect().await
    }

    async fn receive_end(&self) -> Result<(), EngineError> {
        through!(self, "receive_end", self.machine.receive_end())
    }

    async fn send_way(&self, count: usize) -> Result<Outgoing, EngineError> {
        through!(self, "send_way", self.machine.send_way(count))
    }

    async fn send_disk(&self, slot: ImageSlot, extent: Extent) -> Result<(), EngineError> {
        through!(self, "send_disk", self.machine.send_disk(slot, extent))
    }

    async fn mirrors(&self) -> Result<BTreeMap<ImageSlot, MirrorProgress>, EngineError> {
        through!(self, "mirrors", self.machine.mirrors())
    }

    async fn mirror_tighten(&self) -> Result<(), EngineError> {
        through!(self, "mirror_tighten", self.machine.mirror_tighten())
    }

    async fn mirror_hold(&self) -> Result<(), EngineError> {
        through!(self, "mirror_hold", self.machine.mirror_hold())
    }

    async fn mirror_pivot(&self) -> Result<(), EngineError> {
        through!(self, "mirror_pivot", self.machine.mirror_pivot())
    }

    async fn mirror_cancel(&self) -> Result<(), EngineError> {
        through!(self, "mirror_cancel", self.machine.mirror_cancel())
    }

    async fn plug_nic(&self, nic: NicPlan) -> Result<(), EngineError> {
        through!(self, "plug_nic", self.machine.plug_nic(nic))
    }

    async fn unplug_nic(&self, nic: NicId) -> Result<(), EngineError> {
        through!(self, "unplug_nic", self.machine.unplug_nic(nic))
    }

    async fn set_link(&self, nic: NicId, up: bool) -> Result<(), EngineError> {
        self.gate.pass("set_link").await;
        let result = self.machine.set_link(nic, up).await;
        if result.is_ok() {
            lock(&self.seen.links).insert(nic, up);
        }
        self.gate.pass("set_link").await;
        result
    }

    async fn set_memory(&self, target: Bytes) -> Result<(), EngineError> {
        through!(self, "set_memory", self.machine.set_memory(target))
    }

    async fn memory_state(&self) -> Result<MemoryState, EngineError> {
        through!(self, "memory_state", self.machine.memory_state())
    }

    async fn set_vcpus(&self, count: u32) -> Result<(), EngineError> {
        through!(self, "set_vcpus", self.machine.set_vcpus(count))
    }

    async fn set_cpu_limits(&self, limits: CpuLimits) -> Result<Vec<String>, EngineError> {
        through!(self, "set_cpu_limits", self.machine.set_cpu_limits(limits))
    }

    async fn balloon(&self, target: Bytes) -> Result<(), EngineError> {
        through!(self, "balloon", self.machine.balloon(target))
    }

    async fn balloon_stats(&self) -> Result<BalloonStats, EngineError> {
        self.machine.balloon_stats().await
    }

    async fn screenshot(&self) -> Result<Vec<u8>, EngineError> {
        self.machine.screenshot().await
    }

    async fn disk_requests(&self) -> Result<u64, EngineError> {
        self.machine.disk_requests().await
    }

    async fn vnc(&self) -> Result<UnixStream, EngineError> {
        self.machine.vnc().await
    }

    async fn serial(&self) -> Result<UnixStream, EngineError> {
        self.machine.serial().await
    }

    fn serial_tail(&self) -> Vec<u8> {
        self.machine.serial_tail()
    }

    async fn agent(&self) -> Result<UnixStream, EngineError> {
        self.machine.agent().await
    }
}
