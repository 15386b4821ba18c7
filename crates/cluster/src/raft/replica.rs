//! A node's replica of the state: the handle that everything else uses.
//!
//! ```text
//!   propose: ticket --> this node leads?  yes --> the log --> applied here --> outcome
//!                          | no                      ^
//!                          +--> to the leader -------+   sent again, with the same ticket, when the
//!                                                        leader changes or does not answer
//! ```
//!
//! The outcome of a proposal comes from this node's own state machine, whoever leads: when
//! [`Replica::propose`] returns, the change is in [`Replica::state`]. A ticket is carried out once,
//! so sending it again is harmless. When time runs out, the answer says what is known: `Unavailable`
//! is "it was not done and will not be", `Unknown` is neither yes nor no.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::Weak;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use model::Applied;
use model::ClusterState;
use model::NodeId;
use model::Proposal;
use model::Refused;
use openraft::ChangeMembers;
use openraft::Config;
use openraft::Raft;
use openraft::RaftMetrics;
use openraft::ReadPolicy;
use openraft::SnapshotPolicy;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::ClientWriteError;
use openraft::errors::LinearizableReadError;
use openraft::errors::RaftError;
use openraft::type_config::alias::WatchReceiverOf;
use tokio::sync::Semaphore;
use tokio::sync::broadcast;
use tokio::sync::oneshot;
use tokio::sync::watch;
use tokio::time::Instant;

use super::applier::Machine;
use super::applier::Outcome;
use super::applier::Outlet;
use super::format::MembersAt;
use super::format::Position;
use super::format::StoredEvent;
use super::metrics;
use super::metrics::Metrics;
use super::metrics::Role;
use super::network::Network;
use super::network::note_removed;
use super::serve::Incoming;
use super::store::Loaded;
use super::store::Store;
use super::store::die;
use super::store::lock;
use super::transport::PeerMethod;
use super::transport::PeerRequest;
use super::transport::RaftTransport;
use super::transport::TransportError;
use super::types::Envelope;
use super::types::RaftId;
use super::types::Ticket;
use super::types::Types;
use super::types::nodes_of;
use super::wire;
use super::wire::LeaderReply;
use super::wire::RemovedNotice;
use super::wire::WIRE_VERSION;
use super::writer::Job;

/// Proposals of this node that are under way. Beyond that a caller is told to come back: the disk
/// or the cluster is far behind.
const PROPOSALS_MAX: usize = 1_024;

/// The longest proposal, in bytes of its stored form: the largest configuration of a VM is some ten
/// kilobytes, and a batch of entries must fit into one message.
pub const PROPOSAL_BYTES_MAX: usize = 1 << 20;

/// Entries after which a snapshot is stored: replaying them takes well under a second.
const SNAPSHOT_EVERY: u64 = 2_000;

/// Entries that stay in the log behind the snapshot, for followers that are a moment behind.
const ENTRIES_KEPT: u64 = 1_000;

/// Entries in one message to a follower.
const PAYLOAD_ENTRIES_MAX: u64 = 256;

/// Between two attempts to find a leader that takes the request.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// How long one attempt waits for the leader, before the same is asked again.
const ATTEMPT_MAX: Duration = Duration::from_secs(3);

/// How often what waits for the next commit is written without one.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// How long a host alone waits at its start until all of its log is in the state.
const ALONE_READY_MAX: Duration = Duration::from_secs(60);

/// How often a node is told that it was removed, when it does not answer.
const REMOVED_NOTICES: usize = 3;

/// The clocks of the log.
///
/// A voter keeps to its leader for `election_max` after each sign of life, and then waits for a
/// time of its own between `election_min` and `election_max` before it asks for votes. So a lost
/// leader has a successor after `election_max + election_min` at the earliest, and, if no votes
/// split, after twice `election_max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Between two signs of life of the leader.
    pub heartbeat: Duration,
    /// The shortest wait of a voter, beyond `election_max`.
    pub election_min: Duration,
    /// The longest; also how long a sign of life binds a voter.
    pub election_max: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            // A new leader within two seconds (the seed's third issue, Speed); seven signs of life
            // may be late or lost before anybody stirs.
            heartbeat: Duration::from_millis(150),
            election_min: Duration::from_millis(400),
            election_max: Duration::from_millis(700),
        }
    }
}

/// Why a replica did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The timing does not fit together.
    #[error("the timing of the log cannot be used: {0}; leave it out for the defaults")]
    Timing(String),
    /// The log says what cannot be.
    #[error(
        "the stored log does not fit together: {0}; if the cluster does not give this node a new \
         one, evict it and let it join again"
    )]
    Log(String),
}

