//! The leader keeps the members of the log as the state says: who joined becomes a learner, then a
//! voter; who left or was evicted is taken out; who is lost loses its vote.
//!
//! [`cluster::quorum`] decides; here stands what it is told, and the steps are carried out, one at a
//! time: changes of the members are the most delicate thing a log does.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cluster::quorum;
use cluster::quorum::Change;
use cluster::quorum::Presence;
use cluster::quorum::Seat;
use cluster::quorum::View;
use cluster::quorum::next_change;
use cluster::raft::Members;
use cluster::raft::Metrics;
use cluster::raft::Replica;
use model::Actor;
use model::ClusterState;
use model::Command;
use model::Membership;
use model::NodeId;
use model::Proposal;
use tokio::time::Instant;
use uuid::Uuid;

use crate::app::now;
use crate::cluster::Witness;
use crate::cluster::witness;
use crate::cluster::witness::Condition;
use crate::truth::Truth;

/// How many entries a learner may be behind when it becomes a voter: it has the snapshot, and
/// catches up in one message.
const LAG_MAX: u64 = 64;

/// A member that has not answered the leader for so long is silent: some heartbeats, and more than
/// an election takes.
const SILENT_AFTER: Duration = Duration::from_secs(2);

/// How often it is looked, also when nothing changes: silence is no event, and a step may have
/// failed.
const EVERY: Duration = Duration::from_secs(1);

/// How long one step may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// The next change of the members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Of the log.
    Log(Change),
    /// This node is out of the log; the state shall say so.
    Gone(NodeId),
    /// So is this witness.
    WitnessGone(NodeId),
    /// The log counts without what this node has lost; the state shall say so.
    Cleared(NodeId, Uuid),
}

/// What the leader knows of the log's members.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) me: NodeId,
    pub(crate) members: Members,
    /// Those of the last membership that is committed for certain.
    pub(crate) committed: BTreeSet<NodeId>,
    pub(crate) log_next: u64,
    pub(crate) followers: BTreeMap<NodeId, u64>,
    /// For how long each member has been silent; absent if it was never heard of.
    pub(crate) silent: BTreeMap<NodeId, Duration>,
    /// For how long this node has led.
    pub(crate) led: Duration,
    /// After how much silence a loss is confirmed.
    pub(crate) lost_after: Duration,
    /// Whether the witness answers.
    pub(crate) witness: bool,
}

impl Seen {
    fn new(metrics: &Metrics, led_since: Instant, lost_after: Duration, witness: bool) -> Self {
        let silent = metrics.heard.iter().map(|(node, at)| (*node, at.elapsed()));
        Self {
            me: metrics.node,
            members: metrics.members.members.clone(),
            committed: metrics.members_applied.members.nodes.clone(),
            log_next: metrics.log_next,
            followers: metrics.followers.clone(),
            silent: silent.collect(),
            led: led_since.elapsed(),
            lost_after,
            witness,
        }
    }

    /// Whether a node takes part; `fenced` is one that is on record as being off.
    fn presence(&self, node: NodeId, fenced: bool) -> Presence {
        // Who gets no log yet cannot have answered.
        if node == self.me || !self.members.nodes.contains(&node) {
            return Presence::Here;
        }
        let silent = self.silent.get(&node).copied();
        match silent {
            Some(silent) if silent < SILENT_AFTER => Presence::Here,
            // A leader that is new has not waited for anybody yet.
            silent => match silent.unwrap_or(self.led).min(self.led) >= self.lost_after || fenced {
                true => Presence::Lost,
                false => Presence::Silent,
            },
        }
    }

    fn caught_up(&self, node: NodeId) -> bool {
        node == self.me || self.followers.get(&node).is_some_and(|at| at + LAG_MAX >= self.log_next)
    }

    fn votes(&self, node: NodeId) -> bool {
        self.members.voters.iter().any(|set| set.contains(&node))
    }
}

