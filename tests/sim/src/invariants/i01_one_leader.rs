//! (1) One leader per term.

use std::collections::BTreeMap;

use cluster::raft::Role;
use model::NodeId;

use super::Invariant;
use super::Seen;

#[derive(Default)]
pub(super) struct OneLeader(BTreeMap<u64, NodeId>);

impl Invariant for OneLeader {
    fn check(&mut self, seen: &Seen) -> Result<(), String> {
        for host in &seen.hosts {
            let Some(metrics) = &host.metrics else { continue };
            if metrics.role != Role::Leader {
                continue;
            }
            let first = *self.0.entry(metrics.term).or_insert(host.id);
            if first != host.id {
                return Err(format!("{} and {first} lead term {}", host.id, metrics.term));
            }
        }
        Ok(())
    }
}
