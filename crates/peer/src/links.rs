//! Calls to other nodes by their id. Connections are made when they are needed, kept, given up when
//! they are silent, and made again.
//!
//! A connection is made by a task of its own: a caller with a short deadline may give up, the
//! connection still comes about and serves the next call. All known addresses of a node (one for
//! each cluster network) are tried, each a little after the one before; the first that works wins.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use model::NodeId;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::error::CallError;
use crate::link::Dial;
use crate::link::DialError;
use crate::link::Link;
use crate::link::Stream;
use crate::link::bound;
use crate::link::dial;
use crate::method::Class;
use crate::method::Method;
use crate::pki::CertificateFacts;
use crate::pki::Identity;
use crate::server::PeerStream;
use crate::tls::Expect;
use crate::trust::TrustList;
use crate::wire::BODY_BYTES_MAX;
use crate::wire::Dialects;
use crate::wire::Greeting;
use crate::wire::Purpose;

/// How much later the next address of a node is tried.
const STAGGER: Duration = Duration::from_millis(150);

/// Addresses of one node that are tried.
const ADDRESSES_MAX: usize = 8;

/// Where a node can be reached, by the state or by what a join told.
pub type AddressBook = Arc<dyn Fn(NodeId) -> Vec<SocketAddr> + Send + Sync>;

/// What calls need.
#[derive(Clone)]
pub struct LinksConfig {
    /// Who this node is; changes when its certificate is renewed.
    pub identity: watch::Receiver<Arc<Identity>>,
    /// Where nodes are.
    pub addresses: AddressBook,
    /// Whom calls may go to.
    pub trust: TrustList,
    /// The clock of certificates.
    pub clock: Clock,
    /// What is spoken; the default but in tests.
    pub dialects: Dialects,
    /// Version of the program, told to the other side.
    pub version: String,
}

/// Calls to other nodes. Clones share the connections.
#[derive(Clone)]
pub struct Links(Arc<Inner>);

struct Inner {
    config: LinksConfig,
    slots: Mutex<HashMap<(NodeId, Class), Slot>>,
}

type Dialed = Result<Arc<Link>, CallError>;

enum Slot {
    Dialing(watch::Receiver<Option<Dialed>>),
    Up(Arc<Link>),
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Links")
    }
}

impl Links {
    /// Links of this node; none is made yet.
    pub fn new(config: LinksConfig) -> Self {
        Self(Arc::new(Inner { config, slots: Mutex::new(HashMap::new()) }))
    }

    /// Calls a method of another node and waits for the answer, at most for `deadline`. The other
    /// side stops working on it when the deadline is over.
    ///
    /// # Errors
    /// [`CallError`]; [`CallError::surely_not_done`] tells whether it may have been carried out.
    pub async fn call(
        &self,
        to: NodeId,
        method: Method,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, CallError> {
        if body.len() > BODY_BYTES_MAX {
            return Err(CallError::TooLarge { bytes: body.len(), bytes_max: BODY_BYTES_MAX });
        }
        self.check_trust(to)?;
        let began = Instant::now();
        let link = tokio::time::timeout(deadline, self.link(to, method.class()));
        let link = link.await.map_err(|_| CallError::Unreachable {
            node: to,
            problem: format!("no connection within {} ms", deadline.as_millis()),
        })??;
        link.call(method, body, began, deadline).await
    }

    /// Opens a raw stream of that name. The other side's handler knows what it means.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn stream(&self, to: NodeId, name: &str) -> Result<PeerStream, CallError> {
        let addresses = (self.0.config.addresses)(to);
        self.stream_by(to, name, addresses, STAGGER).await.map(|(stream, _)| stream)
    }

    /// As [`Links::stream`], by one of these addresses, with the one that it came about by. Each of
    /// them gets a start of `patience` before the one after it.
    ///
    /// # Errors
    /// As [`Links::stream`].
    pub async fn stream_by(
        &self,
        to: NodeId,
        name: &str,
        addresses: Vec<SocketAddr>,
        patience: Duration,
    ) -> Result<(PeerStream, SocketAddr), CallError> {
        self.check_trust(to)?;
        let purpose = Purpose::Stream(name.to_owned());
        let (stream, _, by) = connect(&self.0.config, to, purpose, addresses, patience).await?;
        bound(stream.get_ref().0)
            .map_err(|error| CallError::Unreachable { node: to, problem: error.to_string() })?;
        Ok((Box::new(stream), by))
    }

