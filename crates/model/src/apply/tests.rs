//! The state machine under single cases and under random sequences of commands.

mod cluster_network;
mod forced;
mod ha;
mod history;
mod lun;
mod migrate;
mod platform;
mod storage;

use proptest::prelude::Strategy;
use proptest::prelude::prop_assert;
use proptest::prelude::prop_assert_eq;
use proptest::prelude::prop_oneof;
use proptest::prelude::proptest;
use uuid::Uuid;

use crate::Actor;
use crate::Bytes;
use crate::ClusterState;
use crate::Command;
use crate::DiskFormat;
use crate::DiskId;
use crate::DiskSource;
use crate::DiskSpec;
use crate::Exit;
use crate::ExitKind;
use crate::Generation;
use crate::ImageFormat;
use crate::ImageId;
use crate::ImagePlace;
use crate::ImageSource;
use crate::Millis;
use crate::NetworkId;
use crate::NetworkKind;
use crate::NicId;
use crate::NicSpec;
use crate::NodeCapacity;
use crate::NodeId;
use crate::OpFailure;
use crate::OpId;
use crate::OpOutcome;
use crate::OpRequest;
use crate::Pinned;
use crate::Power;
use crate::Proposal;
use crate::Refused;
use crate::SavedState;
use crate::Speaker;
use crate::UnixMillis;
use crate::VmChange;
use crate::VmId;
use crate::VmRecord;
use crate::VmSpec;

pub(super) struct World {
    pub(super) state: ClusterState,
    pub(super) now: u64,
    ids: u128,
}

pub(super) fn vm_id(n: u128) -> VmId {
    VmId::new(Uuid::from_u128(n))
}

pub(super) const NODE: NodeId = NodeId::new(Uuid::from_u128(1));

impl World {
    pub(super) fn new() -> Self {
        let mut world = Self { state: ClusterState::default(), now: 1_000, ids: 1_000 };
        let name = "h1".parse().unwrap();
        world
            .propose(Command::NodeStarted { node: NODE, name, capacity: NodeCapacity::default() })
            .unwrap();
        world
            .propose(Command::NetworkCreate {
                network: NetworkId::new(Uuid::from_u128(2)),
                name: "nat".parse().unwrap(),
                kind: NetworkKind::Nat { subnet: "10.77.0.0/29".parse().unwrap() },
            })
            .unwrap();
        world
    }

    pub(super) fn propose(&mut self, command: Command) -> Result<crate::Applied, Refused> {
        self.now += 1;
        let proposal =
            Proposal { at: UnixMillis::new(self.now), actor: Actor::new("test"), command };
        let before = self.state.clone();
        let result = self.state.apply(&proposal);
        if result.is_err() {
            assert_eq!(before, self.state, "a refused command changed the state");
        }
        self.state.check_invariants().unwrap();
        result
    }

    fn id(&mut self) -> Uuid {
        self.ids += 1;
        Uuid::from_u128(self.ids)
    }

    fn begin(&mut self, request: OpRequest) -> Result<OpId, Refused> {
        let op = OpId::new(self.id());
        let limit = Millis::from_secs(60);
        self.propose(Command::BeginOp { op, request: Box::new(request), limit }).map(|_| op)
    }

    fn finish(&mut self, op: OpId, outcome: OpOutcome) -> Result<crate::Applied, Refused> {
        self.finish_by(op, outcome, self.speaker(op))
    }

    fn finish_by(
        &mut self,
        op: OpId,
        outcome: OpOutcome,
        by: Speaker,
    ) -> Result<crate::Applied, Refused> {
        self.propose(Command::FinishOp { op, outcome: Box::new(outcome), by })
    }

    /// The node whose work an operation is, in its present epoch.
    fn speaker(&self, op: OpId) -> Speaker {
        let vm = self.state.op(op).ok().and_then(|op| op.request.vm());
        let node = vm.and_then(|vm| self.state.vm(vm).ok()).map_or(NODE, |vm| vm.owner);
        Speaker { node, epoch: self.state.node(node).unwrap().epoch }
    }