/// Why a proposal was not carried out, or is not known to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// The state machine refuses it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It was not done, and will not be. It may be proposed again.
    #[error("the state takes no changes now: {0}")]
    Unavailable(&'static str),
    /// Time ran out: it may have been done, or may be yet. Ask the state; the same operation may be
    /// proposed again with the same ids.
    #[error("the cluster did not answer in time; the change may have been made or not")]
    Unknown,
}

/// Why there is no read point, or no change of the members.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaderError {
    /// Only the leader does this.
    #[error("this node does not lead")]
    NotLeader(Option<NodeId>),
    /// No leader with a majority was found in time.
    #[error("there is no majority now: {0}")]
    Unavailable(&'static str),
    /// The change of members cannot be.
    #[error("{0}")]
    Refused(String),
}

/// The replica of a node. Cheap to clone.
#[derive(Clone)]
pub struct Replica {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) node: NodeId,
    pub(crate) raft: Raft<Types, Machine>,
    pub(crate) outlet: Arc<Outlet>,
    pub(crate) removed: watch::Sender<Option<Position>>,
    pub(crate) incoming: tokio::sync::Mutex<Option<Incoming>>,
    store: Store,
    transport: Arc<dyn RaftTransport>,
    metrics: watch::Receiver<Metrics>,
    tickets: Mutex<Tickets>,
    room: Semaphore,
    barriers: tokio::sync::Mutex<Option<Instant>>,
    /// It was told to end.
    stopping: AtomicBool,
}

/// A replica, as long as somebody else keeps it: for what the replica itself owns.
#[derive(Clone)]
pub struct WeakReplica(Weak<Inner>);

impl WeakReplica {
    /// The replica, if it is still there.
    pub fn upgrade(&self) -> Option<Replica> {
        self.0.upgrade().map(|inner| Replica { inner })
    }
}

/// Ends the process when the log has ended by itself: a panic in it. A daemon without a log answers
/// nobody and renews nothing, and a new one reads the log from the disk.
async fn outlive(mut raft: WatchReceiverOf<Types, RaftMetrics<Types>>, replica: Weak<Inner>) {
    while raft.changed().await.is_ok() {}
    // Nobody has it any more: it ended for that.
    let Some(inner) = replica.upgrade() else { return };
    if !inner.stopping.load(Ordering::Relaxed) {
        let why = raft.borrow_watched().running_state.as_ref().err().map(ToString::to_string);
        die(&why.unwrap_or_else(|| "a panic".to_owned()), "the log has ended by itself");
    }
}

/// Numbers given out, and those that somebody still waits for.
struct Tickets {
    next: u64,
    open: BTreeSet<u64>,
}

/// What a replica is started with.
pub struct Start {
    /// Its store.
    pub store: Store,
    /// What that held.
    pub loaded: Loaded,
    /// The way to the others.
    pub transport: Arc<dyn RaftTransport>,
    /// Its clocks.
    pub timing: Timing,
    /// Where the state is shown.
    pub state: watch::Sender<Arc<ClusterState>>,
    /// Where events are told when they are certain.
    pub events: broadcast::Sender<StoredEvent>,
    /// Its node was taken out of the cluster: it never asks for a vote, not even for its own where
    /// its log names no other voter.
    pub out: bool,
}

fn config(timing: &Timing, silent: bool) -> Result<Config, StartError> {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let config = Config {
        cluster_name: "muster".to_owned(),
        heartbeat_interval: millis(timing.heartbeat),
        election_timeout_min: millis(timing.election_min),
        election_timeout_max: millis(timing.election_max),
        install_snapshot_timeout: 60_000,
        max_payload_entries: PAYLOAD_ENTRIES_MAX,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY),
        max_in_snapshot_log_to_keep: ENTRIES_KEPT,
        replication_lag_threshold: SNAPSHOT_EVERY + ENTRIES_KEPT,
        purge_batch_size: 256,
        enable_elect: !silent,
        enable_pre_vote: Some(true),
        // A leader that was away asks first: the others may have gone on without it.
        enable_leader_restore: Some(false),
        ..Config::default()
    };
    config.validate().map_err(|error| StartError::Timing(error.to_string()))
}

