use model::Bytes;
use model::Command;
use model::HaSpec;
use model::OpOutcome;
use model::SavedState;

use super::*;
use crate::ha::world::World;
use crate::ha::world::node;
use crate::ha::world::vm;

fn saved(world: &World) -> OpOutcome {
    let vm = world.vm(1);
    OpOutcome::Saved {
        saved: SavedState {
            generation: vm.generation,
            size: Bytes::mib(40),
            at: world.now,
            cpus: 1,
            boot_memory: Bytes::mib(128),
            memory: Bytes::mib(128),
        },
    }
}

fn only(world: &World, by: u128) -> Option<Next> {
    let mut all = next(&world.state, node(by));
    assert!(all.len() < 2, "{all:?}");
    all.pop()
}

fn begin(world: &mut World, by: u128) -> model::OpId {
    match only(world, by) {
        Some(Next::Begin(request)) => world.begin(request),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_running_vm_is_saved_given_away_and_resumed() {
    let mut world = World::new(2);
    world.add(1, node(1), HaSpec::default());
    assert_eq!((only(&world, 1), only(&world, 2)), (None, None));
    world.ok(Command::VmMove { vm: vm(1), to: Some(node(2)), quick: true });
    assert_eq!(only(&world, 2), None);
    let save = begin(&mut world, 1);
    // While that is under way there is nothing to do, whoever asks and however often.
    assert_eq!((only(&world, 1), only(&world, 2)), (None, None));
    let outcome = saved(&world);
    world.finish(save, node(1), outcome);
    assert_eq!(only(&world, 1), Some(Next::Rehome { vm: vm(1), to: node(2) }));
    world.ok(Command::VmRehome { vm: vm(1), to: node(2) });
    assert_eq!(only(&world, 1), None);
    let resume = begin(&mut world, 2);
    world.finish(resume, node(2), OpOutcome::Done);
    assert_eq!((only(&world, 1), only(&world, 2)), (None, None));
    let vm = world.vm(1);
    assert_eq!((vm.owner, vm.power, vm.moving), (node(2), Power::Running, None));
}

#[test]
fn a_vm_that_is_off_is_only_given_away() {
    let mut world = World::new(2);
    world.add(1, node(1), HaSpec::default());
    world.run(OpRequest::VmOff { vm: vm(1) }, node(1));
    world.ok(Command::VmMove { vm: vm(1), to: Some(node(2)), quick: true });
    assert_eq!(only(&world, 1), Some(Next::Rehome { vm: vm(1), to: node(2) }));
    world.ok(Command::VmRehome { vm: vm(1), to: node(2) });
    assert_eq!((only(&world, 1), only(&world, 2)), (None, None));
}

#[test]
fn a_guest_that_shuts_itself_down_on_the_way_stays_off() {
    let mut world = World::new(2);
    world.add(1, node(1), HaSpec::default());
    world.ok(Command::VmMove { vm: vm(1), to: Some(node(2)), quick: true });
    world.run(OpRequest::VmOff { vm: vm(1) }, node(1));
    world.ok(Command::VmRehome { vm: vm(1), to: node(2) });
    assert_eq!(only(&world, 2), None);
    let vm = world.vm(1);
    assert_eq!((vm.owner, vm.power, vm.moving), (node(2), Power::Off, None));
}

#[test]
fn a_save_that_fails_ends_the_move() {
    let mut world = World::new(2);
    world.add(1, node(1), HaSpec::default());
    world.ok(Command::VmMove { vm: vm(1), to: Some(node(2)), quick: true });
    let save = begin(&mut world, 1);
    world.finish(save, node(1), OpOutcome::Cancelled { power: Some(Power::Running) });
    assert_eq!((only(&world, 1), only(&world, 2)), (None, None));
    assert_eq!(world.owner(1), node(1));
}

#[test]
fn a_running_vm_is_migrated_and_saved_only_if_that_fails() {
    let mut world = World::new(2);
    world.add(1, node(1), HaSpec::default());
    world.ok(Command::VmMove { vm: vm(1), to: Some(node(2)), quick: false });
    let Some(Next::Begin(request)) = only(&world, 1) else { panic!("it is migrated") };
    let OpRequest::VmMigrate { to, policy, .. } = &request else { panic!("{request:?}") };
    assert_eq!((*to, policy.at_limit), (node(2), AtLimit::Force), "it has to go");
    let op = world.begin(request);
    assert_eq!((only(&world, 1), only(&world, 2)), (None, None));
    let failure = model::OpFailure { code: "x".into(), message: "x".into(), hint: "x".into() };
    world.finish(op, node(1), OpOutcome::Failed { failure, power: None });
    let save = Next::Begin(OpRequest::VmSave { vm: vm(1) });
    assert_eq!(only(&world, 1), Some(save), "the other way");
}

/// A VM on the own disks of the first node, on its way from there.
fn leaves_with_its_files() -> World {
    let mut world = World::new(2);
    world.add_in(1, node(1), HaSpec::default(), None);
    let mode = model::NodeMode::Drain;
    world.ok(Command::NodeSetMode { node: node(1), mode, with_storage: true });
    world.ok(Command::VmMove { vm: vm(1), to: Some(node(2)), quick: false });
    world
}

fn is_with_files(next: Option<Next>) -> bool {
    let Some(Next::Begin(OpRequest::VmMigrate { to, storage: Some(target), .. })) = next else {
        return false;
    };
    to == node(2) && target.place == VmPlace::Node { node: node(2) }
}

#[test]
fn one_on_its_nodes_own_disks_takes_them_along_whatever_it_does() {
    let mut world = leaves_with_its_files();
    assert!(is_with_files(only(&world, 1)), "it runs");
    world.run(OpRequest::VmPause { vm: vm(1) }, node(1));
    let save = begin(&mut world, 1);
    let outcome = saved(&world);
    world.finish(save, node(1), outcome);
    assert_eq!(world.vm(1).power, Power::Saved);
    assert!(is_with_files(only(&world, 1)), "it is not given away without its files");
    let mut world = leaves_with_its_files();
    world.run(OpRequest::VmOff { vm: vm(1) }, node(1));
    let op = begin(&mut world, 1);
    let generation = world.vm(1).generation;
    let by = model::Speaker { node: node(1), epoch: 0 };
    world.ok(Command::VmHandover { op, generation, report: Box::default(), by });
    assert_eq!((only(&world, 1), only(&world, 2)), (None, None));
    let measured = model::MigrateResult::default();
    world.finish(op, node(2), OpOutcome::Migrated { measured });
    assert_eq!((world.vm(1).owner, world.vm(1).moving), (node(2), None));
    assert_eq!((only(&world, 1), only(&world, 2)), (None, None));
}

#[test]
fn one_whose_files_did_not_come_along_is_where_it_was_and_not_saved() {
    let mut world = leaves_with_its_files();
    let op = begin(&mut world, 1);
    let failure = model::OpFailure { code: "copy".into(), message: "no".into(), hint: "x".into() };
    world.finish(op, node(1), OpOutcome::Failed { failure, power: None });
    let vm = world.vm(1);
    assert_eq!((vm.owner, vm.power, vm.moving), (node(1), Power::Running, None));
    assert_eq!(only(&world, 1), None, "until the leader says it again");
}

#[test]
fn a_move_whose_migration_may_not_begin_is_over() {
    let mut world = World::new(2);
    world.add(1, node(1), HaSpec::default());
    world.ok(Command::VmMove { vm: vm(1), to: Some(node(2)), quick: false });
    let migrate = only(&world, 1).unwrap();
    let busy = Refused::Busy {
        target: world.vm(1).name.clone(),
        op: model::OpId::new(uuid::Uuid::from_u128(1)),
        verb: model::Verb::VmSave,
    };
    assert_eq!(refused(&migrate, &busy), None, "it is seen again when that is over");
    let never = Refused::Invalid("it does not fit there".to_owned());
    world.ok(refused(&migrate, &never).unwrap());
    assert_eq!((only(&world, 1), world.vm(1).moving), (None, None));
    // A save is not given up for it: what is saved goes on to its new node.
    let save = Next::Begin(OpRequest::VmSave { vm: vm(1) });
    assert_eq!(refused(&save, &never), None);
}

#[test]
fn those_that_leave_go_by_priority_and_the_idle_ones_first_as_far_as_there_is_room() {
    let mut world = World::new(2);
    let with = |priority| HaSpec { priority, ..HaSpec::default() };
    for n in 1..=4 {
        let priority = if n == 4 { model::Priority::High } else { model::Priority::Medium };
        world.add(n, node(1), with(priority));
        world.ok(Command::VmMove { vm: vm(n), to: Some(node(2)), quick: n == 3 });
    }
    // One is ready to be given away: it takes nothing of the way.
    world.add(5, node(1), HaSpec::default());
    world.run(OpRequest::VmOff { vm: vm(5) }, node(1));
    world.ok(Command::VmMove { vm: vm(5), to: Some(node(2)), quick: true });
    let works = |id| if id == vm(1) { 80 } else { 5 };
    let ids = |world: &World, room| -> Vec<VmId> {
        let due = next(&world.state, node(1));
        admitted(&world.state, due, room, &works)
            .into_iter()
            .map(|next| match next {
                Next::Begin(OpRequest::VmMigrate { vm, .. } | OpRequest::VmSave { vm })
                | Next::Rehome { vm, .. } => vm,
                Next::Begin(other) => panic!("{other:?}"),
            })
            .collect()
    };
    assert_eq!(waiting(&next(&world.state, node(1))), 4);
    assert_eq!(ids(&world, 0), [vm(5)]);
    assert_eq!(ids(&world, 9), [vm(5), vm(4), vm(2), vm(3), vm(1)]);
    assert_eq!(ids(&world, 2), [vm(5), vm(4), vm(2)]);
    assert_eq!(going(&world.state, node(1)), 0);
    let first = next(&world.state, node(1)).into_iter().find(|next| leaves(next) == Some(vm(4)));
    let Some(Next::Begin(request)) = first else { panic!("{first:?}") };
    world.begin(request);
    assert_eq!(going(&world.state, node(1)), 1);
    assert_eq!(ids(&world, 1), [vm(5), vm(2)]);
}