/// What the quorum's rules are told.
fn view(state: &ClusterState, seen: &Seen) -> View {
    let mut seats = BTreeMap::new();
    for record in state.nodes.values() {
        if record.membership == Membership::Lost {
            continue;
        }
        // Who has lost its log is taken out of it in the same way, and comes back when it is cleared.
        let leaving = record.membership == Membership::Leaving || record.rebuild.is_some();
        // Who leaves is no member for the rules, once it has no vote to answer with any more.
        if leaving && record.id != seen.me && !seen.votes(record.id) {
            continue;
        }
        let presence = seen.presence(record.id, record.fenced.is_some());
        let seat = Seat { presence, caught_up: seen.caught_up(record.id), leaving };
        if record.key.is_some() || record.id == seen.me {
            seats.insert(record.id, seat);
        }
    }
    // A leader that leaves stays until there is somebody to hand over to.
    let heir = |(id, seat): (&NodeId, &Seat)| {
        *id != seen.me && seen.votes(*id) && seat.presence == Presence::Here && seat.caught_up
    };
    if !seats.iter().any(heir)
        && let Some(own) = seats.get_mut(&seen.me)
    {
        own.leaving = false;
    }
    let witness = witness_of(state, seen, &seats);
    // With a witness an even number is made odd by it.
    if witness.is_none() {
        keep_odd(&mut seats, seen);
    }
    View { leader: seen.me, seats, members: seen.members.clone(), witness }
}

/// The witness for the rules. One that is being removed is none for them, unless a voter is away:
/// then its vote may be the one that is needed to go on, and the removal waits until that voter is
/// back or lost.
fn witness_of(
    state: &ClusterState,
    seen: &Seen,
    seats: &BTreeMap<NodeId, Seat>,
) -> Option<quorum::Witness> {
    let record = state.witness.as_ref()?;
    let away = || {
        let mut voters = seats.iter().filter(|(id, _)| seen.votes(**id));
        voters.any(|(_, seat)| seat.presence != Presence::Here)
    };
    let used = !record.retired || (seen.votes(record.id) && away());
    used.then_some(quorum::Witness { id: record.id, healthy: seen.witness })
}

/// Of the lost voters one may stay where an even number would be left: four voters must agree by
/// three, as five must, and if the fifth comes back it counts.
fn keep_odd(seats: &mut BTreeMap<NodeId, Seat>, seen: &Seen) {
    let stay = seats.iter().filter(|(_, seat)| !seat.leaving);
    let left = stay.clone().filter(|(id, seat)| match seat.presence {
        Presence::Here => seat.caught_up || seen.votes(**id),
        Presence::Silent => seen.votes(**id),
        Presence::Lost => false,
    });
    let left = left.count();
    // The one that was heard of last is the likeliest to come back.
    let last = stay
        .filter(|(id, seat)| seat.presence == Presence::Lost && seen.votes(**id))
        .map(|(id, _)| *id)
        .min_by_key(|id| seen.silent.get(id).copied().unwrap_or(Duration::MAX));
    if left.is_multiple_of(2)
        && let Some(seat) = last.and_then(|last| seats.get_mut(&last))
    {
        seat.presence = Presence::Silent;
    }
}

/// What to do next, if anything.
pub(crate) fn next(state: &ClusterState, seen: &Seen) -> Option<Step> {
    // A host by itself has nobody to take in or out.
    state.cluster.as_ref()?;
    let gone = state.nodes.values().find(|node| {
        node.membership == Membership::Leaving && !seen.members.nodes.contains(&node.id)
    });
    if let Some(gone) = gone {
        return Some(Step::Gone(gone.id));
    }
    // Both: the last membership here may not be committed, and a later leader may have one with it.
    let out = |id| !seen.members.nodes.contains(id) && !seen.committed.contains(id);
    let mut damaged = state.nodes.values().filter(|node| node.membership == Membership::Member);
    if let Some((id, rebuild)) = damaged
        .find_map(|node| node.rebuild.as_ref().filter(|_| out(&node.id)).map(|it| (node.id, it)))
    {
        return Some(Step::Cleared(id, rebuild.word));
    }
    if let Some(record) = state.witness.as_ref().filter(|record| record.retired)
        && !seen.members.nodes.contains(&record.id)
    {
        return Some(Step::WitnessGone(record.id));
    }
    next_change(&view(state, seen)).map(Step::Log)
}

