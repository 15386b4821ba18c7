//! Requests of the API that only another node can answer: what is seen of a machine, its consoles,
//! what a node says of itself.
//!
//! The request goes as it came over a stream between the nodes, and the answer comes back the same
//! way; a WebSocket's bytes pass through. Who asks goes along: a token as it was shown, which the
//! other node checks itself against the same state; a local user by the word of this node, whose
//! certificate names it. The other node looks at the role again, and takes nothing but requests of
//! this kind from a node.

use api::ApiError;
use api::ErrorKind;
use axum::extract::Request;
use axum::response::IntoResponse;
use axum::response::Response;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use model::Actor;
use model::NodeId;
use model::Role;
use serde::Deserialize;
use serde::Serialize;

use crate::app::App;
use crate::cluster::peers::API_STREAM;
use crate::http::Caller;

/// Header in which a node says for whom it asks.
pub(crate) const CALLER_HEADER: &str = "x-muster-caller";

/// The longest value of it that is read.
const CALLER_BYTES_MAX: usize = 512;

#[derive(Serialize, Deserialize)]
struct Told {
    actor: Actor,
    role: Role,
}

/// For whom another node asks, by its word.
pub(crate) fn told_caller(request: &Request) -> Option<Caller> {
    let header = request.headers().get(CALLER_HEADER)?;
    if header.len() > CALLER_BYTES_MAX {
        return None;
    }
    let told: Told = serde_json::from_slice(&hex::decode(header.as_bytes()).ok()?).ok()?;
    Some(Caller::by_word(Actor::new(told.actor.as_str()), told.role))
}

/// Lets another node answer a request.
pub(crate) async fn to(
    app: &App,
    node: NodeId,
    caller: &Caller,
    mut request: Request,
) -> Result<Response, ApiError> {
    let name = app
        .truth
        .state()
        .nodes
        .get(&node)
        .map_or_else(|| node.to_string(), |node| node.name.to_string());
    let unreachable = |problem: &dyn std::fmt::Display| {
        ApiError::new(
            ErrorKind::Unavailable,
            "node_unreachable",
            format!("only node {name} can answer this: {problem}"),
            "see how it is: muster cluster status",
        )
    };
    let links = app.peers.links().ok_or_else(|| unreachable(&"there is no way to it"))?;
    let stream =
        links.stream(node, API_STREAM).await.map_err(|error| unreachable(&error.problem()))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| unreachable(&error))?;
    tokio::spawn(connection.with_upgrades());
    let told = Told { actor: caller.actor.clone(), role: caller.role };
    let told = hex::encode(serde_json::to_vec(&told).unwrap_or_default());
    if let Ok(value) = told.parse() {
        request.headers_mut().insert(CALLER_HEADER, value);
    }
    request.headers_mut().insert("host", axum::http::HeaderValue::from_static("muster"));
    let upgrade = request.extensions_mut().remove::<hyper::upgrade::OnUpgrade>();
    let mut answer = sender.send_request(request).await.map_err(|error| unreachable(&error))?;
    if answer.status() == axum::http::StatusCode::SWITCHING_PROTOCOLS
        && let Some(upgrade) = upgrade
    {
        let there = hyper::upgrade::on(&mut answer);
        tokio::spawn(async move {
            // Either side may have gone meanwhile; then there is nothing to pass on.
            if let (Ok(here), Ok(there)) = tokio::join!(upgrade, there) {
                let (mut here, mut there) = (TokioIo::new(here), TokioIo::new(there));
                let _ = tokio::io::copy_bidirectional(&mut here, &mut there).await;
            }
        });
    }
    Ok(answer.map(|body| axum::body::Body::new(body.map_err(axum::Error::new))).into_response())
}
