//! One connection to another node, as the caller sees it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use model::NodeId;
use tokio::io::ReadHalf;
use tokio::io::WriteHalf;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::clock::Clock;
use crate::error::CallError;
use crate::error::Refusal;
use crate::error::RefusalCode;
use crate::method::Method;
use crate::pki::CertificateFacts;
use crate::pki::Identity;
use crate::tls;
use crate::tls::Expect;
use crate::wire::BODY_BYTES_MAX;
use crate::wire::Frame;
use crate::wire::Greeting;
use crate::wire::Kind;
use crate::wire::STRANGER_BYTES_MAX;
use crate::wire::Welcome;
use crate::wire::read_frame;
use crate::wire::write_frame;

/// How long TCP, TLS and the greeting may take together.
pub(crate) const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a frame that has begun may take: four megabytes over a bad line.
const FRAME_PATIENCE: Duration = Duration::from_secs(30);

/// Frames that wait to be written.
const OUTBOX_MAX: usize = 256;

/// Calls at once on one connection: some more than the called side allows, so that it is the one
/// to say "busy".
const CALLS_MAX: usize = 256;

/// A call that timed out while nothing at all was heard for this long ends the connection: the
/// next one is tried on all networks. Longer than a slow fsync, shorter than an election.
const SILENCE_MAX: Duration = Duration::from_millis(700);

/// Keepalive of the kernel, for connections without calls.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(10);

pub(crate) type Stream = TlsStream<TcpStream>;

/// Whom to call and as whom.
#[derive(Debug, Clone)]
pub(crate) struct Dial {
    pub(crate) expect: Expect,
    pub(crate) own: Option<Arc<Identity>>,
    pub(crate) greeting: Greeting,
    pub(crate) clock: Clock,
}

/// Why a connection was not made.
#[derive(Debug, Clone)]
pub(crate) enum DialError {
    /// Nobody was reached, or the connection broke.
    Unreachable(String),
    /// The other side's certificate, or ours, does not do.
    Pki(crate::pki::PkiError),
    /// The other side said no.
    Refused(Refusal),
}

impl DialError {
    pub(crate) fn call_error(self, node: NodeId) -> CallError {
        match self {
            Self::Unreachable(problem) => CallError::Unreachable { node, problem },
            Self::Pki(error) => CallError::Pki(error),
            Self::Refused(refusal) => CallError::Refused { node, refusal },
        }
    }
}

impl From<crate::pki::PkiError> for DialError {
    fn from(error: crate::pki::PkiError) -> Self {
        Self::Pki(error)
    }
}

/// Connects, shows the certificate, checks the other one, greets, and is welcomed.
pub(crate) async fn dial(
    dial: &Dial,
    address: SocketAddr,
) -> Result<(Stream, Welcome, CertificateFacts), DialError> {
    let made = tokio::time::timeout(DIAL_TIMEOUT, dial_without_limit(dial, address)).await;
    made.unwrap_or_else(|_| Err(DialError::Unreachable(format!("{address}: no answer in time"))))
}