    pub(super) fn run(&mut self, request: OpRequest) -> OpId {
        let op = self.begin(request).unwrap();
        self.finish(op, OpOutcome::Done).unwrap();
        op
    }

    fn vm(&self, n: u128) -> VmRecord {
        VmRecord::clone(self.state.vm(vm_id(n)).unwrap())
    }

    pub(super) fn create(&mut self, n: u128, name: &str) -> VmId {
        let request = create_request(n, name, VmSpec::new(1, Bytes::mib(128)));
        self.run(request);
        vm_id(n)
    }

    fn power(&self, vm: VmId) -> Power {
        self.state.vm(vm).unwrap().power
    }
}

fn create_request(n: u128, name: &str, spec: VmSpec) -> OpRequest {
    OpRequest::VmCreate {
        vm: vm_id(n),
        name: name.parse().unwrap(),
        spec: Box::new(spec),
        pinned: Pinned {
            config_version: 1,
            machine_type: "pc-q35-10.0".to_owned(),
            cpu_model: "qemu64".to_owned(),
        },
        owner: NODE,
        volume: None,
    }
}

fn failure() -> OpOutcome {
    let failure = OpFailure { code: "x".into(), message: "x".into(), hint: "x".into() };
    OpOutcome::Failed { failure, power: None }
}

fn crash(world: &mut World, vm: VmId) -> Result<crate::Applied, Refused> {
    let generation = world.state.vm(vm).unwrap().generation;
    let at = UnixMillis::new(world.now);
    let exit = Exit { kind: ExitKind::Crashed, detail: "killed".into(), at };
    world.propose(Command::VmExited { vm, generation, exit })
}

#[test]
fn a_start_raises_the_generation_once() {
    let mut world = World::new();
    let vm = world.create(1, "a");
    assert_eq!(world.state.vm(vm).unwrap().generation, Generation::new(0));
    world.run(OpRequest::VmStart { vm });
    assert_eq!(world.state.vm(vm).unwrap().generation, Generation::new(1));
    assert_eq!(world.power(vm), Power::Running);
    assert!(matches!(world.begin(OpRequest::VmStart { vm }), Err(Refused::WrongPower { .. })));
    assert_eq!(world.state.vm(vm).unwrap().generation, Generation::new(1));
}

#[test]
fn two_clients_cannot_change_one_vm_at_once() {
    let mut world = World::new();
    let vm = world.create(1, "a");
    let first = world.begin(OpRequest::VmStart { vm }).unwrap();
    let change = VmChange { cpus: Some(2), ..VmChange::default() };
    let second = world.begin(OpRequest::VmSet { vm, change: Box::new(change), if_revision: None });
    assert!(matches!(second, Err(Refused::Busy { op, .. }) if op == first));
}

#[test]
fn a_change_made_for_an_older_revision_is_refused() {
    let mut world = World::new();
    let vm = world.create(1, "a");
    let revision = world.state.vm(vm).unwrap().revision;
    let change = Box::new(VmChange { cpus: Some(2), ..VmChange::default() });
    let request = OpRequest::VmSet { vm, change, if_revision: Some(revision) };
    world.run(request.clone());
    assert!(matches!(world.begin(request), Err(Refused::Stale { .. })));
}

#[test]
fn turning_off_ends_a_start_that_hangs() {
    let mut world = World::new();
    let vm = world.create(1, "a");
    let start = world.begin(OpRequest::VmStart { vm }).unwrap();
    let off = world.begin(OpRequest::VmOff { vm }).unwrap();
    assert!(world.state.op(start).unwrap().cancel_requested());
    assert!(world.finish(off, OpOutcome::Done).is_err(), "it must wait for the start to end");
    world.finish(start, OpOutcome::Cancelled { power: None }).unwrap();
    world.finish(off, OpOutcome::Done).unwrap();
    assert_eq!(world.power(vm), Power::Off);
}

#[test]
fn a_vm_that_keeps_crashing_is_left_off() {
    let mut world = World::new();
    let vm = world.create(1, "a");
    world.run(OpRequest::VmStart { vm });
    for expected in 2..=4 {
        crash(&mut world, vm).unwrap();
        assert_eq!(world.state.vm(vm).unwrap().generation, Generation::new(expected));
        assert_eq!(world.power(vm), Power::Running);
    }
    crash(&mut world, vm).unwrap();
    assert_eq!(world.power(vm), Power::Off);
}

