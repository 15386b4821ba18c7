//! (29) When faults have stopped, all nodes are caught up in 60 s: each has all that any had then.

use super::Invariant;
use super::Seen;

const LIMIT: u64 = 60_000;

#[derive(Default)]
pub(super) struct CaughtUp {
    goal: Option<u64>,
    done: bool,
}

impl Invariant for CaughtUp {
    fn check(&mut self, seen: &Seen) -> Result<(), String> {
        let Some(since) = seen.healing.filter(|_| !self.done) else { return Ok(()) };
        let applied = |(_, metrics): (usize, Option<u64>)| metrics;
        let all: Vec<Option<u64>> = seen
            .hosts
            .iter()
            .map(|host| host.metrics.as_ref().map(|metrics| metrics.applied_next))
            .enumerate()
            .map(applied)
            .collect();
        let goal =
            *self.goal.get_or_insert(all.iter().flatten().copied().max().unwrap_or_default());
        self.done = all.iter().all(|applied| applied.is_some_and(|applied| applied >= goal));
        if seen.now > since + LIMIT && !self.done {
            return Err(format!("they have {all:?} of {goal}"));
        }
        Ok(())
    }
}
