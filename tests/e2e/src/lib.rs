//! The harness of the end-to-end tests: a real daemon with real guests, seen from outside only.
//!
//! ```text
//!   test --- typed client, or `muster` itself ---> muster daemon (a process in a network
//!     |                                            namespace of its own, with its own directories)
//!     |                                               |
//!     +--- Serial: a shell in the guest  <--- console-+--- QEMU ... (each test at most two guests)
//!     +--- Traces: processes, taps, control groups and files, before and after
//! ```
//!
//! Everything a test makes on the machine hangs on its [`Host`]: dropping it, also in a panic, ends
//! the daemon and all machines and removes namespace, control groups and directories. What a test
//! run leaves that was itself killed is removed by the next one. Nothing waits by sleeping: each
//! wait is for a condition, with a deadline ([`eventually`]).
//!
//! Needs root, QEMU and the tiny guest; `cargo xtask test` brings all of them.

mod artifacts;
mod cli;
pub mod ha;
mod host;
mod lab;
pub mod migrate;
mod netns;
mod ping;
mod serial;
mod terminal;
mod traces;
mod vm;
mod wait;

pub use artifacts::guest_image;
pub use artifacts::muster_bin;
pub use cli::Ran;
pub use host::Host;
pub use host::Options;
pub use lab::TestLab;
pub use netns::Netns;
pub use ping::Pings;
pub use serial::Serial;
pub use terminal::CTRL_C;
pub use terminal::Terminal;
pub use traces::Traces;
pub use traces::signal;
pub use vm::Vm;
pub use vm::tiny;
pub use wait::eventually;
pub use wait::failure;

use std::time::Duration;

/// How long a tiny guest may take from start to its first heartbeat under emulation on a machine
/// that builds and tests other things at the same time; alone it takes some eight seconds.
pub const BOOT: Duration = Duration::from_secs(120);

/// How long anything may take that waits for a guest that runs.
pub const GUEST: Duration = Duration::from_secs(60);

/// How long anything may take that is the daemon's own.
pub const OWN: Duration = Duration::from_secs(30);
