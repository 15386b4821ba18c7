//! QEMU is missing, too old, or another program altogether; and QEMU that hangs while nobody looks.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use std::path::Path;
use std::path::PathBuf;

use api::ErrorKind;
use api::endpoint as ep;
use api::model::CrashPolicy;
use api::model::ExitKind;
use api::model::OpState;
use api::model::Power;
use api::types::NodeView;
use api::types::Phase;
use api::types::VmCreateBody;
use e2e::BOOT;
use e2e::GUEST;
use e2e::Host;
use e2e::OWN;
use e2e::Options;
use e2e::eventually;
use e2e::failure;
use e2e::signal;
use e2e::tiny;

const REAL: &str = "/usr/bin/qemu-system-x86_64";

/// More than the daemon may grow by while a hostile program talks to it, in bytes. One line of the
/// control protocol may be 16 MiB.
const GROWTH_MAX: u64 = 128 << 20;

/// A machine of which nothing but its process is interesting.
fn bare(name: &str) -> VmCreateBody {
    VmCreateBody { disks: Vec::new(), nics: Vec::new(), on_crash: CrashPolicy::Stop, ..tiny(name) }
}

/// A host without QEMU.
async fn host() -> Host {
    Host::start_with(Options { own_qemu: true, ..Options::default() }).await
}

/// The program that pretends to be QEMU, under a name that tells it what to pretend.
fn false_qemu(host: &Host, name: &str) -> PathBuf {
    let path = host.file(name);
    std::fs::copy(env!("CARGO_BIN_EXE_false-qemu"), &path).unwrap();
    path
}

async fn node(host: &Host) -> NodeView {
    host.client().get::<ep::NodeList>(&[]).await.unwrap().remove(0)
}

/// Waits until the node names a problem, and checks that users are told the same.
async fn says(host: &Host, words: &str) {
    eventually(&format!("the node says {words:?}"), GUEST, async || {
        node(host).await.problems.iter().any(|it| it.contains(words)).then_some(())
    })
    .await;
    let show = host.cli(&["node", "show"]).await.ok();
    assert!(show.out.contains("cannot be used"), "{}", show.out);
    let error = host.client().send::<ep::VmCreate>(&[], &bare("early")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message.contains(words), "{error:?}");
    assert!(error.hint.contains("muster node show"), "{error:?}");
}

#[tokio::test]
async fn a_host_without_qemu_says_so_and_recovers_when_it_is_installed() {
    let mut host = host().await;
    // The daemon serves; what needs no machine works.
    says(&host, "apt install").await;
    assert_eq!(node(&host).await.qemu, None);
    host.import_tiny().await;
    // Each of these is not QEMU 10, and none of them holds the daemon up.
    for (name, words) in
        [("old", "7.2.11 is too old"), ("endless", "does not answer"), ("mute", "does not answer")]
    {
        host.qemu_is(Some(&false_qemu(&host, name)));
        says(&host, words).await;
    }
    // Installed at last: nobody restarts the daemon.
    host.qemu_is(Some(Path::new(REAL)));
    eventually("the node can run machines", BOOT, async || node(&host).await.qemu).await;
    eventually("nothing is wrong any more", GUEST, async || {
        node(&host).await.problems.is_empty().then_some(())
    })
    .await;
    host.boot(&tiny("first")).await;

    // And the other way round: it is gone under machines that run.
    host.qemu_is(None);
    let vm = host.vm("first");
    vm.wait_heartbeat().await;
    host.create(&bare("second")).await;
    let op = host.vm("second").try_verb::<ep::VmStart>().await.unwrap();
    assert_eq!(failure(&op).code, "no_qemu", "{op:?}");
    assert!(failure(&op).hint.contains("install"), "{op:?}");
    // A new daemon does not find it; the machine goes on, and one that crashes waits for it.
    host.kill9();
    host.restart().await;
    let vm = host.vm("first");
    let view = vm.wait_phase(Phase::Running).await;
    vm.wait_heartbeat().await;
    signal(view.run.unwrap().pid, "-KILL");
    let view = vm.wait_phase(Phase::Failed).await;
    assert_eq!(view.power, Power::Running);
    assert!(view.note.unwrap().contains("apt install"));
    host.qemu_is(Some(Path::new(REAL)));
    vm.wait_heartbeat().await;
    assert_eq!(vm.show().await.phase, Phase::Running);
}

