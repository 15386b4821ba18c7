//! Services of the guest's agent, end to end: file systems at rest, the clock, and putting to use
//! what was plugged.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use api::endpoint as ep;
use api::endpoint::Nothing;
use api::model::Bytes;
use api::model::EventKind;
use api::model::ExitKind;
use api::model::HaChange;
use api::model::ImageFormat;
use api::model::ImageSource;
use api::model::Millis;
use api::model::ServiceChange;
use api::model::VmChange;
use api::types::ConsistencyView;
use api::types::DiskAddBody;
use api::types::FreezeView;
use api::types::ImageImportBody;
use api::types::Phase;
use api::types::VmCreateBody;
use e2e::BOOT;
use e2e::GUEST;
use e2e::Host;
use e2e::Serial;
use e2e::Vm;
use e2e::eventually;
use e2e::tiny;

/// The hard limit of a freeze.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);

/// How far a guest's clock may be from the host's.
const CLOCK_MAX: f64 = 2.0;

/// A guest with an ext4 file system mounted on `/mnt`.
async fn with_ext4<'a>(host: &'a Host, name: &str) -> (Vm<'a>, Serial) {
    host.import_tiny().await;
    let path = host.file("data.img");
    std::fs::File::create(&path).unwrap().set_len(32 << 20).unwrap();
    let mut mkfs = std::process::Command::new("mkfs.ext4");
    mkfs.args(["-q", "-L", "data"]).arg(&path);
    assert!(mkfs.status().expect("mkfs.ext4 (package e2fsprogs)").success());
    let body = ImageImportBody {
        name: "data".parse().unwrap(),
        source: ImageSource::File { path: path.to_string_lossy().into_owned() },
        format: Some(ImageFormat::Raw),
        sha256: None,
        volume: None,
    };
    host.op::<ep::ImageImport>(&[], &body).await;
    let mut body = tiny(name);
    body.disks.push(DiskAddBody { image: Some("data".to_owned()), ..DiskAddBody::default() });
    let vm = host.boot(&body).await;
    let mut shell = vm.shell().await;
    shell.run("mount -t ext4 /dev/vdb /mnt && echo one >/mnt/file && sync").await;
    (vm, shell)
}

/// Freezes; a busy guest may need more than one attempt.
async fn freeze(vm: &Vm<'_>) -> FreezeView {
    eventually("it can be frozen", GUEST, async || {
        vm.host().client().send::<ep::VmFreeze>(&[vm.name()], &Nothing {}).await.ok()
    })
    .await
}

async fn thaw(vm: &Vm<'_>) -> FreezeView {
    let thawed = vm.host().client().send::<ep::VmThaw>(&[vm.name()], &Nothing {}).await;
    thawed.expect("it can be thawed")
}

/// Begins to write to the file system five times a second, and notes when in memory; beside it
/// notes only.
async fn begin_writing(shell: &mut Serial) {
    let note = |file: &str| format!("cut -d' ' -f1 /proc/uptime >>{file}; usleep 200000");
    let (written, awake) = (note("/run/written"), note("/run/awake"));
    let writer = format!(
        "(while :; do echo x >>/mnt/file; {written}; done) </dev/null >/dev/null 2>&1 & true"
    );
    let other = format!("(while :; do {awake}; done) </dev/null >/dev/null 2>&1 & true");
    shell.run(&writer).await;
    shell.run(&other).await;
    wait_writes(shell, 3).await;
}

