//! What machines can be like here, as this node tells the others, and what follows for the cluster.

use std::sync::Arc;
use std::time::Duration;

use api::platform::ClusterCpuView;
use api::platform::CpuGroupView;
use api::platform::NodeCpuView;
use api::platform::VmCpuView;
use model::Accelerator;
use model::Actor;
use model::ClusterState;
use model::Command;
use model::DeviceProfile;
use model::Name;
use model::NodeId;
use model::NodeRecord;
use model::Platform;
use model::Power;
use model::Proposal;
use model::VmRecord;
use model::machine_version;
use vm::engine::Ability;
use vm::engine::Accel;

use crate::app::now;
use crate::reconcile::Reconcilers;
use crate::truth::Truth;

/// How long to wait after a cluster that takes nothing.
const AGAIN: Duration = Duration::from_secs(10);

/// What an engine can do, in the words of the state; none where it does not know for sure.
pub(crate) fn of(ability: &Ability) -> Option<Platform> {
    Some(Platform {
        engine: ability.engine.clone(),
        accelerator: match ability.accel {
            Accel::Kvm => Accelerator::Kvm,
            Accel::Tcg => Accelerator::Tcg,
        },
        cpu_base: ability.cpu_model.clone(),
        cpu_features: ability.cpu_features.clone()?,
        machine_virtio: ability.machine_virtio.clone(),
        machine_legacy: ability.machine_legacy.clone(),
    })
}

/// Tells the cluster what machines can be like here, as long as it knows it otherwise.
pub(crate) async fn tell(node: NodeId, name: Name, seen: Reconcilers, truth: Arc<dyn Truth>) {
    // The engine is asked by one party only: one that does not answer holds up whoever asks it.
    let Some(ability) = seen.known_ability().await else { return };
    let platform = of(&ability).map(Arc::new);
    let actor = Actor::new(&format!("node {name}"));
    let mut states = truth.watch();
    loop {
        // Not a member yet, or not any more: there is nobody to tell.
        let differs = |state: &Arc<ClusterState>| {
            state.nodes.get(&node).is_some_and(|it| it.platform != platform)
        };
        if states.wait_for(differs).await.is_err() {
            return;
        }
        let command = Command::NodePlatform { node, platform: platform.clone() };
        let proposal = Proposal { at: now(), actor: actor.clone(), command };
        if let Err(error) = truth.propose(proposal).await {
            tracing::info!(%error, "the cluster does not know yet what machines can be like here");
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// The machine type that a new VM gets: the newest that this node and all others know.
pub(crate) fn machine_type(
    state: &ClusterState,
    ability: &Ability,
    profile: DeviceProfile,
) -> String {
    let common = state.common_machines();
    let (own, common) = match profile {
        DeviceProfile::Virtio => (&ability.machine_virtio, common.map(|(virtio, _)| virtio)),
        DeviceProfile::Legacy => (&ability.machine_legacy, common.map(|(_, legacy)| legacy)),
    };
    let older = common.filter(|common| machine_version(common) < machine_version(own));
    older.unwrap_or_else(|| own.clone())
}

/// All of it, for people.
pub(crate) fn view(state: &ClusterState) -> ClusterCpuView {
    let mut known: Vec<(&NodeRecord, &Platform)> = state.platforms().collect();
    known.sort_by(|a, b| a.0.name.cmp(&b.0.name));
    let mut groups: Vec<CpuGroupView> = Vec::new();
    for (place, (_, platform)) in known.iter().enumerate() {
        let first = known[..place].iter().all(|(_, other)| !other.is_kin(platform));
        if first {
            groups.push(group(state, platform, &known));
        }
    }
    let mut vms: Vec<VmCpuView> =
        state.vms.values().filter_map(|vm| machine(state, vm, &known)).collect();
    vms.sort_by(|a, b| a.name.cmp(&b.name));
    let unknown = state.nodes.values().filter(|node| node.platform.is_none());
    let mut unknown: Vec<Name> = unknown.map(|node| node.name.clone()).collect();
    unknown.sort();
    ClusterCpuView { groups, unknown, machine: state.common_machines().map(|it| it.0), vms }
}

fn group(
    state: &ClusterState,
    kind: &Platform,
    known: &[(&NodeRecord, &Platform)],
) -> CpuGroupView {
    let kin: Vec<_> = known.iter().filter(|(_, other)| kind.is_kin(other)).collect();
    let baseline = state.baseline(kind).features;
    let node = |(node, platform): &(&NodeRecord, &Platform)| {
        let mut others = kin.iter().filter(|(other, _)| other.id != node.id).map(|(_, it)| *it);
        let lowers = match others.next() {
            None => Vec::new(),
            Some(first) => {
                let mut common = first.cpu_features.clone();
                others.for_each(|it| common.retain(|one| it.cpu_features.contains(one)));
                common.difference(&platform.cpu_features).cloned().collect()
            }
        };
        NodeCpuView {
            id: node.id,
            name: node.name.clone(),
            engine: platform.engine.clone(),
            machine: platform.machine_virtio.clone(),
            more: platform.cpu_features.difference(&baseline).cloned().collect(),
            lowers,
        }
    };
    CpuGroupView {
        accelerator: kind.accelerator,
        base: kind.cpu_base.clone(),
        nodes: kin.iter().map(|it| node(it)).collect(),
        baseline: baseline.into_iter().collect(),
    }
}

fn machine(
    state: &ClusterState,
    vm: &VmRecord,
    known: &[(&NodeRecord, &Platform)],
) -> Option<VmCpuView> {
    let node = state.nodes.get(&vm.owner)?;
    let own = node.platform.as_deref()?;
    if vm.deleted.is_some() {
        return None;
    }
    let (mut kept_from, mut gains, mut loses) = (Vec::new(), Vec::new(), Vec::new());
    if let Some(cpu) = vm.cpu.as_ref().filter(|_| vm.power != Power::Off) {
        let kin = known.iter().filter(|(_, other)| own.is_kin(other));
        let not = kin.filter(|(_, other)| other.fits(cpu).is_err());
        kept_from = not.map(|(node, _)| node.name.clone()).collect();
        let anew = state.cpu_at_start(vm)?.features;
        gains = anew.difference(&cpu.features).cloned().collect();
        loses = cpu.features.difference(&anew).cloned().collect();
    }
    let common = state.common_machines().map(|(virtio, legacy)| match vm.spec.profile {
        DeviceProfile::Virtio => virtio,
        DeviceProfile::Legacy => legacy,
    });
    let newer = common.filter(|it| machine_version(it) > machine_version(&vm.pinned.machine_type));
    let nothing = kept_from.is_empty() && gains.is_empty() && loses.is_empty() && newer.is_none();
    (!nothing).then(|| VmCpuView {
        id: vm.id,
        name: vm.name.clone(),
        node: node.name.clone(),
        kept_from,
        gains,
        loses,
        newer_machine: newer,
    })
}
