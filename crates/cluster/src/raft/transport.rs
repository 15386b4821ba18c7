//! How nodes speak with each other, as seen by those who speak.
//!
//! ```text
//!   caller -> RaftTransport::send(to, PeerRequest) ~~~ wire ~~~> PeerService::serve(from, PeerRequest)
//!          <- PeerReply | TransportError           <~~~~~~~~~~~ <- PeerReply | TransportError::Refused
//! ```
//!
//! A request is a method, the version of its body, and the body: bytes that only the two ends of
//! that method understand. The wire carries all methods alike. What it must do:
//!
//! - `from` is proved by the connection (a certificate), never taken from the request.
//! - It may lose, delay, repeat and reorder requests and replies. It must not change them.
//! - It sends a request at most once by itself: repeating is the caller's decision.
//! - A request or reply above [`PEER_BODY_BYTES_MAX`] is refused, before it is in memory.
//! - [`TransportError::NotSent`] is a promise that the other end has not seen the request. Whenever
//!   that is not certain, the error is [`TransportError::Unknown`].

use std::time::Duration;

use async_trait::async_trait;
use model::NodeId;

/// The largest body of a request or reply. The largest ones are pieces of a snapshot and batches of
/// log entries, which are cut to stay below half of it.
pub const PEER_BODY_BYTES_MAX: usize = 8 << 20;

/// What is asked of a peer. The numbers are on the wire: they are never used again for another
/// method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u16)]
#[non_exhaustive]
pub enum PeerMethod {
    /// Raft: entries of the log, or a heartbeat.
    Append = 1,
    /// Raft: a vote, or the question whether there would be one.
    Vote = 2,
    /// Raft: a piece of a snapshot.
    Snapshot = 3,
    /// Raft: take the leadership over.
    Transfer = 4,
    /// A proposal on its way to the leader.
    Propose = 5,
    /// Where the log is now, by the leader's word (a linearizable read point).
    Barrier = 6,
    /// A change of the members, on its way to the leader.
    Members = 7,
    /// A node asks for its lease.
    Lease = 8,
    /// What a node sees of the others.
    Observations = 9,
}

impl PeerMethod {
    /// All methods.
    pub const ALL: [Self; 9] = [
        Self::Append,
        Self::Vote,
        Self::Snapshot,
        Self::Transfer,
        Self::Propose,
        Self::Barrier,
        Self::Members,
        Self::Lease,
        Self::Observations,
    ];

    /// Its number on the wire.
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// The method of that number, if this version knows it.
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.number() == number)
    }

    /// Whether [`crate::raft`] serves it.
    pub const fn is_raft(self) -> bool {
        !matches!(self, Self::Lease | Self::Observations)
    }
}

/// A request to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerRequest {
    /// What is asked.
    pub method: PeerMethod,
    /// Version of the body's form.
    pub version: u16,
    /// How long the caller waits for the answer from now on. The wire passes on what is left of it,
    /// so that the peer does not work for a caller that has gone.
    pub timeout: Duration,
    /// The question, in the method's own form.
    pub body: Vec<u8>,
}

/// The answer of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerReply {
    /// Version of the body's form.
    pub version: u16,
    /// The answer, in the method's own form.
    pub body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// The peer has certainly not seen the request: no address, no connection, too large.
    #[error("not sent: {0}")]
    NotSent(String),
    /// The peer may have seen the request, and may have done it: time ran out, or the connection
    /// broke.
    #[error("no answer: {0}")]
    Unknown(String),
    /// The peer has seen the request and has not done it: it does not know the method or version,
    /// cannot read the body, or does not serve us.
    #[error("refused by the peer: {0}")]
    Refused(String),
}

/// The way to the peers.
#[async_trait]
pub trait RaftTransport: Send + Sync + 'static {
    /// Asks a peer. Returns at the latest when [`PeerRequest::timeout`] is over.
    ///
    /// # Errors
    /// [`TransportError`]: what is known of the request's fate.
    async fn send(&self, to: NodeId, request: PeerRequest) -> Result<PeerReply, TransportError>;
}

/// No way to anybody: for a host alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoPeers;

#[async_trait]
impl RaftTransport for NoPeers {
    async fn send(&self, to: NodeId, _request: PeerRequest) -> Result<PeerReply, TransportError> {
        Err(TransportError::NotSent(format!("this node knows no way to {to}")))
    }
}

/// The other end: answers the requests of peers.
#[async_trait]
pub trait PeerService: Send + Sync + 'static {
    /// Answers a request of `from`, whose identity the wire has proved.
    ///
    /// # Errors
    /// Why it is refused, for the peer's log; the wire carries it as [`TransportError::Refused`].
    async fn serve(&self, from: NodeId, request: PeerRequest) -> Result<PeerReply, String>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_on_the_wire_stay() {
        let numbers: Vec<_> = PeerMethod::ALL.iter().map(|method| method.number()).collect();
        assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
        for method in PeerMethod::ALL {
            assert_eq!(PeerMethod::from_number(method.number()), Some(method));
        }
        assert_eq!(PeerMethod::from_number(0), None);
        assert_eq!(PeerMethod::from_number(10), None);
    }
}
