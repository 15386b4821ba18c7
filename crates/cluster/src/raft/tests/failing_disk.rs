//! A disk that does not take a write: the process ends, and nothing acknowledged is lost.

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use model::UnixMillis;

use super::LONG;
use super::Lab;
use super::id;
use super::sign_of_life;
use crate::raft::Replica;
use crate::raft::Start;
use crate::raft::Store;
use crate::raft::memory::MemoryWire;

/// Names the directory in the child process.
const DIR: &str = "MUSTER_TEST_FAILING_DISK";

const SIGABRT: i32 = 6;

/// The child: writes until the disk is full, and says what was acknowledged.
async fn fill(dir: &std::path::Path) {
    let (store, loaded) = Store::open(&dir.join("state.redb"), id(1)).unwrap();
    let replica = Replica::start(Start {
        store,
        loaded,
        transport: MemoryWire::new().transport(id(1)),
        timing: super::TIMING,
        state: tokio::sync::watch::Sender::default(),
        events: tokio::sync::broadcast::channel(16).0,
    })
    .await
    .unwrap();
    let mut out = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(dir.join("acknowledged"))
        .unwrap();
    for n in 1.. {
        replica.propose(sign_of_life(n), LONG).await.unwrap();
        writeln!(out, "{n}").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_write_ends_the_process_and_loses_nothing() {
    if let Ok(dir) = std::env::var(DIR) {
        fill(dir.as_ref()).await;
        return;
    }
    let mut lab = Lab::new();
    let path = lab.path(1);
    let dir = path.parent().unwrap();
    // Files of the child end at 2 MiB; beyond that its writes fail.
    let child = Command::new("/bin/sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 4096; exec \"$@\"", "sh"])
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "raft::tests::failing_disk::a_failed_write_ends_the_process_and_loses_nothing",
        ])
        .env(DIR, dir)
        .output()
        .unwrap();
    assert_eq!(child.status.signal(), Some(SIGABRT), "{child:?}");
    let acknowledged = std::fs::read_to_string(dir.join("acknowledged")).unwrap();
    let last: u64 = acknowledged.lines().last().unwrap().parse().unwrap();
    let node = lab.start(1).await.unwrap();
    let started = node.state().nodes[&id(1)].started;
    assert!(started >= UnixMillis::new(last), "{last} was acknowledged, {started:?} is there");
}
