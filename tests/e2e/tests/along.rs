//! Machines on their node's own disks go to another node that has nothing of them: real daemons, QEMU and
//! guests in a lab without shared storage. The guest writes patterns and checks them all the time; what
//! it checks is what it got acknowledged.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use std::process::Command;

use e2e::BOOT;
use e2e::GUEST;
use e2e::Serial;
use e2e::TestLab;
use e2e::eventually;
use e2e::guest_image;
use e2e::ha::TAKEOVER;
use e2e::ha::answers_on;
use e2e::ha::generation;
use e2e::ha::show;
use e2e::ha::unique;
use e2e::migrate::count;
use e2e::migrate::processes;

/// Writes and checks until it is told to stop, and says how often it has; when something is not as it
/// was written, it says that.
const LOAD: &str = "mkdir -p /run; echo 0 > /run/rounds; (n=0; while [ ! -e /run/stop ] && guestload \
                    write /dev/vdb 64 $n && guestload verify /dev/vdb 64 $n; do n=$((n+1)); echo $n > \
                    /run/rounds; done > /run/said 2>&1; [ -e /run/stop ] || echo broken > /run/broken; \
                    touch /run/over) < /dev/null & true";

async fn rounds(serial: &mut Serial) -> u64 {
    let said = serial.run("cat /run/rounds; cat /run/broken /run/said 2>/dev/null; true").await;
    assert!(!said.contains("broken"), "{said}");
    // It may be about to write the number.
    said.lines().next().and_then(|it| it.parse().ok()).unwrap_or_default()
}

/// That the guest on a node finds what it has written, and goes on.
async fn works(lab: &TestLab, node: &str, vm: &str) {
    let mut serial = lab.serial(node, vm).await;
    let before = rounds(&mut serial).await;
    eventually("it writes and checks", GUEST, async || {
        (rounds(&mut serial).await > before + 1).then_some(())
    })
    .await;
}

/// Directories of machines, whole or half, on a node's own disks.
async fn directories(lab: &TestLab, node: &str) -> usize {
    let all = lab.run(&["shell", node, "--", "sh", "-c", "ls /var/lib/muster/vms | wc -l"]).await;
    all.out.trim().parse().unwrap_or_default()
}

