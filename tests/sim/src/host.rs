//! One host: its power, its clocks, its disk, its daemon in a runtime of its own.
//!
//! The daemon is the real one without sockets (`node::simulation`). Its runtime has a paused clock
//! that moves only in the host's turn: a daemon that gets no turn stands still, and has all of its
//! time at once when it goes on. To kill it is to drop its runtime.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::time::Duration;

use cluster::detect::Heard;
use cluster::detect::Path;
use cluster::fence::Agents;
use cluster::lease::BootTime;
use cluster::lease::LeaseSettings;
use cluster::raft::Metrics;
use cluster::raft::PeerService;
use cluster::raft::Store;
use cluster::raft::Timing;
use cluster::raft::TransportError;
use cluster::simulation::Clocks;
use cluster::simulation::Disk;
use cluster::simulation::Loss;
use model::Actor;
use model::Bytes;
use model::ClusterState;
use model::Command;
use model::Generation;
use model::Name;
use model::NodeCapacity;
use model::NodeId;
use model::Proposal;
use model::UnixMillis;
use model::VmId;
use node::simulation::Daemon;
use node::simulation::Parts;
use node::truth::RaftTruth;
use node::truth::Truth;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::drivers::Launch;
use crate::drivers::Migrations;
use crate::ground::Ground;
use crate::ground::lock;
use crate::guard::Body;
use crate::guard::Door;
use crate::plant::Plant;
use crate::vault::Vault;
use crate::wire::Content;
use crate::wire::Letter;
use crate::wire::Way;
use crate::wire::Wire;

/// How long a turn is, in milliseconds: nothing in the product is decided faster.
pub(crate) const TICK_MS: u64 = 20;

/// Messages that wait for a daemon that stands still.
const INBOX_MAX: usize = 4_096;

/// How long a runtime is waited for when it ends: nothing in it blocks.
const END_MAX: Duration = Duration::from_millis(1);

/// Ids of hosts begin here.
const FIRST_ID: u128 = 101;

/// A host that comes back as a new node has an id so much greater.
const LIVES: u128 = 16;

/// The time of day at which each schedule begins: 14 Nov 2023.
pub(crate) const EPOCH_MS: u64 = 1_700_000_000_000;

/// What all hosts are started with.
pub(crate) struct Settings {
    pub(crate) lease: LeaseSettings,
    /// After how much silence a node's vote is taken away.
    pub(crate) lost_after: Duration,
    pub(crate) agents: Agents,
    pub(crate) vault: Arc<Vault>,
}

/// A host's clocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    /// How fast the one that counts suspend runs, in parts of ten thousand.
    pub(crate) rate: u64,
    /// What it showed when the schedule began, in milliseconds.
    pub(crate) start: u64,
    /// What the time of day is off by, in milliseconds.
    pub(crate) wall: i64,
}

/// A process of the daemon.
pub(crate) struct Process {
    runtime: Runtime,
    daemon: Arc<OnceLock<Arc<Daemon>>>,
    /// Set when its state is surely as new as its start: what it had on its disk is older.
    known: Arc<OnceLock<()>>,
    /// Set when its log is served: before the rest of it is up.
    serves: Arc<OnceLock<()>>,
    inbox: mpsc::Sender<Letter>,
    /// How far its clock is behind, in milliseconds.
    behind: u64,
    pulses: u64,
    incarnation: u64,
    /// Its store was not yet that of a node that waits for a leader.
    first: bool,
}

