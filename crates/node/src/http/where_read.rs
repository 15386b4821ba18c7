//! Where a request is answered.
//!
//! Any node answers any request. What stands in the state is read here; what only the owner of a
//! machine sees, or a node of itself, is asked there.

use api::ApiError;
use api::ErrorKind;
use api::endpoint as ep;
use api::endpoint::Endpoint;
use api::endpoint::Info;
use axum::extract::Request;
use model::NodeId;

use crate::app::App;
use crate::http::Peer;

/// Answered by the node that owns the VM of the path.
const AT_OWNER: &[&str] = &[
    ep::VmShow::INFO.id,
    ep::VmFreeze::INFO.id,
    ep::VmThaw::INFO.id,
    ep::VmScreenshot::INFO.id,
    ep::VmSerial::INFO.id,
    ep::VmVnc::INFO.id,
];

/// Answered by the node of the path.
const AT_NODE: &[&str] = &[ep::NodeShow::INFO.id];

/// The other node that has to answer, if one has to.
pub(super) async fn elsewhere(app: &App, info: &Info, first: Option<&str>) -> Option<NodeId> {
    let first = first?;
    let (at_owner, at_node) = (AT_OWNER.contains(&info.id), AT_NODE.contains(&info.id));
    if !at_owner && !at_node {
        return None;
    }
    // Without a majority, what is known here must do: consoles work then, too.
    let _ = app.truth.barrier().await;
    let state = app.truth.state();
    let node = match at_owner {
        true => state.find_vm(first).ok()?.owner,
        false => state.find_node(first).ok()?.id,
    };
    (node != app.node).then_some(node)
}

/// A node may pass on only what it cannot answer itself: its certificate gives it no rights.
pub(super) fn check_member(info: &Info, peer: Option<&Peer>) -> Result<(), ApiError> {
    let Some(Peer::Member(node)) = peer else { return Ok(()) };
    if AT_OWNER.contains(&info.id) || AT_NODE.contains(&info.id) {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorKind::Forbidden,
        "forbidden",
        format!("node {node} may not ask for this: a node's certificate is not an administrator's"),
        "ask the API with a token: muster token create",
    ))
}

/// A node that passes a session's request on may know of its beginning before this one does.
pub(super) fn must_catch_up(request: &Request) -> bool {
    let from_member = matches!(request.extensions().get::<Peer>(), Some(Peer::Member(_)));
    from_member && request.headers().contains_key("cookie")
}

pub(super) fn moved() -> ApiError {
    ApiError::new(
        ErrorKind::Unavailable,
        "moved",
        "it has just moved to another node",
        "try again in a moment",
    )
}
