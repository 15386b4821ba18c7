//! Pure: what to do about a guest that changes its memory faster than it can be sent, so that every
//! migration ends (FEATURES.md D1). At most ten passes.
//!
//! ```text
//!   from the start   a pause of 10 ms is accepted: most guests are there after the second pass
//!   pass 3           50 ms; does it shrink by a tenth? if not: 300 ms
//!   pass 4           if not: 500 ms
//!   pass 5           if not, and the policy allows it: the guest's processors are slowed, to 30 % at the least
//!   pass 10          the policy's longest pause is accepted, if it is enough;
//!                    if not: give up, or send the rest while the guest stands, as the policy says
//! ```

use std::time::Duration;

use model::AtLimit;
use model::Bytes;
use model::MigratePolicy;
use model::Millis;

use crate::engine::MigrateProgress;
use crate::engine::MigrateTuning;

/// The pause that is tried for. QEMU stops the guest as soon as what is left would take that long, in
/// the middle of the first pass too, and its estimate of the bandwidth is better than the truth where
/// much of the memory is empty: with 50 ms idle guests stood for 50 to 190 ms (`bench migrate`).
const BUDGET_FIRST: Millis = Millis::new(10);

/// What is accepted when that does not do: at the third pass anyway, then if what is left does not
/// shrink.
const BUDGET_SECOND: Millis = Millis::new(50);
const BUDGET_THIRD: Millis = Millis::new(300);
const BUDGET_FOURTH: Millis = Millis::new(500);

/// Most passes over the memory.
const PASSES_MAX: u64 = 10;

/// A pass that there is only where what the tenth one promised did not come true.
const LAST_CHANCE_MAX: u64 = PASSES_MAX + 2;

/// The pass from which processors are slowed.
const THROTTLE_FROM: u64 = 5;

/// How much processors may be slowed, in percent; 1 is not at all.
const THROTTLE_MAX: u8 = 70;
const THROTTLE_OFF: u8 = 1;

/// A pause that any guest can be moved with, in QEMU's largest number: 2000 s.
const BUDGET_ANY: Millis = Millis::new(2_000_000);

/// How long nothing may move at all: a network that is cut does not say so.
const STALL_MAX: Duration = Duration::from_secs(10);

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Measure {
    /// Go on in this way; the words are for people.
    Tune(MigrateTuning, String),
    /// The guest is too quick; the words say how much.
    GiveUp(String),
    /// Nothing has moved for too long.
    Stalled,
}

/// What was done at the last pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limit {
    /// It is not there yet.
    Before,
    /// The policy's longest pause is accepted: it should end in a moment.
    LastChance,
    /// Nothing more can be done.
    Reached,
}

/// Where a migration is on the ladder.
#[derive(Debug)]
pub(super) struct Ladder {
    policy: MigratePolicy,
    tuning: MigrateTuning,
    /// The pass that was judged last, and what was left at its begin.
    judged: (u64, Bytes),
    /// What the tenth pass has led to.
    limit: Limit,
    /// What was sent when it last grew, and when.
    moved: (Bytes, Duration),
}

impl Ladder {
    pub(super) fn new(policy: MigratePolicy) -> Self {
        let tuning = MigrateTuning {
            budget: BUDGET_FIRST.min(policy.max_pause),
            throttle_max: THROTTLE_OFF,
        };
        Self {
            policy,
            tuning,
            judged: (0, Bytes::ZERO),
            limit: Limit::Before,
            moved: (Bytes::ZERO, Duration::ZERO),
        }
    }

    /// How to begin.
    pub(super) fn first(&self) -> MigrateTuning {
        self.tuning
    }

    /// What to do when this is seen, `elapsed` after the begin.
    pub(super) fn step(&mut self, seen: &MigrateProgress, elapsed: Duration) -> Option<Measure> {
        if seen.sent > self.moved.0 {
            self.moved = (seen.sent, elapsed);
        } else if elapsed.saturating_sub(self.moved.1) > STALL_MAX {
            return Some(Measure::Stalled);
        }
        if seen.pass <= self.judged.0 || self.limit == Limit::Reached {
            return None;
        }
        // Judged once a pass, when what is left is what the guest has changed in the one before.
        let before = self.judged.1;
        self.judged = (seen.pass, seen.remaining);
        let shrinks = seen.remaining.get() < before.get() / 10 * 9;
        match seen.pass {
            // The pass that was under way when the last chance was given comes to its end.
            LAST_CHANCE_MAX.. => Some(self.at_limit(seen)),
            PASSES_MAX.. if self.limit == Limit::LastChance => None,
            PASSES_MAX.. => Some(self.at_limit(seen)),
            0..=2 => None,
            _ if shrinks => self.tune(BUDGET_SECOND, THROTTLE_OFF, "a pause of 50 ms is accepted"),
            THROTTLE_FROM.. if self.policy.throttle => {
                let words = "the guest's processors are slowed: it changes its memory too quickly";
                self.tune(BUDGET_FOURTH, THROTTLE_MAX, words)
            }
            4.. => self.tune(BUDGET_FOURTH, THROTTLE_OFF, "a pause of 500 ms is accepted"),
            3 => self.tune(BUDGET_THIRD, THROTTLE_OFF, "a pause of 300 ms is accepted"),
        }
    }

    fn tune(&mut self, budget: Millis, throttle_max: u8, words: &str) -> Option<Measure> {
        let tuning = MigrateTuning {
            budget: budget.min(self.policy.max_pause).max(self.tuning.budget),
            throttle_max: throttle_max.max(self.tuning.throttle_max),
        };
        if tuning == self.tuning {
            return None;
        }
        self.tuning = tuning;
        Some(Measure::Tune(tuning, words.to_owned()))
    }

