//! A forcing of the quorum (DESIGN.md section 4, rule 2: what is given up is fenced by it).

use std::collections::BTreeSet;

use uuid::Uuid;

use super::super::cluster_test;
use super::NODE;
use super::World;
use super::ha::OTHER;
use super::ha::THIRD;
use super::ha::VOLUME;
use super::ha::shared_vm;
use super::ha::take_over;
use crate::Bytes;
use crate::Command;
use crate::FenceProof;
use crate::Membership;
use crate::NodeCapacity;
use crate::NodeId;
use crate::OpRequest;
use crate::Refused;
use crate::VolumeKind;
use crate::WitnessPlace;

const WITNESS: NodeId = NodeId::new(Uuid::from_u128(70));
const NEW_WITNESS: NodeId = NodeId::new(Uuid::from_u128(71));

/// A cluster of three nodes with a volume and a witness.
fn cluster() -> World {
    let mut world = cluster_test::lab();
    for (n, node, name) in [(2, OTHER, "h2"), (3, THIRD, "h3")] {
        assert_eq!(cluster_test::node(n), node);
        world.propose(cluster_test::join(n, name, 0)).unwrap();
        let name = name.parse().unwrap();
        let capacity = NodeCapacity { cpus: 2, memory: Bytes::gib(1) };
        world.propose(Command::NodeStarted { node, name, capacity }).unwrap();
    }
    let kind = VolumeKind::Share { path: "/share".to_owned() };
    let name = "shared".parse().unwrap();
    world.propose(Command::VolumeCreate { volume: VOLUME, name, kind }).unwrap();
    let place = Box::new(WitnessPlace::Directory { path: "/w".to_owned() });
    world.propose(Command::WitnessSet { witness: WITNESS, place }).unwrap();
    world
}

fn force(world: &mut World, lost: &[NodeId], word: u128) {
    let lost = lost.iter().copied().collect();
    let word = Uuid::from_u128(word);
    world.propose(Command::QuorumForced { lost, word, witness: NEW_WITNESS }).unwrap();
}

#[test]
fn who_is_given_up_is_fenced_and_never_comes_back_under_its_id() {
    let mut world = cluster();
    let unknown = NodeId::new(Uuid::from_u128(99));
    force(&mut world, &[OTHER, unknown], 1);
    let lost = world.state.node(OTHER).unwrap();
    assert_eq!((lost.membership, lost.epoch), (Membership::Lost, 1));
    assert_eq!(lost.fenced.as_ref().unwrap().proof, FenceProof::Statement);
    let back = world.propose(Command::NodeBack { node: OTHER, epoch: 1 });
    assert!(matches!(back, Err(Refused::Invalid(_))), "{back:?}");
    let forced = world.state.forced.clone().unwrap();
    assert_eq!((forced.count, forced.word), (1, Uuid::from_u128(1)));
    assert_eq!(forced.lost, BTreeSet::from([OTHER, unknown]));
    // What the old quorum wrote there must not be taken for this one's.
    assert_eq!(world.state.witness.as_ref().unwrap().id, NEW_WITNESS);

    force(&mut world, &[THIRD], 2);
    let forced = world.state.forced.clone().unwrap();
    assert_eq!((forced.count, forced.lost.clone()), (2, [OTHER, THIRD, unknown].into()));
    world.propose(Command::NodeEvict { node: OTHER, forget_vms: false }).unwrap();
    assert!(world.state.gone.contains_key(&OTHER));
}

#[test]
fn runs_jump_over_those_that_the_lost_half_may_have_begun() {
    let mut world = cluster();
    let lost = shared_vm(&mut world, 1, "lost");
    let kept = shared_vm(&mut world, 2, "kept");
    let off = shared_vm(&mut world, 3, "off");
    world.run(OpRequest::VmStart { vm: lost });
    // The rest goes to the node that stays.
    for vm in [kept, off] {
        world.propose(Command::VmMove { vm, to: Some(OTHER), quick: false }).unwrap();
        world.propose(Command::VmRehome { vm, to: OTHER }).unwrap();
    }
    world.run(OpRequest::VmStart { vm: kept });
    let run = |world: &World, vm| world.state.vm(vm).unwrap().generation.get();
    let before = [lost, kept, off].map(|vm| run(&world, vm));
    force(&mut world, &[NODE], 1);
    let after = [lost, kept, off].map(|vm| run(&world, vm));
    assert!(after[0] > before[0] + 1_000_000, "the lost half may have begun many");
    assert_eq!(after[1], before[1], "a guest that goes on is not another run");
    assert!(after[2] > before[2] + 1_000_000);
    take_over(&mut world, lost, OTHER).unwrap();
    assert_eq!(run(&world, lost), after[0] + 1);
}

/// The disks burned with their host: nobody can start these VMs, and the node's record need not stay
/// for them.
#[test]
fn vms_on_the_own_disks_of_a_lost_node_are_forgotten_with_it_if_that_is_wanted() {
    let mut world = cluster();
    let (local, shared) = (world.create(1, "local"), shared_vm(&mut world, 2, "shared"));
    let starting = world.begin(OpRequest::VmStart { vm: local }).unwrap();
    let evict = |forget_vms| Command::NodeEvict { node: NODE, forget_vms };
    let refused = world.propose(evict(true)).unwrap_err();
    assert!(matches!(&refused, Refused::OwnsVms { users, .. } if users.contains("shared")));
    world.propose(Command::VmMove { vm: shared, to: Some(OTHER), quick: false }).unwrap();
    world.propose(Command::VmRehome { vm: shared, to: OTHER }).unwrap();
    let refused = world.propose(evict(true)).unwrap_err();
    assert!(matches!(refused, Refused::NotFenced(_)), "it may still run: {refused:?}");
    force(&mut world, &[NODE], 1);
    let refused = world.propose(evict(false)).unwrap_err();
    assert!(matches!(refused, Refused::OwnsVms { .. }), "only where it is wanted: {refused:?}");
    let events = world.propose(evict(true)).unwrap().events;
    assert!(events.iter().any(|event| event.kind == crate::EventKind::VmForgotten), "{events:?}");
    assert!(world.state.vm(local).is_err() && world.state.vm(shared).is_ok());
    assert!(!world.state.op(starting).unwrap().is_running(), "nobody waits for it for ever");
    assert!(world.state.gone.contains_key(&NODE));
}
