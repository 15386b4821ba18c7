//! Networks.

use api::ApiError;
use api::endpoint as ep;
use api::endpoint::Nothing;
use api::types::NetworkView;
use model::Command;
use model::NetworkId;

use crate::app::new_uuid;
use crate::http::Call;
use crate::http::Mounts;

pub(crate) fn mount(mounts: &mut Mounts) {
    mounts.json::<ep::NetworkList, _, _>(list);
    mounts.json::<ep::NetworkShow, _, _>(show);
    mounts.json::<ep::NetworkCreate, _, _>(create);
    mounts.json::<ep::NetworkDelete, _, _>(delete);
}

async fn list(call: Call<ep::NetworkList>) -> Result<Vec<NetworkView>, ApiError> {
    let state = call.app.truth.state();
    let mut list: Vec<_> =
        state.networks.values().map(|network| call.app.network_view(&state, network)).collect();
    list.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(list)
}

async fn show(call: Call<ep::NetworkShow>) -> Result<NetworkView, ApiError> {
    let state = call.app.truth.state();
    Ok(call.app.network_view(&state, state.find_network(call.param(0))?))
}

async fn create(call: Call<ep::NetworkCreate>) -> Result<NetworkView, ApiError> {
    let network = NetworkId::new(new_uuid());
    let body = call.body.clone();
    let command = Command::NetworkCreate { network, name: body.name, kind: body.kind };
    call.app.propose(&call.caller.actor, command).await?;
    // The pass that the change wakes does the same; this one tells the caller how it went.
    if let Err(error) = call.app.ports.reconcile().await {
        tracing::warn!(%error, "a new network is not there yet");
    }
    let state = call.app.truth.state();
    let record = state.find_network(&network.to_string())?;
    Ok(call.app.network_view(&state, record))
}

async fn delete(call: Call<ep::NetworkDelete>) -> Result<Nothing, ApiError> {
    let network = call.app.truth.state().find_network(call.param(0))?.id;
    call.app.propose(&call.caller.actor, Command::NetworkDelete { network }).await?;
    Ok(Nothing {})
}
