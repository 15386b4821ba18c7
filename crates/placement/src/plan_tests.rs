//! Plans in single cases, and what must hold for all of them.

use std::collections::BTreeSet;
use std::sync::Arc;

use model::Accelerator;
use model::Bytes;
use model::Command;
use model::HaSpec;
use model::NodeMode;
use model::OpRequest;
use model::Platform;
use model::Priority;
use model::RuleKind;
use model::UnixMillis;
use model::VmId;
use proptest::prelude::prop_assert;
use proptest::prelude::prop_assert_eq;
use proptest::prelude::proptest;

use super::*;
use crate::room::OVERHEAD;
use crate::world::NOW;
use crate::world::Vm;
use crate::world::World;
use crate::world::name;
use crate::world::node;
use crate::world::places;
use crate::world::vm;
use crate::world::vm_id;
use crate::world::web;

#[test]
fn vms_of_a_lost_node_spread_over_the_others() {
    let mut world = World::new(3, 4_096);
    for n in 0..4 {
        world.add(n, vm(0, 512));
    }
    let plan = world.lose(0);
    assert!(plan.unplaced.is_empty());
    let on = |n| plan.steps.iter().filter(|step| step.to == node(n)).count();
    assert_eq!((on(0), on(1), on(2)), (0, 2, 2));
    assert!(plan.steps.iter().all(|step| step.start && step.from == node(0)));
}

#[test]
fn the_higher_priority_gets_the_last_room() {
    let mut world = World::new(2, 1_024);
    let with = |priority| HaSpec { priority, ..HaSpec::default() };
    let low = world.add(1, Vm { ha: with(Priority::Low), ..vm(0, 700) });
    let high = world.add(2, Vm { ha: with(Priority::High), ..vm(0, 600) });
    let plan = world.lose(0);
    assert_eq!(places(&plan), [(high, node(1))]);
    assert_eq!(plan.unplaced, [Unplaced { vm: low, problem: Problem::Memory }]);
}

#[test]
fn a_vm_on_its_nodes_own_disks_stays_down() {
    let mut world = World::new(2, 4_096);
    let local = world.add(1, Vm { local: true, ..vm(0, 128) });
    let off = world.add(2, Vm { ha: HaSpec { enabled: false, ..HaSpec::default() }, ..vm(0, 128) });
    assert!(world.state.vm(off).unwrap().volume.is_some());
    let plan = world.lose(0);
    assert_eq!((plan.steps.len(), plan.unplaced.len()), (0, 0));
    let losses = capacity(&world.state, &world.alive(), NOW);
    assert_eq!(losses[0].local, [local]);
}

#[test]
fn preferred_and_possible_nodes() {
    let mut world = World::new(4, 4_096);
    let preferred = HaSpec { preferred: vec![name("n3"), name("n2")], ..HaSpec::default() };
    let a = world.add(1, Vm { ha: preferred, ..vm(0, 512) });
    let possible = HaSpec { possible: vec![name("N1")], ..HaSpec::default() };
    let b = world.add(2, Vm { ha: possible, ..vm(0, 512) });
    assert_eq!(places(&world.lose(0)), [(a, node(3)), (b, node(1))]);
    world.propose(Command::NodeSetMode {
        node: node(1),
        mode: NodeMode::Standby,
        with_storage: false,
    });
    world.propose(Command::NodeSetMode {
        node: node(3),
        mode: NodeMode::Drain,
        with_storage: false,
    });
    let plan = world.lose(0);
    assert_eq!(places(&plan), [(a, node(2))]);
    assert_eq!(plan.unplaced, [Unplaced { vm: b, problem: Problem::NotPossible }]);
}

/// Better on a node that may be lost again than nowhere.
#[test]
fn a_node_in_quarantine_is_the_last_that_gets_vms() {
    let mut world = World::new(3, 4_096);
    let wished = HaSpec { preferred: vec![name("n1")], failback: true, ..HaSpec::default() };
    let a = world.add(1, Vm { ha: wished, ..vm(0, 2_500) });
    let b = world.add(2, vm(0, 2_500));
    let mut quarantined = (**world.state.nodes.get(&node(1)).unwrap()).clone();
    quarantined.quarantine = Some(NOW);
    world.state.nodes.insert(node(1), std::sync::Arc::new(quarantined));
    assert_eq!(places(&world.lose(0)), [(a, node(2)), (b, node(1))]);
    assert_eq!(fail_back(&world.state, &world.alive()).steps, []);
}

