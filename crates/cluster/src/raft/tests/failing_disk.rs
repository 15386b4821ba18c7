//! A disk that does not take a write: the process ends, and nothing acknowledged is lost.

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

/// The child: writes until the disk is full, and says what was acknowledged.
async fn fill(dir: &Path) {
    let (store, loaded) = Store::open(&dir.join("state.redb"), id(1)).unwrap();
    let replica = Replica::start(Start {
        store,
        loaded,
        transport: Arc::new(NoPeers),
        timing: super::TIMING,
        state: tokio::sync::watch::Sender::default(),
        events: tokio::sync::broadcast::channel(16).0,
        out: false,
    })
    .await
    .unwrap();
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
    let name = "raft::tests::failing_disk::a_failed_write_ends_the_process_and_loses_nothing";
    // Files of the child end at 2 MiB; beyond that its writes fail.
    let child = Command::new("/bin/sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 4096; exec \"$@\"", "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env(DIR, dir)
        .output()
        .unwrap();
    assert_eq!(child.status.signal(), Some(SIGABRT), "{child:?}");
    let acknowledged = std::fs::metadata(dir.join("acknowledged")).unwrap().len();
    let node = lab.start(1).await.unwrap();
    let events = node.store().last_events(1).unwrap();
    let there = events.first().map_or(0, |event| event.seq);
    assert!(acknowledged > 0, "nothing was written before the disk was full");
    assert!(there >= acknowledged, "{acknowledged} were acknowledged, {there} are there");
}
