//! Tests: a state file that is cut, foreign or damaged is refused in words, and never half used.

use std::path::Path;

use model::Actor;
use model::ClusterState;
use model::Command;
use model::NodeId;
use model::Proposal;
use model::TokenId;
use model::UnixMillis;

use super::Store;
use super::StoreError;

/// A store with a snapshot and entries after it.
struct Stored {
    state: ClusterState,
    /// The state without the last entry.
    before: ClusterState,
    /// The file as a daemon that was killed leaves it.
    killed: Vec<u8>,
    /// The file as a daemon that ended leaves it.
    ended: Vec<u8>,
}

fn stored(dir: &Path) -> Stored {
    let path = dir.join("whole.redb");
    let (store, loaded) = Store::open(&path).unwrap();
    let mut state = loaded.state;
    let mut before = state.clone();
    for n in 0..40_u64 {
        let command = match n {
            0 => Command::NodeStarted {
                node: NodeId::new(uuid::Uuid::from_u128(1)),
                name: "h1".parse().unwrap(),
                capacity: model::NodeCapacity::default(),
            },
            _ => Command::TokenCreate {
                token: TokenId::new(uuid::Uuid::from_u128(n.into())),
                name: format!("t{n}").parse().unwrap(),
                role: model::Role::Viewer,
                digest: "0".repeat(64),
                expires: None,
            },
        };
        let proposal = Proposal { at: UnixMillis::new(n), actor: Actor::new("test"), command };
        before.clone_from(&state);
        let applied = state.apply(&proposal).unwrap();
        let events: Vec<_> = applied
            .events
            .into_iter()
            .map(|event| super::StoredEvent { seq: n + 1, event })
            .collect();
        store.append(n + 1, &[proposal], &events).unwrap();
        if n == 20 {
            store.snapshot(&state, n + 1).unwrap();
        }
    }
    let killed = std::fs::read(&path).unwrap();
    drop(store);
    Stored { state, before, killed, ended: std::fs::read(path).unwrap() }
}

/// Opens these bytes; `Err` holds the message.
fn opened(path: &Path, bytes: &[u8]) -> Result<ClusterState, StoreError> {
    std::fs::write(path, bytes).unwrap();
    Store::open(path).map(|(_, loaded)| loaded.state)
}

fn refused(path: &Path, bytes: &[u8]) {
    let error = opened(path, bytes).unwrap_err().to_string();
    assert!(error.contains(path.to_str().unwrap()), "{error}");
    assert!(error.contains("backup"), "no next step: {error}");
}

#[test]
fn a_file_that_is_cut_or_foreign_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let Stored { state, killed, ended: bytes, .. } = stored(dir.path());
    let path = dir.path().join("state.redb");
    assert_eq!(opened(&path, &bytes).unwrap(), state);
    assert_eq!(opened(&path, &killed).unwrap(), state, "as kill -9 leaves it");
    refused(&path, b"");
    refused(&path, b"hello");
    refused(&path, &vec![0; bytes.len()]);
    refused(&path, &vec![0xff; 4096]);
    for part in 1..16 {
        refused(&path, &bytes[..bytes.len() * part / 16]);
    }
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(Store::open(&path).unwrap_err().to_string().contains("state.redb"));
}

#[test]
fn a_first_start_that_was_cut_off_is_begun_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    std::fs::write(path.with_extension("new"), "half").unwrap();
    let (_, loaded) = Store::open(&path).unwrap();
    assert_eq!(loaded.state, ClusterState::default());
    assert!(!path.with_extension("new").exists());
}

#[test]
fn a_flipped_bit_is_found_or_does_not_matter() {
    let dir = tempfile::tempdir().unwrap();
    let Stored { state, before, killed, ended } = stored(dir.path());
    let path = dir.path().join("state.redb");
    // redb cannot tell damage in the very last commit before a kill from one that was cut off, and
    // goes back to the commit before it. Nothing else may go unseen.
    for (bytes, fits) in [(ended, vec![&state]), (killed, vec![&state, &before])] {
        // The whole head, then places all over the parts in use.
        let used: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
        let step = used.len() / 200 + 1;
        let places = (0..320).chain(used.into_iter().step_by(step));
        let mut unseen = Vec::new();
        for at in places {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << (at % 8);
            match opened(&path, &bad) {
                Ok(found) if fits.contains(&&found) => {}
                Ok(_) => unseen.push(at),
                Err(error) => assert!(error.to_string().contains("state.redb"), "{error}"),
            }
        }
        assert_eq!(unseen, [0; 0], "bytes whose change goes unseen");
    }
}