impl Replica {
    /// Starts a node's replica. A store that was never part of a cluster, and does not wait for a
    /// join, becomes a cluster of one; a cluster of one leads, and has all of its log in the state,
    /// when this returns.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(start: Start) -> Result<Self, StartError> {
        let Start { store, loaded, transport, timing, state, events, out } = start;
        let log_error = |error: &dyn std::fmt::Display| StartError::Log(error.to_string());
        let node = loaded.identity.node;
        let silent = out || loaded.quiet;
        let outlet = Arc::new(Outlet {
            node,
            boot: loaded.boot,
            state,
            events,
            applied: watch::Sender::new(0),
            members: watch::Sender::new(MembersAt::default()),
            was_member: AtomicBool::new(!loaded.pristine && !loaded.identity.joining),
            waiting: Mutex::new(HashMap::new()),
        });
        let machine =
            Machine::new(store.clone(), outlet.clone(), loaded.snapshot, loaded.last_event)
                .map_err(|error| log_error(&error))?;
        let removed = watch::Sender::new(None);
        let network = Network { transport: transport.clone(), removed: removed.clone() };
        let config = Arc::new(config(&timing, silent)?);
        let raft = Raft::new(RaftId(node), config, network, store.clone(), machine)
            .await
            .map_err(|error| log_error(&error))?;
        if loaded.pristine && !loaded.identity.joining {
            raft.initialize(nodes_of([node])).await.map_err(|error| log_error(&error))?;
        }
        let (shown, metrics) = watch::channel(metrics::initial(node));
        tokio::spawn(metrics::follow(
            raft.metrics(),
            store.clone(),
            outlet.clone(),
            removed.subscribe(),
            timing,
            shown,
        ));
        tokio::spawn(flush(store.clone(), outlet.applied.subscribe()));
        let replica = Self {
            inner: Arc::new(Inner {
                node,
                raft,
                outlet,
                removed,
                incoming: tokio::sync::Mutex::new(None),
                store,
                transport,
                metrics,
                tickets: Mutex::new(Tickets { next: 1, open: BTreeSet::new() }),
                room: Semaphore::new(PROPOSALS_MAX),
                barriers: tokio::sync::Mutex::new(None),
                stopping: AtomicBool::new(false),
            }),
        };
        tokio::spawn(outlive(replica.inner.raft.metrics(), Arc::downgrade(&replica.inner)));
        if !silent {
            replica.lead_if_alone().await?;
        }
        Ok(replica)
    }

    /// A single voter need not wait for anybody's silence.
    async fn lead_if_alone(&self) -> Result<(), StartError> {
        let Inner { raft, node, .. } = &*self.inner;
        let stopped = |_| StartError::Log("the log has stopped".to_owned());
        let voters = raft
            .with_raft_state(|state| {
                state.membership_state.effective().voter_ids().collect::<BTreeSet<_>>()
            })
            .await
            .map_err(stopped)?;
        if voters != BTreeSet::from([RaftId(*node)]) {
            return Ok(());
        }
        raft.trigger().elect(false).await.map_err(stopped)?;
        self.barrier(ALONE_READY_MAX).await.map_err(|error| StartError::Log(error.to_string()))?;
        // The barrier has seen it lead.
        let _ = self.inner.metrics.clone().wait_for(Metrics::leads).await;
        Ok(())
    }

    /// It may ask for votes from now on ([`Loaded::quiet`]).
    pub fn may_lead(&self) {
        self.inner.raft.runtime_config().elect(true);
    }

    /// A handle that does not keep it.
    pub fn downgrade(&self) -> WeakReplica {
        WeakReplica(Arc::downgrade(&self.inner))
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.inner.node
    }

    /// Its store.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// What this node knows of the log, and each change of it.
    pub fn metrics(&self) -> watch::Receiver<Metrics> {
        self.inner.metrics.clone()
    }

    /// The state with all that was acknowledged by this node.
    pub fn state(&self) -> Arc<ClusterState> {
        self.inner.outlet.state.borrow().clone()
    }

    /// Ends the replica. The store stays open.
    pub async fn stop(&self) {
        self.inner.stopping.store(true, Ordering::Relaxed);
        // It fails only if the log has ended by itself already.
        let _ = self.inner.raft.shutdown().await;
    }

    /// Carries a command out. When this returns, the change is durable on a majority and visible in
    /// [`Replica::state`].
    ///
    /// # Errors
    /// [`ProposeError`].
    pub async fn propose(
        &self,
        proposal: Proposal,
        timeout: Duration,
    ) -> Result<Applied, ProposeError> {
        let inner = &*self.inner;
        let _room = inner
            .room
            .try_acquire()
            .map_err(|_| ProposeError::Unavailable("too many changes wait; try again later"))?;
        let open = OpenTicket::new(inner);
        let envelope = Arc::new(Envelope { ticket: open.ticket, proposal });
        if envelope.bytes() > PROPOSAL_BYTES_MAX {
            return Err(ProposeError::Unavailable("this change is too large; make it smaller"));
        }
        let (reply, outcome) = oneshot::channel();
        lock(&inner.outlet.waiting).insert(open.ticket.number, reply);
        let mut fate = Fate::default();
        tokio::select! {
            biased;
            outcome = outcome => match outcome {
                Ok(Outcome::Settled(result)) => Ok(result?),
                Ok(Outcome::Void) => Err(ProposeError::Unavailable("this node was removed")),
                Ok(Outcome::Unseen) | Err(_) => Err(ProposeError::Unknown),
            },
            stopped = self.place(&envelope, &mut fate) => Err(stopped),
            () = tokio::time::sleep(timeout) => Err(ProposeError::Unavailable(
                "no leader with a majority of the voters behind it was found")),
        }
        .map_err(|error| match error {
            ProposeError::Unavailable(_) if fate.uncertain => ProposeError::Unknown,
            error => error,
        })
    }

    /// Brings a proposal into the log, however often it must be sent. Returns only if this node
    /// cannot do so any more.
    async fn place(&self, envelope: &Arc<Envelope>, fate: &mut Fate) -> ProposeError {
        let inner = &*self.inner;
        let mut metrics = inner.metrics.clone();
        loop {
            let leader = metrics.borrow_and_update().leader;
            let before = *fate;
            let reply = match leader {
                None => LeaderReply::NotLeader(None),
                Some(leader) => {
                    fate.uncertain = true;
                    let attempt = async {
                        if leader == inner.node {
                            inner.append(envelope.clone()).await
                        } else {
                            self.forward(leader, envelope).await
                        }
                    };
                    tokio::select! {
                        reply = attempt => reply,
                        // Another leader: what was sent to this one may never be answered.
                        () = changed_leader(metrics.clone(), leader) => LeaderReply::Unknown,
                    }
                }
            };
            match reply {
                // Its outcome comes out of the state machine.
                LeaderReply::At(_) => std::future::pending().await,
                LeaderReply::Unknown => {}
                LeaderReply::NotLeader(_) | LeaderReply::NoQuorum => *fate = before,
                LeaderReply::Removed(at) => {
                    *fate = before;
                    note_removed(&inner.removed, at);
                    return ProposeError::Unavailable("this node was removed from the cluster");
                }
            }
            if metrics.borrow().role == Role::Stopped {
                return ProposeError::Unavailable("it is stopping");
            }
            // A change of the leader ends the pause.
            let _ = tokio::time::timeout(RETRY_PAUSE, metrics.changed()).await;
        }
    }

    async fn forward(&self, leader: NodeId, envelope: &Arc<Envelope>) -> LeaderReply {
        let body = wire::ProposeRequest { envelope: (**envelope).clone() };
        self.ask_leader(leader, PeerMethod::Propose, wire::write(&body)).await
    }

    async fn ask_leader(&self, leader: NodeId, method: PeerMethod, body: Vec<u8>) -> LeaderReply {
        let request = PeerRequest { method, version: WIRE_VERSION, timeout: ATTEMPT_MAX, body };
        match self.inner.transport.send(leader, request).await {
            Ok(reply) => wire::read(reply.version, &reply.body).unwrap_or(LeaderReply::Unknown),
            Err(TransportError::NotSent(_) | TransportError::Refused(_)) => {
                LeaderReply::NotLeader(None)
            }
            Err(TransportError::Unknown(_)) => LeaderReply::Unknown,
        }
    }

    /// Waits until the state has all that was acknowledged to anybody before the call: what is
    /// read after it is linearizable.
    ///
    /// # Errors
    /// [`LeaderError::Unavailable`]: no leader with a majority was found within `timeout`.
    pub async fn barrier(&self, timeout: Duration) -> Result<(), LeaderError> {
        let asked = Instant::now();
        let attempt = async {
            // One at a time; those that come meanwhile share the next one.
            let mut begun = self.inner.barriers.lock().await;
            if begun.is_some_and(|begun| begun > asked) {
                return Ok(());
            }
            let beginning = Instant::now();
            self.run_barrier().await?;
            *begun = Some(beginning);
            Ok(())
        };
        tokio::time::timeout(timeout, attempt).await.unwrap_or(Err(LeaderError::Unavailable(
            "no leader with a majority of the voters behind it answered",
        )))
    }

    async fn run_barrier(&self) -> Result<(), LeaderError> {
        let inner = &*self.inner;
        let mut metrics = inner.metrics.clone();
        loop {
            let leader = metrics.borrow_and_update().leader;
            let reply = match leader {
                None => LeaderReply::NotLeader(None),
                Some(leader) if leader == inner.node => inner.read_point().await,
                Some(leader) => {
                    tokio::select! {
                        reply = self.ask_leader(leader, PeerMethod::Barrier, b"null".to_vec()) => {
                            reply
                        }
                        () = changed_leader(metrics.clone(), leader) => LeaderReply::Unknown,
                    }
                }
            };
            match reply {
                LeaderReply::At(next) => {
                    let mut applied = inner.outlet.applied.subscribe();
                    return match applied.wait_for(|applied| *applied >= next).await {
                        Ok(_) => Ok(()),
                        Err(_) => Err(LeaderError::Unavailable("it is stopping")),
                    };
                }
                LeaderReply::Removed(at) => {
                    note_removed(&inner.removed, at);
                    return Err(LeaderError::Unavailable("this node was removed"));
                }
                LeaderReply::NotLeader(_) | LeaderReply::NoQuorum | LeaderReply::Unknown => {}
            }
            if metrics.borrow().role == Role::Stopped {
                return Err(LeaderError::Unavailable("it is stopping"));
            }
            let _ = tokio::time::timeout(RETRY_PAUSE, metrics.changed()).await;
        }
    }

    /// Takes a node in as a learner: it gets the log and does not vote. Returns when that is
    /// decided, not when the node has caught up ([`Metrics::followers`] shows that).
    ///
    /// # Errors
    /// [`LeaderError`]; without an answer in time it may have been done.
    pub async fn add_learner(&self, node: NodeId, timeout: Duration) -> Result<(), LeaderError> {
        self.change(ChangeMembers::AddNodes(nodes_of([node])), true, timeout).await
    }

    /// Makes exactly these members the voters, by joint consensus; voters that are not named become
    /// learners.
    ///
    /// # Errors
    /// As [`Replica::add_learner`].
    pub async fn set_voters(
        &self,
        voters: BTreeSet<NodeId>,
        timeout: Duration,
    ) -> Result<(), LeaderError> {
        let voters = voters.into_iter().map(RaftId).collect();
        self.change(ChangeMembers::ReplaceAllVoters(voters), true, timeout).await
    }

    /// Removes a member for good, voter or learner, and tells it so.
    ///
    /// # Errors
    /// As [`Replica::add_learner`].
    pub async fn remove(&self, node: NodeId, timeout: Duration) -> Result<(), LeaderError> {
        let members = self.inner.metrics.borrow().members.members.clone();
        let one = BTreeSet::from([RaftId(node)]);
        if members.all_voters().contains(&node) {
            self.change(ChangeMembers::RemoveVoters(one), false, timeout).await?;
        } else if members.nodes.contains(&node) {
            self.change(ChangeMembers::RemoveNodes(one), false, timeout).await?;
        }
        let at = self.inner.outlet.members.borrow().at;
        if let Some(at) = at.filter(|_| node != self.inner.node) {
            tokio::spawn(tell_removed(self.inner.transport.clone(), node, at));
        }
        Ok(())
    }

    async fn change(
        &self,
        change: ChangeMembers<RaftId, openraft::EmptyNode>,
        retain: bool,
        timeout: Duration,
    ) -> Result<(), LeaderError> {
        if !self.inner.metrics.borrow().leads() {
            return Err(LeaderError::NotLeader(self.inner.metrics.borrow().leader));
        }
        let change = self.inner.raft.change_membership(change, retain);
        let result = tokio::time::timeout(timeout, change)
            .await
            .map_err(|_| LeaderError::Unavailable("the change was not agreed on in time"))?;
        match result {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(
                ClientWriteError::ForwardToLeader(to) | ClientWriteError::LogEntryDiscarded(to),
            )) => Err(LeaderError::NotLeader(to.leader_id.map(|id| id.0))),
            Err(RaftError::APIError(error)) => Err(LeaderError::Refused(error.to_string())),
            Err(RaftError::Fatal(_)) => Err(LeaderError::Unavailable("it is stopping")),
        }
    }

    /// Gives the leadership to a voter, and waits until it has it.
    ///
    /// # Errors
    /// [`LeaderError`].
    pub async fn transfer(&self, to: NodeId, timeout: Duration) -> Result<(), LeaderError> {
        let mut metrics = self.inner.metrics.clone();
        {
            let now = metrics.borrow();
            if !now.leads() {
                return Err(LeaderError::NotLeader(now.leader));
            }
            if !now.voters().contains(&to) {
                return Err(LeaderError::Refused(format!("{to} does not vote")));
            }
        }
        let stopping = |_| LeaderError::Unavailable("it is stopping");
        self.inner.raft.trigger().transfer_leader(RaftId(to)).await.map_err(stopping)?;
        let done = metrics.wait_for(|metrics| metrics.leader == Some(to));
        match tokio::time::timeout(timeout, done).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(LeaderError::Unavailable("the leadership was not taken over in time")),
        }
    }
}