/// A host.
pub(crate) struct Host {
    pub(crate) index: usize,
    pub(crate) id: NodeId,
    pub(crate) name: Name,
    pub(crate) ground: Arc<Ground>,
    pub(crate) powered: bool,
    /// The whole host stands still until then.
    pub(crate) frozen_until: u64,
    /// Its daemon does.
    pub(crate) paused_until: u64,
    pub(crate) clock: Clock,
    pub(crate) disk: Disk,
    pub(crate) process: Option<Process>,
    pub(crate) body: Arc<Mutex<Body>>,
    pub(crate) beat: u64,
    /// When its daemon was ended last.
    pub(crate) killed: Option<u64>,
    pub(crate) launches: BTreeMap<VmId, Launch>,
    pub(crate) reported: BTreeMap<VmId, u64>,
    pub(crate) migrations: Migrations,
    joined: bool,
    /// It has lost its log, and waits for leave to begin a new one.
    pub(crate) lost: Option<Uuid>,
    /// For which loss its log was made.
    filling: Option<Uuid>,
    /// How many logs it has had.
    pub(crate) logs: u64,
    /// Of how many entries its next daemon does not know that they are committed.
    pub(crate) behind: u64,
    /// Its disk did not take a write, and its daemon has ended.
    pub(crate) refused: bool,
}

/// What hosts share beside the network: the volume.
#[derive(Default)]
pub(crate) struct Volume {
    /// The newest run that was given the right to a VM's disks.
    pub(crate) claims: BTreeMap<VmId, Generation>,
    /// The newest run that was launched from them.
    pub(crate) launched: BTreeMap<VmId, Generation>,
    /// Memories of saved guests: of which run, and when the guest stopped.
    pub(crate) memories: BTreeMap<(VmId, Generation), u64>,
    /// The counters of the nodes' beats.
    pub(crate) beats: BTreeMap<NodeId, u64>,
}

impl Host {
    pub(crate) fn new(index: usize, ground: &Arc<Ground>, clock: Clock) -> Self {
        let name: Name = format!("n{}", index + 1).parse().expect("it is a name");
        Self {
            index,
            id: id_of(index),
            body: Arc::new(Mutex::new(Body::new(name.to_string(), ground.clone()))),
            name,
            ground: ground.clone(),
            powered: true,
            frozen_until: 0,
            paused_until: 0,
            clock,
            disk: Disk::default(),
            process: None,
            beat: 0,
            launches: BTreeMap::new(),
            reported: BTreeMap::new(),
            killed: None,
            migrations: Migrations::default(),
            joined: index == 0,
            lost: None,
            filling: None,
            logs: 0,
            behind: 0,
            refused: false,
        }
    }

    pub(crate) fn trace(&self, what: &str) {
        self.ground.trace(self.name.as_str(), what);
    }

    /// Makes this host's clocks those of the thread.
    pub(crate) fn set_clocks(&self) {
        let now = self.ground.now();
        let fast = self.ground.has(Plant::FastClock) && self.leads();
        let rate = if fast { 30_000 } else { self.clock.rate };
        let boot = BootTime::from_nanos((self.clock.start + now * rate / 10_000) * 1_000_000);
        let wall = (EPOCH_MS + now).saturating_add_signed(self.clock.wall);
        cluster::simulation::set_clocks(Some(Clocks { boot, wall: UnixMillis::new(wall) }));
    }

    fn leads(&self) -> bool {
        self.metrics().is_some_and(|metrics| metrics.role == cluster::raft::Role::Leader)
    }

    /// The daemon, if it is up.
    pub(crate) fn daemon(&self) -> Option<Arc<Daemon>> {
        self.process.as_ref()?.daemon.get().cloned()
    }

    /// Whether its daemon has asked a majority since its start: before it does nothing to machines.
    pub(crate) fn knows_the_newest(&self) -> bool {
        if self.ground.has(Plant::ActOnOld) {
            return true;
        }
        self.process.as_ref().is_some_and(|process| process.known.get().is_some())
    }

    /// Which process of the daemon it is.
    pub(crate) fn incarnation(&self) -> Option<u64> {
        self.process.as_ref().map(|process| process.incarnation)
    }

    /// The daemon's view of the log.
    pub(crate) fn metrics(&self) -> Option<Metrics> {
        let daemon = self.daemon()?;
        let metrics = daemon.truth().metrics().borrow().clone();
        Some(metrics)
    }

    pub(crate) fn state(&self) -> Option<Arc<ClusterState>> {
        Some(self.daemon()?.truth().state())
    }

    /// Whether it stands still.
    pub(crate) fn stands(&self) -> bool {
        self.ground.now() < self.frozen_until
    }

