//! The settings of the lease, and the check that refuses those which break the arithmetic.

use std::time::Duration;

use model::LeaseTerms;

/// Shortest lease: below, ordinary pauses of a busy host would freeze machines.
const LEASE_MIN: Duration = Duration::from_secs(2);
/// Longest lease: beyond, a takeover without proof would take minutes.
const LEASE_MAX: Duration = Duration::from_secs(120);
/// Longest time of a hardware watchdog, for the same reason.
const WATCHDOG_MAX: Duration = Duration::from_secs(60);
/// Least margin: the kill of a group of large machines takes about a second.
const MARGIN_MIN: Duration = Duration::from_secs(1);
/// Longest margin.
const MARGIN_MAX: Duration = Duration::from_secs(300);
/// What two clocks may differ by, one part in this many (RELIABILITY.md section 3: 1 %).
const CLOCK_ERROR_PART: u32 = 100;
/// Added to every takeover, for what the arithmetic does not see.
const EXTRA: Duration = Duration::from_secs(1);
/// Renewals in one lease: several may be lost before anything is frozen.
const RENEWALS: u32 = 5;

/// How leases are given and when they are over. The same on all nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseSettings {
    /// How long a lease lasts, 2 to 120 s.
    pub lease: Duration,
    /// What a guard may need after the end of the lease until the last process is gone, 1 to 300 s.
    /// Without a watchdog this is also the longest pause of a guard that does no harm.
    pub guard_margin: Duration,
    /// When a lease may be called over, counted from the last possible grant; the least that the
    /// arithmetic allows where it is not set.
    pub takeover: Option<Duration>,
}

/// Settings that would let a VM run twice, or machines stop without need.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting} = {value} ms cannot be: {why}; {advice}")]
pub struct BadSettings {
    /// Which setting.
    pub setting: &'static str,
    /// What it is.
    pub value: u128,
    /// Why not.
    pub why: String,
    /// What to set.
    pub advice: String,
}

impl Default for LeaseSettings {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(10),
            guard_margin: Duration::from_secs(10),
            takeover: None,
        }
    }
}

impl LeaseSettings {
    /// Refuses settings that break the arithmetic. `election_max` is the longest election timeout
    /// of the replicated log, `watchdog` this node's watchdog (nothing: none).
    ///
    /// # Errors
    /// [`BadSettings`] names the setting and what to set.
    pub fn check(&self, election_max: Duration, watchdog: Duration) -> Result<(), BadSettings> {
        let bad = |setting, value: Duration, why: &str, advice: String| {
            Err(BadSettings { setting, value: value.as_millis(), why: why.to_owned(), advice })
        };
        let between = |low: Duration, high: Duration| {
            format!("set {} to {}", low.as_millis(), high.as_millis())
        };
        if self.lease < LEASE_MIN || self.lease > LEASE_MAX {
            let advice = between(LEASE_MIN, LEASE_MAX);
            return bad("lease_ms", self.lease, "it is out of range", advice);
        }
        if self.guard_margin < MARGIN_MIN || self.guard_margin > MARGIN_MAX {
            let advice = between(MARGIN_MIN, MARGIN_MAX);
            return bad("guard_margin_ms", self.guard_margin, "it is out of range", advice);
        }
        if watchdog > WATCHDOG_MAX || watchdog.subsec_nanos() != 0 {
            let why = "a watchdog counts whole seconds, and takeover waits for it";
            return bad("watchdog_ms", watchdog, why, between(Duration::ZERO, WATCHDOG_MAX));
        }
        // One change of leader in the worst case must not freeze a machine: two election timeouts
        // (the first may split the votes) and the renewal that is due then.
        let change = election_max * 2 + self.renew_every();
        if change >= self.freeze_after(self.lease) {
            let needs = change * 3 / 2 + Duration::from_millis(1);
            let advice = format!("set at least {} or shorter elections", needs.as_millis() + 1);
            let why = "a change of leader would freeze machines";
            return bad("lease_ms", self.lease, why, advice);
        }
        let terms = self.terms(watchdog);
        if let Some(takeover) = self.takeover
            && takeover < self.least_takeover(terms)
        {
            let advice = format!("set at least {}", self.least_takeover(terms).as_millis());
            let why = "a VM could be started elsewhere while it still runs here";
            return bad("takeover_ms", takeover, why, advice);
        }
        Ok(())
    }

    /// How often a node asks for a new grant.
    pub fn renew_every(&self) -> Duration {
        self.lease / RENEWALS
    }

