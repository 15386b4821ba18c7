//! Operations: looking, waiting, cancelling.

use std::time::Duration;

use api::ApiError;
use api::endpoint as ep;
use api::endpoint::Endpoint;
use api::types::OpView;
use model::Command;
use model::OpId;

use crate::http::Call;
use crate::http::Mounts;
use crate::http::bad_request;
use crate::http::vms::view_op;

/// The longest wait: below what proxies in between allow.
const WAIT_MS_MAX: u64 = 60_000;

pub(crate) fn mount(mounts: &mut Mounts) {
    mounts.json::<ep::OpList, _, _>(list);
    mounts.json::<ep::OpShow, _, _>(show);
    mounts.json::<ep::OpWait, _, _>(wait);
    mounts.json::<ep::OpCancel, _, _>(cancel);
}

fn op_id<E: Endpoint>(call: &Call<E>) -> Result<OpId, ApiError> {
    call.param(0).parse().map_err(|error: model::IdError| bad_request(&error.to_string()))
}

async fn list(call: Call<ep::OpList>) -> Result<Vec<OpView>, ApiError> {
    let state = call.app.truth.state();
    let mut list: Vec<_> = state
        .ops
        .values()
        .filter(|op| call.query.all || op.is_running())
        .map(|op| call.app.op_view(op))
        .collect();
    list.sort_by_key(|op| op.begun);
    Ok(list)
}

async fn show(call: Call<ep::OpShow>) -> Result<OpView, ApiError> {
    view_op(&call.app, op_id(&call)?)
}

async fn wait(call: Call<ep::OpWait>) -> Result<OpView, ApiError> {
    let op = op_id(&call)?;
    let mut states = call.app.truth.watch();
    let limit = Duration::from_millis(call.query.timeout_ms.min(WAIT_MS_MAX));
    let ended = states.wait_for(|state| state.ops.get(&op).is_none_or(|op| !op.is_running()));
    tokio::select! {
        _ = ended => {}
        // How far it is, is an answer, too.
        () = call.app.progresses.moved(op) => {}
        () = tokio::time::sleep(limit) => {}
    }
    view_op(&call.app, op)
}

async fn cancel(call: Call<ep::OpCancel>) -> Result<OpView, ApiError> {
    let op = op_id(&call)?;
    call.app.propose(&call.caller.actor, Command::CancelOp { op }).await?;
    view_op(&call.app, op)
}
