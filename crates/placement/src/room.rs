//! What nodes have left, and what stands on them: the board on which plans are made.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;

use model::Bytes;
use model::ClusterState;
use model::Map;
use model::Name;
use model::NodeId;
use model::NodeMode;
use model::Platform;
use model::Power;
use model::RuleKind;
use model::RuleRecord;
use model::VmId;
use model::VmRecord;
use model::VolumeId;
use model::VolumeRecord;

/// Memory that a VM's process takes besides the guest's: QEMU itself, its queues and its video
/// memory. Measured at 40 to 55 MiB for small guests (BASELINES.md); rounded up.
pub const OVERHEAD: Bytes = Bytes::mib(64);

/// What a VM needs of its node while it runs.
pub fn demand(vm: &VmRecord) -> Bytes {
    let guest = vm.spec.memory.size;
    guest.checked_add(OVERHEAD).unwrap_or(guest)
}

/// Nodes with their room and the VMs with rules that stand on them.
#[derive(Debug, Clone)]
pub(crate) struct Board<'a> {
    nodes: BTreeMap<NodeId, Room<'a>>,
    rules: Vec<&'a RuleRecord>,
    volumes: &'a Map<VolumeId, Arc<VolumeRecord>>,
    /// VMs of a rule's tag, by the rule's place in `rules` and by node.
    tagged: Vec<BTreeMap<NodeId, usize>>,
    /// Whether what ran is started anew by the plan: its node was lost.
    anew: bool,
}

#[derive(Debug, Clone)]
struct Room<'a> {
    name: &'a Name,
    total: u64,
    /// May be below zero: nothing forbids more than there is room for on one host.
    free: i128,
    takes: bool,
    distrusted: bool,
    platform: Option<&'a Platform>,
}

/// How well a node suits a VM; less is better, compared field by field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Cost {
    /// Whether the node was lost too often lately: better there than nowhere.
    distrusted: bool,
    /// Place in the list of preferred nodes, or the length of the list.
    preference: usize,
    /// Soft rules that would be broken.
    broken: usize,
    /// Thousandths of the node's memory that would be taken.
    filled: u64,
    node: NodeId,
}

/// Why a VM gets no node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Problem {
    /// It runs from its node's own disks, and one of them cannot be written: such a one goes along only
    /// when it does not run.
    ReadOnly,
    /// No node is there that takes VMs.
    NoNode,
    /// Nodes are there, but none of those it may run on.
    NotPossible,
    /// Nodes are there that it may run on, but none has its volume mounted.
    Volume,
    /// Nodes are there that it may run on, but none has what its processors or its machine type
    /// need.
    Platform,
    /// Nodes are there that it may run on, but a hard rule keeps it from each.
    Rule,
    /// It may run on some nodes, but none has the memory.
    Memory,
}

impl Problem {
    /// In words, for people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::ReadOnly => {
                "a disk of it cannot be written, and goes along only while it is off or saved"
            }
            Self::NoNode => "no node is left that takes VMs",
            Self::NotPossible => "none of its possible nodes takes VMs",
            Self::Volume => "no node that is left has its volume mounted",
            Self::Platform => {
                "no node that is left has all of its processors' features and its machine type"
            }
            Self::Rule => "a hard placement rule keeps it from every node that is left",
            Self::Memory => "no node that it may run on has the memory",
        }
    }
}

impl<'a> Board<'a> {
    /// The board as it is: `alive` nodes, with what runs on them.
    pub(crate) fn new(state: &'a ClusterState, alive: &BTreeSet<NodeId>) -> Self {
        let nodes = state
            .nodes
            .values()
            .filter(|node| alive.contains(&node.id) && node.fenced.is_none())
            .map(|node| {
                let total = node.capacity.memory.get();
                let takes = node.mode == NodeMode::Active;
                let (free, distrusted) = (i128::from(total), node.quarantine.is_some());
                let platform = node.platform.as_deref();
                (node.id, Room { name: &node.name, total, free, takes, distrusted, platform })
            })
            .collect();
        let rules: Vec<&RuleRecord> = state.rules.values().map(|rule| &**rule).collect();
        let tagged = vec![BTreeMap::new(); rules.len()];
        let mut board = Self { nodes, rules, volumes: &state.volumes, tagged, anew: false };
        for vm in state.vms.values().filter(|vm| vm.deleted.is_none()) {
            if needs_room(vm) {
                board.put(vm, vm.owner);
            }
            if let Some(to) = promised(vm) {
                board.put(vm, to);
            }
        }
        board
    }

