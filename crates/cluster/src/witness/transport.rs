//! The witness among the peers: requests to its id are answered here, by [`Client`].
//!
//! ```text
//!   openraft --> WitnessTransport --+-- to a node ----> the wire (who answers is noted)
//!                                   +-- to the witness:
//!                    vote    --> asked at once; waits while another node holds the record
//!                    append  --> asked at once if the leader has no majority of nodes, or let lag
//! ```
//!
//! **Lagging.** While a majority of the voters without the witness answers, the witness is not
//! needed, and a request to it is held back; what was decided meanwhile is stored once in
//! [`LAG_MAX`]. A leader that misses nodes for three heartbeats asks it at once, and marks the
//! record as held.
//!
//! **Fetching.** A and the witness may have decided what B never saw, and then A is gone. B asks for
//! the witness's vote, and its log is shorter. So B first takes the entries from the record: they
//! are appended as what they are, an append of the leader that wrote them, delivered late. If B has
//! seen a newer vote meanwhile, which that leader's word does not bind any more, the witness stands
//! for election itself, with B's vote and its own, and sends its log; it never decides anything.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use async_trait::async_trait;
use model::NodeId;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;

use super::client::Ask;
use super::client::AskError;
use super::client::Client;
use super::record::Record;
use super::record::Reply;
use super::record::Request;
use crate::raft::Ballot;
use crate::raft::Metrics;
use crate::raft::PeerMethod;
use crate::raft::PeerReply;
use crate::raft::PeerRequest;
use crate::raft::PeerService;
use crate::raft::RaftTransport;
use crate::raft::Replica;
use crate::raft::TransportError;
use crate::raft::WeakReplica;
use crate::raft::wire;
use crate::raft::wire::Answer;
use crate::raft::wire::AppendReply;
use crate::raft::wire::AppendRequest;
use crate::raft::wire::LeaderReply;
use crate::raft::wire::VoteReply;
use crate::raft::wire::VoteRequest;
use crate::raft::wire::WIRE_VERSION;

/// How far behind the witness may be in time while it is not needed.
const LAG_MAX: Duration = Duration::from_secs(10);

/// Between two looks whether it is needed.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// Kept back of the caller's time, to answer before it stops listening.
const MARGIN: Duration = Duration::from_millis(20);

/// Entries in one request to this node's own log.
const FETCH_ENTRIES: usize = 256;

/// How long this node's own log may take to store them.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// A way to the peers with a witness among them, or none.
pub struct WitnessTransport {
    me: NodeId,
    inner: Arc<dyn RaftTransport>,
    /// Silence after which a node does not count as answering.
    silent_after: Duration,
    client: watch::Sender<Option<Client>>,
    own: Mutex<Option<WeakReplica>>,
    metrics: Mutex<Option<watch::Receiver<Metrics>>>,
    heard: Mutex<BTreeMap<NodeId, Instant>>,
    /// Whether the record says that we hold it, and when we last let it catch up.
    held: Mutex<(bool, Option<Instant>)>,
    fetching: tokio::sync::Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Plain data, changed in single steps.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn reply(body: &impl Serialize) -> PeerReply {
    PeerReply { version: WIRE_VERSION, body: wire::write(body) }
}

fn refused(why: impl ToString) -> TransportError {
    TransportError::Refused(why.to_string())
}

impl From<AskError> for TransportError {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Wrong(_) | AskError::Bad(_) | AskError::Held { .. } => refused(error),
            AskError::Store(_) | AskError::Busy => Self::Unknown(error.to_string()),
        }
    }
}

impl WitnessTransport {
    /// A way to the peers of this node, without a witness yet. `heartbeat` is that of the log.
    pub fn new(me: NodeId, inner: Arc<dyn RaftTransport>, heartbeat: Duration) -> Arc<Self> {
        Arc::new(Self {
            me,
            inner,
            silent_after: heartbeat * 3,
            client: watch::Sender::new(None),
            own: Mutex::default(),
            metrics: Mutex::default(),
            heard: Mutex::default(),
            held: Mutex::default(),
            fetching: tokio::sync::Mutex::default(),
        })
    }

    /// Tells it of the log that it serves. Before that the witness is asked whatever is asked.
    pub fn attach(&self, replica: &Replica) {
        *lock(&self.metrics) = Some(replica.metrics());
        *lock(&self.own) = Some(replica.downgrade());
    }

    /// Uses this witness from now on, or none.
    pub fn set(&self, client: Option<Client>) {
        self.client.send_replace(client);
    }

