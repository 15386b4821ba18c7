//! Moves of storage: the daemon killed at each call, the operation stopped at each moment, and
//! everything that can fail. A guest writes all the time, and reads what it wrote: an acknowledged
//! write that is lost is seen by the very next read.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use model::Command;
use model::Firmware;
use model::Millis;
use model::OpRequest;
use model::OpState;
use model::Power;
use model::Severity;
use model::VmId;
use model::VmPlace;
use model::VolumeId;
use model::VolumeKind;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::LIMIT;
use super::NODE;
use super::VM;
use super::World;
use super::create;
use super::disk;
use super::lock;
use super::name;
use super::probe::Gate;
use super::spec;
use crate::engine::fake::FakeHost;
use crate::engine::fake::Fault;

const FIRST: VolumeId = VolumeId::new(Uuid::from_u128(0x91));
const SECOND: VolumeId = VolumeId::new(Uuid::from_u128(0x92));

const ON_FIRST: VmPlace = VmPlace::Volume { volume: FIRST };
const ON_SECOND: VmPlace = VmPlace::Volume { volume: SECOND };
const LOCAL: VmPlace = VmPlace::Node { node: NODE };

/// How often the guest reads and writes.
const GUEST_EVERY: Duration = Duration::from_millis(4);

/// More calls than any move makes.
const CALLS_MAX: usize = 500;

fn request(to: VmPlace) -> OpRequest {
    OpRequest::VmMoveStorage { vm: VM, to }
}

/// A VM on the first volume, with two disks and firmware of its own; and a second volume.
async fn on_first() -> World {
    let mut world = World::new();
    for (volume, word) in [(FIRST, "first"), (SECOND, "second")] {
        let kind = VolumeKind::Share { path: format!("/{word}") };
        world.truth.propose(Command::VolumeCreate { volume, name: name(word), kind }).unwrap();
    }
    let mut spec = spec();
    spec.firmware = Firmware::Uefi;
    spec.disks.push(disk(2));
    let mut make = create(spec);
    if let OpRequest::VmCreate { volume, .. } = &mut make {
        *volume = Some(FIRST);
    }
    let op = world.begin(make);
    world.spawn(Gate::open());
    world.done(op).await;
    std::fs::write(world.files().uefi_vars(), [5; 4096]).unwrap();
    world
}

async fn running() -> World {
    let mut world = on_first().await;
    world.run(OpRequest::VmStart { vm: VM }).await;
    world
}

async fn paused() -> World {
    let mut world = running().await;
    world.run(OpRequest::VmPause { vm: VM }).await;
    world
}

async fn saved() -> World {
    let mut world = running().await;
    world.run(OpRequest::VmSave { vm: VM }).await;
    world
}

/// A guest that counts on its disk.
struct Guest {
    acknowledged: Arc<Mutex<u64>>,
    task: JoinHandle<()>,
}

impl Guest {
    fn start(host: &FakeHost, vm: VmId) -> Self {
        let acknowledged = Arc::new(Mutex::new(host.guest_reads(vm).unwrap_or_default()));
        let (host, count) = (host.clone(), acknowledged.clone());
        let task = tokio::spawn(async move {
            loop {
                tokio::time::sleep(GUEST_EVERY).await;
                let mut count = lock(&count);
                if let Some(read) = host.guest_reads(vm) {
                    assert_eq!(read, *count, "an acknowledged write is lost");
                    if host.guest_writes(vm, *count + 1) {
                        *count += 1;
                    }
                }
            }
        });
        Self { acknowledged, task }
    }

    fn count(&self) -> u64 {
        *lock(&self.acknowledged)
    }

    /// That nothing was lost; ends it.
    async fn unharmed(self, world: &World) {
        tokio::time::sleep(GUEST_EVERY * 3).await;
        assert!(!self.task.is_finished(), "the guest has found a lost write");
        self.task.abort();
        let _ = self.task.await;
        let spec = world.vm().spec.clone();
        for disk in &spec.disks {
            let bytes = std::fs::read(world.files().disk(disk)).unwrap();
            let count = *lock(&self.acknowledged);
            assert_eq!(bytes[..8], count.to_be_bytes(), "disk {}", disk.name);
        }
        assert_eq!(std::fs::read(world.files().uefi_vars()).unwrap(), [5; 4096]);
    }
}

