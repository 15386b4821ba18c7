//! A daemon that answers by script, on a Unix socket in a folder of its own.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use api::endpoint::Info;
use api::endpoint::TABLE;
use futures::SinkExt;
use futures::StreamExt;
use http_body_util::BodyExt;
use http_body_util::StreamBody;
use http_body_util::combinators::BoxBody;
use hyper::Request;
use hyper::Response;
use hyper::body::Bytes;
use hyper::body::Frame;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixListener;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::samples;

/// How long a test waits for something that must happen.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// What the daemon answers.
#[derive(Clone)]
pub(crate) enum Answer {
    /// JSON with a status.
    Json(u16, Value),
    /// Bytes as they are, with status 200.
    Raw(Vec<u8>),
    /// Nothing, ever.
    Hang,
    /// The connection ends without an answer.
    HangUp,
    /// Events, and then nothing.
    Events(Vec<Value>),
    /// A WebSocket that greets, and then sends back what it is sent.
    Echo(&'static str),
    /// A WebSocket that greets and closes.
    Close(&'static str),
}

/// A request that came.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) id: &'static str,
    pub(crate) values: Vec<String>,
    pub(crate) query: String,
    pub(crate) body: Value,
}

#[derive(Default)]
struct Shared {
    script: HashMap<&'static str, VecDeque<Answer>>,
    calls: Vec<Call>,
}

/// The daemon.
pub(crate) struct Fake {
    pub(crate) folder: tempfile::TempDir,
    shared: Arc<Mutex<Shared>>,
    _runtime: tokio::runtime::Runtime,
}

type Body = BoxBody<Bytes, Infallible>;

impl Fake {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shared = Arc::new(Mutex::new(Shared::default()));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(folder.path().join("s")).unwrap()
        };
        runtime.spawn(serve(listener, shared.clone()));
        Self { folder, shared, _runtime: runtime }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    /// Answers of an endpoint, one after the other; the last one for ever.
    pub(crate) fn on(&self, id: &'static str, answers: impl IntoIterator<Item = Answer>) -> &Self {
        assert!(TABLE.iter().any(|info| info.id == id), "{id} is no endpoint");
        self.shared.lock().unwrap().script.insert(id, answers.into_iter().collect());
        self
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.shared.lock().unwrap().calls.clone()
    }

    /// Ids of the endpoints that were called, in order.
    pub(crate) fn ids(&self) -> Vec<&'static str> {
        self.calls().iter().map(|call| call.id).collect()
    }

    /// The only call of an endpoint.
    pub(crate) fn call(&self, id: &str) -> Call {
        let calls: Vec<_> = self.calls().into_iter().filter(|call| call.id == id).collect();
        assert_eq!(calls.len(), 1, "calls of {id} in {:?}", self.ids());
        calls.into_iter().next().unwrap()
    }

    /// Waits until an endpoint has been called so many times.
    pub(crate) fn wait_for(&self, id: &str, times: usize) {
        let begun = Instant::now();
        while self.ids().iter().filter(|other| **other == id).count() < times {
            assert!(begun.elapsed() < DEADLINE, "no call of {id} in {:?}", self.ids());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

async fn serve(listener: UnixListener, shared: Arc<Mutex<Shared>>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let shared = shared.clone();
        tokio::spawn(async move {
            let service =
                hyper::service::service_fn(move |request| answer(request, shared.clone()));
            // A client that goes away in the middle is part of the tests.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades()
                .await;
        });
    }
}

/// Why a connection ends without an answer.
#[derive(Debug)]
struct Gone;

impl std::fmt::Display for Gone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("gone")
    }
}

impl std::error::Error for Gone {}

async fn answer(
    mut request: Request<Incoming>,
    shared: Arc<Mutex<Shared>>,
) -> Result<Response<Body>, Gone> {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let Some((info, values)) = route(request.method().as_str(), &path) else {
        return Ok(json(500, &serde_json::json!({ "no route": path })));
    };
    let key = request.headers().get("sec-websocket-key").cloned();
    let upgrade = key.is_some().then(|| hyper::upgrade::on(&mut request));
    let body = request.into_body().collect().await.map_err(|_| Gone)?.to_bytes();
    let body = serde_json::from_slice(&body).unwrap_or_default();
    let answer = {
        let mut shared = shared.lock().unwrap();
        shared.calls.push(Call { id: info.id, values, query, body });
        match shared.script.get_mut(info.id) {
            Some(answers) if answers.len() > 1 => answers.pop_front().unwrap(),
            Some(answers) => answers.front().unwrap().clone(),
            None => samples::answer(info.id),
        }
    };
    match answer {
        Answer::Json(status, value) => Ok(json(status, &value)),
        Answer::Raw(bytes) => Ok(full(200, bytes)),
        Answer::HangUp => Err(Gone),
        Answer::Hang => std::future::pending().await,
        Answer::Events(events) => Ok(stream(events)),
        Answer::Echo(_) | Answer::Close(_) => {
            let (Some(key), Some(upgrade)) = (key, upgrade) else { return Err(Gone) };
            tokio::spawn(async move {
                let Ok(upgraded) = upgrade.await else { return };
                let io = TokioIo::new(upgraded);
                talk(WebSocketStream::from_raw_socket(io, Role::Server, None).await, answer).await;
            });
            Ok(Response::builder()
                .status(101)
                .header("connection", "upgrade")
                .header("upgrade", "websocket")
                .header("sec-websocket-accept", derive_accept_key(key.as_bytes()))
                .body(http_body_util::Empty::new().boxed())
                .unwrap())
        }
    }
}

async fn talk<S>(mut socket: WebSocketStream<S>, answer: Answer)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let (Answer::Echo(greeting) | Answer::Close(greeting)) = answer else { return };
    if socket.send(Message::Binary(greeting.into())).await.is_err() {
        return;
    }
    if matches!(answer, Answer::Close(_)) {
        let _ = socket.close(None).await;
    }
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Binary(data) = message
            && socket.send(Message::Binary(data)).await.is_err()
        {
            return;
        }
    }
}

fn route(method: &str, path: &str) -> Option<(&'static Info, Vec<String>)> {
    TABLE.iter().filter(|info| info.method.as_str() == method).find_map(|info| {
        let (wanted, given): (Vec<_>, Vec<_>) =
            (info.path.split('/').collect(), path.split('/').collect());
        let fits = wanted.len() == given.len()
            && wanted.iter().zip(&given).all(|(a, b)| a == b || a.starts_with('{'));
        let values = wanted.iter().zip(&given).filter(|(a, _)| a.starts_with('{'));
        // Words such as `stream` stand before parameters in the table's order.
        fits.then(|| (info, values.map(|(_, b)| (*b).to_owned()).collect()))
    })
}

fn full(status: u16, bytes: impl Into<Bytes>) -> Response<Body> {
    let body = http_body_util::Full::new(bytes.into()).boxed();
    Response::builder().status(status).body(body).unwrap()
}

fn json(status: u16, value: &Value) -> Response<Body> {
    full(status, value.to_string())
}

fn stream(events: Vec<Value>) -> Response<Body> {
    let frames = futures::stream::iter(events)
        .map(|event| Ok(Frame::data(Bytes::from(format!("data: {event}\n\n")))))
        .chain(futures::stream::pending());
    let body = BodyExt::boxed(StreamBody::new(frames.map(|frame: Result<_, Infallible>| frame)));
    Response::builder().body(body).unwrap()
}