    /// Takes a node off the board, with all that stands on it.
    pub(crate) fn lose(&mut self, node: NodeId) {
        self.anew = true;
        self.nodes.remove(&node);
        for by_node in &mut self.tagged {
            by_node.remove(&node);
        }
    }

    /// A node that takes no VMs from here on; what stands on it stays until it is moved.
    pub(crate) fn close(&mut self, node: NodeId) {
        if let Some(room) = self.nodes.get_mut(&node) {
            room.takes = false;
        }
    }

    /// Whether a node is on the board.
    pub(crate) fn has(&self, node: NodeId) -> bool {
        self.nodes.contains_key(&node)
    }

    /// Puts a VM on a node.
    pub(crate) fn put(&mut self, vm: &VmRecord, node: NodeId) {
        let Some(room) = self.nodes.get_mut(&node) else { return };
        room.free -= i128::from(demand(vm).get());
        for (rule, by_node) in self.rules.iter().zip(&mut self.tagged) {
            if has_tag(vm, rule) {
                *by_node.entry(node).or_default() += 1;
            }
        }
    }

    /// Takes a VM from a node.
    pub(crate) fn take(&mut self, vm: &VmRecord, node: NodeId) {
        let Some(room) = self.nodes.get_mut(&node) else { return };
        room.free += i128::from(demand(vm).get());
        for (rule, by_node) in self.rules.iter().zip(&mut self.tagged) {
            if has_tag(vm, rule)
                && let Some(count) = by_node.get_mut(&node)
            {
                *count -= 1;
                if *count == 0 {
                    by_node.remove(&node);
                }
            }
        }
    }

    /// The best node for a VM that needs `room`, which may be more than its own demand where others
    /// must follow it.
    pub(crate) fn best(&self, vm: &VmRecord, room: Bytes) -> Result<NodeId, Problem> {
        let mut problem = Problem::NoNode;
        let mut best: Option<Cost> = None;
        for (id, node) in self.nodes.iter().filter(|(_, node)| node.takes) {
            match self.cost(vm, room, *id, node) {
                Ok(cost) => best = Some(best.map_or(cost, |so_far| so_far.min(cost))),
                // The one that came nearest is the one to tell.
                Err(found) => problem = problem.max(found),
            }
        }
        best.map(|cost| cost.node).ok_or(problem)
    }

    fn cost(
        &self,
        vm: &VmRecord,
        room: Bytes,
        id: NodeId,
        node: &Room<'_>,
    ) -> Result<Cost, Problem> {
        if !vm.spec.ha.may_run_on(node.name) {
            return Err(Problem::NotPossible);
        }
        let volume = vm.volume.and_then(|volume| self.volumes.get(&volume));
        if volume.is_some_and(|volume| !volume.is_reached()) {
            return Err(Problem::Volume);
        }
        if !self.can_be(vm, node) {
            return Err(Problem::Platform);
        }
        let mut broken = 0;
        for (rule, by_node) in self.rules.iter().zip(&self.tagged) {
            if !has_tag(vm, rule) || fits_rule(rule.kind, by_node, id) {
                continue;
            }
            if rule.hard {
                return Err(Problem::Rule);
            }
            broken += 1;
        }
        let left = node.free - i128::from(room.get());
        if left < 0 {
            return Err(Problem::Memory);
        }
        let preferred = &vm.spec.ha.preferred;
        let preference = preferred
            .iter()
            .position(|name| name.key() == node.name.key())
            .unwrap_or(preferred.len());
        let distrusted = node.distrusted;
        Ok(Cost { distrusted, preference, broken, filled: filled(node, left), node: id })
    }

