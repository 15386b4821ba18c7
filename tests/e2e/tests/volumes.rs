//! Volumes on the LUN of a lab's SAN: who has it, what becomes of it, and that nothing foreign is touched;
//! and the SAN itself, with its faults.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use std::fs;

use e2e::Ran;
use e2e::TestLab;
use e2e::eventually;
use e2e::ha::TAKEOVER;
use e2e::ha::with_fence_device;
use serde_json::Value;

/// The path of each node to the LUN.
const LUN: &str = "/muster/san/lun0";

/// Where the volume of these tests is.
const AT: &str = "/muster/volumes/fast";

fn refused(ran: &Ran, word: &str) {
    assert_ne!(ran.code, 0, "{ran:?}");
    assert!(ran.err.contains(word) && ran.err.contains("hint:"), "{ran:?}");
}

/// Reads the LUN's first block, around what the node has cached.
fn direct() -> String {
    format!("dd if={LUN} of=/run/block iflag=direct bs=4096 count=1")
}

/// Runs a line of shell in a node.
async fn shell(lab: &TestLab, node: &str, line: &str) -> Ran {
    lab.run(&["exec", node, "--", "sh", "-c", line]).await
}

async fn coordination(lab: &TestLab, by: &str) -> Option<Value> {
    let said = lab.muster(by, &["volume", "show", "fast", "--json"]).await;
    (said.code == 0).then(|| said.json()["coordination"].clone())
}

/// What the LUN calls itself, once all nodes have told of it.
async fn lun(lab: &TestLab, nodes: usize) -> String {
    eventually("all nodes tell of the LUN", TAKEOVER, async || {
        let said = lab.muster("n1", &["disk", "list", "--json"]).await;
        let disks = (said.code == 0).then(|| said.json())?;
        let ours = disks
            .as_array()?
            .iter()
            .find(|it| it["lun"].as_str().is_some_and(|it| it.starts_with("muster-lab-")))?;
        let sees = |node: &&Value| node["paths"][0] == LUN;
        let count = ours["nodes"].as_array()?.iter().filter(sees).count();
        (count == nodes).then(|| ours["lun"].as_str().map(str::to_owned))?
    })
    .await
}

/// Loop devices of a lab.
fn loops(tag: &str) -> Vec<String> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let files =
        devices.filter_map(|it| fs::read_to_string(it.path().join("loop/backing_file")).ok());
    files.filter(|file| file.contains(&format!("muster-lab-{tag}-"))).collect()
}

#[tokio::test]
async fn a_lun_has_one_coordinator_through_moves_and_loss_of_power_and_is_a_plain_disk_afterwards()
{
    let lab = TestLab::up(&["--nodes", "3", "--fake", "--san", "512M"]).await;
    lab.muster("n1", &["volume", "create", "shared", "--share", "/muster/share"]).await.ok();
    with_fence_device(&lab, &["n1", "n2", "n3"]).await;
    let lun = lun(&lab, 3).await;
    let create = ["volume", "create", "fast", "--lun", lun.as_str(), "--fs", "ext4"];

    // What is not empty is not touched: a foreign file system, and bytes that nobody knows.
    shell(&lab, "n1", &format!("mkswap {LUN} && sync")).await.ok();
    refused(&lab.muster("n1", &create).await, "holds swap");
    refused(&lab.muster("n1", &["volume", "adopt", "fast", "--lun", &lun]).await, "holds swap");
    shell(&lab, "n1", &format!("wipefs -qa {LUN} && echo mine | dd of={LUN} conv=fsync"))
        .await
        .ok();
    refused(&lab.muster("n1", &create).await, "unknown kind");
    assert!(
        shell(&lab, "n2", &format!("{} && cat /run/block", direct()))
            .await
            .ok()
            .out
            .contains("mine")
    );
    let zero = format!("dd if=/dev/zero of={LUN} bs=1M count=1 conv=fsync");
    shell(&lab, "n1", &zero).await.ok();

    lab.muster("n1", &create).await.ok();
    let again = ["volume", "create", "other", "--lun", lun.as_str()];
    refused(&lab.muster("n2", &again).await, "in use by volume fast");
    let first = coordination(&lab, "n3").await.unwrap();
    assert_eq!((&first["coordinator"], &first["epoch"]), (&"n1".into(), &1.into()), "{first}");
    shell(&lab, "n1", &format!("echo one > {AT}/one")).await.ok();
    assert_ne!(shell(&lab, "n2", &format!("cat {AT}/one")).await.code, 0, "mounted twice");
    // Another node cannot even read the LUN, whatever it tries.
    assert_ne!(shell(&lab, "n2", &direct()).await.code, 0);

    lab.muster("n3", &["volume", "move", "fast", "--to", "n2"]).await.ok();
    let moved = eventually("n2 has it mounted", TAKEOVER, async || {
        (shell(&lab, "n2", &format!("cat {AT}/one")).await.code == 0).then_some(())?;
        coordination(&lab, "n3").await
    })
    .await;
    assert_eq!((&moved["coordinator"], &moved["epoch"]), (&"n2".into(), &2.into()), "{moved}");

    // What was flushed is there after a loss of power, for the next coordinator.
    shell(&lab, "n2", &format!("echo two > {AT}/two && sync -f {AT}")).await.ok();
    lab.run(&["power-off", "n2"]).await.ok();
    let taken = eventually("another node has it", TAKEOVER, async || {
        let now = coordination(&lab, "n3").await?;
        let holder = now["coordinator"].as_str().filter(|it| *it != "n2")?.to_owned();
        let there = shell(&lab, &holder, &format!("cat {AT}/one {AT}/two")).await;
        (there.code == 0 && there.out == "one\ntwo\n").then_some(now)
    })
    .await;
    assert_eq!(taken["epoch"], 3, "{taken}");
    lab.run(&["power-on", "n2"]).await.ok();
    assert_ne!(shell(&lab, "n2", &format!("cat {AT}/one")).await.code, 0, "mounted twice");

    refused(&lab.muster("n1", &["volume", "check", "fast"]).await, "mounted");
    lab.muster("n1", &["volume", "maintenance", "fast", "on"]).await.ok();
    lab.muster("n3", &["volume", "check", "fast"]).await.ok();
    lab.muster("n1", &["volume", "maintenance", "fast", "off"]).await.ok();
    lab.muster("n1", &["volume", "release", "fast"]).await.ok();
    let plain = format!(
        "mkdir -p /run/plain && mount {LUN} /run/plain && cat /run/plain/one \
                         /run/plain/two; umount /run/plain"
    );
    assert_eq!(shell(&lab, "n2", &plain).await.ok().out, "one\ntwo\n");

    lab.muster("n1", &["volume", "adopt", "fast", "--lun", &lun]).await.ok();
    assert_eq!(shell(&lab, "n1", &format!("cat {AT}/two")).await.ok().out, "two\n");
    lab.muster("n1", &["volume", "delete", "fast"]).await.ok();
    lab.muster("n3", &["volume", "create", "fast", "--lun", &lun, "--fs", "xfs"]).await.ok();
    assert_ne!(shell(&lab, "n3", &format!("cat {AT}/two")).await.code, 0, "it is a new one");
}

