//! Tests: a snapshot is written in parts while entries are appended, and counts once it is whole.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use model::Actor;
use model::ClusterState;
use model::Command;
use model::Proposal;
use model::TokenId;
use model::UnixMillis;
use redb::ReadableDatabase;
use redb::ReadableTable;
use redb::ReadableTableMetadata;

use super::Store;
use super::store::LOG;
use super::store::META;
use super::store::SNAPSHOTS;
use super::store::encode;

/// The entry of that number, carried out and appended.
fn append(store: &Store, state: &mut ClusterState, n: u64) {
    let command = Command::TokenCreate {
        token: TokenId::new(uuid::Uuid::from_u128(n.into())),
        name: format!("t{n}").parse().unwrap(),
        role: model::Role::Viewer,
        digest: "0".repeat(64),
        expires: None,
    };
    let proposal = Proposal { at: UnixMillis::new(n), actor: Actor::new("test"), command };
    state.apply(&proposal).unwrap();
    store.append(n, &[proposal], &[]).unwrap();
}

fn rows(store: &Store) -> (u64, u64) {
    let read = store.database_for_tests().begin_read().unwrap();
    let parts = read.open_table(SNAPSHOTS).unwrap().len().unwrap();
    (read.open_table(LOG).unwrap().len().unwrap(), parts)
}

fn reopened(path: &Path) -> (Store, ClusterState, u64) {
    let (store, loaded) = Store::open(path).unwrap();
    (store, loaded.state, loaded.entries)
}

#[test]
fn entries_are_appended_while_a_snapshot_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let (store, mut state, _) = reopened(&path);
    for n in 1..=60 {
        append(&store, &mut state, n);
    }
    let (written, copy) = (AtomicBool::new(false), state.clone());
    let mut n = 60;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            store.snapshot(&copy, 60).unwrap();
            written.store(true, Ordering::Release);
        });
        while !written.load(Ordering::Acquire) && n < 900 {
            n += 1;
            append(&store, &mut state, n);
        }
    });
    assert!(n > 62, "{n}: nobody came in between");
    let (log, parts) = rows(&store);
    assert_eq!(log, n - 60, "what the snapshot holds is dropped from the log");
    assert!(parts > 5, "{parts} parts");
    drop(store);
    let (store, loaded, entries) = reopened(&path);
    assert_eq!((loaded, entries), (state.clone(), n - 60));
    store.snapshot(&state, n).unwrap();
    let record = encode(&state).len();
    assert_eq!(rows(&store), (0, record.div_ceil(1 << 10) as u64), "the old parts are dropped");
}

#[test]
fn a_snapshot_that_was_cut_off_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let (store, mut state, _) = reopened(&path);
    for n in 1..=40 {
        append(&store, &mut state, n);
        if n == 20 {
            store.snapshot(&state, n).unwrap();
        }
    }
    let write = store.database_for_tests().begin_write().unwrap();
    write.open_table(SNAPSHOTS).unwrap().insert((30, 0), [1, 2, 3].as_slice()).unwrap();
    write.commit().unwrap();
    drop(store);
    let (store, loaded, entries) = reopened(&path);
    assert_eq!((&loaded, entries), (&state, 20));
    store.snapshot(&state, 40).unwrap();
    let read = store.database_for_tests().begin_read().unwrap();
    let first = read.open_table(SNAPSHOTS).unwrap().first().unwrap().unwrap().0.value();
    assert_eq!(first, (40, 0));
}

#[test]
fn a_snapshot_with_a_part_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let (store, mut state, _) = reopened(&path);
    for n in 1..=40 {
        append(&store, &mut state, n);
    }
    store.snapshot(&state, 40).unwrap();
    let write = store.database_for_tests().begin_write().unwrap();
    write.open_table(SNAPSHOTS).unwrap().remove((40, 1)).unwrap();
    write.commit().unwrap();
    drop(store);
    let error = Store::open(&path).unwrap_err().to_string();
    assert!(error.contains("snapshots/40") && error.contains("part 1"), "{error}");
}

#[test]
fn the_snapshot_of_the_first_format_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let (store, mut state, _) = reopened(&path);
    append(&store, &mut state, 1);
    append(&store, &mut state, 2);
    let write = store.database_for_tests().begin_write().unwrap();
    {
        let mut meta = write.open_table(META).unwrap();
        meta.insert("format", 1_u32.to_le_bytes().as_slice()).unwrap();
        meta.insert("snapshot", encode(&state).as_slice()).unwrap();
        meta.insert("snapshot_index", 2_u64.to_le_bytes().as_slice()).unwrap();
        write.open_table(LOG).unwrap().pop_first().unwrap();
        write.open_table(LOG).unwrap().pop_first().unwrap();
    }
    write.delete_table(SNAPSHOTS).unwrap();
    write.commit().unwrap();
    drop(store);
    let (store, loaded, entries) = reopened(&path);
    assert_eq!((&loaded, entries), (&state, 0));
    append(&store, &mut state, 3);
    store.snapshot(&state, 3).unwrap();
    let read = store.database_for_tests().begin_read().unwrap();
    assert!(read.open_table(META).unwrap().get("snapshot").unwrap().is_none());
    drop((read, store));
    assert_eq!(reopened(&path).1, state);
}
