//! The replicated state machine.

pub mod memory;
mod transport;

pub use transport::PEER_BODY_BYTES_MAX;
pub use transport::PeerMethod;
pub use transport::PeerReply;
pub use transport::PeerRequest;
pub use transport::PeerService;
pub use transport::RaftTransport;
pub use transport::TransportError;
