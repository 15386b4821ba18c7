//! (41) A guest that was saved goes on once, from where it stood: nothing of its VM has run since its memory
//! was written. And that memory is there as long as the state says that the VM is saved, unless the guest
//! has gone on from it.

use std::collections::BTreeMap;

use model::Generation;
use model::Power;
use model::VmId;

use super::Invariant;
use super::Seen;
use crate::guard::short;

#[derive(Default)]
pub(super) struct Saved {
    /// When a machine of the VM ran last.
    ran: BTreeMap<VmId, u64>,
    /// Runs that went on from a memory and were looked at.
    gone_on: BTreeMap<VmId, Generation>,
    /// When each saved guest had stopped.
    stood: BTreeMap<(VmId, Generation), u64>,
}

impl Invariant for Saved {
    fn check(&mut self, seen: &Seen) -> Result<(), String> {
        let machines =
            || seen.hosts.iter().flat_map(|host| host.machines.iter().map(move |it| (host, it)));
        for (host, (vm, machine, _)) in machines().filter(|(_, (_, _, runs))| *runs) {
            let Some(stood) = machine.memory else { continue };
            if self.gone_on.insert(*vm, machine.generation) == Some(machine.generation) {
                continue;
            }
            let ran = self.ran.get(vm).copied().unwrap_or_default();
            if ran > stood {
                return Err(format!(
                    "{} goes on on {} from {stood} ms, and ran until {ran} ms",
                    short(vm),
                    host.name
                ));
            }
        }
        for (_, (vm, _, _)) in machines().filter(|(_, (_, _, runs))| *runs) {
            self.ran.insert(*vm, seen.now);
        }
        self.stood.extend(seen.memories.iter().map(|(key, stood)| (*key, *stood)));
        let Some(state) = &seen.newest else { return Ok(()) };
        for vm in state.vms.values().filter(|vm| vm.power == Power::Saved && vm.busy().is_none()) {
            let Some(saved) = vm.saved else { return Err(format!("{} is saved nowhere", vm.name)) };
            let key = (vm.id, saved.generation);
            let Some(stood) = self.stood.get(&key) else {
                return Err(format!("{} is saved, and its memory was never written", vm.name));
            };
            let ran = self.ran.get(&vm.id).copied().unwrap_or_default();
            if !seen.memories.contains_key(&key) && ran <= *stood {
                return Err(format!("{} is saved, and its memory is gone", vm.name));
            }
        }
        Ok(())
    }
}
