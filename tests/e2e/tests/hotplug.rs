//! Disks, adapters, memory and processors that come and go while the guest runs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use api::endpoint as ep;
use api::endpoint::Nothing;
use api::model::Bytes;
use api::model::NicChange;
use api::model::VmChange;
use api::types::DiskAddBody;
use api::types::DiskResizeBody;
use api::types::NicAddBody;
use api::types::VmCreateBody;
use api::types::VmView;
use e2e::GUEST;
use e2e::Host;
use e2e::Serial;
use e2e::Vm;
use e2e::eventually;
use e2e::tiny;

const MIB: u64 = 1 << 20;

async fn add_disk(vm: &Vm<'_>, name: &str, mib: u64) {
    let body = DiskAddBody {
        name: Some(name.parse().unwrap()),
        size: Some(Bytes::mib(mib)),
        ..DiskAddBody::default()
    };
    vm.host().op::<ep::DiskAdd>(&[vm.name()], &body).await;
}

/// Waits until the guest sees a disk of a size, and says which.
async fn disk_of(shell: &mut Serial, mib: u64) -> String {
    let sectors = mib * MIB / 512;
    eventually(&format!("the guest sees a disk of {mib} MiB"), GUEST, async || {
        let (_, found) = shell.try_run(&format!("grep -lx {sectors} /sys/block/*/size")).await;
        found.lines().next()?.split('/').nth(3).map(|it| format!("/dev/{it}"))
    })
    .await
}

/// Waits until a shell command prints this.
async fn says(shell: &mut Serial, command: &str, wanted: &str) {
    eventually(&format!("{command} says {wanted}"), GUEST, async || {
        (shell.try_run(command).await.1 == wanted).then_some(())
    })
    .await;
}

/// Memory that the guest has, in MiB. Not `MemTotal`: how much of it the kernel keeps for itself
/// depends on how much there was at its start.
async fn memory_mib(shell: &mut Serial) -> u64 {
    let sum = "awk '/^ *present /{ n += $2 } END { print int(n / 256) }' /proc/zoneinfo";
    shell.run(sum).await.parse().expect("a number of MiB")
}

