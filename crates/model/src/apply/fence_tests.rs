//! What counts as a proof that a node is fenced, and fence devices (takeover itself: `tests/ha.rs`).

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::Actor;
use crate::Applied;
use crate::Bytes;
use crate::ClusterState;
use crate::Command;
use crate::DeviceSaid;
use crate::EventKind;
use crate::FenceDevice;
use crate::FenceDeviceId;
use crate::FenceProof;
use crate::FenceReason;
use crate::LeaseTerms;
use crate::Millis;
use crate::NodeCapacity;
use crate::NodeFence;
use crate::NodeId;
use crate::NodeMode;
use crate::OpId;
use crate::OpOutcome;
use crate::OpRequest;
use crate::Pinned;
use crate::Proposal;
use crate::Refused;
use crate::Speaker;
use crate::UnixMillis;
use crate::VmId;
use crate::VmSpec;

const A: NodeId = NodeId::new(Uuid::from_u128(1));
const B: NodeId = NodeId::new(Uuid::from_u128(2));
const VM: VmId = VmId::new(Uuid::from_u128(9));
const TERMS: LeaseTerms = LeaseTerms { lease_ms: 10_000, watchdog_ms: 5_000 };

struct World(ClusterState);

impl World {
    /// Two nodes, a VM on the first, and a leader in term 3.
    fn new() -> Self {
        let mut world = Self(ClusterState::default());
        for (node, name) in [(A, "a"), (B, "b")] {
            let name = name.parse().unwrap();
            world.ok(Command::NodeStarted { node, name, capacity: NodeCapacity::default() });
        }
        world.ok(Command::LeaseReign { reign: 3, leader: B });
        let op = OpId::new(Uuid::from_u128(100));
        let request = OpRequest::VmCreate {
            vm: VM,
            name: "web".parse().unwrap(),
            spec: Box::new(VmSpec::new(1, Bytes::mib(128))),
            pinned: Pinned {
                config_version: 1,
                machine_type: "pc-q35-10.0".to_owned(),
                cpu_model: "qemu64".to_owned(),
            },
            owner: A,
            volume: None,
        };
        let limit = Millis::from_secs(60);
        world.ok(Command::BeginOp { op, request: Box::new(request), limit });
        let by = Speaker { node: A, epoch: 0 };
        world.ok(Command::FinishOp { op, outcome: Box::new(OpOutcome::Done), by });
        world
    }

    fn propose(&mut self, command: Command) -> Result<Applied, Refused> {
        self.propose_at(UnixMillis::new(7), command)
    }

    fn propose_at(&mut self, at: UnixMillis, command: Command) -> Result<Applied, Refused> {
        let proposal = Proposal { at, actor: Actor::new("test"), command };
        let before = self.0.clone();
        let result = self.0.apply(&proposal);
        if result.is_err() {
            assert_eq!(before, self.0, "a refused command changed the state");
        }
        self.0.check_invariants().unwrap();
        result
    }

    fn ok(&mut self, command: Command) -> Applied {
        self.propose(command).unwrap()
    }

    fn fence(&self, node: NodeId) -> &NodeFence {
        &self.0.nodes.get(&node).unwrap().fence
    }

    fn fenced(&mut self, epoch: u64, reign: u64, proof: FenceProof) -> Result<Applied, Refused> {
        self.propose(Command::NodeFenced { node: A, epoch, reign, proof })
    }

    fn take_over(&mut self) -> Result<Applied, Refused> {
        let generation = self.0.vm(VM).unwrap().generation;
        self.propose(Command::VmTakeOver { vm: VM, from: A, generation, to: B, start: true })
    }
}

#[test]
fn a_wish_or_a_failure_is_no_proof() {
    let mut world = World::new();
    world.take_over().unwrap_err();
    world.ok(Command::FenceBegin { node: A, reason: FenceReason::Manual });
    world.take_over().unwrap_err();
    let why = Some("it hangs".to_owned());
    world.ok(Command::FenceEnd { node: A, reign: 3, why });
    world.take_over().unwrap_err();
    assert_eq!(world.fence(A).failure.as_ref().unwrap().why, "it hangs");
    world.ok(Command::FenceBegin { node: A, reason: FenceReason::Manual });
    world.fenced(0, 3, FenceProof::Statement).unwrap();
    assert_eq!(*world.fence(A), NodeFence::default(), "done and over");
    assert!(world.0.nodes.get(&A).unwrap().fenced.is_some());
}

