//! The peer port.
//!
//! ```text
//!   accept -> handshake -> greeting -> admit -+-> calls: each in a task, within limits
//!     (strangers: few, short, small)          +-> stream: handed to the handler
//!                                             +-> join: one call
//! ```
//!
//! Trust boundary. A stranger holds one of [`STRANGERS_MAX`] places (few for each address) for at
//! most [`Patience::greeting`]. A member has its own budget of calls, bytes and connections, so that
//! one that went mad does not take the others' room.

use std::collections::HashMap;
use std::collections::HashSet;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::Weak;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use model::NodeId;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::io::ReadHalf;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::clock::Clock;
use crate::error::Refusal;
use crate::error::RefusalCode;
use crate::join::JOIN_TIMEOUT;
use crate::join::JoinReply;
use crate::join::JoinRequest;
use crate::join::LookRequest;
use crate::link::bound;
use crate::link::prepare;
use crate::method::Method;
use crate::pki::CertificateFacts;
use crate::pki::Identity;
use crate::pki::PkiError;
use crate::tls;
use crate::trust::TrustList;
use crate::wire::BODY_BYTES_MAX;
use crate::wire::Dialects;
use crate::wire::Frame;
use crate::wire::Greeting;
use crate::wire::Header;
use crate::wire::Kind;
use crate::wire::Purpose;
use crate::wire::ReadError;
use crate::wire::STRANGER_BYTES_MAX;
use crate::wire::Welcome;
use crate::wire::read_frame;
use crate::wire::write_frame;

/// Connections that have not been admitted yet.
const STRANGERS_MAX: usize = 256;

/// Of these, from one address: five nodes behind one, with all their connections at once.
const STRANGERS_OF_ADDRESS_MAX: usize = 32;

/// How long a farewell or a welcome may take to be written.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections of one member: two for calls, one for each console that it passes on.
const CONNECTIONS_OF_MEMBER_MAX: usize = 128;

/// Calls of one member at once.
const CALLS_OF_MEMBER_MAX: usize = 128;

/// Bytes of calls of one member that are held at once, in kilobytes.
const KILOBYTES_OF_MEMBER_MAX: usize = 32 * 1024;

/// The longest deadline that is believed.
const DEADLINE_MAX: Duration = Duration::from_secs(120);

/// Answers that wait to be written.
const OUTBOX_MAX: usize = 64;

/// A raw stream between two nodes, encrypted.
pub type PeerStream = Box<dyn Duplex>;

/// Bytes both ways.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// What a node does for others.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Answers a call of a member. Dropped when the caller's deadline is over or it has gone.
    async fn call(&self, from: NodeId, method: Method, body: Bytes) -> Result<Bytes, Refusal>;

    /// Takes over a stream that a member has opened. A name that is not known: drop it.
    async fn stream(&self, from: NodeId, name: &str, stream: PeerStream);

    /// Takes a host in, or not. The caller has proven nothing but that it knows the address.
    async fn join(&self, request: JoinRequest, from: SocketAddr) -> Result<JoinReply, Refusal>;

    /// Answers a host that thinks of joining, or not. The caller has proven nothing; the secret of
    /// a token is in the request.
    async fn look(&self, _request: LookRequest, _from: SocketAddr) -> Result<Bytes, Refusal> {
        Err(Refusal::new(RefusalCode::UnknownMethod, "this node shows strangers nothing", ""))
    }
}

/// How long the port waits for others.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Handshake and greeting together: some round trips and two signatures.
    pub greeting: Duration,
    /// A frame that has begun, in either direction: eight megabytes over a bad line.
    pub frame: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { greeting: Duration::from_secs(5), frame: Duration::from_secs(30) }
    }
}

/// What the port needs.
#[derive(Clone)]
pub struct ServerConfig {
    /// Who this node is; changes when its certificate is renewed.
    pub identity: watch::Receiver<Arc<Identity>>,
    /// Whom to take calls from.
    pub trust: TrustList,
    /// The clock of certificates.
    pub clock: Clock,
    /// What is spoken; the default but in tests.
    pub dialects: Dialects,
    /// Version of the program, told to the other side.
    pub version: String,
    /// How long is waited; the default but in tests.
    pub patience: Patience,
}

