//! The verbs of power, each with what it keeps and what it loses.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use api::endpoint as ep;
use api::model::OpState;
use api::model::Power;
use api::model::ServiceChange;
use api::model::VmChange;
use api::types::Heartbeat;
use api::types::Phase;
use api::types::ShutdownBody;
use e2e::BOOT;
use e2e::GUEST;
use e2e::Host;
use e2e::OWN;
use e2e::Serial;
use e2e::Vm;
use e2e::eventually;
use e2e::failure;
use e2e::tiny;

/// Begins to count in the guest, ten times a second, in memory.
async fn count(shell: &mut Serial) {
    shell.run(": >/run/ticks; guestload tick /run/ticks 100 & sleep 1").await;
}

/// How far it has counted.
async fn counted(shell: &mut Serial) -> u64 {
    let line = shell.run("tail -n1 /run/ticks").await;
    line.split(' ').nth(1).and_then(|it| it.parse().ok()).expect("TICK number ...")
}

async fn off_vm(host: &Host, name: &str) {
    let vm = host.vm(name);
    let view = vm.wait_phase(Phase::Off).await;
    assert_eq!((view.power, view.guest.heartbeat), (Power::Off, Heartbeat::Off));
    assert!(view.run.is_none());
    assert!(host.traces().processes.is_empty(), "{:?}", host.traces());
    assert!(host.traces().groups.is_empty(), "{:?}", host.traces());
}

#[tokio::test]
async fn pause_stands_and_resume_goes_on_without_a_reboot() {
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host.boot(&tiny("p")).await;
    let mut shell = vm.shell().await;
    count(&mut shell).await;
    let before = counted(&mut shell).await;
    let pid = vm.run().await.pid;
    vm.verb::<ep::VmPause>().await;
    assert_eq!(vm.wait_phase(Phase::Paused).await.power, Power::Paused);
    // Time passes for the host, not for the guest.
    shell.send("echo late\n").await;
    let cpu = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    assert!(!cpu().is_empty());
    vm.verb::<ep::VmResume>().await;
    vm.wait_phase(Phase::Running).await;
    shell.expect("late", GUEST).await;
    eventually("it counts on", GUEST, async || (counted(&mut shell).await > before).then_some(()))
        .await;
    assert_eq!(vm.run().await.pid, pid);
    vm.wait_heartbeat().await;
}

#[tokio::test]
async fn reset_boots_the_guest_again_in_the_same_process() {
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host.boot(&tiny("r")).await;
    let mut shell = vm.shell().await;
    shell.run("echo kept > /run/mark").await;
    let before = vm.show().await;
    vm.verb::<ep::VmReset>().await;
    shell.expect("MUSTER-GUEST-READY", BOOT).await;
    assert_eq!(shell.run("ls /run/mark 2>/dev/null | wc -l").await, "0");
    let after = vm.show().await;
    assert_eq!(after.generation, before.generation);
    assert_eq!(after.run.unwrap().pid, before.run.unwrap().pid);
}

#[tokio::test]
async fn off_cuts_the_power_and_start_is_a_new_run() {
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host.boot(&tiny("o")).await;
    let first = vm.show().await.generation;
    vm.off().await;
    off_vm(&host, "o").await;
    vm.start().await;
    vm.wait_heartbeat().await;
    assert_eq!(vm.show().await.generation.get(), first.get() + 1);
}

#[tokio::test]
async fn the_agent_shuts_the_guest_down() {
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host.boot(&tiny("s")).await;
    let mut shell = vm.shell().await;
    vm.shutdown().await;
    shell.expect("MUSTER-GUEST-POWEROFF", GUEST).await;
    off_vm(&host, "s").await;
}

#[tokio::test]
async fn the_power_button_shuts_the_guest_down_where_the_service_is_off() {
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host.boot(&tiny("b")).await;
    let services = ServiceChange { shutdown: Some(false), ..ServiceChange::default() };
    vm.set(VmChange { services, ..VmChange::default() }).await;
    let mut shell = vm.shell().await;
    vm.shutdown().await;
    shell.expect("MUSTER-GUEST-POWEROFF", GUEST).await;
    off_vm(&host, "b").await;
}

/// Makes the guest deaf: neither agent nor power button are heard.
async fn deafen(vm: &Vm<'_>) -> Serial {
    let mut shell = vm.shell().await;
    shell.run("killall -9 agent qemu-ga guestload").await;
    shell
}

