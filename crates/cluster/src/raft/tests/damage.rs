//! A store that is cut, foreign, rolled back or damaged is refused in words, and never half used.

use std::path::Path;
use std::path::PathBuf;

use super::Lab;
use super::id;
use super::propose;
use super::wait;
use crate::raft::Store;
use crate::raft::StoreError;
use crate::raft::format::Ballot;
use crate::raft::format::Position;
use crate::raft::format::SnapshotHead;
use crate::raft::store::lock;
use crate::raft::types::Entry;

/// The two files of a store.
#[derive(Clone)]
struct Image {
    state: Vec<u8>,
    mark: Vec<u8>,
}

/// All that a node would act by.
#[derive(Debug, Clone, PartialEq)]
struct Content {
    vote: Option<Ballot>,
    last: Option<Position>,
    snapshot: Option<SnapshotHead>,
    entries: Vec<Entry>,
}

impl Image {
    fn read(path: &Path) -> Self {
        let mark = std::fs::read(path.with_extension("mark")).unwrap();
        Self { state: std::fs::read(path).unwrap(), mark }
    }

    fn write(&self, path: &Path) {
        std::fs::write(path, &self.state).unwrap();
        std::fs::write(path.with_extension("mark"), &self.mark).unwrap();
    }

    fn with_state(&self, state: Vec<u8>) -> Self {
        Self { state, ..self.clone() }
    }
}

async fn content(store: &Store) -> Content {
    let (vote, last, next, purged) = {
        let cache = lock(&store.files.cache);
        (cache.vote, cache.last, cache.next(), cache.purged)
    };
    let first = purged.map_or(0, |at| at.index + 1);
    let entries = store.read_entries(first..next).unwrap();
    let snapshot = store.read_snapshot().unwrap().map(|(head, _)| head);
    Content { vote, last, snapshot, entries }
}

/// Opens an image and looks at all of it.
async fn opened(path: &Path, image: &Image) -> Result<Content, StoreError> {
    image.write(path);
    let (store, _) = Store::open(path, id(1))?;
    let found = content(&store).await;
    store.close().await;
    Ok(found)
}

struct Stored {
    content: Content,
    /// As a daemon that was killed leaves it.
    killed: Image,
    /// As a daemon that ended leaves it.
    ended: Image,
    /// An earlier one.
    before: Image,
}

/// A store with a snapshot and entries after it.
async fn stored() -> Stored {
    let mut lab = Lab::new();
    let node = lab.start(1).await.unwrap();
    for n in 1..=20 {
        propose(&node, n).await.unwrap();
    }
    node.inner.raft.trigger().snapshot().await.unwrap();
    wait(&node, |metrics| metrics.snapshot.is_some()).await;
    for n in 21..=39 {
        propose(&node, n).await.unwrap();
    }
    let before = Image::read(&lab.path(1));
    propose(&node, 40).await.unwrap();
    // Nothing is under way: what was acknowledged is on disk, and so is its mark.
    let killed = Image::read(&lab.path(1));
    let content = content(node.store()).await;
    lab.stop(1).await;
    Stored { content, killed, ended: Image::read(&lab.path(1)), before }
}

/// A place for images: in memory where that is possible, there are hundreds of them.
fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let path = dir.path().join("state.redb");
    (dir, path)
}

