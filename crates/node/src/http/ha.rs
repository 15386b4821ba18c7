//! High availability: modes of nodes, plans, capacity, placement rules, moves.

use std::collections::BTreeSet;
use std::sync::Arc;

use api::ApiError;
use api::ErrorKind;
use api::endpoint as ep;
use api::endpoint::Endpoint;
use api::endpoint::Nothing;
use api::ha::LossView;
use api::ha::PlanFor;
use api::ha::PlanQuery;
use api::ha::PlanStepView;
use api::ha::PlanView;
use api::ha::RuleView;
use api::ha::UnplacedView;
use api::ha::VmMoveView;
use api::migrate::CheckView;
use api::migrate::VmMigrateView;
use api::migrate::VmMoveStorageView;
use api::platform::ClusterCpuView;
use model::ClusterState;
use model::Command;
use model::Name;
use model::NodeId;
use model::NodeRecord;
use model::OpRequest;
use model::RuleId;
use model::RuleRecord;
use model::StorageTarget;
use model::VmId;
use model::VmPlace;
use model::VmRecord;
use placement::Plan;

use crate::app::new_uuid;
use crate::app::now;
use crate::http::Call;
use crate::http::Mounts;
use crate::http::vms::begin;
use crate::http::vms::find_vm;
use crate::http::vms::time;

pub(crate) fn mount(mounts: &mut Mounts) {
    mounts.json::<ep::NodeSetMode, _, _>(set_mode);
    mounts.json::<ep::NodePlan, _, _>(plan);
    mounts.json::<ep::Capacity, _, _>(capacity);
    mounts.json::<ep::ClusterCpu, _, _>(cpu);
    mounts.json::<ep::RuleList, _, _>(rules);
    mounts.json::<ep::RuleCreate, _, _>(create_rule);
    mounts.json::<ep::RuleDelete, _, _>(delete_rule);
    mounts.json::<ep::VmMove, _, _>(move_vm);
    mounts.json::<ep::VmMigrate, _, _>(migrate_vm);
    mounts.json::<ep::VmMoveStorage, _, _>(move_storage);
}

async fn set_mode(call: Call<ep::NodeSetMode>) -> Result<PlanView, ApiError> {
    let node = call.app.truth.state().find_node(call.param(0))?.id;
    let (mode, with_storage) = (call.body.mode, call.body.with_storage);
    let command = Command::NodeSetMode { node, mode, with_storage };
    call.app.propose(&call.caller.actor, command).await?;
    let state = call.app.truth.state();
    let query = PlanQuery { plan: PlanFor::Drain, with_storage };
    Ok(plan_view(&state, &fit(&call, &state), state.node(node)?, query))
}

async fn plan(call: Call<ep::NodePlan>) -> Result<PlanView, ApiError> {
    let state = call.app.truth.state();
    let node = state.find_node(call.param(0))?;
    Ok(plan_view(&state, &fit(&call, &state), node, call.query))
}

async fn capacity(call: Call<ep::Capacity>) -> Result<Vec<LossView>, ApiError> {
    let state = call.app.truth.state();
    Ok(losses(&state, &fit(&call, &state)))
}

async fn cpu(call: Call<ep::ClusterCpu>) -> Result<ClusterCpuView, ApiError> {
    Ok(crate::platform::view(&call.app.truth.state()))
}

/// What would not run after the loss of each of the fit nodes.
pub(crate) fn losses(state: &ClusterState, fit: &BTreeSet<NodeId>) -> Vec<LossView> {
    let losses = placement::capacity(state, fit, now());
    let mut views: Vec<LossView> = losses
        .into_iter()
        .filter_map(|loss| {
            Some(LossView {
                node: node_name(state, loss.node)?,
                restarted: u32::try_from(loss.restarted).unwrap_or(u32::MAX),
                unplaced: unplaced(state, &loss.unplaced),
                local: names(state, loss.local.iter().copied()),
            })
        })
        .collect();
    views.sort_by(|a, b| a.node.cmp(&b.node));
    views
}

async fn rules(call: Call<ep::RuleList>) -> Result<Vec<RuleView>, ApiError> {
    let state = call.app.truth.state();
    let mut views: Vec<_> = state.rules.values().map(|rule| rule_view(&state, rule)).collect();
    views.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(views)
}

async fn create_rule(call: Call<ep::RuleCreate>) -> Result<RuleView, ApiError> {
    let body = call.body.clone();
    let rule = RuleRecord {
        id: RuleId::new(new_uuid()),
        name: body.name,
        tag: body.tag,
        kind: body.kind,
        hard: body.hard,
    };
    call.app.propose(&call.caller.actor, Command::RuleCreate { rule: rule.clone() }).await?;
    Ok(rule_view(&call.app.truth.state(), &rule))
}

