//! What nodes can run, and that no guest ever gets to where its processors are not.

use std::sync::Arc;

use super::NODE;
use super::World;
use super::create_request;
use super::ha::OTHER;
use super::ha::THIRD;
use super::ha::cluster;
use super::ha::shared_vm;
use super::ha::take_over;
use super::vm_id;
use crate::Accelerator;
use crate::Bytes;
use crate::Command;
use crate::CpuCompat;
use crate::EventKind;
use crate::FenceProof;
use crate::GuestCpu;
use crate::MigratePolicy;
use crate::NodeId;
use crate::OpOutcome;
use crate::OpRequest;
use crate::Platform;
use crate::Power;
use crate::Refused;
use crate::SavedState;
use crate::Severity;
use crate::UnixMillis;
use crate::VmChange;
use crate::VmId;
use crate::VmSpec;

fn platform(base: &str, features: &[&str], machine: &str) -> Platform {
    Platform {
        engine: "QEMU 10.0.2".to_owned(),
        accelerator: Accelerator::Kvm,
        cpu_base: base.to_owned(),
        cpu_features: features.iter().map(|one| (*one).to_owned()).collect(),
        machine_virtio: format!("pc-q35-{machine}"),
        machine_legacy: format!("pc-i440fx-{machine}"),
    }
}

fn tell(world: &mut World, node: NodeId, features: &[&str]) -> crate::Applied {
    let platform = Some(Arc::new(platform("Nehalem-v1", features, "10.0")));
    world.propose(Command::NodePlatform { node, platform }).unwrap()
}

/// What a node of a random sequence says.
pub(super) fn told(node: NodeId, level: u8) -> Command {
    let features = [&[][..], &["aes"], &["aes", "avx"], &["aes", "avx", "avx2"]];
    let base = if level < 6 { "Nehalem-v1" } else { "Opteron_G3-v1" };
    let platform = platform(base, features[usize::from(level) % 4], "10.0");
    let platform = (level < 7).then(|| Arc::new(platform));
    Command::NodePlatform { node, platform }
}

fn started(features: &[&str]) -> GuestCpu {
    platform("Nehalem-v1", features, "10.0").all()
}

fn start(world: &mut World, vm: VmId) -> Option<GuestCpu> {
    world.run(OpRequest::VmStart { vm });
    world.state.vm(vm).unwrap().cpu.clone()
}

fn migrate(vm: VmId, to: NodeId) -> OpRequest {
    OpRequest::VmMigrate { vm, to, policy: MigratePolicy::default(), storage: None }
}

fn set_compat(world: &mut World, vm: VmId, compat: CpuCompat) {
    let change = VmChange { cpu_compat: Some(compat), ..VmChange::default() };
    world.run(OpRequest::VmSet { vm, change: Box::new(change), if_revision: None });
}

fn save(world: &mut World, vm: VmId) {
    let op = world.begin(OpRequest::VmSave { vm }).unwrap();
    let saved = SavedState {
        generation: world.state.vm(vm).unwrap().generation,
        size: Bytes::mib(1),
        at: UnixMillis::new(1),
        cpus: 1,
        boot_memory: Bytes::mib(128),
        memory: Bytes::mib(128),
    };
    world.finish(op, OpOutcome::Saved { saved }).unwrap();
}

fn fence(world: &mut World, node: NodeId) {
    let proof = FenceProof::Statement;
    world.propose(Command::NodeFenced { node, epoch: 0, reign: 0, proof }).unwrap();
}

