#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use model::HaSpec;
use model::Speaker;

use super::*;
use crate::ha::world::VOLUME;
use crate::ha::world::World;
use crate::ha::world::node;
use crate::ha::world::vm;

/// A node's eyes, and the time.
struct Watch {
    paths: Paths,
    at: Instant,
}

impl Watch {
    fn new() -> Self {
        Self { paths: Paths::default(), at: Instant::now() }
    }

    /// Looks for so long, as often as the daemon does; gives the first machine that leaves.
    fn sees(
        &mut self,
        world: &mut World,
        seconds: u64,
        (me, own): (u128, Reach),
        others: &[(u128, Reach)],
    ) -> Option<(VmId, NodeId)> {
        let end = self.at + Duration::from_secs(seconds);
        while self.at < end {
            self.at += LOOK_EVERY;
            world.now = UnixMillis::new(world.now.get() + 3_000);
            for volume in self.paths.own(self.at, &BTreeMap::from([(VOLUME, own)])) {
                for (other, reach) in others {
                    self.paths.other(self.at, volume, node(*other), *reach);
                }
            }
            let next = self.paths.next(&world.state, node(me), (self.at, world.now));
            if let Some(leaves) = next {
                assert_eq!(leaves.volume, VOLUME);
                return Some((leaves.vm, leaves.to));
            }
        }
        None
    }
}

fn world() -> World {
    let mut world = World::new(3);
    world.add(1, node(1), HaSpec::default());
    world
}

use Reach::Direct;
use Reach::Lost as Gone;
use Reach::Unsure;

#[test]
fn a_machine_goes_to_a_node_that_has_a_path() {
    let (mut world, mut watch) = (world(), Watch::new());
    let others = [(2, Gone), (3, Direct)];
    assert_eq!(watch.sees(&mut world, 60, (1, Direct), &others), None, "nothing is lost");
    let gone = watch.sees(&mut world, 60, (1, Gone), &others);
    assert_eq!(gone, Some((vm(1), node(3))), "not to one that has lost its path, too");
    assert_eq!(
        watch.sees(&mut world, 120, (1, Gone), &others),
        None,
        "it is not tried at once again"
    );
    assert!(watch.sees(&mut world, 300, (1, Gone), &others).is_some());
}

#[test]
fn one_at_a_time_and_never_one_that_is_off() {
    let (mut world, mut watch) = (world(), Watch::new());
    world.add(2, node(1), HaSpec::default());
    world.add(3, node(1), HaSpec::default());
    world.run(OpRequest::VmOff { vm: vm(3) }, node(1));
    let others = [(2, Direct), (3, Direct)];
    let (first, to) = watch.sees(&mut world, 60, (1, Gone), &others).unwrap();
    let policy = MigratePolicy::default();
    let op = world.begin(OpRequest::VmMigrate { vm: first, to, policy, storage: None });
    assert_eq!(watch.sees(&mut world, 60, (1, Gone), &others), None, "one is on its way");
    let generation = world.state.vm(first).unwrap().generation;
    let by = Speaker { node: node(1), epoch: 0 };
    world.ok(Command::VmHandover { op, generation, report: Box::default(), by });
    let measured = model::MigrateResult::default();
    world.finish(op, to, model::OpOutcome::Migrated { measured });
    let (second, _) = watch.sees(&mut world, 60, (1, Gone), &others).unwrap();
    assert!(second != first && second != vm(3));
}

#[test]
fn what_flaps_moves_nothing_to_and_fro() {
    let (mut world, mut watch) = (world(), Watch::new());
    for _ in 0..20 {
        assert_eq!(watch.sees(&mut world, 12, (1, Gone), &[(2, Direct)]), None);
        assert_eq!(watch.sees(&mut world, 3, (1, Direct), &[(2, Direct)]), None);
    }
    // The other one's path comes and goes.
    for _ in 0..20 {
        assert_eq!(watch.sees(&mut world, 12, (1, Gone), &[(2, Direct)]), None);
        assert_eq!(watch.sees(&mut world, 3, (1, Gone), &[(2, Gone)]), None);
    }
    let (_, to) = watch.sees(&mut world, 60, (1, Gone), &[(2, Direct)]).unwrap();
    let policy = MigratePolicy::default();
    let op = world.begin(OpRequest::VmMigrate { vm: vm(1), to, policy, storage: None });
    let generation = world.vm(1).generation;
    let by = Speaker { node: node(1), epoch: 0 };
    world.ok(Command::VmHandover { op, generation, report: Box::default(), by });
    let measured = model::MigrateResult::default();
    world.finish(op, to, model::OpOutcome::Migrated { measured });
    // Now that one's is lost, and the first one's is back.
    let mut there = Watch::new();
    assert_eq!(there.sees(&mut world, 200, (2, Gone), &[(1, Direct)]), None, "it came just now");
    assert!(there.sees(&mut world, 200, (2, Gone), &[(1, Direct)]).is_some());
}

#[test]
fn nothing_moves_when_the_lun_is_gone_for_all_or_nothing_is_known() {
    let (mut world, mut watch) = (world(), Watch::new());
    assert_eq!(watch.sees(&mut world, 600, (1, Gone), &[(2, Gone), (3, Gone)]), None);
    assert_eq!(watch.sees(&mut world, 600, (1, Gone), &[(2, Unsure), (3, Unsure)]), None);
    let mut unsure = Watch::new();
    assert_eq!(unsure.sees(&mut world, 600, (1, Unsure), &[(2, Direct)]), None);
    // A change of the coordinator neither begins nor ends a loss.
    let mut changes = Watch::new();
    assert_eq!(changes.sees(&mut world, 12, (1, Gone), &[(2, Direct)]), None);
    assert_eq!(changes.sees(&mut world, 3, (1, Unsure), &[(2, Direct)]), None);
    assert!(changes.sees(&mut world, 12, (1, Gone), &[(2, Direct)]).is_some());
}
