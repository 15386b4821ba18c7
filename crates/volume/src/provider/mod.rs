//! The data plane of a shared volume as something that runs: what a daemon starts, and talks to.
//!
//! ```text
//!      node A (coordinator)                                  node B
//!   programs, QEMU                                        programs, QEMU
//!        |                                                     |
//!   [`Mount`]  FUSE: front                                [`Mount`]
//!        |                                                     |
//!        |     bytes: any offset, lengths                      |
//!        |                                                     |
//!   [`Client`] ------stream------> [`Coordinator`] <---stream--- [`Client`]
//!        |     wire: lease messages,     |  deeds, names            |
//!        |     calls                     |  store: lengths, records |
//!        |                            ext4 or XFS                   |
//!   [`LunPath`] - - - - - - - - - - - - -'                     [`LunPath`]
//!        |   gate, key, device                                      |
//!   =====+============================ LUN =========================+=====
//! ```
//!
//! | whose | what |
//! | --- | --- |
//! | the caller gives | the device and a [`Fence`] for it ([`LunPath`], one for each volume and node, shared by client and coordinator); streams between nodes that have proved who they are ([`Dial`], [`Coordinator::accept`]); who coordinates in which epoch ([`Client::view`]) |
//! | the caller does | [`Coordinator::start`] on the node that the replicated state names, with an epoch that nobody else ever gets; [`Coordinator::stop`] before another one is named, where it can; on [`Coordinator::ended`] stop it and have another one named |
//! | the caller sees | [`Client::state`]: [`Way`] and since when |
//!
//! A node starts its client once and tells it each new coordinator. Nothing that programs asked for
//! fails because a coordinator, a path or a connection did: it waits. What fails is what a file system
//! refuses, and a second node that wants to write a file.
//!
//! **Order at a planned change**: stop the old coordinator, name the new epoch in the state, start the
//! new one, tell all clients. **At a death**: name the new epoch, start, tell. A coordinator that was
//! not stopped keeps its node's own path closed for the client there, until what it mounted is gone:
//! [`Coordinator::stop`] is called for it, too, and may take until the LUN answers or refuses.
//!
//! Trust boundaries: frames of peers (`wire`: bounded, typed, end their connection only), names and
//! ranges in them (checked where they are used), the LUN and its file system (checked before they are
//! mounted; a failure ends the reign), programs of the node (the kernel checks their permissions).

mod bytes;
mod call;
mod client;
mod coordinator;
mod core;
mod deeds;
mod front;
mod handle;
mod held;
mod kernel;
mod mount;
mod names;
mod path;
mod state;
mod store;
pub mod wire;

pub use call::Attributes;
pub use call::Call;
pub use call::Change;
pub use call::Entry;
pub use call::Kind;
pub use call::Name;
pub use call::Owner;
pub use call::Reply;
pub use call::Space;
pub use call::Time;
pub use client::Client;
pub use client::ClientConfig;
pub use client::Dial;
pub use client::Dialing;
pub use client::Stream;
pub use coordinator::Coordinator;
pub use coordinator::CoordinatorConfig;
pub use coordinator::CoordinatorError;
pub use front::Mount;
pub use held::HELD_UNOPENED_MAX;
pub use path::Fence;
pub use path::LunPath;
pub use state::Reason;
pub use state::State;
pub use state::Way;
