//! Loss and return of nodes, takeover, moves, volumes and rules.

use uuid::Uuid;

use super::NODE;
use super::Step;
use super::World;
use super::create_request;
use super::vm_id;
use crate::Bytes;
use crate::Command;
use crate::FenceProof;
use crate::Generation;
use crate::HaChange;
use crate::ImageId;
use crate::ImagePlace;
use crate::Name;
use crate::NodeCapacity;
use crate::NodeId;
use crate::NodeMode;
use crate::OpOutcome;
use crate::OpRequest;
use crate::Power;
use crate::Refused;
use crate::RuleId;
use crate::RuleKind;
use crate::RuleRecord;
use crate::Speaker;
use crate::VmChange;
use crate::VmId;
use crate::VmSpec;
use crate::VolumeId;
use crate::VolumeKind;

pub(super) const VOLUME: VolumeId = VolumeId::new(Uuid::from_u128(90));

pub(super) const OTHER: NodeId = NodeId::new(Uuid::from_u128(3));
pub(super) const THIRD: NodeId = NodeId::new(Uuid::from_u128(4));

fn node(n: u8) -> NodeId {
    [NODE, OTHER, THIRD][usize::from(n) % 3]
}

/// Three nodes and a shared volume.
pub(super) fn cluster() -> World {
    let mut world = World::new();
    for (node, name) in [(OTHER, "h2"), (THIRD, "h3")] {
        let name = name.parse().unwrap();
        let capacity = NodeCapacity { cpus: 2, memory: Bytes::gib(1) };
        world.propose(Command::NodeStarted { node, name, capacity }).unwrap();
    }
    let kind = VolumeKind::Share { path: "/share".to_owned() };
    let name = "shared".parse().unwrap();
    world.propose(Command::VolumeCreate { volume: VOLUME, name, kind }).unwrap();
    world
}

/// The command of a random step about nodes, with what the state says now.
pub(super) fn command(world: &World, step: &Step) -> Command {
    let vm = |n: u8| vm_id(u128::from(n) + 10);
    let epoch = |n: u8| world.state.node(node(n)).unwrap().epoch;
    match *step {
        Step::Fence(n) => Command::NodeFenced {
            node: node(n),
            epoch: epoch(n),
            reign: 0,
            proof: FenceProof::Statement,
        },
        Step::Back(n) => Command::NodeBack { node: node(n), epoch: epoch(n) },
        Step::TakeOver(n, from, to) => {
            let generation =
                world.state.vm(vm(n)).map_or(Generation::default(), |vm| vm.generation);
            let start = n % 3 != 0;
            Command::VmTakeOver { vm: vm(n), from: node(from), generation, to: node(to), start }
        }
        Step::Move(n, to) => {
            Command::VmMove { vm: vm(n), to: (to < 3).then(|| node(to)), quick: false }
        }
        Step::Rehome(n, to) => Command::VmRehome { vm: vm(n), to: node(to) },
        Step::Mode(n, mode) => {
            let modes = [NodeMode::Active, NodeMode::Drain, NodeMode::Standby];
            Command::NodeSetMode {
                node: node(n),
                mode: modes[usize::from(mode)],
                with_storage: false,
            }
        }
        _ => unreachable!("the other steps are not about nodes"),
    }
}

pub(super) fn shared_vm(world: &mut World, n: u128, name: &str) -> VmId {
    let mut request = create_request(n, name, VmSpec::new(1, Bytes::mib(128)));
    if let OpRequest::VmCreate { volume, .. } = &mut request {
        *volume = Some(VOLUME);
    }
    world.run(request);
    vm_id(n)
}

fn fence(world: &mut World, node: NodeId) {
    let epoch = world.state.node(node).unwrap().epoch;
    world
        .propose(Command::NodeFenced { node, epoch, reign: 0, proof: FenceProof::Statement })
        .unwrap();
}

pub(super) fn take_over(
    world: &mut World,
    vm: VmId,
    to: NodeId,
) -> Result<crate::Applied, Refused> {
    let record = world.state.vm(vm).unwrap();
    let (from, generation) = (record.owner, record.generation);
    world.propose(Command::VmTakeOver { vm, from, generation, to, start: true })
}

