//! Volumes on the LUN of a lab's SAN: who has it, what becomes of it, and that nothing foreign is touched;
//! and the SAN itself, with its faults.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use std::fs;

use e2e::BOOT;
use e2e::GUEST;
use e2e::Ran;
use e2e::Serial;
use e2e::TestLab;
use e2e::eventually;
use e2e::guest_image;
use e2e::ha::Auditor;
use e2e::ha::TAKEOVER;
use e2e::ha::answers_elsewhere;
use e2e::ha::answers_on;
use e2e::ha::generation;
use e2e::ha::show;
use e2e::ha::unique;
use e2e::ha::with_fence_device;
use e2e::migrate::count;
use e2e::migrate::disk;
use e2e::migrate::migrate;
use e2e::migrate::processes;
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

/// Waits until nodes reach the volume so.
async fn everywhere(lab: &TestLab, access: &str, nodes: &[&str]) {
    eventually(&format!("{nodes:?} reach it: {access}"), TAKEOVER, async || {
        let now = coordination(lab, nodes[0]).await?;
        let so = |node: &&Value| node["access"] == access;
        let there = now["nodes"].as_array()?.iter().filter(so);
        let there: Vec<_> = there.filter_map(|it| it["node"].as_str()).collect();
        nodes.iter().all(|node| there.contains(node)).then_some(())
    })
    .await;
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

/// The process that serves a node's volumes.
async fn volume_process(lab: &TestLab, node: &str) -> Option<String> {
    let tag = lab.status().await["tag"].as_str()?.to_owned();
    let tops = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].into_iter();
    let groups = tops.filter_map(|top| fs::read_dir(format!("{top}/muster-lab-{tag}/{node}")).ok());
    let ours = groups.flatten().flatten();
    let ours = ours.filter(|it| it.file_name().to_string_lossy().ends_with("-volumes"));
    let procs = ours.filter_map(|it| fs::read_to_string(it.path().join("cgroup.procs")).ok());
    procs.filter_map(|it| it.lines().next().map(str::to_owned)).next()
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
    everywhere(&lab, "direct", &["n1", "n2", "n3"]).await;
    assert_eq!(shell(&lab, "n2", &format!("cat {AT}/one")).await.ok().out, "one\n");

    lab.muster("n3", &["volume", "move", "fast", "--to", "n2"]).await.ok();
    everywhere(&lab, "direct", &["n1", "n2", "n3"]).await;
    let moved = coordination(&lab, "n3").await.unwrap();
    assert_eq!((&moved["coordinator"], &moved["epoch"]), (&"n2".into(), &2.into()), "{moved}");

    // What was flushed is there after a loss of power, for the next coordinator.
    shell(&lab, "n2", &format!("echo two > {AT}/two && sync -f {AT}")).await.ok();
    lab.run(&["power-off", "n2"]).await.ok();
    let taken = eventually("another node has it", TAKEOVER, async || {
        let now = coordination(&lab, "n3").await?;
        let holder = now["coordinator"].as_str().filter(|it| *it != "n2")?.to_owned();
        let other = if holder == "n1" { "n3" } else { "n1" };
        let there = shell(&lab, other, &format!("cat {AT}/one {AT}/two")).await;
        (there.code == 0 && there.out == "one\ntwo\n").then_some(now)
    })
    .await;
    assert_eq!(taken["epoch"], 3, "{taken}");
    lab.run(&["power-on", "n2"]).await.ok();
    everywhere(&lab, "direct", &["n1", "n2", "n3"]).await;
    assert_eq!(shell(&lab, "n2", &format!("cat {AT}/one")).await.ok().out, "one\n");

    // The process that serves the files dies, where they are coordinated and elsewhere: what was open fails,
    // the mount point is made anew, and nothing that was written is lost.
    for node in ["n1", "n3"] {
        let before = volume_process(&lab, node).await.unwrap();
        let killed = std::process::Command::new("kill").args(["-9", &before]).status();
        assert!(killed.unwrap().success());
        eventually("another one serves them", TAKEOVER, async || {
            volume_process(&lab, node).await.filter(|now| *now != before).map(drop)
        })
        .await;
        everywhere(&lab, "direct", &["n1", "n2", "n3"]).await;
        let read = shell(&lab, node, &format!("cat {AT}/one {AT}/two")).await;
        assert_eq!(read.ok().out, "one\ntwo\n", "{node}");
    }

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

/// A program in a node that writes blocks of a file, each with its number, flushes each, and reads it
/// again past the caches; it ends with the first error.
const WRITER: &str = r#"
import mmap, os, sys, time
path, seconds = sys.argv[1], float(sys.argv[2])
file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
page = mmap.mmap(-1, 4096)
end, number, longest = time.time() + seconds, 0, 0.0
while time.time() < end:
    begun = time.time()
    block = (f"{number:015d}\n" * 256).encode()
    page[:] = block
    at = number % 512 * 4096
    assert os.pwritev(file, [page], at) == 4096
    os.fsync(file)
    page[:] = bytes(4096)
    assert os.preadv(file, [page], at) == 4096
    assert page[:] == block, f"block {number} is another one"
    longest = max(longest, time.time() - begun)
    number += 1
last = number
for number in range(max(0, last - 512), last):
    assert os.preadv(file, [page], number % 512 * 4096) == 4096
    assert page[:16] == f"{number:015d}\n".encode(), f"block {number} is lost"
print(last, round(longest, 1))
"#;

/// Starts the writer in a node; its words when it has ended well.
fn writer(
    lab: &TestLab,
    node: &str,
    seconds: u32,
) -> tokio::task::JoinHandle<std::process::Output> {
    let line = format!("python3 - {AT}/of-{node} {seconds}");
    let mut command = lab.command();
    command.args(["exec", node, "--", "sh", "-c", &line]);
    command.stdin(std::process::Stdio::piped());
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), WRITER.as_bytes()).unwrap();
    tokio::task::spawn_blocking(move || child.wait_with_output().unwrap())
}