#[tokio::test]
async fn nonsense_on_the_control_socket_fails_the_start_and_leaves_nothing() {
    let host = host().await;
    host.qemu_is(Some(&false_qemu(&host, "qemu-false")));
    let traces = host.traces();
    let before = resident(&host);
    let orders = ["nonsense-1", "half-1", "endless-1", "mute-1", "gone-1", "chatter-1"];
    for name in orders {
        host.create(&bare(name)).await;
    }
    let mut ops = Vec::new();
    for name in orders {
        ops.push(host.client().get::<ep::VmStart>(&[name]).await.unwrap());
    }
    // They are all at it; the daemon has time for others.
    assert_eq!(host.cli(&["vm", "list", "--json"]).await.ok().json().as_array().unwrap().len(), 6);
    for (name, op) in orders.iter().zip(ops) {
        let op = host.ended(&op).await;
        let failure = failure(&op);
        assert!(["launch", "engine", "hung"].contains(&failure.code.as_str()), "{name}: {op:?}");
        let view = host.vm(name).wait_phase(Phase::Off).await;
        assert_eq!(view.power, Power::Off, "{name}");
        host.vm(name).purge().await;
    }
    let grown = resident(&host).saturating_sub(before);
    assert!(grown < GROWTH_MAX, "the daemon has grown by {} MiB", grown >> 20);
    let after = host.traces();
    assert_eq!((after.processes, after.links), (traces.processes, traces.links));
    assert!(after.groups.is_empty(), "{:?}", after.groups);
}

#[tokio::test]
async fn a_machine_that_turns_mad_is_shown_as_hung_and_can_be_turned_off() {
    let mut host = host().await;
    host.qemu_is(Some(&false_qemu(&host, "qemu-false")));
    let before = resident(&host);
    for name in ["turncoat-1", "gossip-1"] {
        host.create(&bare(name)).await;
        let op = host.vm(name).try_verb::<ep::VmStart>().await.unwrap();
        assert!(matches!(op.state, OpState::Done { .. }), "{name}: {op:?}");
    }
    // Endless events cost time, and neither memory nor the answers to others.
    let turncoat = host.vm("turncoat-1").wait_phase(Phase::Hung).await;
    assert!(turncoat.note.is_some());
    for name in ["turncoat-1", "gossip-1"] {
        let refused = host.vm(name).try_verb::<ep::VmPause>().await;
        if let Ok(op) = refused
            && !matches!(op.state, OpState::Done { .. })
        {
            assert!(failure(&op).hint.contains("muster vm"), "{op:?}");
        }
    }
    let grown = resident(&host).saturating_sub(before);
    assert!(grown < GROWTH_MAX, "the daemon has grown by {} MiB", grown >> 20);
    // A new daemon meets them, too.
    host.kill9();
    host.restart().await;
    for name in ["turncoat-1", "gossip-1"] {
        host.vm(name).off().await;
        host.vm(name).wait_phase(Phase::Off).await;
    }
    eventually("nothing of them is left", OWN, async || {
        let traces = host.traces();
        (traces.processes.is_empty() && traces.groups.is_empty()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_machine_that_hangs_while_the_daemon_is_dead_is_found_again() {
    let mut host = Host::start().await;
    host.import_tiny().await;
    host.boot(&tiny("h")).await;
    let before = host.vm("h").show().await;
    let pid = before.run.unwrap().pid;
    host.kill9();
    signal(pid, "-STOP");
    host.restart().await;
    let vm = host.vm("h");
    let view = vm.wait_phase(Phase::Hung).await;
    assert!(view.note.is_some(), "{view:?}");
    assert_eq!(view.power, Power::Running);
    // Nothing is started beside it.
    assert_eq!(host.traces().processes.len(), 1);
    signal(pid, "-CONT");
    let after = vm.wait_phase(Phase::Running).await;
    assert_eq!((after.generation, after.run.unwrap().pid), (before.generation, pid));
    vm.wait_heartbeat().await;

    // Once more, and this time it is given up: it was never spoken to, and is ended all the same.
    host.kill9();
    signal(pid, "-STOP");
    host.restart().await;
    let vm = host.vm("h");
    vm.wait_phase(Phase::Hung).await;
    vm.off().await;
    eventually("nothing of it is left", OWN, async || {
        let traces = host.traces();
        (traces.processes.is_empty() && traces.groups.is_empty()).then_some(())
    })
    .await;
    assert_ne!(vm.show().await.last_exit.map(|exit| exit.kind), Some(ExitKind::Crashed));
    vm.start().await;
    vm.wait_heartbeat().await;
}

/// Memory that the daemon has, in bytes.
fn resident(host: &Host) -> u64 {
    let status = format!("/proc/{}/status", host.daemon_pid().unwrap());
    let text = std::fs::read_to_string(status).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}
