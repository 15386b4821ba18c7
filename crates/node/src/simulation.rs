//! A daemon's decisions without its sockets, threads and machines, for the simulator of a whole
//! cluster (`tests/sim`): the replicated log, leases, fencing and high availability are the real
//! ones, put together as [`crate::run`] does it.
//!
//! What stands for the host is given from outside: the store's disk, the way to the peers, the
//! guard, the fence devices, the heartbeats, and the clocks ([`cluster::simulation`]). It lives in
//! the runtime in which it was started, and ends with it, as a process does.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ::cluster::detect::Heard;
use ::cluster::detect::Path;
use ::cluster::detect::Settings;
use ::cluster::fence::Agents;
use ::cluster::guard::GuardWay;
use ::cluster::guard::boot_time;
use ::cluster::lease::LeaseSettings;
use ::cluster::raft::Loaded;
use ::cluster::raft::PeerMethod;
use ::cluster::raft::PeerReply;
use ::cluster::raft::PeerRequest;
use ::cluster::raft::PeerService;
use ::cluster::raft::RaftTransport;
use ::cluster::raft::Store;
use ::cluster::raft::Timing;
use model::Actor;
use model::ClusterState;
use model::Name;
use model::NodeId;
use model::OpId;
use model::VmRecord;
use model::VolumeId;
use uuid::Uuid;
use vm::lifecycle::Ledger;

use crate::cluster::Witness;
use crate::cluster::members;
use crate::events::Events;
use crate::fencing;
use crate::fencing::Assembly;
use crate::fencing::Fencing;
use crate::ha::Ha;
use crate::ha::Outgoing;
use crate::ha::Watch;
use crate::ledger::NodeLedger;
use crate::ledger::Progresses;
use crate::truth::RaftTruth;
use crate::truth::Truth;

pub use crate::cluster::witness::Opener as WitnessOpener;

/// What stands for the host, and the settings.
pub struct Parts {
    /// Which node it is.
    pub node: NodeId,
    /// Its name.
    pub name: Name,
    /// Its store.
    pub store: Store,
    /// What that held.
    pub loaded: Loaded,
    /// The way to the others.
    pub transport: Arc<dyn RaftTransport>,
    /// The clocks of the log.
    pub timing: Timing,
    /// How leases are given.
    pub lease: LeaseSettings,
    /// When silence means something.
    pub detect: Settings,
    /// The fence devices.
    pub agents: Agents,
    /// The guard.
    pub guard: Arc<dyn GuardWay>,
    /// After how much silence a node's vote is taken away.
    pub lost_after: Duration,
    /// Its log is a new one, for that loss: nothing else begins before it has come so far.
    pub lost: Option<Uuid>,
    /// Opens the witness's store.
    pub witness: WitnessOpener,
    /// Called when the log can be served, with what serves it.
    pub serve: Box<dyn FnOnce(Arc<RaftTruth>) + Send>,
    /// What leases and fencing see of the state instead of it itself: a planted fault.
    pub door: Option<Disguise>,
}

/// Puts something else in the place of the state.
pub type Disguise = fn(Arc<dyn Truth>) -> Arc<dyn Truth>;

/// The daemon of a simulated host.
pub struct Daemon {
    truth: Arc<RaftTruth>,
    ledger: Arc<NodeLedger>,
    fencing: Fencing,
    watch: Arc<Watch>,
    epoch: Arc<AtomicU64>,
}

/// The VM of a migration that is under way, from `from` to `to`: a machine waits for it as long.
pub fn migration_under_way(
    state: &ClusterState,
    op: OpId,
    from: NodeId,
    to: NodeId,
) -> Option<&Arc<VmRecord>> {
    crate::migrate::under_way(state, op, from, to)
}

/// How often a node has lost its log, if the loss of that word counts no more: it may begin a new one.
pub fn log_cleared(state: &ClusterState, node: NodeId, word: Uuid) -> Option<u64> {
    crate::cluster::rebuild::cleared(state, node, word)
}

impl Daemon {
    /// Starts it in the present runtime.
    ///
    /// # Errors
    /// The state or the settings do not fit together.
    pub async fn start(parts: Parts) -> anyhow::Result<Self> {
        let Parts {
            node,
            name,
            store,
            loaded,
            transport,
            timing,
            lease,
            detect,
            agents,
            guard,
            lost_after,
            lost,
            witness: open,
            serve,
            door: plant,
        } = parts;
        lease.check(timing.election_max, std::time::Duration::ZERO)?;
        let events = Events::new();
        let sender = events.sender();
        let loaded = if lost.is_some() { loaded.quiet() } else { loaded };
        let (heartbeat, stores) = (timing.heartbeat, (None, open));
        let witness = Witness::with_stores(node, transport.clone(), heartbeat, stores);
        let way = witness.transport();
        let truth = RaftTruth::with_store(store, loaded, way, timing, sender).await?;
        witness.attach(&truth.replica());
        serve(truth.clone());
        tokio::spawn(witness.clone().follow(truth.watch()));
        if let Some(word) = lost {
            truth.watch().wait_for(|state| log_cleared(state, node, word).is_some()).await?;
            truth.replica().may_lead();
        }
        let door: Arc<dyn Truth> = truth.clone();
        tokio::spawn(members::follow(truth.replica(), door.clone(), witness, lost_after));
        let seen = plant.map_or_else(|| door.clone(), |disguise| disguise(door.clone()));
        let (fencing, task) = Fencing::assemble(Assembly {
            settings: lease,
            node,
            name: &name,
            truth: &seen,
            transport,
            guard,
            group: None,
            agents,
            out: false,
        });
        task.go();
        let record = door.state().nodes.get(&node).map(|record| record.epoch);
        let epoch = Arc::new(AtomicU64::new(record.unwrap_or_default()));
        let ledger = Arc::new(NodeLedger {
            node,
            epoch: epoch.clone(),
            actor: Actor::new(&format!("node {name}")),
            truth: door,
            events,
            progresses: Arc::new(Progresses::default()),
        });
        let watch = Arc::new(Watch::new(node, detect)?);
        Ha::new(ledger.clone(), &fencing, detect, Outgoing::unmeasured()).decide(&watch);
        Ok(Self { truth, ledger, fencing, watch, epoch })
    }

    /// The replicated state.
    pub fn truth(&self) -> &Arc<RaftTruth> {
        &self.truth
    }

    /// Where the drivers of this node's VMs report.
    pub fn ledger(&self) -> Arc<dyn Ledger> {
        self.ledger.clone()
    }

    /// Answers a peer, as the port for peers does.
    ///
    /// # Errors
    /// In words.
    pub async fn serve(&self, from: NodeId, request: PeerRequest) -> Result<PeerReply, String> {
        if request.method == PeerMethod::Lease {
            return fencing::serve(&self.fencing.desk, from, &request).await;
        }
        self.truth.serve(from, request).await
    }

    /// A heartbeat came.
    pub fn heard(&self, path: Path, heard: Heard) {
        self.watch.heard(path, heard);
    }

    /// Whom this node hears, for its own heartbeats.
    pub fn hears(&self) -> BTreeSet<NodeId> {
        self.watch.hears()
    }

    /// The beats that were read on a volume.
    pub fn beats(&self, volume: VolumeId, read: &[(NodeId, u64)]) {
        self.watch.beats(volume, read, tokio::time::Instant::now());
    }

    /// For which epoch a machine may be started now.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn may_start(&self) -> Result<u64, String> {
        self.fencing.lease.borrow().may_start(boot_time())
    }

    /// The epoch in which this daemon speaks.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }
}
