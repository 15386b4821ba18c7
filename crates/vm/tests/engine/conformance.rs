//! What every engine must do, checked on the fake and on QEMU with the same code.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use model::Bytes;
use model::DiskId;
use model::Generation;
use model::Millis;
use model::OpId;
use model::VmId;
use tokio::task::JoinSet;
use uuid::Uuid;
use vm::engine::Adopted;
use vm::engine::CpuLimits;
use vm::engine::CpuPlan;
use vm::engine::DeviceState;
use vm::engine::DiskPlan;
use vm::engine::EngineError;
use vm::engine::ErrorClass;
use vm::engine::Extent;
use vm::engine::GoneReason;
use vm::engine::ImageFile;
use vm::engine::ImageFormat;
use vm::engine::ImageSlot;
use vm::engine::Launched;
use vm::engine::Machine;
use vm::engine::MachineEvent;
use vm::engine::MemoryPlan;
use vm::engine::MigratePhase;
use vm::engine::MigrateTuning;
use vm::engine::MirrorPhase;
use vm::engine::MirrorPlan;
use vm::engine::Origin;
use vm::engine::Outgoing;
use vm::engine::Profile;
use vm::engine::RestorePlan;
use vm::engine::RunState;
use vm::engine::SavePhase;
use vm::engine::Switch;

use crate::rig::Rig;
use crate::rig::again;
use crate::rig::disk;
use crate::rig::event;

macro_rules! both {
    ($($name:ident),* $(,)?) => {
        mod fake {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::rig::Rig::fake()).await;
            })*
        }
        mod qemu {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::rig::Rig::qemu()).await;
            })*
        }
    };
}

both!(
    a_machine_lives_from_launch_to_reap,
    a_machine_survives_its_engine,
    a_saved_machine_comes_back_where_it_was,
    a_guest_goes_from_machine_to_machine,
    a_migration_that_does_not_come_to_its_end_changes_nothing,
    disks_go_along_with_their_guest,
    a_guest_whose_disks_do_not_arrive_keeps_its_own,
    a_guest_that_is_stopped_at_the_last_moment_keeps_its_disks,
    devices_are_attached_and_told,
    disks_move_to_other_files_while_they_are_used,
    a_move_of_disks_that_is_given_up_changes_nothing,
    processor_limits_change_while_it_runs,
    what_cannot_be_is_refused,
    a_dead_machine_says_so,
);

async fn a_machine_lives_from_launch_to_reap(rig: Rig) {
    let engine = rig.engine();
    let plan = rig.plan().await;
    let vm = plan.vm;
    let Launched { machine, mut events, run } = engine.launch(plan).await.unwrap();
    assert_eq!((run.vm, run.generation.get()), (vm, 7));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let age_ms = now.as_millis().abs_diff(u128::from(run.started_ms));
    assert!(age_ms < 600_000, "it was started {age_ms} ms ago");
    assert_eq!(machine.query_status().await.unwrap(), RunState::Prelaunch);
    machine.cont().await.unwrap();
    event(&mut events, |event| *event == MachineEvent::Resumed).await;
    assert_eq!(machine.query_status().await.unwrap(), RunState::Running);
    machine.pause().await.unwrap();
    event(&mut events, |event| *event == MachineEvent::Stopped).await;
    assert_eq!(machine.query_status().await.unwrap(), RunState::Paused);
    machine.cont().await.unwrap();
    machine.reset().await.unwrap();
    event(&mut events, |event| *event == MachineEvent::Reset(Origin::Host)).await;
    let png = machine.screenshot().await.unwrap();
    assert!(png.starts_with(b"\x89PNG\r\n\x1a\n"), "{:?}", &png[..8.min(png.len())]);
    assert_eq!(machine.disk_requests().await.unwrap(), 0, "it has no disk");
    let strays = engine.strays().await.unwrap();
    assert_eq!(
        strays.iter().map(|stray| (stray.vm, stray.alive)).collect::<Vec<_>>(),
        [(vm, true)]
    );
    machine.kill().await.unwrap();
    event(&mut events, |event| matches!(event, MachineEvent::Exited(_))).await;
    assert!(matches!(machine.query_status().await, Err(EngineError::Exited)));
    engine.reap(vm).await.unwrap();
    engine.reap(vm).await.unwrap();
    assert_eq!(engine.strays().await.unwrap(), []);
    assert!(matches!(engine.adopt(vm).await, Ok(Adopted::Gone(GoneReason::NoTrace))));
}

