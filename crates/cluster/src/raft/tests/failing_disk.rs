//! A disk that does not take a write, and a log that panics: the process ends, and nothing acknowledged is lost.

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use super::LONG;
use super::Lab;
use super::id;
use super::sign_of_life;
use crate::raft::NoPeers;
use crate::raft::Replica;
use crate::raft::Start;
use crate::raft::Store;

/// Names the directory in the child process.
const DIR: &str = "MUSTER_TEST_FAILING_DISK";

const SIGABRT: i32 = 6;

async fn replica(dir: &Path) -> Replica {
    let (store, loaded) = Store::open(&dir.join("state.redb"), id(1)).unwrap();
    let start = Replica::start(Start {
        store,
        loaded,
        transport: Arc::new(NoPeers),
        timing: super::TIMING,
        state: tokio::sync::watch::Sender::default(),
        events: tokio::sync::broadcast::channel(16).0,
        out: false,
    });
    start.await.unwrap()
}

/// The child: writes until the disk is full, and says what was acknowledged.
async fn fill(dir: &Path) {
    let replica = replica(dir).await;
    let said = std::fs::File::create(dir.join("acknowledged")).unwrap();
    let (said, next) = (Arc::new(said), Arc::new(AtomicU64::new(1)));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let (replica, said, next) = (replica.clone(), said.clone(), next.clone());
        tasks.spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                replica.propose(sign_of_life(n), LONG).await.unwrap();
                (&*said).write_all(b"x").unwrap();
            }
        });
    }
    tasks.join_next().await.unwrap().unwrap();
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
    child_aborts("a_failed_write_ends_the_process_and_loses_nothing", "ulimit -f 4096", dir);
    let acknowledged = std::fs::metadata(dir.join("acknowledged")).unwrap().len();
    let node = lab.start(1).await.unwrap();
    let events = node.store().last_events(1).unwrap();
    let there = events.first().map_or(0, |event| event.seq);
    assert!(acknowledged > 0, "nothing was written before the disk was full");
    assert!(there >= acknowledged, "{acknowledged} were acknowledged, {there} are there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_panics_ends_the_process_and_loses_nothing() {
    if let Ok(dir) = std::env::var(DIR) {
        let replica = replica(dir.as_ref()).await;
        replica.propose(sign_of_life(7), LONG).await.unwrap();
        replica.inner.raft.external_request(|_| panic!("a bug")).await.unwrap();
        tokio::time::sleep(LONG).await;
        return;
    }
    let mut lab = Lab::new();
    let path = lab.path(1);
    child_aborts(
        "a_log_that_panics_ends_the_process_and_loses_nothing",
        "",
        path.parent().unwrap(),
    );
    let node = lab.start(1).await.unwrap();
    assert_eq!(node.store().last_events(1).unwrap().len(), 1);
}

#[tokio::test]
async fn a_log_that_is_told_to_end_ends_no_process() {
    let dir = tempfile::tempdir().unwrap();
    let replica = replica(dir.path()).await;
    replica.stop().await;
    // Time for all that follows the log.
    tokio::time::sleep(super::TIMING.election_max).await;
}

/// Runs one of these tests as the child that it has, under a limit of the shell.
fn child_aborts(test: &str, limit: &str, dir: &Path) {
    let child = Command::new("/bin/sh")
        .args(["-c", &format!("trap '' XFSZ; {limit}\nexec \"$@\""), "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("raft::tests::failing_disk::{test}")])
        .env(DIR, dir)
        .output()
        .unwrap();
    assert_eq!(child.status.signal(), Some(SIGABRT), "{child:?}");
}