impl Inner {
    /// Whether this node may act as the leader.
    fn leads(&self) -> bool {
        self.metrics.borrow().leads()
    }

    /// Brings a proposal into the log as its leader; returns when it is applied here.
    pub(crate) async fn append(&self, envelope: Arc<Envelope>) -> LeaderReply {
        if !self.leads() {
            return LeaderReply::NotLeader(self.other_leader());
        }
        match self.raft.client_write(envelope).await {
            Ok(written) => LeaderReply::At(written.log_id.index + 1),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => {
                LeaderReply::NotLeader(to.leader_id.map(|id| id.0))
            }
            // A snapshot may have taken its place: then it was committed.
            Err(_) => LeaderReply::Unknown,
        }
    }

    /// The read point of a leader: a majority has confirmed after the call that it leads.
    pub(crate) async fn read_point(&self) -> LeaderReply {
        match self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(point) => LeaderReply::At(point.read_log_id().index() + 1),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to))) => {
                LeaderReply::NotLeader(to.leader_id.map(|id| id.0))
            }
            Err(_) => LeaderReply::NoQuorum,
        }
    }

    fn other_leader(&self) -> Option<NodeId> {
        self.metrics.borrow().leader.filter(|leader| *leader != self.node)
    }
}

/// What is known of a proposal that was sent.
#[derive(Debug, Clone, Copy, Default)]
struct Fate {
    /// Somebody may have put it into the log.
    uncertain: bool,
}

