//! Forming a cluster, joining, leaving, eviction.

use uuid::Uuid;

use super::tests::NODE;
use super::tests::World;
use crate::ClusterId;
use crate::Command;
use crate::Gone;
use crate::JoinTokenId;
use crate::Membership;
use crate::NodeCapacity;
use crate::NodeFacts;
use crate::NodeId;
use crate::Refused;
use crate::SecretText;
use crate::UnixMillis;

pub(super) fn node(n: u8) -> NodeId {
    NodeId::new(Uuid::from_u128(u128::from(n) + 1))
}

fn key(n: u8) -> String {
    format!("{n:064x}")
}

fn facts(n: u8) -> Box<NodeFacts> {
    Box::new(NodeFacts {
        addresses: vec![format!("10.0.0.{}:7444", n + 1).parse().unwrap()],
        version: "0.1.0".to_owned(),
        interfaces: Vec::new(),
    })
}

fn create() -> Command {
    Command::ClusterCreate {
        cluster: ClusterId::new(Uuid::from_u128(500)),
        name: "lab".parse().unwrap(),
        ca_certificate: "certificate".to_owned(),
        ca_key: SecretText::new("THE-CA-KEY"),
        node: NODE,
        key: key(0),
    }
}

fn token(n: u8, uses: u32, expires: u64) -> Command {
    Command::JoinTokenCreate {
        token: JoinTokenId::new(Uuid::from_u128(u128::from(n) + 600)),
        digest: key(n + 100),
        expires: UnixMillis::new(expires),
        uses,
    }
}

pub(super) fn join(n: u8, name: &str, with: u8) -> Command {
    Command::NodeJoin {
        node: node(n),
        name: name.parse().unwrap(),
        key: key(n),
        facts: facts(n),
        digest: key(with + 100),
    }
}

/// What a random administrator or node proposes.
pub(super) fn command(n: u8, what: u8) -> Command {
    let name = format!("h{n}");
    match what {
        0 => create(),
        1 => token(n % 2, 3, 1_080),
        2 => Command::JoinTokenRevoke {
            token: JoinTokenId::new(Uuid::from_u128(u128::from(n % 2) + 600)),
        },
        3 | 4 => join(n, &name, n % 2),
        5 => Command::NodeLeave { node: node(n) },
        6 => Command::NodeGone { node: node(n) },
        7 => Command::NodeEvict { node: node(n), forget_vms: n.is_multiple_of(2) },
        8 => Command::QuorumForced {
            lost: [node(n)].into(),
            word: Uuid::from_u128(n.into()),
            witness: node(n / 2 + 200),
        },
        12 => Command::NodeDamaged {
            node: node(n),
            word: Uuid::from_u128(u128::from(n % 2) + 800),
            problem: "log/1".to_owned(),
        },
        13 => Command::NodeLogCleared {
            node: node(n),
            word: Uuid::from_u128(u128::from(n % 2) + 800),
        },
        9..=11 => super::witness_tests::command(n % 2, what - 9),
        _ => Command::NodeStarted {
            node: node(n),
            name: name.parse().unwrap(),
            capacity: NodeCapacity::default(),
        },
    }
}

pub(super) fn lab() -> World {
    let mut world = World::new();
    world.propose(create()).unwrap();
    world.propose(token(0, 9, 1_000_000)).unwrap();
    world
}

#[test]
fn a_token_needs_a_cluster_and_there_is_only_one() {
    let mut world = World::new();
    assert_eq!(world.propose(token(0, 1, 9_000)), Err(Refused::NoCluster));
    assert_eq!(world.propose(join(1, "h2", 0)), Err(Refused::NoCluster));
    world.propose(create()).unwrap();
    assert!(matches!(world.propose(create()), Err(Refused::InCluster(_))));
    assert_eq!(world.state.nodes.get(&NODE).unwrap().key, Some(key(0)));
}

#[test]
fn a_host_joins_once_and_may_ask_again() {
    let mut world = lab();
    world.propose(join(1, "h2", 0)).unwrap();
    let left = |world: &World| world.state.join_tokens.values().next().unwrap().uses;
    assert_eq!(left(&world), 8);
    // The answer was lost on the way.
    world.propose(join(1, "h2", 0)).unwrap();
    assert_eq!((left(&world), world.state.nodes.len()), (8, 2));
    let mut other_key = join(1, "h2", 0);
    if let Command::NodeJoin { key, .. } = &mut other_key {
        *key = self::key(77);
    }
    assert!(matches!(world.propose(other_key), Err(Refused::IdTaken(_))));
}

#[test]
fn names_addresses_and_keys_are_each_those_of_one_node() {
    let mut world = lab();
    assert!(matches!(world.propose(join(1, "H1", 0)), Err(Refused::NameTaken { .. })));
    world.propose(join(1, "h2", 0)).unwrap();
    let mut same_address = join(2, "h3", 0);
    if let Command::NodeJoin { facts, .. } = &mut same_address {
        *facts = self::facts(1);
    }
    assert!(matches!(world.propose(same_address), Err(Refused::NodeAddress { .. })));
    let mut same_key = join(2, "h3", 0);
    if let Command::NodeJoin { key, .. } = &mut same_key {
        *key = self::key(1);
    }
    assert!(matches!(world.propose(same_key), Err(Refused::Invalid(_))));
    let mut nowhere = join(2, "h3", 0);
    if let Command::NodeJoin { facts, .. } = &mut nowhere {
        facts.addresses = vec!["0.0.0.0:7444".parse().unwrap()];
    }
    assert!(matches!(world.propose(nowhere), Err(Refused::Invalid(_))));
    // A node that starts under another's name is refused, too.
    let started = Command::NodeStarted {
        node: node(1),
        name: "h1".parse().unwrap(),
        capacity: NodeCapacity::default(),
    };
    assert!(matches!(world.propose(started), Err(Refused::NameTaken { .. })));
}

