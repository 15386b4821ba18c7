//! The peer port and calls to other nodes.
//!
//! A host that is in no cluster has neither; making or joining a cluster brings both up. The port
//! opens before the state is caught up, since that is what it is needed for; what needs more (the
//! API, the state) is put in its place as it comes up, and refused as "busy" before.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::sync::Weak;
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use axum::Router;
use bytes::BufMut;
use bytes::Bytes;
use bytes::BytesMut;
use cluster::raft::PeerMethod;
use cluster::raft::PeerReply;
use cluster::raft::PeerRequest;
use cluster::raft::PeerService;
use cluster::raft::RaftTransport;
use cluster::raft::TransportError;
use model::ClusterState;
use model::Gone;
use model::Membership;
use model::NodeId;
use model::Way;
use peer::CallError;
use peer::Clock;
use peer::Handler;
use peer::JoinReply;
use peer::JoinRequest;
use peer::Links;
use peer::LinksConfig;
use peer::LookRequest;
use peer::Member;
use peer::Method;
use peer::Patience;
use peer::PeerStream;
use peer::Refusal;
use peer::RefusalCode;
use peer::Server;
use peer::ServerConfig;
use peer::Trust;
use peer::pki::Identity;
use peer::wire::Dialects;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::app::App;
use crate::cluster::Place;
use crate::cluster::PlaceDir;
use crate::cluster::join;
use crate::cluster::rebuild;
use crate::cluster::status;
use crate::config::Config;
use crate::fencing;
use crate::http::own_progress;
use crate::migrate;
use crate::migrate::PROBE_STREAM;

/// Name of the stream that carries requests of the API.
pub(crate) const API_STREAM: &str = "api";

/// This node's way to the others. Clones share it.
#[derive(Clone)]
pub(crate) struct Peers(Arc<Inner>);

struct Inner {
    config: Config,
    dir: PlaceDir,
    up: Mutex<Option<Up>>,
    state: OnceLock<watch::Receiver<Arc<ClusterState>>>,
    /// Not held: the log itself holds this way to the others.
    service: OnceLock<Weak<dyn PeerService>>,
    app: OnceLock<Weak<App>>,
    router: OnceLock<Router>,
    /// Set when another member says that this node is no longer one.
    gone: watch::Sender<Option<Gone>>,
}

/// What there is while the node is in a cluster.
struct Up {
    place: Place,
    identity: watch::Sender<Arc<Identity>>,
    links: Links,
    _server: Server,
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Peers")
    }
}

impl Peers {
    pub(crate) fn new(config: &Config) -> Self {
        Self(Arc::new(Inner {
            config: config.clone(),
            dir: PlaceDir::new(&config.data_dir),
            up: Mutex::new(None),
            state: OnceLock::new(),
            service: OnceLock::new(),
            app: OnceLock::new(),
            router: OnceLock::new(),
            gone: watch::Sender::new(None),
        }))
    }

    /// Ways for the memory of a machine that goes to a node, the preferred one first.
    pub(crate) fn migration_ways(&self, to: NodeId) -> Vec<Way> {
        let own = self.identity().map(|own| own.node());
        own.map_or_else(Vec::new, |from| self.0.migration_ways(from, to))
    }

    pub(crate) fn dir(&self) -> &PlaceDir {
        &self.0.dir
    }

    /// From now on, the state tells who is trusted and where nodes are.
    pub(crate) fn set_state(&self, state: watch::Receiver<Arc<ClusterState>>) {
        // Set once, at the start.
        let _ = self.0.state.set(state);
    }

    /// From now on, the log's messages are answered.
    pub(crate) fn set_service(&self, service: Weak<dyn PeerService>) {
        let _ = self.0.service.set(service);
    }

    /// From now on, joins, questions and requests of the API are answered.
    pub(crate) fn set_app(&self, app: &Arc<App>, router: Router) {
        let _ = self.0.app.set(Arc::downgrade(app));
        let _ = self.0.router.set(router);
    }

