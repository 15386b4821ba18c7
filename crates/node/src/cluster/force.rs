//! Forcing the quorum: what must hold before, and what is decided (docs/decisions/0013).
//!
//! ```text
//!   nobody leads --> each node is named lost, and is silent everywhere --> this node has the newest
//!               \   or answers, and knows of no leader either         /   log of those that answer
//!                +--> what does not hold is said, and nothing is done
//! ```
//!
//! It is decided here, by the node that is asked, and done at its next start, before a replica runs
//! on the log ([`cluster::raft::Forcing`]).

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use api::ApiError;
use api::ErrorKind;
use api::cluster::ClusterForceBody;
use api::cluster::ClusterForceView;
use cluster::detect::Verdict;
use cluster::raft::Forcing;
use cluster::raft::Members;
use cluster::raft::Position;
use futures::future::join_all;
use model::Actor;
use model::ClusterState;
use model::Command;
use model::Membership;
use model::Name;
use model::NodeId;
use model::Proposal;
use model::Refused;
use peer::Method;

use crate::app::App;
use crate::app::new_uuid;
use crate::app::now;
use crate::cluster::status::OwnStatus;

/// How long a node may take to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);

/// For how long nobody must have led: elections take a second or two, and end by themselves.
const WITHOUT_LEADER: Duration = Duration::from_secs(10);

/// What is known of another node when the decision is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) name: Name,
    /// It is named as lost.
    pub(crate) lost: bool,
    /// What it answered, if it did.
    pub(crate) answer: Option<Answer>,
    /// What its heartbeats say, on networks and volumes.
    pub(crate) verdict: Verdict,
}

/// The part of an answer that matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) leader: Option<NodeId>,
    pub(crate) term: u64,
    pub(crate) last: Option<Position>,
}

/// This node's own part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Own {
    pub(crate) node: NodeId,
    pub(crate) name: Name,
    pub(crate) term: u64,
    pub(crate) last: Position,
    pub(crate) members: Members,
}

/// What is left when all holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) term: u64,
    pub(crate) voters: BTreeSet<NodeId>,
    pub(crate) learners: BTreeSet<NodeId>,
}

fn conflict(code: &str, message: String, hint: impl Into<String>) -> ApiError {
    ApiError::new(ErrorKind::Conflict, code, message, hint)
}

/// Whether it may be done, by what is known of the others (pure).
///
/// # Errors
/// What does not hold, with a next step.
pub(crate) fn check(own: &Own, others: &BTreeMap<NodeId, Found>) -> Result<Left, ApiError> {
    if !others.values().any(|other| other.lost) {
        return Err(conflict(
            "nothing_lost",
            "no node is named that is lost".to_owned(),
            "name each node that is off for good: --lost NODE",
        ));
    }
    let mut left =
        Left { term: own.term, voters: BTreeSet::from([own.node]), learners: BTreeSet::new() };
    let voted = own.members.all_voters();
    for (id, other) in others {
        if other.lost {
            check_lost(other)?;
            continue;
        }
        left.term = left.term.max(check_here(own, *id, other)?.term);
        let set = match voted.contains(id) {
            true => &mut left.voters,
            false => &mut left.learners,
        };
        // A host that is just joining has no log to go on with.
        if own.members.nodes.contains(id) {
            set.insert(*id);
        }
    }
    Ok(left)
}

/// Whether a node that is named is silent everywhere.
fn check_lost(other: &Found) -> Result<(), ApiError> {
    let name = &other.name;
    match (other.answer, other.verdict) {
        (Some(_), _) | (_, Verdict::Alive) => Err(conflict(
            "not_lost",
            format!("{name} is not lost: it answers"),
            format!(
                "switch it off, or do not name it: it counts for the quorum; see muster node show \
                 {name}"
            ),
        )),
        (None, Verdict::Isolated { .. }) => Err(conflict(
            "not_lost",
            format!("{name} is not lost: it is cut off, and still writes to a volume"),
            format!(
                "switch {name} off, and try again when its sign of life on the volume has ended"
            ),
        )),
        (None, Verdict::Silent { .. }) => Err(conflict(
            "not_sure",
            format!("{name} was heard a moment ago"),
            "wait some seconds and try again",
        )),
        (None, Verdict::Dead { .. }) => Ok(()),
    }
}

/// Whether a node that is not named is there, without a leader and without anything newer.
fn check_here(own: &Own, id: NodeId, other: &Found) -> Result<Answer, ApiError> {
    let name = &other.name;
    match other.answer {
        None => Err(conflict(
            "not_named",
            format!("{name} does not answer and is not named as lost"),
            format!(
                "bring it back, which may be all that is needed; or if it is off for good: --lost \
                 {name}"
            ),
        )),
        Some(Answer { leader: Some(_), .. }) => Err(conflict(
            "quorum_there",
            format!("{name} knows of a leader: the cluster works there"),
            "find out why this node does not reach it: muster cluster status on both",
        )),
        Some(answer) if answer.last.is_none() && own.members.nodes.contains(&id) => Err(conflict(
            "log_unknown",
            format!("{name} does not say how far its log is"),
            "give it the same version of Muster, and try again",
        )),
        Some(answer) if answer.last > Some(own.last) => Err(conflict(
            "newer_elsewhere",
            format!("{name} knows of changes that {} does not have", own.name),
            format!("run the same command on {name}"),
        )),
        Some(answer) => Ok(answer),
    }
}

