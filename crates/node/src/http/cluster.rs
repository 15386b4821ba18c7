//! The cluster: making it, joining, leaving, tokens, how it is.

use std::time::Duration;

use api::ApiError;
use api::ErrorKind;
use api::cluster::ClusterForceView;
use api::cluster::ClusterJoinView;
use api::cluster::ClusterNodeView;
use api::cluster::ClusterPart;
use api::cluster::ClusterView;
use api::cluster::JoinTokenSecretView;
use api::cluster::JoinTokenView;
use api::endpoint as ep;
use api::endpoint::Nothing;
use api::validate::ValidationView;
use model::ClusterId;
use model::Command;
use model::JoinTokenId;
use model::JoinTokenRecord;
use model::Millis;
use model::NodeFacts;
use model::NodeId;
use model::Refused;
use model::SecretText;
use peer::JoinToken;
use peer::Secret;
use peer::pki::ClusterCa;
use peer::pki::Identity;
use peer::pki::PkiError;

use crate::app::App;
use crate::app::new_uuid;
use crate::app::now;
use crate::cluster::Place;
use crate::cluster::force;
use crate::cluster::join;
use crate::cluster::leave;
use crate::cluster::status;
use crate::http::Call;
use crate::http::Mounts;
use crate::http::bad_request;

/// How long a join token is valid if nothing is said: time to walk to the other host.
const TOKEN_SECS: u64 = 3_600;

/// The longest life of a join token: a rollout of many hosts.
const TOKEN_SECS_MAX: u64 = 7 * 86_400;

/// Hosts that a join token takes in if nothing is said.
const TOKEN_USES: u32 = 64;

/// How long a caller waits until this node is out of the cluster.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) fn mount(mounts: &mut Mounts) {
    mounts.json::<ep::ClusterShow, _, _>(show);
    mounts.json::<ep::ClusterCreate, _, _>(create);
    mounts.json::<ep::ClusterJoin, _, _>(join);
    mounts.json::<ep::ClusterLeave, _, _>(leave);
    mounts.json::<ep::ClusterForce, _, _>(force);
    mounts.json::<ep::NodeEvict, _, _>(evict);
    mounts.json::<ep::ClusterValidate, _, _>(validate);
    mounts.json::<ep::ValidationShow, _, _>(validation);
    mounts.json::<ep::JoinTokenList, _, _>(token_list);
    mounts.json::<ep::JoinTokenCreate, _, _>(token_create);
    mounts.json::<ep::JoinTokenRevoke, _, _>(token_revoke);
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> ApiError {
    let hint = "see the daemon's log: journalctl -u muster";
    ApiError::new(ErrorKind::Failed, "failed", format!("{what}: {error}"), hint)
}

async fn show(call: Call<ep::ClusterShow>) -> Result<ClusterView, ApiError> {
    Ok(status::gather(&call.app).await)
}

async fn create(call: Call<ep::ClusterCreate>) -> Result<ClusterView, ApiError> {
    let app = &*call.app;
    if let Some(cluster) = &app.truth.state().cluster {
        return Err(Refused::InCluster(cluster.name.clone()).into());
    }
    let addresses = app.config.peer_addresses();
    if addresses.is_empty() || addresses.iter().any(|address| address.port() == 0) {
        return Err(ApiError::new(
            ErrorKind::Conflict,
            "no_address",
            "it is not known at which address other hosts can reach this one",
            "set cluster_addresses in /etc/muster/config.toml and restart the daemon",
        ));
    }
    let port = |error: anyhow::Error| failed("the peer port", &format!("{error:#}"));
    // What can go wrong goes wrong before there is a cluster.
    app.peers.check_port().await.map_err(port)?;
    let id = ClusterId::new(new_uuid());
    let name = match call.body.name {
        Some(name) => name,
        None => "muster".parse().map_err(|error| failed("the name", &error))?,
    };
    let pki = |error: PkiError| failed("the cluster's certificates", &error);
    let ca = ClusterCa::create(id, name.as_str(), now()).map_err(pki)?;
    let identity = Identity::first((id, name.as_str()), app.node, &ca, now()).map_err(pki)?;
    let command = Command::ClusterCreate {
        cluster: id,
        name,
        ca_certificate: ca.public().pem().to_owned(),
        ca_key: SecretText::new(ca.key_pem()),
        node: app.node,
        key: identity.key_digest().to_string(),
    };
    let place = Place { identity, members: Vec::new(), joining: false };
    // The key is on the disk before the state says that it is this node's.
    app.peers.dir().write(&place).map_err(|error| failed("the node's key", &error))?;
    app.propose(&call.caller.actor, command).await?;
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let facts = NodeFacts { addresses, version, interfaces: Vec::new() };
    let facts = Command::NodeFactsSet { node: app.node, facts: Box::new(facts) };
    app.propose(&call.caller.actor, facts).await?;
    app.peers.bring_up(place).await.map_err(port)?;
    Ok(status::gather(app).await)
}

async fn join(call: Call<ep::ClusterJoin>) -> Result<ClusterJoinView, ApiError> {
    let app = &*call.app;
    let place = join::ask(app, &call.body.token).await?;
    let view = ClusterJoinView {
        id: place.identity.cluster(),
        name: place.identity.cluster_name().to_owned(),
        node: place.identity.node(),
        members: place.members.iter().map(|member| member.name.clone()).collect(),
    };
    app.peers.dir().write(&place).map_err(|error| failed("the node's key", &error))?;
    tracing::warn!(cluster = view.name, node = %view.node, "joined; the daemon starts anew");
    app.restart_soon();
    Ok(view)
}

