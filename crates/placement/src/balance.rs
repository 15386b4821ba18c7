//! Balancing: which machines should go elsewhere because they wait where they are.
//!
//! By pressure and not by percent (FEATURES.md area 5, load balancing): a node whose processors are all busy
//! and where nobody waits is well used; one where machines wait is not. So nothing is moved but from a node
//! whose machines wait, to one where they do not, and only if the busier of both is clearly less busy after
//! it. One machine of a node goes at a time; then it is measured anew, since what others will take of what
//! it leaves cannot be known.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::BTreeSet;

use model::ClusterState;
use model::NodeId;
use model::Power;
use model::VmId;
use model::VmRecord;

use crate::room::Board;
use crate::room::demand;

/// A node is short of processors where a machine waits for one for so many thousandths of the time.
pub const CPU_PRESSED: u32 = 100;

/// It is short of memory where a machine waits for memory so long: each such wait is a disk's.
pub const MEMORY_PRESSED: u32 = 50;

/// The busier node of both has at most so many thousandths of what the source had before, or a move is not
/// worth what it costs.
const WORTH: u64 = 900;

/// What a node's machines did lately.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Load {
    /// Processors of the node, at least 1.
    pub processors: u32,
    /// Of each of its machines that run.
    pub machines: BTreeMap<VmId, MachineLoad>,
}

/// What a machine did lately, in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MachineLoad {
    /// Processor time, in thousandths of one processor.
    pub cpu: u32,
    /// Share of the time in which something of it waited for a processor.
    pub cpu_waits: u32,
    /// Share of the time in which something of it waited for memory.
    pub memory_waits: u32,
}

/// What is short on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Short {
    /// Memory.
    Memory,
    /// Processors.
    Processors,
}

/// One machine that should go elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relief {
    /// Which.
    pub vm: VmId,
    /// From where.
    pub from: NodeId,
    /// Where to.
    pub to: NodeId,
    /// What there is too little of where it is.
    pub short: Short,
    /// How long the machine waits that waits most there, in thousandths of the time.
    pub waits: u32,
    /// Of processors, for [`Short::Processors`]; of memory else: thousandths that are used at the source now.
    pub used_now: u64,
    /// The same at the busier of both nodes afterwards.
    pub used_then: u64,
}

impl Load {
    /// Thousandths of its processors that its machines use.
    pub fn used(&self) -> u64 {
        let sum: u64 = self.machines.values().map(|it| u64::from(it.cpu)).sum();
        sum / u64::from(self.processors.max(1))
    }

    /// How long the machine waits for a processor that waits most, in thousandths of the time.
    pub fn cpu_waits(&self) -> u32 {
        self.machines.values().map(|it| it.cpu_waits).max().unwrap_or_default()
    }

    /// The same for memory.
    pub fn memory_waits(&self) -> u32 {
        self.machines.values().map(|it| it.memory_waits).max().unwrap_or_default()
    }

    fn is_pressed(&self) -> bool {
        self.cpu_waits() >= CPU_PRESSED || self.memory_waits() >= MEMORY_PRESSED
    }

    /// What it would use with so much more.
    fn used_with(&self, cpu: u32) -> u64 {
        self.used() + u64::from(cpu) / u64::from(self.processors.max(1))
    }
}

/// What to move, at most one machine of each node. Nodes without a load are left as they are; machines of
/// `stay` are not moved.
pub fn balance(
    state: &ClusterState,
    alive: &BTreeSet<NodeId>,
    loads: &BTreeMap<NodeId, Load>,
    stay: &BTreeSet<VmId>,
) -> Vec<Relief> {
    let mut board = Board::new(state, alive);
    let mut loads = loads.clone();
    let mut pressed: Vec<NodeId> =
        loads.iter().filter(|(_, load)| load.is_pressed()).map(|(node, _)| *node).collect();
    pressed.sort_by_key(|node| {
        let load = &loads[node];
        Reverse((load.memory_waits() >= MEMORY_PRESSED, load.cpu_waits().max(load.memory_waits())))
    });
    let mut reliefs = Vec::new();
    for from in pressed {
        let Some(relief) = relieve(state, &mut board, &loads, stay, from) else { continue };
        let cpu = loads[&from].machines.get(&relief.vm).map_or(0, |it| it.cpu);
        // The next one finds it there.
        if let Some(target) = loads.get_mut(&relief.to) {
            target.machines.insert(relief.vm, MachineLoad { cpu, ..MachineLoad::default() });
        }
        if let Some(vm) = state.vms.get(&relief.vm) {
            board.put(vm, relief.to);
        }
        reliefs.push(relief);
    }
    reliefs
}

/// The best machine of a node to give away, if one is worth it.
fn relieve(
    state: &ClusterState,
    board: &mut Board<'_>,
    loads: &BTreeMap<NodeId, Load>,
    stay: &BTreeSet<VmId>,
    from: NodeId,
) -> Option<Relief> {
    let load = &loads[&from];
    let short = match load.memory_waits() >= MEMORY_PRESSED {
        true => Short::Memory,
        false => Short::Processors,
    };
    let mut best: Option<(_, Relief)> = None;
    for (id, machine) in &load.machines {
        let Some(vm) = state.vms.get(id).filter(|vm| may_go(state, vm, from)) else { continue };
        if stay.contains(id) {
            continue;
        }
        let here = board.filled(from);
        board.take(vm, from);
        let broken_here = board.suits(vm, from).map_or(usize::MAX, |(broken, _)| broken);
        let targets = loads.iter().filter(|(node, load)| **node != from && !load.is_pressed());
        for (to, target) in targets {
            let Ok((broken, filled)) = board.suits(vm, *to) else { continue };
            if broken > broken_here {
                continue;
            }
            let (used_now, used_then) = match short {
                Short::Processors => {
                    let without = load
                        .used()
                        .saturating_sub(u64::from(machine.cpu) / u64::from(load.processors.max(1)));
                    (load.used(), without.max(target.used_with(machine.cpu)))
                }
                Short::Memory => (here, board.filled(from).max(filled)),
            };
            // Also where memory is short, no processors may become so.
            if used_then * 1_000 > used_now * WORTH
                || target.used_with(machine.cpu) > WORTH.max(load.used())
            {
                continue;
            }
            // The most even; what costs least to move; and always the same one.
            let rank = (used_then, demand(vm), *id, *to);
            if best.as_ref().is_none_or(|(so_far, _)| rank < *so_far) {
                let waits = match short {
                    Short::Processors => load.cpu_waits(),
                    Short::Memory => load.memory_waits(),
                };
                let (vm, to) = (*id, *to);
                best = Some((rank, Relief { vm, from, to, short, waits, used_now, used_then }));
            }
        }
        board.put(vm, from);
    }
    best.map(|(_, relief)| relief)
}

/// Whether a machine could be migrated for this: it runs, nothing is being done with it, its disks are
/// where others reach them, and nobody wants it back where it is.
fn may_go(state: &ClusterState, vm: &VmRecord, from: NodeId) -> bool {
    let wanted_here = vm.spec.ha.failback
        && state.nodes.get(&from).is_some_and(|node| {
            vm.spec.ha.preferred.iter().any(|name| name.key() == node.name.key())
        });
    vm.owner == from
        && vm.power == Power::Running
        && vm.volume.is_some()
        && vm.deleted.is_none()
        && vm.moving.is_none()
        && vm.busy().is_none()
        && !wanted_here
}

#[cfg(test)]
#[path = "balance_tests.rs"]
mod tests;
