//! Free memory of a guest is given back to the host before its memory is sent.
//!
//! ```text
//!   guest     used | free, but the host still has what was in it      sent like any other page
//!   balloon   used | margin | taken: the host drops these pages       (at most TIME_MAX)
//!   balloon   used | free again, and empty                            found empty, not sent
//! ```
//!
//! The guest reports free memory by itself, too (`free-page-reporting`), and has it all again: but only
//! whole blocks of 2 MiB, and in portions with pauses between. What it has freed lately, or in small pieces,
//! is still with the host. The balloon takes single pages, at once. It is let go again before the
//! first byte is sent, so the guest is short of memory for a second at most, and with a margin
//! (decision 0034, which has the figures).
//!
//! Nothing depends on it: a guest without the driver, or one that does not follow, is sent as it is. A
//! daemon that dies meanwhile leaves a balloon that is too large, which the next one lets go when it finds
//! the machine ([`let_go`]).

use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use model::Bytes;
use model::VmRecord;
use tokio::time::Instant;

use crate::engine::BalloonStats;
use crate::engine::Machine;
use crate::engine::MemoryState;

/// How long the guest may take to give its free memory, and how often that is looked at.
const TIME_MAX: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// Free memory that stays with the guest meanwhile: an eighth of its memory, and not less than this.
const MARGIN_MIN: Bytes = Bytes::mib(64);
const MARGIN_PART: u64 = 8;

/// What an engine's process has beside the guest's memory: translated code, devices, libraries.
const OWN: Bytes = Bytes::mib(128);

/// Least memory for which the guest is troubled: half a second of a link of 1 Gb/s.
const GAIN_MIN: Bytes = Bytes::mib(64);

/// Figures of a guest that are older are not believed, in seconds. It tells them every five.
const AGE_MAX_S: u64 = 15;

/// The balloon has come as far as it was asked to: drivers take pages in steps.
const NEAR: Bytes = Bytes::mib(4);

/// What is known of a guest's memory.
#[derive(Debug, Clone, Copy)]
struct Seen {
    /// What the balloon leaves to the guest.
    actual: Bytes,
    /// What of that is free.
    free: Bytes,
    /// What the engine's process has on this host.
    resident: Bytes,
}

/// How much memory the guest is to keep for a moment; none where that is not worth while.
fn keep(seen: Seen) -> Option<Bytes> {
    let used = seen.actual.saturating_sub(seen.free);
    let margin = Bytes::new(seen.actual.get() / MARGIN_PART).max(MARGIN_MIN);
    let wanted = used.checked_add(margin)?;
    let gain = seen.resident.saturating_sub(used.checked_add(OWN)?);
    (wanted < seen.actual && gain >= GAIN_MIN).then_some(wanted)
}

/// What a guest has told lately.
fn seen(stats: BalloonStats, resident: Bytes) -> Option<Seen> {
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let fresh = stats.updated_s.is_some_and(|at| now_s.saturating_sub(at) <= AGE_MAX_S);
    let (actual, free) = (stats.actual, stats.free.filter(|_| fresh)?);
    Some(Seen { actual, free, resident })
}

/// Lets the guest give its free memory to the host, where it has much of it, and have it again. `resident`
/// is what the engine's process has on this host.
///
/// It is brought to its end also when nobody waits for it any more.
pub(super) async fn squeeze(machine: &Arc<dyn Machine>, record: &VmRecord, resident: Bytes) {
    let (machine, back) = (machine.clone(), all(record));
    let work = tokio::spawn(async move {
        // No balloon, or no driver for it: as before.
        let Ok(stats) = machine.balloon_stats().await else { return };
        let Some(target) = seen(stats, resident).and_then(keep) else { return };
        let begun = Instant::now();
        if machine.balloon(target).await.is_ok() {
            shrunk(&*machine, target).await;
        }
        if let Err(error) = machine.balloon(back).await {
            tracing::warn!(%error, "a guest's free memory was not let go at once");
        }
        tracing::info!(took = ?begun.elapsed(), ?target, "free memory was given to the host");
    });
    // One that panicked has done so loudly.
    let _ = work.await;
}

/// Waits until the guest has no more than that, or for long enough.
async fn shrunk(machine: &dyn Machine, target: Bytes) {
    let end = Instant::now() + TIME_MAX;
    let near = target.checked_add(NEAR).unwrap_or(target);
    while Instant::now() < end {
        match machine.balloon_stats().await {
            Ok(stats) if stats.actual > near => tokio::time::sleep(LOOK_EVERY).await,
            _ => return,
        }
    }
}

/// What the balloon leaves to a guest whom nobody squeezes.
fn all(record: &VmRecord) -> Bytes {
    record.spec.memory.balloon.unwrap_or(Bytes::new(u64::MAX))
}

/// Gives a guest what an earlier daemon may have taken from it.
pub(crate) async fn let_go(machine: &dyn Machine, record: &VmRecord, memory: &MemoryState) {
    // Asked first: most guests have all of it, and are left alone.
    let Ok(stats) = machine.balloon_stats().await else { return };
    if stats.actual >= all(record).min(memory.present) {
        return;
    }
    if let Err(error) = machine.balloon(all(record)).await {
        tracing::warn!(vm = %record.id, %error, "a guest is not given all of its memory");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(actual: u64, free: u64, resident: u64) -> Option<u64> {
        let [actual, free, resident] = [actual, free, resident].map(Bytes::mib);
        keep(Seen { actual, free, resident }).map(Bytes::as_mib)
    }

    #[test]
    fn free_memory_that_the_host_still_has_is_taken_and_a_margin_is_left() {
        assert_eq!(of(512, 424, 514), Some(88 + 64));
        assert_eq!(of(2048, 1920, 1647), Some(128 + 256));
        assert_eq!(of(65_536, 60_000, 65_000), Some(5_536 + 8_192));
    }

    #[test]
    fn a_guest_is_not_troubled_for_little() {
        assert_eq!(of(512, 424, 246), None, "it has reported it");
        assert_eq!(of(2048, 1920, 242), None, "it has never used it");
        assert_eq!(of(512, 60, 600), None, "it has little left");
        assert_eq!(of(512, 0, 600), None);
        assert_eq!(of(160, 900, 600), Some(64), "figures that do not fit together");
        assert_eq!(of(u64::MAX, 0, u64::MAX), None);
    }

    #[test]
    fn figures_of_another_hour_are_not_believed() {
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let stats = |updated_s| BalloonStats {
            actual: Bytes::mib(512),
            free: Some(Bytes::mib(400)),
            updated_s,
            ..BalloonStats::default()
        };
        assert!(seen(stats(Some(now_s)), Bytes::ZERO).is_some());
        assert!(seen(stats(Some(now_s - 3600)), Bytes::ZERO).is_none());
        assert!(seen(stats(None), Bytes::ZERO).is_none());
    }
}