#[test]
fn a_vm_gets_what_all_nodes_have_and_keeps_it_until_it_is_off() {
    let mut world = cluster();
    let vm = shared_vm(&mut world, 1, "a");
    assert_eq!(start(&mut world, vm), None, "no node has said what it can");
    world.run(OpRequest::VmOff { vm });
    tell(&mut world, NODE, &["aes", "avx", "avx2"]);
    tell(&mut world, OTHER, &["aes", "avx"]);
    tell(&mut world, THIRD, &["aes", "avx", "sha-ni"]);
    assert_eq!(start(&mut world, vm), Some(started(&["aes", "avx"])));
    world.begin(migrate(vm, OTHER)).unwrap();
    let busy = world.state.vm(vm).unwrap().busy().unwrap();
    world.finish(busy, super::failure()).unwrap();

    // Another node comes down, or an older one in its place: the guest keeps what it has found.
    tell(&mut world, OTHER, &["aes"]);
    assert_eq!(world.state.vm(vm).unwrap().cpu, Some(started(&["aes", "avx"])));
    let refused = world.begin(migrate(vm, OTHER)).unwrap_err();
    assert!(matches!(&refused, Refused::Processor { why, .. } if why.contains("avx")), "{refused}");
    let quick = Command::VmMove { vm, to: Some(OTHER), quick: true };
    assert!(matches!(world.propose(quick), Err(Refused::Processor { .. })));
    world.begin(migrate(vm, THIRD)).unwrap();
    let busy = world.state.vm(vm).unwrap().busy().unwrap();
    world.finish(busy, super::failure()).unwrap();
    save(&mut world, vm);
    let quick = Command::VmMove { vm, to: Some(OTHER), quick: true };
    assert!(matches!(world.propose(quick), Err(Refused::Processor { .. })));
    assert_eq!(start(&mut world, vm), Some(started(&["aes", "avx"])), "its memory has found it");

    // Off and on again, it has what all have now, and goes everywhere.
    world.run(OpRequest::VmOff { vm });
    let off = Command::VmMove { vm, to: Some(OTHER), quick: false };
    world.propose(off).unwrap();
    world.propose(Command::VmMove { vm, to: None, quick: false }).unwrap();
    assert_eq!(start(&mut world, vm), Some(started(&["aes"])));
    world.begin(migrate(vm, OTHER)).unwrap();
}

#[test]
fn a_takeover_starts_with_what_is_there_but_saved_memory_goes_only_where_it_fits() {
    let mut world = cluster();
    tell(&mut world, NODE, &["aes", "avx"]);
    tell(&mut world, OTHER, &["aes", "avx"]);
    let runs = shared_vm(&mut world, 1, "a");
    let saved = shared_vm(&mut world, 2, "b");
    assert_eq!(start(&mut world, runs), Some(started(&["aes", "avx"])));
    start(&mut world, saved);
    save(&mut world, saved);
    tell(&mut world, OTHER, &["aes"]);
    fence(&mut world, NODE);
    take_over(&mut world, runs, OTHER).unwrap();
    assert_eq!(world.state.vm(runs).unwrap().cpu, Some(started(&["aes"])));
    assert!(matches!(take_over(&mut world, saved, OTHER), Err(Refused::Processor { .. })));
}

#[test]
fn each_wish_for_processors_means_what_it_says() {
    let mut world = cluster();
    tell(&mut world, NODE, &["aes", "avx"]);
    tell(&mut world, OTHER, &["aes"]);
    let vm = shared_vm(&mut world, 1, "a");
    for (compat, features) in [
        (CpuCompat::Cluster, &["aes"][..]),
        (CpuCompat::Node, &["aes", "avx"]),
        (CpuCompat::Minimal, &[]),
    ] {
        set_compat(&mut world, vm, compat);
        assert_eq!(start(&mut world, vm), Some(started(features)));
        let goes = world.begin(migrate(vm, OTHER));
        assert_eq!(goes.is_ok(), compat != CpuCompat::Node, "{compat:?}");
        if let Ok(op) = goes {
            world.finish(op, super::failure()).unwrap();
        }
        // A change of the wish while it runs is of the next start.
        set_compat(&mut world, vm, CpuCompat::Minimal);
        assert_eq!(world.state.vm(vm).unwrap().cpu, Some(started(features)));
        world.run(OpRequest::VmOff { vm });
    }
}

