//! Nodes, and facts about this service.

use std::time::Duration;

use api::ApiError;
use api::ErrorKind;
use api::endpoint as ep;
use api::types::Accelerator;
use api::types::NodeView;
use api::types::VersionView;
use api::types::WhoAmIView;
use axum::extract::Request;
use axum::response::IntoResponse;
use axum::response::Response;
use futures::future::join_all;
use model::Bytes;
use model::NodeRecord;
use model::Refused;
use peer::CallError;
use peer::Method;

use crate::http::Call;
use crate::http::Mounts;
use crate::http::Proof;
use crate::metrics;

/// How long a list waits for a node: one that is away must not make it useless.
const ASK_TIMEOUT: Duration = Duration::from_millis(1_500);

pub(crate) fn mount(mounts: &mut Mounts) {
    mounts.json::<ep::Version, _, _>(version);
    mounts.raw::<ep::OpenApi, _, _>(document);
    mounts.json::<ep::WhoAmI, _, _>(who_am_i);
    mounts.raw::<ep::Metrics, _, _>(figures);
    mounts.json::<ep::NodeList, _, _>(list);
    mounts.json::<ep::NodeShow, _, _>(show);
}

async fn version(_call: Call<ep::Version>) -> Result<VersionView, ApiError> {
    Ok(VersionView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        api: api::endpoint::API_VERSION.to_owned(),
    })
}

async fn document(_call: Call<ep::OpenApi>, _request: Request) -> Result<Response, ApiError> {
    let headers = [("content-type", "application/json")];
    Ok((headers, api::openapi::document()).into_response())
}

async fn figures(call: Call<ep::Metrics>, _request: Request) -> Result<Response, ApiError> {
    let text = metrics::text(call.app.clone()).await.map_err(|error| {
        let hint = "look at the daemon's log: journalctl -u muster";
        ApiError::new(ErrorKind::Failed, "metrics", format!("figures: {error}"), hint)
    })?;
    Ok(([("content-type", metrics::CONTENT_TYPE)], text).into_response())
}

async fn who_am_i(call: Call<ep::WhoAmI>) -> Result<WhoAmIView, ApiError> {
    let session = match &call.caller.proof {
        Proof::Session { own, .. } => Some(own.clone()),
        Proof::Word | Proof::Token(_) => None,
    };
    Ok(WhoAmIView { actor: call.caller.actor.to_string(), role: call.caller.role, session })
}

async fn list(call: Call<ep::NodeList>) -> Result<Vec<NodeView>, ApiError> {
    let app = &*call.app;
    let state = app.truth.state();
    let views = state.nodes.values().map(|record| {
        let state = &state;
        async move {
            if record.id == app.node {
                return app.node_view(state).await;
            }
            let asked = app.peers.ask(record.id, Method::HOST, &(), ASK_TIMEOUT).await;
            asked.unwrap_or_else(|error| unreachable_view(record, &error))
        }
    });
    let mut views = join_all(views).await;
    views.sort_by(|a: &NodeView, b| a.name.cmp(&b.name));
    Ok(views)
}

/// What the state knows of a node that does not answer.
fn unreachable_view(record: &NodeRecord, error: &CallError) -> NodeView {
    NodeView {
        id: record.id,
        name: record.name.clone(),
        version: record.facts.version.clone(),
        started: record.started,
        cpus: record.capacity.cpus,
        memory: record.capacity.memory,
        memory_available: Bytes::ZERO,
        memory_promised: Bytes::ZERO,
        storage: Bytes::ZERO,
        storage_available: Bytes::ZERO,
        vms_running: 0,
        qemu: None,
        accelerator: Accelerator::Tcg,
        accelerator_reason: "not known while the node does not answer".to_owned(),
        missing_limits: Vec::new(),
        mode: record.mode,
        quarantine: record.quarantine,
        load: None,
        problems: vec![format!("does not answer: {}; see: muster cluster status", error.problem())],
        tls_fingerprint: None,
        tls_address: None,
        reconcilers: Vec::new(),
    }
}

async fn show(call: Call<ep::NodeShow>) -> Result<NodeView, ApiError> {
    let wanted = call.param(0);
    let name = &call.app.node_name;
    if name.key() != wanted.to_ascii_lowercase() && call.app.node.to_string() != wanted {
        let which = wanted.chars().take(80).collect();
        return Err(Refused::NotFound { what: "node", which }.into());
    }
    Ok(call.app.node_view(&call.app.truth.state()).await)
}
