//! Nodes, and facts about this service.

use api::ApiError;
use api::endpoint as ep;
use api::types::NodeView;
use api::types::VersionView;
use api::types::WhoAmIView;
use axum::extract::Request;
use axum::response::IntoResponse;
use axum::response::Response;
use model::Refused;

use crate::http::Call;
use crate::http::Mounts;

pub(crate) fn mount(mounts: &mut Mounts) {
    mounts.json::<ep::Version, _, _>(version);
    mounts.raw::<ep::OpenApi, _, _>(document);
    mounts.json::<ep::WhoAmI, _, _>(who_am_i);
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

async fn who_am_i(call: Call<ep::WhoAmI>) -> Result<WhoAmIView, ApiError> {
    Ok(WhoAmIView { actor: call.caller.actor.to_string(), role: call.caller.role })
}

async fn list(call: Call<ep::NodeList>) -> Result<Vec<NodeView>, ApiError> {
    // A cluster of one: this node is all of them.
    Ok(vec![call.app.node_view(&call.app.truth.state()).await])
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
