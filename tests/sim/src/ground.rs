//! What all parts of one schedule share: the time, the trace, the plant.

use std::collections::VecDeque;
use std::hash::Hasher;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use sim::rng::Rng;

use crate::plant::Plant;

/// Lines that are kept for the report of a failure.
const LINES_KEPT: usize = 60;

/// Shared by the world and all that runs in its hosts.
pub(crate) struct Ground {
    pub(crate) plant: Option<Plant>,
    print: bool,
    inner: Mutex<Inner>,
}

/// What migrations came to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    /// Begun, at a source that had a guest.
    pub(crate) migrations: u64,
    /// Guests that went on at their target.
    pub(crate) arrived: u64,
    /// Handovers that were refused.
    pub(crate) refused: u64,
    /// Handovers that surely reached nobody.
    pub(crate) not_sent: u64,
    /// Handovers of which nothing was known.
    pub(crate) unsure: u64,
    /// Logs that were damaged.
    pub(crate) damaged: u64,
    /// Guests that were saved, and that went on from their memory.
    pub(crate) saved: u64,
    pub(crate) resumed: u64,
    /// Nodes that were evicted, and came back as new ones.
    pub(crate) evicted: u64,
    /// Daemons that ended because their disk was full.
    pub(crate) full: u64,
}

struct Inner {
    now: u64,
    tally: Tally,
    rng: Rng,
    last: VecDeque<String>,
    lines: u64,
    problem: Option<String>,
    digest: std::hash::DefaultHasher,
}

/// Locks plain data; nobody panics with it in hand and goes on.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ground {
    pub(crate) fn new(rng: Rng, plant: Option<Plant>, print: bool) -> Self {
        let inner = Inner {
            now: 0,
            tally: Tally::default(),
            rng,
            last: VecDeque::new(),
            lines: 0,
            problem: None,
            digest: std::hash::DefaultHasher::new(),
        };
        Self { plant, print, inner: Mutex::new(inner) }
    }

    pub(crate) fn has(&self, plant: Plant) -> bool {
        self.plant == Some(plant)
    }

    /// Milliseconds since the schedule began.
    pub(crate) fn now(&self) -> u64 {
        lock(&self.inner).now
    }

    pub(crate) fn set_now(&self, now: u64) {
        lock(&self.inner).now = now;
    }

    /// A random number for what runs in a host.
    pub(crate) fn between(&self, low: u64, high: u64) -> u64 {
        lock(&self.inner).rng.between(low, high)
    }

    /// One line of the trace. `who`: `n1`, or `-` for the world.
    pub(crate) fn trace(&self, who: &str, what: &str) {
        let mut inner = lock(&self.inner);
        let (seconds, millis) = (inner.now / 1_000, inner.now % 1_000);
        let line = format!("{seconds:4}.{millis:03} {who:<3} {what}");
        inner.digest.write(line.as_bytes());
        inner.lines += 1;
        if self.print {
            println!("{line}");
        }
        inner.last.push_back(line);
        if inner.last.len() > LINES_KEPT {
            inner.last.pop_front();
        }
    }

    /// Counts something that a migration came to.
    pub(crate) fn tally(&self, count: impl FnOnce(&mut Tally)) {
        count(&mut lock(&self.inner).tally);
    }

    /// What was counted.
    pub(crate) fn tallied(&self) -> Tally {
        lock(&self.inner).tally
    }

    /// Something that must not be was seen where it happened.
    pub(crate) fn complain(&self, what: String) {
        lock(&self.inner).problem.get_or_insert(what);
    }

    /// The first of them.
    pub(crate) fn problem(&self) -> Option<String> {
        lock(&self.inner).problem.clone()
    }

    /// How many lines there were, and a digest of all of them.
    pub(crate) fn digest(&self) -> (u64, u64) {
        let inner = lock(&self.inner);
        (inner.lines, inner.digest.finish())
    }

    /// The last lines.
    pub(crate) fn tail(&self) -> Vec<String> {
        lock(&self.inner).last.iter().cloned().collect()
    }
}
