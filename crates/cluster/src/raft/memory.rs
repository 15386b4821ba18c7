//! A wire inside one process, for tests: it can be cut one way, slowed down, and lose replies.
//!
//! Nothing is random in here: the test says what happens, and when.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::Weak;
use std::time::Duration;

use async_trait::async_trait;
use model::NodeId;

use super::PEER_BODY_BYTES_MAX;
use super::PeerReply;
use super::PeerRequest;
use super::PeerService;
use super::RaftTransport;
use super::TransportError;

/// A wire between services in this process.
#[derive(Clone, Default)]
pub struct MemoryWire {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    services: BTreeMap<NodeId, Weak<dyn PeerService>>,
    cut: BTreeSet<(NodeId, NodeId)>,
    delays: BTreeMap<(NodeId, NodeId), Duration>,
}

/// One node's end of the wire.
pub struct MemoryTransport {
    from: NodeId,
    wire: MemoryWire,
}

impl MemoryWire {
    /// A wire without anybody on it.
    pub fn new() -> Self {
        Self::default()
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        // Plain data, changed in single steps: it is whole even if a holder panicked.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets requests to `node` reach this service, until it is dropped or detached.
    pub fn attach(&self, node: NodeId, service: &Arc<dyn PeerService>) {
        self.shared().services.insert(node, Arc::downgrade(service));
    }

    /// Takes a node off the wire, as if its process had ended.
    pub fn detach(&self, node: NodeId) {
        self.shared().services.remove(&node);
    }

    /// The way of `from` to the others.
    pub fn transport(&self, from: NodeId) -> Arc<MemoryTransport> {
        Arc::new(MemoryTransport { from, wire: self.clone() })
    }

    /// Loses whatever goes from `from` to `to`, requests and replies.
    pub fn cut_one_way(&self, from: NodeId, to: NodeId) {
        self.shared().cut.insert((from, to));
    }

    /// Cuts two nodes from each other.
    pub fn cut(&self, a: NodeId, b: NodeId) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    /// Joins two nodes again.
    pub fn mend(&self, a: NodeId, b: NodeId) {
        let mut shared = self.shared();
        shared.cut.remove(&(a, b));
        shared.cut.remove(&(b, a));
    }

    /// Cuts a node from each of `others`.
    pub fn isolate(&self, node: NodeId, others: impl IntoIterator<Item = NodeId>) {
        for other in others.into_iter().filter(|other| *other != node) {
            self.cut(node, other);
        }
    }

    /// Undoes every cut and delay.
    pub fn mend_all(&self) {
        let mut shared = self.shared();
        shared.cut.clear();
        shared.delays.clear();
    }

    /// Holds back whatever goes from `from` to `to` for that long. Zero ends it.
    pub fn delay(&self, from: NodeId, to: NodeId, by: Duration) {
        if by.is_zero() {
            self.shared().delays.remove(&(from, to));
        } else {
            self.shared().delays.insert((from, to), by);
        }
    }

    /// Waits as long as the wire does; whether what was sent arrives at all.
    async fn pass(&self, from: NodeId, to: NodeId) -> bool {
        let delay = self.shared().delays.get(&(from, to)).copied();
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
        !self.shared().cut.contains(&(from, to))
    }
}

#[async_trait]
impl RaftTransport for MemoryTransport {
    async fn send(&self, to: NodeId, request: PeerRequest) -> Result<PeerReply, TransportError> {
        if request.body.len() > PEER_BODY_BYTES_MAX {
            return Err(TransportError::NotSent("the request is too large".to_owned()));
        }
        let timeout = request.timeout;
        let (from, wire) = (self.from, self.wire.clone());
        // On its own task: a caller that goes away does not stop what the peer has begun.
        let call = tokio::spawn(async move {
            if !wire.pass(from, to).await {
                std::future::pending::<()>().await;
            }
            let service = wire.shared().services.get(&to).and_then(Weak::upgrade);
            let Some(service) = service else {
                return Err(TransportError::NotSent("nobody listens there".to_owned()));
            };
            let answer = service.serve(from, request).await;
            drop(service);
            if !wire.pass(to, from).await {
                std::future::pending::<()>().await;
            }
            answer.map_err(TransportError::Refused)
        });
        let stop = call.abort_handle();
        match tokio::time::timeout(timeout, call).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(TransportError::Unknown("the peer ended".to_owned())),
            Err(_) => {
                stop.abort();
                Err(TransportError::Unknown("time ran out".to_owned()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::PeerMethod;
    use super::*;

    struct Echo;

    #[async_trait]
    impl PeerService for Echo {
        async fn serve(&self, from: NodeId, request: PeerRequest) -> Result<PeerReply, String> {
            if request.method != PeerMethod::Barrier {
                return Err("only barriers".to_owned());
            }
            let body = from.uuid().as_bytes().to_vec();
            Ok(PeerReply { version: request.version, body })
        }
    }

    fn node(n: u128) -> NodeId {
        NodeId::new(uuid::Uuid::from_u128(n))
    }

    fn ask(method: PeerMethod) -> PeerRequest {
        PeerRequest { method, version: 1, timeout: Duration::from_millis(400), body: Vec::new() }
    }

    #[tokio::test]
    async fn it_carries_loses_and_delays() {
        let wire = MemoryWire::new();
        let service: Arc<dyn PeerService> = Arc::new(Echo);
        wire.attach(node(2), &service);
        let way = wire.transport(node(1));
        let reply = way.send(node(2), ask(PeerMethod::Barrier)).await.unwrap();
        assert_eq!(reply.body, node(1).uuid().as_bytes());
        let refused = way.send(node(2), ask(PeerMethod::Vote)).await;
        assert_eq!(refused, Err(TransportError::Refused("only barriers".to_owned())));
        let nobody = way.send(node(3), ask(PeerMethod::Barrier)).await;
        assert!(matches!(nobody, Err(TransportError::NotSent(_))), "{nobody:?}");

        wire.cut_one_way(node(2), node(1));
        let lost = way.send(node(2), ask(PeerMethod::Barrier)).await;
        assert!(matches!(lost, Err(TransportError::Unknown(_))), "{lost:?}");
        wire.mend(node(1), node(2));
        wire.delay(node(1), node(2), Duration::from_millis(300));
        let start = tokio::time::Instant::now();
        way.send(node(2), ask(PeerMethod::Barrier)).await.unwrap();
        assert!(start.elapsed() >= Duration::from_millis(300));
        wire.delay(node(2), node(1), Duration::from_millis(300));
        let late = way.send(node(2), ask(PeerMethod::Barrier)).await;
        assert!(matches!(late, Err(TransportError::Unknown(_))), "{late:?}");
        wire.mend_all();
        way.send(node(2), ask(PeerMethod::Barrier)).await.unwrap();
    }
}
