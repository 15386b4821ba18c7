//! Operations: looking, waiting, cancelling.

use std::time::Duration;

use api::ApiError;
use api::endpoint as ep;
use api::endpoint::Endpoint;
use api::types::OpView;
use api::types::ProgressView;
use model::Command;
use model::NodeId;
use model::OpId;
use model::OpState;
use peer::Method;
use vm::lifecycle::Progress;

use crate::app::App;
use crate::http::Call;
use crate::http::Mounts;
use crate::http::bad_request;
use crate::http::vms::view_op;

/// How long another node may take to say how far an operation is, and how often it is asked.
const PROGRESS_LIMIT: Duration = Duration::from_secs(1);
const ASK_EVERY: Duration = Duration::from_millis(250);

/// Longest step that is believed of another node.
const STEP_CHARS_MAX: usize = 200;

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
    let op = op_id(&call)?;
    let view = view_op(&call.app, op)?;
    match elsewhere(&call.app, op) {
        Some(node) => Ok(with(view, ask(&call.app, node, op).await)),
        None => Ok(view),
    }
}

async fn wait(call: Call<ep::OpWait>) -> Result<OpView, ApiError> {
    let op = op_id(&call)?;
    let mut states = call.app.truth.watch();
    let limit = Duration::from_millis(call.query.timeout_ms.min(WAIT_MS_MAX));
    let ended = states.wait_for(|state| state.ops.get(&op).is_none_or(|op| !op.is_running()));
    let seen = tokio::select! {
        _ = ended => None,
        // How far it is, is an answer, too.
        () = call.app.progresses.moved(op) => None,
        seen = moved_elsewhere(&call.app, op) => Some(seen),
        () = tokio::time::sleep(limit) => None,
    };
    Ok(with(view_op(&call.app, op)?, seen))
}

/// The other node that performs an operation, if one does.
fn elsewhere(app: &App, op: OpId) -> Option<NodeId> {
    let state = app.truth.state();
    let record = state.ops.get(&op).filter(|op| op.is_running())?;
    let performer = state.vms.get(&record.request.vm()?)?.owner;
    (performer != app.node).then_some(performer)
}

/// How far that node says that it is. None where it does not answer at once: an operation that is
/// shown without a bar is better than one that is not shown.
async fn ask(app: &App, node: NodeId, op: OpId) -> Option<Progress> {
    let asked: Result<Option<Progress>, _> =
        app.peers.ask(node, Method::PROGRESS, &op, PROGRESS_LIMIT).await;
    let progress = asked.ok().flatten()?;
    let step = progress.step.chars().filter(|c| !c.is_control()).take(STEP_CHARS_MAX).collect();
    Some(Progress { step, ..progress })
}

/// Waits until an operation that another node performs is elsewhere than where it is now.
async fn moved_elsewhere(app: &App, op: OpId) -> Progress {
    let mut begin: Option<Option<Progress>> = None;
    loop {
        // A migration's performer changes in its middle.
        if let Some(node) = elsewhere(app, op) {
            let seen = ask(app, node, op).await;
            match (&begin, seen) {
                (Some(begin), Some(seen)) if begin.as_ref() != Some(&seen) => return seen,
                (None, seen) => begin = Some(seen),
                _ => {}
            }
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Adds what another node says to what is known here.
fn with(mut view: OpView, seen: Option<Progress>) -> OpView {
    if let (None, Some(seen), OpState::Running { .. }) = (&view.progress, seen, &view.state) {
        view.progress = Some(ProgressView { step: seen.step, done: seen.done, total: seen.total });
    }
    view
}

/// What this node says to another one of an operation that it performs.
pub(crate) fn own(app: &App, body: &[u8]) -> Option<Progress> {
    app.progresses.get(serde_json::from_slice(body).ok()?)
}

async fn cancel(call: Call<ep::OpCancel>) -> Result<OpView, ApiError> {
    let op = op_id(&call)?;
    call.app.propose(&call.caller.actor, Command::CancelOp { op }).await?;
    view_op(&call.app, op)
}
