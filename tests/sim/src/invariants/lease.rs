//! The law of the lease: a machine that runs was started in the epoch that its node has now. A fencing
//! raises the epoch, so a machine that still runs then was called dead too early.

use super::Invariant;
use super::Seen;
use crate::guard::short;

pub(super) struct Lease;

impl Invariant for Lease {
    fn check(&mut self, seen: &Seen) -> Result<(), String> {
        let Some(state) = &seen.newest else { return Ok(()) };
        for host in &seen.hosts {
            let Some(node) = state.nodes.get(&host.id) else { continue };
            for (vm, machine, _) in host.machines.iter().filter(|(_, _, runs)| *runs) {
                if machine.epoch < node.epoch {
                    return Err(format!(
                        "{} of epoch {} runs on {}, which is at epoch {}",
                        short(vm),
                        machine.epoch,
                        host.name,
                        node.epoch
                    ));
                }
            }
        }
        Ok(())
    }
}
