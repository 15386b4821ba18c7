//! Operations that somebody stops, or whose time is over.

use std::time::Duration;

use model::Millis;
use model::OpRequest;
use model::OpState;
use model::Power;

use super::LIMIT;
use super::VM;
use super::World;
use super::create;
use super::disk;
use super::nic;
use super::shutdown;
use super::spec;
use crate::engine::fake::Fault;

const SLOW: Duration = Duration::from_secs(30);

#[tokio::test(start_paused = true)]
async fn a_start_that_is_cancelled_leaves_it_where_it_was() {
    let mut world = World::with_vm().await;
    world.fake.inject(None, Fault::LaunchSlow(SLOW));
    let op = world.begin(OpRequest::VmStart { vm: VM });
    world.quiet().await;
    world.cancel(op);
    world.cancelled(op).await;
    world.check(Power::Off).await;
    let mut world = World::with_saved().await;
    world.fake.inject(None, Fault::LaunchSlow(SLOW));
    let op = world.begin(OpRequest::VmStart { vm: VM });
    world.quiet().await;
    world.cancel(op);
    world.cancelled(op).await;
    world.check(Power::Saved).await;
    world.fake.heal();
    world.run(OpRequest::VmStart { vm: VM }).await;
    world.check(Power::Running).await;
}

#[tokio::test(start_paused = true)]
async fn a_start_that_hangs_ends_at_its_deadline() {
    let mut world = World::with_vm().await;
    world.fake.inject(None, Fault::LaunchSlow(Duration::from_secs(3_000)));
    let op = world.begin(OpRequest::VmStart { vm: VM });
    assert_eq!(world.failed(op).await, "deadline");
    world.check(Power::Off).await;
}

#[tokio::test(start_paused = true)]
async fn turning_off_ends_a_start_that_hangs() {
    let mut world = World::with_vm().await;
    world.fake.inject(None, Fault::LaunchSlow(Duration::from_secs(3_000)));
    let start = world.begin(OpRequest::VmStart { vm: VM });
    world.quiet().await;
    let off = world.begin(OpRequest::VmOff { vm: VM });
    world.cancelled(start).await;
    world.done(off).await;
    world.check(Power::Off).await;
}

#[tokio::test(start_paused = true)]
async fn turning_off_ends_a_restart_that_hangs() {
    let mut world = World::with_running().await;
    world.fake.inject(None, Fault::LaunchSlow(Duration::from_secs(3_000)));
    world.fake.crash(VM);
    world.quiet().await;
    let before = world.truth.now();
    world.run(OpRequest::VmOff { vm: VM }).await;
    assert!(world.truth.now().since(before) < Millis::from_secs(5));
    world.check(Power::Off).await;
}

#[tokio::test(start_paused = true)]
async fn turning_off_ends_whatever_is_under_way() {
    for request in [
        OpRequest::VmSave { vm: VM },
        OpRequest::DiskRemove { vm: VM, disk: disk(1).id },
        shutdown(Millis::from_secs(50), false),
    ] {
        let mut world = World::with_running().await;
        for fault in [Fault::SaveStalls, Fault::IgnoreUnplug, Fault::IgnoreShutdown] {
            world.fake.inject(None, fault);
        }
        let first = world.begin(request);
        world.quiet().await;
        let off = world.begin(OpRequest::VmOff { vm: VM });
        world.cancelled(first).await;
        world.done(off).await;
        world.check(Power::Off).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_is_cancelled_leaves_the_guest_running() {
    for request in [
        OpRequest::VmSave { vm: VM },
        OpRequest::DiskRemove { vm: VM, disk: disk(1).id },
        OpRequest::NicRemove { vm: VM, nic: nic(1).id },
        shutdown(Millis::from_secs(50), true),
    ] {
        let mut world = World::with_running().await;
        for fault in [Fault::SaveStalls, Fault::IgnoreUnplug, Fault::IgnoreShutdown] {
            world.fake.inject(None, fault);
        }
        let op = world.begin(request);
        world.quiet().await;
        world.cancel(op);
        world.cancelled(op).await;
        world.check(Power::Running).await;
        world.fake.heal();
        world.run(OpRequest::VmSave { vm: VM }).await;
        world.check(Power::Saved).await;
    }
}

#[tokio::test(start_paused = true)]
async fn cancelled_before_any_daemon_saw_it() {
    let mut world = World::new();
    let op = world.begin(create(spec()));
    world.cancel(op);
    world.spawn(super::Gate::open());
    world.cancelled(op).await;
    world.check_gone();
    let mut world = World::with_running().await;
    world.kill().await;
    let op = world.begin(OpRequest::DiskAdd { vm: VM, disk: disk(2) });
    world.cancel(op);
    world.spawn(super::Gate::open());
    world.cancelled(op).await;
    world.check(Power::Running).await;
}

#[tokio::test(start_paused = true)]
async fn turning_off_cannot_be_stopped_half_way() {
    let mut world = World::with_running().await;
    let op = world.begin(OpRequest::VmOff { vm: VM });
    world.cancel(op);
    world.done(op).await;
    world.check(Power::Off).await;
}

#[tokio::test(start_paused = true)]
async fn an_operation_whose_time_passed_while_no_daemon_was_there_fails() {
    let mut world = World::with_vm().await;
    world.kill().await;
    let op = world.begin(OpRequest::VmStart { vm: VM });
    tokio::time::sleep(Duration::from_millis(LIMIT.get() + 1)).await;
    world.spawn(super::Gate::open());
    assert_eq!(world.failed(op).await, "deadline");
    world.check(Power::Off).await;
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_cannot_be_asked_keeps_no_operation_from_its_end() {
    let mut world = World::with_running().await;
    world.kill().await;
    world.fake.inject(Some(VM), Fault::Hang);
    let op = world.begin(OpRequest::VmPause { vm: VM });
    world.spawn(super::Gate::open());
    world.quiet().await;
    assert!(world.op(op).is_running(), "it may answer again");
    world.cancel(op);
    world.cancelled(op).await;
    let op = world.begin(OpRequest::VmReset { vm: VM });
    assert!(matches!(world.ended(op).await, OpState::Failed { .. }));
    assert_eq!(world.vm().power, Power::Running);
    assert!(world.alive(), "only turning it off ends it");
    world.run(OpRequest::VmOff { vm: VM }).await;
    world.check(Power::Off).await;
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_the_guest_holds_on_to_goes_when_it_lets_go() {
    let mut world = World::with_running().await;
    world.kill().await;
    // The disk is plugged and the operation cancelled when the next daemon comes.
    let op = world.begin(OpRequest::DiskAdd { vm: VM, disk: disk(2) });
    let mut stops = 0;
    for stop_at in 0.. {
        let gate = super::Gate::at(stop_at);
        world.spawn(gate.clone());
        let call = gate.stopped().await;
        world.kill().await;
        stops += u32::from(call == "plug_disk");
        // Before the call, then after it.
        if stops == 2 {
            break;
        }
    }
    world.fake.inject(None, Fault::IgnoreUnplug);
    world.cancel(op);
    world.spawn(super::Gate::open());
    world.cancelled(op).await;
    assert!(world.files().aside(&disk(2)).exists(), "the guest holds it");
    world.run(OpRequest::VmOff { vm: VM }).await;
    world.check(Power::Off).await;
}