    pub(crate) fn daemon_stands(&self) -> bool {
        self.stands() || self.ground.now() < self.paused_until
    }

    /// Starts the daemon.
    pub(crate) fn start(&mut self, wire: &Arc<Wire>, settings: &Settings) {
        self.set_clocks();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime without sockets needs nothing");
        if self.ground.has(Plant::LyingDisk) {
            self.disk.lie();
        }
        let daemon = Arc::new(OnceLock::new());
        let (inbox, letters) = mpsc::channel(INBOX_MAX);
        let first = !std::mem::replace(&mut self.joined, true);
        let start = Start {
            node: self.id,
            name: self.name.clone(),
            disk: self.disk.clone(),
            first,
            way: Arc::new(Way { from: self.index, node: self.id, wire: wire.clone() }),
            lease: settings.lease,
            lost_after: settings.lost_after,
            lost: self.filling,
            behind: std::mem::take(&mut self.behind),
            agents: settings.agents.clone(),
            vault: settings.vault.clone(),
            door: Arc::new(Door(self.body.clone())),
            ground: self.ground.clone(),
        };
        let (slot, index, wire) = (daemon.clone(), self.index, wire.clone());
        let (ground, name) = (self.ground.clone(), self.name.clone());
        let serves = Arc::new(OnceLock::new());
        let (up, inside) = (serves.clone(), daemon.clone());
        let known = Arc::new(OnceLock::new());
        let newest = known.clone();
        let serve = Box::new(move |truth| {
            let _ = up.set(());
            tokio::spawn(serve_all(index, inside, truth, letters, wire));
        });
        runtime.spawn(async move {
            match start.go(serve).await {
                Ok(daemon) => {
                    ground.trace(name.as_str(), "daemon up");
                    let daemon = Arc::new(daemon);
                    let _ = slot.set(daemon.clone());
                    announce(&daemon, start.node, &name).await;
                    let _ = newest.set(());
                }
                Err(error) => ground.trace(name.as_str(), &format!("daemon fails: {error:#}")),
            }
        });
        let incarnation = EPOCH_MS + self.ground.now();
        let process = Process {
            runtime,
            daemon,
            known,
            serves,
            inbox,
            behind: 0,
            pulses: 0,
            incarnation,
            first,
        };
        self.process = Some(process);
    }

    /// Its daemon is killed, and finds its log damaged when it starts again.
    pub(crate) fn damage(&mut self, word: Uuid) {
        self.trace("its log is damaged");
        self.kill(Loss::Process);
        self.disk = Disk::default();
        self.logs += 1;
        (self.lost, self.filling) = (Some(word), None);
        if self.ground.has(Plant::EagerRebuild) {
            self.begin_log(1);
        }
    }

    /// It begins a new log.
    pub(crate) fn begin_log(&mut self, count: u64) {
        self.trace("begins a new log");
        self.set_clocks();
        self.filling = self.lost.take().filter(|_| !self.ground.has(Plant::EagerRebuild));
        if let Err(error) = Store::make_anew_simulated(&self.disk, self.id, count) {
            self.ground.complain(format!("{} cannot begin a new log: {error}", self.name));
        }
        self.disk.set_delay(Duration::from_millis(5));
    }

    /// It becomes a new node, with an empty disk. It has no power, and so no machines.
    pub(crate) fn renew(&mut self, wire: &Wire) {
        assert!(!self.powered && lock(&self.body).machines.is_empty());
        self.disk = Disk::default();
        self.id = NodeId::new(Uuid::from_u128(self.id.uuid().as_u128() + LIVES));
        wire.rename(self.index, self.id);
        self.logs += 1;
        self.joined = false;
        (self.lost, self.filling, self.behind) = (None, None, 0);
        self.trace("is a new node");
    }