#[tokio::test]
async fn a_guest_takes_its_disks_along_and_loses_nothing_whatever_dies() {
    let lab = TestLab::up_with(&["--nodes", "2"], "").await;
    let vm = unique("along");
    let image = guest_image("tiny.img").display().to_string();
    // On one node's own disks: the other one cannot read it.
    lab.muster("n1", &["image", "import", "tiny", &image, "--format", "raw"]).await.ok();
    let create = ["vm", "create", &vm, "--image", "tiny", "--memory", "128M", "--start"];
    lab.muster("n1", &create).await.ok();
    answers_on(&lab, "n1", &vm, "n1").await;
    lab.muster("n1", &["vm", "disk", "add", &vm, "--size", "32M"]).await.ok();
    let mut serial = lab.serial("n1", &vm).await;
    serial.run(LOAD).await;
    drop(serial);
    works(&lab, "n1", &vm).await;

    let alone = lab.muster("n2", &["vm", "migrate", &vm, "--to", "n2"]).await;
    assert_ne!(alone.code, 0);
    assert!(alone.err.contains("--with-storage"), "it says how: {alone:?}");
    let with = ["vm", "migrate", &vm, "--to", "n2", "--with-storage", "--json"];
    let dry = [&with[..], &["--dry-run"]].concat();
    let dry = lab.muster("n2", &dry).await.ok().json();
    assert_eq!(dry["fits"], true, "{dry}");
    assert!(dry.to_string().contains("come as whole disks"), "{dry}");

    // The machine that waits is killed while disks come to it.
    let run = generation(&lab, "n1", &vm).await;
    let before: Vec<u32> = processes(&vm).into_iter().map(|(pid, _)| pid).collect();
    lab.muster("n1", &["--no-wait", "vm", "migrate", &vm, "--to", "n2", "--with-storage"])
        .await
        .ok();
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
    assert_eq!(view["node"], "n1", "{view}");
    assert_eq!(generation(&lab, "n1", &vm).await, run);
    works(&lab, "n1", &vm).await;

    let told = lab.muster("n2", &with).await.ok().json();
    eprintln!("there: {} {}", told["measured"], told["predicted"]);
    let view = show(&lab, "n1", &vm).await.unwrap();
    assert_eq!((&view["node"], &view["phase"]), (&"n2".into(), &"running".into()));
    assert_eq!(generation(&lab, "n1", &vm).await, run + 1);
    works(&lab, "n2", &vm).await;
    // And back, by the node that has nothing of it any more.
    let back = ["vm", "migrate", &vm, "--to", "n1", "--with-storage", "--json"];
    eventually("what was left on the first node is gone", TAKEOVER, async || {
        (directories(&lab, "n1").await == 0).then_some(())
    })
    .await;
    let told = lab.muster("n2", &back).await.ok().json();
    eprintln!("back: {} {}", told["measured"], told["predicted"]);
    works(&lab, "n1", &vm).await;
    eventually("one process is left", GUEST, async || (count(&vm) == 1).then_some(())).await;

    // What it has there is whole: it starts from it.
    let mut serial = lab.serial("n1", &vm).await;
    serial.run("touch /run/stop; while [ ! -e /run/over ]; do sleep 0.1; done").await;
    assert!(rounds(&mut serial).await > 0);
    serial.run("guestload write /dev/vdb 64 4711 && sync").await;
    drop(serial);
    lab.muster("n1", &["vm", "off", &vm]).await.ok();

    // Off, it goes as it is, to a node that has nothing of it; one that is a thin copy becomes whole.
    let thin = unique("thin");
    lab.muster("n1", &["vm", "create", &thin, "--image", "tiny", "--memory", "128M"]).await.ok();
    for vm in [&vm, &thin] {
        let go = ["vm", "migrate", vm, "--to", "n2", "--with-storage", "--json"];
        let limited = [&go[..], &["--bandwidth", "40M"]].concat();
        let told = lab.muster("n2", &limited).await.ok().json();
        eprintln!("off: {} {}", told["measured"], told["predicted"]);
        let measured = |what: &str| told["measured"][what].as_u64().unwrap();
        let least = measured("bytes") * 1000 / (40 << 20);
        assert!(measured("total_ms") + 50 >= least, "no quicker than it may: {told}");
        let view = show(&lab, "n1", vm).await.unwrap();
        assert_eq!((&view["node"], &view["phase"]), (&"n2".into(), &"off".into()));
    }
    eventually("what was left on the first node is gone", TAKEOVER, async || {
        (directories(&lab, "n1").await == 0).then_some(())
    })
    .await;
    lab.muster("n1", &["vm", "start", &vm]).await.ok();
    let mut serial = lab.serial("n2", &vm).await;
    serial.expect("MUSTER-GUEST-READY", BOOT).await;
    serial.run("guestload verify /dev/vdb 64 4711").await;
    serial.run("echo 815 > /run/kept").await;
    drop(serial);

    // Saved, it goes on there where it was, with what was in its memory.
    lab.muster("n1", &["vm", "save", &vm]).await.ok();
    lab.muster("n1", &["vm", "migrate", &vm, "--to", "n1", "--with-storage"]).await.ok();
    lab.muster("n2", &["vm", "resume", &vm]).await.ok();
    let mut serial = lab.serial("n1", &vm).await;
    serial.run("grep -q 815 /run/kept && guestload verify /dev/vdb 64 4711").await;
    drop(serial);
    lab.muster("n1", &["vm", "off", &vm]).await.ok();
    lab.muster("n1", &["vm", "start", &thin]).await.ok();
    answers_on(&lab, "n1", &thin, "n2").await;

    // A drain takes along what lies on the node's own disks, if it is told to.
    let plan = lab.muster("n1", &["node", "drain", "n2", "--dry-run", "--json"]).await.ok().json();
    assert_eq!(plan["local"], serde_json::json!([&thin]), "{plan}");
    lab.muster("n1", &["node", "drain", "n2", "--with-storage"]).await.ok();
    answers_on(&lab, "n1", &thin, "n1").await;
}