    /// The witness in use.
    pub fn witness(&self) -> Option<Client> {
        self.client.borrow().clone()
    }

    /// Whether this node would lose its majority without the witness; nothing if the witness does
    /// not vote.
    fn needs(&self, witness: NodeId) -> Option<bool> {
        let Some(metrics) = lock(&self.metrics).clone() else { return Some(true) };
        let metrics = metrics.borrow();
        let heard = lock(&self.heard);
        let answers = |id: &NodeId| {
            *id == self.me || heard.get(id).is_some_and(|heard| heard.elapsed() < self.silent_after)
        };
        let sets = metrics.members.members.voters.iter().filter(|set| set.contains(&witness));
        sets.map(|set| 2 * set.iter().filter(|id| answers(id)).count() <= set.len())
            .reduce(|one, other| one || other)
    }

    /// Entries below this number are with all other voters.
    fn floor(&self, witness: NodeId) -> u64 {
        let Some(metrics) = lock(&self.metrics).clone() else { return 0 };
        let metrics = metrics.borrow();
        let voters = metrics.voters();
        let others = voters.iter().filter(|id| **id != witness && **id != self.me);
        others.map(|id| metrics.followers.get(id).copied().unwrap_or(0)).min().unwrap_or(u64::MAX)
    }

    async fn serve(
        &self,
        client: Client,
        request: PeerRequest,
    ) -> Result<PeerReply, TransportError> {
        let until = Instant::now() + request.timeout.saturating_sub(MARGIN);
        let PeerRequest { method, version, body, .. } = request;
        match method {
            PeerMethod::Vote => {
                let vote = wire::read(version, &body).map_err(refused)?;
                self.vote(&client, vote, until).await
            }
            PeerMethod::Append => {
                let append: AppendRequest = wire::read(version, &body).map_err(refused)?;
                let lags = !append.entries.is_empty();
                self.follow(&client, Request::Append(append), lags, until).await
            }
            PeerMethod::Snapshot => {
                let (piece, _) = wire::read_piece(version, &body).map_err(refused)?;
                let wire::SnapshotPiece { ballot, head, .. } = piece;
                self.follow(&client, Request::Snapshot { ballot, head }, true, until).await
            }
            // It needs no notice.
            PeerMethod::Members => Ok(reply(&LeaderReply::At(0))),
            _ => Err(refused("a witness neither leads nor serves clients")),
        }
    }

    async fn vote(
        &self,
        client: &Client,
        vote: VoteRequest,
        until: Instant,
    ) -> Result<PeerReply, TransportError> {
        loop {
            let ask = Ask { request: Request::Vote(vote), hold: true, floor: 0, until };
            let (answer, record) = match client.ask(ask).await {
                Err(AskError::Held { wait }) if Instant::now() + wait < until => {
                    tokio::time::sleep(wait).await;
                    continue;
                }
                other => other?,
            };
            let Reply::Vote(answer) = answer else { return Err(refused("no vote")) };
            if !answer.granted && record.last() > vote.last {
                self.fetch(client, record, vote, until).await?;
                return Err(refused("the log of the witness was longer; it has been taken over"));
            }
            if answer.granted && !vote.pre_vote {
                lock(&self.held).0 = true;
            }
            return Ok(reply(&Answer::Here(answer)));
        }
    }

