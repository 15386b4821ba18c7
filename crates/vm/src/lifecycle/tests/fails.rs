//! What fails, and where that leaves the VM.

use std::time::Duration;

use model::Bytes;
use model::ExitKind;
use model::Millis;
use model::OpRequest;
use model::OpState;
use model::Power;
use model::Severity;
use model::VmChange;

use super::VM;
use super::World;
use super::create;
use super::disk;
use super::lock;
use super::nic;
use super::probe::Gate;
use super::shutdown;
use super::spec;
use super::stays_off;
use crate::engine::fake::Fault;

#[tokio::test(start_paused = true)]
async fn a_launch_that_fails_leaves_it_off() {
    let mut world = World::with_vm().await;
    world.fake.inject(None, Fault::LaunchFails("no".to_owned()));
    let op = world.begin(OpRequest::VmStart { vm: VM });
    assert_eq!(world.failed(op).await, "launch");
    world.check(Power::Off).await;
    world.fake.heal();
    world.run(OpRequest::VmStart { vm: VM }).await;
    world.check(Power::Running).await;
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_cannot_be_made_leaves_no_vm() {
    let mut world = World::new();
    std::fs::create_dir_all(world.files().dir()).unwrap();
    std::fs::write(world.files().dir().join("disks"), "in the way").unwrap();
    let op = world.begin(create(spec()));
    world.spawn(Gate::open());
    world.failed(op).await;
    world.check_gone();
}

#[tokio::test(start_paused = true)]
async fn a_restore_that_fails_keeps_the_memory() {
    let mut world = World::with_saved().await;
    world.fake.inject(None, Fault::LaunchFails("no".to_owned()));
    let op = world.begin(OpRequest::VmStart { vm: VM });
    world.failed(op).await;
    world.check(Power::Saved).await;
    world.fake.heal();
    let path = world.files().memory(world.vm().saved.unwrap().generation);
    let good = std::fs::read(&path).unwrap();
    std::fs::write(&path, "nonsense").unwrap();
    let op = world.begin(OpRequest::VmStart { vm: VM });
    assert_eq!(world.failed(op).await, "restore");
    world.check(Power::Saved).await;
    std::fs::write(&path, good).unwrap();
    world.run(OpRequest::VmStart { vm: VM }).await;
    world.check(Power::Running).await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_ignores_shutdown_runs_on() {
    let mut world = World::with_running().await;
    world.fake.inject(None, Fault::IgnoreShutdown);
    let op = world.begin(shutdown(Millis::from_secs(10), false));
    assert_eq!(world.failed(op).await, "guest_did_not_shut_down");
    world.check(Power::Running).await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_ignores_shutdown_is_turned_off_if_wanted() {
    for patience in [10, 60, 3600].map(Millis::from_secs) {
        let mut world = World::with_running().await;
        world.fake.inject(None, Fault::IgnoreShutdown);
        world.run(shutdown(patience, true)).await;
        world.check(Power::Off).await;
        assert!(world.noted(Severity::Warning, "was turned off"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_hangs_is_turned_off_if_wanted() {
    let mut world = World::with_running().await;
    world.fake.inject(Some(VM), Fault::Hang);
    let op = world.begin(shutdown(Millis::from_secs(10), false));
    assert_eq!(world.failed(op).await, "hung");
    assert!(world.alive());
    assert_eq!(world.status().phase, crate::lifecycle::Phase::Hung);
    world.run(shutdown(Millis::from_secs(10), true)).await;
    world.check(Power::Off).await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_keeps_a_device_keeps_it() {
    for fault in [Fault::IgnoreUnplug, Fault::RefuseUnplug] {
        let mut world = World::with_running().await;
        world.fake.inject(None, fault);
        let op = world.begin(OpRequest::DiskRemove { vm: VM, disk: disk(1).id });
        assert_eq!(world.failed(op).await, "guest_did_not_release");
        world.check(Power::Running).await;
        let op = world.begin(OpRequest::NicRemove { vm: VM, nic: nic(1).id });
        assert_eq!(world.failed(op).await, "guest_did_not_release");
        world.check(Power::Running).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_keeps_processors_or_memory_keeps_them() {
    let mut world = World::with_running().await;
    let change = |cpus, memory| OpRequest::VmSet {
        vm: VM,
        change: Box::new(VmChange { cpus, memory, ..VmChange::default() }),
        if_revision: None,
    };
    world.run(change(Some(2), None)).await;
    world.fake.inject(None, Fault::IgnoreUnplug);
    world.fake.inject(None, Fault::IgnoreMemory);
    let op = world.begin(change(Some(1), None));
    assert_eq!(world.failed(op).await, "guest_did_not_release");
    world.check(Power::Running).await;
    let op = world.begin(change(None, Some(Bytes::mib(192))));
    assert_eq!(world.failed(op).await, "guest_did_not_release");
    world.check(Power::Running).await;
    // What was done before the part that failed is taken back.
    let op = world.begin(change(Some(3), Some(Bytes::mib(192))));
    world.fake.heal();
    world.fake.inject(None, Fault::IgnoreMemory);
    assert_eq!(world.failed(op).await, "guest_did_not_release");
    world.check(Power::Running).await;
}

#[tokio::test(start_paused = true)]
async fn a_plug_that_fails_leaves_no_file_and_no_port() {
    let mut world = World::with_running().await;
    world.fake.inject(None, Fault::PlugFails("no".to_owned()));
    let op = world.begin(OpRequest::DiskAdd { vm: VM, disk: disk(2) });
    assert_eq!(world.failed(op).await, "engine");
    world.check(Power::Running).await;
    let op = world.begin(OpRequest::NicAdd { vm: VM, nic: nic(2) });
    assert_eq!(world.failed(op).await, "engine");
    world.check(Power::Running).await;
}

#[tokio::test(start_paused = true)]
async fn a_save_that_fails_lets_the_guest_go_on() {
    for (words, code) in [("No space left on device", "no_space"), ("broken", "save")] {
        let mut world = World::with_running().await;
        world.fake.inject(None, Fault::SaveFails(words.to_owned()));
        let op = world.begin(OpRequest::VmSave { vm: VM });
        assert_eq!(world.failed(op).await, code);
        world.check(Power::Running).await;
        world.fake.heal();
        world.run(OpRequest::VmSave { vm: VM }).await;
        world.check(Power::Saved).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_save_of_a_paused_guest_that_fails_leaves_it_paused_throughout() {
    let mut world = World::with_running().await;
    world.run(OpRequest::VmPause { vm: VM }).await;
    world.fake.inject(None, Fault::SaveFails("broken".to_owned()));
    let mut status = world.daemon.as_ref().unwrap().handle.watch_status();
    let ran = tokio::spawn(async move {
        status.wait_for(|status| status.phase == crate::lifecycle::Phase::Running).await.is_ok()
    });
    let op = world.begin(OpRequest::VmSave { vm: VM });
    world.failed(op).await;
    world.check(Power::Paused).await;
    assert!(!ran.is_finished(), "it ran");
    ran.abort();
}

#[tokio::test(start_paused = true)]
async fn a_file_of_an_old_save_is_never_taken_for_a_new_one() {
    let mut world = World::with_running().await;
    let run = world.vm().generation;
    std::fs::write(world.files().memory(run), "of the past").unwrap();
    world.run(OpRequest::VmSave { vm: VM }).await;
    world.check(Power::Saved).await;
    assert_ne!(std::fs::read(world.files().memory(run)).unwrap(), b"of the past");
    world.run(OpRequest::VmStart { vm: VM }).await;
    world.check(Power::Running).await;
}

#[tokio::test(start_paused = true)]
async fn a_save_that_does_not_get_on_ends_at_its_deadline() {
    let mut world = World::with_running().await;
    world.fake.inject(None, Fault::SaveStalls);
    let op = world.begin(OpRequest::VmSave { vm: VM });
    assert_eq!(world.failed(op).await, "deadline");
    world.check(Power::Running).await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_in_the_middle_ends_the_operation_and_then_counts_as_a_crash() {
    for (spec, power) in [(spec(), Power::Running), (stays_off(), Power::Off)] {
        for request in [
            OpRequest::VmSave { vm: VM },
            OpRequest::DiskRemove { vm: VM, disk: disk(1).id },
            OpRequest::NicRemove { vm: VM, nic: nic(1).id },
        ] {
            let mut world = World::with(spec.clone()).await;
            world.run(OpRequest::VmStart { vm: VM }).await;
            let run = world.vm().generation;
            world.fake.inject(None, Fault::SaveStalls);
            world.fake.inject(None, Fault::IgnoreUnplug);
            let op = world.begin(request);
            world.quiet().await;
            assert!(world.op(op).is_running());
            world.fake.crash(VM);
            assert_eq!(world.failed(op).await, "machine_ended");
            world.check(power).await;
            let exit = world.vm().last_exit.clone().unwrap();
            assert_eq!(exit.kind, ExitKind::Crashed);
            assert!(exit.detail.contains("signal 11"), "{}", exit.detail);
            assert_eq!(world.vm().generation > run, power == Power::Running);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_while_it_shuts_down_is_an_end_like_any_other() {
    let mut world = World::with_running().await;
    world.fake.inject(None, Fault::IgnoreShutdown);
    let op = world.begin(shutdown(Millis::from_secs(50), false));
    world.quiet().await;
    world.fake.crash(VM);
    world.done(op).await;
    world.check(Power::Off).await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_crashes_on_and_on_stays_off() {
    let world = World::with_running().await;
    for crash in 0..4 {
        assert_eq!(world.vm().power, Power::Running, "crash {crash}");
        world.fake.crash(VM);
        world.quiet().await;
    }
    world.check(Power::Off).await;
    assert_eq!(world.vm().crashes.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_restart_that_fails_on_and_on_ends() {
    let world = World::with_running().await;
    world.fake.inject(None, Fault::LaunchFails("no".to_owned()));
    world.fake.crash(VM);
    world.until("off", |world| world.vm().power == Power::Off).await;
    world.quiet().await;
    world.check(Power::Off).await;
    assert!(world.vm().last_exit.as_ref().unwrap().detail.contains("could not be started again"));
}

#[tokio::test(start_paused = true)]
async fn a_process_that_does_not_go_away_is_not_called_off() {
    let mut world = World::with_running().await;
    *lock(&world.seen.undead) = true;
    let op = world.begin(OpRequest::VmOff { vm: VM });
    assert_eq!(world.failed(op).await, "engine");
    assert!(world.alive());
    assert_eq!(world.vm().power, Power::Running);
    *lock(&world.seen.undead) = false;
    world.run(OpRequest::VmOff { vm: VM }).await;
    world.check(Power::Off).await;
}

#[tokio::test(start_paused = true)]
async fn an_outcome_is_told_until_the_state_has_it() {
    let mut world = World::with_vm().await;
    *lock(&world.seen.deaf) = true;
    let op = world.begin(OpRequest::VmStart { vm: VM });
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(world.op(op).is_running() && world.alive());
    *lock(&world.seen.deaf) = false;
    let state = world.ended(op).await;
    assert!(matches!(state, OpState::Done { .. }), "{state:?}");
    world.check(Power::Running).await;
    assert_eq!(lock(&world.seen.launches).len(), 1);
}
