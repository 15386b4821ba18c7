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
    async fn ask(&self, _: LeaseRequest) -> Result<LeaseAnswer, String> {
        Ok(LeaseAnswer::Fenced { epoch: self.epoch })
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
