//! (28) When faults have stopped, there is one leader in 10 s.

use std::collections::BTreeSet;

use super::Invariant;
use super::Seen;

/// The promise, and the second in which hosts and daemons are started again.
const LIMIT: u64 = 10_000 + 1_500;

#[derive(Default)]
pub(super) struct LeaderAgain {
    done: bool,
}

impl Invariant for LeaderAgain {
    fn check(&mut self, seen: &Seen) -> Result<(), String> {
        let Some(since) = seen.healing.filter(|_| !self.done) else { return Ok(()) };
        let leaders: BTreeSet<_> = seen
            .hosts
            .iter()
            .map(|host| host.metrics.as_ref().and_then(|metrics| metrics.leader))
            .collect();
        self.done = leaders.len() == 1 && !leaders.contains(&None);
        if seen.now > since + LIMIT && !self.done {
            return Err(format!("{} ms later the nodes name {leaders:?}", seen.now - since));
        }
        Ok(())
    }
}
