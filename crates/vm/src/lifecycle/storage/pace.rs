//! Pure: when the guest's writes begin to wait for both files. Until then it does not feel the copy;
//! but a guest that writes faster than is copied is never caught up with.

use std::time::Duration;

/// So little is copied while the guest waits a moment longer for its writes: 64 MiB.
const LITTLE: u64 = 64 << 20;

/// How long the rest may not shrink before it is taken for one that never will.
const STALL: Duration = Duration::from_secs(10);

/// What was seen of copies.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pace {
    /// The least that was ever left to copy, and when that was seen first.
    least: Option<(u64, Duration)>,
    tight: bool,
}

impl Pace {
    /// Looks at what is left, `now` after the begin. True once, when it is time.
    pub(super) fn tighten(&mut self, left: u64, total: u64, now: Duration) -> bool {
        if self.tight {
            return false;
        }
        let since = match self.least {
            Some((least, since)) if left >= least => since,
            _ => {
                self.least = Some((left, now));
                now
            }
        };
        self.tight = left <= LITTLE.max(total / 10) || now.saturating_sub(since) >= STALL;
        self.tight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_guest_is_left_alone_until_little_is_left() {
        let mut pace = Pace::default();
        assert!(!pace.tighten(20 * GIB, 20 * GIB, at(0)));
        assert!(!pace.tighten(10 * GIB, 21 * GIB, at(300)), "it shrinks");
        assert!(pace.tighten(2 * GIB, 21 * GIB, at(600)));
        assert!(!pace.tighten(GIB, 21 * GIB, at(601)), "only once");
        assert!(Pace::default().tighten(LITTLE, LITTLE, at(0)), "a small disk at once");
    }

    #[test]
    fn a_guest_that_writes_faster_than_is_copied_is_made_to_wait() {
        let mut pace = Pace::default();
        assert!(!pace.tighten(9 * GIB, 20 * GIB, at(0)));
        assert!(!pace.tighten(10 * GIB, 22 * GIB, at(9)));
        assert!(pace.tighten(9 * GIB, 23 * GIB, at(10)));
    }
}
