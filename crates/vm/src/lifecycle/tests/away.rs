//! What happens while no daemon is there, and what the next one makes of it.

use model::ExitKind;
use model::OpRequest;
use model::Power;
use model::Severity;

use super::VM;
use super::World;
use super::lock;
use super::probe::Gate;
use super::spec;
use super::stays_off;
use crate::engine::GoneReason;

#[tokio::test(start_paused = true)]
async fn a_machine_that_runs_on_is_adopted() {
    let mut world = World::with_running().await;
    let pid = world.status().run.unwrap().info.pid;
    for _ in 0..3 {
        world.restart().await;
        world.check(Power::Running).await;
        assert_eq!(world.status().run.unwrap().info.pid, pid);
    }
    world.run(OpRequest::VmPause { vm: VM }).await;
    world.restart().await;
    world.check(Power::Paused).await;
    assert_eq!(lock(&world.seen.launches).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_shut_itself_down_stays_off() {
    let mut world = World::with_running().await;
    world.kill().await;
    world.fake.guest_shutdown(VM);
    world.spawn(Gate::open());
    world.quiet().await;
    world.check(Power::Off).await;
    assert_eq!(world.vm().last_exit.as_ref().unwrap().kind, ExitKind::GuestShutdown);
    assert_eq!(lock(&world.seen.launches).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_crash_is_told_and_the_policy_acts() {
    for (spec, power) in [(spec(), Power::Running), (stays_off(), Power::Off)] {
        let mut world = World::with(spec).await;
        world.run(OpRequest::VmStart { vm: VM }).await;
        let run = world.vm().generation;
        world.kill().await;
        world.fake.crash(VM);
        world.spawn(Gate::open());
        world.quiet().await;
        world.check(power).await;
        let exit = world.vm().last_exit.clone().unwrap();
        assert_eq!(exit.kind, ExitKind::Crashed);
        assert!(exit.detail.contains("segmentation fault"), "{}", exit.detail);
        assert_eq!(world.vm().generation > run, power == Power::Running);
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_of_the_host_it_is_started_again_whatever_the_policy() {
    for reason in [GoneReason::HostRebooted, GoneReason::NoTrace, GoneReason::LaunchInterrupted] {
        let mut world = World::with(stays_off()).await;
        world.run(OpRequest::VmStart { vm: VM }).await;
        let run = world.vm().generation;
        world.kill().await;
        *lock(&world.seen.gone) = Some(reason);
        world.spawn(Gate::open());
        world.quiet().await;
        world.check(Power::Running).await;
        assert_eq!(world.vm().last_exit.as_ref().unwrap().kind, ExitKind::HostRestart);
        assert_eq!(world.vm().generation, run.next());
    }
}

#[tokio::test(start_paused = true)]
async fn a_saved_or_off_one_sleeps_through_a_restart_of_the_host() {
    let mut world = World::with_saved().await;
    world.kill().await;
    *lock(&world.seen.gone) = Some(GoneReason::HostRebooted);
    world.spawn(Gate::open());
    world.quiet().await;
    world.check(Power::Saved).await;
    world.run(OpRequest::VmOff { vm: VM }).await;
    world.restart().await;
    world.check(Power::Off).await;
}

#[tokio::test(start_paused = true)]
async fn a_paused_one_that_is_lost_is_told_of_and_not_started() {
    for reason in [None, Some(GoneReason::HostRebooted)] {
        let mut world = World::with_running().await;
        world.run(OpRequest::VmPause { vm: VM }).await;
        world.kill().await;
        world.fake.crash(VM);
        *lock(&world.seen.gone) = reason;
        world.spawn(Gate::open());
        world.quiet().await;
        world.check(Power::Off).await;
        assert!(world.vm().last_exit.is_some());
        assert_eq!(lock(&world.seen.launches).len(), 1);
    }
    // The same with the daemon looking on.
    let mut world = World::with_running().await;
    world.run(OpRequest::VmPause { vm: VM }).await;
    world.fake.crash(VM);
    world.quiet().await;
    world.check(Power::Off).await;
    assert_eq!(lock(&world.seen.launches).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn memory_whose_guest_went_on_is_not_used_again() {
    // The daemon dies after it has let the restored guest go on; then the guest's process dies.
    let mut stops = 0;
    for stop_at in 0.. {
        let mut world = World::with_saved().await;
        world.kill().await;
        let op = world.begin(OpRequest::VmStart { vm: VM });
        let gate = Gate::at(stop_at);
        world.spawn(gate.clone());
        let call = gate.stopped().await;
        world.kill().await;
        stops += u32::from(call == "cont");
        // Before the call, then after it.
        if stops == 2 {
            world.fake.crash(VM);
            world.spawn(Gate::open());
            world.done(op).await;
            world.check(Power::Running).await;
            assert!(world.noted(Severity::Warning, "used once already"));
            return;
        }
    }
}

/// The daemon is killed at each call that follows the end of a machine.
#[tokio::test(start_paused = true)]
async fn the_end_of_a_machine_is_never_lost() {
    for guest_shuts_down in [true, false] {
        for stop_at in 0.. {
            let mut world = World::with(stays_off()).await;
            world.run(OpRequest::VmStart { vm: VM }).await;
            world.kill().await;
            if guest_shuts_down {
                world.fake.guest_shutdown(VM);
            } else {
                world.fake.crash(VM);
            }
            let gate = Gate::at(stop_at);
            world.spawn(gate.clone());
            let stopped = tokio::select! {
                _ = gate.stopped() => true,
                () = tokio::time::sleep(std::time::Duration::from_secs(10)) => false,
            };
            world.restart().await;
            world.check(Power::Off).await;
            let wanted = if guest_shuts_down { ExitKind::GuestShutdown } else { ExitKind::Crashed };
            assert_eq!(world.vm().last_exit.as_ref().unwrap().kind, wanted, "pass {stop_at}");
            assert_eq!(lock(&world.seen.launches).len(), 1, "pass {stop_at}");
            if !stopped {
                break;
            }
        }
    }
}
