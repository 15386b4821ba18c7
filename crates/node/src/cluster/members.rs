//! The leader keeps the members of the log as the state says: who joined becomes a learner, then a
//! voter; who left or was evicted is taken out.
//!
//! `next` is pure and gives one step at a time; the task carries it out and looks again. Changes of
//! the members are the most delicate thing a log does, so there is never more than one under way.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cluster::raft::Metrics;
use cluster::raft::Replica;
use model::Actor;
use model::ClusterState;
use model::Command;
use model::Membership;
use model::NodeId;
use model::Proposal;
use tokio::sync::watch;

use crate::app::now;
use crate::truth::Truth;

/// Most voters: more would make each commit slower and survive no more than anybody needs.
const VOTERS_MAX: usize = 7;

/// How many entries a learner may be behind when it becomes a voter: it has the snapshot, and
/// catches up in one message.
const LAG_MAX: u64 = 64;

/// How often it is looked, also when nothing changes: a step may have failed.
const EVERY: Duration = Duration::from_secs(1);

/// How long one step may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// The next change of the members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// It shall get the log.
    AddLearner(NodeId),
    /// These shall vote.
    SetVoters(BTreeSet<NodeId>),
    /// It shall get nothing any more.
    Remove(NodeId),
    /// Another one shall lead: this node has to go.
    Transfer(NodeId),
    /// It is out; the state shall say so.
    Gone(NodeId),
}

/// What the log knows of its members.
#[derive(Debug, Clone, Default)]
pub(crate) struct Members {
    pub(crate) me: Option<NodeId>,
    pub(crate) voters: BTreeSet<NodeId>,
    pub(crate) learners: BTreeSet<NodeId>,
    pub(crate) log_next: u64,
    pub(crate) followers: BTreeMap<NodeId, u64>,
}

impl From<&Metrics> for Members {
    fn from(metrics: &Metrics) -> Self {
        Self {
            me: Some(metrics.node),
            voters: metrics.voters(),
            learners: metrics.learners(),
            log_next: metrics.log_next,
            followers: metrics.followers.clone(),
        }
    }
}

/// What to do next, if anything.
pub(crate) fn next(state: &ClusterState, members: &Members) -> Option<Step> {
    // A host by itself has nobody to take in or out.
    state.cluster.as_ref()?;
    let stays = |node: &NodeId| {
        state.nodes.get(node).is_some_and(|node| node.membership == Membership::Member)
    };
    let all = || members.voters.iter().chain(&members.learners).copied();
    // Who must go, goes before anybody comes: it may be what keeps the majority from being one.
    if let Some(out) = all().find(|node| !stays(node) && Some(*node) != members.me) {
        return Some(Step::Remove(out));
    }
    if let Some(me) = members.me
        && !stays(&me)
        && members.voters.contains(&me)
    {
        let most = |node: &&NodeId| members.followers.get(*node).copied().unwrap_or(0);
        let others = members.voters.iter().filter(|node| **node != me);
        return match others.max_by_key(most) {
            Some(heir) => Some(Step::Transfer(*heir)),
            // The last voter: somebody else must vote first.
            None => promote(state, members),
        };
    }
    let leaving = |node: NodeId| {
        state.nodes.get(&node).is_some_and(|node| node.membership == Membership::Leaving)
    };
    let known: BTreeSet<NodeId> = all().collect();
    if let Some(gone) = state.nodes.keys().find(|node| leaving(**node) && !known.contains(node)) {
        return Some(Step::Gone(*gone));
    }
    let new = state
        .nodes
        .values()
        .find(|node| stays(&node.id) && node.key.is_some() && !known.contains(&node.id));
    if let Some(new) = new {
        return Some(Step::AddLearner(new.id));
    }
    promote(state, members)
}

/// The learner that joined first and has caught up becomes a voter, while there is room.
fn promote(state: &ClusterState, members: &Members) -> Option<Step> {
    if members.voters.len() >= VOTERS_MAX {
        return None;
    }
    let caught_up = |node: &NodeId| {
        members.followers.get(node).is_some_and(|at| at + LAG_MAX >= members.log_next)
    };
    let mut ready: Vec<_> = members
        .learners
        .iter()
        .filter(|node| caught_up(node))
        .filter_map(|node| state.nodes.get(node))
        .filter(|node| node.membership == Membership::Member)
        .collect();
    ready.sort_by_key(|node| (node.joined, node.id));
    let first = ready.first()?;
    let mut voters = members.voters.clone();
    voters.insert(first.id);
    Some(Step::SetVoters(voters))
}

