//! Fence devices, and the fencing of nodes.
//!
//! A node is fenced by whoever leads; from here only the wish is written, and its outcome is read
//! from the state.

use std::collections::BTreeMap;

use api::ApiError;
use api::ErrorKind;
use api::endpoint as ep;
use api::endpoint::Nothing;
use api::fence::CertaintyView;
use api::fence::FenceDeviceView;
use api::fence::FenceTestView;
use api::fence::NodeFencingView;
use cluster::fence::Action;
use cluster::fence::Outcome;
use cluster::lease::Certainty;
use model::ClusterState;
use model::Command;
use model::FenceDevice;
use model::FenceDeviceId;
use model::FenceReason;
use model::NodeId;
use model::UnixMillis;

use crate::app::App;
use crate::app::new_uuid;
use crate::fencing;
use crate::http::Call;
use crate::http::Mounts;

pub(crate) fn mount(mounts: &mut Mounts) {
    mounts.json::<ep::FenceDeviceList, _, _>(list);
    mounts.json::<ep::FenceDeviceShow, _, _>(show);
    mounts.json::<ep::FenceDeviceAdd, _, _>(add);
    mounts.json::<ep::FenceDeviceRemove, _, _>(remove);
    mounts.json::<ep::FenceDeviceTest, _, _>(test);
    mounts.json::<ep::NodeFencing, _, _>(node);
    mounts.json::<ep::NodeFence, _, _>(fence);
    mounts.json::<ep::NodeConfirmOff, _, _>(confirm_off);
}

async fn list(call: Call<ep::FenceDeviceList>) -> Result<Vec<FenceDeviceView>, ApiError> {
    let state = call.app.truth.state();
    let mut list: Vec<_> =
        state.fence_devices.values().map(|device| device_view(&state, device)).collect();
    list.sort_by(|a, b| (a.level, &a.name).cmp(&(b.level, &b.name)));
    Ok(list)
}

async fn show(call: Call<ep::FenceDeviceShow>) -> Result<FenceDeviceView, ApiError> {
    let state = call.app.truth.state();
    Ok(device_view(&state, state.find_fence_device(call.param(0))?))
}

async fn add(call: Call<ep::FenceDeviceAdd>) -> Result<FenceDeviceView, ApiError> {
    let state = call.app.truth.state();
    let body = call.body.clone();
    let mut nodes = BTreeMap::new();
    for (node, plug) in body.nodes {
        nodes.insert(state.find_node(&node)?.id, plug);
    }
    if !call.app.fencing.agents.has(&body.agent) {
        let message = format!("there is no program {} on this node", body.agent.escape_debug());
        let hint = "install it on every node: apt-get install fence-agents";
        return Err(ApiError::new(ErrorKind::Conflict, "no_agent", message, hint));
    }
    let id = FenceDeviceId::new(new_uuid());
    let device = FenceDevice {
        id,
        name: body.name,
        agent: body.agent,
        options: body.options,
        secrets: body.secrets,
        nodes,
        level: body.level,
        timeout_s: body.timeout_s,
        created: UnixMillis::new(0),
    };
    let command = Command::FenceDeviceAdd { device: Box::new(device) };
    call.app.propose(&call.caller.actor, command).await?;
    let state = call.app.truth.state();
    Ok(device_view(&state, state.find_fence_device(&id.to_string())?))
}

async fn remove(call: Call<ep::FenceDeviceRemove>) -> Result<Nothing, ApiError> {
    let device = call.app.truth.state().find_fence_device(call.param(0))?.id;
    call.app.propose(&call.caller.actor, Command::FenceDeviceRemove { device }).await?;
    Ok(Nothing {})
}

/// Asks the device for the status of each of its nodes, from this node.
async fn test(call: Call<ep::FenceDeviceTest>) -> Result<Vec<FenceTestView>, ApiError> {
    let state = call.app.truth.state();
    let device = state.find_fence_device(call.param(0))?;
    let mut said = Vec::new();
    for (node, plug) in &device.nodes {
        let called = call.app.fencing.agents.call(device, plug.as_deref(), Action::Status).await;
        let (ok, says) = match called.outcome {
            Outcome::Done => (true, "on".to_owned()),
            Outcome::IsOff => (true, "off".to_owned()),
            Outcome::Failed => (false, "it failed".to_owned()),
            Outcome::Late => (false, format!("it took more than {} s", device.timeout_s)),
            Outcome::NotStarted(why) => (false, why),
        };
        said.push(FenceTestView {
            node: name_of(&state, *node),
            ok,
            says,
            output: called.output,
            took_ms: u64::try_from(called.took.as_millis()).unwrap_or(u64::MAX),
        });
    }
    Ok(said)
}

async fn node(call: Call<ep::NodeFencing>) -> Result<NodeFencingView, ApiError> {
    let node = call.app.truth.state().find_node(call.param(0))?.id;
    view(&call.app, node)
}

async fn fence(call: Call<ep::NodeFence>) -> Result<NodeFencingView, ApiError> {
    let typed = call.body.confirm.clone();
    wish(call, &typed, FenceReason::Manual).await
}

async fn confirm_off(call: Call<ep::NodeConfirmOff>) -> Result<NodeFencingView, ApiError> {
    let typed = call.body.confirm.clone();
    wish(call, &typed, FenceReason::ConfirmedOff).await
}

async fn wish<E: ep::Endpoint>(
    call: Call<E>,
    typed: &str,
    reason: FenceReason,
) -> Result<NodeFencingView, ApiError> {
    let state = call.app.truth.state();
    let record = state.find_node(call.param(0))?;
    if typed != record.name.as_str() {
        let message = format!("the name typed is not {}", record.name);
        let hint = "type the node's name as it is; see: muster node list";
        return Err(ApiError::new(ErrorKind::BadRequest, "not_confirmed", message, hint));
    }
    let node = record.id;
    call.app.propose(&call.caller.actor, Command::FenceBegin { node, reason }).await?;
    view(&call.app, node)
}

fn view(app: &App, node: NodeId) -> Result<NodeFencingView, ApiError> {
    let state = app.truth.state();
    let record = state.node(node)?;
    let certainty = match fencing::certainty(&state, &app.fencing.settings, node) {
        Some(Certainty::Alone) => CertaintyView::Alone,
        Some(Certainty::Proof) => CertaintyView::Proof,
        Some(Certainty::SelfFencing { watchdog, takeover_ms }) => {
            CertaintyView::SelfFencing { watchdog, takeover_ms }
        }
        Some(Certainty::None) | None => CertaintyView::None,
    };
    Ok(NodeFencingView {
        node,
        name: record.name.clone(),
        epoch: record.epoch,
        certainty,
        wish: record.fence.wish.clone(),
        fenced: record.fenced.clone(),
        failure: record.fence.failure.clone(),
    })
}

fn device_view(state: &ClusterState, device: &FenceDevice) -> FenceDeviceView {
    FenceDeviceView {
        id: device.id,
        name: device.name.clone(),
        agent: device.agent.clone(),
        options: device.options.clone(),
        secrets: device.secrets.keys().cloned().collect(),
        nodes: device
            .nodes
            .iter()
            .map(|(node, plug)| (name_of(state, *node), plug.clone()))
            .collect(),
        level: device.level,
        timeout_s: device.timeout_s,
        created: device.created,
    }
}

/// A node that was evicted is known by its id only.
fn name_of(state: &ClusterState, node: NodeId) -> String {
    state.nodes.get(&node).map_or_else(|| node.to_string(), |record| record.name.to_string())
}
