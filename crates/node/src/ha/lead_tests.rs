use std::time::Duration;

use model::Bytes;
use model::DeviceSaid;
use model::FenceProof;
use model::HaSpec;
use model::OpRequest;
use model::Speaker;

use super::*;
use crate::ha::world::World;
use crate::ha::world::name;
use crate::ha::world::node;
use crate::ha::world::vm;

const SINCE: Duration = Duration::from_secs(5);
const DEAD: Verdict = Verdict::Dead { since: SINCE };
const CUT_OFF: Verdict = Verdict::Isolated { since: SINCE, over: false };
const CUT_OFF_LONG: Verdict = Verdict::Isolated { since: SINCE, over: true };
const SELF: Certainty = Certainty::SelfFencing { watchdog: false, takeover_ms: 15_000 };

/// What node 1, which leads, does when node 2 looks like that.
fn next_with(world: &World, two: Verdict, certainty: Certainty) -> Vec<Command> {
    let mut verdicts: BTreeMap<_, _> =
        world.state.nodes.keys().map(|node| (*node, Verdict::Alive)).collect();
    verdicts.insert(node(2), two);
    let certainty = |_| Some(certainty);
    let seen = Seen { me: node(1), verdicts: &verdicts, certainty: &certainty, now: world.now };
    next(&world.state, &seen)
}

fn fences(commands: &[Command]) -> bool {
    matches!(commands, [Command::FenceBegin { node: two, .. }] if *two == node(2))
}

fn fence(world: &mut World) {
    world.ok(Command::LeaseReign { leader: node(1), reign: 1 });
    let reason = FenceReason::Suspected { what: "silent".to_owned() };
    world.ok(Command::FenceBegin { node: node(2), reason });
    let said =
        DeviceSaid { device: name("bmc"), level: 1, output: "off".to_owned(), at: world.now };
    let proof = FenceProof::Devices { said: vec![said] };
    world.ok(Command::NodeFenced { node: node(2), epoch: 0, reign: 1, proof });
}

