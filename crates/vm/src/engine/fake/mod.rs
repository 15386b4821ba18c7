//! The fake engine: machines in memory, with faults on request.
//!
//! A [`FakeHost`] stands for the host and its processes: it outlives a [`FakeEngine`], as QEMU
//! outlives a daemon, so a second engine on the same host adopts what the first has launched. A
//! machine costs a few hundred bytes, so that thousands fit in a test.
//!
//! The fake guest is obedient and quick: it shuts down on the power button, lets devices go at
//! once and takes the memory it is given, unless a [`Fault`] says otherwise.

mod agent;
mod machine;
mod migrate;
mod mirror;
mod wire;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use async_trait::async_trait;
use model::Bytes;
use model::VmId;

use super::Ability;
use super::Accel;
use super::AccelChoice;
use super::Adopted;
use super::DiskPlan;
use super::Engine;
use super::EngineError;
use super::ExitInfo;
use super::GoneReason;
use super::LaunchPlan;
use super::Launched;
use super::MachineEvent;
use super::Origin;
use super::RestorePlan;
use super::RunInfo;
use super::Stray;
use machine::FakeMachine;
use machine::FakeVm;
use machine::SavedDoc;

/// First process id of the fake: above what Linux gives out, so that a mistake cannot hit a real
/// process.
const PID_BASE: u32 = 1 << 23;

/// Largest saved state the fake reads.
const SAVED_MAX: u64 = 1 << 20;

/// A way in which a machine or its guest fails.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// `launch` fails with these words.
    LaunchFails(String),
    /// `launch` takes this long.
    LaunchSlow(Duration),
    /// The process does not answer any more.
    Hang,
    /// The process answers nonsense.
    Garbage,
    /// The guest keeps its devices.
    IgnoreUnplug,
    /// The guest refuses to let devices go.
    RefuseUnplug,
    /// The guest does not hear the power button.
    IgnoreShutdown,
    /// The guest neither takes nor gives memory.
    IgnoreMemory,
    /// A save never gets on.
    SaveStalls,
    /// A save fails with these words.
    SaveFails(String),
    /// The guest changes its memory faster than it can be sent.
    MigrateDirties,
    /// A migration never gets on.
    MigrateStalls,
    /// A machine that waits for a migration does not take it.
    IncomingFails,
    /// A machine that has got its guest cannot open its images any more.
    ImagesLost,
    /// A copy of a disk never gets on.
    MirrorStalls,
    /// A copy of a disk fails with these words.
    MirrorFails(String),
    /// Copies that are held cannot be made the machine's.
    PivotFails,
    /// Attaching fails with these words.
    PlugFails(String),
    /// The guest agent does not answer.
    AgentSilent,
}

/// The host on which fake machines run.
#[derive(Clone)]
pub struct FakeHost(Arc<HostState>);

struct HostState {
    vms: Mutex<BTreeMap<VmId, Arc<Mutex<FakeVm>>>>,
    faults: Mutex<Faults>,
    next_pid: AtomicU32,
    check_files: bool,
}

#[derive(Default)]
struct Faults {
    all: BTreeSet<Fault>,
    of: BTreeMap<VmId, BTreeSet<Fault>>,
}