/// The peer port; ends with its last connection when it is dropped.
pub struct Server {
    _tasks: JoinSet<()>,
}

struct Port {
    config: ServerConfig,
    handler: Arc<dyn Handler>,
    strangers: Mutex<HashMap<IpAddr, usize>>,
    members: Mutex<HashMap<NodeId, Weak<Budget>>>,
}

/// What a member may use at once, over all its connections.
struct Budget {
    connections: Arc<Semaphore>,
    calls: Arc<Semaphore>,
    kilobytes: Arc<Semaphore>,
}

/// A member's connection after the greeting.
struct Admitted {
    node: NodeId,
    facts: CertificateFacts,
    budget: Arc<Budget>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Server")
    }
}

impl Server {
    /// Serves the listeners, one for each address.
    pub fn start(
        listeners: Vec<TcpListener>,
        config: ServerConfig,
        handler: Arc<dyn Handler>,
    ) -> Self {
        let port = Arc::new(Port {
            config,
            handler,
            strangers: Mutex::new(HashMap::new()),
            members: Mutex::new(HashMap::new()),
        });
        let mut tasks = JoinSet::new();
        for listener in listeners {
            tasks.spawn(port.clone().listen(listener));
        }
        Self { _tasks: tasks }
    }
}

/// A place among the strangers, given back when it is dropped.
struct Place {
    port: Arc<Port>,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut strangers = self.port.strangers();
        if let Some(count) = strangers.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                strangers.remove(&self.address);
            }
        }
    }
}

