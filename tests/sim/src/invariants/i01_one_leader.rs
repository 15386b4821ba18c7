//! (1) One leader per term.
//!
//! openraft tells leaders apart by term *and* node, in this order: a vote for a node may be followed,
//! within its term, by one for a greater node, as if that were a later term. So a term may have several
//! leaders one after the other, each with a greater id than the one before, and never one again or
//! out of order. Nothing of ours takes a term for one leader: leases and proofs count reigns.

use std::collections::BTreeMap;

use cluster::raft::Role;
use model::NodeId;

use super::Invariant;
use super::Seen;

/// Of each term, its leaders in the order in which they came.
#[derive(Default)]
pub(super) struct OneLeader(BTreeMap<u64, Vec<NodeId>>);

impl OneLeader {
    fn leads(&mut self, node: NodeId, term: u64) -> Result<(), String> {
        let leaders = self.0.entry(term).or_default();
        match leaders.last() {
            // One that was overtaken may not know it yet.
            _ if leaders.contains(&node) => {}
            Some(last) if node < *last => {
                return Err(format!("{node} leads term {term} after {last}"));
            }
            _ => leaders.push(node),
        }
        Ok(())
    }
}

impl Invariant for OneLeader {
    fn check(&mut self, seen: &Seen) -> Result<(), String> {
        let mut leaders: Vec<_> = seen
            .hosts
            .iter()
            .filter_map(|host| host.metrics.as_ref().map(|metrics| (host.id, metrics)))
            .filter(|(_, metrics)| metrics.role == Role::Leader)
            .map(|(node, metrics)| (node, metrics.term))
            .collect();
        // Two that came since the last look came in the order of their ids.
        leaders.sort_unstable();
        leaders.into_iter().try_for_each(|(node, term)| self.leads(node, term))
    }
}