#[test]
fn a_hard_rule_keeps_vms_apart_and_a_soft_one_tries() {
    let mut world = World::new(3, 4_096);
    world.add(1, web(0, 128));
    world.add(2, web(0, 128));
    world.add(3, web(1, 128));
    let soft = {
        world.rule(RuleKind::Apart, false);
        world.lose(0)
    };
    assert!(soft.unplaced.is_empty());
    assert_eq!(soft.steps[0].to, node(2), "the first one finds a node without its like");
    world.rule(RuleKind::Apart, true);
    let hard = world.lose(0);
    assert_eq!(hard.steps.len(), 1);
    assert_eq!(hard.unplaced[0].problem, Problem::Rule);
}

#[test]
fn a_group_that_must_stay_together_goes_where_it_fits_whole() {
    let mut world = World::new(3, 2_048);
    world.add(1, vm(1, 1_024));
    world.rule(RuleKind::Together, true);
    for n in 2..5 {
        world.add(n, web(0, 400));
    }
    let plan = world.lose(0);
    assert!(plan.unplaced.is_empty(), "{plan:?}");
    assert!(plan.steps.iter().all(|step| step.to == node(2)), "{plan:?}");
}

#[test]
fn one_that_fails_too_often_is_left_off() {
    let mut world = World::new(2, 4_096);
    let ha = HaSpec { failures_max: 2, ..HaSpec::default() };
    let id = world.add(1, Vm { ha, ..vm(0, 128) });
    let record = Arc::make_mut(world.state.vms.get_mut(&id).unwrap());
    record.takeovers = vec![UnixMillis::new(NOW.get() - 5_000), UnixMillis::new(NOW.get() - 1_000)];
    let plan = world.lose(0);
    assert!(!plan.steps[0].start);
    assert!(plan.steps[0].why_not.unwrap().contains("too often"));
    let later = UnixMillis::new(NOW.get() + 3_600_000);
    let alive = BTreeSet::from([node(1)]);
    assert!(fail_over(&world.state, &alive, node(0), later).steps[0].start);
}

#[test]
fn a_drained_node_gives_all_and_takes_none() {
    let mut world = World::new(3, 4_096);
    for n in 0..3 {
        world.add(n, vm(0, 256));
    }
    let plan = drain(&world.state, &world.alive(), &BTreeSet::from([node(0)]), false);
    assert_eq!(plan.steps.len(), 3);
    assert!(plan.steps.iter().all(|step| step.to != node(0)));
}

#[test]
fn several_nodes_are_emptied_into_those_that_stay() {
    let mut world = World::new(4, 4_096);
    for n in 0..4 {
        world.add(n, vm(n % 2, 256));
    }
    let two = BTreeSet::from([node(0), node(1)]);
    let plan = drain(&world.state, &world.alive(), &two, false);
    assert_eq!(plan.steps.len(), 4);
    assert!(plan.steps.iter().all(|step| !two.contains(&step.to)));
    let all = drain(&world.state, &world.alive(), &world.alive(), false);
    assert!(all.unplaced.iter().all(|it| it.problem == Problem::NoNode));
    assert_eq!(all.unplaced.len(), 4);
}

#[test]
fn room_that_is_promised_to_one_on_its_way_is_not_given_to_another() {
    let mut world = World::new(2, 2_048);
    let first = world.add(1, vm(0, 1_200));
    let second = world.add(2, vm(0, 800));
    let to = Some(node(1));
    world.propose(Command::VmMove { vm: first, to, quick: false });
    let one = BTreeSet::from([node(0)]);
    let plan = drain(&world.state, &world.alive(), &one, false);
    assert_eq!(plan.unplaced, [Unplaced { vm: second, problem: Problem::Memory }]);
    // Its own promise is no hindrance for it, wherever it is looked at.
    let there = BTreeSet::from([node(1)]);
    assert_eq!(choose(&world.state, &there, world.state.vm(first).unwrap()), Ok(node(1)));
    assert_eq!(places(&world.lose(0)), [(first, node(1))]);
}

#[test]
fn those_that_belong_together_follow_one_that_is_on_its_way() {
    let mut world = World::new(3, 4_096);
    let first = world.add(1, web(0, 256));
    let second = world.add(2, web(0, 256));
    world.rule(RuleKind::Together, true);
    world.propose(Command::VmMove { vm: first, to: Some(node(2)), quick: false });
    let plan = drain(&world.state, &world.alive(), &BTreeSet::from([node(0)]), false);
    assert_eq!(places(&plan), [(second, node(2))]);
}