async fn memory_within(shell: &mut Serial, least: u64, most: u64) {
    eventually(&format!("the guest has {least} to {most} MiB"), GUEST, async || {
        (least..=most).contains(&memory_mib(shell).await).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_disk_comes_and_goes_while_the_guest_runs() {
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host.boot(&tiny("d")).await;
    let before = host.traces();
    let mut shell = vm.shell().await;
    let disks = shell.run("ls /sys/block").await;
    add_disk(&vm, "data", 40).await;
    let device = disk_of(&mut shell, 40).await;
    shell.run(&format!("guestload write {device} 256 1 && guestload verify {device} 256 1")).await;
    host.op::<ep::DiskRemove>(&["d", "data"], &Nothing {}).await;
    says(&mut shell, "ls /sys/block", &disks).await;
    assert_eq!(vm.show().await.disks.len(), 1);
    eventually("its file is gone", GUEST, async || (host.traces() == before).then_some(())).await;
}

#[tokio::test]
async fn what_is_written_to_a_hot_disk_survives_stop_and_start() {
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host.boot(&tiny("d")).await;
    let mut shell = vm.shell().await;
    add_disk(&vm, "data", 40).await;
    let device = disk_of(&mut shell, 40).await;
    shell.run(&format!("guestload write {device} 256 7")).await;
    vm.shutdown().await;
    vm.start().await;
    let mut shell = vm.shell().await;
    let device = disk_of(&mut shell, 40).await;
    shell.run(&format!("guestload verify {device} 256 7")).await;
    // And a hard stop: what was flushed is there.
    shell.run(&format!("guestload write {device} 256 8")).await;
    vm.off().await;
    vm.start().await;
    let mut shell = vm.shell().await;
    let device = disk_of(&mut shell, 40).await;
    shell.run(&format!("guestload verify {device} 256 8")).await;
}

#[tokio::test]
async fn hot_devices_survive_save_and_restore() {
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host.boot(&tiny("d")).await;
    let mut shell = vm.shell().await;
    add_disk(&vm, "data", 40).await;
    let device = disk_of(&mut shell, 40).await;
    shell.run(&format!("guestload write {device} 256 7")).await;
    drop(shell);
    vm.verb::<ep::VmSave>().await;
    vm.start().await;
    let mut shell = vm.serial().await;
    shell.run(&format!("guestload verify {device} 256 7")).await;
    // The restored machine can still be changed.
    host.op::<ep::DiskRemove>(&["d", "data"], &Nothing {}).await;
    says(&mut shell, &format!("ls {device} 2>/dev/null | wc -l"), "0").await;
}

#[tokio::test]
async fn a_disk_grows_under_the_guest() {
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host.boot(&tiny("d")).await;
    let mut shell = vm.shell().await;
    add_disk(&vm, "data", 40).await;
    let device = disk_of(&mut shell, 40).await;
    shell.run(&format!("guestload write {device} 64 3")).await;
    let body = DiskResizeBody { size: Bytes::mib(72) };
    host.op::<ep::DiskResize>(&["d", "data"], &body).await;
    assert_eq!(disk_of(&mut shell, 72).await, device);
    shell.run(&format!("guestload verify {device} 64 3")).await;
    vm.off().await;
    vm.start().await;
    let mut shell = vm.shell().await;
    let device = disk_of(&mut shell, 72).await;
    shell.run(&format!("guestload verify {device} 64 3")).await;
    // Only ever larger.
    let body = DiskResizeBody { size: Bytes::mib(16) };
    let error = host.try_op::<ep::DiskResize>(&["d", "data"], &body).await.unwrap_err();
    assert_eq!(error.code, "cannot_shrink");
}

#[tokio::test]
async fn an_adapter_comes_with_a_lease_and_goes() {
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host.boot(&tiny("n")).await;
    vm.address().await;
    let before = host.traces();
    let mut shell = vm.shell().await;
    let name = Some("extra".parse().unwrap());
    host.op::<ep::NicAdd>(&["n"], &NicAddBody { name, ..NicAddBody::default() }).await;
    let nic = vm.show().await.nics.into_iter().find(|it| it.name.as_str() == "extra").unwrap();
    let address = nic.reserved_address.expect("a NAT network gives one");
    says(&mut shell, &format!("ip -4 addr | grep -c {address}/"), "1").await;
    says(&mut shell, &format!("grep -il {} /sys/class/net/*/address | wc -l", nic.mac), "1").await;
    host.op::<ep::NicRemove>(&["n", "extra"], &Nothing {}).await;
    says(&mut shell, &format!("grep -il {} /sys/class/net/*/address | wc -l", nic.mac), "0").await;
    eventually("its tap is gone", GUEST, async || (host.traces() == before).then_some(())).await;
}

#[tokio::test]
async fn a_cable_is_pulled_and_plugged_in_again() {
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host.boot(&tiny("n")).await;
    vm.address().await;
    let mut shell = vm.shell().await;
    let change = |up| NicChange { link_up: Some(up), ..NicChange::default() };
    says(&mut shell, "cat /sys/class/net/eth0/carrier", "1").await;
    host.op::<ep::NicSet>(&["n", "net0"], &change(false)).await;
    says(&mut shell, "cat /sys/class/net/eth0/carrier", "0").await;
    assert!(!vm.show().await.nics[0].link_up);
    host.op::<ep::NicSet>(&["n", "net0"], &change(true)).await;
    says(&mut shell, "cat /sys/class/net/eth0/carrier", "1").await;
    // Pulled while it is off, it is pulled after the start.
    vm.off().await;
    host.op::<ep::NicSet>(&["n", "net0"], &change(false)).await;
    vm.start().await;
    let mut shell = vm.shell().await;
    says(&mut shell, "cat /sys/class/net/eth0/carrier", "0").await;
}

#[tokio::test]
async fn memory_grows_and_shrinks_and_stays_so_after_a_stop() {
    let host = Host::start().await;
    host.import_tiny().await;
    let body = VmCreateBody { memory_max: Some(Bytes::mib(512)), ..tiny("m") };
    let vm = host.boot(&body).await;
    let mut shell = vm.shell().await;
    let small = memory_mib(&mut shell).await;
    let memory = |mib| VmChange { memory: Some(Bytes::mib(mib)), ..VmChange::default() };
    vm.set(memory(384)).await;
    memory_within(&mut shell, small + 256, small + 256).await;
    let shown = |mib| {
        move |view: &VmView| view.run.as_ref().is_some_and(|run| run.memory == Bytes::mib(mib))
    };
    vm.wait("the memory added is shown", shown(384)).await;
    vm.set(memory(256)).await;
    memory_within(&mut shell, small + 128, small + 128).await;
    vm.wait("the memory taken is gone from what is shown", shown(256)).await;
    vm.off().await;
    vm.start().await;
    let mut shell = vm.shell().await;
    assert_eq!(vm.show().await.memory.size, Bytes::mib(256));
    memory_within(&mut shell, small + 127, small + 129).await;
}

#[tokio::test]
async fn processors_come_and_go_and_stay_so_after_a_stop() {
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host.boot(&VmCreateBody { cpus_max: Some(3), ..tiny("c") }).await;
    let mut shell = vm.shell().await;
    let cpus = |count| VmChange { cpus: Some(count), ..VmChange::default() };
    says(&mut shell, "cat /sys/devices/system/cpu/online", "0").await;
    vm.set(cpus(3)).await;
    says(&mut shell, "cat /sys/devices/system/cpu/online", "0-2").await;
    assert_eq!(vm.run().await.cpus, 3);
    vm.set(cpus(2)).await;
    says(&mut shell, "cat /sys/devices/system/cpu/online", "0-1").await;
    vm.off().await;
    vm.start().await;
    let mut shell = vm.shell().await;
    says(&mut shell, "cat /sys/devices/system/cpu/online", "0-1").await;
}

/// What a control group says of processor time, if the host has that controller.
fn limits(host: &Host) -> Option<(String, String)> {
    let group = std::path::PathBuf::from(host.traces().groups.pop_first().expect("a group"));
    let read = |file: &str| std::fs::read_to_string(group.join(file)).ok();
    Some((read("cpu.weight")?.trim().to_owned(), read("cpu.max")?.trim().to_owned()))
}

#[tokio::test]
async fn processor_weight_and_cap_change_while_it_runs_and_stay_so_after_a_stop() {
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host.boot(&tiny("w")).await;
    let before = vm.run().await;
    let change =
        VmChange { cpu_weight: Some(300), cpu_cap_percent: Some(150), ..VmChange::default() };
    vm.set(change).await;
    let set = async |vm: &Vm<'_>| {
        let (view, run) = (vm.show().await, vm.run().await);
        assert_eq!((view.cpus.weight, view.cpus.cap_percent), (300, Some(150)));
        match limits(&host) {
            Some(limits) => assert_eq!(limits, ("300".to_owned(), "150000 100000".to_owned())),
            // The limit that does not hold is named, now as at the start.
            None => assert!(
                run.missing_limits.iter().any(|it| it.contains("processor weight and cap")),
                "{run:?}"
            ),
        }
        run
    };
    let run = set(&vm).await;
    assert_eq!((run.pid, &run.missing_limits), (before.pid, &before.missing_limits));
    if limits(&host).is_none() {
        let log = host.log_tail();
        assert!(log.contains("a limit does not hold"), "a change without effect is told: {log}");
    }
    vm.off().await;
    vm.start().await;
    set(&vm).await;
    let change = VmChange { cpu_cap_percent: Some(0), ..VmChange::default() };
    vm.set(change).await;
    assert_eq!(vm.show().await.cpus.cap_percent, None);
    assert!(limits(&host).is_none_or(|limits| limits.1 == "max 100000"));
}

/// What the balloon holds in the guest, in MiB. Its `MemTotal` stays, since it may take memory
/// back when it is short.
const BALLOON: &str = "awk '/^balloon_inflate/ { a = $2 } /^balloon_deflate/ { b = $2 } \
                       END { print int((a - b) / 256) }' /proc/vmstat";

#[tokio::test]
async fn the_balloon_takes_memory_and_gives_it_back() {
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host.boot(&tiny("b")).await;
    let mut shell = vm.shell().await;
    let balloon = |mib| VmChange { balloon: Some(Bytes::mib(mib)), ..VmChange::default() };
    vm.set(balloon(112)).await;
    says(&mut shell, BALLOON, "16").await;
    vm.wait("the balloon is shown", |view| {
        view.run.as_ref().is_some_and(|run| run.memory == Bytes::mib(112))
    })
    .await;
    // It is as large after a stop.
    vm.off().await;
    vm.start().await;
    let mut shell = vm.shell().await;
    says(&mut shell, BALLOON, "16").await;
    vm.set(balloon(128)).await;
    says(&mut shell, BALLOON, "0").await;
}