    /// Opens the port and begins to make calls, in that place.
    pub(crate) async fn bring_up(&self, place: Place) -> anyhow::Result<()> {
        let listeners = self.listen().await?;
        let (identity, watched) = watch::channel(Arc::new(place.identity.clone()));
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let inner = Arc::downgrade(&self.0);
        let trust: peer::TrustList =
            Arc::new(move |node| inner.upgrade().map_or(Trust::Unknown, |inner| inner.trust(node)));
        let inner = Arc::downgrade(&self.0);
        let members = place.members.clone();
        let addresses: peer::AddressBook = Arc::new(move |node| {
            let known = inner.upgrade().and_then(|inner| inner.addresses(node));
            known.unwrap_or_else(|| {
                let member = members.iter().find(|member| member.node == node);
                member.map(|member| member.addresses.clone()).unwrap_or_default()
            })
        });
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
        let handler = Arc::new(Port(Arc::downgrade(&self.0)));
        let server = Server::start(listeners, config, handler);
        *self.up() = Some(Up { place, identity, links, _server: server });
        Ok(())
    }

    /// Whether the peer port can be opened.
    pub(crate) async fn check_port(&self) -> anyhow::Result<()> {
        self.listen().await.map(drop)
    }

    /// Opens the peer port.
    async fn listen(&self) -> anyhow::Result<Vec<TcpListener>> {
        let address = self.0.config.cluster_listen;
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!("the peer port {address} cannot be opened; set another cluster_listen")
        })?;
        Ok(vec![listener])
    }

    fn up(&self) -> std::sync::MutexGuard<'_, Option<Up>> {
        self.0.up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls to others, while this node is in a cluster.
    pub(crate) fn links(&self) -> Option<Links> {
        self.up().as_ref().map(|up| up.links.clone())
    }

    /// Who this node is, while it is in a cluster.
    pub(crate) fn identity(&self) -> Option<Arc<Identity>> {
        self.up().as_ref().map(|up| up.identity.borrow().clone())
    }

    /// Takes a renewed certificate up and keeps it.
    pub(crate) fn renew(&self, identity: Identity) -> std::io::Result<()> {
        let mut up = self.up();
        let Some(up) = up.as_mut() else { return Ok(()) };
        up.place.identity = identity.clone();
        self.0.dir.write(&up.place)?;
        up.identity.send_replace(Arc::new(identity));
        Ok(())
    }

    /// Keeps who the members are, for a start without a state.
    pub(crate) fn remember(&self, members: Vec<Member>) -> std::io::Result<()> {
        let mut up = self.up();
        let Some(up) = up.as_mut() else { return Ok(()) };
        if up.place.members == members {
            return Ok(());
        }
        let place = Place { members, ..up.place.clone() };
        self.0.dir.write(&place)?;
        up.place = place;
        Ok(())
    }

    /// Whether others say that this node is no longer a member.
    pub(crate) fn gone(&self) -> watch::Receiver<Option<Gone>> {
        self.0.gone.subscribe()
    }

    /// Knows from an earlier start that this node was taken out.
    pub(crate) fn set_out(&self) {
        self.0.gone.send_replace(Some(Gone::Evicted));
    }

    /// Asks another node, with a JSON body and a JSON answer.
    pub(crate) async fn ask<Q: Serialize, A: DeserializeOwned>(
        &self,
        to: NodeId,
        method: Method,
        question: &Q,
        deadline: Duration,
    ) -> Result<A, CallError> {
        let links = self.links().ok_or(CallError::NoAddress(to))?;
        // Our own types with text keys: they always have a JSON form.
        let body = serde_json::to_vec(question).unwrap_or_default();
        let answer = links.call(to, method, body.into(), deadline).await;
        let answer = answer.inspect_err(|error| self.0.note(error))?;
        serde_json::from_slice(&answer).map_err(|error| CallError::Broken {
            node: to,
            problem: format!("its answer cannot be read: {error}"),
        })
    }
}

