//! Moves of storage: the one decision, what is left over, and everything that must not happen to it.

use uuid::Uuid;

use super::NODE;
use super::World;
use super::create_request;
use super::disk;
use super::failure;
use super::ha;
use super::ha::OTHER;
use super::ha::THIRD;
use super::ha::VOLUME;
use super::ha::shared_vm;
use super::ha::take_over;
use super::import;
use super::migrate;
use super::vm_id;
use crate::Applied;
use crate::Bytes;
use crate::Command;
use crate::FenceProof;
use crate::MigratePolicy;
use crate::NodeId;
use crate::OpId;
use crate::OpOutcome;
use crate::OpRequest;
use crate::Refused;
use crate::Speaker;
use crate::StorageTarget;
use crate::VmId;
use crate::VmPlace;
use crate::VmSpec;
use crate::VolumeId;
use crate::VolumeKind;

const SECOND: VolumeId = VolumeId::new(Uuid::from_u128(91));

const ON_FIRST: VmPlace = VmPlace::Volume { volume: VOLUME };
const ON_SECOND: VmPlace = VmPlace::Volume { volume: SECOND };

fn local(node: NodeId) -> VmPlace {
    VmPlace::Node { node }
}

/// A place of the random steps.
pub(super) fn place(n: u8) -> VmPlace {
    [local(NODE), local(OTHER), ON_FIRST, ON_SECOND][usize::from(n) % 4]
}

/// Three nodes and two shared volumes.
pub(super) fn cluster() -> World {
    let mut world = ha::cluster();
    let kind = VolumeKind::Share { path: "/second".to_owned() };
    let name = "second".parse().unwrap();
    world.propose(Command::VolumeCreate { volume: SECOND, name, kind }).unwrap();
    world
}

/// A migration that takes the files along.
pub(super) fn with_migration(vm: VmId, to: NodeId, place: VmPlace) -> OpRequest {
    let storage = Some(Box::new(StorageTarget { place, whole: Vec::new() }));
    OpRequest::VmMigrate { vm, to, policy: MigratePolicy::default(), storage }
}

/// The decision, as the owner proposes it now.
pub(super) fn moved(world: &World, op: OpId) -> Command {
    let vm = world.state.op(op).unwrap().request.vm().unwrap();
    let vm = world.state.vm(vm).unwrap();
    let epoch = world.state.node(vm.owner).unwrap().epoch;
    let by = Speaker { node: vm.owner, epoch };
    Command::VmStorageMoved { op, generation: vm.generation, by }
}

fn decide(world: &mut World, op: OpId) -> Result<Applied, Refused> {
    let command = moved(world, op);
    world.propose(command)
}

fn lies(world: &World, vm: VmId) -> (VmPlace, Vec<VmPlace>) {
    let vm = world.state.vm(vm).unwrap();
    (vm.place(), vm.copies.clone())
}

/// A machine that runs on the first node, from the first volume, and its move to the second.
fn under_way() -> (World, VmId, OpId) {
    let mut world = cluster();
    let vm = shared_vm(&mut world, 1, "a");
    world.run(OpRequest::VmStart { vm });
    let op = world.begin(OpRequest::VmMoveStorage { vm, to: ON_SECOND }).unwrap();
    (world, vm, op)
}

#[test]
fn a_machine_lies_in_one_place_and_what_is_left_is_known_until_it_is_gone() {
    let (mut world, vm, op) = under_way();
    assert_eq!(lies(&world, vm), (ON_FIRST, vec![ON_SECOND]), "half a copy may lie there");
    assert!(world.finish(op, OpOutcome::Done).is_err(), "it has not moved");
    let early = world.propose(Command::VmCopyGone { vm, place: ON_SECOND });
    assert!(early.is_err(), "a copy is being made there");
    decide(&mut world, op).unwrap();
    assert_eq!(lies(&world, vm), (ON_SECOND, vec![ON_FIRST]));
    decide(&mut world, op).unwrap();
    assert_eq!(lies(&world, vm), (ON_SECOND, vec![ON_FIRST]), "said again, it changes nothing");
    for outcome in [failure(), OpOutcome::Cancelled { power: None }] {
        assert!(world.finish(op, outcome).is_err(), "it can only end well now");
    }
    world.finish(op, OpOutcome::Done).unwrap();
    assert!(decide(&mut world, op).is_err(), "it is over");
    world.propose(Command::VmCopyGone { vm, place: ON_FIRST }).unwrap();
    assert_eq!(lies(&world, vm), (ON_SECOND, Vec::new()));
}

