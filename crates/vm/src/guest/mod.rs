//! Integration services of a guest, over the QEMU guest agent.
//!
//! ```text
//!  lifecycle driver --GuestServices (handle)--> Shell (one task per VM, owns everything)
//!        ^                                        |  machines: heartbeat, freeze (pure)
//!        |  watch: GuestStatus                    |  Session: commands we use
//!        +----------------------------------------+  AgentClient: one command in flight,
//!                                                      deadlines, limits, sync
//! ```
//!
//! Services, each with its switch: *shutdown*, *heartbeat*, *data exchange* (guest facts to the
//! host; host facts and user keys into the guest's `/run/muster/host.json`), *time*, *backup*
//! (freeze and thaw, limited hard).
//!
//! Trust boundary: everything the agent says. Nothing it does costs more than a deadline of one
//! task, a few MiB, and its own VM's services.

mod client;
mod facts;
mod freeze;
mod heartbeat;
mod host;
mod parts;
pub mod probe;
mod services;
mod session;
mod shell;

#[cfg(test)]
mod tests;

pub use client::AgentClient;
pub use client::AgentError;
pub use client::AgentStream;
pub use client::CallLimits;
pub use facts::AgentInfo;
pub use facts::FilesystemFacts;
pub use facts::GuestFacts;
pub use facts::InterfaceFacts;
pub use facts::OsFacts;
pub use freeze::Consistency;
pub use freeze::FreezeState;
pub use heartbeat::Heartbeat;
pub use host::Exchange;
pub use host::HOST_FILE;
pub use host::HOST_FILE_FALLBACK;
pub use host::HostFacts;
pub use parts::PartKind;
pub use parts::Parts;
pub use services::Clock;
pub use services::Connect;
pub use services::Frozen;
pub use services::GuestConfig;
pub use services::GuestServices;
pub use services::GuestStatus;
pub use services::HostClock;
pub use services::ServiceError;
