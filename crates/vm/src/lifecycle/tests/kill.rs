//! `kill -9` of the daemon before and after every call that an operation makes. The next daemon
//! brings the operation to its end, and nothing is left over.

use std::collections::BTreeSet;
use std::time::Duration;

use model::Bytes;
use model::Millis;
use model::OpRequest;
use model::OpState;
use model::Power;
use model::VmChange;

use super::LIMIT;
use super::VM;
use super::World;
use super::create;
use super::disk;
use super::nic;
use super::probe::Gate;
use super::shutdown;
use super::spec;
use crate::lifecycle::Phase;

/// More calls than any operation makes: a test that gets here does not end.
const CALLS_MAX: usize = 500;

/// What is done in the daemon's absence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meanwhile {
    Nothing,
    /// Somebody asks the operation to stop.
    Cancel,
    /// The process dies.
    Crash,
}

/// Where a VM may be left.
struct Ends<'a> {
    request: OpRequest,
    /// Where it is when the operation is done.
    done: Option<Power>,
    /// Where it may be when it was stopped, or lost its machine.
    stopped: &'a [Power],
}

/// Kills the daemon at every call of the operation in turn. Gives the calls.
async fn at_each_call<W: Future<Output = World>>(
    before: impl Fn() -> W,
    ends: &Ends<'_>,
    meanwhile: Meanwhile,
) -> BTreeSet<&'static str> {
    let mut calls = BTreeSet::new();
    for stop_at in 0..CALLS_MAX {
        let mut world = before().await;
        world.kill().await;
        let op = world.try_begin(ends.request.clone(), LIMIT).unwrap();
        let gate = Gate::at(stop_at);
        world.spawn(gate.clone());
        let finished = tokio::select! {
            call = gate.stopped() => {
                calls.insert(call);
                if matches!(ends.request, OpRequest::VmStart { .. }) {
                    let seen = world.status().phase;
                    assert_ne!(seen, Phase::Paused, "pass {stop_at}: before or after {call}");
                }
                false
            }
            () = tokio::time::sleep(Duration::from_secs(10)) => true,
        };
        world.kill().await;
        match meanwhile {
            // An operation that has ended cannot be cancelled, and need not be.
            Meanwhile::Cancel if world.op(op).is_running() => world.cancel(op),
            Meanwhile::Crash => world.fake.crash(VM),
            _ => {}
        }
        world.spawn(Gate::open());
        let state = world.ended(op).await;
        let done = matches!(state, OpState::Done { .. });
        assert!(done || meanwhile != Meanwhile::Nothing, "pass {stop_at}: {state:?}");
        if world.truth.get().vms.contains_key(&VM) {
            let power = world.vm().power;
            let fits = match (done, ends.done) {
                (true, Some(wanted)) => power == wanted || meanwhile == Meanwhile::Crash,
                (true, None) => false,
                (false, _) => ends.stopped.contains(&power),
            };
            assert!(fits, "pass {stop_at} ({calls:?}): {state:?} leaves it {power:?}");
            world.check(power).await;
        } else {
            assert!(!done || ends.done.is_none(), "pass {stop_at}: it is gone");
            world.check_gone();
        }
        if finished {
            return calls;
        }
    }
    panic!("it does not end");
}