fn over(waited: u64) -> FenceProof {
    FenceProof::LeaseOver { waited: Millis::new(waited) }
}

/// What a leader of before has measured must not count after another one has begun to grant.
#[test]
fn a_proof_of_an_earlier_term_is_refused() {
    let mut world = World::new();
    world.ok(Command::LeaseReign { reign: 4, leader: A });
    for proof in [FenceProof::Statement, over(99_000), FenceProof::Left] {
        assert!(world.fenced(0, 3, proof).is_err());
    }
    assert!(world.propose(Command::NodeTerms { node: A, reign: 3, terms: Some(TERMS) }).is_err());
    assert!(world.propose(Command::LeaseReign { reign: 4, leader: B }).is_err());
    world.fenced(0, 4, FenceProof::Statement).unwrap();
    assert!(world.fenced(1, 4, FenceProof::Statement).is_err(), "once for each return");
}

#[test]
fn time_proves_something_only_for_leases_that_end_by_themselves() {
    let mut world = World::new();
    let error = world.fenced(0, 3, over(99_000)).unwrap_err().to_string();
    assert!(error.contains("proves nothing"), "{error}");
    world.ok(Command::NodeTerms { node: A, reign: 3, terms: Some(TERMS) });
    assert!(world.fenced(0, 3, over(15_000)).is_err(), "lease and watchdog are 15 s");
    world.ok(Command::NodeTerms { node: A, reign: 3, terms: None });
    assert!(world.fenced(0, 3, over(99_000)).is_err());
    world.ok(Command::NodeTerms { node: A, reign: 3, terms: Some(TERMS) });
    world.fenced(0, 3, over(26_150)).unwrap();
}

#[test]
fn proof_of_devices_says_which_and_what() {
    let mut world = World::new();
    let none = FenceProof::Devices { said: Vec::new() };
    assert!(world.fenced(0, 3, none).is_err());
    let said = |output: String| DeviceSaid {
        device: "bmc-a".parse().unwrap(),
        level: 1,
        output,
        at: UnixMillis::new(5),
    };
    let long = FenceProof::Devices { said: vec![said("x".repeat(5_000))] };
    assert!(world.fenced(0, 3, long).is_err());
    let events =
        world.fenced(0, 3, FenceProof::Devices { said: vec![said("Status: OFF".into())] }).unwrap();
    assert_eq!(events.events[0].text, "a is fenced: bmc-a switched it off");
}

#[test]
fn a_persons_word_replaces_a_wish_that_waits() {
    let mut world = World::new();
    let suspected = FenceReason::Suspected { what: "silent".to_owned() };
    world.ok(Command::FenceBegin { node: A, reason: suspected.clone() });
    assert!(world.propose(Command::FenceBegin { node: A, reason: suspected }).is_err());
    let word = FenceReason::ConfirmedOff;
    world.ok(Command::FenceBegin { node: A, reason: word.clone() });
    assert_eq!(world.fence(A).wish.as_ref().unwrap().reason, word);
    let gone = NodeId::new(Uuid::from_u128(77));
    assert!(world.propose(Command::FenceBegin { node: gone, reason: word }).is_err());
}

fn device(name: &str) -> FenceDevice {
    FenceDevice {
        id: FenceDeviceId::new(Uuid::from_u128(50)),
        name: name.parse().unwrap(),
        agent: "fence_ipmilan".to_owned(),
        options: BTreeMap::from([("ip".to_owned(), "10.0.0.9".to_owned())]),
        secrets: BTreeMap::from([("password".to_owned(), "hunter2".to_owned())]),
        nodes: BTreeMap::from([(A, None)]),
        level: 1,
        timeout_s: 20,
        created: UnixMillis::new(0),
    }
}

