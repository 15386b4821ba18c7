//! Guests that take their disks along: each daemon killed at each call, each process at each moment, and
//! everything that can fail. The guest counts on its disks all the time: an acknowledged write that is
//! lost is seen by the very next read, wherever it runs.

use model::Firmware;
use model::StorageTarget;
use model::VmPlace;

use super::*;
use crate::lifecycle::remove_copy;

/// How often the guest reads and writes while something is done with it, and at other times.
const GUEST_EVERY: Duration = Duration::from_millis(4);
const GUEST_IDLE: Duration = Duration::from_millis(500);

/// How often a daemon looks for what is left over.
const CLEAN_EVERY: Duration = Duration::from_secs(5);

/// What a daemon does about files of VMs of other nodes on its own disks.
pub(super) async fn clean(
    node: NodeId,
    host: Arc<Host>,
    truth: Arc<super::super::Truth>,
    dir: PathBuf,
) {
    let here = VmPlace::Node { node };
    loop {
        tokio::time::sleep(CLEAN_EVERY).await;
        let Some(_kept_out) = host.arrivals.keep_out(VM) else { continue };
        let state = truth.get();
        let Ok(vm) = state.vm(VM) else { continue };
        let left = vm.owner != node && vm.copies.contains(&here) && !state.copy_in_use(vm, here);
        if left && remove_copy(&dir, VM, vm.generation).is_ok() {
            host.ledger.copy_gone(VM, here).await.unwrap();
        }
    }
}

/// A machine with two disks and firmware of its own that runs from the first node's own disks.
async fn local() -> Pair {
    let mut spec = spec();
    spec.firmware = Firmware::Uefi;
    spec.disks.push(disk(2));
    let pair = Pair::with(create(spec)).await;
    std::fs::write(pair.files(0).uefi_vars(), [5; 4096]).unwrap();
    pair
}

impl Pair {
    fn files(&self, n: usize) -> VmFiles {
        VmFiles::new(&self.local(n), VM)
    }

    fn migrate_with(&mut self) -> OpId {
        let to = if self.vm().owner == NODES[0] { NODES[1] } else { NODES[0] };
        let place = VmPlace::Node { node: to };
        let storage = Some(Box::new(StorageTarget { place, whole: Vec::new() }));
        self.begin(OpRequest::VmMigrate { vm: VM, to, policy: MigratePolicy::default(), storage })
    }

    /// One machine runs, from its files where the state says, and nothing of them is elsewhere.
    async fn check_files(&self, what: &str) {
        self.check(what).await;
        let vm = self.vm();
        assert_eq!(vm.place(), VmPlace::Node { node: vm.owner }, "{what}");
        assert_eq!(vm.copies, [], "{what}: copies are left");
        for (n, node) in NODES.into_iter().enumerate() {
            let ours = vm.owner == node;
            let found = listing(&self.local(n));
            let wanted: BTreeSet<_> =
                ours.then(|| self.files(n).dir().to_owned()).into_iter().collect();
            assert_eq!(found, wanted, "{what}: files at node {n}");
            for path in self.sides[n].fake.writes_to(VM) {
                assert!(path.exists(), "{what}: it writes to {}", path.display());
            }
            if ours {
                assert_eq!(std::fs::read(self.files(n).uefi_vars()).unwrap(), [5; 4096], "{what}");
                assert!(!self.files(n).dir().join("coming").exists(), "{what}");
            }
        }
    }
}

/// A guest that counts on its disks, wherever it runs.
struct Guest {
    acknowledged: Arc<Mutex<u64>>,
    task: JoinHandle<()>,
}