/// Waits for a writer that must have met no error.
async fn wrote(node: &str, writer: tokio::task::JoinHandle<std::process::Output>) {
    let out = writer.await.unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    eprintln!("writer of {node}: blocks, longest pause in seconds: {}", said.trim());
    assert!(out.status.success(), "{node}: {}", String::from_utf8_lossy(&out.stderr));
    let blocks: u64 = said.split(' ').next().unwrap().parse().unwrap();
    assert!(blocks > 10, "{node} wrote {blocks} blocks only");
}

/// Invariant 35: nobody writes under an old epoch, and nothing that was acknowledged is lost.
async fn all_nodes_write_whatever_ends(fs: &str) {
    let lab = TestLab::up(&["--nodes", "3", "--fake", "--san", "512M"]).await;
    with_fence_device(&lab, &["n1", "n2", "n3"]).await;
    let lun = lun(&lab, 3).await;
    let create = ["volume", "create", "fast", "--lun", lun.as_str(), "--fs", fs];
    lab.muster("n1", &create).await.ok();
    everywhere(&lab, "direct", &["n1", "n2", "n3"]).await;

    // Written on one, read on the others past all caches.
    let make = format!("dd if=/dev/urandom of={AT}/data bs=64K count=16 oflag=direct");
    shell(&lab, "n2", &make).await.ok();
    let sum = format!("dd if={AT}/data bs=64K iflag=direct 2>/dev/null | sha256sum");
    let right = shell(&lab, "n2", &sum).await.ok().out;
    for node in ["n1", "n3"] {
        assert_eq!(shell(&lab, node, &sum).await.ok().out, right, "{node}");
    }

    // A daemon that dies is none of its files' business, on any node.
    let writers = ["n1", "n2", "n3"].map(|node| (node, writer(&lab, node, 8)));
    lab.run(&["restart", "n1"]).await.ok();
    lab.run(&["restart", "n3"]).await.ok();
    for (node, writer) in writers {
        wrote(node, writer).await;
    }

    // A path that is lost: through the coordinator, and back.
    let cut = writer(&lab, "n3", 20);
    lab.run(&["san", "cut", "n3"]).await.ok();
    everywhere(&lab, "block_redirected", &["n3"]).await;
    lab.run(&["san", "mend", "n3"]).await.ok();
    everywhere(&lab, "direct", &["n3"]).await;
    wrote("n3", cut).await;

    // Another coordinator, by wish and by loss of power.
    let writers = ["n2", "n3"].map(|node| (node, writer(&lab, node, 45)));
    lab.muster("n2", &["volume", "move", "fast", "--to", "n2"]).await.ok();
    everywhere(&lab, "direct", &["n1", "n2", "n3"]).await;
    lab.muster("n2", &["volume", "move", "fast", "--to", "n1"]).await.ok();
    everywhere(&lab, "direct", &["n1", "n2", "n3"]).await;
    lab.run(&["power-off", "n1"]).await.ok();
    everywhere(&lab, "direct", &["n2", "n3"]).await;
    for (node, writer) in writers {
        wrote(node, writer).await;
    }
    let epoch = coordination(&lab, "n2").await.unwrap()["epoch"].as_u64().unwrap();
    assert!(epoch >= 4, "{epoch}");
    assert_eq!(shell(&lab, "n3", &sum).await.ok().out, right);
    lab.run(&["power-on", "n1"]).await.ok();
    everywhere(&lab, "direct", &["n1", "n2", "n3"]).await;
    assert_eq!(shell(&lab, "n1", &sum).await.ok().out, right);
    if fs == "ext4" {
        its_coordinator_loses_its_path(&lab).await;
    }
}

