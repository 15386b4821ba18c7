//! (22) A guest has exactly one place at every step of a migration.
//!
//! - A machine that was made for a migration runs only under the run that this very migration has
//!   handed over, and goes on from where its guest stood last: it has all of it, and nothing of the
//!   VM has run since.
//! - What was handed over is there: its machine waits at the target, or runs there, unless the
//!   target was faulted.
//! - A machine that runs by the newest right is not ended by anything but a loss of power or the
//!   guard; a daemon that comes back takes it over.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use model::Arrival;
use model::NodeId;
use model::OpId;
use model::VmId;

use super::HostSeen;
use super::Invariant;
use super::Seen;
use crate::guard::short;

#[derive(Default)]
pub(super) struct Handover {
    /// When a migration was first seen.
    begun: BTreeMap<OpId, u64>,
    /// All that was ever handed over.
    arrivals: BTreeSet<(VmId, OpId)>,
    /// The last of each VM, and to whom.
    last: BTreeMap<VmId, (Arrival, NodeId)>,
    /// What was handed over and has not gone on yet.
    expected: BTreeMap<VmId, OpId>,
    /// Migrations of which a machine has run.
    gone_on: BTreeSet<OpId>,
    /// When a machine of the VM ran last.
    ran: BTreeMap<VmId, u64>,
    /// What ran at the last look by the newest right.
    running: BTreeMap<VmId, usize>,
}

impl Handover {
    fn look_at_state(&mut self, seen: &Seen) {
        let Some(state) = &seen.newest else { return };
        for op in state.ops.keys() {
            self.begun.entry(*op).or_insert(seen.now);
        }
        for vm in state.vms.values() {
            let Some(arrival) = vm.arrival else { continue };
            let before = self.last.insert(vm.id, (arrival, vm.owner));
            if before.is_none_or(|(before, _)| before != arrival) {
                self.arrivals.insert((vm.id, arrival.op));
                self.expected.insert(vm.id, arrival.op);
            }
            if vm.arrived_by().is_none() {
                // Another run has begun: its host was lost, say.
                self.expected.remove(&vm.id);
            }
        }
    }

    /// What a machine that came by a migration may do.
    fn may_run(&mut self, seen: &Seen) -> Result<(), String> {
        for host in &seen.hosts {
            for (vm, machine, _) in host.machines.iter().filter(|(_, _, runs)| *runs) {
                let Some(arrival) = machine.arrival else { continue };
                let (op, word) = (arrival.attempt.op, short(vm));
                if !self.arrivals.contains(&(*vm, op)) {
                    return Err(format!("{word} runs on {} and was not given to it", host.name));
                }
                let of_another_run = self.last.get(vm).is_some_and(|(last, _)| {
                    last.op == op && last.generation != machine.generation
                });
                if of_another_run {
                    return Err(format!("{word} runs on {} as another run", host.name));
                }
                if !self.gone_on.insert(op) {
                    continue;
                }
                let ran = self.ran.get(vm).copied().unwrap_or_default();
                match arrival.full {
                    None => return Err(format!("half of {word} runs on {}", host.name)),
                    Some(stood) if stood < ran => {
                        return Err(format!(
                            "{word} goes on on {} from {stood} ms, and ran until {ran} ms",
                            host.name
                        ));
                    }
                    Some(_) => {}
                }
            }
        }
        Ok(())
    }

    /// What was handed over is there until it has gone on.
    fn is_there(&mut self, seen: &Seen) -> Result<(), String> {
        let mut settled = Vec::new();
        for (vm, op) in &self.expected {
            let Some((_, owner)) = self.last.get(vm) else { continue };
            let Some(host) = seen.hosts.iter().find(|host| host.id == *owner) else { continue };
            let machine = host.machines.iter().find(|(id, machine, _)| {
                id == vm && machine.arrival.is_some_and(|arrival| arrival.attempt.op == *op)
            });
            let begun = self.begun.get(op).copied().unwrap_or_default();
            match machine {
                Some((_, machine, _)) if machine.cpus => settled.push(*vm),
                Some(_) => {}
                None if faulted(host).is_some_and(|at| at >= begun) => settled.push(*vm),
                None => {
                    return Err(format!(
                        "{} was given to {}, which was well all the time and does not have it",
                        short(vm),
                        host.name
                    ));
                }
            }
        }
        for vm in settled {
            self.expected.remove(&vm);
        }
        Ok(())
    }

    /// What ran by the newest right still does.
    fn still_runs(&mut self, seen: &Seen) -> Result<(), String> {
        let Some(state) = &seen.newest else { return Ok(()) };
        let by_right = |host: &HostSeen, vm: &VmId| {
            let Some(record) = state.vms.get(vm).filter(|vm| vm.owner == host.id) else {
                return false;
            };
            let mut machines = host.machines.iter();
            machines.any(|(id, it, _)| id == vm && it.cpus && it.generation == record.generation)
        };
        for (vm, at) in std::mem::take(&mut self.running) {
            let host = &seen.hosts[at];
            let emptied = host.emptied == Some(seen.now);
            let owned = state.vms.get(&vm).is_some_and(|vm| vm.owner == host.id);
            let there = host.machines.iter().any(|(id, _, _)| *id == vm);
            if owned && !there && !emptied {
                return Err(format!("{} was ended on {}, which owns it", short(&vm), host.name));
            }
        }
        for (at, host) in seen.hosts.iter().enumerate() {
            let all = host.machines.iter().map(|(vm, _, _)| *vm).filter(|vm| by_right(host, vm));
            self.running.extend(all.map(|vm| (vm, at)));
        }
        Ok(())
    }
}

/// When the host was faulted last in a way that may cost it a machine that waits.
fn faulted(host: &HostSeen) -> Option<u64> {
    host.emptied.max(host.killed)
}

impl Invariant for Handover {
    fn check(&mut self, seen: &Seen) -> Result<(), String> {
        self.look_at_state(seen);
        self.may_run(seen)?;
        self.is_there(seen)?;
        self.still_runs(seen)?;
        for (vm, _, _) in seen.hosts.iter().flat_map(|host| &host.machines).filter(|it| it.2) {
            self.ran.insert(*vm, seen.now);
        }
        Ok(())
    }
}