impl Guest {
    fn start(pair: &Pair) -> Self {
        let hosts = [&pair.sides[0], &pair.sides[1]].map(|side| side.fake.clone());
        let acknowledged = Arc::new(Mutex::new(0));
        let count = acknowledged.clone();
        let first = hosts.iter().find_map(|host| host.guest_reads(VM)).unwrap_or_default();
        *lock(&count) = first;
        let truth = pair.truth.clone();
        let task = tokio::spawn(async move {
            loop {
                let busy = truth.get().vm(VM).is_ok_and(|vm| vm.busy().is_some());
                tokio::time::sleep(if busy { GUEST_EVERY } else { GUEST_IDLE }).await;
                let mut count = lock(&count);
                let running: Vec<_> =
                    hosts.iter().filter_map(|host| Some((host, host.guest_reads(VM)?))).collect();
                assert!(running.len() < 2, "it runs on two nodes");
                for (host, read) in running {
                    assert_eq!(read, *count, "an acknowledged write is lost");
                    if host.guest_writes(VM, *count + 1) {
                        *count += 1;
                    }
                }
            }
        });
        Self { acknowledged, task }
    }

    /// That it works, and nothing was lost; ends it.
    async fn unharmed(self, pair: &Pair, what: &str) {
        let before = *lock(&self.acknowledged);
        tokio::time::sleep(GUEST_IDLE * 5).await;
        assert!(!self.task.is_finished(), "{what}: the guest has found a lost write");
        assert!(*lock(&self.acknowledged) > before, "{what}: the guest works");
        self.task.abort();
        let _ = self.task.await;
        let vm = pair.vm();
        let n = usize::from(vm.owner == NODES[1]);
        for disk in &vm.spec.disks {
            let bytes = std::fs::read(pair.files(n).disk(disk)).unwrap();
            let count = *lock(&self.acknowledged);
            assert_eq!(bytes[..8], count.to_be_bytes(), "{what}: disk {}", disk.name);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_moves_there_and_back_with_its_disks() {
    let mut pair = local().await;
    let guest = Guest::start(&pair);
    for to in [1, 0, 1] {
        let before = pair.vm().generation;
        let op = pair.migrate_with();
        let ended = pair.ended(op).await;
        assert!(matches!(ended, OpState::Done { .. }), "{ended:?}");
        assert_eq!((pair.vm().owner, pair.vm().generation), (NODES[to], before.next()));
        pair.check_files("there and back").await;
        let op = pair.truth.get().op(op).unwrap().clone();
        let report = op.migration.as_ref().unwrap();
        assert!(report.predicted.is_some() && report.measured.is_some());
    }
    guest.unharmed(&pair, "there and back").await;
}

/// Whatever happens to one daemon at whatever call.
async fn each_call(n: usize) -> (BTreeSet<&'static str>, BTreeSet<bool>) {
    let (mut calls, mut ends) = (BTreeSet::new(), BTreeSet::new());
    // Once without a stop, to see which calls there are.
    let gate = Gate::open();
    let mut pair = local().await;
    let guest = Guest::start(&pair);
    pair.kill(n).await;
    pair.spawn(n, gate.clone());
    let op = pair.migrate_with();
    let ended = pair.ended(op).await;
    assert!(matches!(ended, OpState::Done { .. }), "{ended:?}");
    guest.unharmed(&pair, "without a stop").await;
    for call in gate.worth() {
        let mut pair = local().await;
        let guest = Guest::start(&pair);
        pair.kill(n).await;
        let gate = Gate::at(call);
        pair.spawn(n, gate.clone());
        let op = pair.migrate_with();
        let mut states = pair.truth.state.subscribe();
        let stopped = tokio::select! {
            biased;
            at = gate.stopped() => Some(at),
            _ = states.wait_for(|state| !state.op(op).unwrap().is_running()) => None,
        };
        // It went another way this time, and had fewer calls.
        let Some(at) = stopped else { break };
        calls.insert(at);
        // The other side may find out by itself, or not.
        tokio::time::sleep(Duration::from_secs(if call % 2 == 0 { 0 } else { 20 })).await;
        pair.restart(n).await;
        let ended = pair.ended(op).await;
        ends.insert(matches!(ended, OpState::Done { .. }));
        let what = format!("daemon {n} killed at call {call} ({at}), {ended:?}");
        pair.check_files(&what).await;
        // And it can be migrated as before.
        let op = pair.migrate_with();
        let again = pair.ended(op).await;
        assert!(matches!(again, OpState::Done { .. }), "{what}: {again:?}");
        pair.check_files(&what).await;
        guest.unharmed(&pair, &what).await;
    }
    (calls, ends)
}

#[tokio::test(start_paused = true)]
async fn the_sources_daemon_may_die_at_any_call() {
    let (calls, ends) = each_call(0).await;
    for call in ["send_way", "send_disk", "mirror_hold", "mirror_cancel", "migrate_switch"] {
        assert!(calls.contains(call), "{call}: {calls:?}");
    }
    assert!(calls.contains("hand over"), "{calls:?}");
    assert_eq!(ends.len(), 2, "some come to their end, and some do not");
}

#[tokio::test(start_paused = true)]
async fn the_targets_daemon_may_die_at_any_call() {
    let (calls, ends) = each_call(1).await;
    assert!(calls.contains("receive_end") && calls.contains("finish"), "{calls:?}");
    assert_eq!(ends.len(), 2, "some come to their end, and some do not");
}

#[tokio::test(start_paused = true)]
async fn a_process_may_die_at_any_moment() {
    for n in [0, 1] {
        for after in (0..700).step_by(15) {
            let mut pair = local().await;
            let guest = Guest::start(&pair);
            let op = pair.migrate_with();
            tokio::time::sleep(Duration::from_millis(after)).await;
            pair.sides[n].fake.crash(VM);
            let ended = pair.ended(op).await;
            let what = format!("machine {n} died after {after} ms, {ended:?}");
            pair.check_files(&what).await;
            guest.unharmed(&pair, &what).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn it_can_be_stopped_until_it_has_arrived() {
    let mut seen = BTreeSet::new();
    for after in (0..900).step_by(20) {
        let mut pair = local().await;
        let guest = Guest::start(&pair);
        let op = pair.migrate_with();
        tokio::time::sleep(Duration::from_millis(after)).await;
        let cancelled = pair.truth.propose(Command::CancelOp { op });
        let ended = pair.ended(op).await;
        let stays = pair.vm().owner == NODES[0];
        seen.insert(stays);
        match stays {
            true => assert!(matches!(ended, OpState::Cancelled { .. }), "{ended:?}"),
            false => assert!(matches!(ended, OpState::Done { .. }), "{ended:?} {cancelled:?}"),
        }
        let what = format!("stopped after {after} ms");
        pair.check_files(&what).await;
        guest.unharmed(&pair, &what).await;
    }
    assert_eq!(seen.len(), 2, "some stay and some go");
}

#[tokio::test(start_paused = true)]
async fn what_goes_wrong_leaves_the_guest_and_its_files_where_they_were() {
    for (at, fault, code) in [
        (0, Fault::MigrateStalls, "migration"),
        (0, Fault::MirrorFails("No space left".to_owned()), "no_space"),
        (1, Fault::IncomingFails, "migration"),
        (1, Fault::LaunchFails("no memory".to_owned()), "target"),
    ] {
        let mut pair = local().await;
        let guest = Guest::start(&pair);
        let before = pair.vm();
        pair.sides[at].fake.inject(Some(VM), fault.clone());
        let op = pair.migrate_with();
        assert_eq!(pair.failed(op).await, code, "{fault:?}");
        let what = format!("{fault:?}");
        pair.check_files(&what).await;
        assert_eq!((pair.vm().owner, pair.vm().generation), (NODES[0], before.generation));
        guest.unharmed(&pair, &what).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_handover_that_the_state_does_not_take_leaves_the_files_where_they_were() {
    let mut pair = local().await;
    let guest = Guest::start(&pair);
    let op = pair.migrate_with();
    // The target is drained in the middle.
    tokio::time::sleep(Duration::from_millis(150)).await;
    let mode = model::NodeMode::Drain;
    pair.truth.propose(Command::NodeSetMode { node: NODES[1], mode, with_storage: false }).unwrap();
    assert_eq!(pair.failed(op).await, "handover");
    pair.check_files("refused").await;
    guest.unharmed(&pair, "refused").await;
}