/// Of all nodes the one that coordinates the volume cannot reach the LUN any more: it gives it up by
/// itself, and nobody meets an error, not on that node either.
async fn its_coordinator_loses_its_path(lab: &TestLab) {
    let before = coordination(lab, "n2").await.unwrap();
    let holder = before["coordinator"].as_str().unwrap().to_owned();
    let writers = ["n1", "n2", "n3"].map(|node| (node, writer(lab, node, 30)));
    lab.run(&["san", "cut", &holder]).await.ok();
    eventually("another node coordinates it", TAKEOVER, async || {
        let now = coordination(lab, "n2").await?["coordinator"].clone();
        (now.is_string() && now != holder.as_str()).then_some(())
    })
    .await;
    everywhere(lab, "block_redirected", &[&holder]).await;
    lab.run(&["san", "mend", &holder]).await.ok();
    everywhere(lab, "direct", &["n1", "n2", "n3"]).await;
    for (node, writer) in writers {
        wrote(node, writer).await;
    }
}

#[tokio::test]
async fn all_nodes_write_to_one_ext4_whatever_ends() {
    all_nodes_write_whatever_ends("ext4").await;
}

#[tokio::test]
async fn all_nodes_write_to_one_xfs_whatever_ends() {
    all_nodes_write_whatever_ends("xfs").await;
}

