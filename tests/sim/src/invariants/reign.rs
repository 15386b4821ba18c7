//! One leader grants leases at a time: each reign has one leader, and the number only grows.

use std::collections::BTreeMap;

use model::NodeId;

use super::Invariant;
use super::Seen;

#[derive(Default)]
pub(super) struct Reign {
    of: BTreeMap<u64, NodeId>,
    last: u64,
}

impl Invariant for Reign {
    fn check(&mut self, seen: &Seen) -> Result<(), String> {
        for host in &seen.hosts {
            let Some(state) = &host.state else { continue };
            let Some(leader) = state.lease_reign.leader else { continue };
            let reign = state.lease_reign.reign;
            let first = *self.of.entry(reign).or_insert(leader);
            if first != leader {
                return Err(format!("reign {reign} is that of {first} and of {leader}"));
            }
        }
        if let Some(newest) = &seen.newest {
            let reign = newest.lease_reign.reign;
            if reign < self.last {
                return Err(format!("it went from {} to {reign}", self.last));
            }
            self.last = reign;
        }
        Ok(())
    }
}