/// Looks at everything, decides, and keeps the decision for the next start of the daemon.
///
/// # Errors
/// What does not hold; nothing is done then.
pub(crate) async fn order(
    app: &App,
    actor: &Actor,
    body: &ClusterForceBody,
) -> Result<ClusterForceView, ApiError> {
    let state = app.truth.state();
    let cluster = state.cluster.clone().ok_or(Refused::NoCluster)?;
    if app.peers.gone().borrow().is_some() || state.gone.contains_key(&app.node) {
        return Err(conflict(
            "gone",
            "this host is no node of the cluster any more".to_owned(),
            "run this on a node that is: muster cluster status",
        ));
    }
    if body.confirm != cluster.name.as_str() {
        return Err(conflict(
            "not_confirmed",
            "the name that was typed is not that of the cluster".to_owned(),
            format!("type {} to go on", cluster.name),
        ));
    }
    let lost: BTreeSet<NodeId> = body
        .lost
        .iter()
        .map(|name| Ok(state.find_node(name)?.id))
        .collect::<Result<_, Refused>>()?;
    if lost.contains(&app.node) {
        return Err(conflict(
            "own_node",
            "this is the node that was asked: it is not lost".to_owned(),
            "name the nodes that are off for good",
        ));
    }
    let own = own(app)?;
    let others = look(app, &state, &lost).await;
    // Once more: a leader may have been found while the others were asked.
    without_leader(app)?;
    let left = check(&own, &others)?;
    let names = |wanted: bool| {
        let named = others.values().filter(|other| other.lost == wanted);
        named.map(|other| other.name.clone()).collect::<Vec<_>>()
    };
    let mut stay = names(false);
    stay.push(app.node_name.clone());
    stay.sort();
    let view = ClusterForceView { node: app.node, lost: names(true), stay };
    let witness = NodeId::new(new_uuid());
    let command = Command::QuorumForced { lost, word: new_uuid(), witness };
    let forcing = Forcing {
        after: own.last,
        term: left.term,
        voters: left.voters,
        learners: left.learners,
        proposal: Proposal { at: now(), actor: actor.clone(), command },
    };
    app.peers.dir().keep_forcing(&forcing).map_err(|error| {
        let hint = "free some space and try again";
        ApiError::new(ErrorKind::Failed, "failed", format!("it cannot be kept: {error}"), hint)
    })?;
    tracing::error!(lost = ?view.lost, "the quorum is forced by request; the daemon starts anew");
    app.restart_soon();
    Ok(view)
}

fn without_leader(app: &App) -> Result<(), ApiError> {
    let metrics = app.truth.metrics().borrow().clone();
    if metrics.leader.is_some() {
        return Err(conflict(
            "quorum_there",
            "there is a majority, and the cluster takes changes".to_owned(),
            "a node that is lost for good is evicted: muster cluster evict NODE",
        ));
    }
    match metrics.without_leader_since {
        Some(since) if since.elapsed() >= WITHOUT_LEADER => Ok(()),
        _ => Err(conflict(
            "not_sure",
            "the nodes may still agree on a leader".to_owned(),
            "wait ten seconds and try again",
        )),
    }
}

fn own(app: &App) -> Result<Own, ApiError> {
    without_leader(app)?;
    let metrics = app.truth.metrics().borrow().clone();
    let members = metrics.members.members;
    let last = metrics.last.filter(|_| members.nodes.contains(&app.node)).ok_or_else(|| {
        let hint = "run this on another node that is left";
        conflict("no_log", "this node has not been brought in yet".to_owned(), hint)
    })?;
    let (node, name) = (app.node, app.node_name.clone());
    Ok(Own { node, name, term: metrics.term, last, members })
}

/// Asks all other nodes that were not given up before.
async fn look(app: &App, state: &ClusterState, lost: &BTreeSet<NodeId>) -> BTreeMap<NodeId, Found> {
    let others = state
        .nodes
        .values()
        .filter(|node| node.id != app.node && node.membership != Membership::Lost);
    let asked = others.map(|record| async move {
        let id = record.id;
        let said = app.peers.ask::<_, OwnStatus>(id, Method::STATUS, &(), ASK_TIMEOUT).await.ok();
        let answer =
            said.map(|said| Answer { leader: said.leader, term: said.term, last: said.last });
        let verdict = app.ha.verdict(id);
        (id, Found { name: record.name.clone(), lost: lost.contains(&id), answer, verdict })
    });
    join_all(asked).await.into_iter().collect()
}

#[cfg(test)]
#[path = "force_tests.rs"]
mod tests;