    /// When machines are frozen, counted from the request.
    pub fn freeze_after(&self, lease: Duration) -> Duration {
        freeze_after(lease)
    }

    /// What a grant under these settings allows a node with such a watchdog.
    pub fn terms(&self, watchdog: Duration) -> LeaseTerms {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        LeaseTerms { lease_ms: millis(self.lease), watchdog_ms: millis(watchdog) }
    }

    /// The least wait from the last possible grant to a takeover (RELIABILITY.md section 3).
    pub fn least_takeover(&self, terms: LeaseTerms) -> Duration {
        let counted = terms.lease().saturating_add(terms.watchdog());
        counted
            .saturating_add(self.guard_margin)
            .saturating_add(counted / CLOCK_ERROR_PART)
            .saturating_add(EXTRA)
    }

    /// The wait from the last possible grant to a takeover.
    pub fn takeover_after(&self, terms: LeaseTerms) -> Duration {
        let least = self.least_takeover(terms);
        self.takeover.map_or(least, |set| set.max(least))
    }
}

/// Two thirds of a lease.
pub(crate) fn freeze_after(lease: Duration) -> Duration {
    lease * 2 / 3
}

/// Whether a lease of that length is one that a leader could give.
pub(crate) fn possible(lease: Duration) -> bool {
    (LEASE_MIN..=LEASE_MAX).contains(&lease)
}

/// Whether a watchdog of that time can be reckoned with.
pub(crate) fn possible_watchdog(watchdog: Duration) -> bool {
    watchdog <= WATCHDOG_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    const ELECTION: Duration = Duration::from_millis(1600);

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn the_defaults_hold_and_give_the_published_times() {
        let settings = LeaseSettings::default();
        settings.check(ELECTION, Duration::ZERO).unwrap();
        settings.check(ELECTION, ms(15_000)).unwrap();
        assert_eq!(settings.renew_every(), ms(2_000));
        assert_eq!(settings.takeover_after(settings.terms(Duration::ZERO)), ms(21_100));
        // RELIABILITY.md P7: at most 40 s with a watchdog of 15 s.
        assert_eq!(settings.takeover_after(settings.terms(ms(15_000))), ms(36_250));
    }

    #[test]
    fn settings_that_break_the_arithmetic_are_refused_with_what_to_set() {
        let good = LeaseSettings::default();
        let cases: [(LeaseSettings, Duration, Duration, &str); 7] = [
            (LeaseSettings { lease: ms(1_999), ..good }, ms(10), ms(0), "lease_ms"),
            (LeaseSettings { lease: ms(120_001), ..good }, ELECTION, ms(0), "lease_ms"),
            (LeaseSettings { lease: ms(5_000), ..good }, ELECTION, ms(0), "change of leader"),
            (LeaseSettings { guard_margin: ms(999), ..good }, ELECTION, ms(0), "guard_margin_ms"),
            (LeaseSettings { takeover: Some(ms(21_099)), ..good }, ELECTION, ms(0), "21100"),
            (LeaseSettings { takeover: Some(ms(30_000)), ..good }, ELECTION, ms(15_000), "36250"),
            (good, ELECTION, ms(1_500), "whole seconds"),
        ];
        for (settings, election, watchdog, word) in cases {
            let error = settings.check(election, watchdog).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        let longer = LeaseSettings { takeover: Some(ms(21_100)), ..good };
        longer.check(ELECTION, Duration::ZERO).unwrap();
    }

    /// The advice is followed and accepted.
    #[test]
    fn the_advised_lease_is_accepted() {
        let short = LeaseSettings { lease: ms(3_000), ..LeaseSettings::default() };
        for _ in 0..20 {
            let mut settings = short;
            while let Err(error) = settings.check(ELECTION, Duration::ZERO) {
                let digits: String = error.advice.chars().filter(char::is_ascii_digit).collect();
                let next = ms(digits.parse().unwrap());
                assert!(next > settings.lease, "{error}");
                settings.lease = next;
            }
        }
    }

    #[test]
    fn a_takeover_never_comes_before_the_timing_rule() {
        for lease in (2_000..=120_000).step_by(1_000) {
            for watchdog in [0, 1_000, 15_000, 60_000] {
                let settings = LeaseSettings { lease: ms(lease), ..LeaseSettings::default() };
                let after = settings.takeover_after(settings.terms(ms(watchdog)));
                let rule = lease + watchdog + (lease + watchdog) / 100 + 1_000;
                assert!(after >= ms(rule) + settings.guard_margin - ms(1));
            }
        }
    }
}
