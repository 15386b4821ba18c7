//! The driver against the real state machine, the fake engine and real small disks.
//!
//! A [`World`] is what outlives a daemon: the state, the host with its machines, its ports and
//! its files. A daemon is a driver and a task that tells it what the state wants, always a little
//! late, as the real one does. Killing it (`kill -9`) drops both wherever they are.
//!
//! The clock is tokio's paused one: it moves only when every task waits, so a short sleep means
//! "until nothing is left to do", and deadlines cost no time.

mod away;
mod cancel;
mod fails;
mod hung;
mod kill;
mod migrate;
mod old;
mod probe;
mod rights;
mod settling;
mod storage;
mod verbs;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::time::Duration;

use model::Actor;
use model::Applied;
use model::Bytes;
use model::ClusterState;
use model::Command;
use model::CrashPolicy;
use model::DiskFormat;
use model::DiskId;
use model::DiskSource;
use model::DiskSpec;
use model::Millis;
use model::NetworkId;
use model::NetworkKind;
use model::NicId;
use model::NicSpec;
use model::NodeId;
use model::OpId;
use model::OpRecord;
use model::OpRequest;
use model::OpState;
use model::Pinned;
use model::Power;
use model::Proposal;
use model::Refused;
use model::Severity;
use model::UnixMillis;
use model::VmId;
use model::VmRecord;
use model::VmSpec;
use model::VolumeId;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::Everybody;
use super::Freshness;
use super::Host;
use super::Nowhere;
use super::Status;
use super::VmFiles;
use super::VmHandle;
use super::Wanted;
use crate::engine::RunState;
use crate::engine::fake::FakeEngine;
use crate::engine::fake::FakeHost;
use crate::image::DiskTool;
use probe::Gate;
use probe::ProbeEngine;
use probe::ProbeLedger;
use probe::ProbePorts;
use probe::Seen;

const NODE: NodeId = NodeId::new(Uuid::from_u128(1));
const VM: VmId = VmId::new(Uuid::from_u128(0x100));

/// How late a driver learns of a change of the state.
const LATE: Duration = Duration::from_millis(3);

/// Longest wait of a test, on the paused clock.
const PATIENCE: Duration = Duration::from_secs(3_600);

/// How long an operation of a test may take, on the paused clock.
const LIMIT: Millis = Millis::from_secs(60);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

/// The replicated state.
pub(super) struct Truth {
    state: watch::Sender<Arc<ClusterState>>,
    begun: tokio::time::Instant,
}

impl Truth {
    fn now(&self) -> UnixMillis {
        let since = self.begun.elapsed().as_millis();
        UnixMillis::new(1_000_000 + u64::try_from(since).unwrap())
    }

    fn get(&self) -> Arc<ClusterState> {
        self.state.borrow().clone()
    }

    fn propose(&self, command: Command) -> Result<Applied, Refused> {
        let mut state = ClusterState::clone(&self.get());
        let proposal = Proposal { at: self.now(), actor: Actor::new("test"), command };
        let applied = state.apply(&proposal)?;
        state.check_invariants().unwrap();
        self.state.send_replace(Arc::new(state));
        Ok(applied)
    }
}

/// One run of the daemon, as far as it is about the VM.
struct Daemon {
    handle: Arc<VmHandle>,
    follower: JoinHandle<()>,
}

/// What outlives a daemon.
struct World {
    dir: TempDir,
    fake: FakeHost,
    truth: Arc<Truth>,
    seen: Arc<Seen>,
    daemon: Option<Daemon>,
    ids: u128,
}

impl World {
    fn new() -> Self {
        let state = watch::channel(Arc::new(ClusterState::default())).0;
        let truth = Arc::new(Truth { state, begun: tokio::time::Instant::now() });
        truth
            .propose(Command::NodeStarted {
                node: NODE,
                name: name("h1"),
                capacity: model::NodeCapacity::default(),
            })
            .unwrap();
        truth
            .propose(Command::NetworkCreate {
                network: NetworkId::new(Uuid::from_u128(2)),
                name: name("nat"),
                kind: NetworkKind::Nat { subnet: "10.77.0.0/24".parse().unwrap() },
            })
            .unwrap();
        Self {
            dir: tempfile::tempdir().unwrap(),
            fake: FakeHost::new(),
            truth,
            seen: Arc::default(),
            daemon: None,
            ids: 0x1000,
        }
    }

