//! Streams between the volume processes of a cluster: TLS with the nodes' own certificates, members only.
//!
//! The process takes and makes them itself, so that a daemon that restarts makes no client silent. Who is
//! a member and where it is, the daemon tells; the identity is read from the node's place, which the
//! daemon writes when a certificate is renewed.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::Weak;
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use bytes::Bytes;
use model::NodeId;
use model::UnixMillis;
use model::VolumeId;
use peer::Clock;
use peer::Handler;
use peer::JoinReply;
use peer::JoinRequest;
use peer::Links;
use peer::LinksConfig;
use peer::Method;
use peer::Patience;
use peer::PeerStream;
use peer::Refusal;
use peer::RefusalCode;
use peer::Server;
use peer::ServerConfig;
use peer::Trust;
use peer::TrustList;
use peer::pki::Identity;
use peer::wire::Dialects;
use tokio::net::TcpListener;
use tokio::sync::watch;
use volume::provider::Coordinator;
use volume::provider::Dial;
use volume::provider::Dialing;
use volume::provider::Stream;

use super::Settings;
use super::words::Member;
use crate::cluster::PlaceDir;

/// Beginning of a stream's name; the volume's id follows.
const NAME: &str = "volume:";

/// How much later the next address of a node is tried.
const STAGGER: Duration = Duration::from_millis(150);

/// What a stream within this process holds that nobody has read.
const PIPE_BYTES: usize = 1 << 20;

/// The way to other processes, and the coordinators that theirs come to.
#[derive(Clone)]
pub(super) struct Streams(Arc<Inner>);

struct Inner {
    settings: Arc<Settings>,
    known: Mutex<Known>,
    serving: Mutex<BTreeMap<VolumeId, Arc<Coordinator>>>,
    up: Mutex<Option<Up>>,
}

#[derive(Default)]
struct Known {
    members: BTreeMap<NodeId, (Trust, Vec<SocketAddr>)>,
}

