//! The crate as a whole, over real sockets on the loopback device.

mod calls;
mod hostile;
mod joining;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use model::ClusterId;
use model::NodeId;
use model::UnixMillis;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::sync::watch;
use uuid::Uuid;

use crate::CallError;
use crate::Clock;
use crate::Handler;
use crate::JoinReply;
use crate::JoinRequest;
use crate::Links;
use crate::LinksConfig;
use crate::LookRequest;
use crate::Method;
use crate::Patience;
use crate::PeerStream;
use crate::Refusal;
use crate::RefusalCode;
use crate::Server;
use crate::ServerConfig;
use crate::Trust;
use crate::pki::ClusterCa;
use crate::pki::Identity;
use crate::wire::Dialects;

const CLUSTER: ClusterId = ClusterId::new(Uuid::from_u128(1));
/// 2026-11-21 06:16 UTC.
const NOW: UnixMillis = UnixMillis::new(1_795_241_760_000);
const DAY_MS: u64 = 86_400_000;
const SOON: Duration = Duration::from_secs(10);

/// Answers at once with the body.
const ECHO: Method = Method::ECHO;
/// Answers when the test lets it.
const HOLD: Method = Method(900);
/// Answers "no".
const NO: Method = Method(901);

fn node(n: u128) -> NodeId {
    NodeId::new(Uuid::from_u128(n))
}

/// A clock that tests move.
#[derive(Clone)]
struct Hands(Arc<AtomicU64>);

impl Hands {
    fn new() -> Self {
        Self(Arc::new(AtomicU64::new(NOW.get())))
    }

    fn clock(&self) -> Clock {
        let hands = self.0.clone();
        Clock::from_fn(move || UnixMillis::new(hands.load(Ordering::Relaxed)))
    }

    fn set_days(&self, days: u64) {
        self.0.store(NOW.get() + days * DAY_MS, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Seen {
    calls: AtomicUsize,
    joins: AtomicUsize,
    /// Calls of [`HOLD`] that are inside, and those that were dropped there.
    held: AtomicUsize,
    dropped: AtomicUsize,
}

struct Service {
    seen: Arc<Seen>,
    gate: watch::Receiver<bool>,
    ca: Arc<ClusterCa>,
}

struct Inside<'a>(&'a Seen, bool);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::SeqCst);
        if !self.1 {
            self.0.dropped.fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[async_trait]
impl Handler for Service {
    async fn call(&self, from: NodeId, method: Method, body: Bytes) -> Result<Bytes, Refusal> {
        self.seen.calls.fetch_add(1, Ordering::SeqCst);
        match method {
            ECHO => Ok(body),
            HOLD => {
                self.seen.held.fetch_add(1, Ordering::SeqCst);
                let mut inside = Inside(&self.seen, false);
                let mut gate = self.gate.clone();
                let _ = gate.wait_for(|open| *open).await;
                inside.1 = true;
                Ok(Bytes::from(from.to_string()))
            }
            NO => Err(Refusal::new(RefusalCode::Failed, "no", "ask something else")),
            _ => Err(Refusal::new(RefusalCode::UnknownMethod, "what?", "upgrade this node")),
        }
    }

    async fn stream(&self, _from: NodeId, name: &str, mut stream: PeerStream) {
        if name == "shout" {
            let mut buffer = [0; 64];
            while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                buffer[..count].make_ascii_uppercase();
                stream.write_all(&buffer[..count]).await.unwrap();
                stream.flush().await.unwrap();
            }
        }
    }

    async fn look(&self, request: LookRequest, _from: SocketAddr) -> Result<Bytes, Refusal> {
        if request.secret.len() != 64 {
            return Err(Refusal::new(RefusalCode::Token, "the token has ended", "make another"));
        }
        Ok(request.question.to_string().into())
    }

    async fn join(&self, request: JoinRequest, _from: SocketAddr) -> Result<JoinReply, Refusal> {
        self.seen.joins.fetch_add(1, Ordering::SeqCst);
        if request.secret != "right" {
            return Err(Refusal::new(RefusalCode::Token, "the token has ended", "make another"));
        }
        let csr = request.certificate_request()?;
        let certificate = self
            .ca
            .issue(CLUSTER, request.node, &csr, NOW)
            .map_err(|error| Refusal::new(RefusalCode::Malformed, error.to_string(), ""))?;
        Ok(JoinReply {
            cluster: CLUSTER,
            cluster_name: "lab".to_owned(),
            ca: self.ca.public().pem().to_owned(),
            certificate,
            members: Vec::new(),
        })
    }
}

/// What the nodes of a test share.
struct World {
    ca: Arc<ClusterCa>,
    hands: Hands,
    trust: Arc<Mutex<HashMap<NodeId, Trust>>>,
    book: Arc<Mutex<HashMap<NodeId, Vec<SocketAddr>>>>,
}

struct Peer {
    id: NodeId,
    links: Links,
    identity: watch::Sender<Arc<Identity>>,
    address: SocketAddr,
    seen: Arc<Seen>,
    gate: watch::Sender<bool>,
    server: Server,
}

impl World {
    fn new() -> Self {
        let ca = ClusterCa::create(CLUSTER, "lab", NOW).unwrap();
        Self { ca: Arc::new(ca), hands: Hands::new(), trust: Arc::default(), book: Arc::default() }
    }

    fn identity(&self, n: u128) -> Identity {
        Identity::first((CLUSTER, "lab"), node(n), &self.ca, NOW).unwrap()
    }

    async fn peer(&self, n: u128) -> Peer {
        self.peer_with(self.identity(n), Dialects::default(), Patience::default()).await
    }

    async fn peer_with(&self, own: Identity, dialects: Dialects, patience: Patience) -> Peer {
        let id = own.node();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        self.book.lock().unwrap().insert(id, vec![address]);
        let (identity, watched) = watch::channel(Arc::new(own));
        let (gate, opened) = watch::channel(false);
        let seen = Arc::new(Seen::default());
        let trust = self.trust.clone();
        let trust: crate::TrustList =
            Arc::new(move |id| trust.lock().unwrap().get(&id).cloned().unwrap_or(Trust::Unknown));
        let book = self.book.clone();
        let links = Links::new(LinksConfig {
            identity: watched.clone(),
            addresses: Arc::new(move |id| {
                book.lock().unwrap().get(&id).cloned().unwrap_or_default()
            }),
            trust: trust.clone(),
            clock: self.hands.clock(),
            dialects,
            version: "0.1.0".to_owned(),
        });
        let config = ServerConfig {
            identity: watched,
            trust,
            clock: self.hands.clock(),
            dialects,
            version: "0.1.0".to_owned(),
            patience,
        };
        let service = Service { seen: seen.clone(), gate: opened, ca: self.ca.clone() };
        let server = Server::start(vec![listener], config, Arc::new(service));
        Peer { id, links, identity, address, seen, gate, server }
    }

    fn trust(&self, id: NodeId, trust: Trust) {
        self.trust.lock().unwrap().insert(id, trust);
    }
}

impl Peer {
    async fn echo(&self, to: &Peer, text: &str) -> Result<Bytes, CallError> {
        self.links.call(to.id, ECHO, Bytes::from(text.to_owned()), SOON).await
    }

    async fn speaks_with(&self, to: &Peer) {
        assert_eq!(self.echo(to, "hello").await.unwrap(), "hello");
    }

    fn calls(&self) -> usize {
        self.seen.calls.load(Ordering::SeqCst)
    }
}

/// Waits until something is so.
async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let wait = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(SOON, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}
