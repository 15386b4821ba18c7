//! Links between the nodes of a cluster: who is who, and calls from one to another.
//!
//! ```text
//!   pki      the cluster's CA, node certificates, what is wrong with a certificate and what to do
//!   token    what an administrator carries from a member to a host that shall join
//!   wire     frames and the greeting: drawn there, versioned, every length limited
//!   links    calls to other nodes: connections are made, kept, dropped and made again behind it
//!   server   the peer port: admits members, runs their calls within limits
//!   heartbeat  datagrams on every cluster network, signed by the cluster's key
//!   probe    datagrams on the same way, to measure it
//!   join     the one exchange that works without a certificate
//! ```
//!
//! One TCP connection with TLS 1.3 carries one *purpose*: calls (urgent or bulk: a large transfer
//! never stands before a heartbeat), one raw stream, or one join. Both ends prove by a certificate
//! of the cluster's own CA which node they are (SAN `urn:muster:node:<uuid>`).
//!
//! Trust boundary: everything that comes from the network. Before the greeting is accepted, a
//! stranger costs one connection out of a limited number, a few kilobytes and a few seconds. After
//! it, a member that went mad is held by limits on frames, calls and bytes at once. Nothing that
//! is received can make this crate panic; tests feed garbage to each decoder and to the port.
//!
//! A certificate says who a node is and nothing more: rights on the API come from the API's own
//! callers (docs/threat-model.md).

#![forbid(unsafe_code)]

mod clock;
mod error;
mod heartbeat;
mod join;
mod link;
mod links;
mod method;
pub mod pki;
mod probe;
mod server;
#[cfg(test)]
mod tests;
mod tls;
mod token;
mod trust;
pub mod wire;

pub use clock::Clock;
pub use error::CallError;
pub use error::Refusal;
pub use error::RefusalCode;
pub use heartbeat::BadHeartbeat;
pub use heartbeat::HEARTBEAT_BYTES_MAX;
pub use heartbeat::Heartbeat;
pub use heartbeat::HeartbeatKey;
pub use join::JoinReply;
pub use join::JoinRequest;
pub use join::LookRequest;
pub use join::Member;
pub use join::join;
pub use join::look;
pub use links::AddressBook;
pub use links::Links;
pub use links::LinksConfig;
pub use method::Class;
pub use method::Method;
pub use probe::PROBE_BYTES_MAX;
pub use probe::PROBE_BYTES_MIN;
pub use probe::Probe;
pub use probe::is_probe;
pub use server::Duplex;
pub use server::Handler;
pub use server::Patience;
pub use server::PeerStream;
pub use server::Server;
pub use server::ServerConfig;
pub use token::ADDRESSES_MAX as TOKEN_ADDRESSES_MAX;
pub use token::JoinToken;
pub use token::Secret;
pub use token::TokenError;
pub use trust::Trust;
pub use trust::TrustList;
