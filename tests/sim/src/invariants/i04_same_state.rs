//! (3) What is committed never changes, and (4) the state at the same index is the same: on all
//! nodes, and on each after each restart.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::ClusterState;

use super::Invariant;
use super::Seen;

#[derive(Default)]
pub(super) struct SameState {
    at: BTreeMap<u64, Arc<ClusterState>>,
    last: BTreeMap<String, (u64, Arc<ClusterState>)>,
}

impl Invariant for SameState {
    fn check(&mut self, seen: &Seen) -> Result<(), String> {
        for host in &seen.hosts {
            let (Some(metrics), Some(state)) = (&host.metrics, &host.state) else { continue };
            let index = metrics.applied_next;
            let last = self.last.get(&host.name);
            if last.is_some_and(|(at, old)| *at == index && Arc::ptr_eq(old, state)) {
                continue;
            }
            self.last.insert(host.name.clone(), (index, state.clone()));
            let first = self.at.entry(index).or_insert_with(|| state.clone());
            if !Arc::ptr_eq(first, state) && **first != **state {
                return Err(format!("{} has another one at index {index}", host.name));
            }
        }
        Ok(())
    }
}
