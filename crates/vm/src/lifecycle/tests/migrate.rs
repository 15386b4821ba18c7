//! Migration between two daemons over one state: each of them stopped or killed at each call, and
//! every way in which a migration does not come to its end.
//!
//! Afterwards always the same is checked: one machine runs, at the node that the state names, under
//! the run that it names, and nothing is left at the other.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use model::AtLimit;
use model::FenceProof;
use model::MigratePolicy;
use model::NO_CONVERGENCE;
use model::OpFailure;
use model::Speaker;
use model::VolumeId;
use model::VolumeKind;
use tokio::task::JoinSet;

use super::rights::Desk;
use super::rights::DeskOf;
use super::*;
use crate::engine::Adopted;
use crate::engine::Engine;
use crate::engine::fake::Fault;
use crate::lifecycle::Arrivals;
use crate::lifecycle::Lane;
use crate::lifecycle::Mover;
use crate::lifecycle::Offer;
use crate::lifecycle::Prepared;
use crate::lifecycle::Ready;
use crate::lifecycle::Wire;
use crate::lifecycle::WriteRights;
use crate::lifecycle::abandon_arrival;
use crate::lifecycle::prepare_arrival;
use crate::lifecycle::receive_files;
use crate::lifecycle::rehearse_arrival;
use crate::lifecycle::settle_arrival;

#[path = "along.rs"]
mod along;
#[path = "still.rs"]
mod still;

const NODES: [NodeId; 2] = [NODE, NodeId::new(Uuid::from_u128(3))];
const VOLUME: VolumeId = VolumeId::new(Uuid::from_u128(90));

/// Memory of most guests here, and what of it is free.
const MEMORY: Bytes = Bytes::gib(1);
const FREE: Bytes = Bytes::mib(896);

/// Calls of a daemon in one migration: more than there are.
const CALLS_MAX: usize = 400;

/// One node: what outlives its daemon, and its daemon.
struct Side {
    node: NodeId,
    fake: FakeHost,
    seen: Arc<Seen>,
    daemon: Option<Running>,
}

struct Running {
    host: Arc<Host>,
    /// The driver, while the VM is this node's, and those that take away what is left of it here.
    follower: JoinHandle<()>,
    handles: Arc<Mutex<Vec<VmHandle>>>,
    /// Connections and watchers of migrations that come here.
    tasks: Tasks,
}

/// Two nodes and what they share.
struct Pair {
    dir: TempDir,
    truth: Arc<super::Truth>,
    sides: [Side; 2],
    /// The daemons that can be reached.
    net: Arc<Net>,
    /// Who may write its images, if one node at a time may.
    desk: Option<Arc<Desk>>,
    ids: u128,
}

/// What belongs to a daemon and ends with it.
type Tasks = Arc<Mutex<JoinSet<()>>>;

/// The network between them.
#[derive(Default)]
struct Net {
    daemons: Mutex<BTreeMap<NodeId, (Arc<Host>, Tasks)>>,
}

struct Direct {
    net: Arc<Net>,
    truth: Arc<super::Truth>,
}

/// Rehearsals of all tests of this process.
static REHEARSED: AtomicU32 = AtomicU32::new(0);

fn away() -> OpFailure {
    OpFailure { code: "away".into(), message: "it is away".into(), hint: "wait".into() }
}

#[async_trait]
impl Mover for Direct {
    async fn prepare(&self, to: NodeId, offer: Offer) -> Result<Ready, OpFailure> {
        let (host, tasks) = lock(&self.net.daemons).get(&to).cloned().ok_or_else(away)?;
        let state = self.truth.get();
        let record = state.vms.get(&offer.vm).cloned().ok_or_else(away)?;
        let prepared = prepare_arrival(&host, &record, &offer).await?;
        let mut states = self.truth.state.subscribe();
        let op = offer.op;
        lock(&tasks).spawn(async move {
            let over = |state: &Arc<ClusterState>| {
                !state.op(op).is_ok_and(|op| op.is_running())
                    || state.vms.get(&VM).is_none_or(|vm| vm.arrived_by() == Some(op))
            };
            let arrived = match states.wait_for(over).await {
                Ok(state) => state.vms.get(&VM).is_some_and(|vm| vm.arrived_by() == Some(op)),
                Err(_) => return,
            };
            if !arrived {
                abandon_arrival(&host, Some(&record), VM, op).await;
            }
        });
        Ok(Ready { whole: prepared == Prepared::Whole, ..Ready::default() })
    }

