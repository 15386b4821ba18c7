//! What can be seen of a node's way to a volume.

use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

/// How long after a request that had to go through the coordinator the way is called so.
const SHOWN: Duration = Duration::from_secs(2);

/// How data gets from this node to the LUN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Straight, over this node's own path.
    Direct,
    /// This node's path does not work, or it has none: all blocks go through the coordinator.
    BlockRedirected(Reason),
    /// The path works, but the file system gave no lease for what was wanted last: holes that are
    /// read, and files that lie on odd blocks.
    FileRedirected,
    /// There is no coordinator to talk to: requests wait. What is leased still goes straight.
    Waiting,
}

/// Why blocks go through the coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// This node was given no path.
    NoPath,
    /// Its key is not registered at the LUN: the path has failed, or is just being taken.
    NoKey,
}

/// The way, and since when it is so.
#[derive(Debug, Clone, Copy)]
pub struct State {
    /// The way.
    pub way: Way,
    /// Since when.
    pub since: SystemTime,
}

impl State {
    pub(super) fn waiting() -> Self {
        Self { way: Way::Waiting, since: SystemTime::now() }
    }

    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.way == other.way
    }
}

/// What the state is told from.
#[derive(Debug, Default)]
pub(super) struct Seen {
    redirected: Option<Instant>,
}

impl Seen {
    pub(super) fn redirected(&mut self) {
        self.redirected = Some(Instant::now());
    }

    pub(super) fn look(&self, linked: bool, direct: bool, path: bool) -> State {
        let lately = self.redirected.is_some_and(|at| at.elapsed() < SHOWN);
        let way = match (linked, direct, path) {
            (false, _, _) => Way::Waiting,
            (true, true, _) if lately => Way::FileRedirected,
            (true, true, _) => Way::Direct,
            (true, false, true) => Way::BlockRedirected(Reason::NoKey),
            (true, false, false) => Way::BlockRedirected(Reason::NoPath),
        };
        State { way, since: SystemTime::now() }
    }
}