async fn a_machine_survives_its_engine(rig: Rig) {
    let engine = rig.engine();
    let image = rig.blank("a.img", 8);
    let mut plan = rig.plan().await;
    let vm = plan.vm;
    plan.disks.push(disk(&image));
    let first = plan.disks[0].id;
    let launched = engine.launch(plan).await.unwrap();
    launched.machine.cont().await.unwrap();
    let late = disk(&rig.blank("b.img", 8));
    launched.machine.plug_disk(again(&late)).await.unwrap();
    let layout = launched.machine.layout();
    drop((launched, engine));

    let engine = rig.engine();
    let mut other = rig.plan().await;
    other.vm = vm;
    assert!(
        matches!(engine.launch(other).await, Err(EngineError::AlreadyRunning(found)) if found == vm)
    );
    let Adopted::Running(Launched { machine, mut events, run }) = engine.adopt(vm).await.unwrap()
    else {
        panic!("the machine is gone");
    };
    assert_eq!((run.vm, run.generation.get()), (vm, 7));
    assert_eq!(machine.query_status().await.unwrap(), RunState::Running);
    assert_eq!(machine.layout(), layout);
    let inventory = machine.inventory().await.unwrap();
    let attached: Vec<DiskId> = inventory.disks.keys().copied().collect();
    let mut expected = vec![first, late.id];
    expected.sort();
    assert_eq!(attached, expected);
    engine.reap(vm).await.unwrap();
    event(&mut events, |event| matches!(event, MachineEvent::Exited(_))).await;
    assert!(matches!(engine.adopt(vm).await, Ok(Adopted::Gone(_))));
}

async fn a_saved_machine_comes_back_where_it_was(rig: Rig) {
    let engine = rig.engine();
    let image = rig.blank("a.img", 8);
    let root = disk(&image);
    let mut plan = rig.plan().await;
    let vm = plan.vm;
    plan.disks.push(again(&root));
    let Launched { machine, mut events, .. } = engine.launch(plan).await.unwrap();
    machine.cont().await.unwrap();
    let late = disk(&rig.blank("b.img", 8));
    machine.plug_disk(again(&late)).await.unwrap();
    machine.set_vcpus(2).await.unwrap();
    let path = rig.dir.path().join("state");
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    machine.save(file).await.unwrap();
    let ended = event(&mut events, |event| matches!(event, MachineEvent::SaveEnded(_))).await;
    assert_eq!(ended, MachineEvent::SaveEnded(Ok(())));
    assert_eq!(machine.save_progress().await.unwrap().phase, SavePhase::Done);
    assert_eq!(machine.query_status().await.unwrap(), RunState::Saved);
    machine.save_cancel().await.unwrap();
    let layout = machine.layout();
    machine.kill().await.unwrap();
    engine.reap(vm).await.unwrap();

    // As it was, devices in another order: it fits.
    let mut plan = rig.plan().await;
    (plan.vm, plan.layout) = (vm, layout.clone());
    plan.disks = vec![again(&late), again(&root)];
    plan.restore = Some(RestorePlan::File(File::open(&path).unwrap()));
    let Launched { machine, mut events, .. } = engine.launch(plan).await.unwrap();
    assert_ne!(machine.query_status().await.unwrap(), RunState::Running);
    assert_eq!(machine.inventory().await.unwrap().vcpus.plugged, 2);
    assert_eq!(machine.layout(), layout);
    machine.cont().await.unwrap();
    event(&mut events, |event| *event == MachineEvent::Resumed).await;
    machine.kill().await.unwrap();
    engine.reap(vm).await.unwrap();

    // Without one of its disks, or from something else than a saved state: refused, nothing left.
    let mut plan = rig.plan().await;
    (plan.vm, plan.layout) = (vm, layout.clone());
    plan.disks = vec![again(&root)];
    plan.restore = Some(RestorePlan::File(File::open(&path).unwrap()));
    assert!(matches!(engine.launch(plan).await, Err(EngineError::Restore(_))));
    let mut plan = rig.plan().await;
    (plan.vm, plan.layout) = (vm, layout);
    plan.disks = vec![again(&late), again(&root)];
    plan.restore = Some(RestorePlan::File(File::open(&image).unwrap()));
    let refused = engine.launch(plan).await;
    assert!(matches!(refused, Err(EngineError::Restore(_))), "{refused:?}");
    assert_eq!(engine.strays().await.unwrap(), []);
}

/// The machine of a plan, and one on another host that waits for its guest.
async fn source_and_target(rig: &Rig, twin: &Rig) -> (Launched, Launched, OpId) {
    let disk = disk(&rig.blank("a.img", 8));
    let there = again(&disk);
    source_and_target_with(rig, twin, disk, there).await
}

