//! What the leader does about nodes that are lost, drained or back: a pure function from the state
//! and what is heard of the nodes to the next commands.
//!
//! ```text
//!   verdict dead ------------------------+
//!   isolated, self-fencing: it ends itself+--> FenceBegin --> (fencer) --> NodeFenced
//!   isolated, proof: its time is over ---+                                    |
//!                                                  VmTakeOver for each of its VMs, by the plan
//!   mode drain ----> VmMove, some in advance        (its owner carries it out, as many at once as the
//!                                                    way carries: `moves`, `gate`; with their files, if
//!                                                    the drain says so)
//!   preferred node is back ----> VmMove
//! ```
//!
//! Nothing here is a decision on its own: the state refuses a takeover without proof, and it refuses
//! a command that was made from an older state. So this may be wrong, late or twice.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;

use cluster::detect::Verdict;
use cluster::lease::Certainty;
use model::ClusterState;
use model::Command;
use model::FenceReason;
use model::Membership;
use model::Millis;
use model::NodeId;
use model::NodeMode;
use model::NodeRecord;
use model::Power;
use model::UnixMillis;
use model::VmId;
use model::VmRecord;
use placement::Plan;
use placement::Step;

/// VMs of one node whose moves are ordered in advance, so that their owner need not wait for the next
/// order. How many of them really go at once is the owner's to say (`gate`).
const ORDERED: usize = 16;

/// How long VMs that are started after another one wait for its guest, from its takeover on.
const ANSWER_PATIENCE: Millis = Millis::from_secs(300);

/// After a fence device failed, it is asked again so much later.
const FENCE_AGAIN: Millis = Millis::from_secs(30);

/// A node whose daemon started lately is not yet given its VMs back.
const CALM: Millis = Millis::from_secs(60);

/// What the leader knows besides the state.
pub(super) struct Seen<'a> {
    /// This node: it leads.
    pub(super) me: NodeId,
    /// What is heard of each node.
    pub(super) verdicts: &'a BTreeMap<NodeId, Verdict>,
    /// What makes sure that a node's VMs do not run.
    pub(super) certainty: &'a dyn Fn(NodeId) -> Option<Certainty>,
    /// The time now.
    pub(super) now: UnixMillis,
}

impl Seen<'_> {
    fn alive(&self, node: NodeId) -> bool {
        matches!(self.verdicts.get(&node), Some(Verdict::Alive)) || node == self.me
    }
}

/// The nodes that can be given VMs.
pub(super) fn fit(state: &ClusterState, alive: &dyn Fn(NodeId) -> bool) -> BTreeSet<NodeId> {
    let fits = |node: &&std::sync::Arc<NodeRecord>| {
        alive(node.id)
            && node.fenced.is_none()
            && node.fence.wish.is_none()
            && node.membership == Membership::Member
    };
    state.nodes.values().filter(fits).map(|node| node.id).collect()
}

/// The next commands, each independent of the others.
pub(super) fn next(state: &ClusterState, seen: &Seen<'_>) -> Vec<Command> {
    // A host by itself has nobody to give anything to.
    if state.nodes.len() < 2 {
        return Vec::new();
    }
    let fit = fit(state, &|node| seen.alive(node));
    let mut commands = Vec::new();
    for node in state.nodes.values() {
        if node.fenced.is_some() {
            take_over(state, seen, &fit, node, &mut commands);
        } else if let Some(what) = lost(state, seen, node) {
            let reason = FenceReason::Suspected { what };
            commands.push(Command::FenceBegin { node: node.id, reason });
        } else if node.mode == NodeMode::Drain {
            let one = BTreeSet::from([node.id]);
            let plan = placement::drain(state, &fit, &one, node.drains_files);
            moves(state, node.id, plan, &mut commands);
        }
    }
    let over = |node: &&Arc<NodeRecord>| node.quarantine.is_some_and(|until| seen.now >= until);
    let trusted = state.nodes.values().filter(over);
    commands.extend(trusted.map(|node| Command::NodeQuarantineEnd { node: node.id }));
    stop_moves(state, &fit, &mut commands);
    fail_back(state, seen, &fit, &mut commands);
    commands
}

/// Why a node is to be fenced now, if it is.
fn lost(state: &ClusterState, seen: &Seen<'_>, node: &NodeRecord) -> Option<String> {
    if node.id == seen.me || node.fence.wish.is_some() {
        return None;
    }
    let failed_lately =
        node.fence.failure.as_ref().is_some_and(|failure| seen.now.since(failure.at) < FENCE_AGAIN);
    // A node that nobody would take anything over from is only gone.
    if failed_lately || !has_failover(state, node.id) {
        return None;
    }
    match seen.verdicts.get(&node.id)? {
        Verdict::Alive | Verdict::Silent { .. } => None,
        Verdict::Dead { .. } => {
            Some("it is silent on every network and on every volume".to_owned())
        }
        Verdict::Isolated { over, .. } => match (seen.certainty)(node.id)? {
            // It ends its own VMs when its lease ends; until then it may come back and renew.
            Certainty::SelfFencing { .. } => {
                Some("it is silent on every network, and its lease ends by itself".to_owned())
            }
            Certainty::Proof if *over => {
                Some("it was cut off for longer than the resiliency period".to_owned())
            }
            Certainty::Proof | Certainty::Alone | Certainty::None => None,
        },
    }
}