#[test]
fn nothing_is_taken_over_without_proof() {
    let mut world = cluster();
    let vm = shared_vm(&mut world, 1, "a");
    world.run(OpRequest::VmStart { vm });
    assert!(take_over(&mut world, vm, OTHER).is_err());
    fence(&mut world, NODE);
    let generation = world.state.vm(vm).unwrap().generation;
    take_over(&mut world, vm, OTHER).unwrap();
    let record = world.state.vm(vm).unwrap();
    assert_eq!(
        (record.owner, record.generation, record.power),
        (OTHER, generation.next(), Power::Running)
    );
    assert_eq!(record.takeovers.len(), 1);
}

#[test]
fn a_vm_on_its_nodes_own_disks_stays_there() {
    let mut world = cluster();
    let vm = world.create(1, "a");
    world.run(OpRequest::VmStart { vm });
    fence(&mut world, NODE);
    assert!(take_over(&mut world, vm, OTHER).is_err());
    assert!(world.propose(Command::VmMove { vm, to: Some(OTHER), quick: false }).is_err());
}

#[test]
fn a_takeover_planned_for_an_earlier_run_is_refused() {
    let mut world = cluster();
    let vm = shared_vm(&mut world, 1, "a");
    world.run(OpRequest::VmStart { vm });
    fence(&mut world, NODE);
    let generation = world.state.vm(vm).unwrap().generation;
    take_over(&mut world, vm, OTHER).unwrap();
    let again = Command::VmTakeOver { vm, from: NODE, generation, to: THIRD, start: true };
    assert!(world.propose(again).is_err());
    assert_eq!(world.state.vm(vm).unwrap().owner, OTHER);
}

#[test]
fn a_node_that_was_fenced_speaks_for_nothing() {
    let mut world = cluster();
    let vm = shared_vm(&mut world, 1, "a");
    let op = world.begin(OpRequest::VmStart { vm }).unwrap();
    fence(&mut world, NODE);
    let zombie = Speaker { node: NODE, epoch: 0 };
    assert!(world.finish_by(op, OpOutcome::Done, zombie).is_err());
    take_over(&mut world, vm, OTHER).unwrap();
    let returned = Speaker { node: NODE, epoch: 1 };
    assert!(world.finish_by(op, OpOutcome::Done, returned).is_err());
    world.finish(op, OpOutcome::Done).unwrap();
    assert_eq!(world.power(vm), Power::Running);
}

#[test]
fn a_node_comes_back_only_in_its_present_epoch() {
    let mut world = cluster();
    fence(&mut world, NODE);
    assert!(world.propose(Command::NodeBack { node: NODE, epoch: 0 }).is_err());
    // A new start of the daemon does not clear it: its machines may still be there.
    let name: Name = "h1".parse().unwrap();
    let capacity = NodeCapacity::default();
    world.propose(Command::NodeStarted { node: NODE, name, capacity }).unwrap();
    assert!(world.state.node(NODE).unwrap().fenced.is_some());
    world.propose(Command::NodeBack { node: NODE, epoch: 1 }).unwrap();
    assert!(world.state.node(NODE).unwrap().fenced.is_none());
    let late = Command::NodeFenced { node: NODE, epoch: 0, reign: 0, proof: FenceProof::Statement };
    assert!(world.propose(late).is_err(), "a proof about an earlier epoch says nothing now");
}

#[test]
fn a_takeover_goes_only_where_vms_may_go() {
    let mut world = cluster();
    let vm = shared_vm(&mut world, 1, "a");
    let ha = HaChange { possible: Some(vec!["h2".parse().unwrap()]), ..HaChange::default() };
    let change = Box::new(VmChange { ha, ..VmChange::default() });
    world.run(OpRequest::VmSet { vm, change, if_revision: None });
    fence(&mut world, NODE);
    assert!(take_over(&mut world, vm, THIRD).is_err());
    assert!(take_over(&mut world, vm, NODE).is_err());
    world
        .propose(Command::NodeSetMode { node: OTHER, mode: NodeMode::Standby, with_storage: false })
        .unwrap();
    assert!(take_over(&mut world, vm, OTHER).is_err());
    world
        .propose(Command::NodeSetMode { node: OTHER, mode: NodeMode::Active, with_storage: false })
        .unwrap();
    take_over(&mut world, vm, OTHER).unwrap();
}