/// The same with this disk, here and there.
async fn source_and_target_with(
    rig: &Rig,
    twin: &Rig,
    here: DiskPlan,
    there: DiskPlan,
) -> (Launched, Launched, OpId) {
    let mut plan = rig.plan().await;
    plan.disks.push(here);
    plan.memory.max = plan.memory.size;
    let mut other = twin.plan().await;
    (other.vm, other.generation) = (plan.vm, Generation::new(8));
    other.memory = plan.memory;
    other.disks.push(there);
    let source = rig.engine().launch(plan).await.unwrap();
    source.machine.cont().await.unwrap();
    let op = OpId::new(Uuid::now_v7());
    other.layout = source.machine.layout();
    other.restore = Some(RestorePlan::Stream(op));
    let target = twin.engine().launch(other).await.unwrap();
    assert_eq!((source.run.arrival, target.run.arrival), (None, Some(op)));
    target.machine.incoming().await.unwrap();
    (source, target, op)
}

const QUICK: MigrateTuning = MigrateTuning { budget: Millis::new(300), throttle_max: 1 };

/// Carries what the source sends, as a network does.
fn carry(outgoing: Outgoing, target: &Arc<dyn Machine>) -> JoinSet<()> {
    carry_to(outgoing, target, false)
}

/// The same, of its memory or of its disks.
fn carry_to(mut outgoing: Outgoing, target: &Arc<dyn Machine>, disks: bool) -> JoinSet<()> {
    let target = target.clone();
    let mut carriers = JoinSet::new();
    carriers.spawn(async move {
        let mut all = JoinSet::new();
        while let Some(mut ours) = outgoing.connections.recv().await {
            let theirs = match disks {
                true => target.receive_connect().await,
                false => target.incoming_connect().await,
            };
            let mut theirs = theirs.unwrap();
            all.spawn(async move {
                let _ = tokio::io::copy_bidirectional(&mut ours, &mut theirs).await;
            });
        }
        all.join_all().await;
    });
    carriers
}

