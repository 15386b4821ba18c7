//! A host that is no node yet looks at a cluster, with a join token that is not used up by it.
//!
//! The secret goes only to a node that the token's CA vouches for, as at a join. A member asks the
//! others for their hosts and tells; the host compares itself with them by the same rules. It has no
//! key for probes, so it measures connections to the peer port.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::ApiError;
use api::ErrorKind;
use api::validate::Check;
use api::validate::FindingView;
use api::validate::Subject;
use api::validate::Verdict;
use bytes::Bytes;
use futures::future::join_all;
use model::ClusterState;
use model::NodeId;
use model::UnixMillis;
use peer::Clock;
use peer::JoinToken;
use peer::Refusal;
use peer::RefusalCode;
use peer::wire::Dialects;
use serde::Deserialize;
use serde::Serialize;
use tokio::time::Instant;

use super::Wish;
use super::ask;
use super::collect;
use super::facts;
use super::facts::Answer;
use super::facts::HostFacts;
use super::facts::Part;
use super::measure;
use super::rules::ClockSample;
use super::rules::NodePicture;
use super::rules::Picture;
use crate::app::App;
use crate::app::now;

/// What can be said of a host before it joins.
pub(super) const CHECKS: [Check; 7] = [
    Check::Nodes,
    Check::Clock,
    Check::Cpu,
    Check::Versions,
    Check::Networks,
    Check::Latency,
    Check::Disks,
];

/// How long a member waits for the others: less than a stranger's call may take.
const HOSTS_LIMIT: Duration = Duration::from_secs(12);

/// Members that are heeded.
const MEMBERS_MAX: usize = 64;

/// Addresses of a member that are tried.
const ADDRESSES_MAX: usize = 16;

/// What a newcomer asks.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Question {
    version: u16,
    /// The time alone: the answer comes at once.
    clock: bool,
}

/// What it is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Told {
    /// Who answers.
    by: NodeId,
    at: UnixMillis,
    #[serde(default)]
    members: Vec<ToldMember>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct ToldMember {
    id: NodeId,
    name: String,
    addresses: Vec<SocketAddr>,
    host: Result<Box<HostFacts>, String>,
}

/// Whether this host could join at all.
///
/// # Errors
/// It is a node of a cluster.
pub(super) fn check(state: &ClusterState) -> Result<(), ApiError> {
    match &state.cluster {
        None => Ok(()),
        Some(cluster) => Err(ApiError::new(
            ErrorKind::Conflict,
            "in_cluster",
            format!("this host is a node of the cluster {} already", cluster.name),
            "validate that one: muster cluster validate",
        )),
    }
}

/// A member answers a host whose secret was found to be good.
///
/// # Errors
/// In words for that host.
pub(crate) async fn serve(app: &Arc<App>, question: &serde_json::Value) -> Result<Bytes, Refusal> {
    let malformed = |error: serde_json::Error| {
        Refusal::new(RefusalCode::Malformed, error.to_string(), "use one version of Muster")
    };
    let question = Question::deserialize(question).map_err(malformed)?;
    if question.version != facts::VERSION {
        let message = format!("this cluster validates by version {}", facts::VERSION);
        return Err(Refusal::new(RefusalCode::Refused, message, "use one version of Muster"));
    }
    let mut members = Vec::new();
    if !question.clock {
        let _permit = app.validations.questions.try_acquire().map_err(|_| {
            let message = "this node answers other validations";
            Refusal::new(RefusalCode::Busy, message, "validate again in a minute")
        })?;
        let state = app.truth.state();
        let asked = state.nodes.values().map(|record| async move {
            let answer = ask::question(app, record.id, Part::Host, HOSTS_LIMIT).await;
            ToldMember {
                id: record.id,
                name: record.name.to_string(),
                addresses: record.facts.addresses.clone(),
                host: answer.and_then(|answer| match answer {
                    Answer::Host(host) => Ok(host),
                    _ => Err("its answer is of another kind".to_owned()),
                }),
            }
        });
        members = join_all(asked).await;
    }
    serde_json::to_vec(&Told { by: app.node, at: now(), members })
        .map(Bytes::from)
        .map_err(malformed)
}

