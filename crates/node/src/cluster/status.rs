//! How the cluster is, gathered from all nodes that answer.

use std::collections::BTreeMap;
use std::time::Duration;

use api::cluster::ClusterNodeView;
use api::cluster::ClusterPart;
use api::cluster::ClusterView;
use cluster::raft::Position;
use futures::future::join_all;
use model::ClusterState;
use model::Gone;
use model::Membership;
use model::NodeId;
use model::NodeRecord;
use model::UnixMillis;
use peer::CallError;
use peer::Method;
use serde::Deserialize;
use serde::Serialize;

use crate::app::App;
use crate::cluster::witness;
use crate::cluster::words;
use crate::truth::Metrics;

/// How long a node may take to say how it is.
const ASK_TIMEOUT: Duration = Duration::from_millis(1_500);

/// What a node says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct OwnStatus {
    pub(crate) node: NodeId,
    pub(crate) term: u64,
    pub(crate) leader: Option<NodeId>,
    /// The last entry of its log, in its state or not.
    #[serde(default)]
    pub(crate) last: Option<Position>,
    pub(crate) applied_next: u64,
    pub(crate) version: String,
    pub(crate) certificate_ends: Option<UnixMillis>,
}

/// Whether this node is out, and how, if that is known.
fn gone_words(app: &App, state: &ClusterState, removed: bool) -> Option<Option<Gone>> {
    let told = *app.peers.gone().borrow();
    let how = state.gone.get(&app.node).map(|gone| gone.how).or(told);
    (removed || how.is_some()).then_some(how)
}

/// How this node is.
pub(crate) fn own(app: &App) -> OwnStatus {
    let metrics = app.truth.metrics();
    let metrics = metrics.borrow();
    OwnStatus {
        node: app.node,
        term: metrics.term,
        leader: metrics.leader,
        last: metrics.last,
        applied_next: metrics.applied_next,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        certificate_ends: app.peers.identity().map(|own| own.facts().not_after),
    }
}

/// What keeps a node from its work, beyond what an administrator wants.
fn problem(record: &NodeRecord, answer: Option<&Result<OwnStatus, CallError>>) -> Option<String> {
    match answer {
        _ if record.rebuild.is_some() => {
            record.rebuild.as_ref().map(|rebuild| format!("its log is lost ({})", rebuild.problem))
        }
        Some(Err(error)) => Some(error.problem()),
        _ if record.membership == Membership::Lost => None,
        _ if record.fenced.is_some() => Some(format!(
            "it was fenced, and takes no VMs until its guard has ended the old ones (if that lasts: \
             muster node fencing {})",
            record.name
        )),
        _ => None,
    }
}

/// How each node is, by name.
fn node_views(
    state: &ClusterState,
    metrics: &Metrics,
    answers: &BTreeMap<NodeId, Result<OwnStatus, CallError>>,
) -> Vec<ClusterNodeView> {
    let newest = answers.values().flatten().map(|answer| answer.applied_next).max().unwrap_or(0);
    let (voters, learners) = (metrics.voters(), metrics.learners());
    let mut nodes: Vec<ClusterNodeView> = state
        .nodes
        .values()
        .map(|record| {
            let answer = answers.get(&record.id);
            let said = answer.and_then(|answer| answer.as_ref().ok());
            let part = match record.membership {
                Membership::Lost => ClusterPart::Lost,
                Membership::Leaving => ClusterPart::Leaving,
                Membership::Member if record.rebuild.is_some() => ClusterPart::Damaged,
                Membership::Member if metrics.leader == Some(record.id) => ClusterPart::Leader,
                Membership::Member if voters.contains(&record.id) => ClusterPart::Voter,
                Membership::Member if learners.contains(&record.id) => ClusterPart::Learner,
                Membership::Member => ClusterPart::Joining,
            };
            ClusterNodeView {
                id: record.id,
                name: record.name.clone(),
                part,
                reachable: said.is_some(),
                behind: said.map(|said| newest.saturating_sub(said.applied_next)),
                addresses: record.facts.addresses.iter().map(ToString::to_string).collect(),
                version: said.map_or(&record.facts.version, |said| &said.version).clone(),
                certificate_ends: said.and_then(|said| said.certificate_ends),
                problem: problem(record, answer),
            }
        })
        .collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    nodes
}

/// Asks all nodes and puts their answers together.
pub(crate) async fn gather(app: &App) -> ClusterView {
    let others = app.truth.state();
    let others = others.nodes.keys().copied().filter(|node| *node != app.node);
    let asked = others.map(|node| async move {
        let answer: Result<OwnStatus, CallError> =
            app.peers.ask(node, Method::STATUS, &(), ASK_TIMEOUT).await;
        (node, answer)
    });
    let mut answers: BTreeMap<NodeId, Result<OwnStatus, CallError>> =
        join_all(asked).await.into_iter().collect();
    answers.insert(app.node, Ok(own(app)));
    // From after the answers: a node that is lost takes its time, and much may be decided meanwhile.
    let state = app.truth.state();
    let metrics = app.truth.metrics().borrow().clone();
    let voters = metrics.voters();
    let nodes = node_views(&state, &metrics, &answers);
    let witness = witness::view(app, &state, &voters);
    let witness_answers =
        |id: &NodeId| witness.as_ref().is_some_and(|it| it.id == *id && it.reachable);
    let answering = voters
        .iter()
        .filter(|id| answers.get(id).is_some_and(Result::is_ok) || witness_answers(id));
    let picture = words::Picture {
        name: state.cluster.as_ref().map(|cluster| cluster.name.to_string()),
        me: app.node_name.to_string(),
        leader: metrics.leader.and_then(|id| Some(state.nodes.get(&id)?.name.to_string())),
        term: metrics.term,
        voters: voters.len(),
        answering: answering.count(),
        nodes: &nodes,
        witness: witness.as_ref(),
        gone: gone_words(app, &state, metrics.removed.is_some()),
    };
    let (health, said) = words::say(&picture);
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let majority = voters.len() / 2 + 1;
    ClusterView {
        id: state.cluster.as_ref().map(|cluster| cluster.id),
        name: state.cluster.as_ref().map(|cluster| cluster.name.clone()),
        created: state.cluster.as_ref().map(|cluster| cluster.created),
        node: app.node,
        health,
        words: said,
        leader: metrics.leader,
        term: metrics.term,
        voters: count(voters.len()),
        majority: count(majority),
        may_lose: count(picture.answering.saturating_sub(majority)),
        nodes,
        witness,
    }
}
