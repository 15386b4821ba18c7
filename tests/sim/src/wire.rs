//! The network between the hosts. What is sent is put into a bag; the world takes it out after each
//! turn, and decides what becomes of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;

use async_trait::async_trait;
use cluster::detect::Heard;
use cluster::raft::PeerReply;
use cluster::raft::PeerRequest;
use cluster::raft::RaftTransport;
use cluster::raft::TransportError;
use model::NodeId;
use tokio::sync::oneshot;

use crate::drivers::Word;
use crate::ground::lock;

/// What a letter carries.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    Ask {
        call: u64,
        /// As which node it was sent: what a certificate says.
        asker: NodeId,
        request: PeerRequest,
    },
    Answer {
        call: u64,
        reply: Result<PeerReply, TransportError>,
    },
    Pulse(Heard),
    /// Of a migration.
    Word(Word),
}

/// A message on its way.
#[derive(Debug, Clone)]
pub(crate) struct Letter {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) content: Content,
}

type Waiting = oneshot::Sender<Result<PeerReply, TransportError>>;

/// All ways between the hosts.
pub(crate) struct Wire {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Which node each host is at present.
    ids: Vec<NodeId>,
    out: Vec<Letter>,
    waiting: BTreeMap<u64, Waiting>,
    calls: u64,
}

/// One host's way to the others.
pub(crate) struct Way {
    pub(crate) from: usize,
    /// Which node it was when it was started.
    pub(crate) node: NodeId,
    pub(crate) wire: Arc<Wire>,
}

impl Wire {
    pub(crate) fn new(ids: Vec<NodeId>) -> Self {
        Self { inner: Mutex::new(Inner { ids, ..Inner::default() }) }
    }

    /// Which node a host is at present.
    pub(crate) fn node(&self, host: usize) -> NodeId {
        lock(&self.inner).ids[host]
    }

    /// A host is another node from now on.
    pub(crate) fn rename(&self, host: usize, node: NodeId) {
        lock(&self.inner).ids[host] = node;
    }

    pub(crate) fn send(&self, letter: Letter) {
        lock(&self.inner).out.push(letter);
    }

    /// What was sent since it was asked last.
    pub(crate) fn take(&self) -> Vec<Letter> {
        let mut inner = lock(&self.inner);
        inner.waiting.retain(|_, waiting| !waiting.is_closed());
        std::mem::take(&mut inner.out)
    }

    /// An answer has arrived.
    pub(crate) fn answered(&self, call: u64, reply: Result<PeerReply, TransportError>) {
        let waiting = lock(&self.inner).waiting.remove(&call);
        // Whoever asked may have gone, or had an answer already.
        let _ = waiting.map(|waiting| waiting.send(reply));
    }
}

#[async_trait]
impl RaftTransport for Way {
    async fn send(&self, to: NodeId, request: PeerRequest) -> Result<PeerReply, TransportError> {
        let Some(to) = lock(&self.wire.inner).ids.iter().position(|id| *id == to) else {
            return Err(TransportError::NotSent("no such host".to_owned()));
        };
        let (waiting, reply) = oneshot::channel();
        let timeout = request.timeout;
        {
            let mut inner = lock(&self.wire.inner);
            inner.calls += 1;
            let call = inner.calls;
            inner.waiting.insert(call, waiting);
            let content = Content::Ask { call, asker: self.node, request };
            inner.out.push(Letter { from: self.from, to, content });
        }
        match tokio::time::timeout(timeout, reply).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(_)) => Err(TransportError::Unknown("the peer ended".to_owned())),
            Err(_) => Err(TransportError::Unknown("time ran out".to_owned())),
        }
    }
}