#[test]
fn a_running_vm_moves_by_its_saved_memory() {
    let mut world = cluster();
    let vm = shared_vm(&mut world, 1, "a");
    world.run(OpRequest::VmStart { vm });
    world.propose(Command::VmMove { vm, to: Some(OTHER), quick: false }).unwrap();
    assert!(world.propose(Command::VmRehome { vm, to: OTHER }).is_err(), "it still runs");
    let save = world.begin(OpRequest::VmSave { vm }).unwrap();
    assert!(world.propose(Command::VmRehome { vm, to: OTHER }).is_err(), "it is being saved");
    let (_, saved) = super::outcome(&world, vm, 3).unwrap();
    world.finish(save, saved).unwrap();
    world.propose(Command::VmRehome { vm, to: OTHER }).unwrap();
    assert!(world.state.vm(vm).unwrap().moving.is_some(), "its guest does not run yet");
    world.run(OpRequest::VmResume { vm });
    let record = world.state.vm(vm).unwrap();
    assert_eq!((record.owner, record.power, record.moving), (OTHER, Power::Running, None));
}

#[test]
fn an_image_of_one_node_is_not_for_a_vm_on_a_volume() {
    let mut world = cluster();
    for (n, place, fine) in [
        (60, ImagePlace::Node { node: NODE }, false),
        (61, ImagePlace::Volume { volume: VOLUME, by: NODE }, true),
    ] {
        let image = ImageId::new(Uuid::from_u128(n));
        let op = world
            .begin(OpRequest::ImageImport {
                image,
                name: format!("i{n}").parse().unwrap(),
                source: crate::ImageSource::File { path: "/x".into() },
                format: crate::ImageFormat::Raw,
                sha256: None,
                place,
            })
            .unwrap();
        let imported = OpOutcome::Imported {
            virtual_size: Bytes::mib(64),
            file_size: Bytes::mib(64),
            sha256: "0".repeat(64),
        };
        world.finish(op, imported).unwrap();
        let mut spec = VmSpec::new(1, Bytes::mib(128));
        spec.disks.push(super::disk(image));
        let mut request = create_request(n, &format!("v{n}"), spec);
        if let OpRequest::VmCreate { volume, .. } = &mut request {
            *volume = Some(VOLUME);
        }
        assert_eq!(world.begin(request).is_ok(), fine);
    }
    let delete = Command::VolumeDelete { volume: VOLUME };
    assert!(matches!(world.propose(delete), Err(Refused::InUse { .. })));
}

#[test]
fn a_path_that_is_no_plain_directory_is_no_volume() {
    let mut world = cluster();
    for path in ["", "share", "/", "/a//b", "/a/../b", "/a/.", "/share", "/share/below", "/a/\0"] {
        let volume = VolumeId::new(world.id());
        let name = "other".parse().unwrap();
        let kind = VolumeKind::Share { path: path.to_owned() };
        assert!(world.propose(Command::VolumeCreate { volume, name, kind }).is_err(), "{path:?}");
    }
    let volume = VolumeId::new(world.id());
    let kind = VolumeKind::Share { path: "/shared2".to_owned() };
    let name = "other".parse().unwrap();
    world.propose(Command::VolumeCreate { volume, name, kind }).unwrap();
    world.propose(Command::VolumeDelete { volume }).unwrap();
}

#[test]
fn vms_cannot_wait_for_each_other() {
    let mut world = cluster();
    let after = |names: &[&str]| {
        let after = names.iter().map(|name| name.parse().unwrap()).collect();
        let ha = HaChange { after: Some(after), ..HaChange::default() };
        Box::new(VmChange { ha, ..VmChange::default() })
    };
    let a = shared_vm(&mut world, 1, "a");
    let b = shared_vm(&mut world, 2, "b");
    world.run(OpRequest::VmSet { vm: a, change: after(&["b"]), if_revision: None });
    let circle = OpRequest::VmSet { vm: b, change: after(&["c", "a"]), if_revision: None };
    assert!(world.begin(circle).is_err());
}

#[test]
fn a_rule_has_a_name_of_its_own() {
    let mut world = cluster();
    let rule = |n, name: &str| RuleRecord {
        id: RuleId::new(Uuid::from_u128(n)),
        name: name.parse().unwrap(),
        tag: "web".parse().unwrap(),
        kind: RuleKind::Apart,
        hard: true,
    };
    world.propose(Command::RuleCreate { rule: rule(1, "apart") }).unwrap();
    assert!(world.propose(Command::RuleCreate { rule: rule(2, "Apart") }).is_err());
    world.propose(Command::RuleDelete { rule: RuleId::new(Uuid::from_u128(1)) }).unwrap();
    world.propose(Command::RuleCreate { rule: rule(2, "Apart") }).unwrap();
}
