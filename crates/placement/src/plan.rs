//! The plans.

use std::collections::BTreeSet;

use model::Bytes;
use model::ClusterState;
use model::Generation;
use model::NodeId;
use model::OpRequest;
use model::Power;
use model::Priority;
use model::UnixMillis;
use model::VmId;
use model::VmRecord;

use crate::room::Board;
use crate::room::Problem;
use crate::room::demand;
use crate::room::has_tag;
use crate::room::named;
use crate::room::needs_room;
use crate::room::promised;
use crate::room::vms_of;

/// What to do, in the order in which to do it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// VMs that get a node.
    pub steps: Vec<Step>,
    /// VMs that get none, with the reason.
    pub unplaced: Vec<Unplaced>,
}

/// One VM goes to one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Which VM.
    pub vm: VmId,
    /// The run that the plan was made for.
    pub generation: Generation,
    /// Where it is.
    pub from: NodeId,
    /// Where it goes.
    pub to: NodeId,
    /// Whether its guest shall run there.
    pub start: bool,
    /// VMs of this plan or running elsewhere that must be healthy before.
    pub after: Vec<VmId>,
    /// Why it is not started although it ran; empty if it is.
    pub why_not: Option<&'static str>,
}

/// A VM that gets no node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unplaced {
    /// Which.
    pub vm: VmId,
    /// Why.
    pub problem: Problem,
}

/// What would not run if a node were lost now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// The node.
    pub node: NodeId,
    /// VMs that run on it now and would be started elsewhere.
    pub restarted: usize,
    /// VMs that no other node could start.
    pub unplaced: Vec<Unplaced>,
    /// VMs on the node's own disks, which stay down until it is back.
    pub local: Vec<VmId>,
}

/// The node for a new VM that is about to start, or `Err` with the reason.
///
/// # Errors
/// [`Problem`]: no living node suits it.
pub fn choose(
    state: &ClusterState,
    alive: &BTreeSet<NodeId>,
    vm: &VmRecord,
) -> Result<NodeId, Problem> {
    let mut board = Board::new(state, alive);
    // Its own room is not taken by another.
    if let Some(to) = promised(vm) {
        board.take(vm, to);
    }
    board.best(vm, demand(vm))
}

/// Where the VMs of a lost node go. `now` decides whether one was taken over too often.
pub fn fail_over(
    state: &ClusterState,
    alive: &BTreeSet<NodeId>,
    lost: NodeId,
    now: UnixMillis,
) -> Plan {
    let mut board = Board::new(state, alive);
    board.lose(lost);
    let mut vms: Vec<&VmRecord> = vms_of(state, lost)
        .into_iter()
        .filter(|vm| vm.spec.ha.enabled && can_leave(state, vm))
        .collect();
    in_order(&mut vms);
    // Those on their way are placed anew.
    for (vm, to) in vms.iter().filter_map(|vm| Some((vm, promised(vm)?))) {
        board.take(vm, to);
    }
    place_all(state, &mut board, &vms, |vm| match vm.power {
        Power::Running => why_not_started(vm, now),
        // What did not run is not started by a loss.
        Power::Off | Power::Paused | Power::Saved => Some("it did not run"),
    })
}

/// Where the VMs of nodes go that shall be empty, one node or several at once; `with_files` says whether
/// those on the nodes' own disks leave, too, to the other nodes' own disks.
pub fn drain(
    state: &ClusterState,
    alive: &BTreeSet<NodeId>,
    nodes: &BTreeSet<NodeId>,
    with_files: bool,
) -> Plan {
    let mut board = Board::new(state, alive);
    for node in nodes {
        board.close(*node);
    }
    let mut vms: Vec<&VmRecord> = nodes
        .iter()
        .flat_map(|node| vms_of(state, *node))
        .filter(|vm| vm.deleted.is_none() && vm.moving.is_none() && !half_made(state, vm))
        .filter(|vm| vm.volume.is_some() || with_files)
        .collect();
    in_order(&mut vms);
    for vm in vms.iter().filter(|vm| needs_room(vm)) {
        board.take(vm, vm.owner);
    }
    let stays: Vec<&VmRecord> = vms.extract_if(.., |vm| cannot_take_along(vm)).collect();
    for vm in stays.iter().filter(|vm| needs_room(vm)) {
        board.put(vm, vm.owner);
    }
    let mut plan = place_all(state, &mut board, &vms, |vm| {
        (vm.power != Power::Running).then_some("it does not run")
    });
    let problem = Problem::ReadOnly;
    plan.unplaced.extend(stays.iter().map(|vm| Unplaced { vm: vm.id, problem }));
    plan
}

/// VMs that shall go back to a preferred node that is better than where they are.
pub fn fail_back(state: &ClusterState, alive: &BTreeSet<NodeId>) -> Plan {
    let mut board = Board::new(state, alive);
    let mut plan = Plan::default();
    let mut vms: Vec<&VmRecord> = state
        .vms
        .values()
        .map(|vm| &**vm)
        .filter(|vm| vm.spec.ha.failback && vm.volume.is_some() && vm.deleted.is_none())
        .filter(|vm| vm.moving.is_none() && vm.busy().is_none() && board.has(vm.owner))
        .collect();
    in_order(&mut vms);
    for vm in vms {
        let rank = |node: NodeId| {
            let name = &state.nodes.get(&node)?.name;
            vm.spec.ha.preferred.iter().position(|wanted| wanted.key() == name.key())
        };
        board.take(vm, vm.owner);
        let better = board
            .best(vm, demand(vm))
            .ok()
            .filter(|to| state.nodes.get(to).is_some_and(|to| to.quarantine.is_none()))
            .filter(|to| rank(*to).is_some_and(|new| rank(vm.owner).is_none_or(|old| new < old)));
        board.put(vm, better.unwrap_or(vm.owner));
        if let Some(to) = better {
            plan.steps.push(step(state, vm, to, None));
        }
    }
    plan
}

