//! High availability: modes of nodes, plans, capacity, placement rules, moves.

use std::collections::BTreeSet;
use std::sync::Arc;

use api::ApiError;
use api::ErrorKind;
use api::endpoint as ep;
use api::endpoint::Endpoint;
use api::endpoint::Nothing;
use api::ha::BalanceView;
use api::ha::EstimateView;
use api::ha::EvacuationView;
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
use model::NodeMode;
use model::NodeRecord;
use model::OpRequest;
use model::RuleId;
use model::RuleRecord;
use model::StorageTarget;
use model::VmId;
use model::VmPlace;
use model::VmRecord;
use placement::Plan;

use crate::app::App;
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
    mounts.json::<ep::EvacuationPlan, _, _>(evacuation_plan);
    mounts.json::<ep::Evacuate, _, _>(evacuate);
    mounts.json::<ep::BalanceShow, _, _>(balance);
    mounts.json::<ep::BalanceSet, _, _>(set_balance);
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
    let query = PlanQuery { plan: PlanFor::Drain, with_storage, estimate: false };
    Ok(plan_view(&state, &fit(&call, &state), state.node(node)?, query))
}

async fn plan(call: Call<ep::NodePlan>) -> Result<PlanView, ApiError> {
    let state = call.app.truth.state();
    let node = state.find_node(call.param(0))?;
    let mut view = plan_view(&state, &fit(&call, &state), node, call.query);
    if call.query.estimate && call.query.plan == PlanFor::Drain {
        view.estimate = Some(estimate(&call.app, &state, std::slice::from_ref(&view)).await);
    }
    Ok(view)
}

async fn evacuation_plan(call: Call<ep::EvacuationPlan>) -> Result<EvacuationView, ApiError> {
    let state = call.app.truth.state();
    let names = call.query.nodes.split(',').map(str::trim).filter(|name| !name.is_empty());
    let nodes = several(&state, names)?;
    let mut view = evacuation(&call, &state, &nodes, call.query.with_storage);
    if call.query.estimate {
        view.estimate = Some(estimate(&call.app, &state, &view.plans).await);
    }
    Ok(view)
}

async fn evacuate(call: Call<ep::Evacuate>) -> Result<EvacuationView, ApiError> {
    let state = call.app.truth.state();
    let nodes = several(&state, call.body.nodes.iter().map(String::as_str))?;
    let stays = |node: &NodeRecord| !nodes.contains(&node.id) && node.mode == NodeMode::Active;
    if !state.nodes.values().any(|node| stays(node)) {
        return Err(ApiError::new(
            ErrorKind::Conflict,
            "nowhere",
            "no other node takes machines: these would stay where they are",
            "leave one out, or let another take machines again: muster node resume",
        ));
    }
    // Each name was found: none is left half done. Between two of them, machines may begin to go to
    // one that is emptied next; the leader ends such moves (`ha::lead`).
    for node in nodes.iter().copied() {
        let (mode, with_storage) = (NodeMode::Drain, call.body.with_storage);
        let command = Command::NodeSetMode { node, mode, with_storage };
        call.app.propose(&call.caller.actor, command).await?;
    }
    Ok(evacuation(&call, &call.app.truth.state(), &nodes, call.body.with_storage))
}

/// The nodes of some names, each once.
fn several<'a>(
    state: &ClusterState,
    names: impl Iterator<Item = &'a str>,
) -> Result<BTreeSet<NodeId>, ApiError> {
    let nodes = names
        .map(|name| Ok(state.find_node(name)?.id))
        .collect::<Result<BTreeSet<_>, ApiError>>()?;
    if nodes.is_empty() {
        return Err(ApiError::new(
            ErrorKind::BadRequest,
            "nodes",
            "no node is named that is to be emptied",
            "name one or more: muster node list",
        ));
    }
    Ok(nodes)
}

fn evacuation<E: Endpoint>(
    call: &Call<E>,
    state: &ClusterState,
    nodes: &BTreeSet<NodeId>,
    with_files: bool,
) -> EvacuationView {
    let plan = placement::drain(state, &fit(call, state), nodes, with_files);
    let of = |node: &&NodeId| {
        let node = state.nodes.get(*node)?;
        let mut own = plan.clone();
        own.steps.retain(|step| step.from == node.id);
        own.unplaced.retain(|it| state.vms.get(&it.vm).is_some_and(|vm| vm.owner == node.id));
        Some(view_of(state, node, own, with_files))
    };
    EvacuationView { plans: nodes.iter().filter_map(|node| of(&node)).collect(), estimate: None }
}

/// How long plans will take: asked of the nodes that have the machines now.
async fn estimate(app: &App, state: &ClusterState, plans: &[PlanView]) -> EstimateView {
    let mut estimate = EstimateView::default();
    let mut moves = Vec::new();
    for step in plans.iter().flat_map(|plan| &plan.steps).filter(|step| step.start) {
        let Some(vm) = state.vms.get(&step.id) else { continue };
        match state.find_node(step.to.as_str()) {
            Ok(to) if vm.volume.is_some() => moves.push((vm.owner, vm.id, to.id)),
            // How large its files are is learnt when it goes.
            _ => estimate.unknown.push(vm.name.clone()),
        }
    }
    estimate.vms = (moves.len() + estimate.unknown.len()) as u64;
    for (vm, expected) in crate::migrate::expected(app, moves).await {
        let Some(name) = state.vms.get(&vm).map(|vm| vm.name.clone()) else { continue };
        match expected.forecast {
            Some(forecast) => {
                estimate.total_ms = estimate.total_ms.saturating_add(forecast.total_ms);
                if !forecast.converges {
                    estimate.slow.push(name);
                }
            }
            None => estimate.unknown.push(name),
        }
    }
    estimate
}

async fn balance(call: Call<ep::BalanceShow>) -> Result<BalanceView, ApiError> {
    Ok(crate::balance::view(&call.app).await)
}

async fn set_balance(call: Call<ep::BalanceSet>) -> Result<BalanceView, ApiError> {
    let command = Command::BalanceSet { automatic: call.body.automatic };
    call.app.propose(&call.caller.actor, command).await?;
    Ok(crate::balance::view(&call.app).await)
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
    let predicted = match call.body.dry_run && fits && place.is_none() {
        true => crate::migrate::expected(&call.app, vec![(vm.owner, vm.id, to)]).await,
        false => Vec::new(),
    };
    let predicted = predicted.into_iter().find_map(|(_, expected)| expected.forecast);
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
    let (vm, from, to) = (vm.name.clone(), name(vm.owner), name(to));
    Ok(VmMigrateView { vm, from, to, checks, fits, predicted, op })
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
    let plan = match query.plan {
        PlanFor::Drain => placement::drain(state, fit, &BTreeSet::from([node.id]), with_files),
        PlanFor::Loss => placement::fail_over(state, fit, node.id, now()),
    };
    view_of(state, node, plan, with_files)
}

fn view_of(state: &ClusterState, node: &NodeRecord, plan: Plan, with_files: bool) -> PlanView {
    let Plan { steps, unplaced: rest } = plan;
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
        estimate: None,
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