async fn dial_without_limit(
    dial: &Dial,
    address: SocketAddr,
) -> Result<(Stream, Welcome, CertificateFacts), DialError> {
    let broken =
        |error: &dyn std::fmt::Display| DialError::Unreachable(format!("{address}: {error}"));
    if let Some(own) = &dial.own {
        // The other side would only see a certificate that does not hold; here is the advice.
        own.facts().check_time(dial.clock.now())?;
    }
    let tcp = TcpStream::connect(address).await.map_err(|error| broken(&error))?;
    prepare(&tcp).map_err(|error| broken(&error))?;
    let (config, verdict) = tls::client(dial.expect.clone(), dial.own.as_deref(), &dial.clock)?;
    let handshake = TlsConnector::from(config).connect(tls::server_name(), tcp).await;
    let mut stream = match (handshake, verdict.take()) {
        (_, Some(Err(error))) => return Err(error.into()),
        (Err(error), _) => return Err(broken(&error)),
        (Ok(stream), Some(Ok(facts))) => (stream, facts),
        (Ok(_), None) => return Err(broken(&"the other side showed no certificate")),
    };
    let greeting = serde_json::to_vec(&dial.greeting).map_err(|error| broken(&error))?;
    let greeting = Frame::new(Kind::Greeting, 0, 0, greeting.into());
    write_frame(&mut stream.0, &greeting).await.map_err(|error| broken(&error))?;
    let (answer, ()) =
        read_frame(&mut stream.0, STRANGER_BYTES_MAX, DIAL_TIMEOUT, async |_: &_| ())
            .await
            .map_err(|error| broken(&error))?;
    match answer.header.kind {
        Kind::Welcome => {
            let welcome = Welcome::decode(&answer.body).map_err(DialError::Refused)?;
            dial.greeting
                .dialects
                .common(
                    crate::wire::Dialects { min: welcome.dialect, max: welcome.dialect },
                    &welcome.version,
                )
                .map_err(DialError::Refused)?;
            Ok((stream.0, welcome, stream.1))
        }
        Kind::Refused => Err(DialError::Refused(refusal(&answer.body))),
        _ => Err(broken(&"the answer to the greeting is none")),
    }
}

/// A refusal from the network.
pub(crate) fn refusal(body: &[u8]) -> Refusal {
    serde_json::from_slice::<Refusal>(body)
        .map(Refusal::cleaned)
        .unwrap_or_else(|error| Refusal::malformed(format!("the refusal cannot be read: {error}")))
}

/// Small frames go out at once; a dead other side is noticed also without calls.
pub(crate) fn prepare(tcp: &TcpStream) -> std::io::Result<()> {
    tcp.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE_AFTER)
        .with_interval(KEEPALIVE_AFTER)
        .with_retries(3);
    socket2::SockRef::from(tcp).set_tcp_keepalive(&keepalive)
}

/// Bytes of a raw stream that the receiver's kernel holds for a reader that is slower than the way:
/// what 10 Gb/s carry in a millisecond.
const STREAM_RECEIVE: usize = 1 << 20;

/// Bytes that the sender's kernel takes in beyond what the way carries at the moment.
const STREAM_UNSENT: u32 = 128 << 10;

/// Keeps little of a raw stream in the kernels: whoever waits for its end, as a guest that stands does
/// in a migration, waits for all that is in them. Left alone they grow to many megabytes.
pub(crate) fn bound(tcp: &TcpStream) -> std::io::Result<()> {
    let socket = socket2::SockRef::from(tcp);
    socket.set_recv_buffer_size(STREAM_RECEIVE)?;
    socket.set_tcp_notsent_lowat(STREAM_UNSENT)
}

type Waiting = HashMap<u32, oneshot::Sender<Result<Bytes, Refusal>>>;

/// A connection that carries calls. Ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Link {
    node: NodeId,
    own_serial: String,
    theirs: CertificateFacts,
    outbox: mpsc::Sender<Frame>,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    next: AtomicU32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    waiting: Waiting,
    heard: Instant,
    ended: Option<String>,
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, problem: &str) {
        let mut state = self.state();
        state.ended.get_or_insert_with(|| problem.to_owned());
        // Who waits learns it by the closed channel.
        state.waiting.clear();
    }
}