    async fn connect(&self, to: NodeId, op: OpId, lane: Lane) -> Result<Box<dyn Wire>, String> {
        let (host, tasks) = lock(&self.net.daemons).get(&to).cloned().ok_or("it is away")?;
        if lane == Lane::Files {
            let (near, mut far) = tokio::io::duplex(4096);
            lock(&tasks).spawn(async move {
                let _ = receive_files(&host, op, &mut far).await;
            });
            return Ok(Box::new(near));
        }
        let machine = host.arrivals.machine(op).ok_or("nothing waits")?;
        let ours = match lane {
            Lane::Memory => machine.incoming_connect().await,
            Lane::Disks | Lane::Files => machine.receive_connect().await,
        };
        let mut ours = ours.map_err(|error| error.to_string())?;
        let (near, mut far) = tokio::io::duplex(4096);
        // Broken when that daemon is killed.
        lock(&tasks).spawn(async move {
            let _ = tokio::io::copy_bidirectional(&mut far, &mut ours).await;
        });
        Ok(Box::new(near))
    }

    async fn rehearse(&self, to: NodeId, op: OpId) -> Result<(), OpFailure> {
        let (host, _) = lock(&self.net.daemons).get(&to).cloned().ok_or_else(away)?;
        // Flushes are real ones, and these tests do some thousands of migrations.
        match REHEARSED.fetch_add(1, Ordering::Relaxed) % 16 {
            0 => rehearse_arrival(&host, op).await,
            _ => Ok(()),
        }
    }

    async fn settle(&self, to: NodeId, op: OpId) -> Result<(), OpFailure> {
        let (host, tasks) = lock(&self.net.daemons).get(&to).cloned().ok_or_else(away)?;
        let (tell, told) = tokio::sync::oneshot::channel();
        // Ended with that daemon, and not with this one.
        lock(&tasks).spawn(async move {
            let _ = tell.send(settle_arrival(&host, op).await);
        });
        told.await.map_err(|_| away())?
    }

    async fn abandon(&self, to: NodeId, op: OpId) {
        let Some((host, _)) = lock(&self.net.daemons).get(&to).cloned() else { return };
        let record = self.truth.get().vms.get(&VM).cloned();
        abandon_arrival(&host, record.as_deref(), VM, op).await;
    }
}

impl Pair {
    /// A machine that runs on the first node. Its guest has freed most of its memory.
    async fn new() -> Self {
        let mut spec = spec();
        (spec.memory.size, spec.memory.max) = (MEMORY, MEMORY);
        let mut request = create(spec);
        if let OpRequest::VmCreate { volume, .. } = &mut request {
            *volume = Some(VOLUME);
        }
        let pair = Self::made(request, true).await;
        pair.sides[0].fake.guest_frees(VM, FREE);
        pair
    }

    /// The same of a machine that is made like this, where everybody may write its disks.
    async fn with(request: OpRequest) -> Self {
        Self::made(request, false).await
    }

    async fn made(request: OpRequest, one_writes: bool) -> Self {
        let state = watch::channel(Arc::new(ClusterState::default())).0;
        let truth = Arc::new(super::Truth { state, begun: tokio::time::Instant::now() });
        for (node, text) in [(NODES[0], "h1"), (NODES[1], "h2")] {
            let capacity = model::NodeCapacity { cpus: 4, memory: Bytes::gib(4) };
            truth.propose(Command::NodeStarted { node, name: name(text), capacity }).unwrap();
        }
        let network = NetworkId::new(Uuid::from_u128(2));
        let kind = NetworkKind::Bridge { bridge: "lan0".to_owned() };
        truth.propose(Command::NetworkCreate { network, name: name("nat"), kind }).unwrap();
        let kind = VolumeKind::Share { path: "/share".to_owned() };
        truth
            .propose(Command::VolumeCreate { volume: VOLUME, name: name("shared"), kind })
            .unwrap();
        let side = |node| Side { node, fake: FakeHost::new(), seen: Arc::default(), daemon: None };
        let mut pair = Self {
            dir: tempfile::tempdir().unwrap(),
            truth,
            sides: NODES.map(side),
            net: Arc::default(),
            desk: None,
            ids: 0x2000,
        };
        if one_writes {
            pair.desk = Some(Desk::new(pair.truth.clone()));
        }
        pair.spawn(0, Gate::open());
        pair.spawn(1, Gate::open());
        for request in [request, OpRequest::VmStart { vm: VM }] {
            let op = pair.begin(request);
            assert!(matches!(pair.ended(op).await, OpState::Done { .. }));
        }
        pair
    }

