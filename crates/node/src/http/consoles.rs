//! Consoles and pictures of screens.
//!
//! Bytes pass both ways between the WebSocket and a stream of the machine. Neither side can fill
//! memory: each message is written out before the next one is read.

use api::ApiError;
use api::ErrorKind;
use api::endpoint as ep;
use api::endpoint::Endpoint;
use axum::extract::FromRequestParts;
use axum::extract::Request;
use axum::extract::ws::CloseFrame;
use axum::extract::ws::Message;
use axum::extract::ws::WebSocket;
use axum::extract::ws::WebSocketUpgrade;
use axum::response::IntoResponse;
use axum::response::Response;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use vm::engine::EngineError;
use vm::engine::Machine;

use crate::app::App;
use crate::http::Call;
use crate::http::Caller;
use crate::http::Mounts;
use crate::http::auth;
use crate::http::bad_request;
use crate::http::vms::find_vm;
use crate::http::vms::not_running;

/// Largest message from a client: a paste.
const MESSAGE_BYTES_MAX: usize = 256 * 1024;

/// Bytes that are passed on at once.
const CHUNK_BYTES: usize = 16 * 1024;

/// How often it is looked at whether whoever uses a console still may.
const RIGHT_LOOKED_AT: Duration = Duration::from_secs(2);

pub(crate) fn mount(mounts: &mut Mounts) {
    mounts.raw::<ep::VmScreenshot, _, _>(screenshot);
    mounts.raw::<ep::VmSerial, _, _>(serial);
    mounts.raw::<ep::VmVnc, _, _>(vnc);
}

fn machine<E: Endpoint>(call: &Call<E>) -> Result<Arc<dyn Machine>, ApiError> {
    let vm = find_vm(call)?;
    call.app.hub.machine(vm.id).ok_or_else(|| not_running(&vm))
}

fn engine_error(error: EngineError) -> ApiError {
    ApiError::new(
        ErrorKind::Failed,
        "engine",
        crate::ports::chain(&error),
        "see how the VM is: muster vm show NAME",
    )
}

async fn screenshot(call: Call<ep::VmScreenshot>, _request: Request) -> Result<Response, ApiError> {
    let png = machine(&call)?.screenshot().await.map_err(engine_error)?;
    Ok(([("content-type", "image/png"), ("cache-control", "no-store")], png).into_response())
}

async fn serial(call: Call<ep::VmSerial>, request: Request) -> Result<Response, ApiError> {
    let stream = machine(&call)?.serial().await.map_err(engine_error)?;
    upgrade(call, request, stream).await
}

async fn vnc(call: Call<ep::VmVnc>, request: Request) -> Result<Response, ApiError> {
    let stream = machine(&call)?.vnc().await.map_err(engine_error)?;
    upgrade(call, request, stream).await
}

async fn upgrade<E: Endpoint>(
    call: Call<E>,
    request: Request,
    stream: UnixStream,
) -> Result<Response, ApiError> {
    let Call { app, caller, .. } = call;
    let (mut parts, _) = request.into_parts();
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &())
        .await
        .map_err(|error| bad_request(&format!("this is not a WebSocket request: {error}")))?;
    Ok(upgrade.protocols(["binary"]).max_message_size(MESSAGE_BYTES_MAX).on_upgrade(
        move |socket| async move {
            // One that is cut off by this has no right to a farewell.
            tokio::select! {
                () = pass(socket, stream) => {}
                () = right_ends(&app, &caller) => {}
            }
        },
    ))
}

/// Waits until the caller's token or session has ended.
async fn right_ends(app: &App, caller: &Caller) {
    while auth::still(app, caller) {
        tokio::time::sleep(RIGHT_LOOKED_AT).await;
    }
}

/// Passes bytes both ways until one side ends.
async fn pass(mut socket: WebSocket, mut stream: UnixStream) {
    let (mut from_machine, mut to_machine) = stream.split();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        tokio::select! {
            read = from_machine.read(&mut chunk) => match read {
                Ok(0) | Err(_) => break,
                Ok(count) => {
                    let data = axum::body::Bytes::copy_from_slice(&chunk[..count]);
                    if socket.send(Message::Binary(data)).await.is_err() {
                        return;
                    }
                }
            },
            message = socket.recv() => {
                let data = match message {
                    Some(Ok(Message::Binary(data))) => data,
                    Some(Ok(Message::Text(text))) => axum::body::Bytes::from(text),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                };
                if to_machine.write_all(&data).await.is_err() {
                    break;
                }
            }
        }
    }
    let frame = CloseFrame { code: 1000, reason: "the machine's side has ended".into() };
    // The client may have gone at the same moment.
    let _ = socket.send(Message::Close(Some(frame))).await;
}
