//! (5) Vote and term never go back, whatever a host has lived through, but the loss of its log.

use std::collections::BTreeMap;

use super::Invariant;
use super::Seen;

#[derive(Default)]
pub(super) struct Terms(BTreeMap<(String, u64), u64>);

impl Invariant for Terms {
    fn check(&mut self, seen: &Seen) -> Result<(), String> {
        for host in &seen.hosts {
            // Before its first look a daemon shows term 0.
            let Some(metrics) = host.metrics.as_ref().filter(|metrics| metrics.term > 0) else {
                continue;
            };
            let last = self.0.entry((host.name.clone(), host.logs)).or_default();
            if metrics.term < *last {
                return Err(format!("{} went from {last} to {}", host.name, metrics.term));
            }
            *last = metrics.term;
        }
        Ok(())
    }
}