    /// A world with one VM that is off, and a daemon that has nothing to do.
    async fn with_vm() -> Self {
        Self::with(spec()).await
    }

    async fn with(spec: VmSpec) -> Self {
        let mut world = Self::new();
        let op = world.begin(create(spec));
        world.spawn(Gate::open());
        world.done(op).await;
        world
    }

    async fn with_running() -> Self {
        let mut world = Self::with_vm().await;
        world.run(OpRequest::VmStart { vm: VM }).await;
        world
    }

    async fn with_saved() -> Self {
        let mut world = Self::with_running().await;
        world.run(OpRequest::VmSave { vm: VM }).await;
        world
    }

    fn id(&mut self) -> Uuid {
        self.ids += 1;
        Uuid::from_u128(self.ids)
    }

    /// Starts a daemon. VMs that are not in the state have no driver.
    fn spawn(&mut self, gate: Arc<Gate>) {
        let host = self.host(gate);
        let mut states = self.truth.state.subscribe();
        let Some(first) = wanted(&states.borrow_and_update()) else { return };
        let handle = Arc::new(VmHandle::spawn(host, first));
        let told = handle.clone();
        let follower = tokio::spawn(async move {
            while states.changed().await.is_ok() {
                tokio::time::sleep(LATE).await;
                let wanted = wanted(&states.borrow_and_update());
                told.want(wanted);
            }
        });
        self.daemon = Some(Daemon { handle, follower });
    }

    /// Starts a daemon that knows that much of the state, and nothing else.
    fn spawn_old(&mut self, state: &ClusterState) {
        let host = self.host(Gate::open());
        let old = wanted(state).expect("the VM was there");
        let old = Wanted { freshness: Freshness::MayBeOld, ..old };
        let handle = Arc::new(VmHandle::spawn(host, old));
        self.daemon = Some(Daemon { handle, follower: tokio::spawn(async {}) });
    }

    /// What the host of a daemon that begins is.
    fn host(&self, gate: Arc<Gate>) -> Arc<Host> {
        assert!(self.daemon.is_none(), "two daemons");
        let ledger = ProbeLedger {
            truth: self.truth.clone(),
            seen: self.seen.clone(),
            gate: gate.clone(),
            speaker: model::Speaker { node: NODE, epoch: 0 },
        };
        let engine = ProbeEngine {
            engine: FakeEngine::new(&self.fake),
            truth: self.truth.clone(),
            seen: self.seen.clone(),
            gate: gate.clone(),
        };
        let host = Arc::new(Host {
            engine: Arc::new(engine),
            ledger: Arc::new(ledger),
            ports: Arc::new(ProbePorts { seen: self.seen.clone(), gate }),
            disks: DiskTool::new("/usr/bin/qemu-img", None),
            vms_dir: {
                let dir = self.dir.path().to_owned();
                Box::new(move |vm| vms_dir(&dir, vm.volume))
            },
            volume_ready: {
                let seen = self.seen.clone();
                Box::new(move |vm| match vm.volume {
                    Some(volume) if lock(&seen.missing).contains(&volume) => Err("gone".into()),
                    _ => Ok(()),
                })
            },
            image_path: Box::new(|image| PathBuf::from(image.to_string())),
            rights: Arc::new(Everybody),
            mover: Arc::new(Nowhere),
            arrivals: Arc::default(),
            host_name: "h1".to_owned(),
        });
        // The switch keeps the ports of VMs that may have a machine, when a daemon begins.
        let may = self.truth.get().vms.get(&VM).is_some_and(|vm| {
            matches!(vm.power, Power::Running | Power::Paused) || vm.busy().is_some()
        });
        lock(&self.seen.ports).retain(|_| may);
        host
    }

    /// `kill -9`.
    async fn kill(&mut self) {
        let Some(Daemon { handle, follower }) = self.daemon.take() else { return };
        follower.abort();
        handle.task.abort();
        while !handle.task.is_finished() || !follower.is_finished() {
            tokio::task::yield_now().await;
        }
    }

    async fn restart(&mut self) {
        self.kill().await;
        self.spawn(Gate::open());
        self.quiet().await;
    }

    fn try_begin(&mut self, request: OpRequest, limit: Millis) -> Result<OpId, Refused> {
        let op = OpId::new(self.id());
        let request = Box::new(request);
        self.truth.propose(Command::BeginOp { op, request, limit }).map(|_| op)
    }