/// Carries steps out while this node leads, until the daemon ends.
pub(crate) async fn follow(replica: Replica, truth: Arc<dyn Truth>) {
    let mut metrics = replica.metrics();
    let mut states = truth.watch();
    loop {
        let leads = metrics.borrow_and_update().leads();
        if leads && let Err(problem) = pass(&replica, &*truth, &mut states, &metrics).await {
            tracing::warn!(problem, "the members of the log could not be changed");
        }
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            changed = metrics.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

async fn pass(
    replica: &Replica,
    truth: &dyn Truth,
    states: &mut watch::Receiver<Arc<ClusterState>>,
    metrics: &watch::Receiver<Metrics>,
) -> Result<(), String> {
    let state = states.borrow_and_update().clone();
    let members = Members::from(&*metrics.borrow());
    let Some(step) = next(&state, &members) else { return Ok(()) };
    tracing::info!(?step, "the members of the log change");
    let done = match step.clone() {
        Step::AddLearner(node) => replica.add_learner(node, STEP_TIMEOUT).await,
        Step::SetVoters(voters) => replica.set_voters(voters, STEP_TIMEOUT).await,
        Step::Remove(node) => replica.remove(node, STEP_TIMEOUT).await,
        Step::Transfer(to) => replica.transfer(to, STEP_TIMEOUT).await,
        Step::Gone(node) => {
            let by =
                state.nodes.get(&node).map_or_else(|| node.to_string(), |it| it.name.to_string());
            let actor = Actor::new(&format!("node {by}"));
            let command = Command::NodeGone { node };
            let gone = truth.propose(Proposal { at: now(), actor, command }).await;
            return gone.map(drop).map_err(|error| error.to_string());
        }
    };
    done.map_err(|error| format!("{step:?}: {error}"))
}

#[cfg(test)]
mod tests {
    use model::ClusterId;
    use model::ClusterRecord;
    use model::NodeRecord;
    use model::SecretText;
    use model::UnixMillis;
    use uuid::Uuid;

    use super::*;

    fn node(n: u128) -> NodeId {
        NodeId::new(Uuid::from_u128(n))
    }

    fn state(nodes: &[(u128, Membership)]) -> ClusterState {
        let cluster = Some(Arc::new(ClusterRecord {
            id: ClusterId::new(Uuid::from_u128(1)),
            name: "lab".parse().unwrap(),
            ca_certificate: String::new(),
            ca_key: SecretText::new(""),
            created: UnixMillis::new(0),
        }));
        let mut state = ClusterState { cluster, ..ClusterState::default() };
        for (n, membership) in nodes {
            let name = format!("h{n}").parse().unwrap();
            // The later ones joined earlier, so that the order is not that of the ids.
            let joined = UnixMillis::new(u64::try_from(1_000 - n).unwrap());
            let record = NodeRecord {
                key: Some("0".repeat(64)),
                joined,
                membership: *membership,
                ..NodeRecord::new(node(*n), name, joined)
            };
            state.nodes.insert(node(*n), Arc::new(record));
        }
        state
    }

    fn members(voters: &[u128], learners: &[(u128, u64)]) -> Members {
        let mut followers: BTreeMap<_, _> = voters.iter().map(|n| (node(*n), 1_000)).collect();
        followers.extend(learners.iter().map(|(n, at)| (node(*n), *at)));
        Members {
            me: Some(node(voters[0])),
            voters: voters.iter().map(|n| node(*n)).collect(),
            learners: learners.iter().map(|(n, _)| node(*n)).collect(),
            log_next: 1_000,
            followers,
        }
    }

    use Membership::Leaving as L;
    use Membership::Member as M;

    #[test]
    fn a_host_by_itself_changes_nothing() {
        let mut alone = state(&[(1, M), (2, M)]);
        alone.cluster = None;
        assert_eq!(next(&alone, &members(&[1], &[])), None);
    }

    #[test]
    fn who_joined_learns_and_votes_when_it_has_caught_up() {
        let state = state(&[(1, M), (2, M), (3, M)]);
        assert_eq!(next(&state, &members(&[1], &[])), Some(Step::AddLearner(node(2))));
        let one = members(&[1], &[(2, 10)]);
        assert_eq!(next(&state, &one), Some(Step::AddLearner(node(3))));
        assert_eq!(next(&state, &members(&[1], &[(2, 10), (3, 20)])), None);
        // The third joined before the second.
        let both = members(&[1], &[(2, 999), (3, 999)]);
        let voters = BTreeSet::from([node(1), node(3)]);
        assert_eq!(next(&state, &both), Some(Step::SetVoters(voters)));
        assert_eq!(next(&state, &members(&[1, 2, 3], &[])), None);
    }

    #[test]
    fn an_eighth_node_gets_the_log_and_does_not_vote() {
        let all: Vec<_> = (1..=8).map(|n| (n, M)).collect();
        let state = state(&all);
        assert_eq!(next(&state, &members(&[1, 2, 3, 4, 5, 6, 7], &[(8, 1_000)])), None);
        // Until one of the seven goes.
        let voters = (2..=8).map(node).collect();
        let mut after = members(&[2, 3, 4, 5, 6, 7], &[(8, 1_000)]);
        after.me = Some(node(2));
        let mut state = state;
        state.nodes.remove(&node(1));
        assert_eq!(next(&state, &after), Some(Step::SetVoters(voters)));
    }

    #[test]
    fn who_was_evicted_is_taken_out_before_anybody_comes_in() {
        let state = state(&[(1, M), (3, M), (4, M)]);
        assert_eq!(next(&state, &members(&[1, 2, 3], &[])), Some(Step::Remove(node(2))));
        assert_eq!(next(&state, &members(&[1, 3], &[(2, 0)])), Some(Step::Remove(node(2))));
        assert_eq!(next(&state, &members(&[1, 3], &[])), Some(Step::AddLearner(node(4))));
    }

    #[test]
    fn who_leaves_is_taken_out_and_then_told_of() {
        let state = state(&[(1, M), (2, L)]);
        assert_eq!(next(&state, &members(&[1, 2], &[])), Some(Step::Remove(node(2))));
        assert_eq!(next(&state, &members(&[1], &[])), Some(Step::Gone(node(2))));
    }

    #[test]
    fn a_leader_that_leaves_hands_over_first() {
        let state = state(&[(1, L), (2, M), (3, M)]);
        let mut here = members(&[1, 2, 3], &[]);
        here.followers.insert(node(2), 400);
        assert_eq!(next(&state, &here), Some(Step::Transfer(node(3))));
        // The only voter makes another one first.
        let alone = members(&[1], &[(2, 1_000), (3, 10)]);
        let voters = BTreeSet::from([node(1), node(2)]);
        assert_eq!(next(&state, &alone), Some(Step::SetVoters(voters)));
    }
}