#[test]
fn one_that_was_stopped_lies_where_it_was() {
    for outcome in [failure(), OpOutcome::Cancelled { power: None }] {
        let (mut world, vm, op) = under_way();
        world.finish(op, outcome).unwrap();
        assert!(decide(&mut world, op).is_err(), "a late decision finds the end");
        assert_eq!(lies(&world, vm), (ON_FIRST, vec![ON_SECOND]));
        world.propose(Command::VmCopyGone { vm, place: ON_SECOND }).unwrap();
        assert_eq!(lies(&world, vm), (ON_FIRST, Vec::new()));
    }
}

#[test]
fn who_lost_the_machine_decides_nothing() {
    let (mut world, vm, op) = under_way();
    let late = moved(&world, op);
    let epoch = world.state.node(NODE).unwrap().epoch;
    let proof = FenceProof::Statement;
    world.propose(Command::NodeFenced { node: NODE, epoch, reign: 0, proof }).unwrap();
    assert!(world.propose(late.clone()).is_err(), "it was fenced");
    take_over(&mut world, vm, OTHER).unwrap();
    assert!(world.propose(late).is_err(), "it has changed hands");
    // The operation is the new owner's, which begins anew.
    decide(&mut world, op).unwrap();
    assert_eq!(lies(&world, vm), (ON_SECOND, vec![ON_FIRST]));
}

#[test]
fn a_machine_does_not_follow_its_owner_to_local_disks_of_another_node() {
    let mut world = cluster();
    let vm = shared_vm(&mut world, 1, "a");
    world.run(OpRequest::VmStart { vm });
    assert!(world.begin(OpRequest::VmMoveStorage { vm, to: local(OTHER) }).is_err());
    let op = world.begin(OpRequest::VmMoveStorage { vm, to: local(NODE) }).unwrap();
    let epoch = world.state.node(NODE).unwrap().epoch;
    let proof = FenceProof::Statement;
    world.propose(Command::NodeFenced { node: NODE, epoch, reign: 0, proof }).unwrap();
    take_over(&mut world, vm, OTHER).unwrap();
    assert!(decide(&mut world, op).is_err(), "that place is another node's");
    world.finish(op, failure()).unwrap();
    assert_eq!(lies(&world, vm), (ON_FIRST, vec![local(NODE)]), "to be removed there");
}

#[test]
fn what_cannot_be_moved_is_refused_with_a_reason() {
    let mut world = cluster();
    let vm = shared_vm(&mut world, 1, "a");
    let to = |to| OpRequest::VmMoveStorage { vm, to };
    assert!(world.begin(to(ON_FIRST)).is_err(), "it lies there");
    let nowhere = VmPlace::Volume { volume: VolumeId::new(Uuid::from_u128(7)) };
    assert!(matches!(world.begin(to(nowhere)), Err(Refused::NotFound { .. })));
    assert!(world.begin(to(local(THIRD))).is_err(), "another node's disks");
    world.propose(Command::VmMove { vm, to: Some(OTHER), quick: false }).unwrap();
    assert!(world.begin(to(ON_SECOND)).is_err(), "it is being moved");
    world.propose(Command::VmMove { vm, to: None, quick: false }).unwrap();
    let op = world.begin(to(ON_SECOND)).unwrap();
    assert!(matches!(world.begin(to(ON_SECOND)), Err(Refused::Busy { .. })));
    let delete = Command::VolumeDelete { volume: SECOND };
    assert!(matches!(world.propose(delete.clone()), Err(Refused::InUse { .. })));
    world.finish(op, failure()).unwrap();
    world.propose(delete).unwrap();
    assert_eq!(lies(&world, vm), (ON_FIRST, Vec::new()), "a volume that is gone has no copies");
}