impl Port {
    fn strangers(&self) -> std::sync::MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn listen(self: Arc<Self>, listener: TcpListener) {
        // Connections end with the port.
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let (tcp, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, most likely: at once it would fail again.
                    tracing::warn!(%error, "a connection of a peer could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            // No place: closed at once, so that those who wait in line are not strangers either.
            let Some(place) = self.place(from.ip()) else { continue };
            connections.spawn(self.clone().connection(tcp, from, place));
        }
    }

    fn place(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let mut strangers = self.strangers();
        if strangers.values().sum::<usize>() >= STRANGERS_MAX {
            return None;
        }
        let count = strangers.entry(address).or_default();
        if *count >= STRANGERS_OF_ADDRESS_MAX {
            return None;
        }
        *count += 1;
        drop(strangers);
        Some(Place { port: self.clone(), address })
    }

    async fn connection(self: Arc<Self>, tcp: TcpStream, from: SocketAddr, place: Place) {
        let greeted = timeout(self.config.patience.greeting, self.greet(tcp)).await;
        let (mut stream, greeting) = match greeted {
            Ok(Ok(greeted)) => greeted,
            Ok(Err(error)) => {
                tracing::debug!(%error, %from, "a connection ended before its greeting");
                return;
            }
            Err(_) => {
                tracing::debug!(%from, "a connection did not greet in time");
                return;
            }
        };
        let admitted = self.admit(&greeting, &stream);
        let (dialect, admitted) = match admitted {
            Ok(admitted) => admitted,
            Err(refusal) => {
                tracing::info!(%from, node = %greeting.node, %refusal, "a peer was refused");
                return farewell(&mut stream, 0, &refusal).await;
            }
        };
        let welcome = Welcome {
            dialect,
            version: self.config.version.clone(),
            node: self.config.identity.borrow().node(),
        };
        // Our own type with text keys: it always has a JSON form.
        let body = serde_json::to_vec(&welcome).unwrap_or_default();
        let frame = Frame::new(Kind::Welcome, 0, 0, body.into());
        if !matches!(timeout(FAREWELL_TIMEOUT, write_frame(&mut stream, &frame)).await, Ok(Ok(())))
        {
            return;
        }
        match (greeting.purpose, admitted) {
            (Purpose::Join, _) => self.join(stream, from, place).await,
            (_, None) => {}
            (purpose, Some(admitted)) => {
                drop(place);
                let Ok(_room) = admitted.budget.connections.clone().try_acquire_owned() else {
                    return;
                };
                match purpose {
                    Purpose::Stream(name) => {
                        if let Err(error) = bound(stream.get_ref().0) {
                            tracing::debug!(%error, "a stream's buffers cannot be set");
                        }
                        self.handler.stream(admitted.node, &name, Box::new(stream)).await;
                    }
                    _ => self.calls(stream, admitted).await,
                }
            }
        }
    }

    async fn greet(
        &self,
        tcp: TcpStream,
    ) -> Result<(TlsStream<TcpStream>, Greeting), Box<dyn std::error::Error + Send + Sync>> {
        prepare(&tcp)?;
        let own = self.config.identity.borrow().clone();
        let acceptor = TlsAcceptor::from(tls::server(&own, &self.config.clock)?);
        let mut stream = acceptor.accept(tcp).await?;
        let read = read_frame(
            &mut stream,
            STRANGER_BYTES_MAX,
            self.config.patience.greeting,
            async |_: &Header| (),
        );
        let frame = match read.await {
            Ok((frame, ())) => frame,
            Err(error @ (ReadError::TooLarge { .. } | ReadError::Malformed(_))) => {
                farewell(&mut stream, 0, &Refusal::malformed(error.to_string())).await;
                return Err(error.into());
            }
            Err(error) => return Err(error.into()),
        };
        let greeting = match frame.header.kind {
            Kind::Greeting => Greeting::decode(&frame.body),
            _ => Err(Refusal::malformed("the first frame is no greeting")),
        };
        match greeting {
            Ok(greeting) => Ok((stream, greeting)),
            Err(refusal) => {
                farewell(&mut stream, 0, &refusal).await;
                Err(refusal.into())
            }
        }
    }

    /// Decides whether whoever greets so may go on, and as whom.
    fn admit(
        &self,
        greeting: &Greeting,
        stream: &TlsStream<TcpStream>,
    ) -> Result<(u16, Option<Admitted>), Refusal> {
        let dialect = self.config.dialects.common(greeting.dialects, &greeting.version)?;
        let own = self.config.identity.borrow().clone();
        let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
        if greeting.cluster != own.cluster() {
            let theirs = match greeting.cluster_name.as_str() {
                "" => "another cluster".to_owned(),
                name => format!("the cluster '{name}'"),
            };
            return Err(Refusal::new(
                RefusalCode::WrongCluster,
                format!("the caller means {theirs}; this is '{}'", own.cluster_name()),
                "see that the address and the token are of the cluster you mean",
            ));
        }
        if greeting.purpose == Purpose::Join {
            return Ok((dialect, None));
        }
        let leaf = certificates.first().ok_or_else(|| {
            Refusal::new(
                RefusalCode::NoCertificate,
                "only members of the cluster may call here",
                "join first: muster cluster join TOKEN",
            )
        })?;
        let facts = own.ca().check(leaf, self.config.clock.now()).map_err(|error| pki(&error))?;
        let node = facts.node.ok_or_else(|| pki(&PkiError::NoNode))?;
        if node != greeting.node {
            return Err(Refusal::new(
                RefusalCode::WrongNode,
                format!("the caller says to be {}, its certificate says {node}", greeting.node),
                "restart that node's daemon",
            ));
        }
        if node == own.node() {
            return Err(Refusal::new(
                RefusalCode::WrongNode,
                "the caller says to be this very node",
                "two hosts have the same data: set one of them up anew and join it",
            ));
        }
        (self.config.trust)(node).admit(node, &facts.key)?;
        let budget = self.budget(node);
        Ok((dialect, Some(Admitted { node, facts, budget })))
    }

    fn budget(&self, node: NodeId) -> Arc<Budget> {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        members.retain(|_, budget| budget.strong_count() > 0);
        if let Some(budget) = members.get(&node).and_then(Weak::upgrade) {
            return budget;
        }
        let budget = Arc::new(Budget {
            connections: Arc::new(Semaphore::new(CONNECTIONS_OF_MEMBER_MAX)),
            calls: Arc::new(Semaphore::new(CALLS_OF_MEMBER_MAX)),
            kilobytes: Arc::new(Semaphore::new(KILOBYTES_OF_MEMBER_MAX)),
        });
        members.insert(node, Arc::downgrade(&budget));
        budget
    }

    async fn join(self: Arc<Self>, mut stream: TlsStream<TcpStream>, from: SocketAddr, _p: Place) {
        let patience = self.config.patience.greeting;
        let asked = timeout(
            patience,
            read_frame(&mut stream, STRANGER_BYTES_MAX, patience, async |_: &Header| ()),
        );
        let Ok(Ok((frame, ()))) = asked.await else { return };
        let method = Method(frame.header.method);
        if frame.header.kind != Kind::Call || !matches!(method, Method::JOIN | Method::LOOK) {
            let refusal = Refusal::malformed("this connection is for a join");
            return farewell(&mut stream, frame.header.call, &refusal).await;
        }
        let answered = timeout(JOIN_TIMEOUT, self.answer_stranger(method, &frame.body, from));
        match answered.await.unwrap_or_else(|_| Err(deadline())) {
            Err(refusal) => {
                tracing::info!(%from, %refusal, "a host may not join");
                farewell(&mut stream, frame.header.call, &refusal).await;
            }
            Ok(reply) => {
                let frame = Frame::new(Kind::Reply, method.0, frame.header.call, reply);
                // The host may have gone; then it asks again and is told that it is a member.
                let _ = timeout(FAREWELL_TIMEOUT, write_frame(&mut stream, &frame)).await;
                let _ = timeout(FAREWELL_TIMEOUT, stream.shutdown()).await;
            }
        }
    }

    async fn answer_stranger(
        &self,
        method: Method,
        body: &[u8],
        from: SocketAddr,
    ) -> Result<Bytes, Refusal> {
        if method == Method::LOOK {
            return self.handler.look(LookRequest::decode(body)?, from).await;
        }
        let reply = self.handler.join(JoinRequest::decode(body)?, from).await?;
        Ok(serde_json::to_vec(&reply).unwrap_or_default().into())
    }

    /// Serves the calls of one connection until it ends.
    async fn calls(self: Arc<Self>, stream: TlsStream<TcpStream>, admitted: Admitted) {
        let patience = self.config.patience.frame;
        let (reader, mut writer) = tokio::io::split(stream);
        let (outbox, mut frames) = mpsc::channel::<Frame>(OUTBOX_MAX);
        let writing = async move {
            while let Some(frame) = frames.recv().await {
                let written = timeout(patience, write_frame(&mut writer, &frame)).await;
                if !matches!(written, Ok(Ok(()))) {
                    return;
                }
            }
        };
        let reading = self.read_calls(reader, outbox, admitted);
        let mut writing = std::pin::pin!(writing);
        tokio::select! {
            () = &mut writing => {}
            // The last answers are written after the reading has ended.
            () = reading => {
                let _ = timeout(FAREWELL_TIMEOUT, writing).await;
            }
        }
    }

    /// Takes calls and has them answered, until the peer goes or must go.
    async fn read_calls(
        &self,
        mut reader: ReadHalf<TlsStream<TcpStream>>,
        outbox: mpsc::Sender<Frame>,
        admitted: Admitted,
    ) {
        let Admitted { node, facts, budget } = admitted;
        let patience = self.config.patience.frame;
        let mut running = JoinSet::new();
        let mut open = HashSet::new();
        loop {
            let room = async |header: &Header| {
                let kilobytes = header.length.div_ceil(1024).max(1);
                budget.kilobytes.clone().acquire_many_owned(kilobytes).await
            };
            let frame = tokio::select! {
                read = read_frame(&mut reader, BODY_BYTES_MAX, patience, room) => read,
                Some(ended) = running.join_next() => {
                    if let Ok(call) = ended {
                        open.remove(&call);
                    }
                    continue;
                }
            };
            let (frame, bytes) = match frame {
                Ok((frame, Ok(bytes))) => (frame, bytes),
                Ok((_, Err(_))) => return,
                Err(error) => {
                    tracing::debug!(%node, %error, "a peer's connection ended");
                    if let ReadError::TooLarge { .. } | ReadError::Malformed(_) = error {
                        let refusal = Refusal::malformed(error.to_string());
                        let _ = outbox.send(refused(0, &refusal)).await;
                    }
                    return;
                }
            };
            let call = frame.header.call;
            if let Err(refusal) = self.check_call(node, &facts, &frame, &mut open) {
                tracing::info!(%node, %refusal, "a peer's connection is ended");
                let _ = outbox.send(refused(call, &refusal)).await;
                return;
            }
            let Ok(place) = budget.calls.clone().try_acquire_owned() else {
                open.remove(&call);
                if outbox.send(refused(call, &busy())).await.is_err() {
                    return;
                }
                continue;
            };
            let handler = self.handler.clone();
            let outbox = outbox.clone();
            running.spawn(async move {
                let answer = answer(&*handler, node, frame).await;
                // Who has gone does not need the answer.
                let _ = outbox.send(answer).await;
                drop((place, bytes));
                call
            });
        }
    }

    /// What must hold for each call, also long after the greeting.
    fn check_call(
        &self,
        node: NodeId,
        facts: &CertificateFacts,
        frame: &Frame,
        open: &mut HashSet<u32>,
    ) -> Result<(), Refusal> {
        if frame.header.kind != Kind::Call {
            return Err(Refusal::malformed("this is no call"));
        }
        (self.config.trust)(node).admit(node, &facts.key)?;
        facts.check_time(self.config.clock.now()).map_err(|error| pki(&error))?;
        if !open.insert(frame.header.call) {
            return Err(Refusal::malformed("a call with this number is under way already"));
        }
        Ok(())
    }
}

async fn answer(handler: &dyn Handler, from: NodeId, frame: Frame) -> Frame {
    let Header { method, call, deadline_ms, .. } = frame.header;
    let limit = Duration::from_millis(u64::from(deadline_ms)).min(DEADLINE_MAX);
    let done = timeout(limit, handler.call(from, Method(method), frame.body)).await;
    match done.unwrap_or_else(|_| Err(deadline())) {
        Ok(body) if body.len() > BODY_BYTES_MAX => {
            let refusal = Refusal::new(
                RefusalCode::TooLarge,
                format!("the answer has {} bytes, more than {BODY_BYTES_MAX}", body.len()),
                "ask for less",
            );
            refused(call, &refusal)
        }
        Ok(body) => Frame::new(Kind::Reply, method, call, body),
        Err(refusal) => refused(call, &refusal),
    }
}

fn deadline() -> Refusal {
    Refusal::new(RefusalCode::Deadline, "it took longer than the caller waits", "try again")
}

fn busy() -> Refusal {
    Refusal::new(
        RefusalCode::Busy,
        "too many calls of this node are under way",
        "try again in a moment",
    )
}

fn refused(call: u32, refusal: &Refusal) -> Frame {
    let body = serde_json::to_vec(refusal).unwrap_or_default();
    Frame::new(Kind::Refused, 0, call, body.into())
}

/// Says why, and ends.
async fn farewell(stream: &mut TlsStream<TcpStream>, call: u32, refusal: &Refusal) {
    // Whoever does not listen learns it by the end.
    let _ = timeout(FAREWELL_TIMEOUT, async {
        write_frame(stream, &refused(call, refusal)).await?;
        stream.shutdown().await
    })
    .await;
}

fn pki(error: &PkiError) -> Refusal {
    let code = match error {
        PkiError::Expired { .. } => RefusalCode::CertificateExpired,
        PkiError::NotYetValid { .. } => RefusalCode::CertificateNotYetValid,
        PkiError::WrongNode { .. } => RefusalCode::WrongNode,
        _ => RefusalCode::ForeignCertificate,
    };
    // The message holds the advice.
    Refusal::new(code, error.to_string(), "")
}