#[test]
fn a_fence_device_is_checked_and_keeps_its_secrets() {
    let mut world = World::new();
    let add = |device: FenceDevice| Command::FenceDeviceAdd { device: Box::new(device) };
    let wrong: [fn(&mut FenceDevice); 9] = [
        |device| device.agent = "../../bin/sh".to_owned(),
        |device| device.agent = "fence_/x".to_owned(),
        |device| device.level = 0,
        |device| device.timeout_s = 0,
        |device| device.nodes.clear(),
        |device| drop(device.options.insert("a\nb".to_owned(), String::new())),
        |device| drop(device.options.insert("a".to_owned(), "x\naction=on".to_owned())),
        |device| drop(device.options.insert("action".to_owned(), "on".to_owned())),
        |device| drop(device.nodes.insert(NodeId::new(Uuid::from_u128(66)), None)),
    ];
    for change in wrong {
        let mut device = device("bmc-a");
        change(&mut device);
        assert!(world.propose(add(device)).is_err());
    }
    let applied = world.ok(add(device("bmc-a")));
    assert!(world.propose(add(device("bmc-a"))).is_err());
    assert!(!format!("{applied:?} {:?}", world.0).contains("hunter2"));
    assert_eq!(world.0.find_fence_device("BMC-A").unwrap().level, 1);
    let id = FenceDeviceId::new(Uuid::from_u128(50));
    world.ok(Command::FenceDeviceRemove { device: id });
    assert!(world.propose(Command::FenceDeviceRemove { device: id }).is_err());
}

/// Records of before this field existed.
#[test]
fn an_older_state_has_nobody_fenced() {
    let text = serde_json::to_value(World::new().0).unwrap();
    let mut old = text.clone();
    old.as_object_mut().unwrap().remove("fence_devices");
    old.as_object_mut().unwrap().remove("lease_reign");
    for node in old["nodes"].as_object_mut().unwrap().values_mut() {
        node.as_object_mut().unwrap().remove("fence");
    }
    let state: ClusterState = serde_json::from_value(old).unwrap();
    assert_eq!(state.nodes.get(&A).unwrap().fence, NodeFence::default());
}

/// A node that is lost and back again and again is not trusted for a while, or until somebody says
/// that it was mended. Who leaves is not lost.
#[test]
fn a_node_that_is_lost_too_often_is_in_quarantine() {
    let mut world = World::new();
    let minute = |n: u64| UnixMillis::new(n * 60_000);
    let quarantine = |world: &World| world.0.nodes.get(&A).unwrap().quarantine;
    let mut epoch = 0;
    let mut lose = |world: &mut World, at: u64, proof: FenceProof| {
        let lost = Command::NodeFenced { node: A, epoch, reign: 3, proof };
        world.propose_at(minute(at), lost).unwrap();
        epoch += 1;
        world.propose_at(minute(at), Command::NodeBack { node: A, epoch }).unwrap();
    };
    for at in [0, 30, 61] {
        lose(&mut world, at, FenceProof::Statement);
    }
    lose(&mut world, 62, FenceProof::Left);
    assert_eq!(quarantine(&world), None, "twice within an hour");
    lose(&mut world, 89, FenceProof::Statement);
    assert_eq!(quarantine(&world), Some(minute(89 + 120)));
    let end = Command::NodeQuarantineEnd { node: A };
    world.propose_at(minute(89 + 119), end.clone()).unwrap_err();
    let trusted = world.propose_at(minute(89 + 120), end.clone()).unwrap();
    assert_eq!(trusted.events[0].kind, EventKind::NodeQuarantined);
    assert_eq!(quarantine(&world), None);
    world.propose_at(minute(89 + 121), end).unwrap_err();
    for at in [300, 301, 302] {
        lose(&mut world, at, FenceProof::Statement);
    }
    assert!(quarantine(&world).is_some());
    world.ok(Command::NodeSetMode { node: A, mode: NodeMode::Active, with_storage: false });
    assert_eq!(quarantine(&world), None);
    lose(&mut world, 303, FenceProof::Statement);
    assert_eq!(quarantine(&world), None, "it begins anew");
}