#[tokio::test]
async fn a_guest_that_ignores_shutdown_goes_on_or_is_turned_off_as_said() {
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host.boot(&tiny("deaf")).await;
    let mut shell = deafen(&vm).await;
    let gentle = ShutdownBody { patience_s: 3, then_off: false };
    let op = host.try_op::<ep::VmShutdown>(&["deaf"], &gentle).await.unwrap();
    assert!(!failure(&op).code.is_empty());
    assert_eq!(vm.show().await.power, Power::Running);
    shell.run("true").await;
    let firm = ShutdownBody { patience_s: 3, then_off: true };
    let op = host.try_op::<ep::VmShutdown>(&["deaf"], &firm).await.unwrap();
    assert!(matches!(op.state, OpState::Done { .. }), "{op:?}");
    off_vm(&host, "deaf").await;
}

#[tokio::test]
async fn save_frees_memory_and_start_goes_on_where_it_stood() {
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host.boot(&tiny("saved")).await;
    let mut shell = vm.shell().await;
    count(&mut shell).await;
    let before = counted(&mut shell).await;
    let boot = shell.run("cat /proc/sys/kernel/random/boot_id").await;
    drop(shell);
    vm.verb::<ep::VmSave>().await;
    let view = vm.wait_phase(Phase::Saved).await;
    assert!(view.saved.is_some() && view.run.is_none(), "{view:?}");
    assert!(host.traces().processes.is_empty());
    vm.verb::<ep::VmResume>().await;
    vm.wait_phase(Phase::Running).await;
    let mut shell = vm.serial().await;
    assert_eq!(shell.run("cat /proc/sys/kernel/random/boot_id").await, boot);
    eventually("it counts on", GUEST, async || (counted(&mut shell).await > before).then_some(()))
        .await;
    let numbers = shell.run("cut -d' ' -f2 /run/ticks | sort -n | uniq -d | wc -l").await;
    assert_eq!(numbers, "0", "no number was counted twice");
    vm.wait_heartbeat().await;
    // What was saved is used once.
    assert!(vm.show().await.saved.is_none());
    let left: Vec<_> = host.traces().files.into_iter().filter(|it| it.contains("memory")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn saved_memory_survives_the_daemon_and_is_gone_after_off() {
    let mut host = Host::start().await;
    host.import_tiny().await;
    host.boot(&tiny("saved")).await.verb::<ep::VmSave>().await;
    host.kill9();
    host.restart().await;
    let vm = host.vm("saved");
    vm.wait_phase(Phase::Saved).await;
    vm.start().await;
    vm.wait_heartbeat().await;
    vm.verb::<ep::VmSave>().await;
    vm.off().await;
    assert!(vm.show().await.saved.is_none());
    // The state knows first, then the file goes.
    let saved = || host.traces().files.iter().any(|it| it.contains(".sav"));
    eventually("the saved memory is gone", OWN, async || (!saved()).then_some(())).await;
}

#[tokio::test]
async fn a_guest_that_powers_itself_off_stays_off() {
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host.boot(&tiny("self")).await;
    vm.shell().await.send("poweroff -f\n").await;
    off_vm(&host, "self").await;
    assert!(vm.show().await.last_exit.is_some());
}

/// What `muster-guests.service` does when a host is switched off, and on again.
#[tokio::test]
async fn guests_are_shut_down_with_their_host_and_start_again_with_it() {
    let host = Host::start().await;
    host.import_tiny().await;
    let (runs, stands) = (host.boot(&tiny("runs")).await, host.boot(&tiny("stands")).await);
    host.create(&tiny("rests")).await;
    stands.verb::<ep::VmPause>().await;
    let list = host.file("stopped.json");
    let verb = |verb: &'static str| {
        let output = host.muster().args(["node", verb, "--list"]).arg(&list).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    let mut shell = runs.shell().await;
    verb("stop-machines");
    shell.expect("MUSTER-GUEST-POWEROFF", GUEST).await;
    runs.wait_phase(Phase::Off).await;
    stands.wait_phase(Phase::Saved).await;
    assert!(host.traces().processes.is_empty(), "{:?}", host.traces());
    // A stop that was cut short is done again, and loses nothing of what the first one noted.
    verb("stop-machines");
    verb("start-machines");
    runs.wait_heartbeat().await;
    assert_eq!(stands.show().await.phase, Phase::Saved);
    assert_eq!(host.vm("rests").show().await.phase, Phase::Off);
    assert!(!list.exists());
    runs.off().await;
    verb("start-machines");
    assert_eq!(runs.show().await.phase, Phase::Off, "once only");
}
