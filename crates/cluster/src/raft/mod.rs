//! The replicated state machine.

mod applier;
mod cache;
#[cfg(test)]
mod conformance;
mod force;
mod format;
mod log;
mod mark;
pub mod memory;
mod metrics;
mod network;
mod replica;
mod serve;
mod session;
mod store;
#[cfg(test)]
mod tests;
mod transport;
mod types;
pub mod wire;
mod writer;

pub use force::Forcing;
pub use format::Ballot;
pub use format::LogEntry;
pub use format::LogEntryKind;
pub use format::Members;
pub use format::MembersAt;
pub use format::Position;
pub use format::SnapshotHead;
pub use format::StoredEvent;
pub use metrics::Metrics;
pub use metrics::Role;
pub use replica::LeaderError;
pub use replica::PROPOSAL_BYTES_MAX;
pub use replica::ProposeError;
pub use replica::Replica;
pub use replica::Start;
pub use replica::StartError;
pub use replica::Timing;
pub use replica::WeakReplica;
pub use store::EVENTS_AT_ONCE_MAX;
pub use store::Loaded;
pub use store::Store;
pub use store::StoreError;
pub(crate) use store::lock;
pub use transport::NoPeers;
pub use transport::PEER_BODY_BYTES_MAX;
pub use transport::PeerMethod;
pub use transport::PeerReply;
pub use transport::PeerRequest;
pub use transport::PeerService;
pub use transport::RaftTransport;
pub use transport::TransportError;
pub use types::Envelope;
pub use types::Ticket;