    /// Where VMs lie on a node's own disks.
    fn local(&self, n: usize) -> PathBuf {
        self.dir.path().join(format!("local-{n}"))
    }

    fn spawn(&mut self, n: usize, gate: Arc<Gate>) {
        let (shared, local) = (self.dir.path().join("vms"), self.local(n));
        let local_dir = local.clone();
        let side = &mut self.sides[n];
        assert!(side.daemon.is_none(), "two daemons");
        let speaker = Speaker { node: side.node, epoch: 0 };
        let ledger = ProbeLedger {
            truth: self.truth.clone(),
            seen: side.seen.clone(),
            gate: gate.clone(),
            speaker,
        };
        let engine = ProbeEngine {
            engine: FakeEngine::new(&side.fake),
            truth: self.truth.clone(),
            seen: side.seen.clone(),
            gate: gate.clone(),
        };
        let rights: Arc<dyn WriteRights> = match &self.desk {
            Some(desk) => {
                let (node, desk) = (side.node, desk.clone());
                *lock(&side.seen.desk) = Some((node, desk.clone()));
                Arc::new(DeskOf { node, desk, gate: gate.clone() })
            }
            None => Arc::new(Everybody),
        };
        let host = Arc::new(Host {
            engine: Arc::new(engine),
            ledger: Arc::new(ledger),
            ports: Arc::new(ProbePorts { seen: side.seen.clone(), gate }),
            disks: DiskTool::new("/usr/bin/qemu-img", None),
            vms_dir: Box::new(move |vm| vm.volume.map_or(&local, |_| &shared).clone()),
            volume_ready: Box::new(|_| Ok(())),
            image_path: Box::new(|image| PathBuf::from(image.to_string())),
            rights,
            mover: Arc::new(Direct { net: self.net.clone(), truth: self.truth.clone() }),
            arrivals: Arc::<Arrivals>::default(),
            host_name: "h".to_owned(),
        });
        let handles: Arc<Mutex<Vec<VmHandle>>> = Arc::default();
        let follower = tokio::spawn(follow(
            side.node,
            host.clone(),
            self.truth.state.subscribe(),
            handles.clone(),
        ));
        let tasks: Tasks = Arc::default();
        lock(&tasks).spawn(along::clean(side.node, host.clone(), self.truth.clone(), local_dir));
        lock(&self.net.daemons).insert(side.node, (host.clone(), tasks.clone()));
        side.daemon = Some(Running { host, follower, handles, tasks });
    }

    /// `kill -9`.
    async fn kill(&mut self, n: usize) {
        let side = &mut self.sides[n];
        lock(&self.net.daemons).remove(&side.node);
        let Some(daemon) = side.daemon.take() else { return };
        daemon.follower.abort();
        while !daemon.follower.is_finished() {
            tokio::task::yield_now().await;
        }
        let handles = std::mem::take(&mut *lock(&daemon.handles));
        for handle in &handles {
            handle.task.abort();
        }
        while !handles.iter().all(VmHandle::has_ended) {
            tokio::task::yield_now().await;
        }
        let mut tasks = std::mem::take(&mut *lock(&daemon.tasks));
        tasks.shutdown().await;
    }

    /// The next daemon, which ends machines of VMs that are not its own.
    async fn restart(&mut self, n: usize) {
        self.kill(n).await;
        let side = &self.sides[n];
        let ours = self.truth.get().vms.get(&VM).is_some_and(|vm| vm.owner == side.node);
        if !ours {
            FakeEngine::new(&side.fake).reap(VM).await.unwrap();
            side.seen.ended();
            lock(&side.seen.ports).clear();
        }
        self.spawn(n, Gate::open());
    }

