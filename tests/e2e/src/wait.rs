//! Waiting for conditions.

use std::time::Duration;
use std::time::Instant;

use api::model::OpFailure;
use api::model::OpState;
use api::types::OpView;

/// Pause between two looks. A wait ends by what it sees, not by this.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Limits times `$MUSTER_PATIENCE`, for a machine that is much slower or busier than most.
pub(crate) fn patient(limit: Duration) -> Duration {
    let factor = std::env::var("MUSTER_PATIENCE").ok().and_then(|it| it.parse().ok());
    limit * factor.unwrap_or(1)
}

/// Looks again and again until there is something to see.
///
/// # Panics
/// When `limit` is over; the message names `what`.
pub async fn eventually<T>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> T {
    let (start, limit) = (Instant::now(), patient(limit));
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Why an operation failed.
///
/// # Panics
/// If it did not fail, or does not say what to do next.
pub fn failure(op: &OpView) -> &OpFailure {
    let OpState::Failed { failure, .. } = &op.state else {
        panic!("{} did not fail: {:?}", op.title, op.state)
    };
    assert!(!failure.hint.is_empty(), "no next step: {failure:?}");
    failure
}