#[test]
fn a_drain_takes_local_vms_along_only_where_it_is_told_to() {
    let mut world = World::new(2, 4_096);
    let shared = world.add(1, vm(0, 256));
    let local = world.add(2, Vm { local: true, ..vm(0, 512) });
    let off = world.add(3, Vm { local: true, ..vm(0, 9_000) });
    world.run(OpRequest::VmOff { vm: off }, node(0));
    let large = world.add(4, Vm { local: true, ..vm(0, 3_500) });
    let plain = drain(&world.state, &world.alive(), &BTreeSet::from([node(0)]), false);
    assert_eq!(places(&plain), [(shared, node(1))]);
    let plan = drain(&world.state, &world.alive(), &BTreeSet::from([node(0)]), true);
    let moved: BTreeSet<VmId> = plan.steps.iter().map(|step| step.vm).collect();
    assert_eq!(moved, BTreeSet::from([shared, off, large]), "one that is off takes no room");
    for step in &plan.steps {
        assert_eq!((step.from, step.to), (node(0), node(1)));
        assert_eq!(step.start, step.vm != off);
    }
    // The largest goes first, and leaves no room for this one.
    assert_eq!(plan.unplaced, [Unplaced { vm: local, problem: Problem::Memory }]);
}

#[test]
fn a_vm_goes_back_to_the_node_it_prefers() {
    let mut world = World::new(2, 4_096);
    let preferred = vec![name("n1")];
    let stays = HaSpec { preferred: preferred.clone(), ..HaSpec::default() };
    world.add(1, Vm { ha: stays, ..vm(0, 256) });
    let goes = HaSpec { preferred, failback: true, ..HaSpec::default() };
    let id = world.add(2, Vm { ha: goes, ..vm(0, 256) });
    assert_eq!(places(&fail_back(&world.state, &world.alive())), [(id, node(1))]);
    let alone = BTreeSet::from([node(0)]);
    assert!(fail_back(&world.state, &alone).steps.is_empty());
}

#[test]
fn what_waits_for_others_says_for_whom() {
    let mut world = World::new(2, 4_096);
    let db = world.add(1, vm(0, 128));
    let ha = HaSpec { after: vec![name("V1"), name("unknown")], ..HaSpec::default() };
    let app = world.add(2, Vm { ha, ..vm(0, 128) });
    let plan = world.lose(0);
    let step = plan.steps.iter().find(|step| step.vm == app).unwrap();
    assert_eq!(step.after, [db]);
}

proptest! {
    /// Whatever the cluster looks like: every VM that can leave is placed or named with a reason;
    /// nothing goes to a node that is lost or closed; no node is given more memory than it has;
    /// hard rules hold; and the same state gives the same plan.
    #[test]
    fn every_plan_keeps_the_rules(
        nodes in 2..6_u128,
        room in 1_u64..8,
        vms in proptest::collection::vec((0..6_u128, 1_u64..12, 0..4_u8, proptest::bool::ANY), 0..24),
        apart in proptest::bool::ANY,
        hard in proptest::bool::ANY,
        closed in proptest::option::of(0..6_u128),
    ) {
        let mut world = World::new(nodes, room * 512);
        let kind = if apart { RuleKind::Apart } else { RuleKind::Together };
        for (n, (on, size, priority, tagged)) in vms.iter().enumerate() {
            let priority = [Priority::High, Priority::Medium, Priority::Low, Priority::NoAutoStart]
                [usize::from(*priority)];
            let ha = HaSpec { priority, ..HaSpec::default() };
            let tags = if *tagged { vec![name("web")] } else { Vec::new() };
            world.add(n as u128, Vm { ha, tags, ..vm(on % nodes, size * 64) });
        }
        world.rule(kind, hard);
        if let Some(n) = closed.filter(|n| *n > 0 && *n < nodes) {
            world.propose(Command::NodeSetMode { node: node(n), mode: NodeMode::Standby, with_storage: false });
        }
        let plan = world.lose(0);
        prop_assert_eq!(&plan, &world.lose(0));
        let lost = world.state.vms.values().filter(|vm| vm.owner == node(0)).count();
        prop_assert_eq!(plan.steps.len() + plan.unplaced.len(), lost);
        check_room_and_rules(&world, &plan, kind, hard)?;
    }
}