async fn delete_rule(call: Call<ep::RuleDelete>) -> Result<Nothing, ApiError> {
    let state = call.app.truth.state();
    let wanted = call.param(0);
    let key = wanted.to_ascii_lowercase();
    let rule = state
        .rules
        .values()
        .find(|rule| rule.name.key() == key || rule.id.to_string() == wanted)
        .ok_or_else(|| {
            let which = wanted.chars().take(80).collect();
            ApiError::from(model::Refused::NotFound { what: "rule", which })
        })?;
    let command = Command::RuleDelete { rule: rule.id };
    call.app.propose(&call.caller.actor, command).await?;
    Ok(Nothing {})
}

async fn move_vm(call: Call<ep::VmMove>) -> Result<VmMoveView, ApiError> {
    let vm = find_vm(&call)?;
    let state = call.app.truth.state();
    let to = match (&call.body.to, call.body.stop) {
        (None, true) => None,
        (Some(_), true) => {
            return Err(ApiError::new(
                ErrorKind::BadRequest,
                "move",
                "a move is stopped or begun, not both",
                "leave the target out to stop a move",
            ));
        }
        (Some(to), false) => Some(state.find_node(to)?.id),
        (None, false) => Some(best(&call, &state, &vm)?),
    };
    call.app.propose(&call.caller.actor, Command::VmMove { vm: vm.id, to, quick: true }).await?;
    let to = to.and_then(|to| node_name(&state, to));
    Ok(VmMoveView { vm: vm.name.clone(), owner: vm.owner, to })
}

/// The best other node for a VM.
fn best<E: Endpoint>(
    call: &Call<E>,
    state: &ClusterState,
    vm: &Arc<VmRecord>,
) -> Result<NodeId, ApiError> {
    let mut others = fit(call, state);
    others.remove(&vm.owner);
    placement::choose(state, &others, vm).map_err(|problem| {
        ApiError::new(
            ErrorKind::Conflict,
            "no_node",
            format!("{} can go nowhere else: {}", vm.name, problem.words()),
            "see what nodes have: muster node list",
        )
    })
}

async fn migrate_vm(call: Call<ep::VmMigrate>) -> Result<VmMigrateView, ApiError> {
    let vm = find_vm(&call)?;
    let state = call.app.truth.state();
    let to = match &call.body.to {
        Some(to) => state.find_node(to)?.id,
        None => best(&call, &state, &vm)?,
    };
    if to == vm.owner {
        let name = node_name(&state, to).map(|name| name.to_string()).unwrap_or_default();
        return Err(ApiError::new(
            ErrorKind::Conflict,
            "there_already",
            format!("{} is on {name} already", vm.name),
            "name another node, or leave it out",
        ));
    }
    let place = place_of_files(&call, &state, to)?;
    let checks = crate::migrate::plan(&call.app, &vm, to, place).await;
    let fits = checks.iter().all(|check| check.ok);
    let policy = vm.spec.migration.changed(&call.body.policy);
    policy.validate().map_err(model::Refused::Invalid)?;
    if !fits && !call.body.dry_run {
        return Err(unfit(&vm, &checks));
    }
    let op = match call.body.dry_run {
        true => None,
        false => {
            let storage = place.map(|place| StorageTarget { place, whole: Vec::new() });
            let limit = if storage.is_some() { time::STORAGE } else { time::MIGRATE };
            let storage = storage.map(Box::new);
            let request = OpRequest::VmMigrate { vm: vm.id, to, policy, storage };
            Some(begin(&call, request, limit).await?)
        }
    };
    let name = |node| node_name(&state, node).unwrap_or_else(|| vm.name.clone());
    Ok(VmMigrateView { vm: vm.name.clone(), from: name(vm.owner), to: name(to), checks, fits, op })
}

/// Where the files of a VM go that is to migrate; none if they stay where they are.
fn place_of_files(
    call: &Call<ep::VmMigrate>,
    state: &ClusterState,
    to: NodeId,
) -> Result<Option<VmPlace>, ApiError> {
    match (call.body.with_storage, &call.body.volume) {
        (false, None) => Ok(None),
        (false, Some(_)) => Err(ApiError::new(
            ErrorKind::BadRequest,
            "storage",
            "a volume is named for files that are not to move",
            "say that they come along: --with-storage",
        )),
        (true, None) => Ok(Some(VmPlace::Node { node: to })),
        (true, Some(volume)) => Ok(Some(VmPlace::Volume { volume: state.find_volume(volume)?.id })),
    }
}

