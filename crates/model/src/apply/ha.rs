//! Loss and return of nodes, takeover and moves of VMs, placement rules.
//!
//! The three rules that nothing here may break (DESIGN.md section 4): a VM changes hands without its
//! owner's help only while that owner is fenced, with proof on record; each change of hands raises
//! the generation; who speaks for a node names its present epoch.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::ClusterState;
use crate::EventKind;
use crate::Exit;
use crate::ExitKind;
use crate::FenceProof;
use crate::Fenced;
use crate::Generation;
use crate::Membership;
use crate::Millis;
use crate::Moving;
use crate::Name;
use crate::NodeId;
use crate::NodeMode;
use crate::NodeRecord;
use crate::OpRecord;
use crate::Power;
use crate::Refused;
use crate::RuleId;
use crate::RuleRecord;
use crate::Severity;
use crate::Speaker;
use crate::StorageTarget;
use crate::Subject;
use crate::UnixMillis;
use crate::VmId;
use crate::VmPlace;
use crate::VmRecord;
use crate::apply::Context;
use crate::apply::fence;
use crate::apply::platform;
use crate::apply::storage;
use crate::apply::vm_mut;
use crate::apply::vm_subject;

/// A node that was lost so often within [`LOSS_WINDOW`] will most likely be lost again: Windows' own
/// figures for quarantine (RELIABILITY.md section 1).
const LOSSES_MAX: usize = 3;

/// How long a loss counts.
const LOSS_WINDOW: Millis = Millis::from_secs(3_600);

/// How long a node that was lost too often is not trusted.
const QUARANTINE: Millis = Millis::from_secs(7_200);

/// Most placement rules: the planner looks at all of them for each VM.
const RULES_MAX: usize = 256;

pub(crate) fn node_subject(node: &NodeRecord) -> Subject {
    Subject::Node { id: node.id, name: node.name.to_string() }
}

pub(crate) fn node_mut(state: &mut ClusterState, id: NodeId) -> Result<&mut NodeRecord, Refused> {
    state
        .nodes
        .get_mut(&id)
        .map(Arc::make_mut)
        .ok_or_else(|| crate::state::not_found("node", &id.to_string()))
}

pub(crate) fn node_fenced(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: NodeId,
    epoch: u64,
    reign: u64,
    proof: &FenceProof,
) -> Result<(), Refused> {
    fence::of_this_reign(state, reign)?;
    let node = state.node(id)?;
    admit_epoch(node, epoch)?;
    fence::admit_proof(node, proof)?;
    if node.fenced.is_some() {
        return Err(Refused::Invalid(format!("{} is fenced already", node.name)));
    }
    let at = cx.proposal.at;
    let node = node_mut(state, id)?;
    node.epoch += 1;
    node.fence.wish = None;
    node.fence.failure = None;
    let text = format!("{} is fenced: {}", node.name, proof.words());
    node.fenced = Some(Fenced { at, proof: proof.clone() });
    // Who has left was not lost.
    let distrusted = *proof != FenceProof::Left && lost_too_often(node, at);
    let (name, subject) = (node.name.clone(), node_subject(node));
    cx.event(EventKind::NodeFenced, Severity::Error, subject.clone(), text, None);
    if distrusted {
        let text = format!(
            "{name} was lost {LOSSES_MAX} times in an hour and gets VMs for two hours only where no \
             other node can take them; muster node resume {name} ends that"
        );
        cx.event(EventKind::NodeQuarantined, Severity::Warning, subject, text, None);
    }
    Ok(())
}

/// Notes a loss of a node. True if it is not to be trusted from now on.
fn lost_too_often(node: &mut NodeRecord, at: UnixMillis) -> bool {
    node.losses.retain(|loss| at.since(*loss) < LOSS_WINDOW);
    node.losses.push(at);
    let too_often = node.losses.len() >= LOSSES_MAX;
    if too_often {
        node.quarantine = Some(at.plus(QUARANTINE));
    }
    too_often
}

/// Trusts a node again whose time is over.
pub(crate) fn quarantine_end(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: NodeId,
) -> Result<(), Refused> {
    let at = cx.proposal.at;
    let node = state.node(id)?;
    if node.quarantine.is_none_or(|until| at < until) {
        return Err(Refused::Invalid(format!("the quarantine of {} does not end now", node.name)));
    }
    trust(node_mut(state, id)?, cx);
    Ok(())
}