async fn leave(call: Call<ep::ClusterLeave>) -> Result<Nothing, ApiError> {
    let app = &*call.app;
    if call.body.force {
        return forget(app);
    }
    app.propose(&call.caller.actor, Command::NodeLeave { node: app.node }).await?;
    // What follows when it is out is done by `leave::follow`, also if nobody waits.
    match tokio::time::timeout(LEAVE_TIMEOUT, leave::wait(app)).await {
        Ok(()) => Ok(Nothing {}),
        Err(_) => Err(ApiError::new(
            ErrorKind::Unavailable,
            "still_leaving",
            "the cluster has not taken this node out yet; it goes on with that by itself",
            "see how far it is: muster cluster status",
        )),
    }
}

/// Begins anew without asking anybody.
fn forget(app: &App) -> Result<Nothing, ApiError> {
    let running = app.hub.running().len();
    if running > 0 {
        return Err(ApiError::new(
            ErrorKind::Conflict,
            "vms_running",
            format!("{running} VMs run on this host"),
            "turn them off first: muster vm off NAME",
        ));
    }
    if app.peers.identity().is_none() {
        return Err(Refused::NoCluster.into());
    }
    app.peers.dir().ask_reset().map_err(|error| failed("the mark", &error))?;
    tracing::warn!("the cluster is forgotten by request; the daemon starts anew");
    app.restart_soon();
    Ok(Nothing {})
}

async fn force(call: Call<ep::ClusterForce>) -> Result<ClusterForceView, ApiError> {
    force::order(&call.app, &call.caller.actor, &call.body).await
}

async fn evict(call: Call<ep::NodeEvict>) -> Result<Nothing, ApiError> {
    let node = call.app.truth.state().find_node(call.param(0))?.id;
    if node == call.app.node {
        return Err(ApiError::new(
            ErrorKind::Conflict,
            "own_node",
            "this is the node that was asked; a node does not evict itself",
            "let it leave (muster cluster leave), or run this on another node",
        ));
    }
    let cluster = status::gather(&call.app).await;
    check_votes_left(&cluster, node)?;
    let command = Command::NodeEvict { node, forget_vms: call.query.forget_vms };
    call.app.propose(&call.caller.actor, command).await?;
    Ok(Nothing {})
}

/// Who is evicted is heard no more at once, so the others must be able to take its vote away.
fn check_votes_left(cluster: &ClusterView, node: NodeId) -> Result<(), ApiError> {
    let votes = |it: &&ClusterNodeView| matches!(it.part, ClusterPart::Leader | ClusterPart::Voter);
    let voters = || cluster.nodes.iter().filter(votes);
    let witness = cluster.witness.as_ref().is_some_and(|it| it.votes && it.reachable);
    let others = voters().filter(|it| it.id != node && it.reachable).count();
    let others = others + usize::from(witness);
    if !voters().any(|it| it.id == node) || others >= cluster.majority as usize {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorKind::Conflict,
        "no_majority_left",
        format!(
            "without this node {others} of {} votes would be left, and {} are needed to go on",
            cluster.voters, cluster.majority
        ),
        "if it answers, let it leave: muster cluster leave on that node; else bring another voter \
         back first: muster cluster status",
    ))
}

async fn validate(call: Call<ep::ClusterValidate>) -> Result<ValidationView, ApiError> {
    crate::validate::begin(&call.app, &call.body)
}

async fn validation(call: Call<ep::ValidationShow>) -> Result<ValidationView, ApiError> {
    call.app.validations.view()
}

fn token_view(token: &JoinTokenRecord) -> JoinTokenView {
    JoinTokenView {
        id: token.id,
        created: token.created,
        expires: token.expires,
        uses: token.uses,
        by: token.by.clone(),
    }
}

async fn token_list(call: Call<ep::JoinTokenList>) -> Result<Vec<JoinTokenView>, ApiError> {
    let state = call.app.truth.state();
    let valid = state.join_tokens.values().filter(|token| token.is_valid(now()));
    Ok(valid.map(|token| token_view(token)).collect())
}

async fn token_create(call: Call<ep::JoinTokenCreate>) -> Result<JoinTokenSecretView, ApiError> {
    let app = &*call.app;
    let own = app.peers.identity().ok_or(Refused::NoCluster)?;
    let secs = call.body.valid_s.unwrap_or(TOKEN_SECS);
    if secs > TOKEN_SECS_MAX {
        return Err(bad_request("a join token is valid for at most seven days"));
    }
    let secret = Secret::create().map_err(|error| failed("a random number", &error))?;
    let id = JoinTokenId::new(new_uuid());
    let command = Command::JoinTokenCreate {
        token: id,
        digest: secret.digest(),
        expires: now().plus(Millis::from_secs(secs)),
        uses: call.body.uses.unwrap_or(TOKEN_USES),
    };
    app.propose(&call.caller.actor, command).await?;
    let state = app.truth.state();
    let here = state.nodes.get(&app.node).map(|node| node.facts.addresses.clone());
    let others = state.nodes.values().filter(|node| node.id != app.node);
    let mut addresses = here.unwrap_or_default();
    addresses.extend(others.flat_map(|node| node.facts.addresses.clone()));
    addresses.truncate(peer::TOKEN_ADDRESSES_MAX);
    let token = JoinToken { cluster: own.cluster(), ca: own.ca().digest(), secret, addresses };
    let record = state.join_tokens.get(&id).ok_or(Refused::JoinToken)?;
    Ok(JoinTokenSecretView { token: token_view(record), text: token.to_string() })
}

async fn token_revoke(call: Call<ep::JoinTokenRevoke>) -> Result<Nothing, ApiError> {
    let token =
        call.param(0).parse().map_err(|error: model::IdError| bad_request(&error.to_string()))?;
    call.app.propose(&call.caller.actor, Command::JoinTokenRevoke { token }).await?;
    Ok(Nothing {})
}