#[tokio::test]
async fn the_san_has_its_faults_and_leaves_nothing_behind() {
    let lab = TestLab::up(&["--nodes", "2", "--no-cluster", "--fake", "--san", "512M"]).await;
    let tag = lab.status().await["tag"].as_str().unwrap().to_owned();
    assert_eq!(loops(&tag).len(), 2);
    let write = |word: &str, flush: &str| {
        format!("echo {word} | dd of={LUN} oflag=direct bs=4096 conv=sync{flush}")
    };
    let read = format!("{} && head -c 3 /run/block", direct());
    shell(&lab, "n1", &write("old", ",fsync")).await.ok();
    assert_eq!(shell(&lab, "n2", &read).await.ok().out, "old", "it is one LUN");
    // Not flushed: seen by all, gone with the power.
    shell(&lab, "n1", &write("new", "")).await.ok();
    assert_eq!(shell(&lab, "n2", &read).await.ok().out, "new");
    lab.run(&["san", "power-loss"]).await.ok();
    assert_eq!(shell(&lab, "n2", &read).await.ok().out, "old");
    shell(&lab, "n1", &write("new", "")).await.ok();
    lab.run(&["san", "power-loss", "--cache", "kept"]).await.ok();
    assert_eq!(shell(&lab, "n2", &read).await.ok().out, "new");

    lab.run(&["san", "cut", "n1"]).await.ok();
    assert_ne!(shell(&lab, "n1", &read).await.code, 0, "its path is cut");
    shell(&lab, "n2", &read).await.ok();
    lab.run(&["san", "mend", "n1"]).await.ok();
    shell(&lab, "n1", &read).await.ok();

    // A node without power writes no more, and has a path of a new life afterwards.
    let life = async |node: usize| {
        let status = lab.run(&["san", "show", "--json"]).await.ok().json();
        let path = &status["luns"][0]["paths"][node];
        (path["life"].as_u64().unwrap(), path["device"].clone())
    };
    let (before, _) = life(0).await;
    lab.run(&["power-off", "n1"]).await.ok();
    assert_eq!(life(0).await.1, Value::Null);
    lab.run(&["power-on", "n1"]).await.ok();
    assert!(life(0).await.0 > before);
    assert_eq!(shell(&lab, "n1", &read).await.ok().out, "new");

    // The SAN's process is killed: what was flushed is there again, also for `down`.
    let procs = lab.dir().display().to_string();
    let server = fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let words = fs::read(entry.path().join("cmdline")).ok()?;
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        (words.contains(&procs) && words.contains("san-server"))
            .then(|| entry.file_name().to_string_lossy().into_owned())
    });
    let killed = std::process::Command::new("kill").args(["-9", &server.unwrap()]).status();
    assert!(killed.unwrap().success());
    eventually("the path is dead", TAKEOVER, async || {
        (shell(&lab, "n2", &read).await.code != 0).then_some(())
    })
    .await;
    lab.run(&["san", "restart"]).await.ok();
    // A path that died stays dead: its number is not given to a device of anybody else meanwhile.
    lab.run(&["power-off", "n2"]).await.ok();
    lab.run(&["power-on", "n2"]).await.ok();
    assert_eq!(shell(&lab, "n2", &read).await.ok().out, "new");
    refused(&lab.run(&["san", "restart"]).await, "runs");
    assert_ne!(shell(&lab, "n1", &read).await.code, 0, "n1 has a path that died");
    assert_eq!(loops(&tag).len(), 2);
    lab.run(&["power-off", "n1"]).await.ok();
    lab.run(&["power-on", "n1"]).await.ok();

    shell(&lab, "n1", &format!("mkfs.ext4 -q {LUN} && mkdir /run/m && mount {LUN} /run/m"))
        .await
        .ok();
    lab.run(&["down"]).await.ok();
    eventually("no loop device is left", TAKEOVER, async || loops(&tag).is_empty().then_some(()))
        .await;
    assert!(!lab.dir().exists());
}
