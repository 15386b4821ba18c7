//! Times as people read them: how long ago, and when exactly.

use api::model::UnixMillis;
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// Now, by this machine's clock.
pub(crate) fn now() -> UnixMillis {
    let millis = Timestamp::now().as_millisecond();
    UnixMillis::new(u64::try_from(millis).unwrap_or_default())
}

/// `2 min ago`; `in 2 min` for what is to come.
pub(crate) fn relative(at: UnixMillis, now: UnixMillis) -> String {
    let past = now.since(at).get();
    let future = at.since(now).get();
    match (past, future) {
        (past, 0) if past < 1_000 => "just now".to_owned(),
        (past, 0) => format!("{} ago", length(past)),
        (_, future) => format!("in {}", length(future)),
    }
}

/// `2026-11-21 03:00:05 UTC`, in the time zone of whoever asks.
pub(crate) fn absolute(at: UnixMillis) -> String {
    let millis = i64::try_from(at.get()).unwrap_or(i64::MAX);
    match Timestamp::from_millisecond(millis) {
        Ok(time) => time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S %Z").to_string(),
        // Further away than any calendar reaches.
        Err(_) => format!("{millis} ms"),
    }
}

/// Both: `2 min ago (2026-11-21 03:00:05 UTC)`.
pub(crate) fn both(at: UnixMillis, now: UnixMillis) -> String {
    format!("{} ({})", relative(at, now), absolute(at))
}

/// A length of time in its largest unit, milliseconds given: `1.5 s`, `3 min`, `5 days`.
pub(crate) fn length(millis: u64) -> String {
    let seconds = millis / 1_000;
    match seconds {
        0 => format!("{millis} ms"),
        1..=9 => format!("{:.1} s", millis as f64 / 1_000.0),
        10..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", seconds / 60),
        7_200..=172_799 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_as_people_do() {
        let now = UnixMillis::new(1_000_000_000);
        let ago = |millis: u64| relative(UnixMillis::new(now.get() - millis), now);
        assert_eq!(ago(0), "just now");
        assert_eq!(ago(1_500), "1.5 s ago");
        assert_eq!(ago(90_000), "90 s ago");
        assert_eq!(ago(180_000), "3 min ago");
        assert_eq!(ago(7_200_000), "2 h ago");
        assert_eq!(ago(200_000_000), "2 days ago");
        assert_eq!(relative(UnixMillis::new(now.get() + 30_000), now), "in 30 s");
    }

    #[test]
    fn a_time_beyond_the_calendar_is_no_panic() {
        assert!(absolute(UnixMillis::new(u64::MAX)).ends_with(" ms"));
    }
}