    /// Ends the daemon, at once.
    pub(crate) fn kill(&mut self, loss: Loss) {
        self.disk.crash(loss);
        self.set_clocks();
        self.launches.clear();
        self.reported.clear();
        self.migrations.break_off(&mut lock(&self.body));
        self.killed = Some(self.ground.now());
        if let Some(process) = self.process.take() {
            if process.first && process.serves.get().is_none() {
                self.joined = false;
            }
            process.runtime.shutdown_timeout(END_MAX);
        }
    }

    /// The power goes.
    pub(crate) fn power_off(&mut self, kept: usize) {
        self.kill(Loss::Power { kept });
        self.powered = false;
        self.frozen_until = 0;
        self.paused_until = 0;
        lock(&self.body).power_off();
    }

    /// Gives a letter to the daemon.
    pub(crate) fn deliver(&mut self, letter: Letter, wire: &Wire) {
        let Letter { from, content, .. } = letter;
        match content {
            Content::Answer { call, reply } => wire.answered(call, reply),
            Content::Word(word) => {
                if self.daemon().is_some() && self.migrations.mail.len() < INBOX_MAX {
                    self.migrations.mail.push((from, word));
                }
            }
            Content::Pulse(heard) => {
                if let (Some(daemon), Some(process)) = (self.daemon(), &self.process) {
                    // What is done outside of the runtime would see the real time.
                    let _inside = process.runtime.enter();
                    daemon.heard(Path(0), heard);
                }
            }
            Content::Ask { call, asker, request } => {
                let up = self.process.as_ref().filter(|process| process.serves.get().is_some());
                let content = Content::Ask { call, asker, request };
                let letter = Letter { from, to: self.index, content };
                let refused = match up {
                    // A daemon that stands still, and has no room for more.
                    Some(process) => {
                        // Without room it is lost: the daemon stands still.
                        let _ = process.inbox.try_send(letter);
                        false
                    }
                    None => true,
                };
                if refused {
                    let reply = Err(TransportError::NotSent("nobody listens there".to_owned()));
                    let content = Content::Answer { call, reply };
                    wire.send(Letter { from: self.index, to: from, content });
                }
            }
        }
    }

    /// One turn.
    pub(crate) fn turn(&mut self, wire: &Wire, hosts: usize, volume: &mut Volume) {
        if !self.powered || self.stands() {
            if let Some(process) = &mut self.process {
                process.behind += TICK_MS;
            }
            return;
        }
        self.set_clocks();
        lock(&self.body).turn();
        let stands = self.daemon_stands();
        let Some(process) = &mut self.process else { return };
        if stands {
            process.behind += TICK_MS;
            return;
        }
        let behind = std::mem::take(&mut process.behind);
        process.runtime.block_on(async {
            if behind > 0 {
                tokio::time::advance(Duration::from_millis(behind)).await;
            }
            tokio::time::sleep(Duration::from_millis(TICK_MS)).await;
        });
        if self.disk.refused() {
            // As `raft::store::die` does: nothing of this process is heard any more.
            self.trace("its disk is full: the daemon ends");
            self.ground.tally(|tally| tally.full += 1);
            self.kill(Loss::Process);
            self.refused = true;
            return;
        }
        self.pulse(wire, hosts, volume);
        self.drive(wire, volume);
        lock(&self.body).turn();
    }

    /// Heartbeats and beats.
    fn pulse(&mut self, wire: &Wire, hosts: usize, volume: &mut Volume) {
        let now = self.ground.now();
        let Some(daemon) = self.daemon() else { return };
        let Some(process) = &mut self.process else { return };
        let _inside = process.runtime.enter();
        if now.is_multiple_of(200) {
            process.pulses += 1;
            let heard = Heard {
                from: self.id,
                incarnation: process.incarnation,
                number: process.pulses,
                hears: daemon.hears(),
            };
            for to in (0..hosts).filter(|to| *to != self.index) {
                let content = Content::Pulse(heard.clone());
                wire.send(Letter { from: self.index, to, content });
            }
        }
        if now.is_multiple_of(500) {
            self.beat += 1;
            volume.beats.insert(self.id, self.beat);
            let read: Vec<(NodeId, u64)> = volume.beats.iter().map(|(n, c)| (*n, *c)).collect();
            daemon.beats(crate::setup::VOLUME, &read);
        }
    }

