//! Live migration in a lab: real daemons, QEMU, guests and networks. The guest's memory and disks are
//! checked by the guest itself, and that it never stood for long by its ticks and by pings from
//! another host.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use std::process::Command;
use std::time::Duration;

use e2e::BOOT;
use e2e::GUEST;
use e2e::Pings;
use e2e::TestLab;
use e2e::eventually;
use e2e::ha::Auditor;
use e2e::ha::TAKEOVER;
use e2e::ha::answers_on;
use e2e::ha::boot;
use e2e::ha::cluster;
use e2e::ha::generation;
use e2e::ha::show;
use e2e::ha::unique;
use e2e::migrate::WORKS;
use e2e::migrate::count;
use e2e::migrate::load;
use e2e::migrate::migrate;
use e2e::migrate::processes;
use e2e::migrate::unharmed;
use e2e::migrate::with_network;
use serde_json::Value;

#[tokio::test]
async fn a_guest_under_load_moves_back_and_forth_and_loses_nothing() {
    let lab = cluster("2", "").await;
    let vm = unique("roams");
    with_network(&lab, "n1", &vm).await;
    let mut serial = lab.serial("n1", &vm).await;
    serial.expect("MUSTER-GUEST-READY", BOOT).await;
    load(&mut serial).await;
    unharmed(&mut serial, 0).await;
    serial.run("ip link set eth0 up; ip addr add 10.90.3.200/24 dev eth0 || true").await;
    let run = generation(&lab, "n1", &vm).await;
    let auditor = Auditor::start(&vm);
    let pings = Pings::start(&lab.world(), "10.90.3.200".parse().unwrap());
    for (round, to) in (1..=4_u32).zip(["n2", "n1"].into_iter().cycle()) {
        // Asked of either node: who is asked has nothing to do with it.
        let by = if round % 2 == 0 { "n1" } else { "n2" };
        let told = migrate(&lab, by, &vm, to).await;
        eprintln!("round {round}: {} {}", told["measured"], told["predicted"]);
        assert!(told["measured"]["passes"].as_u64().unwrap() <= 11, "{told}");
        let (pause, commit) = (&told["measured"]["pause_ms"], &told["measured"]["commit_ms"]);
        assert!(pause.as_u64() > commit.as_u64(), "{told}");
        let view = show(&lab, by, &vm).await.unwrap();
        assert_eq!((&view["node"], &view["power"]), (&to.into(), &"running".into()));
        serial = lab.serial(to, &vm).await;
        unharmed(&mut serial, round).await;
    }
    assert_eq!(generation(&lab, "n1", &vm).await, run + 4, "each run has its own number");
    let (answers, longest) = pings.end();
    eprintln!("{answers} answers, longest silence {longest:?}");
    assert!(answers > 100, "{answers} answers");
    assert!(longest < Duration::from_secs(5), "nobody answered for {longest:?}");
    assert_eq!(auditor.verdict(), 1, "two could write at once");
    eventually("one process is left", GUEST, async || (count(&vm) == 1).then_some(())).await;
}

/// Invariant 43: what the guest has freed, in pieces too small for it to report them by itself, is not sent, and
/// it has all of it again afterwards.
#[tokio::test]
async fn memory_that_a_guest_has_freed_is_not_sent() {
    let lab = cluster("2", "").await;
    let vm = unique("frees");
    let create = [
        "vm", "create", &vm, "--image", "tiny", "--memory", "512M", "--volume", "shared", "--start",
    ];
    lab.muster("n1", &create).await.ok();
    answers_on(&lab, "n1", &vm, "n1").await;
    let mut serial = lab.serial("n1", &vm).await;
    serial.expect("MUSTER-GUEST-READY", BOOT).await;
    serial.run("mount -t tmpfs none /tmp && (guestload scatter 300 > /tmp/scattered 2>&1 &)").await;
    serial.run("until grep -q SCATTERED /tmp/scattered; do sleep 0.2; done").await;
    let free = "awk '/MemFree/ { print int($2 / 1024) }' /proc/meminfo";
    let before: u64 = serial.run(free).await.parse().unwrap();
    // The host hears of it within the guest's next word on its memory, every five seconds.
    tokio::time::sleep(Duration::from_secs(7)).await;
    let told = migrate(&lab, "n1", &vm, "n2").await;
    eprintln!("{before} MiB free; {}", told["measured"]);
    let sent = told["measured"]["bytes"].as_u64().unwrap() >> 20;
    assert!(sent < 340, "{sent} MiB were sent: 300 of before, and what its kernel takes");
    assert!(told["measured"]["empty"].as_u64().unwrap() >> 20 > 150, "{told}");
    serial = lab.serial("n2", &vm).await;
    serial.run("pidof guestload && grep -c changed /tmp/scattered | grep -q '^0$'").await;
    let after: u64 = serial.run(free).await.parse().unwrap();
    assert!(after + 32 > before, "{before} MiB were free before, and {after} MiB are now");
}

