//! The wall clock of certificates, which tests may set.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use model::UnixMillis;
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

/// Tells the time that certificates are judged by.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> UnixMillis + Send + Sync>);

impl Clock {
    /// The host's clock.
    pub fn host() -> Self {
        Self::from_fn(|| {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            UnixMillis::new(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
        })
    }

    /// A clock of one's own.
    pub fn from_fn(now: impl Fn() -> UnixMillis + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The time now.
    pub fn now(&self) -> UnixMillis {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({:?})", self.now())
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(unix_time(self.now()))
    }
}

/// As rustls counts.
pub(crate) fn unix_time(at: UnixMillis) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_millis(at.get()))
}
