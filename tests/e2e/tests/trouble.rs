//! Processes that die or hang, and services of the guest under load.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use std::collections::BTreeMap;

use api::endpoint as ep;
use api::endpoint::Nothing;
use api::model::EventKind;
use api::model::ExitKind;
use api::model::Power;
use api::model::ServiceChange;
use api::model::VmChange;
use api::types::Heartbeat;
use api::types::Phase;
use api::types::VmCreateBody;
use e2e::BOOT;
use e2e::GUEST;
use e2e::Host;
use e2e::OWN;
use e2e::eventually;
use e2e::signal;
use e2e::tiny;

#[tokio::test]
async fn a_machine_killed_from_outside_is_started_again_as_a_new_run() {
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host.boot(&tiny("k")).await;
    let before = vm.show().await;
    signal(before.run.unwrap().pid, "-KILL");
    let next = before.generation.get() + 1;
    let after =
        vm.wait("it runs again", |view| view.generation.get() == next && view.run.is_some()).await;
    assert_eq!(after.last_exit.unwrap().kind, ExitKind::Crashed);
    vm.wait_heartbeat().await;
    assert_eq!(host.count_events(EventKind::VmCrashed).await, 1);
    assert_eq!(host.count_events(EventKind::VmRestarting).await, 1);
    assert_eq!(host.traces().processes.len(), 1);
}

