use model::Bytes;
use model::Command;
use model::HaSpec;
use model::NodeMode;
use model::RuleKind;

use super::*;
use crate::world::Vm;
use crate::world::World;
use crate::world::name;
use crate::world::node;
use crate::world::vm;
use crate::world::web;

/// Loads of nodes with two processors each; of each machine its processor time and its waits.
fn loads(world: &World, of: &[(VmId, u32, u32)]) -> BTreeMap<NodeId, Load> {
    let mut loads: BTreeMap<NodeId, Load> = world
        .alive()
        .into_iter()
        .map(|node| (node, Load { processors: 2, ..Load::default() }))
        .collect();
    for (id, cpu, cpu_waits) in of.iter().copied() {
        let load = MachineLoad { cpu, cpu_waits, memory_waits: 0 };
        loads.get_mut(&world.state.vm(id).unwrap().owner).unwrap().machines.insert(id, load);
    }
    loads
}

fn plan(world: &World, of: &[(VmId, u32, u32)]) -> Vec<Relief> {
    balance(&world.state, &world.alive(), &loads(world, of), &BTreeSet::new())
}

/// Three machines on one of two nodes.
fn crowded() -> (World, [VmId; 3]) {
    let mut world = World::new(2, 8_192);
    let vms = [1, 2, 3].map(|n| world.add(n, vm(0, 256)));
    (world, vms)
}

#[test]
fn a_node_that_is_busy_and_where_nobody_waits_keeps_its_machines() {
    let (world, [a, b, c]) = crowded();
    assert_eq!(plan(&world, &[(a, 900, 20), (b, 900, 99), (c, 100, 0)]), []);
}

#[test]
fn the_machine_goes_that_makes_both_most_even() {
    let (world, [a, b, c]) = crowded();
    let reliefs = plan(&world, &[(a, 300, 400), (b, 900, 350), (c, 700, 500)]);
    let [relief] = reliefs.as_slice() else { panic!("{reliefs:?}") };
    // 950 here; without `b`, 500 here and 450 there.
    assert_eq!((relief.vm, relief.from, relief.to), (b, node(0), node(1)));
    assert_eq!((relief.short, relief.waits), (Short::Processors, 500));
    assert_eq!((relief.used_now, relief.used_then), (950, 500));
}

#[test]
fn one_that_would_only_take_its_crowd_along_stays() {
    let mut world = World::new(2, 8_192);
    // Alone with what it waits for: a limit of its own, or too few processors of the host.
    let alone = world.add(1, vm(0, 256));
    assert_eq!(plan(&world, &[(alone, 1_900, 600)]), []);
    // The other node is no better off.
    let (mut world, [a, b, c]) = crowded();
    let there = world.add(4, vm(1, 256));
    assert_eq!(
        plan(&world, &[(a, 600, 300), (b, 600, 300), (c, 700, 300), (there, 1_700, 40)]),
        []
    );
    // Nor may it be one where machines wait.
    assert_eq!(plan(&world, &[(a, 600, 300), (b, 600, 300), (c, 700, 300), (there, 200, 150)]), []);
    assert_eq!(
        plan(&world, &[(a, 600, 300), (b, 600, 300), (c, 700, 300), (there, 200, 20)]).len(),
        1
    );
}

#[test]
fn rules_room_preferences_and_modes_hold() {
    let busy = |ids: [VmId; 2]| [(ids[0], 1_000, 500), (ids[1], 1_000, 500)];
    let two = |first: Vm, second: Vm| {
        let mut world = World::new(2, 2_048);
        let ids = [world.add(1, first), world.add(2, second)];
        (world, ids)
    };
    let (world, ids) = two(vm(0, 256), vm(0, 256));
    assert_eq!(plan(&world, &busy(ids)).len(), 1);
    // Away from the one that it should be with.
    for hard in [true, false] {
        let (mut world, ids) = two(web(0, 256), web(0, 256));
        world.rule(RuleKind::Together, hard);
        assert_eq!(plan(&world, &busy(ids)), [], "together, hard: {hard}");
    }
    let home = HaSpec { failback: true, preferred: vec![name("n0")], ..HaSpec::default() };
    let (world, ids) = two(Vm { ha: home.clone(), ..vm(0, 256) }, Vm { ha: home, ..vm(0, 256) });
    assert_eq!(plan(&world, &busy(ids)), [], "they would come back");
    let (world, ids) = two(Vm { local: true, ..vm(0, 256) }, Vm { local: true, ..vm(0, 256) });
    assert_eq!(plan(&world, &busy(ids)), [], "nobody else reaches their disks");
    let (mut world, ids) = two(vm(0, 256), vm(0, 256));
    world.propose(Command::NodeSetMode {
        node: node(1),
        mode: NodeMode::Standby,
        with_storage: false,
    });
    assert_eq!(plan(&world, &busy(ids)), [], "it takes none");
    let (mut world, ids) = two(vm(0, 256), vm(0, 256));
    world.add(3, vm(1, 1_800));
    assert_eq!(plan(&world, &busy(ids)), [], "there is no room");
}

#[test]
fn each_node_gives_one_at_a_time_and_the_next_one_knows_of_it() {
    let mut world = World::new(4, 8_192);
    let ids = [(1, 0), (2, 0), (3, 1), (4, 1)].map(|(n, on)| world.add(n, vm(on, 256)));
    let of: Vec<_> = ids.iter().map(|id| (*id, 1_000, 400)).collect();
    let reliefs = plan(&world, &of);
    assert_eq!(reliefs.len(), 2);
    assert_ne!(reliefs[0].from, reliefs[1].from);
    assert_ne!(reliefs[0].to, reliefs[1].to, "{reliefs:?}");
    // Those that cannot be moved are passed over.
    let stay = ids.into_iter().take(3).collect();
    let reliefs = balance(&world.state, &world.alive(), &loads(&world, &of), &stay);
    assert_eq!(reliefs.iter().map(|it| it.vm).collect::<Vec<_>>(), [ids[3]]);
}

#[test]
fn where_memory_is_short_a_machine_goes_to_where_it_is_not() {
    let mut world = World::new(2, 4_096);
    let ids = [1, 2, 3].map(|n| world.add(n, vm(0, 1_000)));
    let mut loads = loads(&world, &[(ids[0], 500, 0), (ids[1], 10, 0), (ids[2], 300, 0)]);
    assert_eq!(balance(&world.state, &world.alive(), &loads, &BTreeSet::new()), []);
    let here = loads.get_mut(&node(0)).unwrap();
    here.machines.get_mut(&ids[0]).unwrap().memory_waits = 80;
    let reliefs = balance(&world.state, &world.alive(), &loads, &BTreeSet::new());
    let [relief] = reliefs.as_slice() else { panic!("{reliefs:?}") };
    assert_eq!((relief.short, relief.waits, relief.to), (Short::Memory, 80, node(1)));
    let each = (Bytes::mib(1_064).get() * 1_000 / Bytes::mib(4_096).get(), 1);
    assert!(
        relief.used_now.abs_diff(3 * each.0) <= 2 && relief.used_then.abs_diff(2 * each.0) <= 2
    );
}