/// For each living node: what would not run if it were lost now.
pub fn capacity(state: &ClusterState, alive: &BTreeSet<NodeId>, now: UnixMillis) -> Vec<Loss> {
    let mut losses = Vec::new();
    for node in state.nodes.values().filter(|node| alive.contains(&node.id)) {
        let plan = fail_over(state, alive, node.id, now);
        let ran = |vm: VmId| state.vms.get(&vm).is_some_and(|vm| vm.power == Power::Running);
        losses.push(Loss {
            node: node.id,
            restarted: plan.steps.iter().filter(|step| step.start).count(),
            unplaced: plan.unplaced.into_iter().filter(|it| ran(it.vm)).collect(),
            local: vms_of(state, node.id)
                .into_iter()
                .filter(|vm| vm.power == Power::Running && vm.volume.is_none())
                .map(|vm| vm.id)
                .collect(),
        });
    }
    losses
}

/// Whether another node could have it: it lies on a volume and is not half made.
fn can_leave(state: &ClusterState, vm: &VmRecord) -> bool {
    vm.volume.is_some() && !half_made(state, vm)
}

/// Whether its files would have to come along, and one of them cannot while it has a process.
fn cannot_take_along(vm: &VmRecord) -> bool {
    let has_process = matches!(vm.power, Power::Running | Power::Paused);
    vm.volume.is_none() && has_process && vm.spec.disks.iter().any(|disk| disk.read_only)
}

fn half_made(state: &ClusterState, vm: &VmRecord) -> bool {
    vm.busy().and_then(|op| state.ops.get(&op)).is_some_and(|op| {
        // A directory under removal is nothing to start from; its owner goes on when it is back.
        matches!(op.request, OpRequest::VmPurge { .. })
    })
}

fn why_not_started(vm: &VmRecord, now: UnixMillis) -> Option<&'static str> {
    if vm.spec.ha.priority == Priority::NoAutoStart {
        return Some("it is not started by itself");
    }
    let ha = &vm.spec.ha;
    let recent = vm.takeovers.iter().filter(|at| now.since(**at) < ha.failure_period).count();
    let most = usize::try_from(ha.failures_max).unwrap_or(usize::MAX);
    (recent >= most).then_some("it was taken over too often lately")
}

/// By priority, those that shall run first, then the largest: it is the hardest to place.
fn in_order(vms: &mut [&VmRecord]) {
    vms.sort_by_key(|vm| {
        let idle = vm.power != Power::Running;
        (idle, vm.spec.ha.priority, std::cmp::Reverse(demand(vm).get()), vm.id)
    });
}

fn place_all(
    state: &ClusterState,
    board: &mut Board<'_>,
    vms: &[&VmRecord],
    why_not: impl Fn(&VmRecord) -> Option<&'static str>,
) -> Plan {
    let mut plan = Plan::default();
    for (n, vm) in vms.iter().enumerate() {
        let why_not = why_not(vm);
        let runs = why_not.is_none();
        // One that does not run takes no memory; it only needs somebody to answer for it.
        let room = if runs { room_with_group(board, vm, &vms[n..]) } else { Bytes::ZERO };
        let chosen = board.best(vm, room).or_else(|problem| {
            // The whole group fits nowhere: then each one for itself.
            if runs && room > demand(vm) { board.best(vm, demand(vm)) } else { Err(problem) }
        });
        match chosen {
            Ok(to) => {
                if runs {
                    board.put(vm, to);
                }
                plan.steps.push(step(state, vm, to, why_not));
            }
            Err(problem) => plan.unplaced.push(Unplaced { vm: vm.id, problem }),
        }
    }
    plan
}

/// What a VM needs together with those that a hard rule makes follow it, unless some of them stand
/// already: then the place is given.
fn room_with_group(board: &Board<'_>, vm: &VmRecord, pending: &[&VmRecord]) -> Bytes {
    let mut followers: BTreeSet<VmId> = BTreeSet::new();
    let mut room = demand(vm);
    for rule in board.together(vm).filter(|rule| !board.stands(rule)) {
        for other in pending.iter().filter(|other| other.id != vm.id && has_tag(other, rule)) {
            if other.power == Power::Running && followers.insert(other.id) {
                room = room.checked_add(demand(other)).unwrap_or(room);
            }
        }
    }
    room
}

fn step(state: &ClusterState, vm: &VmRecord, to: NodeId, why_not: Option<&'static str>) -> Step {
    let after = vm
        .spec
        .ha
        .after
        .iter()
        .filter_map(|name| named(state, name))
        .filter(|other| *other != vm.id)
        .collect();
    Step {
        vm: vm.id,
        generation: vm.generation,
        from: vm.owner,
        to,
        start: why_not.is_none(),
        after,
        why_not,
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
