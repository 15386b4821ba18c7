//! (12) A VM's right to run only grows: in the state, and in what runs. A machine never runs, and so
//! writes, after one with a newer right has.

use std::collections::BTreeMap;

use model::Generation;
use model::VmId;

use super::Invariant;
use super::Seen;
use crate::guard::short;

#[derive(Default)]
pub(super) struct Generations {
    state: BTreeMap<VmId, Generation>,
    written: BTreeMap<VmId, Generation>,
}

impl Invariant for Generations {
    fn check(&mut self, seen: &Seen) -> Result<(), String> {
        for vm in seen.newest.iter().flat_map(|state| state.vms.values()) {
            let last = self.state.entry(vm.id).or_default();
            if vm.generation < *last {
                return Err(format!("{} went from g{last} to g{}", vm.name, vm.generation));
            }
            *last = vm.generation;
        }
        for host in &seen.hosts {
            for (vm, machine, _) in host.machines.iter().filter(|(_, _, runs)| *runs) {
                let last = self.written.entry(*vm).or_default();
                if machine.generation < *last {
                    let (vm, its) = (short(vm), machine.generation);
                    return Err(format!("{vm} g{its} runs on {} after g{last} ran", host.name));
                }
                *last = machine.generation;
            }
        }
        Ok(())
    }
}