    /// Spawns something in the daemon's runtime; it ends with the daemon.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) -> bool {
        let Some(process) = &self.process else { return false };
        process.runtime.spawn(work);
        true
    }
}

/// The place of the host with that id.
pub(crate) fn index_of(id: NodeId) -> usize {
    usize::try_from(id.uuid().as_u128().saturating_sub(FIRST_ID) % LIVES).unwrap_or(usize::MAX)
}

/// The id of the host at that place, in its first life.
pub(crate) fn id_of(index: usize) -> NodeId {
    NodeId::new(uuid::Uuid::from_u128(FIRST_ID + index as u128))
}

/// A proposal with this host's time.
pub(crate) fn proposal(command: Command) -> Proposal {
    let at = cluster::simulation::clocks().map_or(UnixMillis::new(0), |clocks| clocks.wall);
    Proposal { at, actor: Actor::new("sim"), command }
}

/// Begins to serve the log.
type Serve = Box<dyn FnOnce(Arc<RaftTruth>) + Send>;

/// What a daemon is started with.
struct Start {
    node: NodeId,
    name: Name,
    disk: Disk,
    first: bool,
    way: Arc<Way>,
    lease: LeaseSettings,
    lost_after: Duration,
    lost: Option<Uuid>,
    behind: u64,
    agents: Agents,
    vault: Arc<Vault>,
    door: Arc<Door>,
    ground: Arc<Ground>,
}

impl Start {
    async fn go(&self, serve: Serve) -> Result<Daemon, Box<dyn std::error::Error + Send + Sync>> {
        let (store, mut loaded) = Store::open_simulated(&self.disk, self.node)?;
        if self.behind > 0 {
            store.forget_commits(self.behind);
        }
        if self.first {
            loaded = store.empty_for_join(self.node).await?;
        }
        let parts = Parts {
            node: self.node,
            name: self.name.clone(),
            store,
            loaded,
            transport: self.way.clone(),
            timing: Timing::default(),
            lease: self.lease,
            detect: cluster::detect::Settings::default(),
            agents: self.agents.clone(),
            guard: self.door.clone(),
            lost_after: self.lost_after,
            lost: self.lost,
            witness: self.vault.opener(),
            serve,
            door: crate::setup::door(&self.ground),
        };
        Ok(Daemon::start(parts).await?)
    }
}

/// Answers what peers ask.
async fn serve_all(
    index: usize,
    daemon: Arc<OnceLock<Arc<Daemon>>>,
    truth: Arc<RaftTruth>,
    mut letters: mpsc::Receiver<Letter>,
    wire: Arc<Wire>,
) {
    while let Some(Letter { from, content, .. }) = letters.recv().await {
        let Content::Ask { call, asker, request } = content else { continue };
        let (daemon, truth, wire) = (daemon.get().cloned(), truth.clone(), wire.clone());
        tokio::spawn(async move {
            let limit = request.timeout;
            let served = async {
                // As `node::cluster::peers` does with the key of a connection.
                if truth.state().gone.contains_key(&asker) {
                    return Err("it is no node of this cluster any more".to_owned());
                }
                match daemon {
                    Some(daemon) => daemon.serve(asker, request).await,
                    None if request.method.is_raft() => truth.serve(asker, request).await,
                    None => Err("it is starting".to_owned()),
                }
            };
            // Nobody waits longer.
            let Ok(reply) = tokio::time::timeout(limit, served).await else { return };
            let reply = reply.map_err(TransportError::Refused);
            let content = Content::Answer { call, reply };
            wire.send(Letter { from: index, to: from, content });
        });
    }
}

/// What each daemon tells the state when it starts, until the state has it.
async fn announce(daemon: &Daemon, node: NodeId, name: &Name) {
    let capacity = NodeCapacity { cpus: 8, memory: Bytes::mib(16 * 1024) };
    loop {
        let command = Command::NodeStarted { node, name: name.clone(), capacity };
        if daemon.truth().propose(proposal(command)).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
