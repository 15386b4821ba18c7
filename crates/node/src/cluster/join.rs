//! A host asks to be taken in; a member takes it in.

use std::net::SocketAddr;

use api::ApiError;
use api::ErrorKind;
use model::Actor;
use model::ClusterRecord;
use model::ClusterState;
use model::Command;
use model::JoinTokenRecord;
use model::Name;
use model::NodeFacts;
use model::Proposal;
use model::Refused;
use peer::CallError;
use peer::Clock;
use peer::JoinReply;
use peer::JoinRequest;
use peer::JoinToken;
use peer::Member;
use peer::Refusal;
use peer::RefusalCode;
use peer::Secret;
use peer::pki::ClusterCa;
use peer::wire::Dialects;

use crate::app::App;
use crate::app::now;
use crate::cluster::Place;
use crate::truth::ProposeError;

/// Whether a secret is that of a token which still takes hosts in.
///
/// # Errors
/// It is not.
pub(crate) fn check_secret(app: &App, secret: &str) -> Result<(), Refusal> {
    let state = app.truth.state();
    let digest = Secret::digest_of(secret);
    let mut tokens = state.join_tokens.values();
    match tokens.any(|token| token.digest == digest && token.is_valid(now())) {
        true => Ok(()),
        false => Err(refused(&Refused::JoinToken)),
    }
}

/// The member's side: the state decides, then the certificate is issued.
pub(crate) async fn take_in(
    app: &App,
    request: JoinRequest,
    from: SocketAddr,
) -> Result<JoinReply, Refusal> {
    let state = app.truth.state();
    let cluster = state.cluster.clone().ok_or_else(|| refused(&Refused::NoCluster))?;
    let digest = Secret::digest_of(&request.secret);
    // A guess costs nobody anything but this comparison.
    if !state.join_tokens.values().any(|token: &std::sync::Arc<JoinTokenRecord>| {
        token.digest == digest && (token.is_valid(now()) || state.nodes.contains_key(&request.node))
    }) {
        return Err(refused(&Refused::JoinToken));
    }
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        Refusal::new(RefusalCode::Failed, format!("{what}: {error}"), "look at that node's log")
    };
    let ca = ca(&cluster).map_err(|error| failed("the cluster's CA", &error))?;
    let certificate_request = request.certificate_request()?;
    let certificate = ca
        .issue(cluster.id, request.node, &certificate_request, now())
        .map_err(|error| Refusal::new(RefusalCode::Malformed, error.to_string(), ""))?;
    let key = peer::pki::certificate_key(&certificate)
        .map_err(|error| failed("the new certificate", &error))?;
    let mut addresses = request.addresses.clone();
    if addresses.is_empty() {
        addresses.push(SocketAddr::new(from.ip(), request.port));
    }
    let facts = NodeFacts { addresses, version: request.version, interfaces: Vec::new() };
    let command = Command::NodeJoin {
        node: request.node,
        name: request.name.clone(),
        key: key.to_string(),
        facts: Box::new(facts),
        digest,
    };
    let actor = Actor::new(&format!("host {} at {}", request.name, from.ip()));
    let proposed = app.truth.propose(Proposal { at: now(), actor, command }).await;
    proposed.map_err(|error| match error {
        ProposeError::Refused(why) => refused(&why),
        error => Refusal::new(
            RefusalCode::Busy,
            format!("the cluster takes no changes now: {error}"),
            "see why: muster cluster status on a member; then try again",
        ),
    })?;
    let state = app.truth.state();
    Ok(JoinReply {
        cluster: cluster.id,
        cluster_name: cluster.name.to_string(),
        ca: cluster.ca_certificate.clone(),
        certificate,
        members: members(&state),
    })
}

fn refused(why: &Refused) -> Refusal {
    let code = match why {
        Refused::JoinToken => RefusalCode::Token,
        _ => RefusalCode::Refused,
    };
    Refusal::new(code, why.to_string(), why.hint())
}

/// The CA out of the state.
pub(crate) fn ca(cluster: &ClusterRecord) -> Result<ClusterCa, peer::pki::PkiError> {
    ClusterCa::from_pem(&cluster.ca_certificate, cluster.ca_key.reveal())
}

/// The members and where they are.
pub(crate) fn members(state: &ClusterState) -> Vec<Member> {
    let nodes = state.nodes.values();
    nodes
        .map(|node| Member {
            node: node.id,
            name: node.name.clone(),
            addresses: node.facts.addresses.clone(),
        })
        .collect()
}