impl Inner {
    fn trust(&self, node: NodeId) -> Trust {
        let Some(state) = self.state.get() else { return Trust::Unknown };
        let state = state.borrow();
        if let Some(gone) = state.gone.get(&node) {
            return match gone.how {
                Gone::Left => Trust::Left { at: gone.at },
                Gone::Evicted => Trust::Evicted { at: gone.at },
            };
        }
        match state.nodes.get(&node) {
            None => Trust::Unknown,
            // Its state knows nothing of the forcing that gave it up.
            Some(node) if node.membership == Membership::Lost => {
                Trust::Evicted { at: node.fenced.as_ref().map_or(node.joined, |fenced| fenced.at) }
            }
            Some(node) => Trust::Member(node.key.as_ref().and_then(|key| key.parse().ok())),
        }
    }

    fn migration_ways(&self, from: NodeId, to: NodeId) -> Vec<Way> {
        let Some(state) = self.state.get() else { return Vec::new() };
        state.borrow().migration_ways(from, to)
    }

    fn addresses(&self, node: NodeId) -> Option<Vec<SocketAddr>> {
        let state = self.state.get()?.borrow();
        let addresses = &state.nodes.get(&node)?.facts.addresses;
        (!addresses.is_empty()).then(|| addresses.clone())
    }

    /// Learns from an error that this node is out.
    fn note(&self, error: &CallError) {
        let how = match error.code() {
            Some(RefusalCode::Evicted) => Gone::Evicted,
            Some(RefusalCode::Left) => Gone::Left,
            _ => return,
        };
        // The same word comes when this node itself knows that the other one is out.
        if let CallError::Refused { node, .. } = error
            && !matches!(self.trust(*node), Trust::Evicted { .. } | Trust::Left { .. })
        {
            self.gone.send_if_modified(|gone| gone.replace(how) != Some(how));
        }
    }
}

#[async_trait]
impl RaftTransport for Peers {
    async fn send(&self, to: NodeId, request: PeerRequest) -> Result<PeerReply, TransportError> {
        let Some(links) = self.links() else {
            return Err(TransportError::NotSent("this host is in no cluster".to_owned()));
        };
        let body = versioned(request.version, &request.body);
        let method = Method(request.method.number());
        match links.call(to, method, body, request.timeout).await {
            Ok(answer) => {
                let (version, body) = split_version(&answer)
                    .ok_or_else(|| TransportError::Unknown("the answer is empty".to_owned()))?;
                Ok(PeerReply { version, body: body.to_vec() })
            }
            Err(error) => {
                self.0.note(&error);
                Err(match &error {
                    CallError::Refused { .. } if error.surely_not_done() => {
                        TransportError::Refused(error.to_string())
                    }
                    _ if error.surely_not_done() => TransportError::NotSent(error.to_string()),
                    _ => TransportError::Unknown(error.to_string()),
                })
            }
        }
    }
}

/// A body with the version of its form before it.
fn versioned(version: u16, body: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(body.len() + 2);
    bytes.put_u16(version);
    bytes.put_slice(body);
    bytes.freeze()
}

fn split_version(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (version, body) = bytes.split_first_chunk::<2>()?;
    Some((u16::from_be_bytes(*version), body))
}

/// What this node does for others.
struct Port(Weak<Inner>);

impl Port {
    fn inner(&self) -> Result<Arc<Inner>, Refusal> {
        self.0.upgrade().ok_or_else(starting)
    }

    fn app(&self) -> Result<Arc<App>, Refusal> {
        self.inner()?.app.get().and_then(Weak::upgrade).ok_or_else(starting)
    }
}

fn starting() -> Refusal {
    let message = "this node is starting or stopping";
    Refusal::new(RefusalCode::Busy, message, "try again in a moment")
}

