//! What tests of live migration share: a guest that changes its memory all the time and looks after
//! what must not change, and the processes of its machine.

use serde_json::Value;

use crate::Serial;
use crate::TestLab;
use crate::ha::answers_on;

/// That the guest's load is still there.
pub const WORKS: &str = "grep -q guestload /proc/[0-9]*/comm";

/// Migrates and waits for the end.
///
/// # Panics
/// If that fails.
pub async fn migrate(lab: &TestLab, by: &str, vm: &str, to: &str) -> Value {
    lab.muster(by, &["vm", "migrate", vm, "--to", to, "--json"]).await.ok().json()
}

/// A machine with an adapter in the network that all nodes share, and a disk for patterns.
///
/// # Panics
/// If it cannot be made.
pub async fn with_network(lab: &TestLab, node: &str, vm: &str) {
    lab.muster(node, &["network", "create", "lan", "--bridge", "lan0"]).await.ok();
    let create = [
        "vm", "create", vm, "--image", "tiny", "--memory", "192M", "--volume", "shared", "--nic",
        "lan", "--start",
    ];
    lab.muster(node, &create).await.ok();
    answers_on(lab, node, vm, node).await;
    lab.muster(node, &["vm", "disk", "add", vm, "--size", "16M"]).await.ok();
}

/// What guests of these tests do all the time: change memory at a rate, and look after what must not
/// change.
pub async fn load(serial: &mut Serial) {
    serial.run("mkdir -p /tmp && mount -t tmpfs none /tmp").await;
    serial
        .run("dd if=/dev/urandom of=/tmp/kept bs=1M count=24 && md5sum /tmp/kept > /tmp/sum")
        .await;
    serial.run("(guestload dirty 16 40 > /tmp/dirty 2>&1 &)").await;
}

/// Memory and disk are as they were; writes the next pattern.
pub async fn unharmed(serial: &mut Serial, round: u32) {
    serial.run("md5sum -c /tmp/sum").await;
    serial.run(WORKS).await;
    disk(serial, round).await;
}

/// The disk has the pattern of the round before; writes the next one.
pub async fn disk(serial: &mut Serial, round: u32) {
    if round > 0 {
        serial.run(&format!("guestload verify /dev/vdb 512 {}", round - 1)).await;
    }
    serial.run(&format!("guestload write /dev/vdb 512 {round} && sync")).await;
}

/// Processes of a machine, by their command lines.
pub fn processes(vm: &str) -> Vec<(u32, String)> {
    let mark = format!("guest={vm},");
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).into_owned();
            (line.contains("qemu-system") && line.contains(&mark)).then_some((pid, line))
        })
        .collect()
}

/// How many there are.
pub fn count(vm: &str) -> usize {
    processes(vm).len()
}