#[test]
fn a_report_on_an_earlier_run_changes_nothing() {
    let mut world = World::new();
    let vm = world.create(1, "a");
    world.run(OpRequest::VmStart { vm });
    let exit =
        Exit { kind: ExitKind::Crashed, detail: String::new(), at: UnixMillis::new(world.now) };
    let late = Command::VmExited { vm, generation: Generation::new(0), exit };
    assert!(world.propose(late).is_err());
    assert_eq!(world.power(vm), Power::Running);
}

#[test]
fn a_failed_creation_leaves_nothing() {
    let mut world = World::new();
    let request = create_request(1, "a", VmSpec::new(1, Bytes::mib(128)));
    let op = world.begin(request.clone()).unwrap();
    let again = create_request(2, "A", VmSpec::new(1, Bytes::mib(128)));
    assert!(matches!(world.begin(again), Err(Refused::NameTaken { .. })));
    world.finish(op, failure()).unwrap();
    assert!(world.state.vms.is_empty());
    world.run(request);
    assert!(world.state.find_vm("A").is_ok());
}

#[test]
fn the_recycle_bin_frees_the_name_and_gives_the_vm_back() {
    let mut world = World::new();
    let vm = world.create(1, "a");
    world.run(OpRequest::VmDelete { vm });
    assert!(world.state.find_vm("a").is_err());
    assert!(matches!(world.begin(OpRequest::VmStart { vm }), Err(Refused::Deleted(_))));
    world.create(2, "a");
    let back = Command::VmUndelete { vm, name: None };
    assert!(matches!(world.propose(back), Err(Refused::NameTaken { .. })));
    let back = Command::VmUndelete { vm, name: Some("b".parse().unwrap()) };
    world.propose(back).unwrap();
    world.run(OpRequest::VmStart { vm });
    assert_eq!(world.power(vm), Power::Running);
}

fn registration(record: &VmRecord, name: &str) -> Command {
    let record = VmRecord { name: name.parse().unwrap(), ..record.clone() };
    Command::VmRegister { record: Box::new(record), images: Vec::new() }
}

#[test]
fn a_vm_that_was_lost_is_registered_again_and_only_once() {
    let mut old = World::new();
    let mut spec = VmSpec::new(1, Bytes::mib(128));
    spec.nics.push(nic(7));
    old.run(create_request(1, "a", spec));
    old.run(OpRequest::VmStart { vm: vm_id(1) });
    let lost = VmRecord { generation: Generation::new(9), ..old.vm(1) };

    // A state that knows nothing, and where another VM has the name, the slot and the address.
    let mut world = World::new();
    let mut spec = VmSpec::new(1, Bytes::mib(128));
    spec.nics.push(nic(8));
    world.run(create_request(2, "a", spec));
    let taken = world.vm(2);
    assert_eq!((taken.slot, taken.spec.nics[0].address), (lost.slot, lost.spec.nics[0].address));
    let again = world.propose(registration(&lost, "a"));
    assert!(matches!(again, Err(Refused::NameTaken { .. })), "{again:?}");
    world.propose(registration(&lost, "b")).unwrap();
    let back = world.vm(1);
    assert_eq!((back.power, back.generation), (Power::Off, Generation::new(9)));
    assert!(back.slot != taken.slot && back.spec.nics[0].address != taken.spec.nics[0].address);
    let again = world.propose(registration(&lost, "c"));
    assert!(matches!(again, Err(Refused::IdTaken(_))), "{again:?}");
    world.run(OpRequest::VmStart { vm: vm_id(1) });
    assert_eq!(world.vm(1).generation, Generation::new(10));
}