fn has_failover(state: &ClusterState, node: NodeId) -> bool {
    let coordinates = state.volumes.values().any(|volume| {
        let now = volume.coordination.as_ref();
        now.is_some_and(|now| now.holder == Some(node) && now.wants_mount())
    });
    coordinates
        || state.vms.values().any(|vm| {
            vm.owner == node && vm.volume.is_some() && vm.deleted.is_none() && vm.spec.ha.enabled
        })
}

fn take_over(
    state: &ClusterState,
    seen: &Seen<'_>,
    fit: &BTreeSet<NodeId>,
    lost: &NodeRecord,
    commands: &mut Vec<Command>,
) {
    let plan = placement::fail_over(state, fit, lost.id, seen.now);
    for step in plan.steps {
        if step.start && !all_healthy(state, seen.now, fit, &step.after) {
            continue;
        }
        commands.push(Command::VmTakeOver {
            vm: step.vm,
            from: step.from,
            generation: step.generation,
            to: step.to,
            start: step.start,
        });
    }
}

/// Whether those that must be there first work, on nodes that are heard. One that is off because
/// somebody wants it so keeps nobody waiting.
fn all_healthy(
    state: &ClusterState,
    now: UnixMillis,
    fit: &BTreeSet<NodeId>,
    after: &[VmId],
) -> bool {
    after.iter().filter_map(|vm| state.vms.get(vm)).all(|vm| match vm.power {
        Power::Running => fit.contains(&vm.owner) && vm.busy().is_none() && answers(vm, now),
        Power::Off | Power::Paused | Power::Saved => true,
    })
}

/// Whether the guest works, as far as that can be known: a guest whose agent never answered has none,
/// and one that boots for too long is waited for no longer.
fn answers(vm: &VmRecord, now: UnixMillis) -> bool {
    let Some(run) = vm.answered.filter(|_| vm.spec.services.heartbeat) else { return true };
    let waits = |at: &UnixMillis| now.since(*at) < ANSWER_PATIENCE;
    run == vm.generation || !vm.takeovers.last().is_some_and(waits)
}

fn moving_from(state: &ClusterState, node: NodeId) -> usize {
    let leaves = |vm: &VmRecord| vm.owner == node && vm.moving.is_some_and(|it| it.to != node);
    state.vms.values().filter(|vm| leaves(vm)).count()
}

fn moves(state: &ClusterState, from: NodeId, plan: Plan, commands: &mut Vec<Command>) {
    let room = ORDERED.saturating_sub(moving_from(state, from));
    let ready = |step: &Step| state.vms.get(&step.vm).is_some_and(|vm| vm.busy().is_none());
    for step in plan.steps.into_iter().filter(ready).take(room) {
        commands.push(Command::VmMove { vm: step.vm, to: Some(step.to), quick: false });
    }
}

/// Ends moves to nodes that cannot take anything now, before the VM is given away, and those that a drain
/// ordered which is over before they began.
fn stop_moves(state: &ClusterState, fit: &BTreeSet<NodeId>, commands: &mut Vec<Command>) {
    for vm in state.vms.values() {
        let Some(moving) = vm.moving else { continue };
        let takes = fit.contains(&moving.to)
            && state.nodes.get(&moving.to).is_some_and(|to| to.mode == NodeMode::Active);
        let over = !moving.quick && vm.busy().is_none() && vm.power == Power::Running && {
            let drains = |node: &Arc<NodeRecord>| node.mode == NodeMode::Drain;
            !state.nodes.get(&vm.owner).is_some_and(drains) && !goes_back(state, vm, moving.to)
        };
        if vm.owner != moving.to && (!takes || over) {
            commands.push(Command::VmMove { vm: vm.id, to: None, quick: false });
        }
    }
}

/// Whether a move is a way back to a node that the VM prefers.
fn goes_back(state: &ClusterState, vm: &VmRecord, to: NodeId) -> bool {
    let preferred = |node: &Arc<NodeRecord>| {
        vm.spec.ha.preferred.iter().any(|name| name.key() == node.name.key())
    };
    vm.spec.ha.failback && state.nodes.get(&to).is_some_and(preferred)
}

fn fail_back(
    state: &ClusterState,
    seen: &Seen<'_>,
    fit: &BTreeSet<NodeId>,
    commands: &mut Vec<Command>,
) {
    // In trouble nothing is moved that need not be.
    if fit.len() < state.nodes.len() || state.vms.values().any(|vm| vm.moving.is_some()) {
        return;
    }
    let calm = |node: &NodeId| {
        state.nodes.get(node).is_some_and(|node| seen.now.since(node.started) >= CALM)
    };
    let plan = placement::fail_back(state, fit);
    let first = plan.steps.into_iter().find(|step| calm(&step.to));
    commands.extend(first.map(|step| Command::VmMove {
        vm: step.vm,
        to: Some(step.to),
        quick: false,
    }));
}

#[cfg(test)]
#[path = "lead_tests.rs"]
mod tests;
