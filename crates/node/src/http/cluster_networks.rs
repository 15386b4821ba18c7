//! Networks that hosts have in common.

use api::ApiError;
use api::ErrorKind;
use api::cluster_network::ClusterNetworksView;
use api::endpoint as ep;
use model::ClusterNetworkRecord;
use model::ClusterState;
use model::Command;
use model::IpSubnet;

use crate::cluster::networks::view;
use crate::http::Call;
use crate::http::Mounts;

pub(crate) fn mount(mounts: &mut Mounts) {
    mounts.json::<ep::ClusterNetworkList, _, _>(list);
    mounts.json::<ep::ClusterNetworkSet, _, _>(set);
    mounts.json::<ep::ClusterNetworkForget, _, _>(forget);
    mounts.json::<ep::MigrationStrict, _, _>(strict);
}

async fn list(call: Call<ep::ClusterNetworkList>) -> Result<ClusterNetworksView, ApiError> {
    Ok(view(&call.app.truth.state()))
}

/// What is said of a network now, or nothing yet of one that is named by its own words.
fn known(
    state: &ClusterState,
    selector: &str,
) -> Result<(IpSubnet, Option<ClusterNetworkRecord>), ApiError> {
    if let Some(record) = state.cluster_network(selector) {
        return Ok((record.subnet, Some(record.clone())));
    }
    let subnet = selector.parse().map_err(|_| {
        ApiError::new(
            ErrorKind::NotFound,
            "not_found",
            format!("no network of hosts is called {selector}"),
            "name one of them: muster cluster network list",
        )
    })?;
    Ok((subnet, None))
}

async fn set(call: Call<ep::ClusterNetworkSet>) -> Result<ClusterNetworksView, ApiError> {
    let body = call.body.clone();
    let (subnet, record) = known(&call.app.truth.state(), &body.network)?;
    let Some(name) = body.name.or(record.as_ref().map(|record| record.name.clone())) else {
        let hint = "add --name, such as: muster cluster network set 10.0.2.0/24 --name migration";
        let message = "this network has no name yet";
        return Err(ApiError::new(ErrorKind::BadRequest, "bad_request", message, hint));
    };
    let migration = match body.migration {
        None => record.and_then(|record| record.migration),
        Some(place) => (place != 0).then_some(place),
    };
    let record = Box::new(ClusterNetworkRecord { subnet, name, migration });
    call.app.propose(&call.caller.actor, Command::ClusterNetworkSet { record }).await?;
    Ok(view(&call.app.truth.state()))
}

async fn forget(call: Call<ep::ClusterNetworkForget>) -> Result<ClusterNetworksView, ApiError> {
    let (subnet, _) = known(&call.app.truth.state(), call.param(0))?;
    call.app.propose(&call.caller.actor, Command::ClusterNetworkForget { subnet }).await?;
    Ok(view(&call.app.truth.state()))
}

async fn strict(call: Call<ep::MigrationStrict>) -> Result<ClusterNetworksView, ApiError> {
    let command = Command::MigrationStrict { strict: call.body.strict };
    call.app.propose(&call.caller.actor, command).await?;
    Ok(view(&call.app.truth.state()))
}
