//! (13) No takeover without recorded proof: a VM that was not handed over by a migration changes
//! hands only after the epoch of its owner was raised, which the state does with a proof only.

use std::collections::BTreeMap;

use model::Arrival;
use model::NodeId;
use model::VmId;

use super::Invariant;
use super::Seen;

#[derive(Default)]
pub(super) struct Proof(BTreeMap<VmId, (NodeId, u64, Option<Arrival>)>);

impl Invariant for Proof {
    fn check(&mut self, seen: &Seen) -> Result<(), String> {
        let Some(state) = &seen.newest else { return Ok(()) };
        let epoch = |node: NodeId| state.nodes.get(&node).map_or(0, |node| node.epoch);
        for vm in state.vms.values() {
            let now = (vm.owner, epoch(vm.owner), vm.arrival);
            let Some((owner, before, arrival)) = self.0.insert(vm.id, now) else { continue };
            let handed_over = vm.arrival != arrival;
            if owner != vm.owner && epoch(owner) <= before && !handed_over {
                return Err(format!("{} left {owner} in epoch {before}", vm.name));
            }
            if owner == vm.owner {
                // The epoch in which it came there counts.
                self.0.insert(vm.id, (owner, before, vm.arrival));
            }
        }
        Ok(())
    }
}