fn trust(node: &mut NodeRecord, cx: &mut Context<'_>) {
    node.losses.clear();
    if node.quarantine.take().is_some() {
        let (text, subject) = (format!("{} is trusted again", node.name), node_subject(node));
        cx.event(EventKind::NodeQuarantined, Severity::Info, subject, text, None);
    }
}

pub(crate) fn node_back(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: NodeId,
    epoch: u64,
) -> Result<(), Refused> {
    let node = state.node(id)?;
    admit_epoch(node, epoch)?;
    if node.fenced.is_none() {
        return Ok(());
    }
    if node.membership == Membership::Lost {
        return Err(Refused::Invalid(format!("{} was given up; it comes back as new", node.name)));
    }
    let node = node_mut(state, id)?;
    node.fenced = None;
    let text = format!("{} is back", node.name);
    let subject = node_subject(node);
    cx.event(EventKind::NodeBack, Severity::Info, subject, text, None);
    Ok(())
}

/// Checks that a report comes from the node whose work the operation is, in its present epoch.
pub(crate) fn admit_speaker(
    state: &ClusterState,
    record: &OpRecord,
    by: Speaker,
) -> Result<(), Refused> {
    admit_epoch(state.node(by.node)?, by.epoch)?;
    let vm = record.request.vm().and_then(|vm| state.vms.get(&vm)).map(|vm| vm.owner);
    let image = record.request.image().and_then(|image| state.images.get(&image));
    let executor = vm.or(image.map(|image| image.place.executor()));
    if executor.is_none_or(|executor| executor == by.node) {
        return Ok(());
    }
    Err(Refused::Invalid(format!("{} is the work of another node by now", record.title())))
}

pub(crate) fn admit_epoch(node: &NodeRecord, epoch: u64) -> Result<(), Refused> {
    if node.epoch == epoch {
        return Ok(());
    }
    Err(Refused::Invalid(format!(
        "epoch {epoch} of {} is over; the present one is {}",
        node.name, node.epoch
    )))
}

pub(crate) fn node_set_mode(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: NodeId,
    mode: NodeMode,
    with_storage: bool,
) -> Result<(), Refused> {
    if with_storage && mode != NodeMode::Drain {
        return Err(Refused::Invalid("only a drain takes files along".to_owned()));
    }
    let node = node_mut(state, id)?;
    node.drains_files = with_storage;
    // Whoever resumes it knows why it was lost.
    if mode == NodeMode::Active {
        trust(node, cx);
    }
    if node.mode == mode {
        return Ok(());
    }
    node.mode = mode;
    let word = match mode {
        NodeMode::Active => "takes VMs",
        NodeMode::Drain => "is being drained",
        NodeMode::Standby => "keeps its VMs and takes no new ones",
    };
    let text = format!("{} {word}", node.name);
    let subject = node_subject(node);
    cx.event(EventKind::NodeMode, Severity::Info, subject, text, None);
    Ok(())
}

pub(crate) fn balance_set(state: &mut ClusterState, cx: &mut Context<'_>, automatic: bool) {
    if state.balance == automatic {
        return;
    }
    state.balance = automatic;
    let Some(cluster) = &state.cluster else { return };
    let subject = Subject::Cluster { id: cluster.id, name: cluster.name.to_string() };
    let text = match automatic {
        true => "machines that wait for each other are moved apart by themselves",
        false => "machines are not moved apart by themselves any more",
    };
    cx.event(EventKind::ClusterBalance, Severity::Info, subject, text.to_owned(), None);
}

/// Whether a node may be given a VM.
pub(crate) fn admit_target(state: &ClusterState, vm: &VmRecord, to: NodeId) -> Result<(), Refused> {
    let node = state.node(to)?;
    let problem = if node.fenced.is_some() {
        "is fenced"
    } else if node.mode != NodeMode::Active {
        "takes no VMs now (muster node resume)"
    } else if !vm.spec.ha.may_run_on(&node.name) {
        "is not among the possible nodes of the VM"
    } else {
        return Ok(());
    };
    Err(Refused::Invalid(format!("{} {problem}", node.name)))
}

