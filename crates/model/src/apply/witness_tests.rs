//! Setting a witness and taking it away.

use uuid::Uuid;

use super::cluster_test;
use super::tests::NODE;
use super::tests::World;
use crate::ClusterId;
use crate::Command;
use crate::NodeId;
use crate::Refused;
use crate::SecretText;
use crate::WitnessPlace;
use crate::witness_slots;

fn id(n: u8) -> NodeId {
    NodeId::new(Uuid::from_u128(u128::from(n) + 900))
}

fn directory() -> WitnessPlace {
    WitnessPlace::Directory { path: "/srv/witness".to_owned() }
}

fn set(n: u8, place: WitnessPlace) -> Command {
    Command::WitnessSet { witness: id(n), place: Box::new(place) }
}

/// What a random administrator or leader proposes.
pub(super) fn command(n: u8, what: u8) -> Command {
    match what {
        0 => set(n, directory()),
        1 => Command::WitnessRemove { witness: id(n) },
        _ => Command::WitnessGone { witness: id(n) },
    }
}

fn lab() -> World {
    let mut world = World::new();
    let create = Command::ClusterCreate {
        cluster: ClusterId::new(Uuid::from_u128(500)),
        name: "lab".parse().unwrap(),
        ca_certificate: "certificate".to_owned(),
        ca_key: SecretText::new("THE-CA-KEY"),
        node: NODE,
        key: "0".repeat(64),
    };
    world.propose(create).unwrap();
    world
}

#[test]
fn a_host_by_itself_has_no_witness() {
    let refused = World::new().propose(set(1, directory())).unwrap_err();
    assert!(matches!(refused, Refused::NoCluster), "{refused:?}");
}

#[test]
fn a_witness_is_set_retired_and_gone() {
    let mut world = lab();
    world.propose(set(1, directory())).unwrap();
    let record = world.state.witness.clone().unwrap();
    assert_eq!((record.id, record.retired), (id(1), false));
    world.propose(set(2, directory())).unwrap_err();
    // It may be needed to vote itself out.
    world.propose(Command::WitnessGone { witness: id(1) }).unwrap_err();
    world.propose(Command::WitnessRemove { witness: id(2) }).unwrap_err();
    world.propose(Command::WitnessRemove { witness: id(1) }).unwrap();
    assert!(world.state.witness.as_ref().unwrap().retired);
    world.propose(set(2, directory())).unwrap_err();
    world.propose(Command::WitnessGone { witness: id(1) }).unwrap();
    assert_eq!(world.state.witness, None);
    world.propose(set(2, directory())).unwrap();
}

#[test]
fn places_that_cannot_be_are_refused() {
    let remote = |address: &str, token: &str| WitnessPlace::Remote {
        address: address.parse().unwrap(),
        token: SecretText::new(token),
    };
    let object = |url: &str, value: &str| WitnessPlace::Object {
        url: url.to_owned(),
        options: [("aws_region".to_owned(), value.to_owned())].into(),
        secrets: [("aws_secret_access_key".to_owned(), SecretText::new("secret"))].into(),
    };
    let directory = |path: &str| WitnessPlace::Directory { path: path.to_owned() };
    let mut world = lab();
    for place in [
        directory(""),
        directory("witness"),
        directory("/srv/../etc"),
        directory("/srv/\n"),
        directory(&format!("/{}", "x".repeat(5_000))),
        object("file:///srv", "eu"),
        object("s3://bucket", "e\nu"),
        remote("0.0.0.0:7445", "token"),
        remote("192.0.2.1:0", "token"),
        remote("192.0.2.1:7445", ""),
    ] {
        let refused = world.propose(set(1, place.clone()));
        assert!(matches!(refused, Err(Refused::Invalid(_))), "{place:?}: {refused:?}");
    }
    world.propose(set(1, object("s3://bucket/folder", "eu"))).unwrap();
    let shown = format!("{:?}", world.state.witness);
    assert!(!shown.contains("\"secret\""), "{shown}");
}

#[test]
fn each_node_has_a_slot_of_its_own_on_a_device_and_none_is_given_twice() {
    let device = |path: &str, slots: &[(u8, u16)]| WitnessPlace::Block {
        path: path.to_owned(),
        slots: slots.iter().map(|(n, slot)| (cluster_test::node(*n), *slot)).collect(),
    };
    let mut world = cluster_test::lab();
    for bad in [
        device("srv/file", &[(0, 0)]),
        device("/dev/../srv", &[(0, 0)]),
        device("/dev/sdx", &[(0, 3), (1, 3)]),
        device("/dev/sdx", &[(0, 64)]),
        // Node 0 joined meanwhile.
        device("/dev/sdx", &[(1, 0)]),
    ] {
        let refused = world.propose(set(1, bad.clone()));
        assert!(matches!(refused, Err(Refused::Invalid(_))), "{bad:?}: {refused:?}");
    }
    let nodes = world.state.nodes.keys().copied();
    let place = WitnessPlace::Block { path: "/dev/sdx".to_owned(), slots: witness_slots(nodes) };
    world.propose(set(1, place)).unwrap();
    let slots = |world: &World| match &world.state.witness.as_ref().unwrap().place {
        WitnessPlace::Block { slots, .. } => slots.clone(),
        other => panic!("{other:?}"),
    };
    for n in 1..=3 {
        world.propose(cluster_test::join(n, &format!("x{n}"), 0)).unwrap();
        assert_eq!(slots(&world).get(&cluster_test::node(n)), Some(&u16::from(n)));
        world
            .propose(Command::NodeEvict { node: cluster_test::node(n), forget_vms: false })
            .unwrap();
    }
    assert_eq!(slots(&world).len(), 4, "who is gone may still write to its own");
}

#[test]
fn a_nodes_id_is_no_witnesss() {
    let command = Command::WitnessSet { witness: NODE, place: Box::new(directory()) };
    let refused = lab().propose(command).unwrap_err();
    assert!(matches!(refused, Refused::IdTaken(_)), "{refused:?}");
}
