//! Ways for machines that move.

use super::NODE;
use super::World;
use super::ha::OTHER;
use super::ha::cluster;
use crate::ClusterNetworkRecord;
use crate::Command;
use crate::NodeFacts;
use crate::NodeId;
use crate::NodeInterface;
use crate::Refused;

fn tell(world: &mut World, node: NodeId, last: u8, networks: &[u8]) {
    let interface = |net: &u8| NodeInterface {
        address: format!("10.90.{net}.{last}").parse().unwrap(),
        prefix: 24,
    };
    // In both orders: neither of them takes away what the other has told.
    let facts = NodeFacts {
        addresses: vec![format!("10.90.1.{last}:7444").parse().unwrap()],
        version: "1".to_owned(),
        interfaces: Vec::new(),
    };
    let facts = Command::NodeFactsSet { node, facts: Box::new(facts) };
    let interfaces: Vec<NodeInterface> = networks.iter().map(interface).collect();
    world.propose(facts.clone()).unwrap();
    world.propose(Command::NodeInterfacesSet { node, interfaces: interfaces.clone() }).unwrap();
    world.propose(facts).unwrap();
    let told = &world.state.node(node).unwrap().facts;
    assert_eq!((&told.interfaces, told.addresses.len()), (&interfaces, 1));
}

fn network(net: u8, name: &str, migration: Option<u8>) -> Command {
    let subnet = format!("10.90.{net}.0/24").parse().unwrap();
    let record = ClusterNetworkRecord { subnet, name: name.parse().unwrap(), migration };
    Command::ClusterNetworkSet { record: Box::new(record) }
}

fn ways(world: &World) -> Vec<String> {
    world.state.migration_ways(NODE, OTHER).iter().map(|way| way.address.to_string()).collect()
}

#[test]
fn machines_move_over_networks_with_the_role_first() {
    let mut world = cluster();
    assert_eq!(ways(&world), [""; 0], "nobody has said where it is");
    tell(&mut world, NODE, 11, &[0, 1, 2]);
    tell(&mut world, OTHER, 12, &[0, 1, 2, 4]);
    assert_eq!(ways(&world), ["10.90.1.12:7444"], "no network has the role");
    world.propose(network(2, "fast", Some(1))).unwrap();
    world.propose(network(0, "slow", Some(2))).unwrap();
    world.propose(network(4, "there-only", Some(1))).unwrap();
    assert_eq!(ways(&world), ["10.90.2.12:7444", "10.90.0.12:7444", "10.90.1.12:7444"]);
    world.propose(Command::MigrationStrict { strict: true }).unwrap();
    assert_eq!(ways(&world), ["10.90.2.12:7444", "10.90.0.12:7444"]);
    tell(&mut world, OTHER, 12, &[1]);
    assert_eq!(ways(&world), [""; 0], "there is none that may be used");
    world.propose(Command::MigrationStrict { strict: false }).unwrap();
    assert_eq!(ways(&world), ["10.90.1.12:7444"]);
    // A network that is used for other calls, too, is one way, not two.
    world.propose(network(1, "lan", Some(1))).unwrap();
    assert_eq!(ways(&world), ["10.90.1.12:7444"]);
    assert_eq!(world.state.migration_ways(NODE, OTHER)[0].network, Some("lan".parse().unwrap()));
}

#[test]
fn what_cannot_be_said_of_a_network_is_refused() {
    let mut world = cluster();
    world.propose(network(2, "fast", Some(1))).unwrap();
    assert!(matches!(world.propose(network(3, "FAST", None)), Err(Refused::NameTaken { .. })));
    for bad in [0, 10] {
        assert!(world.propose(network(2, "fast", Some(bad))).is_err());
    }
    world.propose(network(2, "faster", None)).unwrap();
    assert!(world.state.cluster_network("10.90.2.0/24").is_some());
    assert!(world.state.cluster_network("Faster").is_some());
    let forget = |net: &str| Command::ClusterNetworkForget { subnet: net.parse().unwrap() };
    assert!(world.propose(forget("10.90.3.0/24")).is_err());
    world.propose(forget("10.90.2.0/24")).unwrap();
    assert!(world.state.cluster_networks.is_empty());
}
