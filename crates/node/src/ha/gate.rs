//! How many of a node's machines leave at once: as many as carry more together, and no more.
//!
//! ```text
//!   begin with two --> full for a while: rate at two --> three --> rate at three
//!        more by a tenth: four, and so on       not more: back to two, and another try much later
//! ```
//!
//! A count that is set for ever is wrong for one network and for the next (FEATURES.md area 4, "unlimited"
//! migrations: the limit is what the way carries). Each migration more makes all of them longer, and each
//! guest's pages are sent again for as long as its migration takes; so it has to pay.
//!
//! Pure: it is told the time, how many go, how many wait, and what was carried in all.

use std::time::Duration;

use tokio::time::Instant;

/// As many as begin without anything measured: one sends while the other one's target gets ready.
const FIRST: usize = 2;

/// Most at once. More do not fill a way that these do not fill.
const MOST: usize = 8;

/// How long is measured.
const WINDOW: Duration = Duration::from_secs(3);

/// How much more one more must carry, in parts of the whole.
const GAIN: f64 = 1.1;

/// How long after a try that was in vain the next one comes.
const REST: Duration = Duration::from_secs(60);

/// What was measured, and what follows from it.
#[derive(Debug)]
pub(super) struct Gate {
    allowed: usize,
    /// The rate, in bytes per second, of so many at once.
    best: Option<(usize, f64)>,
    /// Since when as many go as are allowed, and what had been carried then.
    window: Option<(Instant, u64)>,
    /// No other try before.
    rest: Option<Instant>,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self { allowed: FIRST, best: None, window: None, rest: None }
    }

    /// How many more may begin while `going` go.
    pub(super) fn room(&self, going: usize) -> usize {
        self.allowed.saturating_sub(going)
    }

    /// Looks at the time `now`: `going` go, `waiting` more would, and `carried` bytes were carried in all,
    /// a number that only grows.
    pub(super) fn look(&mut self, now: Instant, going: usize, waiting: usize, carried: u64) {
        if going == 0 && waiting == 0 {
            // Another drain may go another way.
            *self = Self::new();
            return;
        }
        // What is not full, or has nobody behind it, says nothing about one more.
        if going < self.allowed || waiting == 0 {
            self.window = None;
            return;
        }
        let (since, before) = *self.window.get_or_insert((now, carried));
        let took = now.duration_since(since);
        if took < WINDOW {
            return;
        }
        self.window = None;
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let rate = carried.saturating_sub(before) as f64 / took.as_secs_f64();
        // Nothing went over the way (they are saved, or get ready): nothing is known of it.
        if carried == before {
            return;
        }
        match self.best {
            Some((fewer, best)) if self.allowed > fewer && rate < best * GAIN => {
                self.allowed = fewer;
                self.rest = Some(now + REST);
            }
            _ if self.rest.is_some_and(|rest| now < rest) => {}
            _ => {
                self.best = Some((self.allowed, rate));
                self.allowed = (self.allowed + 1).min(MOST);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A way that carries so much in all, and each migration so much of it at most.
    fn settle(gate: &mut Gate, way: u64, each: u64, seconds: u64) -> usize {
        let begun = Instant::now();
        let mut carried = 0;
        for second in 0..seconds {
            let going = gate.room(0);
            gate.look(begun + Duration::from_secs(second), going, 100, carried);
            carried += way.min(each * gate.room(0) as u64);
        }
        gate.room(0)
    }

    #[tokio::test]
    async fn as_many_go_as_carry_more_together() {
        // One fills it: a third one carries nothing more.
        assert_eq!(settle(&mut Gate::new(), 100, 100, 40), 2);
        // Five fill it.
        assert_eq!(settle(&mut Gate::new(), 100, 20, 40), 5);
        assert_eq!(settle(&mut Gate::new(), 100, 1, 60), MOST);
    }

    #[tokio::test]
    async fn nothing_is_measured_where_nobody_waits_and_each_drain_begins_anew() {
        let (mut gate, begun) = (Gate::new(), Instant::now());
        for second in 0..30 {
            gate.look(begun + Duration::from_secs(second), 2, 0, second * 100);
        }
        assert_eq!(gate.room(0), FIRST);
        assert!(settle(&mut gate, 100, 1, 60) > FIRST);
        assert_eq!((gate.room(3), gate.room(100)), (MOST - 3, 0));
        gate.look(begun + Duration::from_secs(100), 0, 0, 9_000);
        assert_eq!(gate.room(0), FIRST);
    }

    #[tokio::test]
    async fn a_try_in_vain_is_made_again_much_later() {
        let (mut gate, begun) = (Gate::new(), Instant::now());
        let (mut carried, mut tries) = (0, 0);
        for second in 0..200 {
            let before = gate.room(0);
            gate.look(begun + Duration::from_secs(second), before, 5, carried);
            tries += usize::from(gate.room(0) > before);
            carried += 100;
        }
        assert!((2..=4).contains(&tries), "{tries} in 200 s");
    }
}