#[tokio::test]
async fn a_migration_that_fails_or_is_stopped_leaves_the_guest_where_it_was() {
    let lab = cluster("2", "").await;
    let vm = unique("stays");
    with_network(&lab, "n1", &vm).await;
    let mut serial = lab.serial("n1", &vm).await;
    serial.expect("MUSTER-GUEST-READY", BOOT).await;
    serial.run("mkdir -p /tmp && mount -t tmpfs none /tmp").await;
    // More than a way of this width carries: it never ends by itself.
    lab.muster("n1", &["vm", "set", &vm, "--migrate-max-pause", "100ms"]).await.ok();
    lab.muster("n1", &["vm", "set", &vm, "--migrate-throttle", "off"]).await.ok();
    serial.run("(guestload dirty 96 4000 > /tmp/dirty 2>&1 &)").await;
    let run = generation(&lab, "n1", &vm).await;
    let told = lab.muster("n1", &["vm", "migrate", &vm, "--to", "n2", "--json"]).await;
    if told.code == 0 {
        // This machine was quick enough for it after all.
        assert!(told.json()["measured"]["passes"].as_u64().unwrap() <= 13, "{told:?}");
    } else {
        assert!(told.err.contains("faster than it can be sent"), "{told:?}");
        assert!(told.err.contains("--migrate-max-pause"), "it says what to do: {told:?}");
        assert_eq!(generation(&lab, "n1", &vm).await, run);
    }
    // The same is always possible when the guest may stand for it.
    let force = ["vm", "migrate", &vm, "--to", "n2", "--at-limit", "force", "--json"];
    if show(&lab, "n1", &vm).await.unwrap()["node"] == "n1" {
        let told = lab.muster("n1", &force).await.ok().json();
        assert!(told["measured"]["passes"].as_u64().unwrap() <= 13, "{told}");
    }
    let here = show(&lab, "n1", &vm).await.unwrap()["node"].as_str().unwrap().to_owned();
    let there = if here == "n1" { "n2" } else { "n1" };
    let run = generation(&lab, "n1", &vm).await;
    // The target's machine is killed in the middle.
    let before: Vec<u32> = processes(&vm).into_iter().map(|(pid, _)| pid).collect();
    let begun = lab.muster("n1", &["--no-wait", "vm", "migrate", &vm, "--to", there]).await;
    begun.ok();
    let killed = eventually("a machine waits", GUEST, async || {
        processes(&vm).into_iter().map(|(pid, _)| pid).find(|pid| !before.contains(pid))
    })
    .await;
    let _ = Command::new("kill").args(["-9", &killed.to_string()]).status();
    eventually("it runs where it was", TAKEOVER, async || {
        let view = show(&lab, "n1", &vm).await?;
        (view["op"].is_null() && view["phase"] == "running").then_some(())
    })
    .await;
    let view = show(&lab, "n1", &vm).await.unwrap();
    if view["node"] == here.as_str() {
        assert_eq!(generation(&lab, "n1", &vm).await, run);
        lab.serial(&here, &vm).await.run(WORKS).await;
    }
    eventually("one process is left", GUEST, async || (count(&vm) == 1).then_some(())).await;
}

#[tokio::test]
async fn what_stands_against_a_migration_is_said_before_a_byte_moves() {
    let lab = cluster("2", "").await;
    let vm = unique("checked");
    boot(&lab, "n1", &vm).await;
    let fine = lab.muster("n2", &["vm", "migrate", &vm, "--dry-run", "--json"]).await.ok().json();
    assert_eq!(
        (&fine["fits"], &fine["to"], &fine["op"]),
        (&true.into(), &"n2".into(), &Value::Null)
    );
    lab.muster("n1", &["vm", "set", &vm, "--only-on", "n1"]).await.ok();
    let refused = lab.muster("n1", &["vm", "migrate", &vm, "--to", "n2"]).await;
    assert_ne!(refused.code, 0);
    assert!(refused.err.contains("possible nodes"), "{refused:?}");
    lab.muster("n1", &["vm", "set", &vm, "--anywhere"]).await.ok();
    lab.muster("n1", &["node", "standby", "n2"]).await.ok();
    let dry = lab.muster("n1", &["vm", "migrate", &vm, "--to", "n2", "--dry-run"]).await;
    assert_ne!(dry.code, 0, "a dry run says no by its exit code, too");
    assert!(dry.out.contains("no node is left that takes VMs"), "{dry:?}");
    lab.muster("n1", &["node", "resume", "n2"]).await.ok();
    let local = unique("local");
    lab.muster("n1", &["vm", "create", &local, "--memory", "64M", "--start"]).await.ok();
    let refused = lab.muster("n1", &["vm", "migrate", &local, "--to", "n2"]).await;
    assert_ne!(refused.code, 0);
    assert!(refused.err.contains("own disks"), "{refused:?}");
    // A node that is silent is named.
    lab.run(&["freeze", "n2"]).await.ok();
    let refused = lab.muster("n1", &["vm", "migrate", &vm, "--to", "n2"]).await;
    lab.run(&["thaw", "n2"]).await.ok();
    assert_ne!(refused.code, 0, "{refused:?}");
}

