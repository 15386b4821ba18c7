//! (11) At most one machine of a VM runs at any real time, by the process tables of the hosts.

use std::collections::BTreeMap;

use super::Invariant;
use super::Seen;
use crate::guard::short;

pub(super) struct OneMachine;

impl Invariant for OneMachine {
    fn check(&mut self, seen: &Seen) -> Result<(), String> {
        let mut running = BTreeMap::new();
        for host in &seen.hosts {
            for (vm, machine, _) in host.machines.iter().filter(|(_, _, runs)| *runs) {
                if let Some((other, generation)) =
                    running.insert(vm, (&host.name, machine.generation))
                {
                    return Err(format!(
                        "{} runs on {other} (g{generation}) and on {} (g{})",
                        short(vm),
                        host.name,
                        machine.generation
                    ));
                }
            }
        }
        Ok(())
    }
}
