//! Rate limit for log lines that a guest can cause at will.

use std::time::Duration;
use std::time::Instant;

/// At most one line in this time per cause; the count of the suppressed ones goes with the next.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Lets one line pass per interval and counts the rest.
#[derive(Debug, Default)]
pub(crate) struct LogLimit {
    last: Option<Instant>,
    suppressed: u64,
}

impl LogLimit {
    /// Whether to log now: `Some(n)` says how many were kept back since the last one.
    pub(crate) fn pass(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.duration_since(last) < LOG_INTERVAL) {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_passes_per_interval_and_tells_how_many_did_not() {
        let mut limit = LogLimit::default();
        let start = Instant::now();
        assert_eq!(limit.pass(start), Some(0));
        assert_eq!(limit.pass(start), None);
        assert_eq!(limit.pass(start + Duration::from_secs(1)), None);
        assert_eq!(limit.pass(start + LOG_INTERVAL), Some(2));
    }
}