    /// Whether a node has what a VM's machine is made of. What a node has not said is no hindrance.
    fn can_be(&self, vm: &VmRecord, node: &Room<'_>) -> bool {
        let Some(platform) = node.platform else { return true };
        let keeps_guest = match vm.power {
            Power::Off => false,
            Power::Saved => true,
            Power::Running | Power::Paused => !self.anew,
        };
        let fits = vm.cpu.as_ref().is_none_or(|cpu| platform.fits(cpu).is_ok());
        platform.knows(&vm.pinned.machine_type) && (fits || !keeps_guest)
    }

    /// Hard rules that keep a VM together with others.
    pub(crate) fn together(&self, vm: &VmRecord) -> impl Iterator<Item = &'a RuleRecord> {
        self.rules
            .iter()
            .copied()
            .filter(|rule| rule.hard && rule.kind == RuleKind::Together && has_tag(vm, rule))
    }

    /// Whether VMs of a rule stand on the board already.
    pub(crate) fn stands(&self, rule: &RuleRecord) -> bool {
        self.rules
            .iter()
            .zip(&self.tagged)
            .any(|(known, by_node)| known.id == rule.id && !by_node.is_empty())
    }

    /// Thousandths of a node's memory that are taken; all of it for a node that is not there.
    pub(crate) fn filled(&self, id: NodeId) -> u64 {
        let Some(node) = self.nodes.get(&id) else { return 1_000 };
        filled(node, node.free)
    }

    /// How well a node suits a VM that stands on no node of the board: soft rules that it would break there,
    /// and thousandths of the node's memory that would be taken.
    pub(crate) fn suits(&self, vm: &VmRecord, id: NodeId) -> Result<(usize, u64), Problem> {
        let node = self.nodes.get(&id).filter(|node| node.takes).ok_or(Problem::NoNode)?;
        let cost = self.cost(vm, demand(vm), id, node)?;
        Ok((cost.broken, cost.filled))
    }

    #[cfg(test)]
    pub(crate) fn free(&self, node: NodeId) -> i128 {
        self.nodes.get(&node).map_or(0, |room| room.free)
    }
}

/// Thousandths of a node's memory that are taken when so much is left.
fn filled(node: &Room<'_>, left: i128) -> u64 {
    let taken = i128::from(node.total) - left;
    let filled = taken.max(0) * 1_000 / i128::from(node.total.max(1));
    u64::try_from(filled).unwrap_or(u64::MAX)
}

fn fits_rule(kind: RuleKind, by_node: &BTreeMap<NodeId, usize>, node: NodeId) -> bool {
    match kind {
        RuleKind::Apart => !by_node.contains_key(&node),
        RuleKind::Together => by_node.is_empty() || by_node.contains_key(&node),
    }
}

pub(crate) fn has_tag(vm: &VmRecord, rule: &RuleRecord) -> bool {
    vm.spec.tags.iter().any(|tag| tag.key() == rule.tag.key())
}

/// Whether a VM takes its node's memory, or is about to.
pub(crate) fn needs_room(vm: &VmRecord) -> bool {
    matches!(vm.power, Power::Running | Power::Paused) || vm.busy().is_some()
}

/// The node, besides the one whose memory it takes, that a VM on its way will run on: room there is given
/// away already. Until it has gone it needs both.
pub(crate) fn promised(vm: &VmRecord) -> Option<NodeId> {
    let moving = vm.moving.filter(|moving| moving.resume)?;
    (moving.to != vm.owner || !needs_room(vm)).then_some(moving.to)
}

/// The VMs of a node that are not in the recycle bin.
pub(crate) fn vms_of(state: &ClusterState, node: NodeId) -> Vec<&VmRecord> {
    state.vms.values().filter(|vm| vm.owner == node).map(|vm| &**vm).collect()
}

/// The VM of a name.
pub(crate) fn named(state: &ClusterState, name: &Name) -> Option<VmId> {
    state.vm_names.get(&name.key()).copied()
}