async fn move_storage(call: Call<ep::VmMoveStorage>) -> Result<VmMoveStorageView, ApiError> {
    let vm = find_vm(&call)?;
    let state = call.app.truth.state();
    let volume = match &call.body.to {
        Some(to) => Some(state.find_volume(to)?.clone()),
        None => None,
    };
    let to = match &volume {
        Some(volume) => VmPlace::Volume { volume: volume.id },
        None => VmPlace::Node { node: vm.owner },
    };
    let checks = crate::migrate::plan_storage(&call.app, &vm, to).await;
    let fits = checks.iter().all(|check| check.ok);
    if !fits && !call.body.dry_run {
        return Err(unfit(&vm, &checks));
    }
    let op = match call.body.dry_run {
        true => None,
        false => {
            let request = OpRequest::VmMoveStorage { vm: vm.id, to };
            Some(begin(&call, request, time::STORAGE).await?)
        }
    };
    let from = vm.volume.and_then(|volume| Some(state.volumes.get(&volume)?.name.clone()));
    let to = volume.map(|volume| volume.name.clone());
    Ok(VmMoveStorageView { vm: vm.name.clone(), from, to, checks, fits, op })
}

/// All reasons at once: whoever mends them one by one wants to know how many there are.
fn unfit(vm: &VmRecord, checks: &[CheckView]) -> ApiError {
    let against: Vec<&CheckView> = checks.iter().filter(|check| !check.ok).collect();
    let reasons: Vec<String> =
        against.iter().map(|check| format!("{}: {}", check.what, check.detail)).collect();
    let hint = against.first().map(|check| check.hint.clone()).unwrap_or_default();
    let message = format!("{} cannot go there: {}", vm.name, reasons.join("; "));
    ApiError::new(ErrorKind::Conflict, "unfit", message, hint)
}

/// The nodes that could be given VMs, as this node hears them.
fn fit<E: Endpoint>(call: &Call<E>, state: &ClusterState) -> BTreeSet<NodeId> {
    call.app.ha.fit(state)
}

fn plan_view(
    state: &ClusterState,
    fit: &BTreeSet<NodeId>,
    node: &NodeRecord,
    query: PlanQuery,
) -> PlanView {
    let with_files = query.plan == PlanFor::Drain && (query.with_storage || node.drains_files);
    let Plan { steps, unplaced: rest } = match query.plan {
        PlanFor::Drain => placement::drain(state, fit, node.id, with_files),
        PlanFor::Loss => placement::fail_over(state, fit, node.id, now()),
    };
    let of_node = |vm: &&Arc<VmRecord>| vm.owner == node.id && vm.deleted.is_none();
    let named = |keep: &dyn Fn(&VmRecord) -> bool| {
        let kept = state.vms.values().filter(of_node).filter(|vm| keep(vm));
        names(state, kept.map(|vm| vm.id))
    };
    PlanView {
        node: node.name.clone(),
        steps: steps
            .into_iter()
            .filter_map(|step| {
                Some(PlanStepView {
                    id: step.vm,
                    vm: state.vms.get(&step.vm)?.name.clone(),
                    to: node_name(state, step.to)?,
                    start: step.start,
                    why_not: step.why_not.unwrap_or_default().to_owned(),
                    after: names(state, step.after.into_iter()),
                })
            })
            .collect(),
        unplaced: unplaced(state, &rest),
        local: named(&|vm| vm.volume.is_none() && !with_files),
        moving: named(&|vm| vm.moving.is_some()),
    }
}

fn unplaced(state: &ClusterState, list: &[placement::Unplaced]) -> Vec<UnplacedView> {
    list.iter()
        .filter_map(|it| {
            let vm = state.vms.get(&it.vm)?.name.clone();
            Some(UnplacedView { vm, why: it.problem.words().to_owned() })
        })
        .collect()
}

fn names(state: &ClusterState, vms: impl Iterator<Item = VmId>) -> Vec<Name> {
    let mut names: Vec<Name> =
        vms.filter_map(|vm| Some(state.vms.get(&vm)?.name.clone())).collect();
    names.sort();
    names
}

fn node_name(state: &ClusterState, node: NodeId) -> Option<Name> {
    Some(state.nodes.get(&node)?.name.clone())
}

fn rule_view(state: &ClusterState, rule: &RuleRecord) -> RuleView {
    let tagged = |vm: &&Arc<VmRecord>| {
        vm.deleted.is_none() && vm.spec.tags.iter().any(|tag| tag.key() == rule.tag.key())
    };
    RuleView {
        id: rule.id,
        name: rule.name.clone(),
        tag: rule.tag.clone(),
        kind: rule.kind,
        hard: rule.hard,
        vms: names(state, state.vms.values().filter(tagged).map(|vm| vm.id)),
    }
}