    fn begin(&mut self, request: OpRequest) -> OpId {
        self.ids += 1;
        let op = OpId::new(Uuid::from_u128(self.ids));
        let request = Box::new(request);
        self.truth.propose(Command::BeginOp { op, request, limit: LIMIT }).unwrap();
        op
    }

    fn migrate(&mut self, policy: MigratePolicy) -> OpId {
        let vm = self.vm();
        let to = if vm.owner == NODES[0] { NODES[1] } else { NODES[0] };
        self.begin(OpRequest::VmMigrate { vm: VM, to, policy, storage: None })
    }

    fn vm(&self) -> Arc<VmRecord> {
        self.truth.get().vm(VM).unwrap().clone()
    }

    async fn ended(&self, op: OpId) -> OpState {
        let mut states = self.truth.state.subscribe();
        let ended = states.wait_for(|state| !state.op(op).unwrap().is_running());
        tokio::time::timeout(PATIENCE, ended).await.expect("the operation ends").unwrap();
        self.quiet().await;
        self.truth.get().op(op).unwrap().state.clone()
    }

    async fn failed(&self, op: OpId) -> String {
        match self.ended(op).await {
            OpState::Failed { failure, .. } => failure.code,
            state => panic!("{state:?}"),
        }
    }

    async fn quiet(&self) {
        tokio::time::sleep(Duration::from_secs(30)).await;
    }

    async fn state_of(&self, n: usize) -> Option<(RunState, model::Generation)> {
        let engine = FakeEngine::new(&self.sides[n].fake);
        if !self.sides[n].fake.alive().contains(&VM) {
            return None;
        }
        // Asked beside its daemon, whose events must not be taken away: through its own handle.
        let daemon = self.sides[n].daemon.as_ref().unwrap();
        let machine = lock(&daemon.handles).iter().find_map(VmHandle::machine);
        let machine = match machine {
            Some(machine) => machine,
            None => match engine.adopt(VM).await.unwrap() {
                Adopted::Running(launched) => launched.machine,
                Adopted::Gone(_) => return None,
            },
        };
        let run = machine.run().generation;
        Some((machine.query_status().await.unwrap(), run))
    }

    /// One machine runs, where the state says, and nothing is left elsewhere.
    async fn check(&self, what: &str) {
        let vm = self.vm();
        assert_eq!((vm.power, vm.ops.len()), (Power::Running, 0), "{what}");
        if let Some(desk) = &self.desk {
            assert_eq!(desk.breaches(), [""; 0], "{what}");
        }
        for (n, side) in self.sides.iter().enumerate() {
            let found = self.state_of(n).await;
            let wanted = (vm.owner == side.node).then_some((RunState::Running, vm.generation));
            assert_eq!(found, wanted, "{what}: node {n}");
            assert_eq!(*lock(&side.seen.violations), [""; 0], "{what}");
            let arrivals = &side.daemon.as_ref().unwrap().host.arrivals;
            assert_eq!(arrivals.all(), [], "{what}: a machine waits at node {n}");
            let ours = vm.owner == side.node;
            let left = side.fake.balloon(VM);
            assert_eq!(left, ours.then_some(vm.spec.memory.size), "{what}: balloon at node {n}");
            let nics: BTreeSet<NicId> =
                vm.spec.nics.iter().filter(|_| ours).map(|nic| nic.id).collect();
            assert_eq!(*lock(&side.seen.ports), nics, "{what}: ports of node {n}");
        }
    }
}