    fn at_limit(&mut self, seen: &MigrateProgress) -> Measure {
        let chance = self.limit == Limit::Before;
        self.limit = Limit::Reached;
        let bandwidth = seen.bandwidth.get().max(1);
        let pause = Millis::new(seen.remaining.get().saturating_mul(1000) / bandwidth);
        let (budget, words) = if chance && pause <= self.policy.max_pause {
            self.limit = Limit::LastChance;
            // Some room: the last bytes go a little slower than the mean.
            (self.policy.max_pause, format!("a pause of {} ms is accepted", pause.get()))
        } else if self.policy.at_limit == AtLimit::Force {
            (BUDGET_ANY, format!("the guest stands for {} ms, as its policy says", pause.get()))
        } else {
            return Measure::GiveUp(format!(
                "after {PASSES_MAX} passes {} MiB are left, which is a pause of {} ms; {} ms \
                 are allowed",
                seen.remaining.as_mib(),
                pause.get(),
                self.policy.max_pause.get()
            ));
        };
        self.tuning = MigrateTuning { budget, ..self.tuning };
        Measure::Tune(self.tuning, words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::MigratePhase;

    fn seen(pass: u64, remaining: u64, bandwidth: u64) -> MigrateProgress {
        MigrateProgress {
            phase: MigratePhase::Running,
            pass,
            sent: Bytes::mib(100 * pass),
            empty: Bytes::ZERO,
            remaining: Bytes::mib(remaining),
            bandwidth: Bytes::mib(bandwidth),
            ..MigrateProgress::idle()
        }
    }

    fn budgets(policy: MigratePolicy, left: impl Fn(u64) -> u64) -> Vec<(u64, Measure)> {
        let mut ladder = Ladder::new(policy);
        let step = |pass| ladder.step(&seen(pass, left(pass), 100), Duration::from_secs(pass));
        let passes = 1..=12;
        passes.map(step).zip(1..).filter_map(|(found, pass)| Some((pass, found?))).collect()
    }

    #[test]
    fn a_guest_that_converges_is_left_alone() {
        let found = budgets(MigratePolicy::default(), |pass| 1000 >> pass);
        let tuned = |measure: &Measure| match measure {
            Measure::Tune(tuning, _) => (tuning.budget.get(), tuning.throttle_max),
            other => panic!("{other:?}"),
        };
        let before = found.iter().filter(|(pass, _)| *pass < 10);
        let before: Vec<_> = before.map(|(pass, measure)| (*pass, tuned(measure))).collect();
        assert_eq!(before, [(3, (50, 1))], "{found:?}");
        let first = Ladder::new(MigratePolicy::default()).first();
        assert_eq!((first.budget, first.throttle_max), (Millis::new(10), 1));
    }

    #[test]
    fn one_that_does_not_goes_up_step_by_step_and_ends_within_ten_passes() {
        let found = budgets(MigratePolicy::default(), |_| 150);
        let tuned = |pass: u64| match found.iter().find(|(at, _)| *at == pass) {
            Some((_, Measure::Tune(tuning, _))) => Some((tuning.budget.get(), tuning.throttle_max)),
            _ => None,
        };
        assert_eq!(tuned(3), Some((300, 1)));
        assert_eq!(tuned(4), Some((500, 1)));
        assert_eq!(tuned(5), Some((500, 70)));
        assert_eq!(tuned(10), Some((2000, 70)), "150 MiB at 100 MiB/s are 1.5 s");
        assert_eq!(found.iter().filter(|(pass, _)| *pass <= 10).count(), 4, "{found:?}");
    }

    #[test]
    fn a_last_chance_that_is_not_taken_was_the_last_one() {
        let found = budgets(MigratePolicy::default(), |_| 150);
        assert!(matches!(found.last(), Some((12, Measure::GiveUp(_)))), "{found:?}");
    }

    #[test]
    fn the_policy_decides_at_the_limit() {
        let last = |at_limit| {
            let policy = MigratePolicy { at_limit, ..MigratePolicy::default() };
            budgets(policy, |_| 500).pop().unwrap()
        };
        assert!(matches!(last(AtLimit::Cancel), (10, Measure::GiveUp(_))));
        assert!(matches!(last(AtLimit::Quick), (10, Measure::GiveUp(_))));
        let (pass, Measure::Tune(tuning, _)) = last(AtLimit::Force) else { panic!("it gives up") };
        assert_eq!((pass, tuning.budget), (10, BUDGET_ANY));
    }

    #[test]
    fn what_the_policy_does_not_allow_is_not_done() {
        let policy = MigratePolicy {
            max_pause: Millis::new(100),
            throttle: false,
            at_limit: AtLimit::Cancel,
            bandwidth: None,
        };
        for (_, measure) in budgets(policy, |_| 150) {
            match measure {
                Measure::Tune(tuning, _) => {
                    assert!(tuning.budget <= Millis::new(100) && tuning.throttle_max == 1);
                }
                Measure::GiveUp(_) => {}
                Measure::Stalled => panic!("it moves"),
            }
        }
    }

    #[test]
    fn a_silent_network_is_noticed() {
        let mut ladder = Ladder::new(MigratePolicy::default());
        let at = |seconds| Duration::from_secs(seconds);
        assert_eq!(ladder.step(&seen(1, 100, 100), at(1)), None);
        assert_eq!(ladder.step(&seen(1, 100, 100), at(11)), None);
        assert_eq!(ladder.step(&seen(1, 100, 100), at(12)), Some(Measure::Stalled));
    }
}
