//! (6) Snapshot <= applied <= last.

use super::Invariant;
use super::Seen;

pub(super) struct Positions;

impl Invariant for Positions {
    fn check(&mut self, seen: &Seen) -> Result<(), String> {
        for host in &seen.hosts {
            let Some(metrics) = &host.metrics else { continue };
            let snapshot = metrics.snapshot.map_or(0, |at| at.index + 1);
            let (applied, last) = (metrics.applied_next, metrics.log_next);
            if snapshot > applied || applied > last {
                return Err(format!("{}: {snapshot}, {applied}, {last}", host.name));
            }
        }
        Ok(())
    }
}