#[test]
fn a_local_machine_comes_to_a_volume_and_back() {
    let mut world = cluster();
    let vm = vm_id(5);
    world.run(create_request(5, "b", VmSpec::new(1, Bytes::mib(128))));
    for to in [ON_SECOND, local(NODE)] {
        let from = world.state.vm(vm).unwrap().place();
        let op = world.begin(OpRequest::VmMoveStorage { vm, to }).unwrap();
        decide(&mut world, op).unwrap();
        world.finish(op, OpOutcome::Done).unwrap();
        world.propose(Command::VmCopyGone { vm, place: from }).unwrap();
        assert_eq!(lies(&world, vm), (to, Vec::new()));
    }
}

/// A machine that runs on the first node's own disks, as a thin copy of an image there.
fn thin_and_local(world: &mut World) -> VmId {
    let image = crate::ImageId::new(Uuid::from_u128(50));
    import(world, image);
    let mut spec = VmSpec::new(1, Bytes::mib(128));
    spec.disks.push(disk(image));
    world.run(create_request(5, "b", spec));
    let vm = vm_id(5);
    world.run(OpRequest::VmStart { vm });
    vm
}

#[test]
fn owner_and_place_change_by_one_command_and_the_old_files_go_last() {
    let mut world = cluster();
    let vm = thin_and_local(&mut world);
    let alone =
        OpRequest::VmMigrate { vm, to: OTHER, policy: MigratePolicy::default(), storage: None };
    let refused = world.begin(alone).unwrap_err();
    assert!(refused.to_string().contains("--with-storage"), "{refused}");
    let elsewhere = with_migration(vm, OTHER, local(THIRD));
    assert!(world.begin(elsewhere).is_err(), "another node's disks");
    let op = world.begin(with_migration(vm, OTHER, local(OTHER))).unwrap();
    assert_eq!(lies(&world, vm), (local(NODE), vec![local(OTHER)]));
    let gone = |place| Command::VmCopyGone { vm, place };
    assert!(world.propose(gone(local(OTHER))).is_err(), "a copy is being made there");
    let command = migrate::handover(&world, op);
    world.propose(command).unwrap();
    let record = world.state.vm(vm).unwrap();
    assert_eq!((record.owner, record.arrived_by()), (OTHER, Some(op)));
    assert_eq!(lies(&world, vm), (local(OTHER), vec![local(NODE)]));
    let disk = &world.state.vm(vm).unwrap().spec.disks[0];
    assert_eq!(disk.source, crate::DiskSource::Blank, "its image is not there: it came whole");
    assert!(world.propose(gone(local(NODE))).is_err(), "until the guest runs there");
    let measured = crate::MigrateResult::default();
    world.finish(op, OpOutcome::Migrated { measured }).unwrap();
    world.propose(gone(local(NODE))).unwrap();
    assert_eq!(lies(&world, vm), (local(OTHER), Vec::new()));
    world.state.check_invariants().unwrap();
}

#[test]
fn one_without_a_process_goes_with_its_files_and_only_with_them() {
    let mut world = cluster();
    let vm = thin_and_local(&mut world);
    world.run(OpRequest::VmOff { vm });
    let alone =
        OpRequest::VmMigrate { vm, to: OTHER, policy: MigratePolicy::default(), storage: None };
    assert!(matches!(world.begin(alone), Err(Refused::WrongPower { .. })));
    let op = world.begin(with_migration(vm, OTHER, local(OTHER))).unwrap();
    let before = world.state.vm(vm).unwrap().clone();
    assert!(world.begin(OpRequest::VmStart { vm }).is_err(), "it is on its way");
    let command = migrate::handover(&world, op);
    world.propose(command.clone()).unwrap();
    assert!(world.propose(command).is_err(), "once");
    let record = world.state.vm(vm).unwrap();
    assert_eq!((record.owner, record.power), (OTHER, crate::Power::Off));
    assert!(record.generation > before.generation, "what the old owner says is of an older run");
    assert_eq!(lies(&world, vm), (local(OTHER), vec![local(NODE)]));
    let gone = Command::VmCopyGone { vm, place: local(NODE) };
    assert!(world.propose(gone.clone()).is_err(), "the old files go last");
    let measured = crate::MigrateResult::default();
    world.finish(op, OpOutcome::Migrated { measured }).unwrap();
    world.propose(gone).unwrap();
    world.run(OpRequest::VmStart { vm });
    assert_eq!(world.state.vm(vm).unwrap().arrived_by(), None, "its next run is its own");
    world.run(OpRequest::VmPause { vm });
    let paused = world.begin(with_migration(vm, NODE, local(NODE)));
    assert!(matches!(paused, Err(Refused::WrongPower { .. })));
    world.state.check_invariants().unwrap();
}

