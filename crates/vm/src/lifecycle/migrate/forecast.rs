//! Pure: how long a migration will take, from what is known before its first byte.

use std::time::Duration;

use model::Bytes;
use model::MigrateForecast;
use model::MigratePolicy;

/// Passes that are counted on (see [`super::ladder`]).
const PASSES_MAX: u32 = 10;

/// The pause that is tried for, in milliseconds: in the first two passes, and later.
const BUDGETS_MS: (f64, f64) = (10.0, 50.0);

/// What stands beside the memory: connections at the begin, device state, the decision of the
/// cluster and the first instruction at the end. In milliseconds; a first guess, still to be set by
/// `cargo xtask bench migrate`.
const SET_UP_MS: f64 = 60.0;
const SWITCH_MS: f64 = 25.0;

/// Disks that go along are flushed twice while the guest stands: by the engine, then with their
/// directory. Beside that, their copies are held and closed by some calls to both engines, in
/// milliseconds: 117 to 226 in four runs with two disks on a machine with two busy processors.
const FLUSHES: f64 = 2.0;
const CLOSE_MS: f64 = 180.0;

/// What a flush is taken for where it could not be measured: a disk that turns.
pub(super) const FLUSH_UNKNOWN: Duration = Duration::from_millis(60);

/// What is known before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    /// Memory of the guest that is not free or empty.
    pub(super) memory: Bytes,
    /// What is copied of its disks before.
    pub(super) disks: Bytes,
    /// What it takes to make those durable at the target, and to hear of it, where that was measured;
    /// none if no disks go along.
    pub(super) flush: Option<Duration>,
    /// What the way carries, in bytes per second.
    pub(super) bandwidth: Bytes,
    /// What the guest changes, in bytes per second, each page counted once.
    pub(super) dirty_rate: Bytes,
}

/// The forecast: each pass sends what the one before has left, until that can be sent within the
/// accepted pause.
pub(super) fn forecast(known: Known, policy: MigratePolicy) -> MigrateForecast {
    let bandwidth = allowed(known.bandwidth, policy);
    let per_ms = float(bandwidth) / 1000.0;
    let per_ms = per_ms.max(1.0);
    let dirty_per_ms = float(known.dirty_rate) / 1000.0;
    let mut left = float(known.memory);
    let mut total = SET_UP_MS + float(known.disks) / per_ms;
    for pass in 1..=PASSES_MAX {
        let budget = if pass <= 2 { BUDGETS_MS.0 } else { BUDGETS_MS.1 };
        let took = left / per_ms;
        total += took;
        left = (dirty_per_ms * took).min(float(known.memory));
        if left / per_ms <= budget {
            break;
        }
    }
    let settling =
        known.flush.map_or(0.0, |flush| flush.as_secs_f64() * 1000.0 * FLUSHES + CLOSE_MS);
    let memory = (left / per_ms).min(float(Bytes::new(policy.max_pause.get())));
    let pause = memory + SWITCH_MS + settling;
    MigrateForecast {
        total_ms: whole(total + pause),
        pause_ms: whole(pause),
        bandwidth,
        dirty_rate: known.dirty_rate,
        converges: known.dirty_rate < bandwidth,
    }
}

/// What of the way a migration may take.
fn allowed(bandwidth: Bytes, policy: MigratePolicy) -> Bytes {
    policy.bandwidth.map_or(bandwidth, |limit| limit.min(bandwidth))
}

/// The forecast for a machine without a process: only files go, and nobody waits.
pub(super) fn still(files: Bytes, bandwidth: Bytes, policy: MigratePolicy) -> MigrateForecast {
    let bandwidth = allowed(bandwidth, policy);
    let per_ms = (float(bandwidth) / 1000.0).max(1.0);
    MigrateForecast {
        total_ms: whole(SET_UP_MS + float(files) / per_ms),
        pause_ms: 0,
        bandwidth,
        dirty_rate: Bytes::ZERO,
        converges: true,
    }
}

#[expect(clippy::cast_precision_loss, reason = "sizes of memories and times, far below 2^52")]
fn float(bytes: Bytes) -> f64 {
    bytes.get() as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rounded, never negative, and a cast of something larger gives the largest number"
)]
fn whole(ms: f64) -> u64 {
    ms.round().max(0.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(memory: u64, bandwidth: u64, dirty_rate: u64) -> MigrateForecast {
        let known = Known {
            memory: Bytes::mib(memory),
            disks: Bytes::ZERO,
            flush: None,
            bandwidth: Bytes::mib(bandwidth),
            dirty_rate: Bytes::mib(dirty_rate),
        };
        forecast(known, MigratePolicy::default())
    }

    #[test]
    fn an_idle_guest_takes_one_pass() {
        let found = of(1000, 1000, 0);
        assert_eq!((found.total_ms, found.pause_ms, found.converges), (1085, 25, true));
    }

    #[test]
    fn what_is_changed_is_sent_again() {
        // One second, then half a second for what was changed in it, a quarter, an eighth, a
        // sixteenth; what is changed in that takes less than 50 ms.
        let found = of(1000, 1000, 500);
        assert!((1_990..2_090).contains(&found.total_ms), "{found:?}");
        assert!((50..=75).contains(&found.pause_ms), "{found:?}");
    }

    #[test]
    fn disks_that_go_along_are_flushed_while_the_guest_stands() {
        let known = Known {
            memory: Bytes::mib(100),
            disks: Bytes::mib(1000),
            flush: Some(Duration::from_millis(50)),
            bandwidth: Bytes::mib(1000),
            dirty_rate: Bytes::ZERO,
        };
        let with = forecast(known, MigratePolicy::default());
        assert_eq!((with.pause_ms, with.total_ms), (305, 60 + 1000 + 100 + 305));
        let quick = Known { flush: Some(Duration::from_millis(1)), ..known };
        assert_eq!(forecast(quick, MigratePolicy::default()).pause_ms, 207);
    }

    #[test]
    fn a_limit_of_the_speed_is_foretold() {
        let policy = MigratePolicy { bandwidth: Some(Bytes::mib(100)), ..MigratePolicy::default() };
        let known = Known {
            memory: Bytes::mib(1000),
            disks: Bytes::ZERO,
            flush: None,
            bandwidth: Bytes::mib(1000),
            dirty_rate: Bytes::mib(200),
        };
        let limited = forecast(known, policy);
        assert!(!limited.converges && limited.bandwidth == Bytes::mib(100), "{limited:?}");
        assert!(forecast(known, MigratePolicy::default()).converges);
        let files = still(Bytes::mib(300), Bytes::mib(1000), policy);
        assert_eq!(files.total_ms, 3_060);
        let slow_way = still(Bytes::mib(300), Bytes::mib(10), policy);
        assert_eq!(slow_way.bandwidth, Bytes::mib(10));
    }

    #[test]
    fn one_that_is_too_quick_is_said_to_be() {
        let found = of(1000, 100, 200);
        assert!(!found.converges);
        assert_eq!(found.pause_ms, 2025, "the longest that is allowed");
    }
}
