//! What a node knows of the cluster's log, for those who show it or decide by it.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use model::NodeId;
use openraft::Instant as _;
use openraft::RaftMetrics;
use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::type_config::alias::WatchReceiverOf;
use tokio::sync::watch;
use tokio::time::Instant;

use super::applier::Outlet;
use super::format::Members;
use super::format::MembersAt;
use super::format::Position;
use super::network::removal;
use super::replica::Timing;
use super::store::Store;
use super::types::Types;

/// The log as one node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metrics {
    /// This node.
    pub node: NodeId,
    /// What it is at present.
    pub role: Role,
    /// The term of its vote.
    pub term: u64,
    /// Who leads, as far as this node knows. A leader that does not reach a majority any more is
    /// not named.
    pub leader: Option<NodeId>,
    /// Since when this node knows of no leader.
    pub without_leader_since: Option<Instant>,
    /// The members, as of the last entry about them that this node has, committed or not.
    pub members: MembersAt,
    /// The members, as of the last entry about them that is in this node's state: that one is
    /// committed, and every later leader has it.
    pub members_applied: MembersAt,
    /// The last entry in this node's log.
    pub last: Option<Position>,
    /// The number after it.
    pub log_next: u64,
    /// The number after the last entry that is in this node's state.
    pub applied_next: u64,
    /// The last entry in its snapshot.
    pub snapshot: Option<Position>,
    /// On the leader: the number after the last entry that each member is known to have.
    pub followers: BTreeMap<NodeId, u64>,
    /// On the leader: when each other member answered last; absent if it has not yet.
    pub heard: BTreeMap<NodeId, Instant>,
    /// On the leader: when a majority answered last.
    pub majority_seen: Option<Instant>,
    /// This node is no member since that entry. It must not go on under its id.
    pub removed: Option<Position>,
    /// Why the log has stopped for good, if it has.
    pub stopped: Option<String>,
}

/// What a node is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It gets the log and does not vote.
    Learner,
    /// It votes.
    Follower,
    /// It wants to lead.
    Candidate,
    /// It leads. Whether a majority still agrees is another question, see [`Metrics::leader`].
    Leader,
    /// It has ended.
    Stopped,
}

impl Metrics {
    /// Who votes.
    pub fn voters(&self) -> BTreeSet<NodeId> {
        self.members.members.all_voters()
    }

    /// Who only gets the log.
    pub fn learners(&self) -> BTreeSet<NodeId> {
        self.members.members.learners()
    }

    /// Whether this node leads, with a majority behind it.
    pub fn leads(&self) -> bool {
        self.leader == Some(self.node)
    }
}

fn next(position: Option<u64>) -> u64 {
    position.map_or(0, |index| index + 1)
}

fn view(
    raft: &RaftMetrics<Types>,
    store: &Store,
    outlet: &Outlet,
    removed: Option<Position>,
    timing: &Timing,
) -> Metrics {
    let role = match raft.state {
        ServerState::Learner => Role::Learner,
        ServerState::Follower => Role::Follower,
        ServerState::Candidate => Role::Candidate,
        ServerState::Leader => Role::Leader,
        ServerState::Shutdown => Role::Stopped,
    };
    let members = MembersAt {
        at: raft.membership_config.log_id().as_ref().map(|id| Position::of(*id)),
        members: Members::of(raft.membership_config.membership()),
    };
    let seen = raft.last_quorum_acked.as_ref();
    let majority_seen = seen.and_then(|seen| Instant::now().checked_sub(seen.elapsed()));
    let leader = raft.current_leader.map(|id| id.0).filter(|leader| {
        *leader != outlet.node
            || (role == Role::Leader && leads_now(&members.members, majority_seen, timing))
    });
    let followers = raft.replication.iter().flatten();
    let heard =
        raft.heartbeat.iter().flatten().filter_map(|(id, at)| {
            Some((id.0, Instant::now().checked_sub(at.as_ref()?.elapsed())?))
        });
    let applied_members = outlet.members.borrow();
    let was_member = outlet.was_member.load(Ordering::Relaxed);
    let gone = removal(outlet.node, &applied_members);
    // Word of a removal that this node has outlived: it was taken in again.
    let heard_of_removal = removed.filter(|at| {
        members.at.is_some_and(|own| own.index < at.index)
            || !members.members.nodes.contains(&outlet.node)
    });
    Metrics {
        node: outlet.node,
        role,
        term: raft.current_term,
        leader,
        without_leader_since: None,
        members,
        members_applied: applied_members.clone(),
        last: store.last_entry(),
        log_next: next(raft.last_log_index),
        applied_next: *outlet.applied.borrow(),
        snapshot: raft.snapshot.map(Position::of),
        followers: followers.map(|(id, at)| (id.0, next(at.map(|at| at.index)))).collect(),
        heard: heard.collect(),
        majority_seen,
        removed: gone.or(heard_of_removal).filter(|_| was_member),
        stopped: raft.running_state.as_ref().err().map(ToString::to_string),
    }
}

/// Whether a leader may act as one: a majority answered within the time after which the others
/// may have chosen another.
fn leads_now(members: &Members, majority_seen: Option<Instant>, timing: &Timing) -> bool {
    let alone = members.all_voters().len() <= 1;
    alone || majority_seen.is_some_and(|seen| seen.elapsed() < timing.election_max)
}

/// Follows openraft's metrics until it ends.
pub(crate) async fn follow(
    mut raft: WatchReceiverOf<Types, RaftMetrics<Types>>,
    store: Store,
    outlet: Arc<Outlet>,
    mut removed: watch::Receiver<Option<Position>>,
    timing: Timing,
    out: watch::Sender<Metrics>,
) {
    // A leader loses its majority by the passing of time alone.
    let mut tick = tokio::time::interval(timing.heartbeat.max(Duration::from_millis(10)));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut applied = outlet.applied.subscribe();
    loop {
        let word = *removed.borrow_and_update();
        let mut metrics = view(&raft.borrow_and_update(), &store, &outlet, word, &timing);
        out.send_if_modified(|shown| {
            metrics.without_leader_since = match metrics.leader {
                Some(_) => None,
                None => shown.without_leader_since.or_else(|| Some(Instant::now())),
            };
            // That others answer again and again is no news.
            shown.majority_seen = metrics.majority_seen;
            shown.heard.clone_from(&metrics.heard);
            let changed = *shown != metrics;
            *shown = metrics;
            changed
        });
        tokio::select! {
            changed = raft.changed() => if changed.is_err() { return },
            _ = tick.tick() => {}
            changed = applied.changed() => if changed.is_err() { return },
            changed = removed.changed() => if changed.is_err() { return },
        }
    }
}

/// What is shown before the first look.
pub(crate) fn initial(node: NodeId) -> Metrics {
    Metrics {
        node,
        role: Role::Learner,
        term: 0,
        leader: None,
        without_leader_since: Some(Instant::now()),
        members: MembersAt::default(),
        members_applied: MembersAt::default(),
        last: None,
        log_next: 0,
        applied_next: 0,
        snapshot: None,
        followers: BTreeMap::new(),
        heard: BTreeMap::new(),
        majority_seen: None,
        removed: None,
        stopped: None,
    }
}
