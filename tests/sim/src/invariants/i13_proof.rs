//! (13) No takeover without recorded proof: a VM that was not handed over by a migration changes
//! hands only after the epoch of its owner was raised, which the state does with a proof only. The other way
//! is a quick move: somebody moves it there, and it is saved or off, so that its owner has ended its process.

use std::collections::BTreeMap;

use model::Arrival;
use model::Moving;
use model::NodeId;
use model::Power;
use model::VmId;

use super::Invariant;
use super::Seen;

#[derive(Default)]
pub(super) struct Proof(BTreeMap<VmId, (NodeId, u64, Option<Arrival>, Option<Moving>)>);

impl Invariant for Proof {
    fn check(&mut self, seen: &Seen) -> Result<(), String> {
        let Some(state) = &seen.newest else { return Ok(()) };
        let epoch = |node: NodeId| state.nodes.get(&node).map_or(0, |node| node.epoch);
        for vm in state.vms.values() {
            let now = (vm.owner, epoch(vm.owner), vm.arrival, vm.moving);
            let Some((owner, before, arrival, moving)) = self.0.insert(vm.id, now) else {
                continue;
            };
            let handed_over = vm.arrival != arrival;
            let moved = moving.is_some_and(|moving| moving.to == vm.owner)
                && matches!(vm.power, Power::Saved | Power::Off);
            if owner != vm.owner && epoch(owner) <= before && !handed_over && !moved {
                return Err(format!("{} left {owner} in epoch {before}", vm.name));
            }
            if owner == vm.owner {
                // The epoch in which it came there counts.
                self.0.insert(vm.id, (owner, before, vm.arrival, vm.moving));
            }
        }
        Ok(())
    }
}