#[test]
fn nodes_of_another_maker_have_a_baseline_of_their_own() {
    let mut world = cluster();
    tell(&mut world, NODE, &["aes", "avx"]);
    let amd = Some(Arc::new(platform("Opteron_G3-v1", &["aes"], "10.0")));
    let applied = world.propose(Command::NodePlatform { node: OTHER, platform: amd }).unwrap();
    let event = &applied.events[0];
    assert_eq!((event.kind, event.severity), (EventKind::NodePlatform, Severity::Warning));
    let vm = shared_vm(&mut world, 1, "a");
    assert_eq!(start(&mut world, vm), Some(started(&["aes", "avx"])), "it lowers nothing");
    let refused = world.begin(migrate(vm, OTHER)).unwrap_err();
    assert!(refused.to_string().contains("another maker"), "{refused}");
}

#[test]
fn a_node_that_lowers_the_baseline_is_told_with_how_many_it_keeps_away() {
    let mut world = cluster();
    tell(&mut world, NODE, &["aes", "avx"]);
    let vm = shared_vm(&mut world, 1, "a");
    start(&mut world, vm);
    let event = tell(&mut world, OTHER, &["aes", "sha-ni"]).events.remove(0);
    assert_eq!(event.severity, Severity::Warning);
    assert!(event.text.contains("without avx;"), "{}", event.text);
    assert!(event.text.contains("1 VM can go there only when"), "{}", event.text);
    let again = tell(&mut world, OTHER, &["aes", "sha-ni"]);
    assert!(again.events.is_empty(), "nothing has changed");
    let up = tell(&mut world, OTHER, &["aes", "avx"]).events.remove(0);
    assert_eq!(up.severity, Severity::Info);
}

#[test]
fn names_that_would_be_options_are_refused() {
    let mut world = cluster();
    for bad in ["aes,-smep", "a=b", "", &"x".repeat(65)] {
        let platform = Some(Arc::new(platform("Nehalem-v1", &[bad], "10.0")));
        assert!(world.propose(Command::NodePlatform { node: NODE, platform }).is_err(), "{bad:?}");
    }
    let platform = Some(Arc::new(platform("Nehalem-v1,-aes", &[], "10.0")));
    assert!(world.propose(Command::NodePlatform { node: NODE, platform }).is_err());
    assert_eq!(started(&["aes", "sse4.1"]).to_qemu(), "Nehalem-v1,+aes,+sse4.1,enforce");
}

#[test]
fn a_machine_type_is_raised_by_its_verb_alone_and_to_what_all_know() {
    let mut world = cluster();
    let mut request = create_request(1, "a", VmSpec::new(1, Bytes::mib(128)));
    if let OpRequest::VmCreate { pinned, .. } = &mut request {
        pinned.machine_type = "pc-q35-9.0".to_owned();
    }
    world.run(request);
    let (vm, upgrade) = (vm_id(1), Command::VmUpgrade { vm: vm_id(1) });
    assert!(world.propose(upgrade.clone()).is_err(), "nobody has said what it knows");
    for (node, machine) in [(NODE, "10.1"), (OTHER, "9.2")] {
        let platform = Some(Arc::new(platform("Nehalem-v1", &[], machine)));
        world.propose(Command::NodePlatform { node, platform }).unwrap();
    }
    let machine = |world: &World| world.state.vm(vm).unwrap().pinned.machine_type.clone();
    start(&mut world, vm);
    assert_eq!(machine(&world), "pc-q35-9.0", "no start raises it");
    assert!(matches!(world.propose(upgrade.clone()), Err(Refused::NeedsOff { .. })));
    world.run(OpRequest::VmOff { vm });
    world.propose(upgrade.clone()).unwrap();
    assert_eq!(machine(&world), "pc-q35-9.2");
    assert!(world.propose(upgrade).is_err(), "there is nothing newer that all know");
    assert_eq!(world.state.vm(vm).unwrap().power, Power::Off);
    let knows = |machine| platform("Nehalem-v1", &[], "9.2").knows(machine);
    assert!(knows("pc-q35-9.2") && knows("pc-i440fx-8.0"));
    assert!(!knows("pc-q35-10.0") && !knows("nonsense"));
}