async fn refused(path: &Path, image: &Image) -> String {
    let error = opened(path, image).await.unwrap_err();
    assert!(error.damage().is_some(), "not known as damage: {error:?}");
    let error = error.to_string();
    assert!(error.contains(path.to_str().unwrap()), "{error}");
    assert!(error.contains("join again"), "no next step: {error}");
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_cut_or_foreign_is_refused() {
    let Stored { content, killed, ended, .. } = stored().await;
    let (_dir, path) = place();
    assert_eq!(opened(&path, &ended).await.unwrap(), content);
    assert_eq!(opened(&path, &killed).await.unwrap(), content, "as kill -9 leaves it");
    let length = ended.state.len();
    for bytes in [vec![], b"hello".to_vec(), vec![0; length], vec![0xff; 4096]] {
        refused(&path, &ended.with_state(bytes)).await;
    }
    for part in 1..16 {
        refused(&path, &ended.with_state(ended.state[..length * part / 16].to_vec())).await;
    }
    std::fs::remove_file(&path).unwrap();
    let gone = Store::open(&path, id(1)).unwrap_err().to_string();
    assert!(gone.contains("it is gone"), "{gone}");
    std::fs::create_dir(&path).unwrap();
    assert!(Store::open(&path, id(1)).unwrap_err().to_string().contains("state.redb"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_older_than_its_mark_is_refused() {
    let Stored { content, killed, ended, before } = stored().await;
    let (_dir, path) = place();
    // An old copy put back, or the disk forgot what it had acknowledged.
    let old = killed.with_state(before.state.clone());
    let error = refused(&path, &old).await;
    assert!(error.contains("acknowledged is missing"), "{error}");
    // The copy with its own mark is a backup, and consistent.
    assert!(opened(&path, &before).await.is_ok());
    for mark in [vec![], b"what".to_vec(), vec![0; killed.mark.len()]] {
        let error = refused(&path, &Image { mark, ..killed.clone() }).await;
        assert!(error.contains("its mark"), "{error}");
    }
    ended.write(&path);
    std::fs::remove_file(path.with_extension("mark")).unwrap();
    assert!(Store::open(&path, id(1)).is_err());
    // One slot of the mark may be torn by a power cut: the other one is good enough.
    let mut torn = killed.clone();
    torn.mark[20] ^= 0xff;
    assert_eq!(opened(&path, &torn).await.unwrap(), content);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_start_that_was_cut_off_is_begun_again() {
    let (_dir, path) = place();
    std::fs::write(path.with_extension("new"), "half").unwrap();
    let (store, loaded) = Store::open(&path, id(1)).unwrap();
    assert!(loaded.pristine);
    assert!(!path.with_extension("new").exists());
    store.close().await;
}

/// Flips a bit or swaps pages all over the used parts of both images.
#[tokio::test(flavor = "multi_thread")]
async fn damage_is_found_or_does_not_matter() {
    let Stored { content, killed, ended, .. } = stored().await;
    let (_dir, path) = place();
    let mut unseen = Vec::new();
    let mut found = 0;
    for image in [killed, ended] {
        // The whole head, then places all over the parts in use.
        let used: Vec<usize> = (0..image.state.len()).filter(|at| image.state[*at] != 0).collect();
        let step = used.len() / 150 + 1;
        for at in (0..320).step_by(3).chain(used.iter().copied().step_by(step)) {
            let mut bad = image.clone();
            bad.state[at] ^= 1 << (at % 8);
            match opened(&path, &bad).await {
                Ok(seen) if seen == content => {}
                Ok(_) => unseen.push(at),
                Err(error) => {
                    assert!(error.to_string().contains("state.redb"), "{error}");
                    assert!(error.damage().is_some(), "not known as damage: {error:?}");
                    found += 1;
                }
            }
        }
        let pages: Vec<usize> = used.iter().map(|at| at / 4096).collect();
        for at in (0..pages.len()).step_by(pages.len() / 40 + 1) {
            let (a, b) = (pages[at] * 4096, pages[pages.len() - 1 - at] * 4096);
            let mut bad = image.clone();
            if a == b || a.max(b) + 4096 > bad.state.len() {
                continue;
            }
            let page = bad.state[a..a + 4096].to_vec();
            bad.state.copy_within(b..b + 4096, a);
            bad.state[b..b + 4096].copy_from_slice(&page);
            match opened(&path, &bad).await {
                Ok(seen) if seen == content => {}
                Ok(_) => unseen.push(a),
                Err(_) => found += 1,
            }
        }
    }
    assert_eq!(unseen, [0; 0], "bytes whose change goes unseen");
    assert!(found > 50, "only {found} found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_the_time_before_raft_is_refused_with_advice() {
    for format in [1_u32, 2] {
        let (_dir, path) = place();
        let database = redb::Database::create(&path).unwrap();
        let write = database.begin_write().unwrap();
        {
            let table = redb::TableDefinition::<&str, &[u8]>::new("meta");
            let mut meta = write.open_table(table).unwrap();
            meta.insert("format", format.to_le_bytes().as_slice()).unwrap();
        }
        write.commit().unwrap();
        drop(database);
        let before = std::fs::read(&path).unwrap();
        let error = Store::open(&path, id(1)).unwrap_err();
        assert!(matches!(error, StoreError::TooOld { found, .. } if found == format), "{error}");
        assert!(error.to_string().contains("move"), "{error}");
        assert!(error.to_string().contains("muster vm register"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap().len(), before.len());
    }
}
