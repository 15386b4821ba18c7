//! Freezing a guest's file systems for a copy, as a pure machine.
//!
//! ```text
//!          begin              frozen                thaw asked | limit over
//! Thawed --------> Freezing ----------> Frozen ---------------------------> Thawing ---> Thawed
//!                     |  failed, or no answer                                 |  ^
//!                     +-----------------------------------------------------> +--+ again
//! ```
//!
//! A frozen guest stands still as soon as it writes, so the time is limited hard: the clock starts
//! when freezing is asked for. After the limit the guest is thawed whatever the caller does, and
//! its copy counts as one after a power cut. Thawing is repeated until the guest says yes.

use std::time::Duration;

/// How good a copy is that was made between freeze and thaw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// File systems were at rest all the time.
    Filesystem,
    /// As after a power cut: the freeze ended before the copy did.
    Crash,
}

/// What is visible of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FreezeState {
    /// The guest writes as it likes.
    #[default]
    Thawed,
    /// Its file systems are held.
    Frozen,
    /// They should be released, and the guest has not said yes yet.
    Thawing,
}

#[derive(Debug)]
pub(super) struct FreezeMachine {
    limit: Duration,
    pause: Duration,
    step: Step,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The result of the last freeze waits for its caller in `expired`.
    Thawed {
        expired: bool,
    },
    Freezing {
        until: Duration,
    },
    Frozen {
        until: Duration,
    },
    Thawing {
        next: Duration,
        expired: bool,
    },
}

impl FreezeMachine {
    pub(super) fn new(limit: Duration, pause: Duration) -> Self {
        Self { limit, pause, step: Step::Thawed { expired: false } }
    }

    pub(super) fn state(&self) -> FreezeState {
        match self.step {
            Step::Thawed { .. } => FreezeState::Thawed,
            Step::Freezing { .. } | Step::Frozen { .. } => FreezeState::Frozen,
            Step::Thawing { .. } => FreezeState::Thawing,
        }
    }

    /// Begins to freeze, if nothing is frozen: from now on the guest must be thawed again.
    pub(super) fn begin(&mut self, now: Duration) -> bool {
        let idle = matches!(self.step, Step::Thawed { .. });
        if idle {
            self.step = Step::Freezing { until: now + self.limit };
        }
        idle
    }

    pub(super) fn frozen(&mut self) {
        if let Step::Freezing { until } = self.step {
            self.step = Step::Frozen { until };
        }
    }

    /// Freezing failed, or it is not known whether it did; or a guest was found frozen.
    pub(super) fn must_thaw(&mut self, now: Duration) {
        self.step = Step::Thawing { next: now, expired: false };
    }

    /// The limit is over: thaw now.
    pub(super) fn expire(&mut self, now: Duration) {
        if let Step::Frozen { until } | Step::Freezing { until } = self.step
            && now >= until
        {
            self.step = Step::Thawing { next: now, expired: true };
        }
    }

    /// The caller is done. Whether a thaw is due (false: it is thawed already, see `conclude`).
    pub(super) fn release(&mut self, now: Duration) -> bool {
        self.expire(now);
        if let Step::Frozen { .. } | Step::Freezing { .. } = self.step {
            self.step = Step::Thawing { next: now, expired: false };
        }
        matches!(self.step, Step::Thawing { .. })
    }

    pub(super) fn thawed(&mut self) {
        if let Step::Thawing { expired, .. } = self.step {
            self.step = Step::Thawed { expired };
        }
    }

    pub(super) fn thaw_failed(&mut self, now: Duration) {
        if let Step::Thawing { expired, .. } = self.step {
            self.step = Step::Thawing { next: now + self.pause, expired };
        }
    }

    /// How good the copy is, told once.
    pub(super) fn conclude(&mut self) -> Consistency {
        let expired = match &mut self.step {
            Step::Thawed { expired } => std::mem::take(expired),
            // Not thawed: whoever asks has no copy at rest that he can trust later.
            _ => true,
        };
        if expired { Consistency::Crash } else { Consistency::Filesystem }
    }

    /// When the machine wants attention.
    pub(super) fn due(&self) -> Option<Duration> {
        match self.step {
            Step::Thawed { .. } => None,
            Step::Freezing { until } | Step::Frozen { until } => Some(until),
            Step::Thawing { next, .. } => Some(next),
        }
    }

    pub(super) fn is_thawing(&self) -> bool {
        matches!(self.step, Step::Thawing { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn frozen_at_100() -> FreezeMachine {
        let mut m = FreezeMachine::new(S(10), S(1));
        assert!(m.begin(S(100)));
        assert!(!m.begin(S(100)), "one at a time");
        m.frozen();
        m
    }

    #[test]
    fn in_time_is_consistent() {
        let mut m = frozen_at_100();
        assert_eq!((m.state(), m.due()), (FreezeState::Frozen, Some(S(110))));
        assert!(m.release(S(109)));
        m.thawed();
        assert_eq!(m.conclude(), Consistency::Filesystem);
        assert_eq!(m.state(), FreezeState::Thawed);
    }

    #[test]
    fn too_late_is_a_crash_copy_and_the_guest_was_thawed_before() {
        let mut m = frozen_at_100();
        m.expire(S(109));
        assert!(!m.is_thawing());
        m.expire(S(110));
        assert!(m.is_thawing());
        m.thawed();
        assert!(!m.release(S(120)));
        assert_eq!(m.conclude(), Consistency::Crash);
        assert_eq!(m.conclude(), Consistency::Filesystem, "told once");
    }

    #[test]
    fn thawing_is_repeated_until_it_works() {
        let mut m = frozen_at_100();
        assert!(m.release(S(101)));
        m.thaw_failed(S(102));
        assert_eq!((m.state(), m.due()), (FreezeState::Thawing, Some(S(103))));
        assert_eq!(m.conclude(), Consistency::Crash);
        assert!(!m.begin(S(103)));
        m.thawed();
        assert!(m.begin(S(104)));
    }

    #[test]
    fn a_freeze_in_doubt_is_thawed() {
        let mut m = FreezeMachine::new(S(10), S(1));
        m.begin(S(0));
        m.must_thaw(S(3));
        assert!(m.is_thawing());
        m.thawed();
        assert_eq!(m.state(), FreezeState::Thawed);
    }
}
