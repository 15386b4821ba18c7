//! Whether a guest answers, as a pure machine.
//!
//! ```text
//!               beat                  silent for `no_contact_after`      `lost_after`
//! NotInstalled ------> Ok --------------------------------> NoContact -------------> Lost
//!                      ^                                        |                     |
//!                      +----------------- beat -----------------+---------------------+
//! ```
//!
//! `Off`: the service is switched off. While the guest is paused no time passes.

use std::time::Duration;

/// Whether the guest answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Heartbeat {
    /// It has never answered: most likely it has no agent.
    #[default]
    NotInstalled,
    /// It answers.
    Ok,
    /// It did answer, and has missed some beats.
    NoContact,
    /// It did answer, and has been silent for long.
    Lost,
    /// The service is switched off.
    Off,
}

/// The machine. Times are since any fixed moment of a monotonic clock.
#[derive(Debug)]
pub(super) struct HeartbeatMachine {
    no_contact_after: Duration,
    lost_after: Duration,
    enabled: bool,
    last_beat: Option<Duration>,
    paused_since: Option<Duration>,
}

impl HeartbeatMachine {
    pub(super) fn new(no_contact_after: Duration, lost_after: Duration) -> Self {
        Self { no_contact_after, lost_after, enabled: true, last_beat: None, paused_since: None }
    }

    /// The guest has answered something.
    pub(super) fn beat(&mut self, now: Duration) {
        self.last_beat = Some(now);
    }

    pub(super) fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
    }

    /// The guest's processors were stopped or go on.
    pub(super) fn set_paused(&mut self, now: Duration, paused: bool) {
        match (paused, self.paused_since) {
            (true, None) => self.paused_since = Some(now),
            (false, Some(since)) => {
                // The guest could not answer in between: its silence begins now at the earliest.
                self.last_beat = self.last_beat.map(|beat| beat + now.saturating_sub(since));
                self.paused_since = None;
            }
            _ => {}
        }
    }

    pub(super) fn state(&self, now: Duration) -> Heartbeat {
        if !self.enabled {
            return Heartbeat::Off;
        }
        let Some(beat) = self.last_beat else { return Heartbeat::NotInstalled };
        match self.paused_since.unwrap_or(now).saturating_sub(beat) {
            silent if silent >= self.lost_after => Heartbeat::Lost,
            silent if silent >= self.no_contact_after => Heartbeat::NoContact,
            _ => Heartbeat::Ok,
        }
    }

    /// When the state changes if nothing happens.
    pub(super) fn next_change(&self, now: Duration) -> Option<Duration> {
        let beat = self.last_beat.filter(|_| self.enabled && self.paused_since.is_none())?;
        [beat + self.no_contact_after, beat + self.lost_after].into_iter().find(|at| *at > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn machine() -> HeartbeatMachine {
        HeartbeatMachine::new(S(15), S(60))
    }

    #[test]
    fn silence_is_first_no_contact_and_then_lost_and_a_beat_mends_it() {
        let mut m = machine();
        assert_eq!(m.state(S(1000)), Heartbeat::NotInstalled);
        assert_eq!(m.next_change(S(1000)), None);
        m.beat(S(1000));
        assert_eq!(m.state(S(1014)), Heartbeat::Ok);
        assert_eq!(m.next_change(S(1014)), Some(S(1015)));
        assert_eq!(m.state(S(1015)), Heartbeat::NoContact);
        assert_eq!(m.next_change(S(1015)), Some(S(1060)));
        assert_eq!(m.state(S(1060)), Heartbeat::Lost);
        assert_eq!(m.next_change(S(1060)), None);
        m.beat(S(2000));
        assert_eq!(m.state(S(2001)), Heartbeat::Ok);
    }

    #[test]
    fn a_paused_guest_misses_nothing() {
        let mut m = machine();
        m.beat(S(10));
        m.set_paused(S(12), true);
        assert_eq!(m.state(S(9999)), Heartbeat::Ok);
        assert_eq!(m.next_change(S(9999)), None);
        m.set_paused(S(10_000), false);
        assert_eq!(m.state(S(10_012)), Heartbeat::Ok);
        assert_eq!(m.state(S(10_013)), Heartbeat::NoContact);
    }

    #[test]
    fn switched_off_is_off_whatever_is_known() {
        let mut m = machine();
        m.beat(S(1));
        m.set_enabled(false);
        assert_eq!(m.state(S(2)), Heartbeat::Off);
        assert_eq!(m.next_change(S(2)), None);
    }
}