/// Machines of two nodes on one LUN, neither of which coordinates it: their guests read what they wrote
/// whatever becomes of a path and of the coordinator, and one comes back elsewhere with all that was flushed.
#[tokio::test]
async fn guests_on_one_lun_meet_no_error_and_come_back_elsewhere() {
    let lab = TestLab::up(&["--nodes", "3", "--san", "1G"]).await;
    with_fence_device(&lab, &["n1", "n2", "n3"]).await;
    let lun = lun(&lab, 3).await;
    lab.muster("n1", &["volume", "create", "fast", "--lun", &lun, "--fs", "xfs"]).await.ok();
    everywhere(&lab, "direct", &["n1", "n2", "n3"]).await;
    let image = guest_image("tiny.img").display().to_string();
    let import = ["image", "import", "tiny", &image, "--format", "raw", "--volume", "fast"];
    lab.muster("n1", &import).await.ok();
    let vms = [("n2", unique("lun-a")), ("n3", unique("lun-b"))];
    let mut serials = Vec::new();
    for (node, vm) in &vms {
        let create = [
            "vm", "create", vm, "--image", "tiny", "--memory", "128M", "--volume", "fast",
            "--start",
        ];
        lab.muster(node, &create).await.ok();
        answers_on(&lab, node, vm, node).await;
        lab.muster(node, &["vm", "disk", "add", vm, "--size", "16M"]).await.ok();
        let mut serial = lab.serial(node, vm).await;
        serial.run("true").await;
        disk(&mut serial, 0).await;
        serials.push(serial);
    }
    serials[0] = goes_live(&lab, &vms[0].1).await;

    lab.run(&["san", "cut", "n3"]).await.ok();
    // A path is found to be lost by whoever uses it.
    disk(&mut serials[1], 1).await;
    everywhere(&lab, "block_redirected", &["n3"]).await;
    serials[1] = goes_where_a_path_is(&lab, &vms[1].1).await;
    disk(&mut serials[1], 2).await;

    let runs = [generation(&lab, "n2", &vms[0].1).await, generation(&lab, "n2", &vms[1].1).await];
    lab.run(&["power-off", "n1"]).await.ok();
    // While nobody coordinates it: the guests stand at their disks, and go on.
    disk(&mut serials[0], ROUNDS).await;
    disk(&mut serials[1], 3).await;
    everywhere(&lab, "direct", &["n2", "n3"]).await;
    for ((node, vm), run) in vms.iter().zip(runs) {
        assert_eq!(generation(&lab, node, vm).await, run, "{vm} was started again");
    }
    lab.run(&["power-on", "n1"]).await.ok();
    everywhere(&lab, "direct", &["n1", "n2", "n3"]).await;

    let auditor = Auditor::start(&vms[0].1);
    lab.run(&["power-off", "n2"]).await.ok();
    let to = answers_elsewhere(&lab, "n3", &vms[0].1, "n2").await;
    let mut serial = lab.serial(&to, &vms[0].1).await;
    disk(&mut serial, ROUNDS + 1).await;
    disk(&mut serials[1], 4).await;
    assert_eq!(auditor.verdict(), 1);
}

/// A machine leaves `n3`, which has lost its path, by itself and live, and it is said why; it is brought
/// back when the path is mended.
async fn goes_where_a_path_is(lab: &TestLab, vm: &str) -> Serial {
    let run = generation(lab, "n1", vm).await;
    eventually("it goes where a path is", TAKEOVER, async || {
        let view = show(lab, "n1", vm).await?;
        (view["node"] != "n3" && view["op"].is_null()).then_some(())
    })
    .await;
    assert_eq!(generation(lab, "n1", vm).await, run + 1, "it went live");
    let events = lab.muster("n3", &["event", "list", "--json"]).await.ok().out;
    assert!(events.contains("has lost its own path to the LUN of volume fast"), "{events}");
    lab.run(&["san", "mend", "n3"]).await.ok();
    everywhere(lab, "direct", &["n3"]).await;
    migrate(lab, "n1", vm, "n3").await;
    lab.serial("n3", vm).await
}

/// Patterns that [`goes_live`] and its caller have written when it has ended.
const ROUNDS: u32 = 7;

/// The second half of the disk is written, flushed and verified without a pause; the first error ends that.
async fn keeps_writing(serial: &mut Serial) {
    serial.run("mkdir -p /tmp && mount -t tmpfs none /tmp").await;
    let step = "guestload write /dev/vdb 256 $i 2048 && guestload verify /dev/vdb 256 $i 2048";
    let all = format!(
        "(i=0; while {step}; do i=$((i+1)); done > /tmp/words 2>&1; mv /tmp/words /tmp/bad) &"
    );
    serial.run(&format!("({all})")).await;
}

/// It still writes, in the same boot, and its disk has what it wrote before.
async fn unharmed(lab: &TestLab, node: &str, vm: &str, boot: &str, round: u32) -> Serial {
    let mut serial = lab.serial(node, vm).await;
    let words = serial.run("cat /tmp/bad 2>/dev/null; cat /proc/sys/kernel/random/boot_id").await;
    assert!(words.trim().ends_with(boot), "on {node}, after {boot}: {words}");
    serial.run("! test -e /tmp/bad && grep -q guestload /proc/[0-9]*/comm").await;
    disk(&mut serial, round).await;
    serial
}

