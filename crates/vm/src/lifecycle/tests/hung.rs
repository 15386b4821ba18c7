//! A guest that hangs is started again if its record asks for it; one that only seems to is not.

use std::time::Duration;

use model::ExitKind;
use model::Millis;
use model::OpRequest;
use model::Power;
use model::Severity;
use model::VmSpec;

use super::VM;
use super::World;
use super::spec;
use crate::engine::fake::Fault;
use crate::guest::Heartbeat;

/// Well after a silent heartbeat is suffered no longer.
const LONG: Duration = Duration::from_secs(90);

fn restarts() -> VmSpec {
    let mut spec = spec();
    spec.ha.restart_hung = true;
    spec.ha.hung_after = Millis::from_secs(30);
    spec
}

/// A world whose guest has answered, and does not any more.
async fn silent(spec: VmSpec) -> World {
    let mut world = World::with(spec).await;
    world.run(OpRequest::VmStart { vm: VM }).await;
    heard(&world).await;
    world.fake.inject(Some(VM), Fault::AgentSilent);
    world
}

async fn heard(world: &World) {
    world
        .until("the guest answers", |world| {
            let guest = world.daemon.as_ref().unwrap().handle.guest();
            guest.is_some_and(|guest| guest.status().borrow().heartbeat == Heartbeat::Ok)
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_and_idle_guest_is_started_again_and_its_screen_is_kept() {
    let world = silent(restarts()).await;
    let run = world.vm().generation;
    let began = tokio::time::Instant::now();
    world.until("another run", |world| world.vm().generation != run).await;
    assert!(began.elapsed() >= Duration::from_secs(30) - Duration::from_secs(1));
    assert!(began.elapsed() < LONG, "{:?}", began.elapsed());
    world.fake.heal();
    world.quiet().await;
    world.check(Power::Running).await;
    let exit = world.vm().last_exit.clone().unwrap();
    assert_eq!(exit.kind, ExitKind::Hung);
    assert!(std::fs::read(world.files().hung_picture()).unwrap().starts_with(b"\x89PNG"));
    heard(&world).await;
    let run = world.vm().generation;
    tokio::time::sleep(LONG).await;
    assert_eq!(world.vm().generation, run, "it answers, and is left alone");
}

#[tokio::test(start_paused = true)]
async fn one_that_works_with_its_disks_or_that_nobody_wants_restarted_is_left_alone() {
    for spec in [restarts(), spec()] {
        let works = spec.ha.restart_hung;
        let world = silent(spec).await;
        let run = world.vm().generation;
        for _ in 0..30 {
            tokio::time::sleep(Duration::from_secs(10)).await;
            if works {
                world.fake.guest_works(VM);
            }
        }
        assert_eq!(world.vm().generation, run);
        world.check(Power::Running).await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_stands_has_nothing_to_answer() {
    let mut world = World::with(restarts()).await;
    world.run(OpRequest::VmStart { vm: VM }).await;
    heard(&world).await;
    world.run(OpRequest::VmPause { vm: VM }).await;
    world.fake.inject(Some(VM), Fault::AgentSilent);
    let run = world.vm().generation;
    tokio::time::sleep(LONG * 4).await;
    assert_eq!(world.vm().generation, run);
    world.check(Power::Paused).await;
}

#[tokio::test(start_paused = true)]
async fn one_that_always_hangs_is_left_alone_in_the_end_and_not_turned_off() {
    let world = silent(restarts()).await;
    let first = world.vm().generation;
    // It answers for a moment after each start, and hangs again.
    for _ in 0..3 {
        let run = world.vm().generation;
        world.until("another run", |world| world.vm().generation != run).await;
        world.fake.heal();
        heard(&world).await;
        world.fake.inject(Some(VM), Fault::AgentSilent);
    }
    world.until("it is said", |world| world.noted(Severity::Error, "left alone now")).await;
    assert_eq!(world.vm().generation.get() - first.get(), 3);
    world.check(Power::Running).await;
}