/// What must hold when all is over.
async fn check(world: &World, state: &OpState, from: VmPlace, to: VmPlace, power: Power) {
    let done = matches!(state, OpState::Done { .. });
    let vm = world.vm();
    assert_eq!(vm.place(), if done { to } else { from }, "{state:?}");
    world.check(power).await;
    for path in world.fake.writes_to(VM) {
        assert!(path.starts_with(world.files().dir()), "it writes to {}", path.display());
    }
    let claimed = std::fs::read_to_string(world.files().dir().join("run"));
    if vm.volume.is_some() && vm.generation.get() > 0 {
        assert_eq!(claimed.unwrap().trim(), vm.generation.to_string(), "the newest run");
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meanwhile {
    Nothing,
    Cancel,
    Crash,
}

const ALL: [Meanwhile; 3] = [Meanwhile::Nothing, Meanwhile::Cancel, Meanwhile::Crash];

/// Kills the daemon before and after each call in turn, with each thing that may happen meanwhile.
async fn everywhere<W: Future<Output = World>>(
    before: impl Fn() -> W,
    to: VmPlace,
    all: &[Meanwhile],
) {
    for meanwhile in all.iter().copied() {
        let mut calls = BTreeSet::new();
        let mut ends = BTreeSet::new();
        for stop_at in 0.. {
            assert!(stop_at < CALLS_MAX, "it does not end");
            let mut world = before().await;
            let (power, from) = (world.vm().power, world.vm().place());
            world.kill().await;
            let guest = Guest::start(&world.fake, VM);
            let op = world.try_begin(request(to), LIMIT).unwrap();
            let gate = Gate::at(stop_at);
            world.spawn(gate.clone());
            let finished = tokio::select! {
                call = gate.stopped() => {
                    calls.insert(call);
                    false
                }
                () = tokio::time::sleep(Duration::from_secs(5)) => true,
            };
            world.kill().await;
            match meanwhile {
                Meanwhile::Cancel if world.op(op).is_running() => world.cancel(op),
                Meanwhile::Crash => world.fake.crash(VM),
                _ => {}
            }
            world.spawn(Gate::open());
            let state = world.ended(op).await;
            let done = matches!(state, OpState::Done { .. });
            assert!(done || meanwhile != Meanwhile::Nothing, "pass {stop_at}: {state:?}");
            ends.insert(done);
            let now = world.vm().power;
            // What a paused guest stood at is gone with its process.
            let crashed = meanwhile == Meanwhile::Crash && power == Power::Paused;
            assert!(now == power || (crashed && now == Power::Off), "pass {stop_at}: {now:?}");
            let moves = guest.count();
            world.quiet().await;
            check(&world, &state, from, to, now).await;
            if power == Power::Running {
                assert!(guest.count() > moves, "pass {stop_at}: the guest works");
                guest.unharmed(&world).await;
            } else {
                guest.task.abort();
            }
            if finished {
                break;
            }
        }
        assert!(calls.contains("storage moved") && calls.contains("finish"), "{calls:?}");
        assert!(calls.contains("copy gone"), "{calls:?}");
        assert!(ends.contains(&true), "some get to their end");
    }
}

#[tokio::test(start_paused = true)]
async fn a_running_machine_moves_whenever_the_daemon_dies() {
    everywhere(running, ON_SECOND, &[Meanwhile::Nothing]).await;
}

#[tokio::test(start_paused = true)]
async fn a_running_machine_that_is_to_stay_stays_or_has_moved() {
    everywhere(running, ON_SECOND, &[Meanwhile::Cancel]).await;
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_crashes_in_its_move_loses_nothing() {
    everywhere(running, ON_SECOND, &[Meanwhile::Crash]).await;
}

#[tokio::test(start_paused = true)]
async fn a_paused_machine_moves_whatever_dies() {
    everywhere(paused, ON_SECOND, &[Meanwhile::Nothing]).await;
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_is_off_moves_whatever_dies() {
    everywhere(on_first, LOCAL, &ALL).await;
}

#[tokio::test(start_paused = true)]
async fn a_saved_machine_moves_with_its_memory_and_resumes_there() {
    everywhere(saved, ON_SECOND, &ALL).await;
    let mut world = saved().await;
    world.run(request(ON_SECOND)).await;
    world.run(OpRequest::VmResume { vm: VM }).await;
    world.check(Power::Running).await;
    assert!(!world.noted(Severity::Warning, "used once"), "it came back from its memory");
}

#[tokio::test(start_paused = true)]
async fn it_can_be_stopped_at_any_moment() {
    let mut ends = BTreeSet::new();
    for moment in 0..200 {
        let mut world = running().await;
        let guest = Guest::start(&world.fake, VM);
        let op = world.begin(request(ON_SECOND));
        tokio::time::sleep(Duration::from_millis(moment * 7)).await;
        let over = !world.op(op).is_running();
        if !over {
            world.cancel(op);
        }
        let state = world.ended(op).await;
        ends.insert(matches!(state, OpState::Done { .. }));
        check(&world, &state, ON_FIRST, ON_SECOND, Power::Running).await;
        guest.unharmed(&world).await;
        if over {
            break;
        }
    }
    assert_eq!(ends.len(), 2, "some were stopped and some were not");
}

#[tokio::test(start_paused = true)]
async fn it_goes_from_place_to_place_again_and_again() {
    let mut world = running().await;
    let guest = Guest::start(&world.fake, VM);
    for to in [ON_SECOND, LOCAL, ON_FIRST, ON_SECOND] {
        let from = world.vm().place();
        let op = world.begin(request(to));
        let state = world.ended(op).await;
        assert!(matches!(state, OpState::Done { .. }), "{state:?}");
        check(&world, &state, from, to, Power::Running).await;
    }
    assert_eq!(world.vm().generation.get(), 1, "it is the same run");
    guest.unharmed(&world).await;
    // And it starts from there.
    world.run(OpRequest::VmOff { vm: VM }).await;
    world.run(OpRequest::VmStart { vm: VM }).await;
    world.check(Power::Running).await;
}

/// A move that fails; gives the code.
async fn fails(world: &mut World, limit: Millis) -> String {
    let guest = Guest::start(&world.fake, VM);
    let op = world.try_begin(request(ON_SECOND), limit).unwrap();
    let code = world.failed(op).await;
    let state = world.op(op).state.clone();
    check(world, &state, ON_FIRST, ON_SECOND, Power::Running).await;
    guest.unharmed(world).await;
    code
}

#[tokio::test(start_paused = true)]
async fn a_full_volume_changes_nothing() {
    let mut world = running().await;
    let full = Fault::MirrorFails("No space left on device".to_owned());
    world.fake.inject(Some(VM), full);
    assert_eq!(fails(&mut world, LIMIT).await, "no_space");
    world.fake.heal();
    world.run(request(ON_SECOND)).await;
}

#[tokio::test(start_paused = true)]
async fn copies_that_fail_or_never_end_change_nothing() {
    let mut world = running().await;
    world.fake.inject(Some(VM), Fault::MirrorFails("Input/output error".to_owned()));
    assert_eq!(fails(&mut world, LIMIT).await, "copy");
    world.fake.heal();
    world.fake.inject(Some(VM), Fault::MirrorStalls);
    assert_eq!(fails(&mut world, Millis::from_secs(20)).await, "deadline");
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_is_not_there_is_named() {
    let mut world = running().await;
    lock(&world.seen.missing).insert(SECOND);
    let op = world.begin(request(ON_SECOND));
    assert_eq!(world.failed(op).await, "volume");
    assert_eq!(world.vm().copies, [ON_SECOND], "something may lie there");
    lock(&world.seen.missing).clear();
    world.until("it was looked there", |world| world.vm().copies.is_empty()).await;
    world.check(Power::Running).await;
}

#[tokio::test(start_paused = true)]
async fn an_old_volume_that_goes_away_is_cleaned_when_it_is_back() {
    let mut world = running().await;
    let op = world.begin(request(ON_SECOND));
    let coming = super::vms_dir(world.dir.path(), Some(SECOND));
    world.until("it is being copied", |_| !super::listing(&coming).is_empty()).await;
    lock(&world.seen.missing).insert(FIRST);
    world.done(op).await;
    assert_eq!(world.vm().copies, [ON_FIRST]);
    assert!(world.files_on(Some(FIRST)).dir().exists());
    lock(&world.seen.missing).clear();
    world.until("it is removed", |world| world.vm().copies.is_empty()).await;
    world.check(Power::Running).await;
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_cannot_get_its_new_files_starts_again_from_them() {
    let mut world = running().await;
    let guest = Guest::start(&world.fake, VM);
    world.fake.inject(Some(VM), Fault::PivotFails);
    let op = world.begin(request(ON_SECOND));
    let state = world.ended(op).await;
    world.until("it runs again", |world| world.vm().generation.get() == 2).await;
    world.quiet().await;
    check(&world, &state, ON_FIRST, ON_SECOND, Power::Running).await;
    assert!(world.noted(Severity::Error, "started again"));
    guest.unharmed(&world).await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_does_not_wait_for_a_cluster_that_takes_nothing_in() {
    let mut world = running().await;
    let guest = Guest::start(&world.fake, VM);
    let op = world.begin(request(ON_SECOND));
    world.until("it is copied", |_| guest.count() > 2).await;
    *lock(&world.seen.deaf) = true;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let before = guest.count();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(guest.count() > before, "the guest works");
    *lock(&world.seen.deaf) = false;
    assert_eq!(world.failed(op).await, "handover");
    let state = world.op(op).state.clone();
    check(&world, &state, ON_FIRST, ON_SECOND, Power::Running).await;
    guest.unharmed(&world).await;
}

#[tokio::test(start_paused = true)]
async fn a_decision_whose_answer_is_lost_is_gone_through_with() {
    for restart in [false, true] {
        let mut world = running().await;
        let guest = Guest::start(&world.fake, VM);
        *lock(&world.seen.unsure) = true;
        let op = world.begin(request(ON_SECOND));
        world.until("it has moved", |world| world.vm().place() == ON_SECOND).await;
        let before = guest.count();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(guest.count(), before, "the guest stands while nothing is known");
        world.cancel(op);
        *lock(&world.seen.unsure) = false;
        if restart {
            world.restart().await;
        }
        let state = world.ended(op).await;
        assert!(matches!(state, OpState::Done { .. }), "{state:?}");
        check(&world, &state, ON_FIRST, ON_SECOND, Power::Running).await;
        guest.unharmed(&world).await;
    }
}

/// The daemon dies with its decision on the way, which is taken in some time later.
async fn late<W: Future<Output = World>>(before: impl Fn() -> W, power: Power) {
    let mut at_decision = None;
    for stop_at in 0..CALLS_MAX {
        let mut world = before().await;
        world.kill().await;
        world.begin(request(ON_SECOND));
        let gate = Gate::at(stop_at);
        world.spawn(gate.clone());
        if gate.stopped().await == "storage moved" {
            at_decision = Some(stop_at);
            break;
        }
    }
    let mut ends = BTreeSet::new();
    for cancel in [false, true] {
        for delay in 0..12 {
            let mut world = before().await;
            world.kill().await;
            let guest = Guest::start(&world.fake, VM);
            let op = world.begin(request(ON_SECOND));
            let gate = Gate::at(at_decision.unwrap());
            world.spawn(gate.clone());
            gate.stopped().await;
            world.kill().await;
            let generation = world.vm().generation;
            let by = model::Speaker { node: NODE, epoch: 0 };
            if cancel {
                world.cancel(op);
            }
            world.spawn(Gate::open());
            tokio::time::sleep(Duration::from_millis(delay * 4)).await;
            let taken = world.truth.propose(Command::VmStorageMoved { op, generation, by });
            let state = world.ended(op).await;
            let done = matches!(state, OpState::Done { .. });
            assert!(done || (cancel && taken.is_err()), "{state:?} and {taken:?}");
            ends.insert(taken.is_ok());
            check(&world, &state, ON_FIRST, ON_SECOND, power).await;
            if power == Power::Running {
                guest.unharmed(&world).await;
            }
        }
    }
    assert_eq!(ends.len(), 2, "some came in time and some did not");
}

#[tokio::test(start_paused = true)]
async fn a_late_decision_finds_both_copies_whole_or_the_end_of_the_operation() {
    late(running, Power::Running).await;
    late(on_first, Power::Off).await;
}