/// Waits for the end of a migration.
async fn ended(machine: &Arc<dyn Machine>) -> MigratePhase {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let seen = machine.migrate_progress().await.unwrap();
        if !matches!(seen.phase, MigratePhase::Running | MigratePhase::Idle) {
            return seen.phase;
        }
        assert!(Instant::now() < end, "it does not end: {seen:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn a_guest_goes_from_machine_to_machine(rig: Rig) {
    let twin = rig.twin();
    let (mut source, target, op) = source_and_target(&rig, &twin).await;
    assert_eq!(target.machine.query_status().await.unwrap(), RunState::Incoming);
    let early = target.machine.cont().await;
    assert!(matches!(early, Err(EngineError::Command { .. })), "half of a guest: {early:?}");
    assert_eq!(source.machine.migrate_blockers().await.unwrap(), [""; 0]);
    source.machine.dirty_rate(Duration::from_millis(100)).await.unwrap();
    let began = Instant::now();
    let outgoing = source.machine.migrate(QUICK, Switch::AtOnce).await.unwrap();
    let _carriers = carry(outgoing, &target.machine);
    event(&mut source.events, |event| *event == MachineEvent::MigrationMoved).await;
    assert_eq!(ended(&source.machine).await, MigratePhase::Done);
    // It says so only when the other side has everything; neither runs.
    assert_eq!(source.machine.query_status().await.unwrap(), RunState::Saved);
    assert_eq!(target.machine.query_status().await.unwrap(), RunState::Paused);
    let at = |launched: &Launched| launched.machine.loaded_at();
    assert!(at(&target).is_some() && at(&source).is_none());
    let sent = source.machine.migrate_progress().await.unwrap();
    assert!(sent.stood.is_some_and(|stood| stood < began.elapsed()), "{sent:?}");
    assert!(sent.pass > 0 && sent.sent > Bytes::ZERO, "{sent:?}");
    assert!(sent.empty > Bytes::ZERO && sent.empty <= sent.total, "{sent:?}");
    // A daemon that dies here leaves a machine that the next one knows for what it is.
    let vm = target.run.vm;
    drop(target);
    let Adopted::Running(target) = twin.engine().adopt(vm).await.unwrap() else {
        panic!("it is there");
    };
    assert_eq!(target.run.arrival, Some(op));
    // Two images cannot be written to by both: the source has let its own go.
    target.machine.cont().await.unwrap();
    target.machine.announce().await.unwrap();
    assert_eq!(target.machine.query_status().await.unwrap(), RunState::Running);
    assert_eq!(source.machine.query_status().await.unwrap(), RunState::Saved);
}

async fn a_migration_that_does_not_come_to_its_end_changes_nothing(rig: Rig) {
    let twin = rig.twin();
    let (source, target, _) = source_and_target(&rig, &twin).await;
    let machine = &source.machine;
    // Nobody carries it.
    drop(machine.migrate(QUICK, Switch::AtOnce).await.unwrap());
    let phase = ended(machine).await;
    assert!(matches!(phase, MigratePhase::Failed(_)), "{phase:?}");
    assert_eq!(machine.query_status().await.unwrap(), RunState::Running);
    // It is given up when nobody reads any more.
    let outgoing = machine.migrate(QUICK, Switch::AtOnce).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    machine.migrate_cancel().await.unwrap();
    assert_eq!(ended(machine).await, MigratePhase::Cancelled);
    machine.migrate_cancel().await.unwrap();
    assert_eq!(machine.query_status().await.unwrap(), RunState::Running);
    drop(outgoing);
    // The other side dies.
    let outgoing = machine.migrate(QUICK, Switch::AtOnce).await.unwrap();
    target.machine.kill().await.unwrap();
    drop(outgoing);
    assert!(matches!(ended(machine).await, MigratePhase::Failed(_)));
    assert_eq!(machine.query_status().await.unwrap(), RunState::Running);
    // And what it had before works as before.
    let path = rig.blank("memory", 0);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    machine.save(file).await.unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while machine.save_progress().await.unwrap().phase == SavePhase::Running {
        assert!(Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(machine.save_progress().await.unwrap().phase, SavePhase::Done);
}

/// Waits until all copies are there.
async fn copies(machine: &Arc<dyn Machine>, wanted: &MirrorPhase) {
    let end = Instant::now() + crate::rig::PATIENCE;
    loop {
        let all = machine.mirrors().await.unwrap();
        if !all.is_empty() && all.values().all(|mirror| mirror.phase == *wanted) {
            return;
        }
        assert!(Instant::now() < end, "not {wanted:?} but {all:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A machine with a disk of 8 MiB with something on it, another one that it may not write, and places
/// for both.
async fn with_two_disks(rig: &Rig) -> (Launched, Vec<(DiskId, PathBuf, PathBuf)>) {
    let mut plan = rig.plan().await;
    let mut all = Vec::new();
    for (word, read_only) in [("a", false), ("b", true)] {
        let (from, to) = (rig.blank(word, 8), rig.blank(&format!("{word}-new"), 8));
        let file = File::options().write(true).open(&from).unwrap();
        file.write_all_at(&vec![0x5a; 3 << 20], 1 << 20).unwrap();
        let mut disk = disk(&from);
        disk.read_only = read_only;
        all.push((disk.id, from, to));
        plan.disks.push(disk);
    }
    let launched = rig.engine().launch(plan).await.unwrap();
    launched.machine.cont().await.unwrap();
    (launched, all)
}

fn mirror(disk: DiskId, to: &Path) -> MirrorPlan {
    let chain = vec![ImageFile { path: to.to_owned(), format: ImageFormat::Raw }];
    MirrorPlan { slot: ImageSlot::Disk(disk), chain }
}

async fn disks_move_to_other_files_while_they_are_used(rig: Rig) {
    let (Launched { machine, .. }, disks) = with_two_disks(&rig).await;
    let vm = machine.run().vm;
    assert!(machine.mirrors().await.unwrap().is_empty());
    for (disk, _, to) in &disks {
        machine.mirror(mirror(*disk, to)).await.unwrap();
        let again = machine.mirror(mirror(*disk, to)).await;
        assert!(matches!(again, Err(EngineError::Command { .. })), "{again:?}");
    }
    assert!(machine.mirror_pivot().await.is_err(), "they are not held");
    machine.mirror_tighten().await.unwrap();
    copies(&machine, &MirrorPhase::InStep).await;
    machine.mirror_tighten().await.unwrap();
    assert!(machine.mirror_pivot().await.is_err(), "they are not held");
    machine.pause().await.unwrap();
    machine.mirror_hold().await.unwrap();
    copies(&machine, &MirrorPhase::Held).await;
    for (_, from, to) in &disks {
        assert!(std::fs::read(from).unwrap() == std::fs::read(to).unwrap(), "{}", to.display());
        let room = std::fs::metadata(to).unwrap().blocks() * 512;
        assert!(room <= 5 << 20, "thin stays thin: {room}");
    }
    drop(machine);
    // The next daemon finds them as they were.
    let engine = rig.engine();
    let Adopted::Running(Launched { machine, .. }) = engine.adopt(vm).await.unwrap() else {
        panic!("the machine is gone");
    };
    let held = machine.mirrors().await.unwrap();
    assert_eq!(held.len(), 2, "{held:?}");
    for (disk, _, to) in &disks {
        let mirror = &held[&ImageSlot::Disk(*disk)];
        assert_eq!((&mirror.phase, mirror.target.as_ref()), (&MirrorPhase::Held, Some(to)));
    }
    machine.mirror_pivot().await.unwrap();
    machine.mirror_pivot().await.unwrap();
    assert!(machine.mirrors().await.unwrap().is_empty());
    machine.cont().await.unwrap();
    // The old files are let go, and the new ones are taken.
    let (disk, from, to) = &disks[0];
    let mut other = rig.plan().await;
    other.disks.push(crate::rig::disk(to));
    assert!(matches!(engine.launch(other).await, Err(EngineError::DiskBusy { .. })));
    let mut other = rig.plan().await;
    other.isolation.slot += 1;
    other.disks.push(crate::rig::disk(from));
    let second = engine.launch(other).await.unwrap();
    second.machine.kill().await.unwrap();
    machine.resize_disk(*disk, Bytes::mib(16)).await.unwrap();
    // And back, by a machine that was adopted again.
    drop(machine);
    let Adopted::Running(Launched { machine, .. }) = rig.engine().adopt(vm).await.unwrap() else {
        panic!("the machine is gone");
    };
    let back = rig.blank("back", 16);
    machine.mirror(mirror(*disk, &back)).await.unwrap();
    machine.mirror_tighten().await.unwrap();
    copies(&machine, &MirrorPhase::InStep).await;
    machine.mirror_hold().await.unwrap();
    copies(&machine, &MirrorPhase::Held).await;
    machine.mirror_pivot().await.unwrap();
    machine.unplug_disk(*disk).await.unwrap();
    machine.kill().await.unwrap();
    rig.engine().reap(vm).await.unwrap();
}

async fn a_move_of_disks_that_is_given_up_changes_nothing(rig: Rig) {
    let (Launched { machine, .. }, disks) = with_two_disks(&rig).await;
    let vm = machine.run().vm;
    machine.mirror_cancel().await.unwrap();
    let (disk, from, to) = &disks[0];
    let nowhere = machine.mirror(mirror(*disk, &rig.dir.path().join("nowhere"))).await;
    assert!(matches!(nowhere, Err(EngineError::Image { .. })), "{nowhere:?}");
    let unknown = machine.mirror(mirror(DiskId::new(Uuid::now_v7()), to)).await;
    assert!(matches!(unknown, Err(EngineError::NotPlugged(_))), "{unknown:?}");
    for phase in [MirrorPhase::Copying, MirrorPhase::InStep, MirrorPhase::Held] {
        for (disk, _, to) in &disks {
            machine.mirror(mirror(*disk, to)).await.unwrap();
        }
        if phase != MirrorPhase::Copying {
            machine.mirror_tighten().await.unwrap();
            copies(&machine, &MirrorPhase::InStep).await;
        }
        if phase == MirrorPhase::Held {
            machine.pause().await.unwrap();
            machine.mirror_hold().await.unwrap();
            copies(&machine, &MirrorPhase::Held).await;
        }
        machine.mirror_cancel().await.unwrap();
        machine.mirror_cancel().await.unwrap();
        assert!(machine.mirrors().await.unwrap().is_empty(), "{phase:?}");
    }
    machine.cont().await.unwrap();
    // The new files are let go, and the old ones are not.
    let mut other = rig.plan().await;
    other.disks.push(crate::rig::disk(from));
    assert!(matches!(rig.engine().launch(other).await, Err(EngineError::DiskBusy { .. })));
    for (_, _, to) in &disks {
        std::fs::remove_file(to).unwrap();
    }
    assert_eq!(machine.query_status().await.unwrap(), RunState::Running);
    machine.kill().await.unwrap();
    rig.engine().reap(vm).await.unwrap();
}

async fn devices_are_attached_and_told(rig: Rig) {
    let engine = rig.engine();
    let mut plan = rig.plan().await;
    let vm = plan.vm;
    plan.disks.push(disk(&rig.blank("a.img", 8)));
    let root = plan.disks[0].id;
    let Launched { machine, .. } = engine.launch(plan).await.unwrap();
    let extra = disk(&rig.blank("b.img", 8));
    machine.plug_disk(again(&extra)).await.unwrap();
    let twice = machine.plug_disk(again(&extra)).await;
    assert!(matches!(twice, Err(EngineError::AlreadyPlugged(_))), "{twice:?}");
    let mut same_image = again(&extra);
    same_image.id = DiskId::new(Uuid::new_v4());
    let busy = machine.plug_disk(same_image).await;
    assert!(matches!(busy, Err(EngineError::DiskBusy { .. })), "{busy:?}");
    let missing = disk(&rig.dir.path().join("missing.img"));
    let missing = machine.plug_disk(missing).await;
    assert!(matches!(missing, Err(EngineError::Image { .. })), "{missing:?}");
    let inventory = machine.inventory().await.unwrap();
    assert_eq!(inventory.disks.len(), 2);
    assert_eq!(inventory.disks.get(&root), Some(&DeviceState::Plugged));
    machine.resize_disk(extra.id, Bytes::mib(16)).await.unwrap();
    let mut plugged = 2;
    let full = loop {
        let image = rig.blank(&format!("x{plugged}.img"), 1);
        match machine.plug_disk(disk(&image)).await {
            Ok(()) => plugged += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, EngineError::NoSlot), "{full:?}");
    assert_eq!(full.class(), ErrorClass::Refused);
    assert_eq!(machine.inventory().await.unwrap().disks.len(), plugged);
    machine.set_vcpus(2).await.unwrap();
    assert_eq!(machine.inventory().await.unwrap().vcpus.plugged, 2);
    let memory = machine.memory_state().await.unwrap();
    assert_eq!((memory.boot, memory.max), (Bytes::mib(160), Bytes::mib(288)));
    machine.set_memory(Bytes::new(Bytes::mib(200).get() + 4096)).await.unwrap();
    assert_eq!(machine.memory_state().await.unwrap().requested, Bytes::mib(200));
    engine.reap(vm).await.unwrap();
}

async fn processor_limits_change_while_it_runs(rig: Rig) {
    let engine = rig.engine();
    let mut plan = rig.plan().await;
    let vm = plan.vm;
    (plan.isolation.cpu_weight, plan.isolation.cpu_cap_percent) = (200, Some(50));
    let Launched { machine, run, .. } = engine.launch(plan).await.unwrap();
    machine.cont().await.unwrap();
    let limits = machine.inventory().await.unwrap().cpu_limits;
    assert_eq!(limits, CpuLimits { weight: 200, cap_percent: Some(50) });
    let limits = CpuLimits { weight: 10, cap_percent: None };
    let missing = machine.set_cpu_limits(limits).await.unwrap();
    // What this host lacks it lacked at the start, and in the same words.
    assert!(missing.iter().all(|it| run.missing_limits.contains(it)), "{missing:?} {run:?}");
    assert_eq!(machine.run(), run);
    assert_eq!(machine.inventory().await.unwrap().cpu_limits, limits);
    drop((machine, engine));

    let engine = rig.engine();
    let Adopted::Running(Launched { machine, .. }) = engine.adopt(vm).await.unwrap() else {
        panic!("the machine is gone");
    };
    assert_eq!(machine.inventory().await.unwrap().cpu_limits, limits);
    engine.reap(vm).await.unwrap();
    assert!(matches!(machine.set_cpu_limits(limits).await, Err(EngineError::Exited)));
}

async fn what_cannot_be_is_refused(rig: Rig) {
    let engine = rig.engine();
    let mut plan = rig.plan().await;
    plan.disks.push(disk(&rig.dir.path().join("missing.img")));
    assert!(matches!(engine.launch(plan).await, Err(EngineError::Image { .. })));
    let image = rig.blank("a.img", 8);
    let mut plan = rig.plan().await;
    plan.disks = vec![disk(&image), disk(&image)];
    let busy = engine.launch(plan).await;
    assert!(matches!(busy, Err(EngineError::DiskBusy { .. })), "{busy:?}");
    assert_eq!(engine.strays().await.unwrap(), []);

    let mut plan = rig.plan().await;
    let vm = plan.vm;
    plan.memory = MemoryPlan { size: Bytes::mib(128), max: Bytes::mib(128) };
    plan.cpus = CpuPlan { count: 1, max: 1 };
    plan.disks = vec![disk(&image)];
    let Launched { machine, .. } = engine.launch(plan).await.unwrap();
    let nobody = DiskId::new(Uuid::new_v4());
    assert!(matches!(machine.unplug_disk(nobody).await, Err(EngineError::NotPlugged(_))));
    let size = machine.resize_disk(nobody, Bytes::mib(1)).await;
    assert!(matches!(size, Err(EngineError::NotPlugged(_))));
    assert!(matches!(machine.set_vcpus(2).await, Err(EngineError::OutOfRange { .. })));
    assert!(matches!(machine.set_vcpus(0).await, Err(EngineError::OutOfRange { .. })));
    let memory = machine.set_memory(Bytes::mib(256)).await;
    assert!(matches!(memory, Err(EngineError::Unsupported { .. })), "{memory:?}");
    // A second machine on the same image, and the first is not disturbed.
    let mut plan = rig.plan().await;
    plan.isolation.slot += 50;
    plan.disks = vec![disk(&image)];
    let busy = engine.launch(plan).await;
    assert!(matches!(busy, Err(EngineError::DiskBusy { .. })), "{busy:?}");
    assert_eq!(machine.query_status().await.unwrap(), RunState::Prelaunch);
    engine.reap(vm).await.unwrap();

    let mut plan = rig.plan().await;
    plan.profile = Profile::Legacy;
    plan.machine = engine.ability().await.unwrap().machine_legacy;
    plan.disks = vec![disk(&image)];
    assert!(matches!(engine.launch(plan).await, Err(EngineError::Unsupported { .. })));
}

async fn a_dead_machine_says_so(rig: Rig) {
    let engine = rig.engine();
    let plan = rig.plan().await;
    let vm = plan.vm;
    let Launched { machine, mut events, .. } = engine.launch(plan).await.unwrap();
    machine.cont().await.unwrap();
    engine.reap(vm).await.unwrap();
    let exited = event(&mut events, |event| matches!(event, MachineEvent::Exited(_))).await;
    let MachineEvent::Exited(info) = exited else { panic!("{exited:?}") };
    assert_eq!(info.signal, Some(9), "{info:?}");
    assert!(matches!(machine.cont().await, Err(EngineError::Exited)));
    assert!(matches!(machine.agent().await, Err(EngineError::Exited)));
    assert!(matches!(machine.serial().await, Err(EngineError::Exited)));
    assert!(matches!(machine.vnc().await, Err(EngineError::Exited)));
    machine.kill().await.unwrap();
    assert!(machine.serial_tail().len() < 64 * 1024);
    let nobody = VmId::new(Uuid::new_v4());
    assert!(matches!(engine.adopt(nobody).await, Ok(Adopted::Gone(GoneReason::NoTrace))));
    engine.reap(nobody).await.unwrap();
}

/// A guest that runs with a disk of 8 MiB with something on it, and a machine on another host that
/// waits for both, with a blank one.
struct Along {
    source: Launched,
    target: Launched,
    slot: ImageSlot,
    from: PathBuf,
    to: PathBuf,
}

async fn along(rig: &Rig, twin: &Rig) -> Along {
    let (from, to) = (rig.blank("here", 8), twin.blank("there", 8));
    let file = File::options().write(true).open(&from).unwrap();
    file.write_all_at(&vec![0x5a; 3 << 20], 1 << 20).unwrap();
    let here = disk(&from);
    let mut there = again(&here);
    there.chain[0].path = to.clone();
    let slot = ImageSlot::Disk(here.id);
    let (source, target, _) = source_and_target_with(rig, twin, here, there).await;
    target.machine.receive(&[slot]).await.unwrap();
    Along { source, target, slot, from, to }
}

impl Along {
    /// Copies until each write goes to both.
    async fn in_step(&self) -> JoinSet<()> {
        let machine = &self.source.machine;
        let way = machine.send_way(1).await.unwrap();
        let carriers = carry_to(way, &self.target.machine, true);
        machine.send_disk(self.slot, Extent::Whole).await.unwrap();
        let again = machine.send_disk(self.slot, Extent::Whole).await;
        assert!(matches!(again, Err(EngineError::Command { .. })), "{again:?}");
        machine.mirror_tighten().await.unwrap();
        copies(machine, &MirrorPhase::InStep).await;
        carriers
    }

    /// The source works with its disk as before.
    async fn keeps_its_disk(&self) {
        let ImageSlot::Disk(id) = self.slot else { panic!("{:?}", self.slot) };
        self.source.machine.resize_disk(id, Bytes::mib(16)).await.unwrap();
        self.source.machine.kill().await.unwrap();
    }

    /// Sends the memory until the guest stands and waits for a word.
    async fn waits(&self) -> JoinSet<()> {
        let machine = &self.source.machine;
        assert!(machine.migrate_switch().await.is_err(), "nothing waits for it");
        let outgoing = machine.migrate(QUICK, Switch::OnWord).await.unwrap();
        let carriers = carry(outgoing, &self.target.machine);
        assert_eq!(ended(machine).await, MigratePhase::Waiting);
        assert_ne!(machine.query_status().await.unwrap(), RunState::Running);
        carriers
    }
}

async fn disks_go_along_with_their_guest(rig: Rig) {
    let twin = rig.twin();
    let all = along(&rig, &twin).await;
    let Along { source, target, slot, from, to } = &all;
    let machine = &source.machine;
    let early = machine.send_disk(*slot, Extent::Whole).await;
    assert!(matches!(early, Err(EngineError::Command { .. })), "without a way: {early:?}");
    let _disks = all.in_step().await;
    assert_eq!(machine.query_status().await.unwrap(), RunState::Running);
    let _memory = all.waits().await;
    machine.mirror_hold().await.unwrap();
    copies(machine, &MirrorPhase::Held).await;
    assert_eq!(machine.mirrors().await.unwrap()[slot].target, None);
    assert!(machine.mirror_pivot().await.is_err(), "there is no file to go on with");
    machine.mirror_cancel().await.unwrap();
    assert!(machine.mirrors().await.unwrap().is_empty());
    target.machine.receive_end().await.unwrap();
    target.machine.receive_end().await.unwrap();
    assert!(target.machine.receive_connect().await.is_err(), "nothing more comes");
    assert!(std::fs::read(from).unwrap() == std::fs::read(to).unwrap(), "it is the same");
    let room = std::fs::metadata(to).unwrap().blocks() * 512;
    assert!(room <= 5 << 20, "thin stays thin: {room}");
    machine.migrate_switch().await.unwrap();
    let phase = loop {
        match ended(machine).await {
            MigratePhase::Waiting => tokio::time::sleep(Duration::from_millis(5)).await,
            phase => break phase,
        }
    };
    assert_eq!(phase, MigratePhase::Done);
    target.machine.cont().await.unwrap();
    assert_eq!(target.machine.query_status().await.unwrap(), RunState::Running);
    assert_eq!(machine.query_status().await.unwrap(), RunState::Saved);
    // The disk is the guest's there, as any other is.
    let ImageSlot::Disk(id) = slot else { panic!("{slot:?}") };
    target.machine.resize_disk(*id, Bytes::mib(16)).await.unwrap();
    target.machine.kill().await.unwrap();
}

async fn a_guest_that_is_stopped_at_the_last_moment_keeps_its_disks(rig: Rig) {
    let twin = rig.twin();
    let all = along(&rig, &twin).await;
    let machine = &all.source.machine;
    let disks = all.in_step().await;
    let memory = all.waits().await;
    machine.mirror_hold().await.unwrap();
    copies(machine, &MirrorPhase::Held).await;
    machine.migrate_cancel().await.unwrap();
    machine.mirror_cancel().await.unwrap();
    assert_eq!(ended(machine).await, MigratePhase::Cancelled);
    assert_eq!(machine.query_status().await.unwrap(), RunState::Running);
    drop((disks, memory));
    assert!(machine.mirrors().await.unwrap().is_empty());
    all.keeps_its_disk().await;
}

async fn a_guest_whose_disks_do_not_arrive_keeps_its_own(rig: Rig) {
    let twin = rig.twin();
    let all = along(&rig, &twin).await;
    let machine = &all.source.machine;
    // Nobody carries it.
    let way = machine.send_way(1).await.unwrap();
    drop(way);
    assert!(machine.send_disk(all.slot, Extent::Whole).await.is_err());
    assert!(machine.mirrors().await.unwrap().is_empty(), "nothing is left of it");
    // The other side dies.
    let _disks = all.in_step().await;
    all.target.machine.kill().await.unwrap();
    let end = Instant::now() + crate::rig::PATIENCE;
    loop {
        machine.mirror_hold().await.unwrap();
        let copies = machine.mirrors().await.unwrap();
        if matches!(copies[&all.slot].phase, MirrorPhase::Failed(_)) {
            break;
        }
        assert!(Instant::now() < end, "{copies:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    machine.mirror_cancel().await.unwrap();
    assert_eq!(machine.query_status().await.unwrap(), RunState::Running);
    all.keeps_its_disk().await;
}