struct Up {
    identity: watch::Sender<Arc<Identity>>,
    links: Links,
    _server: Server,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Only whole values are put in and taken out.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Streams {
    pub(super) fn new(settings: Arc<Settings>) -> Self {
        let (known, serving, up) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self(Arc::new(Inner { settings, known, serving, up }))
    }

    /// Takes up who the members are, and this node's identity as it is now.
    ///
    /// # Errors
    /// The identity cannot be read; the port cannot be opened.
    pub(super) async fn told(&self, members: &[Member], gone: &[NodeId]) -> anyhow::Result<()> {
        let key = |it: &Member| it.key.as_ref().and_then(|key| key.parse().ok());
        let out = |node: &NodeId| {
            let at = UnixMillis::new(0);
            (*node, (Trust::Evicted { at }, Vec::new()))
        };
        let there = members
            .iter()
            .map(|it| (it.node, (Trust::Member(key(it)), it.addresses.clone())))
            .chain(gone.iter().map(out));
        locked(&self.0.known).members = there.collect();
        self.identify(&self.0.settings.data_dir).await
    }

    async fn identify(&self, data_dir: &Path) -> anyhow::Result<()> {
        let Some(place) = PlaceDir::new(data_dir).read()? else { return Ok(()) };
        let own = Arc::new(place.identity);
        if own.node() != self.0.settings.node {
            anyhow::bail!("this host is another node by now");
        }
        if let Some(up) = &*locked(&self.0.up) {
            if up.identity.borrow().facts().serial != own.facts().serial {
                up.identity.send_replace(own);
            }
            return Ok(());
        }
        let listen = self.0.settings.listen;
        let listener = TcpListener::bind(listen).await;
        let listener = listener.with_context(|| format!("the port {listen} cannot be opened"))?;
        let (identity, watched) = watch::channel(own);
        let weak = Arc::downgrade(&self.0);
        let trust: TrustList = Arc::new(move |node| trust(&weak, node));
        let weak = Arc::downgrade(&self.0);
        let addresses: peer::AddressBook = Arc::new(move |node| addresses(&weak, node));
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let links = Links::new(LinksConfig {
            identity: watched.clone(),
            addresses,
            trust: trust.clone(),
            clock: Clock::host(),
            dialects: Dialects::default(),
            version: version.clone(),
        });
        let config = ServerConfig {
            identity: watched,
            trust,
            clock: Clock::host(),
            dialects: Dialects::default(),
            version,
            patience: Patience::default(),
        };
        let port = Arc::new(Port(Arc::downgrade(&self.0)));
        let server = Server::start(vec![listener], config, port);
        *locked(&self.0.up) = Some(Up { identity, links, _server: server });
        tracing::info!(%listen, "volumes are shared with other nodes here");
        Ok(())
    }

    /// From now on clients come to this coordinator.
    pub(super) fn serve(&self, volume: VolumeId, coordinator: Arc<Coordinator>) {
        locked(&self.0.serving).insert(volume, coordinator);
    }

    /// From now on none comes.
    pub(super) fn unserve(&self, volume: VolumeId) {
        locked(&self.0.serving).remove(&volume);
    }

    /// What makes connections to a volume's coordinator.
    pub(super) fn dialer(&self, volume: VolumeId) -> impl Dial {
        Dialer { volume, streams: self.clone() }
    }

    fn coordinator(&self, volume: VolumeId) -> Option<Arc<Coordinator>> {
        locked(&self.0.serving).get(&volume).cloned()
    }
}

fn trust(inner: &Weak<Inner>, node: NodeId) -> Trust {
    let inner = inner.upgrade();
    let trust = inner.and_then(|it| locked(&it.known).members.get(&node).map(|it| it.0.clone()));
    // The daemon may be behind; a coordinator takes nobody whom the state did not name.
    trust.unwrap_or(Trust::Unknown)
}

fn addresses(inner: &Weak<Inner>, node: NodeId) -> Vec<SocketAddr> {
    let inner = inner.upgrade();
    let found = inner.and_then(|it| locked(&it.known).members.get(&node).map(|it| it.1.clone()));
    found.unwrap_or_default()
}

struct Dialer {
    volume: VolumeId,
    streams: Streams,
}

impl Dial for Dialer {
    fn dial(&self, to: NodeId) -> Dialing {
        let (volume, streams) = (self.volume, self.streams.clone());
        Box::pin(async move {
            let stream: Box<dyn Stream> = if to == streams.0.settings.node {
                let coordinator = streams.coordinator(volume);
                let coordinator =
                    coordinator.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionRefused))?;
                let (near, far) = tokio::io::duplex(PIPE_BYTES);
                coordinator.accept(to, far);
                Box::new(near)
            } else {
                let links = locked(&streams.0.up).as_ref().map(|up| up.links.clone());
                let links = links.ok_or_else(|| io::Error::other("this host is in no cluster"))?;
                let book = addresses(&Arc::downgrade(&streams.0), to);
                let name = format!("{NAME}{volume}");
                let made = links.stream_by(to, &name, book, STAGGER).await;
                Box::new(made.map_err(io::Error::other)?.0)
            };
            Ok(stream)
        })
    }
}

/// What this process does for others: streams of volumes, and nothing else.
struct Port(Weak<Inner>);

fn refused() -> Refusal {
    let message = "this is the port of shared volumes";
    Refusal::new(RefusalCode::UnknownMethod, message, "call the peer port")
}

#[async_trait]
impl Handler for Port {
    async fn call(&self, _: NodeId, _: Method, _: Bytes) -> Result<Bytes, Refusal> {
        Err(refused())
    }

    async fn stream(&self, from: NodeId, name: &str, stream: PeerStream) {
        let volume = name.strip_prefix(NAME).and_then(|volume| volume.parse().ok());
        let inner = self.0.upgrade();
        let coordinator =
            volume.zip(inner).and_then(|(id, it)| locked(&it.serving).get(&id).cloned());
        match coordinator {
            // A task of its own: the coordinator must be free to end.
            Some(coordinator) => coordinator.accept(from, stream),
            None => tracing::debug!(%from, name, "nothing is coordinated here by that name"),
        }
    }

    async fn join(&self, _: JoinRequest, _: SocketAddr) -> Result<JoinReply, Refusal> {
        Err(refused())
    }
}
