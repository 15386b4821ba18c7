//! Where leases come from.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cluster::lease::LeaseAnswer;
use cluster::lease::LeaseRequest;
use cluster::raft::PeerMethod;
use cluster::raft::PeerReply;
use cluster::raft::PeerRequest;
use cluster::raft::RaftTransport;
use model::ClusterState;
use model::NodeId;

use super::LeaderDesk;

/// Asks whoever leads for a lease.
#[async_trait]
pub(crate) trait LeaseSource: Send + Sync {
    /// One question. Bounded in time by the caller.
    ///
    /// # Errors
    /// In words: nobody leads, or no answer came.
    async fn ask(&self, request: LeaseRequest) -> Result<LeaseAnswer, String>;
}

/// Version of the body of a peer's request for a lease, and of its answer: JSON of the types in
/// `cluster::lease`.
///
/// | version | change |
/// | --- | --- |
/// | 1 | first |
const LEASE_VERSION: u16 = 1;

/// Whoever leads, by the way to the peers.
pub(crate) struct PeerSource {
    pub(crate) node: NodeId,
    pub(crate) desk: Arc<LeaderDesk>,
    pub(crate) transport: Arc<dyn RaftTransport>,
    /// Who leads, as far as is known.
    pub(crate) leader: Box<dyn Fn() -> Option<NodeId> + Send + Sync>,
    /// How long an answer is waited for.
    pub(crate) timeout: Duration,
}

#[async_trait]
impl LeaseSource for PeerSource {
    async fn ask(&self, request: LeaseRequest) -> Result<LeaseAnswer, String> {
        let Some(leader) = (self.leader)() else {
            return Err("nobody leads the cluster now".to_owned());
        };
        if leader == self.node {
            return Ok(self.desk.answer(self.node, request).await);
        }
        let body = serde_json::to_vec(&request).map_err(|error| error.to_string())?;
        let (method, version, timeout) = (PeerMethod::Lease, LEASE_VERSION, self.timeout);
        let request = PeerRequest { method, version, timeout, body };
        let reply = self.transport.send(leader, request).await;
        let reply = reply.map_err(|error| format!("the leader: {error}"))?;
        if reply.version != LEASE_VERSION {
            return Err(format!("the leader speaks version {} of leases", reply.version));
        }
        serde_json::from_slice(&reply.body).map_err(|error| format!("the leader's answer: {error}"))
    }
}

/// Of a node that was taken out of its cluster: its machines may run elsewhere, so all of them are
/// ended, and it never gets a lease again.
pub(crate) struct OutSource {
    epoch: u64,
}

impl OutSource {
    /// For a node as its last state knows it.
    pub(crate) fn new(state: &ClusterState, node: NodeId) -> Self {
        Self { epoch: state.nodes.get(&node).map_or(0, |node| node.epoch) + 1 }
    }
}

#[async_trait]
impl LeaseSource for OutSource {
    async fn ask(&self, request: LeaseRequest) -> Result<LeaseAnswer, String> {
        if request.epoch.is_none_or(|epoch| epoch < self.epoch) {
            return Ok(LeaseAnswer::Fenced { epoch: self.epoch });
        }
        // They have ended; from here on it is asked as rarely as by any node without a lease.
        Err("this node was taken out of its cluster; see: muster cluster status".to_owned())
    }
}

/// The other end: a peer asks for its lease. `from` is who it is by its certificate.
///
/// # Errors
/// The request cannot be read.
pub(crate) async fn serve(
    desk: &LeaderDesk,
    from: NodeId,
    request: &PeerRequest,
) -> Result<PeerReply, String> {
    if request.version != LEASE_VERSION {
        return Err(format!("version {} of leases is not known here", request.version));
    }
    let asked = serde_json::from_slice(&request.body).map_err(|error| error.to_string())?;
    let answer = desk.answer(from, asked).await;
    let body = serde_json::to_vec(&answer).map_err(|error| error.to_string())?;
    Ok(PeerReply { version: LEASE_VERSION, body })
}

#[cfg(test)]
mod tests {
    use model::NodeRecord;
    use model::UnixMillis;
    use uuid::Uuid;

    use super::*;

    #[tokio::test]
    async fn a_node_that_is_out_ends_its_machines_once_and_gets_no_lease() {
        let node = NodeId::new(Uuid::from_u128(1));
        let mut record = NodeRecord::new(node, "h1".parse().unwrap(), UnixMillis::new(1));
        record.epoch = 3;
        let mut state = ClusterState::default();
        state.nodes.insert(node, Arc::new(record));
        let source = OutSource::new(&state, node);
        let ask = |epoch| source.ask(LeaseRequest { node, epoch, holding: None, watchdog_ms: 0 });
        for held in [None, Some(0), Some(3)] {
            let answer = ask(held).await.unwrap();
            assert!(matches!(answer, LeaseAnswer::Fenced { epoch: 4 }), "{answer:?}");
        }
        // Its guard has ended them: the same answer would be asked for again and again at once.
        let why = ask(Some(4)).await.unwrap_err();
        assert!(why.contains("muster cluster status"), "{why}");
    }
}