    /// Gives up the connections to nodes for which `keep` is false.
    pub fn retain(&self, keep: impl Fn(NodeId) -> bool) {
        self.slots().retain(|(node, _), _| keep(*node));
    }

    fn check_trust(&self, to: NodeId) -> Result<(), CallError> {
        use crate::trust::Trust;
        let trust = (self.0.config.trust)(to);
        if let Trust::Evicted { .. } | Trust::Left { .. } = trust {
            self.retain(|node| node != to);
            let zero = crate::pki::KeyDigest([0; 32]);
            trust.admit(to, &zero).map_err(|refusal| CallError::Refused { node: to, refusal })?;
        }
        Ok(())
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, HashMap<(NodeId, Class), Slot>> {
        self.0.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection, made if there is none.
    async fn link(&self, to: NodeId, class: Class) -> Dialed {
        let mut dialing = {
            let mut slots = self.slots();
            let own = self.0.config.identity.borrow().clone();
            match slots.get(&(to, class)) {
                Some(Slot::Up(link)) if link.is_good(&own, self.0.config.clock.now()) => {
                    return Ok(link.clone());
                }
                Some(Slot::Dialing(dialing)) => dialing.clone(),
                Some(Slot::Up(_)) | None => {
                    let (sender, dialing) = watch::channel(None);
                    slots.insert((to, class), Slot::Dialing(dialing.clone()));
                    tokio::spawn(self.clone().make(to, class, own, sender));
                    dialing
                }
            }
        };
        let gone = || CallError::Unreachable { node: to, problem: "it is stopping".to_owned() };
        let made = dialing.wait_for(Option::is_some).await.map_err(|_| gone())?;
        made.clone().unwrap_or_else(|| Err(gone()))
    }

    async fn make(
        self,
        to: NodeId,
        class: Class,
        own: Arc<Identity>,
        done: watch::Sender<Option<Dialed>>,
    ) {
        let addresses = (self.0.config.addresses)(to);
        let made = connect(&self.0.config, to, Purpose::Calls, addresses, STAGGER).await;
        let made = made.map(|(stream, facts, _)| {
            Arc::new(Link::start(to, own.facts().serial.clone(), facts, stream))
        });
        {
            let mut slots = self.slots();
            match &made {
                Ok(link) => slots.insert((to, class), Slot::Up(link.clone())),
                Err(_) => slots.remove(&(to, class)),
            };
        }
        if let Err(error) = &made {
            tracing::debug!(%error, ?class, "no connection to another node");
        }
        done.send_replace(Some(made));
    }
}

/// Tries all addresses of a node, the first ones first.
async fn connect(
    config: &LinksConfig,
    to: NodeId,
    purpose: Purpose,
    mut addresses: Vec<SocketAddr>,
    stagger: Duration,
) -> Result<(Stream, CertificateFacts, SocketAddr), CallError> {
    let own = config.identity.borrow().clone();
    addresses.truncate(ADDRESSES_MAX);
    if addresses.is_empty() {
        return Err(CallError::NoAddress(to));
    }
    let plan = Dial {
        expect: Expect::Node(own.ca().clone(), to),
        greeting: Greeting {
            dialects: config.dialects,
            version: config.version.clone(),
            cluster: own.cluster(),
            cluster_name: own.cluster_name().to_owned(),
            node: own.node(),
            purpose,
        },
        own: Some(own),
        clock: config.clock.clone(),
    };
    let mut tries: FuturesUnordered<_> = (0_u32..)
        .zip(addresses)
        .map(|(place, address)| {
            let plan = &plan;
            async move {
                tokio::time::sleep(stagger * place).await;
                (dial(plan, address).await, address)
            }
        })
        .collect();
    let mut unreachable = Vec::new();
    let mut worse = None;
    while let Some((tried, address)) = tries.next().await {
        match tried {
            Ok((stream, _, facts)) => return Ok((stream, facts, address)),
            Err(DialError::Unreachable(problem)) => unreachable.push(problem),
            // Somebody answered: that says more than a silence elsewhere.
            Err(error) => worse = Some(error),
        }
    }
    let error = worse.unwrap_or_else(|| DialError::Unreachable(unreachable.join(", ")));
    Err(error.call_error(to))
}