/// Waits until no operation of a machine is under way and it runs; says where.
async fn settled(lab: &TestLab, vm: &str) -> String {
    eventually("it runs", TAKEOVER, async || {
        let view = show(lab, "n3", vm).await?;
        let calm = view["op"].is_null() && view["phase"] == "running" && count(vm) == 1;
        calm.then(|| view["node"].as_str().map(str::to_owned))?
    })
    .await
}

/// Invariant 39: a machine on `n2`, which does not coordinate its volume, goes live from node to node
/// while it writes, is stopped on its way and loses the machine that waits; it comes back to `n2`.
async fn goes_live(lab: &TestLab, vm: &str) -> Serial {
    let mut serial = lab.serial("n2", vm).await;
    let boot = serial.run("cat /proc/sys/kernel/random/boot_id").await.trim().to_owned();
    keeps_writing(&mut serial).await;
    let auditor = Auditor::start(vm);
    // Between two that do not coordinate it, to the one that does, and away from it by a drain.
    for (round, to) in (1..).zip(["n3", "n1"]) {
        let told = migrate(lab, "n2", vm, to).await;
        eprintln!("to {to}: {}", told["measured"]);
        unharmed(lab, to, vm, &boot, round).await;
    }
    lab.muster("n2", &["node", "drain", "n1"]).await.ok();
    let at = settled(lab, vm).await;
    assert_ne!(at, "n1");
    unharmed(lab, &at, vm, &boot, 3).await;
    lab.muster("n2", &["node", "resume", "n1"]).await.ok();

    // Stopped while its memory is copied.
    let to = if at == "n2" { "n3" } else { "n2" };
    lab.run(&["slow", &at, "--rate", "60M"]).await.ok();
    let begin = ["--no-wait", "vm", "migrate", vm, "--to", to, "--json"];
    let op = lab.muster(&at, &begin).await.ok().json()["op"]["id"].as_str().unwrap().to_owned();
    eventually("a machine waits for it", GUEST, async || (count(vm) == 2).then_some(())).await;
    lab.muster(&at, &["op", "cancel", &op]).await.ok();
    assert_eq!(settled(lab, vm).await, at);
    unharmed(lab, &at, vm, &boot, 4).await;

    // The machine that waits is killed.
    let before: Vec<u32> = processes(vm).into_iter().map(|(pid, _)| pid).collect();
    lab.muster(&at, &begin).await.ok();
    let waits = eventually("a machine waits for it", GUEST, async || {
        processes(vm).into_iter().map(|(pid, _)| pid).find(|pid| !before.contains(pid))
    })
    .await;
    let killed = std::process::Command::new("kill").args(["-9", &waits.to_string()]).status();
    assert!(killed.unwrap().success());
    lab.run(&["mend", "--all"]).await.ok();
    assert_eq!(settled(lab, vm).await, at);
    let serial = unharmed(lab, &at, vm, &boot, 5).await;
    assert_eq!(auditor.verdict(), 1, "two could write at once");

    // And as soon as the guest is the target's: then it comes back from its disk, wherever.
    drop(serial);
    lab.muster(&at, &begin).await.ok();
    eventually("it is the target's", GUEST, async || {
        let view = show(lab, to, vm).await?;
        let machine =
            processes(vm).into_iter().map(|(pid, _)| pid).find(|pid| !before.contains(pid));
        let _ = std::process::Command::new("kill")
            .args(["-9", &machine.filter(|_| view["node"] == to)?.to_string()])
            .status();
        Some(())
    })
    .await;
    let at = settled(lab, vm).await;
    let mut serial = lab.serial(&at, vm).await;
    serial.expect("MUSTER-GUEST-READY", BOOT).await;
    disk(&mut serial, 6).await;
    if at != "n2" {
        migrate(lab, "n1", vm, "n2").await;
        serial = lab.serial("n2", vm).await;
    }
    if coordination(lab, "n1").await.unwrap()["coordinator"] != "n1" {
        lab.muster("n1", &["volume", "move", "fast", "--to", "n1"]).await.ok();
        everywhere(lab, "direct", &["n1", "n2", "n3"]).await;
    }
    serial
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