#[tokio::test]
async fn a_machine_that_shall_stay_off_after_a_crash_does() {
    let host = Host::start().await;
    host.import_tiny().await;
    let body = VmCreateBody { on_crash: api::model::CrashPolicy::Stop, ..tiny("k") };
    let vm = host.boot(&body).await;
    signal(vm.run().await.pid, "-KILL");
    let view = vm.wait_phase(Phase::Off).await;
    assert_eq!(view.last_exit.unwrap().kind, ExitKind::Crashed);
    eventually("no tap is left", OWN, async || {
        let traces = host.traces();
        (traces.links.len() == 1 && traces.groups.is_empty()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_machine_that_crashes_again_and_again_is_given_up() {
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host.create(&tiny("k")).await;
    vm.start().await;
    let first = vm.show().await.generation.get();
    for run in first.. {
        let what = format!("run {run} or the end");
        let view = vm
            .wait(&what, |view| {
                let runs = view.run.is_some() && view.generation.get() == run;
                runs || view.power == Power::Off || view.phase == Phase::Failed
            })
            .await;
        let Some(alive) = view.run else { break };
        assert!(run < first + 10, "it is started for ever");
        signal(alive.pid, "-KILL");
    }
    assert!((1..=4).contains(&host.count_events(EventKind::VmRestarting).await));
    assert!(host.traces().processes.is_empty());
}

#[tokio::test]
async fn a_hung_machine_is_shown_and_can_be_turned_off() {
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host.boot(&tiny("h")).await;
    signal(vm.run().await.pid, "-STOP");
    let view = vm.wait_phase(Phase::Hung).await;
    assert!(view.note.is_some());
    vm.off().await;
    let traces = host.traces();
    assert!(traces.processes.is_empty() && traces.groups.is_empty(), "{traces:?}");
    vm.start().await;
    vm.wait_heartbeat().await;
}

#[tokio::test]
async fn a_machine_that_hung_for_a_while_is_shown_as_running_again() {
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host.boot(&tiny("h")).await;
    let before = vm.show().await;
    let pid = before.run.unwrap().pid;
    signal(pid, "-STOP");
    vm.wait_phase(Phase::Hung).await;
    signal(pid, "-CONT");
    let after = vm.wait_phase(Phase::Running).await;
    assert_eq!(after.generation, before.generation);
    vm.wait_heartbeat().await;
}

#[tokio::test]
async fn a_dead_agent_shows_in_the_heartbeat() {
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host.boot(&tiny("q")).await;
    let mut shell = vm.shell().await;
    shell.run("kill -STOP $(pidof qemu-ga)").await;
    vm.wait("no contact", |view| view.guest.heartbeat == Heartbeat::NoContact).await;
    shell.run("kill -CONT $(pidof qemu-ga)").await;
    vm.wait_heartbeat().await;
    let services = ServiceChange { heartbeat: Some(false), ..ServiceChange::default() };
    vm.set(VmChange { services, ..VmChange::default() }).await;
    vm.wait("the service is off", |view| view.guest.heartbeat == Heartbeat::Off).await;
}

#[tokio::test]
async fn keys_reach_the_guest_and_change_while_it_runs() {
    let host = Host::start().await;
    host.import_tiny().await;
    let keys = BTreeMap::from([("role".to_owned(), "web".to_owned())]);
    let vm = host.boot(&VmCreateBody { keys, ..tiny("keys") }).await;
    let mut shell = vm.shell().await;
    let read = "cat /run/muster/host.json 2>/dev/null || cat /run/muster-host.json";
    let facts = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
    let first = eventually("host facts are in the guest", GUEST, async || {
        facts(&shell.try_run(read).await.1)
    })
    .await;
    assert_eq!(first["keys"]["role"], "web");
    assert_eq!(first["vm"]["name"], "keys");
    assert!(first["host"]["name"].as_str().unwrap().starts_with("host-"));
    let keys = [("role", ""), ("colour", "blue")];
    let keys = keys.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    vm.set(VmChange { keys, ..VmChange::default() }).await;
    eventually("the change is in the guest", GUEST, async || {
        let keys = facts(&shell.try_run(read).await.1)?["keys"].clone();
        (keys == serde_json::json!({ "colour": "blue" })).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_guest_without_a_file_system_that_can_be_frozen_says_so() {
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host.boot(&tiny("f")).await;
    let mut shell = vm.shell().await;
    // FAT is all that the tiny guest knows, and it cannot be frozen.
    shell.run("mount /dev/vda1 /mnt").await;
    let error = host.client().get::<ep::VmFreeze>(&["f"]).await.unwrap_err();
    assert_eq!(error.code, "freeze");
    assert!(error.message.contains("no file system") && !error.hint.is_empty(), "{error:?}");
    shell.run("touch /mnt/written && sync").await;
    assert!(!vm.show().await.guest.frozen);
    let services = ServiceChange { backup: Some(false), ..ServiceChange::default() };
    vm.set(VmChange { services, ..VmChange::default() }).await;
    let error = host.client().get::<ep::VmFreeze>(&["f"]).await.unwrap_err();
    assert!(!error.hint.is_empty(), "{error:?}");
}

/// Memory that the daemon has, in bytes.
fn resident(host: &Host) -> u64 {
    let status = format!("/proc/{}/status", host.daemon_pid().unwrap());
    let text = std::fs::read_to_string(status).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[tokio::test]
async fn viewers_that_hang_up_or_stand_still_disturb_nobody() {
    /// More than the daemon may grow by, in bytes: each viewer has a queue with an end.
    const GROWTH_MAX: u64 = 64 << 20;
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host.boot(&tiny("seen")).await;
    let mut shell = vm.shell().await;
    let daemon = host.daemon_pid().unwrap();
    let open = || std::fs::read_dir(format!("/proc/{daemon}/fd")).unwrap().count();
    let (files, memory) = (open(), resident(&host));
    // Some never read what they get.
    let mut still = Vec::new();
    for _ in 0..5 {
        still.push(host.client().socket::<ep::VmSerial>(&["seen"]).await.unwrap());
        still.push(host.client().socket::<ep::VmVnc>(&["seen"]).await.unwrap());
    }
    shell.send("yes to-whoever-listens | head -c 300000; echo the-$((6 * 7))-end\n").await;
    // Others go without a word while the guest talks. There is a limit to how many may look at once,
    // and one who has just gone may still count.
    let come_and_go = async {
        for _ in 0..20 {
            drop(host.client().socket::<ep::VmSerial>(&["seen"]).await);
            drop(host.client().socket::<ep::VmVnc>(&["seen"]).await);
        }
    };
    // Whoever reads is not kept waiting by those who do not.
    tokio::join!(shell.expect("the-42-end", BOOT), come_and_go);
    let grown = resident(&host).saturating_sub(memory);
    assert!(grown < GROWTH_MAX, "the daemon has grown by {} MiB", grown >> 20);
    drop(still);
    eventually("their connections are closed", OWN, async || (open() <= files + 2).then_some(()))
        .await;
    shell.run("true").await;
}

#[tokio::test]
async fn two_clients_change_one_machine_at_once() {
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host.boot(&tiny("two")).await;
    let body = |name: &str| api::types::DiskAddBody {
        name: Some(name.parse().unwrap()),
        size: Some(api::model::Bytes::mib(40)),
        ..api::types::DiskAddBody::default()
    };
    let (left, right) = (body("left"), body("right"));
    let path = ["two"];
    let answers = tokio::join!(
        host.try_op::<ep::DiskAdd>(&path, &left),
        host.try_op::<ep::DiskAdd>(&path, &right),
    );
    let mut wanted = 1;
    for answer in [answers.0, answers.1] {
        match answer {
            Ok(op) => {
                assert!(matches!(op.state, api::model::OpState::Done { .. }), "{op:?}");
                wanted += 1;
            }
            Err(error) => assert_eq!(error.code, "busy", "{error:?}"),
        }
    }
    assert!(wanted >= 2);
    assert_eq!(vm.show().await.disks.len(), wanted);
    let mut shell = vm.shell().await;
    eventually("the guest sees each of them", GUEST, async || {
        let seen = shell.run("ls -d /sys/block/vd* | wc -l").await;
        (seen == wanted.to_string()).then_some(())
    })
    .await;
    host.op::<ep::VmOff>(&path, &Nothing {}).await;
}