#[test]
fn a_local_machine_is_moved_only_with_its_files_and_only_by_a_drain_that_takes_them() {
    let mut world = cluster();
    let vm = thin_and_local(&mut world);
    let go = |quick| Command::VmMove { vm, to: Some(OTHER), quick };
    let drain = |with_storage| Command::NodeSetMode {
        node: NODE,
        mode: crate::NodeMode::Drain,
        with_storage,
    };
    assert!(world.propose(go(false)).is_err());
    world.propose(drain(false)).unwrap();
    assert!(world.propose(go(false)).is_err(), "its files stay");
    let active =
        Command::NodeSetMode { node: NODE, mode: crate::NodeMode::Active, with_storage: true };
    assert!(world.propose(active).is_err());
    world.propose(drain(true)).unwrap();
    assert!(world.propose(go(true)).is_err(), "one that was saved could not be resumed there");
    world.propose(go(false)).unwrap();
    let rehome = Command::VmRehome { vm, to: OTHER };
    world.run(OpRequest::VmOff { vm });
    assert!(world.propose(rehome).is_err(), "its files are not there");
    assert!(world.begin(with_migration(vm, THIRD, local(THIRD))).is_err(), "it goes elsewhere");
    let op = world.begin(with_migration(vm, OTHER, local(OTHER))).unwrap();
    let command = migrate::handover(&world, op);
    world.propose(command).unwrap();
    let measured = crate::MigrateResult::default();
    world.finish(op, OpOutcome::Migrated { measured }).unwrap();
    let record = world.state.vm(vm).unwrap();
    assert_eq!((record.owner, record.moving), (OTHER, None));
    let back =
        Command::NodeSetMode { node: NODE, mode: crate::NodeMode::Active, with_storage: false };
    world.propose(back).unwrap();
    assert!(!world.state.node(NODE).unwrap().drains_files);
}

#[test]
fn a_migration_with_files_that_ended_early_leaves_them_where_they_were() {
    let mut world = cluster();
    let vm = thin_and_local(&mut world);
    let op = world.begin(with_migration(vm, OTHER, local(OTHER))).unwrap();
    let late = migrate::handover(&world, op);
    let failure = crate::OpFailure {
        code: crate::NO_CONVERGENCE.into(),
        message: "no".into(),
        hint: "again".into(),
    };
    world.finish(op, OpOutcome::Failed { failure, power: None }).unwrap();
    assert!(world.propose(late).is_err(), "a late handover finds the end");
    assert_eq!(lies(&world, vm), (local(NODE), vec![local(OTHER)]));
    let record = world.state.vm(vm).unwrap();
    assert_eq!(record.moving, None, "a saved one could not go there");
    assert!(matches!(record.spec.disks[0].source, crate::DiskSource::Image { .. }));
    world.propose(Command::VmCopyGone { vm, place: local(OTHER) }).unwrap();
}

#[test]
fn a_migration_to_a_volume_keeps_that_volume_and_needs_no_whole_disks_where_its_image_is() {
    let mut world = cluster();
    let vm = shared_vm(&mut world, 1, "a");
    world.run(OpRequest::VmStart { vm });
    let there = world.begin(with_migration(vm, OTHER, ON_FIRST)).unwrap_err();
    assert!(there.to_string().contains("without its storage"), "{there}");
    let op = world.begin(with_migration(vm, OTHER, ON_SECOND)).unwrap();
    let delete = Command::VolumeDelete { volume: SECOND };
    assert!(matches!(world.propose(delete), Err(Refused::InUse { .. })));
    let command = migrate::handover(&world, op);
    world.propose(command).unwrap();
    assert_eq!(lies(&world, vm), (ON_SECOND, vec![ON_FIRST]));
}
