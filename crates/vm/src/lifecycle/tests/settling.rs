//! Without an operation: the machine is brought to what the state says.

use std::time::Duration;

use model::ExitKind;
use model::OpRequest;
use model::Power;

use super::VM;
use super::World;
use super::lock;
use super::probe::Gate;
use crate::engine::fake::Fault;
use crate::lifecycle::Phase;

#[tokio::test(start_paused = true)]
async fn a_stray_run_of_an_older_generation_is_ended() {
    let mut world = World::with_running().await;
    world.kill().await;
    // The state goes on without this host's knowledge: another run is the right one now.
    let run = world.vm().generation;
    let exit = model::Exit {
        kind: ExitKind::HostRestart,
        detail: "as if elsewhere".to_owned(),
        at: world.truth.now(),
    };
    world.truth.propose(model::Command::VmExited { vm: VM, generation: run, exit }).unwrap();
    assert_eq!(world.vm().generation, run.next());
    world.spawn(Gate::open());
    world.quiet().await;
    world.check(Power::Running).await;
    assert_eq!(world.status().run.unwrap().info.generation, run.next());
}

#[tokio::test(start_paused = true)]
async fn a_run_that_should_not_be_is_ended() {
    let mut world = World::with(super::stays_off()).await;
    world.run(OpRequest::VmStart { vm: VM }).await;
    world.kill().await;
    let exit =
        model::Exit { kind: ExitKind::Crashed, detail: "as if".to_owned(), at: world.truth.now() };
    let generation = world.vm().generation;
    world.truth.propose(model::Command::VmExited { vm: VM, generation, exit }).unwrap();
    world.spawn(Gate::open());
    world.quiet().await;
    world.check(Power::Off).await;
}

#[tokio::test(start_paused = true)]
async fn what_somebody_else_stopped_or_let_go_is_put_right() {
    let mut world = World::with_running().await;
    let machine = world.daemon.as_ref().unwrap().handle.machine().unwrap();
    machine.pause().await.unwrap();
    world.quiet().await;
    world.check(Power::Running).await;
    world.run(OpRequest::VmPause { vm: VM }).await;
    machine.cont().await.unwrap();
    world.quiet().await;
    world.check(Power::Paused).await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_shuts_itself_down_is_off_and_not_started_for_a_moment() {
    let mut world = World::with_running().await;
    world.fake.guest_shutdown(VM);
    world.quiet().await;
    world.check(Power::Off).await;
    assert_eq!(world.vm().last_exit.as_ref().unwrap().kind, ExitKind::GuestShutdown);
    assert_eq!(lock(&world.seen.launches).len(), 1, "launched by an old record");
    world.run(OpRequest::VmStart { vm: VM }).await;
    world.fake.crash(VM);
    world.quiet().await;
    world.check(Power::Running).await;
    assert_eq!(lock(&world.seen.launches).len(), 3, "one launch for each run");
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_hung_and_answers_again_is_shown_so() {
    let world = World::with_running().await;
    world.fake.inject(Some(VM), Fault::Hang);
    world.quiet().await;
    assert_eq!(world.status().phase, Phase::Hung);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(world.alive(), "a hang is no reason to end a guest");
    world.fake.heal();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(world.status().phase, Phase::Running);
    world.check(Power::Running).await;
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_hung_while_the_daemon_started_is_adopted_later() {
    let mut world = World::with_running().await;
    world.kill().await;
    world.fake.inject(Some(VM), Fault::Hang);
    world.spawn(Gate::open());
    world.quiet().await;
    assert_eq!(world.status().phase, Phase::Hung);
    world.fake.heal();
    tokio::time::sleep(Duration::from_secs(10)).await;
    world.check(Power::Running).await;
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_nobody_removed_stays_whatever_the_record_says() {
    let mut world = World::with_vm().await;
    let strange = world.files().dir().join("disks").join("of-a-newer-state.raw");
    std::fs::write(&strange, "data").unwrap();
    world.restart().await;
    assert!(strange.exists());
}
