//! A daemon begins with a state that is older than its machine: it looks, and does nothing.

use std::sync::Arc;

use model::ClusterState;
use model::Command;
use model::Exit;
use model::ExitKind;
use model::OpRequest;
use model::Power;

use super::VM;
use super::World;
use super::lock;
use super::probe::Gate;
use super::stays_off;
use super::wanted;
use crate::lifecycle::Phase;

impl World {
    /// The state goes on, and the daemon knows it.
    async fn newest(&self) {
        let handle = &self.daemon.as_ref().unwrap().handle;
        handle.want(wanted(&self.truth.get()));
        self.quiet().await;
    }

    /// The daemon is killed, begins by an old state, and leaves the machine as it is.
    async fn begins_by(&mut self, old: &ClusterState) -> u32 {
        let pid = self.status().run.unwrap().info.pid;
        self.kill().await;
        self.spawn_old(old);
        self.quiet().await;
        assert!(self.alive(), "what may be old ends nothing");
        assert_eq!(self.status().run.unwrap().info.pid, pid, "it is shown all the same");
        assert_eq!(self.status().phase, Phase::Running);
        assert!(self.daemon.as_ref().unwrap().handle.machine().is_some(), "and its consoles");
        pid
    }
}

/// The machine is of a run that the host's disk knows nothing of.
#[tokio::test(start_paused = true)]
async fn a_machine_of_a_newer_run_than_the_record_goes_on() {
    let mut world = World::with_running().await;
    let old = world.truth.get();
    world.fake.crash(VM);
    world.quiet().await;
    assert!(world.vm().generation > old.vm(VM).unwrap().generation, "another run");
    let pid = world.begins_by(&old).await;
    world.newest().await;
    assert_eq!(world.status().run.unwrap().info.pid, pid);
    world.check(Power::Running).await;
    assert_eq!(lock(&world.seen.launches).len(), 2, "one launch for each run");
}

/// By the record the VM is off, or is being turned off: both are over since long.
#[tokio::test(start_paused = true)]
async fn an_operation_that_is_over_is_not_performed_again() {
    let mut world = World::with_running().await;
    let mut olds: Vec<Arc<ClusterState>> = Vec::new();
    let op = world.begin(OpRequest::VmOff { vm: VM });
    olds.push(world.truth.get());
    world.done(op).await;
    olds.push(world.truth.get());
    assert_eq!(world.vm().power, Power::Off);
    world.run(OpRequest::VmStart { vm: VM }).await;
    for old in olds {
        let pid = world.begins_by(&old).await;
        world.newest().await;
        assert_eq!(world.status().run.unwrap().info.pid, pid);
        world.check(Power::Running).await;
    }
    assert_eq!(lock(&world.seen.launches).len(), 2);
}

/// What the newest state says of a machine that was left alone is done.
#[tokio::test(start_paused = true)]
async fn a_machine_without_right_is_ended_by_the_newest_state() {
    let mut world = World::with(stays_off()).await;
    world.run(OpRequest::VmStart { vm: VM }).await;
    let old = world.truth.get();
    world.begins_by(&old).await;
    let (generation, at) = (world.vm().generation, world.truth.now());
    let exit = Exit { kind: ExitKind::Crashed, detail: "as if elsewhere".to_owned(), at };
    world.truth.propose(Command::VmExited { vm: VM, generation, exit }).unwrap();
    world.newest().await;
    world.check(Power::Off).await;
}

/// A machine that is gone is reported and started again once, by the newest state, whatever the old one
/// said of it.
#[tokio::test(start_paused = true)]
async fn a_machine_that_is_gone_is_told_to_the_newest_state() {
    let mut world = World::with_vm().await;
    let off = world.truth.get();
    world.run(OpRequest::VmStart { vm: VM }).await;
    let running = world.truth.get();
    for old in [off, running] {
        let (run, launches) = (world.vm().generation, lock(&world.seen.launches).len());
        world.kill().await;
        world.fake.crash(VM);
        world.spawn_old(&old);
        world.quiet().await;
        assert_eq!(lock(&world.seen.launches).len(), launches, "nothing starts by what may be old");
        assert_eq!(world.vm().generation, run, "and nothing is told");
        world.newest().await;
        // The follower of a daemon tells the driver what has become of its report.
        world.newest().await;
        world.check(Power::Running).await;
        assert_eq!(world.vm().last_exit.as_ref().unwrap().kind, ExitKind::Crashed);
        assert_eq!(world.vm().generation, run.next());
        world.kill().await;
        world.spawn(Gate::open());
        world.quiet().await;
    }
}