    fn begin(&mut self, request: OpRequest) -> OpId {
        self.try_begin(request, LIMIT).unwrap()
    }

    fn cancel(&self, op: OpId) {
        self.truth.propose(Command::CancelOp { op }).unwrap();
    }

    fn op(&self, op: OpId) -> Arc<OpRecord> {
        self.truth.get().op(op).unwrap().clone()
    }

    fn vm(&self) -> Arc<VmRecord> {
        self.truth.get().vm(VM).unwrap().clone()
    }

    fn status(&self) -> Status {
        self.daemon.as_ref().unwrap().handle.status()
    }

    fn files(&self) -> VmFiles {
        self.files_on(self.truth.get().vms.get(&VM).and_then(|vm| vm.volume))
    }

    fn files_on(&self, volume: Option<VolumeId>) -> VmFiles {
        VmFiles::new(&vms_dir(self.dir.path(), volume), VM)
    }

    /// Waits for an operation's end, and then until nothing is left to do.
    async fn ended(&mut self, op: OpId) -> OpState {
        let mut states = self.truth.state.subscribe();
        let ended = states.wait_for(|state| !state.op(op).unwrap().is_running());
        tokio::time::timeout(PATIENCE, ended).await.expect("the operation ends").unwrap();
        self.quiet().await;
        self.op(op).state.clone()
    }

    async fn done(&mut self, op: OpId) {
        let state = self.ended(op).await;
        assert!(matches!(state, OpState::Done { .. }), "{state:?}");
    }

    async fn cancelled(&mut self, op: OpId) {
        let state = self.ended(op).await;
        assert!(matches!(state, OpState::Cancelled { .. }), "{state:?}");
    }

    /// Waits until an operation has failed; gives the failure's code.
    async fn failed(&mut self, op: OpId) -> String {
        match self.ended(op).await {
            OpState::Failed { failure, .. } => {
                assert!(!failure.message.is_empty() && !failure.hint.is_empty(), "{failure:?}");
                failure.code
            }
            state => panic!("{state:?}"),
        }
    }

    async fn run(&mut self, request: OpRequest) {
        let op = self.begin(request);
        self.done(op).await;
    }