/// Carries steps out while this node leads, until the daemon ends.
pub(crate) async fn follow(
    replica: Replica,
    truth: Arc<dyn Truth>,
    witness: Witness,
    lost_after: Duration,
) {
    let mut metrics = replica.metrics();
    let mut states = truth.watch();
    let mut led_since = None;
    loop {
        let state = states.borrow_and_update().clone();
        let answers = |id| witness.condition(id) == Condition::Good;
        let witness = state.witness.as_ref().is_some_and(|record| answers(record.id));
        let seen = {
            let metrics = metrics.borrow_and_update();
            led_since = match led_since {
                _ if !metrics.leads() => None,
                Some(since) => Some(since),
                None => Some(Instant::now()),
            };
            led_since.map(|since| Seen::new(&metrics, since, lost_after, witness))
        };
        if let Some(seen) = seen
            && let Some(step) = next(&state, &seen)
            && let Err(problem) = carry_out(&replica, &*truth, &state, step).await
        {
            tracing::warn!(problem, "the members of the log could not be changed");
        }
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            changed = metrics.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

async fn carry_out(
    replica: &Replica,
    truth: &dyn Truth,
    state: &ClusterState,
    step: Step,
) -> Result<(), String> {
    tracing::info!(?step, "the members of the log change");
    let done = match step.clone() {
        Step::Log(Change::AddLearner(node)) => replica.add_learner(node, STEP_TIMEOUT).await,
        Step::Log(Change::SetVoters(voters)) => replica.set_voters(voters, STEP_TIMEOUT).await,
        Step::Log(Change::Remove(node)) => replica.remove(node, STEP_TIMEOUT).await,
        Step::Log(Change::Transfer(to)) => replica.transfer(to, STEP_TIMEOUT).await,
        Step::WitnessGone(id) => return witness_gone(truth, state, id, replica.node()).await,
        Step::Gone(node) => return tell(truth, state, node, Command::NodeGone { node }).await,
        Step::Cleared(node, word) => {
            return tell(truth, state, node, Command::NodeLogCleared { node, word }).await;
        }
    };
    done.map_err(|error| format!("{step:?}: {error}"))
}

/// Says in the state what has been done for a node.
async fn tell(
    truth: &dyn Truth,
    state: &ClusterState,
    node: NodeId,
    command: Command,
) -> Result<(), String> {
    let by = state.nodes.get(&node).map_or_else(|| node.to_string(), |it| it.name.to_string());
    let actor = Actor::new(&format!("node {by}"));
    let told = truth.propose(Proposal { at: now(), actor, command }).await;
    told.map(drop).map_err(|error| error.to_string())
}

/// Says that the witness is out of the log, and takes its record away.
async fn witness_gone(
    truth: &dyn Truth,
    state: &ClusterState,
    id: NodeId,
    me: NodeId,
) -> Result<(), String> {
    let Some(record) = state.witness.clone() else { return Ok(()) };
    let (actor, command) = (Actor::new(&record.by), Command::WitnessGone { witness: id });
    let gone = truth.propose(Proposal { at: now(), actor, command }).await;
    gone.map_err(|error| error.to_string())?;
    // Best effort: a record of an id that never comes again harms nobody.
    tokio::spawn(async move {
        if let Ok(store) = witness::open(&record.place, id, me) {
            let removed = tokio::time::timeout(STEP_TIMEOUT, store.remove()).await;
            if !matches!(removed, Ok(Ok(()))) {
                tracing::warn!(place = store.place(), "the record of the old witness stays there");
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use model::ClusterId;
    use model::ClusterRecord;
    use model::NodeRecord;
    use model::SecretText;
    use model::UnixMillis;
    use model::WitnessPlace;
    use model::WitnessRecord;

    use super::*;

    const LOST_AFTER: Duration = Duration::from_secs(30);

    const NOW: Duration = Duration::from_millis(100);

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

    fn set(nodes: &[u128]) -> BTreeSet<NodeId> {
        nodes.iter().map(|n| node(*n)).collect()
    }

    /// The first voter leads, and all have just answered.
    fn seen(voters: &[u128], learners: &[(u128, u64)]) -> Seen {
        let all = || voters.iter().copied().chain(learners.iter().map(|(n, _)| *n));
        let mut followers: BTreeMap<_, _> = voters.iter().map(|n| (node(*n), 1_000)).collect();
        followers.extend(learners.iter().map(|(n, at)| (node(*n), *at)));
        Seen {
            me: node(voters[0]),
            members: Members { voters: vec![set(voters)], nodes: all().map(node).collect() },
            committed: all().map(node).collect(),
            log_next: 1_000,
            followers,
            silent: all().map(|n| (node(n), NOW)).collect(),
            led: LOST_AFTER * 10,
            lost_after: LOST_AFTER,
            witness: true,
        }
    }

    fn silent(mut seen: Seen, who: &[u128], time: Duration) -> Seen {
        seen.silent.extend(who.iter().map(|n| (node(*n), time)));
        seen
    }

    fn log(change: Change) -> Option<Step> {
        Some(Step::Log(change))
    }

    fn voters(nodes: &[u128]) -> Option<Step> {
        log(Change::SetVoters(set(nodes)))
    }

    use Membership::Leaving as L;
    use Membership::Member as M;

    #[test]
    fn a_host_by_itself_changes_nothing() {
        let mut alone = state(&[(1, M), (2, M)]);
        alone.cluster = None;
        assert_eq!(next(&alone, &seen(&[1], &[])), None);
    }

    #[test]
    fn who_joined_learns_and_votes_when_it_has_caught_up() {
        let state = state(&[(1, M), (2, M), (3, M)]);
        assert_eq!(next(&state, &seen(&[1], &[])), log(Change::AddLearner(node(2))));
        let one = seen(&[1], &[(2, 10)]);
        assert_eq!(next(&state, &one), log(Change::AddLearner(node(3))));
        assert_eq!(next(&state, &seen(&[1], &[(2, 10), (3, 20)])), None);
        assert_eq!(next(&state, &seen(&[1], &[(2, 999), (3, 999)])), voters(&[1, 2, 3]));
        assert_eq!(next(&state, &seen(&[1, 2, 3], &[])), None);
    }

    #[test]
    fn an_eighth_node_gets_the_log_and_does_not_vote() {
        let all: Vec<_> = (1..=8).map(|n| (n, M)).collect();
        let mut state = state(&all);
        assert_eq!(next(&state, &seen(&[1, 2, 3, 4, 5, 6, 7], &[(8, 1_000)])), None);
        // Until one of the seven goes.
        state.nodes.remove(&node(1));
        let after = seen(&[2, 3, 4, 5, 6, 7], &[(8, 1_000)]);
        assert_eq!(next(&state, &after), voters(&[2, 3, 4, 5, 6, 7, 8]));
    }

    #[test]
    fn who_was_evicted_is_taken_out() {
        let state = state(&[(1, M), (3, M)]);
        assert_eq!(next(&state, &seen(&[1, 2, 3], &[])), voters(&[1, 3]));
        assert_eq!(next(&state, &seen(&[1, 3], &[(2, 0)])), log(Change::Remove(node(2))));
        // The leader itself.
        let other = seen(&[2, 1, 3], &[]);
        assert_eq!(next(&state, &other), log(Change::Transfer(node(1))));
    }

    #[test]
    fn who_leaves_is_taken_out_and_then_told_of() {
        let state = state(&[(1, M), (2, L)]);
        assert_eq!(next(&state, &seen(&[1, 2], &[])), voters(&[1]));
        assert_eq!(next(&state, &seen(&[1], &[(2, 1_000)])), log(Change::Remove(node(2))));
        assert_eq!(next(&state, &seen(&[1], &[])), Some(Step::Gone(node(2))));
    }

    #[test]
    fn who_has_lost_its_log_is_taken_out_before_it_may_begin_a_new_one() {
        let word = Uuid::from_u128(7);
        let mut state = state(&[(1, M), (2, M), (3, M)]);
        let mut damaged = (**state.nodes.get(&node(3)).unwrap()).clone();
        let problem = "log/7: torn".to_owned();
        damaged.rebuild = Some(model::Rebuild { word, since: UnixMillis::new(1), problem });
        state.nodes.insert(node(3), Arc::new(damaged));
        let away = |seen| silent(seen, &[3], NOW * 30);
        assert_eq!(next(&state, &away(seen(&[1, 2, 3], &[]))), voters(&[1, 2]));
        assert_eq!(next(&state, &away(seen(&[1, 2], &[(3, 900)]))), log(Change::Remove(node(3))));
        // The entry without it is in this log, and nobody knows yet whether it stays.
        let mut unsure = seen(&[1, 2], &[]);
        unsure.committed.insert(node(3));
        assert_eq!(next(&state, &unsure), None);
        assert_eq!(next(&state, &seen(&[1, 2], &[])), Some(Step::Cleared(node(3), word)));
        // Without the second one there is no majority for it.
        assert_eq!(next(&state, &silent(seen(&[1, 2, 3], &[]), &[2, 3], NOW * 30)), None);
        // Cleared, it is brought in as any other.
        let mut record = (**state.nodes.get(&node(3)).unwrap()).clone();
        record.rebuild = None;
        state.nodes.insert(node(3), Arc::new(record));
        assert_eq!(next(&state, &seen(&[1, 2], &[])), log(Change::AddLearner(node(3))));
    }

    #[test]
    fn a_leader_that_leaves_hands_over_first() {
        let state = state(&[(1, L), (2, M), (3, M)]);
        let mut here = seen(&[1, 2, 3], &[]);
        here.followers.insert(node(2), 400);
        assert_eq!(next(&state, &here), log(Change::Transfer(node(3))));
        // The only voter makes others first.
        let alone = seen(&[1], &[(2, 1_000), (3, 10)]);
        assert_eq!(next(&state, &alone), voters(&[1, 2]));
    }

    #[test]
    fn who_is_lost_loses_its_vote_where_that_helps() {
        let all: Vec<_> = (1..=5).map(|n| (n, M)).collect();
        let state = state(&all);
        let five = || seen(&[1, 2, 3, 4, 5], &[]);
        let brief = LOST_AFTER - NOW;
        assert_eq!(next(&state, &silent(five(), &[4, 5], brief)), None, "it may be a restart");
        // Four voters need three, as five do.
        assert_eq!(next(&state, &silent(five(), &[5], LOST_AFTER)), None);
        let two = silent(five(), &[4, 5], LOST_AFTER);
        assert_eq!(next(&state, &two), voters(&[1, 2, 3]));
        let three = silent(seen(&[1, 2, 3], &[(4, 5), (5, 5)]), &[3, 4, 5], LOST_AFTER);
        assert_eq!(next(&state, &three), None);
        // A majority that does not answer is not made smaller.
        assert_eq!(next(&state, &silent(five(), &[3, 4, 5], LOST_AFTER)), None);
        // Back, with the log, it votes again.
        let back = silent(seen(&[1, 2, 3], &[(4, 999), (5, 5)]), &[3, 5], LOST_AFTER);
        assert_eq!(next(&state, &back), voters(&[1, 2, 4]));
    }

    /// A pair with the witness 9.
    fn watched(retired: bool) -> ClusterState {
        let mut state = state(&[(1, M), (2, M)]);
        state.witness = Some(Arc::new(WitnessRecord {
            id: node(9),
            place: WitnessPlace::Directory { path: "/srv/witness".to_owned() },
            since: UnixMillis::new(0),
            by: "root".to_owned(),
            retired,
        }));
        state
    }

    #[test]
    fn a_witness_that_answers_votes_with_two_and_rests_when_one_is_lost() {
        let state = watched(false);
        let away = Seen { witness: false, ..seen(&[1, 2], &[]) };
        assert_eq!(next(&state, &away), None, "nobody has reached it yet");
        assert_eq!(next(&state, &seen(&[1, 2], &[])), log(Change::AddLearner(node(9))));
        assert_eq!(next(&state, &seen(&[1, 2], &[(9, 0)])), voters(&[1, 2, 9]));
        let three = || seen(&[1, 2, 9], &[]);
        assert_eq!(next(&state, &three()), None);
        assert_eq!(next(&state, &silent(three(), &[2], LOST_AFTER - NOW)), None);
        assert_eq!(next(&state, &silent(three(), &[2], LOST_AFTER)), voters(&[1]));
        let both = Seen { witness: false, ..silent(three(), &[2], LOST_AFTER) };
        assert_eq!(next(&state, &both), None, "no majority");
        let back = seen(&[1], &[(2, 1_000), (9, 0)]);
        assert_eq!(next(&state, &back), voters(&[1, 2, 9]));
    }

    #[test]
    fn a_witness_that_is_removed_goes_when_its_vote_is_not_needed() {
        let state = watched(true);
        let three = || seen(&[1, 2, 9], &[]);
        let brief = silent(three(), &[2], LOST_AFTER - NOW);
        assert_eq!(next(&state, &brief), None, "with its vote they go on");
        assert_eq!(next(&state, &silent(three(), &[2], LOST_AFTER)), voters(&[1]));
        assert_eq!(next(&state, &three()), voters(&[1, 2]));
        assert_eq!(next(&state, &seen(&[1, 2], &[(9, 0)])), log(Change::Remove(node(9))));
        assert_eq!(next(&state, &seen(&[1, 2], &[])), Some(Step::WitnessGone(node(9))));
    }

    #[test]
    fn a_new_leader_waits_before_it_calls_anybody_lost() {
        let all: Vec<_> = (1..=5).map(|n| (n, M)).collect();
        let state = state(&all);
        let mut new = seen(&[1, 2, 3, 4, 5], &[]);
        new.silent.remove(&node(4));
        new.silent.remove(&node(5));
        new.led = LOST_AFTER - NOW;
        assert_eq!(next(&state, &new), None);
        new.led = LOST_AFTER;
        assert_eq!(next(&state, &new), voters(&[1, 2, 3]));
    }
}