    /// Appends and snapshots: at once when the witness is needed, else some time.
    async fn follow(
        &self,
        client: &Client,
        request: Request,
        lags: bool,
        until: Instant,
    ) -> Result<PeerReply, TransportError> {
        let hold = loop {
            let (held, stored) = *lock(&self.held);
            match self.needs(client.id()) {
                Some(true) => break true,
                // It is let go, or catches up.
                Some(false) if held => break false,
                Some(false) if lags && stored.is_none_or(|at| at.elapsed() > LAG_MAX) => {
                    break false;
                }
                _ => {}
            }
            if Instant::now() + LOOK_EVERY > until {
                return Err(TransportError::Unknown("the witness is not needed now".to_owned()));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        };
        let floor = self.floor(client.id());
        // The time of a heartbeat is short, and what is begun is not broken off.
        // If our caller goes away meanwhile, the record may be held nevertheless.
        lock(&self.held).0 |= hold;
        let (answer, _) = client.ask(Ask { request, hold, floor, until }).await?;
        *lock(&self.held) = (hold, Some(Instant::now()));
        Ok(match answer {
            Reply::Append(answer) => reply(&Answer::Here(answer)),
            Reply::Snapshot(answer) => reply(&Answer::Here(answer)),
            Reply::Vote(answer) => reply(&Answer::Here(answer)),
        })
    }

    /// Asks this node's own log, in the name of another.
    async fn ask_own<T: serde::de::DeserializeOwned>(
        &self,
        from: NodeId,
        method: PeerMethod,
        body: &impl Serialize,
    ) -> Result<T, TransportError> {
        let own = lock(&self.own).as_ref().and_then(WeakReplica::upgrade);
        let own = own.ok_or_else(|| refused("this node's log has ended"))?;
        let body = wire::write(body);
        let request = PeerRequest { method, version: WIRE_VERSION, timeout: FETCH_TIMEOUT, body };
        let reply = own.serve(from, request).await.map_err(refused)?;
        match wire::read(reply.version, &reply.body).map_err(refused)? {
            Answer::Here(answer) => Ok(answer),
            Answer::Removed(_) => Err(refused("this node was removed")),
        }
    }

    /// Brings the entries of the record into this node's log.
    async fn fetch(
        &self,
        client: &Client,
        record: Record,
        vote: VoteRequest,
        until: Instant,
    ) -> Result<(), TransportError> {
        let Ok(_one) = self.fetching.try_lock() else { return Ok(()) };
        let Some(last) = record.last() else { return Ok(()) };
        let leader = Ballot { term: last.term, node: last.leader, committed: true };
        if leader.node != self.me && self.append_own(&record, leader).await? {
            tracing::info!(entries = record.entries.len(), "took the log of the witness over");
            return Ok(());
        }
        self.stand(client, vote, until).await
    }

    /// Appends what the witness keeps by that leader's word; whether this node took it.
    async fn append_own(&self, record: &Record, leader: Ballot) -> Result<bool, TransportError> {
        let mut previous = record.base;
        let mut left = record.entries.as_slice();
        loop {
            let (now, later) = left.split_at(left.len().min(FETCH_ENTRIES));
            let body = AppendRequest {
                ballot: leader,
                previous,
                entries: now.to_vec(),
                committed: record.committed,
            };
            let answer = self.ask_own(leader.node, PeerMethod::Append, &body).await?;
            match answer {
                AppendReply::Success | AppendReply::Partial(_) => {}
                AppendReply::HigherVote(_) => return Ok(false),
                AppendReply::Conflict => {
                    return Err(refused(
                        "the witness has decisions that this node lacks, and not the ones before \
                         them; the node that led last must come back",
                    ));
                }
            }
            previous = now.last().map(|entry| entry.at).or(previous);
            left = later;
            if left.is_empty() {
                return Ok(true);
            }
        }
    }

    /// Lets the witness lead for a moment, by its own vote and this node's.
    async fn stand(
        &self,
        client: &Client,
        vote: VoteRequest,
        until: Instant,
    ) -> Result<(), TransportError> {
        let pair = BTreeSet::from([self.me, client.id()]);
        let metrics = lock(&self.metrics).clone().ok_or_else(|| refused("it is starting"))?;
        let alone = metrics
            .borrow()
            .members
            .members
            .voters
            .iter()
            .all(|set| 2 * set.intersection(&pair).count() > set.len());
        if !alone {
            return Err(refused("the log of the witness is longer, and others must vote, too"));
        }
        let record = client.stand(vote.ballot.term + 1, until).await?;
        let ballot = record.ballot.ok_or_else(|| refused("no vote"))?;
        let request = VoteRequest { ballot, last: record.last(), transfer: false, pre_vote: false };
        let VoteReply { granted, .. } =
            self.ask_own(ballot.node, PeerMethod::Vote, &request).await?;
        if !granted {
            return Err(refused("this node does not vote for its witness now"));
        }
        let leader = Ballot { committed: true, ..ballot };
        match self.append_own(&record, leader).await? {
            true => Ok(()),
            false => Err(refused("there is a newer vote")),
        }
    }
}

#[async_trait]
impl RaftTransport for WitnessTransport {
    async fn send(&self, to: NodeId, request: PeerRequest) -> Result<PeerReply, TransportError> {
        let client = self.client.borrow().clone().filter(|client| client.id() == to);
        if let Some(client) = client {
            return self.serve(client, request).await;
        }
        let follows = matches!(request.method, PeerMethod::Append | PeerMethod::Snapshot);
        let sent = self.inner.send(to, request).await;
        if follows && sent.is_ok() {
            lock(&self.heard).insert(to, Instant::now());
        }
        sent
    }
}