#[test]
fn a_registration_needs_what_the_vm_needs_and_brings_lost_images_along() {
    let mut world = World::new();
    let mut lost = World::new();
    let vm = lost.create(1, "a");
    let mut record = lost.vm(1);
    let image = ImageId::new(Uuid::from_u128(50));
    record.spec.disks.push(DiskSpec {
        id: DiskId::new(Uuid::from_u128(51)),
        name: "root".parse().unwrap(),
        size: Bytes::gib(1),
        source: DiskSource::Image { image },
        format: DiskFormat::Qcow2,
        read_only: false,
    });
    assert!(world.propose(registration(&record, "a")).is_err(), "its image is not there");
    let ready = |size| crate::ImageState::Ready {
        virtual_size: size,
        file_size: size,
        sha256: "0".repeat(64),
    };
    let image = |state| crate::ImageRecord {
        id: image,
        name: "recovered-1".parse().unwrap(),
        source: ImageSource::File { path: "/x".to_owned() },
        format: ImageFormat::Qcow2,
        state,
        place: crate::ImagePlace::Node { node: NODE },
        created: UnixMillis::new(1),
    };
    let mut with = |image: crate::ImageRecord| {
        let record = Box::new(record.clone());
        world.propose(Command::VmRegister { record, images: vec![image] })
    };
    let op = OpId::new(Uuid::from_u128(9));
    assert!(with(image(crate::ImageState::Importing { op })).is_err());
    assert!(with(image(ready(Bytes::gib(2)))).is_err(), "the disk is smaller than its image");
    with(image(ready(Bytes::gib(1)))).unwrap();
    assert_eq!(world.state.images.len(), 1);
    world.run(OpRequest::VmStart { vm });
    // A network that is gone is made first.
    let mut record = lost.vm(1);
    record.id = vm_id(3);
    record.spec.nics.push(NicSpec { network: "lab".parse().unwrap(), ..nic(3) });
    let refused = world.propose(registration(&record, "n"));
    assert!(matches!(refused, Err(Refused::NotFound { what: "network", .. })), "{refused:?}");
}

#[test]
fn addresses_are_given_once_and_run_out() {
    let mut world = World::new();
    for n in 1..=6 {
        let mut spec = VmSpec::new(1, Bytes::mib(128));
        spec.nics.push(nic(n));
        let begun = world.begin(create_request(n, &format!("vm{n}"), spec));
        // 10.77.0.0/29 has five addresses for guests.
        match n {
            1..=5 => world.finish(begun.unwrap(), OpOutcome::Done).map(drop).unwrap(),
            _ => assert!(matches!(begun, Err(Refused::Address { .. }))),
        }
    }
}

fn nic(n: u128) -> NicSpec {
    NicSpec {
        id: NicId::new(Uuid::from_u128(n)),
        name: "net0".parse().unwrap(),
        mac: crate::MacAddr::from_bytes([0x52, 0x54, 0, 0, 0, n as u8]),
        network: "nat".parse().unwrap(),
        address: None,
        link_up: true,
    }
}

#[test]
fn an_image_in_use_stays() {
    let mut world = World::new();
    let image = ImageId::new(Uuid::from_u128(7));
    let op = world
        .begin(OpRequest::ImageImport {
            image,
            name: "debian".parse().unwrap(),
            source: ImageSource::File { path: "/x".into() },
            format: ImageFormat::Raw,
            sha256: None,
            place: ImagePlace::Node { node: NODE },
        })
        .unwrap();
    let mut spec = VmSpec::new(1, Bytes::mib(128));
    spec.disks.push(disk(image));
    let early = world.begin(create_request(1, "a", spec.clone()));
    assert!(matches!(early, Err(Refused::ImageNotReady(_))));
    let (size, sha256) = (Bytes::gib(1), "0".repeat(64));
    world.finish(op, OpOutcome::Imported { virtual_size: size, file_size: size, sha256 }).unwrap();
    world.run(create_request(1, "a", spec));
    assert!(matches!(world.begin(OpRequest::ImageDelete { image }), Err(Refused::InUse { .. })));
    let vm = vm_id(1);
    world.run(OpRequest::VmDelete { vm });
    assert!(world.begin(OpRequest::ImageDelete { image }).is_err(), "the bin counts as use");
    world.run(OpRequest::VmPurge { vm });
    world.run(OpRequest::ImageDelete { image });
    assert!(world.state.images.is_empty());
}