/// Kills at each call with each thing that may happen meanwhile.
async fn everywhere<W: Future<Output = World>>(before: impl Fn() -> W, ends: Ends<'_>) {
    for meanwhile in [Meanwhile::Nothing, Meanwhile::Cancel, Meanwhile::Crash] {
        let calls = at_each_call(&before, &ends, meanwhile).await;
        assert!(calls.contains("adopt") && calls.contains("finish"), "{calls:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn create_ends() {
    let before = async || World::new();
    let request = create(spec());
    everywhere(before, Ends { request, done: Some(Power::Off), stopped: &[] }).await;
}

#[tokio::test(start_paused = true)]
async fn start_ends() {
    let request = OpRequest::VmStart { vm: VM };
    let ends = Ends { request, done: Some(Power::Running), stopped: &[Power::Off] };
    everywhere(World::with_vm, ends).await;
}

#[tokio::test(start_paused = true)]
async fn restore_ends_and_uses_the_memory_once() {
    let request = OpRequest::VmStart { vm: VM };
    let stopped = &[Power::Off, Power::Saved];
    everywhere(World::with_saved, Ends { request, done: Some(Power::Running), stopped }).await;
}

#[tokio::test(start_paused = true)]
async fn save_ends() {
    let request = OpRequest::VmSave { vm: VM };
    let stopped = &[Power::Running, Power::Saved];
    everywhere(World::with_running, Ends { request, done: Some(Power::Saved), stopped }).await;
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends() {
    let request = shutdown(Millis::from_secs(10), true);
    let stopped = &[Power::Running, Power::Off];
    everywhere(World::with_running, Ends { request, done: Some(Power::Off), stopped }).await;
}

#[tokio::test(start_paused = true)]
async fn off_ends() {
    let request = OpRequest::VmOff { vm: VM };
    everywhere(World::with_running, Ends { request, done: Some(Power::Off), stopped: &[] }).await;
}

#[tokio::test(start_paused = true)]
async fn off_of_a_saved_one_ends() {
    let request = OpRequest::VmOff { vm: VM };
    everywhere(World::with_saved, Ends { request, done: Some(Power::Off), stopped: &[] }).await;
}

#[tokio::test(start_paused = true)]
async fn pause_ends() {
    let request = OpRequest::VmPause { vm: VM };
    let stopped = &[Power::Running];
    everywhere(World::with_running, Ends { request, done: Some(Power::Paused), stopped }).await;
}

#[tokio::test(start_paused = true)]
async fn adding_a_disk_ends() {
    let request = OpRequest::DiskAdd { vm: VM, disk: disk(2) };
    let stopped = &[Power::Running];
    everywhere(World::with_running, Ends { request, done: Some(Power::Running), stopped }).await;
}

#[tokio::test(start_paused = true)]
async fn adding_an_adapter_ends() {
    let request = OpRequest::NicAdd { vm: VM, nic: nic(2) };
    let stopped = &[Power::Running];
    everywhere(World::with_running, Ends { request, done: Some(Power::Running), stopped }).await;
}

#[tokio::test(start_paused = true)]
async fn removing_a_disk_ends() {
    let request = OpRequest::DiskRemove { vm: VM, disk: disk(1).id };
    let before = async || {
        let mut world = World::with_running().await;
        world.run(OpRequest::DiskAdd { vm: VM, disk: disk(2) }).await;
        world
    };
    // What the guest has let go before the operation was stopped comes back at the next start.
    let done = Some(Power::Running);
    let ends = Ends { request, done, stopped: &[Power::Running] };
    for meanwhile in [Meanwhile::Nothing, Meanwhile::Crash] {
        at_each_call(before, &ends, meanwhile).await;
    }
}

#[tokio::test(start_paused = true)]
async fn removing_an_adapter_ends() {
    let request = OpRequest::NicRemove { vm: VM, nic: nic(1).id };
    let done = Some(Power::Running);
    let ends = Ends { request, done, stopped: &[Power::Running] };
    for meanwhile in [Meanwhile::Nothing, Meanwhile::Crash] {
        at_each_call(World::with_running, &ends, meanwhile).await;
    }
}

#[tokio::test(start_paused = true)]
async fn growing_ends() {
    let change = VmChange {
        cpus: Some(3),
        cpu_cap_percent: Some(70),
        memory: Some(Bytes::mib(192)),
        ..VmChange::default()
    };
    let request = OpRequest::VmSet { vm: VM, change: Box::new(change), if_revision: None };
    let stopped = &[Power::Running];
    everywhere(World::with_running, Ends { request, done: Some(Power::Running), stopped }).await;
}

#[tokio::test(start_paused = true)]
async fn delete_ends() {
    let request = OpRequest::VmDelete { vm: VM };
    everywhere(World::with_vm, Ends { request, done: Some(Power::Off), stopped: &[] }).await;
}

#[tokio::test(start_paused = true)]
async fn purge_ends() {
    let before = async || {
        let mut world = World::with_vm().await;
        world.run(OpRequest::VmDelete { vm: VM }).await;
        world
    };
    let request = OpRequest::VmPurge { vm: VM };
    everywhere(before, Ends { request, done: None, stopped: &[] }).await;
}
