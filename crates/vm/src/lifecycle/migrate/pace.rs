//! How quickly a migration may send, all of its connections together.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use model::Bytes;
use tokio::time::Instant;

/// What may be sent at once after a rest: as little as possible, and more than a clock can miss.
const CREDIT: Duration = Duration::from_millis(10);

/// A limit, or none. Shared by all connections of one migration.
#[derive(Debug)]
pub(super) struct Pace {
    limit: Option<Limit>,
}

#[derive(Debug)]
struct Limit {
    /// Bytes per second; not zero.
    rate: u64,
    /// Until when the way is taken by what was let through.
    taken: Mutex<Instant>,
}

impl Pace {
    pub(super) fn new(bandwidth: Option<Bytes>) -> Self {
        let rate = bandwidth.map(Bytes::get).filter(|rate| *rate > 0);
        Self { limit: rate.map(|rate| Limit { rate, taken: Mutex::new(Instant::now()) }) }
    }

    /// Whether there is a limit.
    pub(super) fn is_limited(&self) -> bool {
        self.limit.is_some()
    }

    /// Waits until so many bytes may be sent.
    pub(super) async fn take(&self, count: usize) {
        let Some(limit) = &self.limit else { return };
        let now = Instant::now();
        let until = {
            let mut taken = limit.taken.lock().unwrap_or_else(PoisonError::into_inner);
            let nanos = (count as u128 * 1_000_000_000) / u128::from(limit.rate);
            let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
            *taken = (*taken).max(now.checked_sub(CREDIT).unwrap_or(now)) + cost;
            *taken
        };
        if until > now {
            tokio::time::sleep_until(until).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_connections_together_get_what_is_allowed() {
        let pace = Arc::new(Pace::new(Some(Bytes::mib(10))));
        let begun = Instant::now();
        let send = |pace: Arc<Pace>| async move {
            for _ in 0..40 {
                pace.take(128 << 10).await;
            }
        };
        tokio::join!(send(pace.clone()), send(pace.clone()));
        // 10 MiB in all.
        let took = begun.elapsed();
        assert!((980..=1_020).contains(&took.as_millis()), "{took:?}");
        // A rest is no credit for later.
        tokio::time::sleep(Duration::from_secs(60)).await;
        let begun = Instant::now();
        pace.take(1 << 20).await;
        assert!((85..=105).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nobody_waits() {
        for none in [None, Some(Bytes::ZERO)] {
            let (pace, begun) = (Pace::new(none), Instant::now());
            pace.take(usize::MAX).await;
            assert!(!pace.is_limited() && begun.elapsed().is_zero());
        }
    }
}
