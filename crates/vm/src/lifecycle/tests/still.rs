//! Machines without a process that take their files along: each daemon killed at each call, and stopped
//! at each moment. What is in the files is compared, byte for byte, wherever they lie.

use std::path::Path;

use model::Firmware;
use model::StorageTarget;
use model::VmPlace;

use super::*;

/// What the disks of the machine have in them.
fn pattern(n: u8) -> Vec<u8> {
    (0..300_000_u32).map(|at| (at.to_le_bytes()[1] ^ n).wrapping_add(3)).collect()
}

/// A machine with two disks and firmware, on the first node's own disks; off, or saved.
async fn resting(power: Power) -> Pair {
    let mut spec = spec();
    spec.firmware = Firmware::Uefi;
    spec.disks.push(disk(2));
    let mut pair = Pair::with(create(spec)).await;
    std::fs::write(files(&pair, 0).uefi_vars(), [5; 4096]).unwrap();
    let request = match power {
        Power::Saved => OpRequest::VmSave { vm: VM },
        _ => OpRequest::VmOff { vm: VM },
    };
    let op = pair.begin(request);
    let ended = pair.ended(op).await;
    assert!(matches!(ended, OpState::Done { .. }), "{ended:?}");
    assert_eq!(pair.vm().power, power);
    for (n, disk) in (1..).zip(&pair.vm().spec.disks) {
        let path = files(&pair, 0).disk(disk);
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &pattern(n), 20_000).unwrap();
    }
    pair
}

fn files(pair: &Pair, n: usize) -> VmFiles {
    VmFiles::new(&pair.local(n), VM)
}

/// All that counts of a machine's files.
fn contents(of: &VmFiles) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let below = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten();
    for entry in below(of.dir()).chain(below(&of.dir().join("disks"))) {
        let name = entry.file_name().to_string_lossy().into_owned();
        // Written anew by each driver, or about this place alone.
        if entry.path().is_file() && !["vm.json", "seed.iso", "coming"].contains(&&*name) {
            found.insert(name, std::fs::read(entry.path()).unwrap());
        }
    }
    found
}

impl Pair {
    fn move_with_files(&mut self) -> OpId {
        let to = if self.vm().owner == NODES[0] { NODES[1] } else { NODES[0] };
        let storage = StorageTarget { place: VmPlace::Node { node: to }, whole: Vec::new() };
        let (storage, policy) = (Some(Box::new(storage)), MigratePolicy::default());
        self.begin(OpRequest::VmMigrate { vm: VM, to, policy, storage })
    }