fn check_room_and_rules(
    world: &World,
    plan: &Plan,
    kind: RuleKind,
    hard: bool,
) -> Result<(), proptest::test_runner::TestCaseError> {
    for target in world.state.nodes.values() {
        let given: Vec<&Step> = plan.steps.iter().filter(|it| it.to == target.id).collect();
        if given.is_empty() {
            continue;
        }
        prop_assert!(target.id != node(0) && target.mode == NodeMode::Active);
        let size = |vm: VmId| world.state.vm(vm).unwrap().spec.memory.size.get() + OVERHEAD.get();
        let there: Vec<VmId> =
            world.state.vms.values().filter(|vm| vm.owner == target.id).map(|vm| vm.id).collect();
        let started: Vec<VmId> = given.iter().filter(|it| it.start).map(|it| it.vm).collect();
        let sum: u64 = there.iter().chain(&started).map(|vm| size(*vm)).sum();
        if !started.is_empty() {
            prop_assert!(sum <= target.capacity.memory.get());
        }
        let is_web = |vm: &VmId| !world.state.vm(*vm).unwrap().spec.tags.is_empty();
        let new_web = started.iter().filter(|vm| is_web(vm)).count();
        if hard && kind == RuleKind::Apart && new_web > 0 {
            let old_web = there.iter().filter(|vm| is_web(vm)).count();
            prop_assert_eq!((old_web, new_web), (0, 1));
        }
    }
    Ok(())
}

#[test]
fn the_board_counts_what_is_put_and_taken() {
    let mut world = World::new(1, 1_024);
    let id = world.add(1, vm(0, 128));
    let mut board = Board::new(&world.state, &world.alive());
    let record = world.state.vm(id).unwrap();
    let full = i128::from(Bytes::mib(1_024).get());
    assert_eq!(board.free(node(0)), full - i128::from(demand(record).get()));
    board.take(record, node(0));
    assert_eq!(board.free(node(0)), full);
}

/// FEATURES.md area 5: 64 nodes and 8,000 VMs, planned in under a second. Here in a debug build and
/// without a clock: it must end, and place all.
#[test]
fn a_large_cluster_loses_a_node() {
    let mut world = World::new(64, 256 * 1_024);
    world.rule(RuleKind::Apart, false);
    let first = world.add(0, vm(0, 1_024));
    let record = world.state.vm(first).unwrap().clone();
    for n in 1..8_000 {
        let mut copy = model::VmRecord::clone(&record);
        copy.id = vm_id(n);
        copy.owner = node(n % 64);
        if n % 10 == 0 {
            copy.spec.tags.push(name("web"));
        }
        world.state.vms.insert(copy.id, Arc::new(copy));
    }
    let plan = world.lose(5);
    assert_eq!((plan.steps.len(), plan.unplaced.len()), (125, 0));
}

fn platform(features: &[&str], machine: &str) -> Option<Arc<Platform>> {
    Some(Arc::new(Platform {
        engine: "QEMU 10.0.2".to_owned(),
        accelerator: Accelerator::Kvm,
        cpu_base: "Nehalem-v1".to_owned(),
        cpu_features: features.iter().map(|one| (*one).to_owned()).collect(),
        machine_virtio: format!("pc-q35-{machine}"),
        machine_legacy: format!("pc-i440fx-{machine}"),
    }))
}

#[test]
fn a_guest_goes_only_where_its_processors_are_and_a_restart_anywhere() {
    let mut world = World::new(2, 4_096);
    let all = platform(&["aes", "avx"], "10.0");
    world.propose(Command::NodePlatform { node: node(0), platform: all.clone() });
    let id = world.add(1, vm(0, 512));
    world.propose(Command::NodePlatform { node: node(1), platform: platform(&["aes"], "10.0") });
    let drained = drain(&world.state, &world.alive(), &BTreeSet::from([node(0)]), false);
    assert_eq!(drained.unplaced, [Unplaced { vm: id, problem: Problem::Platform }]);
    assert_eq!(places(&world.lose(0)), [(id, node(1))], "it boots anew");
    world.propose(Command::NodePlatform { node: node(1), platform: all });
    assert_eq!(
        places(&drain(&world.state, &world.alive(), &BTreeSet::from([node(0)]), false)),
        [(id, node(1))]
    );
    // No host can start a machine that its QEMU does not know.
    let older = platform(&["aes", "avx"], "9.2");
    world.propose(Command::NodePlatform { node: node(1), platform: older });
    assert_eq!(world.lose(0).unplaced, [Unplaced { vm: id, problem: Problem::Platform }]);
}