    /// Lets everything happen that happens without waiting for a limit.
    async fn quiet(&self) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    /// Waits until `done` holds.
    async fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let end = tokio::time::Instant::now() + PATIENCE;
        while !done(self) {
            assert!(tokio::time::Instant::now() < end, "never: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn alive(&self) -> bool {
        self.fake.alive().contains(&VM)
    }

    fn noted(&self, severity: Severity, words: &str) -> bool {
        lock(&self.seen.notes).iter().any(|(was, text)| *was == severity && text.contains(words))
    }

    /// What must hold of a VM that nothing is being done to.
    async fn check(&self, power: Power) {
        let vm = self.vm();
        assert_eq!(vm.power, power);
        assert_eq!(vm.ops, [], "operations under way");
        assert_eq!(*lock(&self.seen.violations), [""; 0], "rules that were broken");
        let present = matches!(power, Power::Running | Power::Paused);
        assert_eq!(self.alive(), present, "process of a VM that is {power:?}");
        let nics: BTreeSet<NicId> =
            vm.spec.nics.iter().filter(|_| present).map(|nic| nic.id).collect();
        assert_eq!(*lock(&self.seen.ports), nics, "open ports");
        self.check_files(&vm);
        if present {
            self.check_machine(&vm).await;
        }
    }

    async fn check_machine(&self, vm: &VmRecord) {
        let run = self.status().run.expect("a run is shown");
        assert_eq!(run.info.generation, vm.generation);
        let machine = self.daemon.as_ref().unwrap().handle.machine().expect("a machine");
        let state = machine.query_status().await.unwrap();
        let wanted = if vm.power == Power::Running { RunState::Running } else { RunState::Paused };
        assert_eq!(state, wanted);
        let inventory = machine.inventory().await.unwrap();
        let disks: BTreeSet<DiskId> = vm.spec.disks.iter().map(|disk| disk.id).collect();
        let nics: BTreeSet<NicId> = vm.spec.nics.iter().map(|nic| nic.id).collect();
        assert_eq!(inventory.disks.into_keys().collect::<BTreeSet<_>>(), disks);
        assert_eq!(inventory.nics.into_keys().collect::<BTreeSet<_>>(), nics);
        let (cpus, limits) = (vm.spec.cpus, inventory.cpu_limits);
        assert_eq!(inventory.vcpus.plugged, cpus.count);
        assert_eq!((limits.weight, limits.cap_percent), (cpus.weight, cpus.cap_percent));
        assert_eq!(machine.memory_state().await.unwrap().present, vm.spec.memory.size);
        assert_eq!(self.files().read_layout().unwrap(), machine.layout(), "the layout is kept");
    }

    fn check_files(&self, vm: &VmRecord) {
        assert_eq!(vm.copies, [], "places with left-over copies");
        let volumes = self.truth.get().volumes.keys().copied().collect::<Vec<_>>();
        for place in volumes.into_iter().map(Some).chain([None]) {
            let there = listing(&vms_dir(self.dir.path(), place));
            let wanted = BTreeSet::from([self.files_on(place).dir().to_owned()]);
            let wanted = if place == vm.volume { wanted } else { BTreeSet::new() };
            assert_eq!(there, wanted, "directories in {place:?}");
        }
        let files = self.files();
        let disks: BTreeSet<PathBuf> = vm.spec.disks.iter().map(|disk| files.disk(disk)).collect();
        assert_eq!(listing(&files.dir().join("disks")), disks, "disk files");
        let memory: Vec<String> = listing(files.dir())
            .into_iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .filter(|name| name.starts_with("memory"))
            .collect();
        let wanted = match &vm.saved {
            Some(saved) => {
                let run = saved.generation;
                vec![format!("memory-{run}.layout.json"), format!("memory-{run}.sav")]
            }
            None => Vec::new(),
        };
        assert_eq!(memory, wanted, "memory files");
    }

    /// What must hold when the state knows no VM.
    fn check_gone(&self) {
        assert!(!self.truth.get().vms.contains_key(&VM));
        assert!(!self.alive());
        assert!(!self.files().dir().exists());
        assert_eq!(*lock(&self.seen.violations), [""; 0]);
        assert!(lock(&self.seen.ports).is_empty());
    }
}

/// Where VMs lie: in the node's own directory, or on a volume.
fn vms_dir(dir: &std::path::Path, volume: Option<VolumeId>) -> PathBuf {
    match volume {
        Some(volume) => dir.join(volume.to_string()).join("vms"),
        None => dir.join("vms"),
    }
}

fn wanted(state: &ClusterState) -> Option<Wanted> {
    let record = state.vms.get(&VM)?.clone();
    let op = record.busy().and_then(|op| state.ops.get(&op)).cloned();
    Some(Wanted { record, op, freshness: Freshness::Newest })
}

fn listing(dir: &std::path::Path) -> BTreeSet<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return BTreeSet::new() };
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn name(text: &str) -> model::Name {
    text.parse().unwrap()
}

fn disk(n: u128) -> DiskSpec {
    DiskSpec {
        id: DiskId::new(Uuid::from_u128(n)),
        name: name(&format!("disk{n}")),
        size: Bytes::mib(1),
        source: DiskSource::Blank,
        format: DiskFormat::Raw,
        read_only: false,
    }
}

fn nic(n: u8) -> NicSpec {
    NicSpec {
        id: NicId::new(Uuid::from_u128(u128::from(n))),
        name: name(&format!("nic{n}")),
        mac: format!("52:54:00:00:00:{n:02x}").parse().unwrap(),
        network: name("nat"),
        address: None,
        link_up: true,
    }
}

/// One disk, one adapter, room for more processors and memory.
fn spec() -> VmSpec {
    let mut spec = VmSpec::new(1, Bytes::mib(128));
    spec.cpus.max = 4;
    spec.memory.max = Bytes::mib(256);
    spec.disks.push(disk(1));
    spec.nics.push(nic(1));
    spec
}

fn stays_off() -> VmSpec {
    let mut spec = spec();
    spec.on_crash = CrashPolicy::Stop;
    spec
}

fn create(spec: VmSpec) -> OpRequest {
    OpRequest::VmCreate {
        vm: VM,
        name: name("a"),
        spec: Box::new(spec),
        pinned: Pinned {
            config_version: 1,
            machine_type: "pc-q35-10.0".to_owned(),
            cpu_model: "Nehalem-v1".to_owned(),
        },
        owner: NODE,
        volume: None,
    }
}

fn shutdown(patience: Millis, then_off: bool) -> OpRequest {
    OpRequest::VmShutdown { vm: VM, patience, then_off }
}