pub(crate) fn take_over(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: VmId,
    from: NodeId,
    generation: Generation,
    to: NodeId,
    start: bool,
) -> Result<(), Refused> {
    let vm = state.vm(id)?;
    if vm.owner != from || vm.generation != generation {
        return Err(Refused::Invalid(format!("{} has changed hands meanwhile", vm.name)));
    }
    if vm.volume.is_none() {
        return Err(Refused::Invalid(format!(
            "{} lies on its node's own disks; no other node can start it",
            vm.name
        )));
    }
    let lost = state.node(from)?;
    if lost.fenced.is_none() {
        return Err(Refused::Invalid(format!(
            "there is no proof that {} no longer writes; fence it first",
            lost.name
        )));
    }
    admit_target(state, vm, to)?;
    if vm.power == Power::Saved {
        platform::admit(state, vm, to)?;
    }
    let (lost, target) = (lost.name.clone(), state.node(to)?.name.clone());
    let at = cx.proposal.at;
    let vm = vm_mut(state, id)?;
    let ran = matches!(vm.power, Power::Running | Power::Paused);
    vm.owner = to;
    // Whatever the old owner still holds is of an older run from here on.
    vm.generation = vm.generation.next();
    vm.moving = None;
    if ran {
        let detail = format!("{lost} was lost");
        vm.last_exit = Some(Exit { kind: ExitKind::HostRestart, detail, at });
        let period = vm.spec.ha.failure_period;
        vm.takeovers.retain(|before| at.since(*before) < period);
        vm.takeovers.push(at);
    }
    // A paused guest's memory is gone with the host: nothing can go on from it.
    if ran && (!start || vm.power == Power::Paused) {
        vm.power = Power::Off;
    }
    let starts = ran && vm.power == Power::Running;
    if starts {
        platform::freeze(state, id)?;
    }
    let vm = state.vm(id)?;
    let what = if starts { "is started on" } else { "belongs to" };
    let text = format!("{} {what} {target}: {lost} was lost", vm.name);
    let subject = vm_subject(vm);
    cx.event(EventKind::VmTakenOver, Severity::Warning, subject, text, None);
    Ok(())
}

pub(crate) fn answered(
    state: &mut ClusterState,
    id: VmId,
    generation: Generation,
    by: Speaker,
) -> Result<(), Refused> {
    admit_epoch(state.node(by.node)?, by.epoch)?;
    let vm = state.vm(id)?;
    if vm.owner != by.node || vm.generation != generation || vm.power != Power::Running {
        return Err(Refused::Invalid(format!("run {generation} of {} is over", vm.name)));
    }
    vm_mut(state, id)?.answered = Some(generation);
    Ok(())
}

pub(crate) fn vm_move(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: VmId,
    to: Option<NodeId>,
    quick: bool,
) -> Result<(), Refused> {
    let vm = state.vm(id)?;
    let Some(to) = to else {
        let vm = vm_mut(state, id)?;
        if vm.moving.take().is_some() {
            let text = format!("the move of {} was stopped", vm.name);
            let subject = vm_subject(vm);
            cx.event(EventKind::VmMoved, Severity::Warning, subject, text, None);
        }
        return Ok(());
    };
    if vm.deleted.is_some() {
        return Err(Refused::Deleted(vm.name.clone()));
    }
    if vm.volume.is_none() {
        admit_local(state, vm, to, quick)?;
    }
    if vm.moving.is_some() {
        return Err(Refused::Invalid(format!("{} is being moved already", vm.name)));
    }
    if vm.owner == to {
        return Err(Refused::Invalid(format!("{} is on that node already", vm.name)));
    }
    admit_target(state, vm, to)?;
    platform::admit(state, vm, to)?;
    let target = state.node(to)?.name.clone();
    let vm = vm_mut(state, id)?;
    vm.moving = Some(Moving { to, resume: vm.power == Power::Running, quick });
    let text = format!("{} begins to move to {target}", vm.name);
    let subject = vm_subject(vm);
    cx.event(EventKind::VmMoved, Severity::Info, subject, text, None);
    Ok(())
}