/// A hub for one VM.
async fn follow(
    node: NodeId,
    host: Arc<Host>,
    mut states: watch::Receiver<Arc<ClusterState>>,
    handles: Arc<Mutex<Vec<VmHandle>>>,
) {
    let mut ours = false;
    loop {
        {
            let state = states.borrow_and_update().clone();
            let wanted = wanted(&state).filter(|wanted| wanted.record.owner == node);
            let mut handles = lock(&handles);
            match (ours, wanted) {
                (true, wanted) => {
                    ours = wanted.is_some();
                    handles.last().unwrap().want(wanted);
                }
                (false, Some(wanted)) => {
                    ours = true;
                    handles.push(VmHandle::spawn(host.clone(), wanted));
                }
                (false, None) => {}
            }
        }
        if states.changed().await.is_err() {
            return;
        }
        tokio::time::sleep(LATE).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_moves_there_and_back() {
    let mut pair = Pair::new().await;
    for to in [1, 0, 1] {
        let before = pair.vm().generation;
        let op = pair.migrate(MigratePolicy::default());
        let ended = pair.ended(op).await;
        assert!(matches!(ended, OpState::Done { .. }), "{ended:?}");
        assert_eq!((pair.vm().owner, pair.vm().generation), (NODES[to], before.next()));
        pair.check("there and back").await;
        let record = pair.truth.get().op(op).unwrap().clone();
        let report = record.migration.as_ref().unwrap();
        let measured = report.measured.unwrap();
        assert!(report.predicted.is_some() && measured.passes > 1);
        // The target hears of the decision a little late, and the guest stands meanwhile.
        let late = u64::try_from(LATE.as_millis()).unwrap();
        assert!(measured.commit_ms >= late && measured.pause_ms >= measured.commit_ms);
    }
}

#[tokio::test(start_paused = true)]
async fn free_memory_is_not_sent_and_the_guest_has_all_of_it_after() {
    let mut pair = Pair::new().await;
    let mut moved = async || {
        let op = pair.migrate(MigratePolicy::default());
        assert!(matches!(pair.ended(op).await, OpState::Done { .. }));
        pair.check("all of its memory").await;
        pair.truth.get().op(op).unwrap().migration.as_ref().unwrap().measured.unwrap()
    };
    // All but what is used, and an eighth beside it, is taken for a moment.
    let (told, here) = (moved().await, moved().await);
    assert_eq!(told.empty, Bytes::mib(1024 - 128 - 128));
    // A guest that says nothing is sent as it is.
    assert!(here.empty < told.empty && here.bytes > told.bytes, "{told:?} {here:?}");
}

#[tokio::test(start_paused = true)]
async fn one_node_at_a_time_may_write_the_images() {
    let mut pair = Pair::new().await;
    let desk = pair.desk.clone().unwrap();
    let op = pair.migrate(MigratePolicy::default());
    assert!(matches!(pair.ended(op).await, OpState::Done { .. }));
    pair.check("it has gone").await;
    assert_eq!(desk.handed(), 2, "once at its start, once by the migration");
    // What the source has written cannot be made durable, or the target's volume does not answer.
    for (n, code) in [(1, "migration"), (0, "target")] {
        desk.set_broken(NODES[n], true);
        let before = pair.vm();
        let op = pair.migrate(MigratePolicy::default());
        assert_eq!(pair.failed(op).await, code);
        assert_eq!((pair.vm().owner, pair.vm().generation), (NODES[1], before.generation));
        pair.check("it stays").await;
        desk.set_broken(NODES[n], false);
    }
    let op = pair.migrate(MigratePolicy::default());
    assert!(matches!(pair.ended(op).await, OpState::Done { .. }));
    pair.check("it has gone back").await;
    assert_eq!(desk.handed(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_guest_whose_images_are_lost_on_arrival_is_started_from_its_disks() {
    let mut pair = Pair::new().await;
    pair.sides[1].fake.inject(Some(VM), Fault::ImagesLost);
    let op = pair.migrate(MigratePolicy::default());
    assert_eq!(pair.failed(op).await, "lost_on_arrival");
    assert_eq!(pair.vm().owner, NODES[1], "it was decided");
    pair.check("it runs from its disks").await;
    let daemon = pair.sides[1].daemon.as_ref().unwrap();
    let machine = lock(&daemon.handles).iter().find_map(VmHandle::machine).expect("it runs");
    assert_eq!(machine.run().arrival, None);
}

/// Whatever happens to one daemon at whatever call.
async fn each_call(n: usize) -> usize {
    for call in 0..CALLS_MAX {
        let mut pair = Pair::new().await;
        pair.kill(n).await;
        let gate = Gate::at(call);
        // It may stop while it only looks around: then it does so before the migration begins.
        pair.spawn(n, gate.clone());
        let op = pair.migrate(MigratePolicy::default());
        let mut states = pair.truth.state.subscribe();
        let stopped = tokio::select! {
            biased;
            at = gate.stopped() => Some(at),
            _ = states.wait_for(|state| !state.op(op).unwrap().is_running()) => None,
        };
        let Some(at) = stopped else {
            assert!(call > 10, "the gate is never passed");
            return call;
        };
        // The other side may find out by itself, or not.
        tokio::time::sleep(Duration::from_secs(if call % 2 == 0 { 0 } else { 20 })).await;
        pair.restart(n).await;
        let ended = pair.ended(op).await;
        let what = format!("daemon {n} killed at call {call} ({at}), {ended:?}");
        pair.check(&what).await;
        // And it can be migrated as before.
        let op = pair.migrate(MigratePolicy::default());
        let again = pair.ended(op).await;
        assert!(matches!(again, OpState::Done { .. }), "{what}: {again:?}");
        pair.check(&what).await;
    }
    panic!("it has more calls than {CALLS_MAX}");
}

#[tokio::test(start_paused = true)]
async fn the_sources_daemon_may_die_at_any_call() {
    let calls = each_call(0).await;
    assert!(calls > 30, "{calls}");
}

#[tokio::test(start_paused = true)]
async fn the_targets_daemon_may_die_at_any_call() {
    let calls = each_call(1).await;
    assert!(calls > 10, "{calls}");
}

#[tokio::test(start_paused = true)]
async fn what_goes_wrong_leaves_the_guest_where_it_was() {
    for (at, fault, code) in [
        (0, Fault::MigrateStalls, "migration"),
        (1, Fault::IncomingFails, "migration"),
        (1, Fault::LaunchFails("no memory".to_owned()), "target"),
    ] {
        let mut pair = Pair::new().await;
        let before = pair.vm();
        pair.sides[at].fake.inject(Some(VM), fault.clone());
        let op = pair.migrate(MigratePolicy::default());
        assert_eq!(pair.failed(op).await, code, "{fault:?}");
        pair.check(&format!("{fault:?}")).await;
        assert_eq!((pair.vm().owner, pair.vm().generation), (NODES[0], before.generation));
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_is_too_quick_ends_as_its_policy_says() {
    let policy = |at_limit| MigratePolicy { at_limit, ..MigratePolicy::default() };
    let mut pair = Pair::new().await;
    pair.sides[0].fake.inject(Some(VM), Fault::MigrateDirties);
    let op = pair.migrate(policy(AtLimit::Cancel));
    assert_eq!(pair.failed(op).await, NO_CONVERGENCE);
    pair.check("it stays").await;
    let op = pair.migrate(policy(AtLimit::Force));
    assert!(matches!(pair.ended(op).await, OpState::Done { .. }));
    pair.check("it stands for it").await;
    let record = pair.truth.get().op(op).unwrap().clone();
    let predicted = record.migration.as_ref().unwrap().predicted.unwrap();
    assert!(!predicted.converges, "that was known before: {predicted:?}");
    assert!(lock(&pair.sides[0].seen.notes).iter().any(|(_, text)| text.contains("pass 10")));
}

#[tokio::test(start_paused = true)]
async fn it_can_be_stopped_until_it_has_arrived() {
    for after in [0, 1, 5, 15, 30, 60, 200, 220, 240, 260, 280, 300] {
        let mut pair = Pair::new().await;
        let op = pair.migrate(MigratePolicy::default());
        tokio::time::sleep(Duration::from_millis(after)).await;
        let cancelled = pair.truth.propose(Command::CancelOp { op });
        let ended = pair.ended(op).await;
        match pair.vm().owner == NODES[0] {
            true => assert!(matches!(ended, OpState::Cancelled { .. }), "{ended:?}"),
            false => assert!(matches!(ended, OpState::Done { .. }), "{ended:?} {cancelled:?}"),
        }
        pair.check(&format!("stopped after {after} ms")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_machine_of_before_a_takeover_never_goes_on() {
    let mut pair = Pair::new().await;
    // The target has everything, and the source's daemon says no more.
    pair.kill(0).await;
    let op = pair.migrate(MigratePolicy::default());
    let gate = Gate::open();
    pair.spawn(0, gate);
    let waiting = async {
        while !pair.sides[0].fake.alive().contains(&VM)
            || pair.state_of(0).await.is_none_or(|(state, _)| state != RunState::Saved)
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("it is sent");
    pair.kill(0).await;
    if pair.vm().owner == NODES[1] {
        // It was quicker than this test; nothing is to be shown then.
        return;
    }
    let generation = pair.vm().generation;
    let proof = FenceProof::Statement;
    pair.truth.propose(Command::NodeFenced { node: NODES[0], epoch: 0, reign: 0, proof }).unwrap();
    FakeEngine::new(&pair.sides[0].fake).reap(VM).await.unwrap();
    pair.sides[0].seen.ended();
    let over =
        Command::VmTakeOver { vm: VM, from: NODES[0], generation, to: NODES[1], start: true };
    pair.truth.propose(over).unwrap();
    let ended = pair.ended(op).await;
    assert!(matches!(ended, OpState::Failed { .. }), "{ended:?}");
    let daemon = pair.sides[1].daemon.as_ref().unwrap();
    let machine = lock(&daemon.handles).iter().find_map(VmHandle::machine).expect("it runs");
    assert_eq!(machine.run().arrival, None, "it was started from its disks");
    assert_eq!(machine.query_status().await.unwrap(), RunState::Running);
}

#[tokio::test(start_paused = true)]
async fn a_handover_that_the_state_does_not_take_leaves_the_guest_where_it_was() {
    let mut pair = Pair::new().await;
    let op = pair.migrate(MigratePolicy::default());
    // The target is drained in the middle.
    tokio::time::sleep(Duration::from_millis(150)).await;
    let mode = model::NodeMode::Drain;
    pair.truth.propose(Command::NodeSetMode { node: NODES[1], mode, with_storage: false }).unwrap();
    assert_eq!(pair.failed(op).await, "handover");
    assert_eq!(pair.vm().owner, NODES[0]);
    pair.check("refused").await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_goes_on_when_nobody_takes_its_handover() {
    let mut pair = Pair::new().await;
    let op = pair.migrate(MigratePolicy::default());
    tokio::time::sleep(Duration::from_millis(150)).await;
    *lock(&pair.sides[0].seen.deaf) = true;
    // It stands for some seconds, and then goes on although the state is not told of it yet.
    let goes_on = async {
        tokio::time::sleep(Duration::from_secs(20)).await;
        pair.state_of(0).await.map(|(state, _)| state)
    };
    assert_eq!(goes_on.await, Some(RunState::Running));
    *lock(&pair.sides[0].seen.deaf) = false;
    assert_eq!(pair.failed(op).await, "handover");
    pair.check("nobody heard of it").await;
}

/// Until the source's handover is about to be told to the state; its daemon says no more then.
async fn at_handover() -> (Pair, OpId) {
    for call in 0..CALLS_MAX {
        let mut pair = Pair::new().await;
        pair.kill(0).await;
        let gate = Gate::at(call);
        pair.spawn(0, gate.clone());
        let op = pair.migrate(MigratePolicy::default());
        if tokio::time::timeout(PATIENCE, gate.stopped()).await.is_ok_and(|at| at == "hand over") {
            return (pair, op);
        }
        pair.kill(0).await;
    }
    panic!("nothing is handed over in {CALLS_MAX} calls");
}

#[tokio::test(start_paused = true)]
async fn a_handover_that_comes_after_the_next_daemon_of_the_source_finds_its_machine() {
    let (mut pair, op) = at_handover().await;
    let late = Command::VmHandover {
        op,
        generation: pair.vm().generation,
        report: Box::default(),
        by: Speaker { node: NODES[0], epoch: 0 },
    };
    // The next daemon ends the operation, and the state has not heard of that yet.
    *lock(&pair.sides[0].seen.deaf) = true;
    pair.restart(0).await;
    pair.quiet().await;
    pair.truth.propose(late).unwrap();
    *lock(&pair.sides[0].seen.deaf) = false;
    let ended = pair.ended(op).await;
    assert!(matches!(ended, OpState::Done { .. }), "{ended:?}");
    assert_eq!(pair.vm().arrived_by(), Some(op), "the guest itself goes on, not a new run");
    pair.check("a late handover").await;
}