    /// Everything is where the state says, as it was, and nothing of it is elsewhere.
    fn check_still(&self, power: Power, before: &BTreeMap<String, Vec<u8>>, what: &str) {
        let vm = self.vm();
        assert_eq!((vm.power, vm.ops.len()), (power, 0), "{what}");
        assert_eq!(vm.place(), VmPlace::Node { node: vm.owner }, "{what}");
        assert_eq!(vm.copies, [], "{what}: copies are left");
        for (n, node) in NODES.into_iter().enumerate() {
            assert!(!self.sides[n].fake.alive().contains(&VM), "{what}: a process at node {n}");
            let ours = vm.owner == node;
            let wanted: BTreeSet<_> =
                ours.then(|| files(self, n).dir().to_owned()).into_iter().collect();
            assert_eq!(listing(&self.local(n)), wanted, "{what}: files at node {n}");
            if ours {
                let now = contents(&files(self, n));
                assert_eq!(now.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
                assert!(now == *before, "{what}: a file is not what it was");
                assert!(!files(self, n).dir().join("coming").exists(), "{what}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_is_off_or_saved_goes_there_and_back_and_lives() {
    for power in [Power::Off, Power::Saved] {
        let mut pair = resting(power).await;
        let before = contents(&files(&pair, 0));
        for to in [1, 0, 1] {
            let run = pair.vm().generation;
            let op = pair.move_with_files();
            let ended = pair.ended(op).await;
            assert!(matches!(ended, OpState::Done { .. }), "{ended:?}");
            assert_eq!((pair.vm().owner, pair.vm().generation), (NODES[to], run.next()));
            pair.check_still(power, &before, "there and back");
            let op = pair.truth.get().op(op).unwrap().clone();
            let report = op.migration.as_ref().unwrap();
            let measured = report.measured.unwrap();
            assert!(report.predicted.is_some() && measured.bytes >= Bytes::new(600_000));
            assert_eq!(measured.pause_ms, 0);
        }
        let request = match power {
            Power::Saved => OpRequest::VmResume { vm: VM },
            _ => OpRequest::VmStart { vm: VM },
        };
        let op = pair.begin(request);
        let ended = pair.ended(op).await;
        assert!(matches!(ended, OpState::Done { .. }), "{ended:?}");
        pair.check("it runs there").await;
        assert_eq!(pair.sides[1].fake.alive().len(), 1);
    }
}

/// Whatever happens to one daemon at whatever call.
async fn each_call(n: usize) -> (BTreeSet<&'static str>, BTreeSet<bool>) {
    let (mut calls, mut ends) = (BTreeSet::new(), BTreeSet::new());
    for power in [Power::Off, Power::Saved] {
        let gate = Gate::open();
        let mut pair = resting(power).await;
        pair.kill(n).await;
        pair.spawn(n, gate.clone());
        pair.quiet().await;
        let op = pair.move_with_files();
        let ended = pair.ended(op).await;
        assert!(matches!(ended, OpState::Done { .. }), "{ended:?}");
        for call in gate.worth() {
            let mut pair = resting(power).await;
            let before = contents(&files(&pair, 0));
            pair.kill(n).await;
            let gate = Gate::at(call);
            pair.spawn(n, gate.clone());
            let op = pair.move_with_files();
            let mut states = pair.truth.state.subscribe();
            let stopped = tokio::select! {
                biased;
                at = gate.stopped() => Some(at),
                _ = states.wait_for(|state| !state.op(op).unwrap().is_running()) => None,
            };
            let Some(at) = stopped else { break };
            calls.insert(at);
            tokio::time::sleep(Duration::from_secs(if call % 2 == 0 { 0 } else { 20 })).await;
            pair.restart(n).await;
            let ended = pair.ended(op).await;
            ends.insert(matches!(ended, OpState::Done { .. }));
            let what = format!("{power:?}: daemon {n} killed at call {call} ({at}), {ended:?}");
            pair.check_still(power, &before, &what);
            let op = pair.move_with_files();
            let again = pair.ended(op).await;
            assert!(matches!(again, OpState::Done { .. }), "{what}: {again:?}");
            pair.check_still(power, &before, &what);
        }
    }
    (calls, ends)
}

#[tokio::test(start_paused = true)]
async fn the_sources_daemon_may_die_at_any_call_and_the_files_go_on() {
    let (calls, ends) = each_call(0).await;
    assert!(calls.contains("hand over"), "{calls:?}");
    assert!(ends.contains(&true), "an interrupted one is gone on with");
}

#[tokio::test(start_paused = true)]
async fn the_targets_daemon_may_die_at_any_call_and_the_files_are_whole() {
    let (calls, _) = each_call(1).await;
    assert!(calls.contains("finish"), "{calls:?}");
}

/// A daemon that dies, or a wish to stop, at any moment between calls.
#[tokio::test(start_paused = true)]
async fn it_may_be_stopped_or_its_daemons_killed_at_any_moment() {
    let mut stays = BTreeSet::new();
    for trouble in 0..3 {
        for after in 0..40 {
            let mut pair = resting(Power::Saved).await;
            let before = contents(&files(&pair, 0));
            let op = pair.move_with_files();
            // The copy itself takes no time on this clock: so many turns of the executor.
            tokio::time::sleep(Duration::from_millis(3)).await;
            for _ in 0..after * 12 {
                tokio::task::yield_now().await;
            }
            match trouble {
                0 => drop(pair.truth.propose(Command::CancelOp { op })),
                n => pair.restart(n - 1).await,
            }
            let ended = pair.ended(op).await;
            let what = format!("trouble {trouble} after {after} turns: {ended:?}");
            pair.check_still(Power::Saved, &before, &what);
            let stayed = pair.vm().owner == NODES[0];
            stays.insert((trouble, stayed));
            assert_eq!(matches!(ended, OpState::Done { .. }), !stayed, "{what}");
        }
    }
    assert!(stays.contains(&(0, true)), "{stays:?}");
}

#[tokio::test(start_paused = true)]
async fn a_target_that_is_closed_meanwhile_gets_nothing() {
    let mut pair = resting(Power::Off).await;
    let before = contents(&files(&pair, 0));
    let (vm, to) = (VM, NODES[1]);
    let policy = MigratePolicy::default();
    let alone = OpRequest::VmMigrate { vm, to, policy, storage: None };
    let command = Command::BeginOp {
        op: OpId::new(Uuid::from_u128(1)),
        request: Box::new(alone),
        limit: LIMIT,
    };
    assert!(pair.truth.propose(command).is_err(), "without its files it is moved, not migrated");
    let op = pair.move_with_files();
    let mode = model::NodeMode::Standby;
    pair.truth.propose(Command::NodeSetMode { node: to, mode, with_storage: false }).unwrap();
    assert_eq!(pair.failed(op).await, "handover");
    pair.check_still(Power::Off, &before, "closed");
}