async fn ask(token: &JoinToken, clock: bool) -> Result<Told, String> {
    let question = Question { version: facts::VERSION, clock };
    let question = serde_json::to_value(question).map_err(|error| error.to_string())?;
    let version = (Dialects::default(), env!("CARGO_PKG_VERSION"));
    let answer = peer::look(token, question, &Clock::host(), version).await;
    let answer = answer.map_err(|error| error.to_string())?;
    serde_json::from_slice(&answer).map_err(|error| format!("the answer cannot be read: {error}"))
}

/// This host beside the members, and what was found on the way.
pub(super) async fn look(
    app: &Arc<App>,
    token: &JoinToken,
    wish: &Wish,
) -> (Picture, Vec<FindingView>) {
    app.validations.step("asking the cluster", 0, 3);
    let told = match ask(token, false).await {
        Ok(told) => told,
        Err(why) => {
            let found = FindingView {
                check: Check::Nodes,
                subject: Subject::Cluster,
                verdict: Verdict::Fail,
                text: format!("no member that the token names tells of the cluster: {why}"),
                advice: "see that the peer port of the members is open to this host, and make a \
                         new token there: muster cluster token"
                    .to_owned(),
                measured: None,
            };
            return (
                Picture { nodes: vec![own(app, None, wish).await], ..Picture::default() },
                vec![found],
            );
        }
    };
    app.validations.step("looking at this host", 1, 3);
    let clock = clock(token).await;
    let mut me = own(app, clock.map(|(_, sample)| sample), wish).await;
    app.validations.step("measuring networks", 2, 3);
    let addresses = app.config.peer_addresses();
    let mut members = told.members;
    members.truncate(MEMBERS_MAX);
    if wish.checks.contains(&Check::Latency) {
        let mut links = Vec::new();
        for member in &members {
            for target in member.addresses.iter().take(ADDRESSES_MAX) {
                links.push(measure::connect(member.id, *target, &addresses).await);
            }
        }
        me.links = Some(Ok(links));
    }
    let mut nodes: Vec<NodePicture> = members.into_iter().map(member).collect();
    for node in nodes.iter_mut().filter(|node| clock.is_some_and(|(by, _)| by == node.id)) {
        // Who answers is the measure.
        node.clock = Some(Ok(ClockSample { ahead_ms: 0, round_trip_ms: 0 }));
    }
    nodes.push(me);
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    (Picture { nodes, ..Picture::default() }, Vec::new())
}

/// How far this host's clock is ahead of the member that answers.
async fn clock(token: &JoinToken) -> Option<(NodeId, ClockSample)> {
    let millis = |at: UnixMillis| i64::try_from(at.get()).unwrap_or(i64::MAX);
    let (before, sent) = (now(), Instant::now());
    let told = ask(token, true).await.ok()?;
    let round_trip_ms = i64::try_from(sent.elapsed().as_millis()).unwrap_or(i64::MAX);
    let middle = millis(before).saturating_add(round_trip_ms / 2);
    let ahead_ms = middle.saturating_sub(millis(told.at));
    Some((told.by, ClockSample { ahead_ms, round_trip_ms }))
}

fn bare(id: NodeId, name: String, addresses: &[SocketAddr]) -> NodePicture {
    NodePicture {
        id,
        name,
        addresses: addresses.iter().map(SocketAddr::ip).collect(),
        certainty: None,
        fenced: false,
        clock: None,
        host: None,
        disks: None,
        links: None,
        fence: None,
        witness: None,
    }
}

fn member(mut told: ToldMember) -> NodePicture {
    told.addresses.truncate(ADDRESSES_MAX);
    told.name = told.name.chars().take(100).collect();
    let mut node = bare(told.id, told.name, &told.addresses);
    node.host = Some(told.host.map(|host| match Answer::Host(host).held_to_limits() {
        Answer::Host(host) => *host,
        // It is of the kind that went in.
        _ => HostFacts::default(),
    }));
    node
}

async fn own(app: &Arc<App>, clock: Option<ClockSample>, wish: &Wish) -> NodePicture {
    let addresses = app.config.peer_addresses();
    let mut me = bare(app.node, app.node_name.to_string(), &addresses);
    let mut host = collect::host_facts(app).await;
    host.addresses = addresses.into_iter().map(collect::address).collect();
    me.host = Some(Ok(host));
    me.clock = clock.map(Ok);
    if wish.checks.contains(&Check::Disks) {
        me.disks = Some(Ok(collect::disks(app).await));
    }
    me
}
