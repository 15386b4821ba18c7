//! Live migration: the handover, and everything that must not become one.

use uuid::Uuid;

use super::NODE;
use super::World;
use super::ha::OTHER;
use super::ha::THIRD;
use super::ha::cluster;
use super::ha::shared_vm;
use super::ha::take_over;
use crate::Applied;
use crate::AtLimit;
use crate::Command;
use crate::FenceProof;
use crate::MigratePolicy;
use crate::MigrateReport;
use crate::MigrateResult;
use crate::NO_CONVERGENCE;
use crate::NodeId;
use crate::NodeMode;
use crate::OpFailure;
use crate::OpId;
use crate::OpOutcome;
use crate::OpRequest;
use crate::OpState;
use crate::Power;
use crate::Refused;
use crate::Speaker;
use crate::VmId;

fn request(vm: VmId, to: NodeId) -> OpRequest {
    OpRequest::VmMigrate { vm, to, policy: MigratePolicy::default(), storage: None }
}

/// The handover of a migration, as the owner proposes it now.
pub(super) fn handover(world: &World, op: OpId) -> Command {
    let vm = world.state.op(op).unwrap().request.vm().unwrap();
    let vm = world.state.vm(vm).unwrap();
    let epoch = world.state.node(vm.owner).unwrap().epoch;
    let measured = Some(MigrateResult { pause_ms: 40, ..MigrateResult::default() });
    Command::VmHandover {
        op,
        generation: vm.generation,
        report: Box::new(MigrateReport { predicted: None, measured, fallback: None }),
        by: Speaker { node: vm.owner, epoch },
    }
}

fn hand_over(world: &mut World, op: OpId) -> Result<Applied, Refused> {
    let command = handover(world, op);
    world.propose(command)
}

fn migrated() -> OpOutcome {
    OpOutcome::Migrated { measured: MigrateResult { pause_ms: 43, ..MigrateResult::default() } }
}

fn failed(code: &str) -> OpOutcome {
    let failure = OpFailure { code: code.into(), message: "no".into(), hint: "again".into() };
    OpOutcome::Failed { failure, power: None }
}

/// A machine that runs on the first node, and its migration to the second.
fn under_way() -> (World, VmId, OpId) {
    let mut world = cluster();
    let vm = shared_vm(&mut world, 1, "a");
    world.run(OpRequest::VmStart { vm });
    let op = world.begin(request(vm, OTHER)).unwrap();
    (world, vm, op)
}

#[test]
fn a_machine_changes_hands_once_while_it_runs() {
    let (mut world, vm, op) = under_way();
    let before = world.state.vm(vm).unwrap().clone();
    assert!(world.finish(op, migrated()).is_err(), "nothing was handed over");
    hand_over(&mut world, op).unwrap();
    let after = world.state.vm(vm).unwrap().clone();
    assert_eq!((after.owner, after.generation), (OTHER, before.generation.next()));
    assert_eq!((after.power, after.busy()), (Power::Running, Some(op)), "its new owner ends it");
    assert_eq!((before.arrived_by(), after.arrived_by()), (None, Some(op)));
    let again = Command::VmHandover {
        op,
        generation: before.generation,
        report: Box::default(),
        by: Speaker { node: NODE, epoch: 0 },
    };
    assert!(world.propose(again).is_err(), "the source has nothing to say any more");
    let by = Speaker { node: NODE, epoch: 0 };
    let late = Command::FinishOp { op, outcome: Box::new(failed("late")), by };
    assert!(world.propose(late).is_err(), "nor can it end it");
    world.finish(op, migrated()).unwrap();
    let record = world.state.op(op).unwrap();
    assert!(matches!(record.state, OpState::Done { .. }));
    let pause = record.migration.as_ref().and_then(|report| report.measured).unwrap().pause_ms;
    assert_eq!(pause, 43);
    // The next run is no arrival any more.
    world.run(OpRequest::VmShutdown { vm, patience: crate::Millis::new(1), then_off: true });
    world.run(OpRequest::VmStart { vm });
    assert_eq!(world.state.vm(vm).unwrap().arrived_by(), None);
}

#[test]
fn once_it_has_ended_nothing_is_handed_over() {
    for outcome in [failed("migration"), OpOutcome::Cancelled { power: None }] {
        let (mut world, vm, op) = under_way();
        let late = handover(&world, op);
        world.finish(op, outcome).unwrap();
        assert!(world.propose(late).is_err(), "the guest goes on at the source by now");
        assert_eq!(world.state.vm(vm).unwrap().owner, NODE);
    }
}