#[async_trait]
impl Handler for Port {
    async fn call(&self, from: NodeId, method: Method, body: Bytes) -> Result<Bytes, Refusal> {
        if let Some(method) = PeerMethod::from_number(method.0) {
            let (version, body) = split_version(&body)
                .ok_or_else(|| Refusal::new(RefusalCode::Malformed, "the call is empty", ""))?;
            // What is left of the caller's patience is kept by the port itself.
            let request = PeerRequest {
                method,
                version,
                timeout: Duration::from_secs(60),
                body: body.to_vec(),
            };
            let reply = if method == PeerMethod::Lease {
                fencing::serve(&self.app()?.fencing.desk, from, &request).await
            } else {
                let inner = self.inner()?;
                let service = inner.service.get().and_then(Weak::upgrade).ok_or_else(starting)?;
                service.serve(from, request).await
            };
            return match reply {
                Ok(reply) => Ok(versioned(reply.version, &reply.body)),
                Err(why) => Err(Refusal::new(RefusalCode::Refused, why, "")),
            };
        }
        let answer = match method {
            Method::ECHO => return Ok(body),
            Method::MIGRATE => {
                let app = self.app()?;
                return app.targets.serve(&app, from, &body).await.map(Bytes::from);
            }
            Method::VALIDATE => return crate::validate::serve(&self.app()?, &body).await,
            Method::STATUS => {
                let app = self.app()?;
                serde_json::to_vec(&status::own(&app))
            }
            Method::REBUILD => {
                let app = self.app()?;
                return rebuild::serve(&app, from, &body).await;
            }
            Method::PROGRESS => {
                let app = self.app()?;
                serde_json::to_vec(&own_progress(&app, &body))
            }
            Method::HISTORY => {
                let app = self.app()?;
                return crate::http::own_history(&app, &body).await.map(Bytes::from);
            }
            Method::VOLUMES => serde_json::to_vec(&self.app()?.luns.told().await),
            Method::LOADS => serde_json::to_vec(&crate::balance::own(&*self.app()?).await),
            Method::SESSIONS => serde_json::to_vec(&crate::http::session_uses(&*self.app()?)),
            Method::MACHINES => serde_json::to_vec(&self.app()?.own_vm_summaries()),
            Method::HOST => {
                let app = self.app()?;
                serde_json::to_vec(&app.node_view(&app.truth.state()).await)
            }
            _ => {
                return Err(Refusal::new(
                    RefusalCode::UnknownMethod,
                    format!("this node does not know the method {}", method.0),
                    "upgrade it",
                ));
            }
        };
        let failed = |error: serde_json::Error| {
            Refusal::new(RefusalCode::Failed, error.to_string(), "look at that node's log")
        };
        answer.map(Bytes::from).map_err(failed)
    }

    async fn stream(&self, from: NodeId, name: &str, stream: PeerStream) {
        let router = self.inner().ok().and_then(|inner| inner.router.get().cloned());
        match (name, router) {
            (API_STREAM, Some(router)) => {
                crate::http::serve_connection(stream, router, crate::http::Peer::Member(from))
                    .await;
            }
            (PROBE_STREAM, _) => {
                if let Ok(app) = self.app() {
                    app.targets.probe(stream).await;
                }
            }
            (name, _) => match (migrate::lane(name), self.app()) {
                (Some((lane, op)), Ok(app)) => app.targets.stream(from, op, lane, stream).await,
                _ => tracing::debug!(%from, name, "a stream that nobody takes"),
            },
        }
    }

    async fn look(&self, request: LookRequest, _from: SocketAddr) -> Result<Bytes, Refusal> {
        let app = self.app()?;
        join::check_secret(&app, &request.secret)?;
        crate::validate::serve_newcomer(&app, &request.question).await
    }

    async fn join(&self, request: JoinRequest, from: SocketAddr) -> Result<JoinReply, Refusal> {
        let app = self.app()?;
        join::take_in(&app, request, from).await
    }
}