#[test]
fn a_token_ends_is_used_up_and_is_revoked() {
    let mut world = lab();
    assert_eq!(world.propose(join(1, "h2", 7)), Err(Refused::JoinToken), "no such token");
    let now = world.now;
    world.propose(token(1, 1, now + 4)).unwrap();
    world.propose(join(1, "h2", 1)).unwrap();
    assert_eq!(world.propose(join(2, "h3", 1)), Err(Refused::JoinToken), "used up");
    let now = world.now;
    world.propose(token(2, 5, now + 3)).unwrap();
    world.now += 5;
    assert_eq!(world.propose(join(2, "h3", 2)), Err(Refused::JoinToken), "ended");
    let revoke = Command::JoinTokenRevoke { token: JoinTokenId::new(Uuid::from_u128(600)) };
    world.propose(revoke.clone()).unwrap();
    assert_eq!(world.propose(join(2, "h3", 0)), Err(Refused::JoinToken), "revoked");
    assert!(matches!(world.propose(revoke), Err(Refused::NotFound { .. })));
    let now = world.now;
    for (uses, expires) in [(0, now + 9), (65, now + 9), (1, now)] {
        assert!(matches!(world.propose(token(3, uses, expires)), Err(Refused::Invalid(_))));
    }
}

#[test]
fn a_node_leaves_in_two_steps_and_never_comes_back_under_its_id() {
    let mut world = lab();
    let only = Command::NodeLeave { node: NODE };
    assert!(matches!(world.propose(only.clone()), Err(Refused::LastNode(_))));
    world.propose(join(1, "h2", 0)).unwrap();
    let vm = world.create(9, "a");
    assert!(matches!(world.propose(only), Err(Refused::OwnsVms { .. })), "{vm} lives there");
    let gone = Command::NodeGone { node: node(1) };
    assert!(matches!(world.propose(gone.clone()), Err(Refused::Invalid(_))));
    world.propose(Command::NodeLeave { node: node(1) }).unwrap();
    assert_eq!(world.state.nodes.get(&node(1)).unwrap().membership, Membership::Leaving);
    world.propose(Command::NodeLeave { node: node(1) }).unwrap();
    world.propose(gone).unwrap();
    assert_eq!(world.state.gone.get(&node(1)).unwrap().how, Gone::Left);
    assert!(matches!(world.propose(join(1, "h2", 0)), Err(Refused::NodeGone { .. })));
    let started = Command::NodeStarted {
        node: node(1),
        name: "h2".parse().unwrap(),
        capacity: NodeCapacity::default(),
    };
    assert!(matches!(world.propose(started), Err(Refused::NodeGone { .. })));
    // The host itself may come back, as another node.
    let mut again = join(2, "h2", 0);
    if let Command::NodeJoin { facts, .. } = &mut again {
        *facts = self::facts(1);
    }
    world.propose(again).unwrap();
}

#[test]
fn an_evicted_node_is_gone_at_once_and_cannot_start_itself_in() {
    let mut world = lab();
    world.propose(join(1, "h2", 0)).unwrap();
    world.propose(Command::NodeEvict { node: node(1), forget_vms: false }).unwrap();
    assert_eq!(world.state.gone.get(&node(1)).unwrap().how, Gone::Evicted);
    let stranger = Command::NodeStarted {
        node: node(9),
        name: "h9".parse().unwrap(),
        capacity: NodeCapacity::default(),
    };
    assert!(matches!(world.propose(stranger), Err(Refused::NotMember(_))));
    assert!(matches!(
        world.propose(Command::NodeEvict { node: NODE, forget_vms: false }),
        Err(Refused::LastNode(_))
    ));
    assert!(matches!(
        world.propose(Command::NodeFactsSet { node: node(1), facts: facts(1) }),
        Err(Refused::NotFound { .. })
    ));
}

#[test]
fn a_state_of_a_single_host_from_before_there_were_clusters_is_read() {
    let world = World::new();
    let mut json = serde_json::to_value(&world.state).unwrap();
    for field in ["cluster", "join_tokens", "gone"] {
        json.as_object_mut().unwrap().remove(field).unwrap();
    }
    for node in json["nodes"].as_object_mut().unwrap().values_mut() {
        for field in ["facts", "key", "joined", "membership"] {
            node.as_object_mut().unwrap().remove(field).unwrap();
        }
    }
    let mut state: crate::ClusterState = serde_json::from_value(json).unwrap();
    state.check_invariants().unwrap();
    // Only the time of joining is not known.
    let joined = world.state.nodes.get(&NODE).unwrap().joined;
    std::sync::Arc::make_mut(state.nodes.get_mut(&NODE).unwrap()).joined = joined;
    assert_eq!(state, world.state);
}

#[test]
fn the_key_of_the_ca_is_in_no_log_and_no_event() {
    let mut world = World::new();
    let applied = world.propose(create()).unwrap();
    let events = serde_json::to_string(&applied.events).unwrap();
    assert!(!events.contains("THE-CA-KEY"));
    assert!(!format!("{:?} {:?}", create(), world.state).contains("THE-CA-KEY"));
}