#[test]
fn a_takeover_and_a_handover_exclude_each_other() {
    let (mut world, vm, op) = under_way();
    let late = handover(&world, op);
    let proof = FenceProof::Statement;
    world.propose(Command::NodeFenced { node: NODE, epoch: 0, reign: 0, proof }).unwrap();
    assert!(world.propose(late.clone()).is_err(), "a fenced node has nothing to give");
    take_over(&mut world, vm, OTHER).unwrap();
    assert!(world.propose(late).is_err());
    // The target may have a whole machine of that very number, which is of before the takeover.
    assert_eq!(world.state.vm(vm).unwrap().arrived_by(), None);
}

#[test]
fn a_target_that_is_lost_or_drained_meanwhile_gets_nothing() {
    let (mut world, _, op) = under_way();
    world
        .propose(Command::NodeSetMode { node: OTHER, mode: NodeMode::Drain, with_storage: false })
        .unwrap();
    assert!(hand_over(&mut world, op).is_err());
    world
        .propose(Command::NodeSetMode { node: OTHER, mode: NodeMode::Active, with_storage: false })
        .unwrap();
    let proof = FenceProof::Statement;
    world.propose(Command::NodeFenced { node: OTHER, epoch: 0, reign: 0, proof }).unwrap();
    assert!(hand_over(&mut world, op).is_err());
}

#[test]
fn what_cannot_be_migrated_is_refused() {
    let mut world = cluster();
    let local = world.create(2, "b");
    world.run(OpRequest::VmStart { vm: local });
    assert!(world.begin(request(local, OTHER)).is_err(), "it lies on its node's own disks");
    let vm = shared_vm(&mut world, 1, "a");
    assert!(world.begin(request(vm, OTHER)).is_err(), "it is off");
    world.run(OpRequest::VmStart { vm });
    assert!(world.begin(request(vm, NODE)).is_err(), "it is there");
    assert!(world.begin(request(vm, NodeId::new(Uuid::from_u128(99)))).is_err(), "no such node");
    let policy = MigratePolicy { max_pause: crate::Millis::new(1), ..MigratePolicy::default() };
    assert!(world.begin(OpRequest::VmMigrate { vm, to: OTHER, policy, storage: None }).is_err());
    world.begin(request(vm, OTHER)).unwrap();
    assert!(matches!(world.begin(request(vm, THIRD)), Err(Refused::Busy { .. })));
}

#[test]
fn a_move_goes_on_in_the_other_way_when_its_migration_fails() {
    let mut world = cluster();
    let vm = shared_vm(&mut world, 1, "a");
    world.run(OpRequest::VmStart { vm });
    let begin = |world: &mut World| {
        world.propose(Command::VmMove { vm, to: Some(OTHER), quick: false }).unwrap();
        world.begin(request(vm, OTHER)).unwrap()
    };
    let moving = |world: &World| world.state.vm(vm).unwrap().moving;
    let op = begin(&mut world);
    world.finish(op, failed("migration")).unwrap();
    assert!(moving(&world).is_some_and(|moving| moving.quick && moving.resume));
    world.propose(Command::VmMove { vm, to: None, quick: false }).unwrap();
    let op = begin(&mut world);
    world.finish(op, OpOutcome::Cancelled { power: None }).unwrap();
    assert_eq!(moving(&world), None, "somebody stopped it");
    let op = begin(&mut world);
    hand_over(&mut world, op).unwrap();
    world.finish(op, migrated()).unwrap();
    assert_eq!(moving(&world), None);
}

#[test]
fn quick_migration_takes_its_place_where_the_policy_says_so() {
    let mut world = cluster();
    let vm = shared_vm(&mut world, 1, "a");
    world.run(OpRequest::VmStart { vm });
    for (at_limit, code, quick) in [
        (AtLimit::Cancel, NO_CONVERGENCE, false),
        (AtLimit::Quick, "migration", false),
        (AtLimit::Quick, NO_CONVERGENCE, true),
    ] {
        let policy = MigratePolicy { at_limit, ..MigratePolicy::default() };
        let op =
            world.begin(OpRequest::VmMigrate { vm, to: OTHER, policy, storage: None }).unwrap();
        world.finish(op, failed(code)).unwrap();
        let moving = world.state.vm(vm).unwrap().moving;
        assert_eq!(moving.is_some_and(|moving| moving.to == OTHER && moving.quick), quick);
    }
}