/// A ticket that somebody waits for.
struct OpenTicket<'a> {
    inner: &'a Inner,
    ticket: Ticket,
}

impl<'a> OpenTicket<'a> {
    fn new(inner: &'a Inner) -> Self {
        let mut tickets = lock(&inner.tickets);
        let number = tickets.next;
        tickets.next += 1;
        tickets.open.insert(number);
        let floor = tickets.open.first().copied().unwrap_or(number);
        let ticket = Ticket { node: inner.node, boot: inner.outlet.boot, number, floor };
        Self { inner, ticket }
    }
}

impl Drop for OpenTicket<'_> {
    fn drop(&mut self) {
        lock(&self.inner.tickets).open.remove(&self.ticket.number);
        lock(&self.inner.outlet.waiting).remove(&self.ticket.number);
    }
}

/// Waits until another node leads, or nobody.
async fn changed_leader(mut metrics: watch::Receiver<Metrics>, leader: NodeId) {
    if metrics.wait_for(|metrics| metrics.leader != Some(leader)).await.is_err() {
        // The replica has ended; whoever waits finds out by its own deadline.
        std::future::pending::<()>().await;
    }
}

/// Writes now and then what waits for a commit, until the replica ends.
async fn flush(store: Store, mut applied: watch::Receiver<u64>) {
    while applied.changed().await.is_ok() {
        tokio::time::sleep(FLUSH_EVERY).await;
        if store.jobs.send(Job::Flush).await.is_err() {
            return;
        }
    }
}

/// Tells a node that it is no member any more. It may be off: it learns it when it asks for votes.
async fn tell_removed(transport: Arc<dyn RaftTransport>, node: NodeId, at: Position) {
    for _ in 0..REMOVED_NOTICES {
        let request = PeerRequest {
            method: PeerMethod::Members,
            version: WIRE_VERSION,
            timeout: ATTEMPT_MAX,
            body: wire::write(&RemovedNotice { at }),
        };
        if transport.send(node, request).await.is_ok() {
            return;
        }
        tokio::time::sleep(ATTEMPT_MAX).await;
    }
}