/// Bytes that a node has sent over one of its cables.
async fn sent(lab: &TestLab, node: &str, device: &str) -> u64 {
    let table = lab.run(&["shell", node, "--", "cat", "/proc/net/dev"]).await.ok().out;
    let line = table.lines().find_map(|line| line.trim().strip_prefix(&format!("{device}:")));
    line.unwrap().split_whitespace().nth(8).unwrap().parse().unwrap()
}

#[tokio::test]
async fn memory_goes_over_the_networks_that_are_for_it() {
    let lab = cluster("2", "").await;
    let vm = unique("routed");
    boot(&lab, "n1", &vm).await;
    let networks = ["cluster", "network", "list", "--json"];
    let subnet = eventually("the nodes say in which networks they are", GUEST, async || {
        let view = lab.muster("n1", &networks).await.ok().json();
        let known = view["networks"].as_array()?.iter();
        let known: Vec<_> = known.filter_map(|it| it["subnet"].as_str()).collect();
        known.into_iter().find(|it| it.starts_with("10.90.2.")).map(str::to_owned)
    })
    .await;
    let set = ["cluster", "network", "set", &subnet, "--name", "fast", "--migration", "1"];
    lab.muster("n2", &set).await.ok();
    let before = sent(&lab, "n1", "migr0").await;
    let told = migrate(&lab, "n1", &vm, "n2").await;
    let bytes = told["measured"]["bytes"].as_u64().unwrap();
    let over = sent(&lab, "n1", "migr0").await - before;
    assert!(over >= bytes && bytes > 10 << 20, "{over} of {bytes}");

    // Where it does not work, the others are used, and it is said.
    lab.run(&["cut", "n1", "n2", "--network", "migration"]).await.ok();
    let before = sent(&lab, "n2", "migr0").await;
    migrate(&lab, "n1", &vm, "n1").await;
    assert!(sent(&lab, "n2", "migr0").await - before < 1 << 20);
    let events = lab.muster("n2", &["event", "list", "--json"]).await.ok().out;
    assert!(events.contains("fast does not carry its migration"), "{events}");

    // Unless that is forbidden: then it stays, and why is said.
    lab.muster("n1", &["cluster", "network", "strict", "on"]).await.ok();
    let refused = lab.muster("n1", &["vm", "migrate", &vm, "--to", "n2"]).await;
    assert_ne!(refused.code, 0, "{refused:?}");
    let view = show(&lab, "n1", &vm).await.unwrap();
    assert_eq!((&view["node"], &view["phase"]), (&"n1".into(), &"running".into()));
    lab.run(&["mend", "n1", "n2"]).await.ok();

    // How far it is is known at every node, also at the one that only looks on.
    lab.run(&["slow", "n2", "--rate", "60M"]).await.ok();
    let begun =
        lab.muster("n1", &["--no-wait", "vm", "migrate", &vm, "--to", "n2", "--json"]).await;
    let op = begun.ok().json()["op"]["id"].as_str().unwrap().to_owned();
    eventually("the other node shows how far it is", GUEST, async || {
        let view = lab.muster("n2", &["op", "show", &op, "--json"]).await.ok().json();
        assert_eq!(view["state"], "running", "it has ended unseen: {view}");
        view["progress"]["step"].as_str().filter(|it| it.contains("sending")).map(drop)
    })
    .await;
    lab.run(&["mend", "--all"]).await.ok();
    lab.muster("n2", &["op", "wait", &op]).await.ok();
    lab.muster("n1", &["cluster", "network", "set", "fast", "--migration", "off"]).await.ok();
    let dry = lab.muster("n1", &["vm", "migrate", &vm, "--dry-run", "--json"]).await.ok();
    assert!(dry.out.contains("10.90.1."), "{dry:?}");
    lab.muster("n1", &["cluster", "network", "forget", "fast"]).await.ok();
}