/// Checks that a VM on its node's own disks may be moved: with its files, by a migration.
fn admit_local(
    state: &ClusterState,
    vm: &VmRecord,
    to: NodeId,
    quick: bool,
) -> Result<(), Refused> {
    let node = state.node(vm.owner)?;
    if quick || node.mode != NodeMode::Drain || !node.drains_files {
        return Err(Refused::Invalid(format!(
            "{} lies on its node's own disks; only VMs on a volume can be moved",
            vm.name
        )));
    }
    let target = StorageTarget { place: VmPlace::Node { node: to }, whole: Vec::new() };
    storage::admit_with(state, vm, to, &target)
}

pub(crate) fn rehome(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: VmId,
    to: NodeId,
) -> Result<(), Refused> {
    let vm = state.vm(id)?;
    // Its files would not be there.
    if vm.volume.is_none() || vm.moving.is_none_or(|moving| moving.to != to) {
        return Err(Refused::Invalid(format!("{} is not being moved there", vm.name)));
    }
    if let Some(op) = vm.busy() {
        let verb = state.op(op)?.request.verb();
        return Err(Refused::Busy { target: vm.name.clone(), op, verb });
    }
    // Settled in one of these, its owner has seen the end of its process.
    if !matches!(vm.power, Power::Off | Power::Saved) {
        return Err(Refused::WrongPower {
            verb: crate::Verb::VmResume,
            target: vm.name.clone(),
            power: vm.power,
        });
    }
    admit_target(state, vm, to)?;
    platform::admit(state, vm, to)?;
    let target = state.node(to)?.name.clone();
    let vm = vm_mut(state, id)?;
    vm.owner = to;
    // A guest that shut itself down on the way is not started again by its move.
    if vm.power != Power::Saved || !vm.moving.is_some_and(|moving| moving.resume) {
        vm.moving = None;
    }
    let text = format!("{} belongs to {target}", vm.name);
    let subject = vm_subject(vm);
    cx.event(EventKind::VmMoved, Severity::Info, subject, text, None);
    Ok(())
}

/// Ends a move whose guest was to go on, once it does or cannot.
pub(crate) fn end_move(vm: &mut VmRecord) {
    if vm.moving.is_some_and(|moving| moving.to == vm.owner) {
        vm.moving = None;
    }
}

/// Checks that a VM does not wait for itself, in one step or many.
pub(crate) fn admit_after(
    state: &ClusterState,
    name: &Name,
    after: &[Name],
) -> Result<(), Refused> {
    let mut todo: Vec<String> = after.iter().map(Name::key).collect();
    let mut seen = BTreeSet::new();
    while let Some(key) = todo.pop() {
        if key == name.key() {
            return Err(Refused::Invalid(format!(
                "{name} would wait for itself; take it out of the VMs that it starts after"
            )));
        }
        if seen.insert(key.clone())
            && let Some(vm) = state.vm_names.get(&key).and_then(|id| state.vms.get(id))
        {
            todo.extend(vm.spec.ha.after.iter().map(Name::key));
        }
    }
    Ok(())
}

pub(crate) fn rule_create(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    rule: &RuleRecord,
) -> Result<(), Refused> {
    if state.rules.len() >= RULES_MAX {
        return Err(Refused::Limit { what: "rules", most: RULES_MAX });
    }
    if state.rules.contains_key(&rule.id) {
        return Err(Refused::IdTaken(rule.id.to_string()));
    }
    if state.rules.values().any(|other| other.name.key() == rule.name.key()) {
        return Err(Refused::NameTaken { what: "rule", name: rule.name.clone() });
    }
    state.rules.insert(rule.id, Arc::new(rule.clone()));
    let subject = Subject::Rule { id: rule.id, name: rule.name.to_string() };
    let text = format!("rule {} was made", rule.name);
    cx.event(EventKind::RuleChanged, Severity::Info, subject, text, None);
    Ok(())
}

pub(crate) fn rule_delete(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: RuleId,
) -> Result<(), Refused> {
    let Some(rule) = state.rules.remove(&id) else {
        return Err(crate::state::not_found("rule", &id.to_string()));
    };
    let subject = Subject::Rule { id, name: rule.name.to_string() };
    let text = format!("rule {} is gone", rule.name);
    cx.event(EventKind::RuleChanged, Severity::Info, subject, text, None);
    Ok(())
}