/// Times at which the guest wrote, or was awake.
async fn times(shell: &mut Serial, file: &str) -> Vec<f64> {
    let text = shell.run(&format!("cat /run/{file}")).await;
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Waits until it has written so many times more.
async fn wait_writes(shell: &mut Serial, more: usize) {
    let lines = "wc -l </run/written 2>/dev/null || echo 0";
    let before: usize = shell.run(lines).await.parse().unwrap();
    eventually("the guest writes", GUEST, async || {
        let now: usize = shell.run(lines).await.parse().unwrap();
        (now >= before + more).then_some(())
    })
    .await;
}

/// The longest time in which nothing was written, in seconds, and how often the guest was awake in
/// it.
async fn standstill(shell: &mut Serial) -> (f64, usize) {
    let (written, awake) = (times(shell, "written").await, times(shell, "awake").await);
    let pairs = written.iter().zip(&written[1..]);
    let (from, to) = pairs.max_by(|a, b| (a.1 - a.0).total_cmp(&(b.1 - b.0))).unwrap();
    (to - from, awake.iter().filter(|at| (*from..*to).contains(at)).count())
}

#[tokio::test]
async fn a_freeze_holds_writes_until_the_thaw() {
    let host = Host::start().await;
    let (vm, mut shell) = with_ext4(&host, "f").await;
    begin_writing(&mut shell).await;
    let frozen = freeze(&vm).await;
    assert_eq!((frozen.filesystems, frozen.frozen), (1, true));
    assert!(vm.show().await.guest.frozen);
    let again = host.client().send::<ep::VmFreeze>(&["f"], &Nothing {}).await;
    assert!(again.is_err(), "{again:?}");
    // Not a wait for something: the time that a copy would take.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let thawed = thaw(&vm).await;
    assert!(!thawed.frozen);
    assert_eq!(thawed.consistency, Some(ConsistencyView::Filesystem));
    assert!(!vm.show().await.guest.frozen);
    wait_writes(&mut shell, 3).await;
    let (seconds, awake) = standstill(&mut shell).await;
    assert!((5.0..15.0).contains(&seconds) && awake > 2, "{seconds} s, awake {awake} times");
    // The guest answers all the while, and afterwards as before.
    vm.wait_heartbeat().await;
}

#[tokio::test]
async fn a_freeze_that_nobody_ends_ends_at_its_limit() {
    let host = Host::start().await;
    let (vm, mut shell) = with_ext4(&host, "f").await;
    begin_writing(&mut shell).await;
    let begun = Instant::now();
    assert!(freeze(&vm).await.frozen);
    vm.wait("it is thawed by itself", |view| !view.guest.frozen).await;
    let held = begun.elapsed();
    assert!(held >= FREEZE_LIMIT, "{held:?}");
    wait_writes(&mut shell, 3).await;
    let (seconds, awake) = standstill(&mut shell).await;
    assert!(seconds > 5.0 && awake > 2, "{seconds} s, awake {awake} times");
    assert_eq!(thaw(&vm).await.consistency, Some(ConsistencyView::Crash));
}

#[tokio::test]
async fn a_guest_that_a_dead_daemon_left_frozen_is_thawed_by_the_next() {
    let mut host = Host::start().await;
    {
        let (vm, mut shell) = with_ext4(&host, "f").await;
        begin_writing(&mut shell).await;
        assert!(freeze(&vm).await.frozen);
    }
    host.kill9();
    // Longer than the limit: nobody is there to end it.
    tokio::time::sleep(FREEZE_LIMIT + Duration::from_secs(5)).await;
    host.restart().await;
    let vm = host.vm("f");
    let mut shell = vm.serial().await;
    wait_writes(&mut shell, 3).await;
    let (seconds, _) = standstill(&mut shell).await;
    assert!(seconds > FREEZE_LIMIT.as_secs_f64() + 4.0, "it was frozen for {seconds} s");
    vm.wait_heartbeat().await;
    assert!(!vm.show().await.guest.frozen);
}

/// How many seconds the guest's clock is ahead of the host's.
async fn ahead(shell: &mut Serial) -> f64 {
    let host = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let before = host();
    let guest: f64 = shell.run("date +%s").await.parse().unwrap();
    let after = host();
    // The guest counts whole seconds, and was asked at some moment in between.
    if guest + 1.0 < before {
        guest + 1.0 - before
    } else if guest > after {
        guest - after
    } else {
        0.0
    }
}

async fn on_time(shell: &mut Serial) {
    eventually("the guest's clock is the host's", GUEST, async || {
        (ahead(shell).await.abs() <= CLOCK_MAX).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_restored_guest_gets_the_time_of_its_host() {
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host.boot(&tiny("t")).await;
    let mut shell = vm.shell().await;
    on_time(&mut shell).await;
    drop(shell);
    vm.verb::<ep::VmSave>().await;
    vm.wait_phase(Phase::Saved).await;
    // Not a wait for something: the time that the guest misses.
    tokio::time::sleep(Duration::from_secs(6)).await;
    vm.start().await;
    let mut shell = vm.serial().await;
    on_time(&mut shell).await;
    // The same after a pause.
    vm.verb::<ep::VmPause>().await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    vm.verb::<ep::VmResume>().await;
    on_time(&mut shell).await;
}

#[tokio::test]
async fn with_the_time_service_off_the_time_comes_at_boot_and_never_again() {
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host.create(&tiny("t")).await;
    let services = ServiceChange { time_sync: Some(false), ..ServiceChange::default() };
    vm.set(VmChange { services, ..VmChange::default() }).await;
    vm.start().await;
    vm.wait_heartbeat().await;
    let mut shell = vm.shell().await;
    assert!(ahead(&mut shell).await.abs() <= CLOCK_MAX);
    // A guest with a time of its own keeps it.
    shell.run("date -s @$(( $(date +%s) - 3600 ))").await;
    drop(shell);
    vm.verb::<ep::VmSave>().await;
    vm.start().await;
    vm.wait_heartbeat().await;
    let mut shell = vm.serial().await;
    vm.verb::<ep::VmPause>().await;
    vm.verb::<ep::VmResume>().await;
    // Facts that came after the resume: any setting of the clock would have come before them.
    shell.run("hostname later").await;
    vm.wait("the agent was asked", |view| view.guest.hostname.as_deref() == Some("later")).await;
    assert!(ahead(&mut shell).await < -3500.0);
    vm.off().await;
    vm.start().await;
    let mut shell = vm.shell().await;
    assert!(ahead(&mut shell).await.abs() <= CLOCK_MAX);
}

#[tokio::test]
async fn a_guest_that_leaves_new_hardware_offline_is_helped() {
    let host = Host::start().await;
    host.import_tiny().await;
    let body = VmCreateBody { cpus_max: Some(3), memory_max: Some(Bytes::mib(512)), ..tiny("h") };
    let vm = host.boot(&body).await;
    let mut shell = vm.shell().await;
    // As a distribution does that has no such rules.
    shell.run("echo offline >/sys/devices/system/memory/auto_online_blocks").await;
    shell.run("killall guestload").await;
    let online = "cat /sys/devices/system/cpu/online";
    let blocks = "cat /sys/devices/system/memory/memory*/state | grep -c '^online'";
    let (cpus, mem) = (shell.run(online).await, shell.run(blocks).await);
    assert_eq!((cpus.as_str(), mem.as_str()), ("0", "1"));

    vm.set(VmChange { cpus: Some(3), ..VmChange::default() }).await;
    assert_eq!(shell.run(online).await, "0-2");
    let guest = vm.show().await.guest;
    assert_eq!((guest.cpus_online, guest.cpus_offline), (Some(3), Some(0)));

    vm.set(VmChange { memory: Some(Bytes::mib(384)), ..VmChange::default() }).await;
    assert_eq!(shell.run(blocks).await, "3");
    let guest = vm.show().await.guest;
    let memory = (guest.memory_online, guest.memory_offline);
    assert_eq!(memory, (Some(Bytes::mib(384)), Some(Bytes::ZERO)));

    vm.set(VmChange { cpus: Some(2), ..VmChange::default() }).await;
    assert_eq!(shell.run(online).await, "0-1");
    let shown = host.muster().args(["vm", "show", "h"]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("2 online") && shown.contains("384 MiB online"), "{shown}");
}

#[tokio::test]
async fn a_guest_without_an_agent_gets_its_hardware_all_the_same() {
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host.create(&VmCreateBody { cpus_max: Some(2), ..tiny("n") }).await;
    vm.start().await;
    let mut shell = vm.shell().await;
    shell.run("killall -9 agent qemu-ga").await;
    vm.set(VmChange { cpus: Some(2), ..VmChange::default() }).await;
    eventually("the guest takes the processor by itself", BOOT, async || {
        (shell.run("cat /sys/devices/system/cpu/online").await == "0-1").then_some(())
    })
    .await;
}

/// The only sign that a guest hangs is that its agent and its disks are silent. One whose agent
/// stands still and that works with its disk is left alone.
#[tokio::test]
async fn a_guest_that_hangs_is_started_again_and_one_that_works_is_not() {
    let host = Host::start().await;
    let (works, mut shell) = with_ext4(&host, "works").await;
    let hangs = host.boot(&tiny("hangs")).await;
    for vm in [&works, &hangs] {
        let hung_after = Some(Millis::from_secs(20));
        let ha = HaChange { restart_hung: Some(true), hung_after, ..HaChange::default() };
        vm.set(VmChange { ha, ..VmChange::default() }).await;
    }
    let (first, kept) = (hangs.run().await.pid, works.run().await.pid);
    let dir = host.data_dir().join("vms").join(hangs.show().await.id.to_string());
    shell.run("(while :; do echo x >>/mnt/file; sync; sleep 1; done) </dev/null >/dev/null 2>&1 & true").await;
    let stop = "killall -STOP agent qemu-ga";
    shell.run(stop).await;
    hangs.shell().await.run(stop).await;
    eventually("the guest that hangs has another process", BOOT, async || {
        hangs.show().await.run.filter(|run| run.pid != first).map(drop)
    })
    .await;
    hangs.wait_heartbeat().await;
    assert_eq!(hangs.show().await.last_exit.unwrap().kind, ExitKind::Hung);
    assert_eq!(host.count_events(EventKind::VmHung).await, 1);
    assert!(std::fs::read(dir.join("hung.png")).unwrap().starts_with(b"\x89PNG"));
    // It was stopped earlier, so it was silent for longer.
    assert_eq!(works.run().await.pid, kept);
}
