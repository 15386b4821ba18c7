//! Files that are held back on this node: nothing is written to them from here (invariant 39).
//!
//! ```text
//!            hold                         opened for writing
//!   free ------------> held, unopened ------------------------> held, open
//!    ^  free, two minutes   |                                      |  free
//!    +----------------------+--------------------------------------+  its last writer closes it
//! ```
//!
//! Both ends of a live migration hold a machine's images: the target before its process opens them, the
//! source when its guest stands. One is freed when it is decided whose the machine is. A daemon that dies
//! in between forgets nothing that matters: what is held is this process's, and ends with the machine.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;

use crate::lease::FileId;

/// How long a file stays held that nobody opens for writing: longer than a target needs to start its
/// process, and soon enough that nobody is in the way of one that was given up.
pub const HELD_UNOPENED_MAX: Duration = Duration::from_secs(120);

/// Files that are held.
#[derive(Debug, Default)]
pub(super) struct Held {
    files: Mutex<BTreeMap<FileId, State>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nobody has it open for writing, since then.
    Unopened(Instant),
    Open,
}

impl Held {
    fn files(&self) -> MutexGuard<'_, BTreeMap<FileId, State>> {
        // Plain data, changed in one go.
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.retain(|_, state| match state {
            State::Unopened(since) => since.elapsed() < HELD_UNOPENED_MAX,
            State::Open => true,
        });
        files
    }

    /// Holds a file; `open` says whether somebody has it open for writing.
    pub(super) fn add(&self, file: FileId, open: bool) {
        let state = if open { State::Open } else { State::Unopened(Instant::now()) };
        self.files().insert(file, state);
    }

    /// Whether it is held.
    pub(super) fn has(&self, file: FileId) -> bool {
        self.files().contains_key(&file)
    }

    /// Somebody opens it for writing; says whether it is held.
    pub(super) fn opened(&self, file: FileId) -> bool {
        self.files().get_mut(&file).map(|state| *state = State::Open).is_some()
    }

    /// Nobody has it open for writing any more.
    pub(super) fn closed(&self, file: FileId) {
        self.remove(file);
    }

    /// It is held no more.
    pub(super) fn remove(&self, file: FileId) {
        self.files().remove(&file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_held_ends_with_its_last_writer_or_when_nobody_comes() {
        let held = Held::default();
        let (one, two) = (FileId(1), FileId(2));
        assert!(!held.opened(one), "nobody has held it");
        held.add(one, false);
        held.add(two, false);
        tokio::time::advance(HELD_UNOPENED_MAX / 2).await;
        assert!(held.opened(one) && held.has(two));
        tokio::time::advance(HELD_UNOPENED_MAX).await;
        assert!(held.has(one), "a machine waits for its guest");
        assert!(!held.has(two), "its machine never came");
        held.closed(one);
        assert!(!held.has(one));
        held.add(two, true);
        tokio::time::advance(HELD_UNOPENED_MAX * 2).await;
        assert!(held.has(two));
        held.remove(two);
        assert!(!held.has(two));
    }
}
