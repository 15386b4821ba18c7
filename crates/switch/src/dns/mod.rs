//! DNS for NAT networks, on the gateway's address.
//!
//! ```text
//!   guest --udp/tcp--> [answer: ours?] --yes--> reply from the desired state
//!                           |
//!                           no: forward as it is, with a fresh id, to the host's resolvers
//! ```
//!
//! Ours are `<vm>.muster.internal`, the bare name, and the reverse names of the network's
//! addresses; unknown ones among them do not exist (NXDOMAIN) and are never sent on. [`answer()`] is
//! pure; `serve` and `upstream` are the sockets around it.
//!
//! Trust boundary: questions come from guests, replies to forwarded ones from outside. Requests
//! from addresses that are not of the network are ignored, so that the host is no open resolver.

mod answer;
mod serve;
mod upstream;

pub use answer::DOMAIN;
pub use answer::Verdict;
pub use answer::Zone;
pub use answer::answer;
pub(crate) use serve::serve_tcp;
pub(crate) use serve::serve_udp;
pub(crate) use upstream::Upstreams;
