//! The ordinary path of every verb.

use model::Bytes;
use model::ExitKind;
use model::Millis;
use model::NicChange;
use model::OpRequest;
use model::Power;
use model::VmChange;

use super::VM;
use super::World;
use super::create;
use super::disk;
use super::lock;
use super::nic;
use super::shutdown;
use super::spec;

#[tokio::test(start_paused = true)]
async fn create_makes_the_disks_and_a_copy_of_the_record() {
    let world = World::with_vm().await;
    world.check(Power::Off).await;
    let copy = std::fs::read_to_string(world.files().dir().join("vm.json")).unwrap();
    let copy: model::VmRecord = serde_json::from_str(&copy).unwrap();
    assert_eq!(copy.spec, world.vm().spec);
    let size = std::fs::metadata(world.files().disk(&disk(1))).unwrap().len();
    assert_eq!(Bytes::new(size), Bytes::mib(1));
}

#[tokio::test(start_paused = true)]
async fn start_pause_resume_reset_off() {
    let mut world = World::with_vm().await;
    world.run(OpRequest::VmStart { vm: VM }).await;
    world.check(Power::Running).await;
    world.run(OpRequest::VmPause { vm: VM }).await;
    world.check(Power::Paused).await;
    world.run(OpRequest::VmResume { vm: VM }).await;
    world.check(Power::Running).await;
    world.run(OpRequest::VmReset { vm: VM }).await;
    world.check(Power::Running).await;
    world.run(OpRequest::VmOff { vm: VM }).await;
    world.check(Power::Off).await;
    assert_eq!(world.vm().last_exit.as_ref().unwrap().kind, ExitKind::Requested);
    assert_eq!(lock(&world.seen.launches).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn shutdown_asks_the_guest() {
    let mut world = World::with_running().await;
    world.run(shutdown(Millis::from_secs(10), false)).await;
    world.check(Power::Off).await;
    assert_eq!(world.vm().last_exit.as_ref().unwrap().kind, ExitKind::Requested);
}

#[tokio::test(start_paused = true)]
async fn save_frees_the_host_and_resume_goes_on() {
    let mut world = World::with_saved().await;
    world.check(Power::Saved).await;
    let saved = world.vm().saved.unwrap();
    assert_eq!(saved.generation, world.vm().generation);
    world.run(OpRequest::VmResume { vm: VM }).await;
    world.check(Power::Running).await;
    assert_eq!(world.vm().generation, saved.generation.next());
    world.run(OpRequest::VmPause { vm: VM }).await;
    world.run(OpRequest::VmSave { vm: VM }).await;
    world.check(Power::Saved).await;
}

#[tokio::test(start_paused = true)]
async fn hardware_changes_while_it_runs_and_stays_after_save_and_start() {
    let mut world = World::with_running().await;
    world.run(OpRequest::DiskAdd { vm: VM, disk: disk(2) }).await;
    world.run(OpRequest::NicAdd { vm: VM, nic: nic(2) }).await;
    world.run(OpRequest::DiskResize { vm: VM, disk: disk(2).id, size: Bytes::mib(2) }).await;
    let change = VmChange {
        cpus: Some(2),
        cpu_weight: Some(400),
        cpu_cap_percent: Some(150),
        memory: Some(Bytes::mib(192)),
        balloon: Some(Bytes::mib(160)),
        ..VmChange::default()
    };
    let request = OpRequest::VmSet { vm: VM, change: Box::new(change), if_revision: None };
    world.run(request).await;
    world.check(Power::Running).await;
    world.run(OpRequest::VmSave { vm: VM }).await;
    world.run(OpRequest::VmStart { vm: VM }).await;
    world.check(Power::Running).await;
    world.run(OpRequest::VmOff { vm: VM }).await;
    world.run(OpRequest::VmStart { vm: VM }).await;
    world.check(Power::Running).await;
    world.run(OpRequest::DiskRemove { vm: VM, disk: disk(1).id }).await;
    world.run(OpRequest::NicRemove { vm: VM, nic: nic(1).id }).await;
    world.check(Power::Running).await;
    assert_eq!(world.vm().spec.disks[0].size, Bytes::mib(2));
}

#[tokio::test(start_paused = true)]
async fn hardware_changes_while_it_is_off() {
    let mut world = World::with_vm().await;
    world.run(OpRequest::DiskAdd { vm: VM, disk: disk(2) }).await;
    world.run(OpRequest::DiskResize { vm: VM, disk: disk(1).id, size: Bytes::mib(3) }).await;
    world.run(OpRequest::NicAdd { vm: VM, nic: nic(2) }).await;
    world.run(OpRequest::NicRemove { vm: VM, nic: nic(1).id }).await;
    world.check(Power::Off).await;
    let size = std::fs::metadata(world.files().disk(&disk(1))).unwrap().len();
    assert_eq!(Bytes::new(size), Bytes::mib(3));
    world.run(OpRequest::DiskRemove { vm: VM, disk: disk(1).id }).await;
    world.run(OpRequest::VmStart { vm: VM }).await;
    world.check(Power::Running).await;
}

#[tokio::test(start_paused = true)]
async fn an_adapter_that_moves_gets_its_cable_back() {
    let mut world = World::with_running().await;
    let other = model::Command::NetworkCreate {
        network: model::NetworkId::new(uuid::Uuid::from_u128(3)),
        name: super::name("lab"),
        kind: model::NetworkKind::Nat { subnet: "10.78.0.0/24".parse().unwrap() },
    };
    world.truth.propose(other).unwrap();
    let change = NicChange { network: Some(super::name("lab")), ..NicChange::default() };
    let request = OpRequest::NicSet { vm: VM, nic: nic(1).id, change };
    // Once as it goes, and once with a daemon that dies before it has put the cable back.
    world.run(request).await;
    world.check(Power::Running).await;
    assert!(lock(&world.seen.links)[&nic(1).id]);
    assert_eq!(world.seen.refreshed.load(std::sync::atomic::Ordering::Relaxed), 1);
    let change = NicChange { network: Some(super::name("nat")), ..NicChange::default() };
    let request = OpRequest::NicSet { vm: VM, nic: nic(1).id, change };
    for stop_at in 0.. {
        world.kill().await;
        let back = world.vm().spec.nics[0].network != super::name("nat");
        let request = if back { request.clone() } else { forth() };
        let op = world.begin(request);
        let gate = super::probe::Gate::at(stop_at);
        world.spawn(gate.clone());
        let finished = tokio::select! {
            _ = gate.stopped() => false,
            () = tokio::time::sleep(std::time::Duration::from_secs(10)) => true,
        };
        world.restart().await;
        world.done(op).await;
        world.check(Power::Running).await;
        assert!(lock(&world.seen.links)[&nic(1).id], "pass {stop_at}");
        if finished {
            break;
        }
    }
}

fn forth() -> OpRequest {
    let change = NicChange { network: Some(super::name("lab")), ..NicChange::default() };
    OpRequest::NicSet { vm: VM, nic: nic(1).id, change }
}

#[tokio::test(start_paused = true)]
async fn delete_undelete_purge() {
    let mut world = World::with_vm().await;
    world.run(OpRequest::VmDelete { vm: VM }).await;
    assert!(world.files().disk(&disk(1)).exists(), "the recycle bin keeps disks");
    world.truth.propose(model::Command::VmUndelete { vm: VM, name: None }).unwrap();
    world.quiet().await;
    world.run(OpRequest::VmStart { vm: VM }).await;
    world.check(Power::Running).await;
    world.run(OpRequest::VmOff { vm: VM }).await;
    world.run(OpRequest::VmDelete { vm: VM }).await;
    world.run(OpRequest::VmPurge { vm: VM }).await;
    world.check_gone();
    assert!(world.daemon.as_ref().unwrap().handle.task.is_finished(), "the driver has ended");
}

#[tokio::test(start_paused = true)]
async fn a_saved_one_that_is_turned_off_loses_its_memory_and_starts_afresh() {
    let mut world = World::with_saved().await;
    world.run(OpRequest::VmOff { vm: VM }).await;
    world.check(Power::Off).await;
    world.run(OpRequest::VmStart { vm: VM }).await;
    world.check(Power::Running).await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_without_disks_or_adapters_lives_too() {
    let mut spec = spec();
    spec.disks.clear();
    spec.nics.clear();
    let mut world = World::new();
    let op = world.begin(create(spec));
    world.spawn(super::Gate::open());
    world.done(op).await;
    world.run(OpRequest::VmStart { vm: VM }).await;
    world.check(Power::Running).await;
}