/// An image on the first node's own disks.
fn import(world: &mut World, image: ImageId) {
    let request = OpRequest::ImageImport {
        image,
        name: "debian".parse().unwrap(),
        source: ImageSource::File { path: "/x".into() },
        format: ImageFormat::Raw,
        sha256: None,
        place: ImagePlace::Node { node: NODE },
    };
    let op = world.begin(request).unwrap();
    let (size, sha256) = (Bytes::gib(1), "0".repeat(64));
    world.finish(op, OpOutcome::Imported { virtual_size: size, file_size: size, sha256 }).unwrap();
}

fn disk(image: ImageId) -> DiskSpec {
    DiskSpec {
        id: DiskId::new(Uuid::from_u128(70)),
        name: "disk0".parse().unwrap(),
        size: Bytes::gib(1),
        source: DiskSource::Image { image },
        format: DiskFormat::Qcow2,
        read_only: false,
    }
}

#[test]
fn the_state_survives_its_stored_form() {
    let mut world = World::new();
    let vm = world.create(1, "a");
    world.run(OpRequest::VmStart { vm });
    let text = serde_json::to_string(&world.state).unwrap();
    assert_eq!(serde_json::from_str::<ClusterState>(&text).unwrap(), world.state);
}

/// What a random client or executor does next.
#[derive(Debug, Clone)]
enum Step {
    Create(u8),
    Verb(u8, u8),
    Finish(u8, u8),
    Crash(u8),
    Cancel(u8),
    Undelete(u8),
    Fence(u8),
    Back(u8),
    TakeOver(u8, u8, u8),
    Move(u8, u8),
    Rehome(u8, u8),
    Mode(u8, u8),
    Cluster(u8, u8),
    Migrate(u8, u8),
    MigrateWith(u8, u8, u8),
    HandOver(u8),
    Platform(u8, u8),
    MoveStorage(u8, u8),
    StorageMoved(u8),
    CopyGone(u8, u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let one = prop_oneof![
        (0..6_u8).prop_map(Step::Create),
        (0..6_u8, 0..12_u8).prop_map(|(vm, verb)| Step::Verb(vm, verb)),
        (0..6_u8, 0..12_u8).prop_map(|(vm, verb)| Step::Verb(vm, verb)),
        (0..6_u8, 0..4_u8).prop_map(|(vm, how)| Step::Finish(vm, how)),
        (0..6_u8, 0..4_u8).prop_map(|(vm, how)| Step::Finish(vm, how)),
        (0..6_u8).prop_map(Step::Crash),
        (0..6_u8).prop_map(Step::Cancel),
        (0..6_u8).prop_map(Step::Undelete),
        (0..3_u8).prop_map(Step::Fence),
        (0..3_u8).prop_map(Step::Back),
        (0..6_u8, 0..3_u8, 0..3_u8).prop_map(|(vm, from, to)| Step::TakeOver(vm, from, to)),
        (0..6_u8, 0..4_u8).prop_map(|(vm, to)| Step::Move(vm, to)),
        (0..6_u8, 0..3_u8).prop_map(|(vm, to)| Step::Rehome(vm, to)),
        (0..3_u8, 0..3_u8).prop_map(|(node, mode)| Step::Mode(node, mode)),
        (0..6_u8, 0..15_u8).prop_map(|(node, what)| Step::Cluster(node, what)),
        (0..6_u8, 0..15_u8).prop_map(|(node, what)| Step::Cluster(node, what)),
        (0..6_u8, 0..3_u8).prop_map(|(vm, to)| Step::Migrate(vm, to)),
        (0..6_u8, 0..3_u8, 0..4_u8).prop_map(|(vm, to, at)| Step::MigrateWith(vm, to, at)),
        (0..6_u8).prop_map(Step::HandOver),
        (0..6_u8).prop_map(Step::HandOver),
        (0..3_u8, 0..8_u8).prop_map(|(node, level)| Step::Platform(node, level)),
        (0..6_u8, 0..4_u8).prop_map(|(vm, to)| Step::MoveStorage(vm, to)),
        (0..6_u8, 0..4_u8).prop_map(|(vm, to)| Step::MoveStorage(vm, to)),
        (0..6_u8).prop_map(Step::StorageMoved),
        (0..6_u8).prop_map(Step::StorageMoved),
        (0..6_u8, 0..4_u8).prop_map(|(vm, at)| Step::CopyGone(vm, at)),
    ];
    proptest::collection::vec(one, 1..120)
}

fn verb(n: u8, vm: VmId) -> OpRequest {
    match n {
        0 => OpRequest::VmStart { vm },
        1 => OpRequest::VmShutdown { vm, patience: Millis::from_secs(1), then_off: true },
        2 => OpRequest::VmOff { vm },
        3 => OpRequest::VmPause { vm },
        4 => OpRequest::VmResume { vm },
        5 => OpRequest::VmSave { vm },
        6 => OpRequest::VmReset { vm },
        7 => OpRequest::VmDelete { vm },
        8 => OpRequest::VmPurge { vm },
        9 => OpRequest::NicAdd { vm, nic: nic(u128::from(vm.uuid().as_u128() as u8) + 50) },
        10 => {
            let change = VmChange { name: Some("vm0".parse().unwrap()), ..VmChange::default() };
            OpRequest::VmSet { vm, change: Box::new(change), if_revision: None }
        }
        _ => {
            let change = VmChange { cpus: Some(3), ..VmChange::default() };
            OpRequest::VmSet { vm, change: Box::new(change), if_revision: None }
        }
    }
}

fn outcome(world: &World, vm: VmId, how: u8) -> Option<(OpId, OpOutcome)> {
    let record = world.state.vm(vm).ok()?;
    let op = record.busy()?;
    let request = &world.state.op(op).ok()?.request;
    let done = match request {
        OpRequest::VmSave { .. } => OpOutcome::Saved {
            saved: SavedState {
                generation: record.generation,
                size: Bytes::mib(1),
                at: UnixMillis::new(world.now),
                cpus: 1,
                boot_memory: Bytes::mib(128),
                memory: Bytes::mib(128),
            },
        },
        OpRequest::VmMigrate { .. } => {
            OpOutcome::Migrated { measured: crate::MigrateResult::default() }
        }
        _ => OpOutcome::Done,
    };
    Some((
        op,
        match how {
            0 => failure(),
            1 => OpOutcome::Cancelled { power: None },
            _ => done,
        },
    ))
}

proptest! {
    /// Whatever clients and executors do, in whatever order: no panic, a refusal changes nothing,
    /// the invariants hold (both checked in `propose`), generations never go back, and the same
    /// commands give the same state.
    #[test]
    fn random_sequences_keep_the_invariants(steps in steps()) {
        let mut world = storage::cluster();
        let mut twin = storage::cluster();
        for step in steps {
            let before: Vec<_> = world.state.vms.values().cloned().collect();
            let fenced: Vec<_> = world
                .state
                .nodes
                .values()
                .filter(|node| node.fenced.is_some())
                .map(|node| node.id)
                .collect();
            for world in [&mut world, &mut twin] {
                perform(world, &step);
            }
            for old in before {
                let Ok(vm) = world.state.vm(old.id) else { continue };
                prop_assert!(vm.generation >= old.generation);
                // The place that was left is known until somebody has removed what lies there, and
                // only its own move changes a place.
                if vm.place() != old.place() && vm.volume != old.volume {
                    prop_assert!(vm.copies.contains(&old.place()));
                    if vm.owner == old.owner {
                        prop_assert!(matches!(step, Step::StorageMoved(_)), "{:?}", step);
                        prop_assert_eq!(vm.generation, old.generation);
                    } else {
                        // Or it goes to another node together with its files.
                        prop_assert!(matches!(step, Step::HandOver(_)), "{:?}", step);
                        prop_assert!(vm.arrived_by().is_some() && vm.arrived_by() == old.busy());
                    }
                }
                // Who has a process keeps the VM, unless it is proved that it writes no more; and
                // then the right to run is a new one.
                let may_run = matches!(old.power, Power::Running | Power::Paused)
                    || old.ops.iter().any(|op| {
                        world.state.op(*op).is_ok_and(|op| op.is_running())
                    });
                if vm.owner != old.owner && may_run {
                    // Or it gives the VM away itself, once its guest stands for good.
                    let handed = vm.arrived_by().is_some_and(|op| old.busy() == Some(op));
                    prop_assert!(fenced.contains(&old.owner) || handed);
                    prop_assert!(vm.generation > old.generation);
                }
                // Who has found out what its processors can do keeps them: another run from the disks
                // is the only thing that may change them.
                if vm.cpu != old.cpu {
                    let restarts = vm.generation > old.generation && vm.arrived_by().is_none();
                    prop_assert!(restarts && old.power != Power::Saved);
                }
            }
            prop_assert_eq!(&world.state, &twin.state);
        }
    }
}

fn perform(world: &mut World, step: &Step) {
    let vm = |n: u8| vm_id(u128::from(n) + 10);
    // Refusals are part of the game; `propose` checks that they change nothing.
    let _ = match *step {
        Step::Create(n) => {
            let name = format!("vm{n}");
            let id = u128::from(n) + 10;
            let mut request = create_request(id, &name, VmSpec::new(1, Bytes::mib(128)));
            if let OpRequest::VmCreate { volume, .. } = &mut request {
                *volume = (n % 2 == 0).then_some(ha::VOLUME);
            }
            world.begin(request).map(drop)
        }
        Step::Migrate(n, to) => {
            let policy = crate::MigratePolicy::default();
            let to = [NODE, ha::OTHER, ha::THIRD][usize::from(to)];
            world.begin(OpRequest::VmMigrate { vm: vm(n), to, policy, storage: None }).map(drop)
        }
        Step::MigrateWith(n, to, at) => {
            let to = [NODE, ha::OTHER, ha::THIRD][usize::from(to)];
            world.begin(storage::with_migration(vm(n), to, storage::place(at))).map(drop)
        }
        Step::HandOver(n) => {
            let busy = world.state.vm(vm(n)).ok().and_then(|vm| vm.busy());
            match busy.filter(|op| world.state.op(*op).is_ok()) {
                Some(op) => world.propose(migrate::handover(world, op)).map(drop),
                None => Ok(()),
            }
        }
        Step::MoveStorage(n, to) => {
            world.begin(OpRequest::VmMoveStorage { vm: vm(n), to: storage::place(to) }).map(drop)
        }
        Step::StorageMoved(n) => {
            let busy = world.state.vm(vm(n)).ok().and_then(|vm| vm.busy());
            match busy.filter(|op| world.state.op(*op).is_ok()) {
                Some(op) => world.propose(storage::moved(world, op)).map(drop),
                None => Ok(()),
            }
        }
        Step::CopyGone(n, at) => {
            world.propose(Command::VmCopyGone { vm: vm(n), place: storage::place(at) }).map(drop)
        }
        Step::Verb(n, v) => world.begin(verb(v, vm(n))).map(drop),
        Step::Finish(n, how) => match outcome(world, vm(n), how) {
            Some((op, outcome)) => world.finish(op, outcome).map(drop),
            None => Ok(()),
        },
        Step::Crash(n) if world.state.vm(vm(n)).is_ok() => crash(world, vm(n)).map(drop),
        Step::Crash(_) => Ok(()),
        Step::Cancel(n) => match world.state.vm(vm(n)).ok().and_then(|vm| vm.busy()) {
            Some(op) => world.propose(Command::CancelOp { op }).map(drop),
            None => Ok(()),
        },
        Step::Undelete(n) => world.propose(Command::VmUndelete { vm: vm(n), name: None }).map(drop),
        Step::Platform(node, level) => {
            let node = [NODE, ha::OTHER, ha::THIRD][usize::from(node)];
            world.propose(platform::told(node, level)).map(drop)
        }
        Step::Cluster(node, what) => {
            world.propose(super::cluster_test::command(node, what)).map(drop)
        }
        _ => world.propose(ha::command(world, step)).map(drop),
    };
}