impl Link {
    /// Begins to carry calls.
    pub(crate) fn start(
        node: NodeId,
        own_serial: String,
        theirs: CertificateFacts,
        stream: Stream,
    ) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        let (outbox, frames) = mpsc::channel(OUTBOX_MAX);
        let shared = Arc::new(Shared {
            next: AtomicU32::new(1),
            state: Mutex::new(State {
                waiting: HashMap::new(),
                heard: Instant::now(),
                ended: None,
            }),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(read(reader, shared.clone()));
        tasks.spawn(write(writer, frames, shared.clone()));
        Self { node, own_serial, theirs, outbox, shared, _tasks: tasks }
    }

    /// Whether it can carry another call for this identity at this time.
    pub(crate) fn is_good(&self, own: &Identity, now: model::UnixMillis) -> bool {
        self.shared.state().ended.is_none()
            && self.own_serial == own.facts().serial
            && self.theirs.check_time(now).is_ok()
    }

    fn broken(&self) -> CallError {
        let problem = self.shared.state().ended.clone();
        CallError::Broken {
            node: self.node,
            problem: problem.unwrap_or_else(|| "it was ended".to_owned()),
        }
    }

    /// Sends a call and waits for its answer until `deadline`.
    pub(crate) async fn call(
        &self,
        method: Method,
        body: Bytes,
        began: Instant,
        deadline: Duration,
    ) -> Result<Bytes, CallError> {
        let call = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let answer = {
            let mut state = self.shared.state();
            if state.ended.is_some() {
                drop(state);
                return Err(self.broken());
            }
            if state.waiting.len() >= CALLS_MAX {
                return Err(CallError::Busy(self.node));
            }
            let (sender, answer) = oneshot::channel();
            state.waiting.insert(call, sender);
            answer
        };
        // Also when this future is dropped, the answer is no longer waited for.
        let forget = Forget { shared: &self.shared, call };
        let until = began + deadline;
        let mut frame = Frame::new(Kind::Call, method.0, call, body);
        let left = until.saturating_duration_since(Instant::now());
        frame.header.deadline_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
        let sent = Instant::now();
        let answered = tokio::time::timeout_at(until, async {
            self.outbox.send(frame).await.map_err(|_| self.broken())?;
            answer.await.map_err(|_| self.broken())
        })
        .await;
        drop(forget);
        match answered {
            Ok(Ok(Ok(body))) => Ok(body),
            Ok(Ok(Err(refusal))) => Err(CallError::Refused { node: self.node, refusal }),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                let heard = self.shared.state().heard.max(sent);
                if heard == sent && sent.elapsed() >= SILENCE_MAX {
                    self.shared.end("nothing was heard any more");
                }
                let after_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
                Err(CallError::Timeout { node: self.node, after_ms })
            }
        }
    }
}

struct Forget<'a> {
    shared: &'a Shared,
    call: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.shared.state().waiting.remove(&self.call);
    }
}

async fn read(mut reader: ReadHalf<Stream>, shared: Arc<Shared>) {
    loop {
        let read = read_frame(&mut reader, BODY_BYTES_MAX, FRAME_PATIENCE, async |_: &_| ()).await;
        let frame = match read {
            Ok((frame, ())) => frame,
            Err(error) => return shared.end(&error.to_string()),
        };
        let answer = match frame.header.kind {
            Kind::Reply => Ok(frame.body),
            Kind::Refused => Err(refusal(&frame.body)),
            kind => return shared.end(&format!("an unexpected frame came: {kind:?}")),
        };
        let last = matches!(&answer, Err(refusal) if ends_link(refusal.code));
        let waiting = {
            let mut state = shared.state();
            state.heard = Instant::now();
            state.waiting.remove(&frame.header.call)
        };
        // An answer that nobody waits for came too late; that is no fault.
        if let Some(waiting) = waiting {
            let _ = waiting.send(answer);
        }
        if last {
            return shared.end("the other side no longer takes calls from this node");
        }
    }
}

/// Refusals after which the called side ends the connection.
fn ends_link(code: RefusalCode) -> bool {
    matches!(
        code,
        RefusalCode::Evicted
            | RefusalCode::Left
            | RefusalCode::OtherKey
            | RefusalCode::CertificateExpired
            | RefusalCode::Malformed
    )
}

async fn write(
    mut writer: WriteHalf<Stream>,
    mut frames: mpsc::Receiver<Frame>,
    shared: Arc<Shared>,
) {
    while let Some(frame) = frames.recv().await {
        let written = tokio::time::timeout(FRAME_PATIENCE, write_frame(&mut writer, &frame)).await;
        match written {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return shared.end(&error.to_string()),
            Err(_) => return shared.end("the other side takes nothing any more"),
        }
    }
}