fn takeovers(commands: &[Command]) -> Vec<VmId> {
    commands
        .iter()
        .map(|command| match command {
            Command::VmTakeOver { vm, .. } => *vm,
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn a_dead_node_is_fenced_and_only_then_are_its_vms_taken_over() {
    let mut world = World::new(3);
    world.add(1, node(2), HaSpec::default());
    world.add(2, node(3), HaSpec::default());
    assert_eq!(next_with(&world, Verdict::Alive, Certainty::Proof), []);
    assert_eq!(next_with(&world, Verdict::Silent { since: SINCE }, Certainty::Proof), []);
    let commands = next_with(&world, DEAD, Certainty::Proof);
    assert!(fences(&commands), "{commands:?}");
    world.ok(commands[0].clone());
    assert_eq!(next_with(&world, DEAD, Certainty::Proof), [], "once is enough");
    let mut world = World::new(3);
    world.add(1, node(2), HaSpec::default());
    fence(&mut world);
    let commands = next_with(&world, DEAD, Certainty::Proof);
    assert_eq!(takeovers(&commands), [vm(1)]);
    world.ok(commands[0].clone());
    assert_ne!(world.owner(1), node(2));
    assert_eq!(next_with(&world, DEAD, Certainty::Proof), []);
}

#[test]
fn a_node_that_is_only_cut_off_keeps_its_vms_where_nobody_takes_them_without_proof() {
    let mut world = World::new(3);
    world.add(1, node(2), HaSpec::default());
    assert_eq!(next_with(&world, CUT_OFF, Certainty::Proof), []);
    assert!(fences(&next_with(&world, CUT_OFF_LONG, Certainty::Proof)));
    // One that fences itself ends its VMs anyway.
    assert!(fences(&next_with(&world, CUT_OFF, SELF)));
    // Nothing could be concluded from its silence.
    assert_eq!(next_with(&world, CUT_OFF_LONG, Certainty::None), []);
}

#[test]
fn a_node_without_vms_that_could_go_elsewhere_is_left_alone() {
    let mut world = World::new(3);
    assert_eq!(next_with(&world, DEAD, Certainty::Proof), []);
    let ha = HaSpec { enabled: false, ..HaSpec::default() };
    world.add(1, node(2), ha);
    assert_eq!(next_with(&world, DEAD, Certainty::Proof), []);
}

#[test]
fn a_fence_device_that_failed_is_asked_again_later() {
    let mut world = World::new(3);
    world.add(1, node(2), HaSpec::default());
    world.ok(Command::LeaseReign { leader: node(1), reign: 1 });
    world.ok(next_with(&world, DEAD, Certainty::Proof)[0].clone());
    let why = Some("no route to the BMC".to_owned());
    world.ok(Command::FenceEnd { node: node(2), reign: 1, why });
    assert_eq!(next_with(&world, DEAD, Certainty::Proof), []);
    world.now = world.now.plus(FENCE_AGAIN);
    assert!(fences(&next_with(&world, DEAD, Certainty::Proof)));
}

#[test]
fn a_vm_waits_for_those_it_depends_on() {
    let mut world = World::new(3);
    world.add(1, node(2), HaSpec::default());
    world.add(2, node(2), HaSpec { after: vec![name("v1")], ..HaSpec::default() });
    fence(&mut world);
    let commands = next_with(&world, DEAD, Certainty::Proof);
    assert_eq!(takeovers(&commands), [vm(1)]);
    world.ok(commands[0].clone());
    assert_eq!(takeovers(&next_with(&world, DEAD, Certainty::Proof)), [vm(2)]);
}

/// That a database's process runs is not enough, where its guest can tell.
#[test]
fn a_vm_waits_until_the_guest_that_it_depends_on_answers() {
    let mut world = World::new(3);
    world.add(1, node(2), HaSpec::default());
    world.add(2, node(2), HaSpec { after: vec![name("v1")], ..HaSpec::default() });
    let answer = |world: &mut World| {
        let VmRecord { owner, generation, .. } = *world.vm(1);
        let by = Speaker { node: owner, epoch: world.state.node(owner).unwrap().epoch };
        world.ok(Command::VmAnswered { vm: vm(1), generation, by });
    };
    answer(&mut world);
    fence(&mut world);
    let commands = next_with(&world, DEAD, Certainty::Proof);
    assert_eq!(takeovers(&commands), [vm(1)]);
    world.ok(commands[0].clone());
    assert_eq!(next_with(&world, DEAD, Certainty::Proof), [], "its guest boots");
    let early = world.now;
    world.now = early.plus(ANSWER_PATIENCE);
    assert_eq!(takeovers(&next_with(&world, DEAD, Certainty::Proof)), [vm(2)], "long enough");
    world.now = early;
    answer(&mut world);
    assert_eq!(takeovers(&next_with(&world, DEAD, Certainty::Proof)), [vm(2)]);
}

#[test]
fn the_moves_of_a_drain_are_ordered_in_advance_and_end_with_it() {
    let mut world = World::new(4);
    for n in 1..=18 {
        world.add(n, node(2), HaSpec::default());
    }
    world.ok(Command::NodeSetMode { node: node(2), mode: NodeMode::Drain, with_storage: false });
    let commands = next_with(&world, Verdict::Alive, Certainty::Proof);
    assert_eq!(commands.len(), ORDERED);
    for command in commands {
        world.ok(command);
    }
    assert_eq!(next_with(&world, Verdict::Alive, Certainty::Proof), []);
    // One of them has arrived.
    let first = world.state.vms.values().find(|vm| vm.moving.is_some()).unwrap().clone();
    world.run(OpRequest::VmOff { vm: first.id }, node(2));
    world.ok(Command::VmRehome { vm: first.id, to: first.moving.unwrap().to });
    assert_eq!(next_with(&world, Verdict::Alive, Certainty::Proof).len(), 1);
    // What has begun goes on when the node is to stay as it is; what has not is left.
    let begun = world.state.vms.values().find(|vm| vm.moving.is_some()).unwrap().clone();
    let (to, policy) = (begun.moving.unwrap().to, model::MigratePolicy::default());
    world.begin(OpRequest::VmMigrate { vm: begun.id, to, policy, storage: None });
    world.ok(Command::NodeSetMode { node: node(2), mode: NodeMode::Active, with_storage: false });
    let commands = next_with(&world, Verdict::Alive, Certainty::Proof);
    assert_eq!(commands.len(), ORDERED - 2);
    for command in commands {
        assert!(matches!(command, Command::VmMove { vm, to: None, .. } if vm != begun.id));
        world.ok(command);
    }
    assert_eq!(next_with(&world, Verdict::Alive, Certainty::Proof), []);
}

#[test]
fn a_move_to_a_node_that_is_lost_is_stopped() {
    let mut world = World::new(3);
    world.add(1, node(1), HaSpec::default());
    world.ok(Command::VmMove { vm: vm(1), to: Some(node(2)), quick: true });
    assert_eq!(next_with(&world, Verdict::Alive, Certainty::Proof), []);
    let stop = Command::VmMove { vm: vm(1), to: None, quick: false };
    let commands = next_with(&world, DEAD, Certainty::Proof);
    assert_eq!(commands, [stop]);
    world.ok(commands[0].clone());
    assert_eq!(next_with(&world, DEAD, Certainty::Proof), []);
}

#[test]
fn a_vm_goes_back_when_its_preferred_node_has_been_there_for_a_while() {
    let mut world = World::new(3);
    let ha = HaSpec { preferred: vec![name("n2")], failback: true, ..HaSpec::default() };
    world.add(1, node(3), ha);
    assert_eq!(next_with(&world, Verdict::Alive, Certainty::Proof), []);
    world.now = world.now.plus(CALM);
    let back = Command::VmMove { vm: vm(1), to: Some(node(2)), quick: false };
    assert_eq!(next_with(&world, Verdict::Alive, Certainty::Proof), [back]);
    assert_eq!(next_with(&world, Verdict::Silent { since: SINCE }, Certainty::Proof), []);
}

#[test]
fn a_host_by_itself_does_nothing() {
    let mut world = World::new(1);
    world.add(1, node(1), HaSpec::default());
    world.ok(Command::NodeSetMode { node: node(1), mode: NodeMode::Drain, with_storage: false });
    let verdicts = BTreeMap::new();
    let certainty = |_| Some(Certainty::Alone);
    let seen = Seen { me: node(1), verdicts: &verdicts, certainty: &certainty, now: world.now };
    assert_eq!(next(&world.state, &seen), []);
}

#[test]
fn memory_is_promised_by_the_node_that_a_vm_runs_on() {
    let mut world = World::new(3);
    world.add(1, node(2), HaSpec::default());
    world.add(2, node(2), HaSpec::default());
    world.add(3, node(3), HaSpec::default());
    let promised = |n| crate::views::promised(&world.state, node(n));
    assert_eq!([promised(1), promised(2), promised(3)], [0, 256, 128].map(Bytes::mib));
}

#[test]
fn a_quarantine_ends_by_itself() {
    let mut world = World::new(3);
    for epoch in 0..3 {
        world.ok(Command::LeaseReign { leader: node(1), reign: epoch + 1 });
        let proof = FenceProof::Statement;
        world.ok(Command::NodeFenced { node: node(2), epoch, reign: epoch + 1, proof });
        world.ok(Command::NodeBack { node: node(2), epoch: epoch + 1 });
    }
    let until = world.state.node(node(2)).unwrap().quarantine.unwrap();
    assert_eq!(next_with(&world, Verdict::Alive, Certainty::Proof), []);
    world.now = until;
    let commands = next_with(&world, Verdict::Alive, Certainty::Proof);
    assert_eq!(commands, [Command::NodeQuarantineEnd { node: node(2) }]);
    world.ok(commands[0].clone());
    assert_eq!(next_with(&world, Verdict::Alive, Certainty::Proof), []);
}