/// Why this host cannot give its own state up for a cluster's.
pub(crate) fn check_empty(state: &ClusterState) -> Result<(), ApiError> {
    let conflict = |code: &str, message: String, hint: &str| {
        Err(ApiError::new(ErrorKind::Conflict, code, message, hint))
    };
    if state.nodes.len() > 1 {
        let name = state.cluster.as_ref().map_or_else(String::new, |it| it.name.to_string());
        return conflict(
            "in_cluster",
            format!("this host is a node of the cluster {name} with others"),
            "leave that first: muster cluster leave",
        );
    }
    let names = |names: &mut dyn Iterator<Item = &Name>| {
        names.take(5).map(Name::to_string).collect::<Vec<_>>().join(", ")
    };
    if !state.vms.is_empty() {
        return conflict(
            "has_vms",
            format!(
                "this host has VMs of its own, which the cluster's state does not know: {}",
                names(&mut state.vms.values().map(|vm| &vm.name))
            ),
            "move or delete them first, also from the recycle bin: muster vm list, muster vm list \
             --deleted; or let the other hosts join this one",
        );
    }
    if !state.images.is_empty() {
        return conflict(
            "has_images",
            format!(
                "this host has images of its own: {}",
                names(&mut state.images.values().map(|image| &image.name))
            ),
            "delete them first (muster image delete), or let the other hosts join this one",
        );
    }
    Ok(())
}

/// Reads a token.
///
/// # Errors
/// It is none.
pub(crate) fn parse_token(token: &str) -> Result<JoinToken, ApiError> {
    token.parse().map_err(|error: peer::TokenError| {
        ApiError::new(
            ErrorKind::BadRequest,
            "bad_token",
            error.to_string(),
            "a member makes one: muster cluster token",
        )
    })
}

/// The host's side: asks to be taken in, and keeps what it gets. The caller then starts the daemon
/// anew, which goes on from there.
pub(crate) async fn ask(app: &App, token: &str) -> Result<Place, ApiError> {
    let token = parse_token(token)?;
    let state = app.truth.state();
    check_empty(&state)?;
    if state.cluster.is_none()
        && let Some(own) = app.peers.identity()
    {
        return Err(ApiError::new(
            ErrorKind::Conflict,
            "in_cluster",
            format!("this host has joined {} and is being brought in", own.cluster_name()),
            "see how far it is: muster cluster status",
        ));
    }
    if state.cluster.as_ref().is_some_and(|cluster| cluster.id == token.cluster) {
        return Err(ApiError::new(
            ErrorKind::Conflict,
            "own_token",
            "this token is of this very host",
            "run the join on the other host",
        ));
    }
    let dir = app.peers.dir();
    let (node, key) = dir.pending().map_err(|error| {
        let message = format!("a key cannot be made and kept: {error:#}");
        ApiError::new(ErrorKind::Failed, "node_key", message, "free some space and try again")
    })?;
    let request = JoinRequest {
        secret: token.secret.to_hex(),
        node,
        name: app.node_name.clone(),
        addresses: match app.config.cluster_listen.ip().is_unspecified() {
            // The member sees by which address this host comes to it: better than a guess.
            true => app.config.cluster_addresses.clone(),
            false => app.config.peer_addresses(),
        },
        port: app.config.cluster_listen.port(),
        request: String::new(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let version = (Dialects::default(), env!("CARGO_PKG_VERSION"));
    let joined = peer::join(&token, request, &key, &Clock::host(), version).await;
    if let Err(CallError::Refused { refusal, .. }) = &joined
        && refusal.code == RefusalCode::Refused
        && let Err(error) = dir.forget_pending()
    {
        // A host that was taken in is not refused: this id is of no use, it may be gone already.
        tracing::warn!(%error, "the id of an attempt to join cannot be forgotten");
    }
    let (identity, members) = joined.map_err(|error| join_error(&error))?;
    Ok(Place { identity, members, joining: true })
}

fn join_error(error: &CallError) -> ApiError {
    let (kind, code) = match error {
        CallError::Refused { refusal, .. } => match refusal.code {
            RefusalCode::Token => (ErrorKind::Forbidden, "join_token"),
            RefusalCode::WrongCluster => (ErrorKind::Conflict, "wrong_cluster"),
            RefusalCode::NoCommonVersion => (ErrorKind::Conflict, "no_common_version"),
            RefusalCode::Busy => (ErrorKind::Unavailable, "cluster_busy"),
            _ => (ErrorKind::Conflict, "join_refused"),
        },
        CallError::Pki(_) => (ErrorKind::Conflict, "certificate"),
        _ => (ErrorKind::Unavailable, "unreachable"),
    };
    let (message, hint) = match error {
        CallError::Refused { refusal, .. } => {
            (format!("the cluster refuses: {}", refusal.message), refusal.hint.clone())
        }
        CallError::Unreachable { problem, .. } => (
            format!("no member named in the token can be reached: {problem}"),
            "see that the members' daemons run and that their peer port is open to this host"
                .to_owned(),
        ),
        error => {
            (error.to_string(), "make a new token on a member: muster cluster token".to_owned())
        }
    };
    ApiError::new(kind, code, message, hint)
}
