//! `muster guard`: the process that stops a node's machines when its lease is over.
//!
//! ```text
//!   daemon --- guard.sock (root only): grants, "end all" ---> guard --- cgroup.freeze, cgroup.kill
//!                                                              |         of the group above all
//!                              guard.state (run directory) <---+         machines
//!                                                              +-------> watchdog, where there is one
//! ```
//!
//! It needs nothing but a lease and that group: no daemon, no network, no disk. What it does follows
//! from [`crate::lease::NodeLease`] and the clock that counts suspend; this folder is the shell
//! around it. One thread, one loop:
//!
//! ```text
//!   wait (timer, socket, signal) -> take what the daemon says -> look at the group -> what shall be
//!        ^                                                                               |
//!        +------ set the timer <- pet the watchdog <- freeze, kill or thaw <- store <----+
//! ```
//!
//! - What is taken is stored before it is acted on or acknowledged, so that a guard that was killed
//!   is followed by one that goes on. One that finds nothing usable begins *blocked*: frozen until
//!   the daemon brings a grant.
//! - The daemon may die: nothing changes but that no grants come.
//! - SIGTERM and SIGINT end it, except while machines run under a lease that ends by itself: then
//!   nobody would stop them. SIGHUP starts the program anew in the same process (for an update);
//!   the next one goes on with what is stored, and a watchdog runs meanwhile.
//! - Whatever fails is tried again at the next turn (at most a second later) and told in
//!   [`Status::problem`]; a group that cannot be looked at counts as populated. One that is not
//!   there, as before the first machine and at the end of the host, is looked for again.
//!
//! Trust boundary: lines on the socket. Only root may connect; a line is at most
//! [`wire::LINE_MAX`] bytes, a caller that does not read is cut off.

mod client;
mod group;
mod own;
mod serve;
mod store;
mod watchdog;
pub mod wire;

use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

pub use client::GuardClient;
pub use client::GuardGone;
pub use client::GuardLine;
pub use client::GuardOf;
pub use client::GuardWay;
pub use wire::Status;

/// What a guard is started with.
#[derive(Debug, Clone)]
pub struct GuardConfig {
    /// Where its socket and its state are.
    pub run_dir: PathBuf,
    /// The group above the groups of all machines.
    pub group: PathBuf,
    /// A watchdog device (or a named pipe in its place), and the longest time to set it to, in whole
    /// seconds.
    pub watchdog: Option<(PathBuf, Duration)>,
}

/// Why a guard cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// There is one already.
    #[error("another guard serves {0}; it is enough")]
    Another(PathBuf),
    /// It would stop itself.
    #[error("this process is in the control group {0} itself; start it outside of that group")]
    Inside(PathBuf),
    /// The clock, the group, the socket or the signals cannot be had.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl GuardError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// Where a guard of that run directory listens.
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("guard.sock")
}

/// The clock of leases: this host's, with suspend counted.
pub fn boot_time() -> crate::lease::BootTime {
    if let Some(clocks) = crate::simulation::clocks() {
        return clocks.boot;
    }
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let nanos = u64::try_from(now.tv_nsec).unwrap_or_default();
    crate::lease::BootTime::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

/// Freezes and kills everything in a group: what a guard does at the end of a lease, for a daemon
/// whose guard is gone.
///
/// # Errors
/// The group cannot be opened or written.
pub fn stop_group(group: &Path) -> io::Result<()> {
    let Some(group) = group::Group::open(group)? else { return Ok(()) };
    group.freeze(true)?;
    group.kill()
}

/// Runs the guard until it is told to end and may; `ready` is called when it can be asked.
///
/// # Errors
/// [`GuardError`]: it could not begin. What fails later is tried again.
pub fn run(config: GuardConfig, ready: impl FnOnce()) -> Result<(), GuardError> {
    serve::run(config, ready)
}