/// Engine whose machines live in a [`FakeHost`].
#[derive(Clone)]
pub struct FakeEngine {
    host: FakeHost,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for FakeHost {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeHost {
    /// An empty host. Image files must exist to be attached, as with the real engine.
    pub fn new() -> Self {
        Self::with_files(true)
    }

    /// An empty host that does not look at image files at all, for very many machines.
    pub fn without_files() -> Self {
        Self::with_files(false)
    }

    fn with_files(check_files: bool) -> Self {
        Self(Arc::new(HostState {
            vms: Mutex::default(),
            faults: Mutex::default(),
            next_pid: AtomicU32::new(PID_BASE),
            check_files,
        }))
    }

    /// Turns a fault on, for one machine or all of them.
    pub fn inject(&self, vm: Option<VmId>, fault: Fault) {
        let mut faults = lock(&self.0.faults);
        match vm {
            Some(vm) => faults.of.entry(vm).or_default().insert(fault.clone()),
            None => faults.all.insert(fault.clone()),
        };
        drop(faults);
        if fault == Fault::Hang {
            self.each(vm, |fake| fake.emit(MachineEvent::Hung));
        }
    }

    /// Turns all faults off.
    pub fn heal(&self) {
        let hung = {
            let mut faults = lock(&self.0.faults);
            let all = faults.all.contains(&Fault::Hang);
            let of: Vec<VmId> = faults
                .of
                .iter()
                .filter(|(_, set)| set.contains(&Fault::Hang))
                .map(|(vm, _)| *vm)
                .collect();
            *faults = Faults::default();
            (all, of)
        };
        if hung.0 {
            self.each(None, |fake| fake.emit(MachineEvent::Responsive));
        } else {
            for vm in hung.1 {
                self.each(Some(vm), |fake| fake.emit(MachineEvent::Responsive));
            }
        }
    }

    /// The process of a machine dies by itself.
    pub fn crash(&self, vm: VmId) {
        let info = ExitInfo {
            code: None,
            signal: Some(11),
            stderr: "fake: segmentation fault".to_owned(),
        };
        self.each(Some(vm), |fake| fake.exit(info.clone()));
    }

    /// The guest shuts itself down.
    pub fn guest_shutdown(&self, vm: VmId) {
        self.each(Some(vm), |fake| fake.shut_down(Origin::Guest));
    }

    /// The guest restarts itself.
    pub fn guest_reset(&self, vm: VmId) {
        self.each(Some(vm), |fake| fake.emit(MachineEvent::Reset(Origin::Guest)));
    }

    /// The guest works with its disks.
    pub fn guest_works(&self, vm: VmId) {
        self.each(Some(vm), FakeVm::work);
    }

    /// The guest has freed so much of its memory, which the host still has.
    pub fn guest_frees(&self, vm: VmId, free: Bytes) {
        self.each(Some(vm), |fake| fake.free(free));
    }

    /// What the balloon leaves to a guest; none without a machine or a balloon.
    pub fn balloon(&self, vm: VmId) -> Option<Bytes> {
        let fake = lock(&self.0.vms).get(&vm).cloned()?;
        lock(&fake).left()
    }

    /// The guest's kernel panics.
    pub fn guest_panic(&self, vm: VmId) {
        self.each(Some(vm), |fake| fake.emit(MachineEvent::Panicked));
    }

    /// The guest writes to its serial console.
    pub fn guest_prints(&self, vm: VmId, text: &str) {
        self.each(Some(vm), |fake| fake.print(text.as_bytes()));
    }

    /// The machines whose process lives.
    pub fn alive(&self) -> Vec<VmId> {
        let vms = lock(&self.0.vms);
        vms.iter().filter(|(_, fake)| lock(fake).exit.is_none()).map(|(vm, _)| *vm).collect()
    }

    fn each(&self, vm: Option<VmId>, act: impl Fn(&mut FakeVm)) {
        let chosen: Vec<_> = match vm {
            Some(vm) => lock(&self.0.vms).get(&vm).cloned().into_iter().collect(),
            None => lock(&self.0.vms).values().cloned().collect(),
        };
        for fake in chosen {
            act(&mut lock(&fake));
        }
    }

    fn find_fault<T>(&self, vm: VmId, pick: impl Fn(&Fault) -> Option<T>) -> Option<T> {
        let faults = lock(&self.0.faults);
        let own = faults.of.get(&vm).into_iter().flatten();
        own.chain(faults.all.iter()).find_map(pick)
    }

    fn has_fault(&self, vm: VmId, fault: &Fault) -> bool {
        self.find_fault(vm, |found| (found == fault).then_some(())).is_some()
    }

    /// What the real engine finds out when it opens the images of a disk.
    fn check_disk(&self, disk: &DiskPlan, writers: &BTreeSet<PathBuf>) -> Result<(), EngineError> {
        let top = disk.chain.first().ok_or_else(|| EngineError::Image {
            path: disk.id.to_string(),
            why: "the disk has no image file".to_owned(),
        })?;
        if self.0.check_files {
            for file in &disk.chain {
                if let Err(error) = std::fs::metadata(&file.path) {
                    let path = file.path.display().to_string();
                    return Err(EngineError::Image { path, why: error.to_string() });
                }
            }
        }
        if !disk.read_only && writers.contains(&top.path) {
            return Err(EngineError::DiskBusy { path: top.path.display().to_string() });
        }
        Ok(())
    }

    /// Top images that live machines write to.
    fn writers(&self) -> BTreeSet<PathBuf> {
        let vms: Vec<_> = lock(&self.0.vms).values().cloned().collect();
        vms.iter().flat_map(|fake| lock(fake).writers()).collect()
    }
}

impl FakeEngine {
    /// An engine on a host.
    pub fn new(host: &FakeHost) -> Self {
        Self { host: host.clone() }
    }

    fn launched(&self, fake: &Arc<Mutex<FakeVm>>) -> Launched {
        let (events, run) = {
            let mut fake = lock(fake);
            (fake.subscribe(), fake.run.clone())
        };
        let machine = FakeMachine::new(self.host.clone(), Arc::clone(fake));
        Launched { machine: Arc::new(machine), events, run }
    }

    fn read_saved(plan: &LaunchPlan) -> Result<Option<SavedDoc>, EngineError> {
        let Some(RestorePlan::File(file)) = &plan.restore else { return Ok(None) };
        let mut text = String::new();
        let mut file = file;
        std::io::Read::by_ref(&mut file)
            .take(SAVED_MAX)
            .read_to_string(&mut text)
            .map_err(|error| EngineError::Restore(error.to_string()))?;
        let doc: SavedDoc = serde_json::from_str(&text)
            .map_err(|_| EngineError::Restore("not a saved state".to_owned()))?;
        if doc.layout.disks != plan.layout.disks || doc.layout.nics != plan.layout.nics {
            return Err(EngineError::Restore("it is from a machine of another build".to_owned()));
        }
        Ok(Some(doc))
    }
}

#[async_trait]
impl Engine for FakeEngine {
    async fn ability(&self) -> Result<Ability, EngineError> {
        Ok(Ability {
            engine: "fake 1".to_owned(),
            accel: Accel::Tcg,
            accel_reason: "fake machines run on nothing".to_owned(),
            machine_virtio: "pc-q35-10.0".to_owned(),
            machine_legacy: "pc-i440fx-10.0".to_owned(),
            cpu_model: "Nehalem-v1".to_owned(),
            cpu_features: Some(BTreeSet::new()),
            uefi: true,
            missing_limits: Vec::new(),
        })
    }

    async fn launch(&self, plan: LaunchPlan) -> Result<Launched, EngineError> {
        let vm = plan.vm;
        let slow = |fault: &Fault| match fault {
            Fault::LaunchSlow(time) => Some(*time),
            _ => None,
        };
        if let Some(time) = self.host.find_fault(vm, slow) {
            tokio::time::sleep(time).await;
        }
        let fails = |fault: &Fault| match fault {
            Fault::LaunchFails(why) => Some(why.clone()),
            _ => None,
        };
        if let Some(why) = self.host.find_fault(vm, fails) {
            return Err(EngineError::Launch { step: "start", why });
        }
        if plan.accel == AccelChoice::Kvm {
            let (what, why) = ("KVM".to_owned(), "the fake has no processor".to_owned());
            return Err(EngineError::Unsupported { what, why });
        }
        let arrival = match &plan.restore {
            Some(RestorePlan::Stream(op)) => Some(*op),
            Some(RestorePlan::File(_)) | None => None,
        };
        let mut writers = self.host.writers();
        for disk in &plan.disks {
            self.host.check_disk(disk, &writers)?;
            if !disk.read_only {
                writers.extend(disk.chain.first().map(|file| file.path.clone()));
            }
        }
        let saved = Self::read_saved(&plan)?;
        let pid = self.host.0.next_pid.fetch_add(1, Ordering::Relaxed);
        let mut vms = lock(&self.host.0.vms);
        if vms.get(&vm).is_some_and(|fake| lock(fake).exit.is_none()) {
            return Err(EngineError::AlreadyRunning(vm));
        }
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let run = RunInfo {
            vm,
            pid,
            generation: plan.generation,
            accel: Accel::Tcg,
            started_ms: u64::try_from(started.as_millis()).unwrap_or(u64::MAX),
            uid: 2_000_000_000 + plan.isolation.slot,
            missing_limits: Vec::new(),
            arrival,
        };
        let fake = Arc::new(Mutex::new(FakeVm::new(run, plan, saved)?));
        vms.insert(vm, Arc::clone(&fake));
        drop(vms);
        Ok(self.launched(&fake))
    }

    async fn adopt(&self, vm: VmId) -> Result<Adopted, EngineError> {
        if self.host.has_fault(vm, &Fault::Hang) {
            return Err(machine::hung("qmp_capabilities"));
        }
        let Some(fake) = lock(&self.host.0.vms).get(&vm).cloned() else {
            return Ok(Adopted::Gone(GoneReason::NoTrace));
        };
        if let Some(exit) = lock(&fake).exit.clone() {
            return Ok(Adopted::Gone(GoneReason::Ended(exit)));
        }
        Ok(Adopted::Running(self.launched(&fake)))
    }

    async fn strays(&self) -> Result<Vec<Stray>, EngineError> {
        let vms: Vec<_> = lock(&self.host.0.vms).values().cloned().collect();
        let stray = |fake: &Arc<Mutex<FakeVm>>| {
            let fake = lock(fake);
            Stray {
                vm: fake.run.vm,
                alive: fake.exit.is_none(),
                generation: Some(fake.run.generation),
                traces: vec![format!("process {}", fake.run.pid)],
            }
        };
        Ok(vms.iter().map(stray).collect())
    }

    async fn reap(&self, vm: VmId) -> Result<(), EngineError> {
        let found = lock(&self.host.0.vms).remove(&vm);
        if let Some(fake) = found {
            lock(&fake).exit(ExitInfo { signal: Some(9), ..ExitInfo::default() });
        }
        Ok(())
    }
}
