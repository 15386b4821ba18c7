//! The suite of all stores on a real file with direct I/O, and every death of a writer in memory.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;

use super::Block;
use super::Open;
use super::SLOTS;
use super::layout::Header;
use super::medium;
use super::medium::BLOCK_BYTES;
use super::medium::Medium;
use super::prepare;
use super::prepare_on;
use crate::witness::StoreError;
use crate::witness::Tag;
use crate::witness::WitnessStore;
use crate::witness::Written;
use crate::witness::tests::stores::conforms;
use crate::witness::tests::stores::race;

const DEVICE_BYTES: u64 = 2 << 30;

/// A file that plays a device: not in memory only, where direct I/O is none.
fn device() -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lun");
    std::fs::File::create(&path).unwrap().set_len(DEVICE_BYTES).unwrap();
    (dir, path)
}

fn prepare_file(path: &Path, name: &str) -> Result<(), StoreError> {
    prepare_on(&*medium::open(path)?, name)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_device_conforms() {
    let (_dir, path) = device();
    prepare_file(&path, "witness").unwrap();
    let next = Mutex::new(0);
    // Each way is another node's.
    let ways = || {
        let mut next = next.lock().unwrap();
        *next = (*next + 1) % SLOTS;
        Arc::new(Block::new(&path, "witness", *next)) as Arc<dyn WitnessStore>
    };
    conforms(&ways).await;
    ways().remove().await.unwrap();
    for (writers, wins) in [(2, 20), (8, 5)] {
        race(&ways, writers, wins).await;
    }
}

#[tokio::test]
async fn only_an_empty_device_or_an_old_witness_is_taken() {
    let (_dir, path) = device();
    let refused = async |path: &Path| prepare(path, "w1").await.unwrap_err().to_string();
    assert!(refused(&path).await.contains("no block device"));
    assert!(refused(Path::new("/nowhere")).await.contains("/nowhere"));
    let small = path.with_extension("small");
    std::fs::File::create(&small).unwrap().set_len(1 << 20).unwrap();
    assert!(prepare_file(&small, "w1").unwrap_err().to_string().contains("1 MiB"));
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    for at in [512_u64, 1080, 65_600, DEVICE_BYTES - 512] {
        use std::os::unix::fs::FileExt;
        file.write_all_at(b"something", at).unwrap();
        let error = prepare_file(&path, "w1").unwrap_err().to_string();
        assert!(error.contains("holds something"), "at {at}: {error}");
        file.write_all_at(&[0; 9], at).unwrap();
    }
    let unknown = Block::new(&path, "w1", 0).read().await.unwrap_err();
    assert!(matches!(unknown, StoreError::Refused(_)), "{unknown:?}");
    prepare_file(&path, "w1").unwrap();
    let store = Block::new(&path, "w1", 0);
    store.write_if(None, b"vote".to_vec()).await.unwrap();
    // Asked again, it is as it was; another witness does not take it.
    prepare_file(&path, "w1").unwrap();
    assert_eq!(store.read().await.unwrap().unwrap().0, b"vote");
    let error = prepare_file(&path, "w2").unwrap_err().to_string();
    assert!(error.contains("another witness (w1)"), "{error}");
    store.remove().await.unwrap();
    prepare_file(&path, "w2").unwrap();
    assert!(matches!(store.read().await, Err(StoreError::Refused(_))), "it is w2's");
    assert_eq!(Block::new(&path, "w2", 0).read().await, Ok(None));
    let beyond = Block::new(&path, "w2", SLOTS).read().await.unwrap_err().to_string();
    assert!(beyond.contains("64 slots"), "{beyond}");
}

/// Blocks in memory; a write may be the last one of its node, torn in the middle.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Shared>>);

#[derive(Default)]
struct Shared {
    blocks: BTreeMap<u64, Vec<u8>>,
    /// Writes that are left before one is torn and its node is dead.
    left: Option<u64>,
    dead: bool,
}

impl Memory {
    fn dies_after(&self, writes: u64) {
        self.0.lock().unwrap().left = Some(writes);
    }

    /// The node is back; whether it had died.
    fn revive(&self) -> bool {
        let mut shared = self.0.lock().unwrap();
        shared.left = None;
        std::mem::take(&mut shared.dead)
    }

    fn flip(&self, at: u64) {
        let mut shared = self.0.lock().unwrap();
        shared.blocks.get_mut(&at).unwrap()[20] ^= 1;
    }
}

impl Medium for Memory {
    fn bytes(&self) -> Result<u64, StoreError> {
        Ok(DEVICE_BYTES)
    }

    fn read(&self, at: u64, bytes: usize) -> Result<Vec<u8>, StoreError> {
        let shared = self.0.lock().unwrap();
        if shared.dead {
            return Err(StoreError::Unavailable("dead".to_owned()));
        }
        let zeros = vec![0; BLOCK_BYTES];
        let blocks = (0..bytes.div_ceil(BLOCK_BYTES) as u64).map(|n| at + n * BLOCK_BYTES as u64);
        let mut all: Vec<u8> =
            blocks.flat_map(|at| shared.blocks.get(&at).unwrap_or(&zeros).clone()).collect();
        all.truncate(bytes);
        Ok(all)
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let mut shared = self.0.lock().unwrap();
        let lost = || Err(StoreError::Unknown("dead".to_owned()));
        if shared.dead {
            return lost();
        }
        let torn = shared.left == Some(0);
        shared.left = shared.left.map(|left| left.saturating_sub(1));
        for (n, part) in (0_u64..).zip(bytes.chunks(BLOCK_BYTES)) {
            let block = shared.blocks.entry(at + n * BLOCK_BYTES as u64);
            let block = block.or_insert_with(|| vec![0; BLOCK_BYTES]);
            let part = if torn { &part[..part.len() / 2] } else { part };
            block[..part.len()].copy_from_slice(part);
            if !torn {
                block[part.len()..].fill(0);
            }
        }
        shared.dead = torn;
        if torn { lost() } else { Ok(()) }
    }
}

fn node(memory: &Memory, slot: u16) -> Block {
    let memory = memory.clone();
    // A name of its own for each device: turns are of the process.
    let path = format!("/memory/{:p}", Arc::as_ptr(&memory.0));
    let open: Open = Arc::new(move || Ok(Box::new(memory.clone()) as Box<dyn Medium>));
    Block::on(path.into(), "w", slot, open)
}

async fn value(store: &Block) -> Option<(String, Tag)> {
    let found = store.read().await.unwrap();
    found.map(|(bytes, tag)| (String::from_utf8(bytes).unwrap(), tag))
}

/// A node dies at each of its writes, the last one torn. What it was told stands; what it was not
/// told is done or not, for good; others go on, and so does it.
#[tokio::test]
async fn a_writer_may_die_at_any_write() {
    for slots in [[0, 1], [5, 2]] {
        let mut deaths = 0;
        for writes in 0..40 {
            let memory = Memory::default();
            prepare_on(&memory, "w").unwrap();
            let (a, b) = (node(&memory, slots[0]), node(&memory, slots[1]));
            let Ok(Written::Yes(first)) = a.write_if(None, b"first".to_vec()).await else {
                panic!("first")
            };
            let Ok(Written::Yes(second)) = b.write_if(Some(&first), b"second".to_vec()).await
            else {
                panic!("second")
            };
            memory.dies_after(writes);
            let told = a.write_if(Some(&second), b"third".to_vec()).await;
            let died = memory.revive();
            deaths += usize::from(died);
            assert_eq!(died, told.is_err(), "{told:?}");
            let (seen, tag) = value(&b).await.unwrap();
            match &told {
                Ok(Written::Yes(third)) => assert_eq!((seen.as_str(), &tag), ("third", third)),
                _ => assert!(["second", "third"].contains(&seen.as_str()), "{seen}"),
            }
            // Another one goes on from what it sees, or finds that the third is decided.
            let next = match b.write_if(Some(&tag), b"fourth".to_vec()).await.unwrap() {
                Written::Yes(next) => next,
                Written::No => {
                    let (now, tag) = value(&b).await.unwrap();
                    assert_eq!(now, "third", "only that one can have been in the way");
                    let fourth = b.write_if(Some(&tag), b"fourth".to_vec()).await.unwrap();
                    let Written::Yes(next) = fourth else { panic!("{fourth:?}") };
                    next
                }
            };
            // The old one's late attempt fails.
            assert_eq!(a.write_if(Some(&second), b"late".to_vec()).await, Ok(Written::No));
            assert_eq!(value(&a).await.unwrap(), ("fourth".to_owned(), next.clone()));
            a.write_if(Some(&next), b"fifth".to_vec()).await.unwrap();
            assert_eq!(value(&b).await.unwrap().0, "fifth");
        }
        // Ballot, value before, value, acceptance and decision; slots are written twice.
        assert_eq!(deaths, 8);
    }
}

#[tokio::test]
async fn one_bad_copy_of_a_slot_harms_nobody_and_two_stop_the_witness() {
    let memory = Memory::default();
    prepare_on(&memory, "w").unwrap();
    let (a, b) = (node(&memory, 0), node(&memory, 1));
    a.write_if(None, b"one".to_vec()).await.unwrap();
    let table = 64 << 10;
    memory.flip(table);
    let (_, tag) = value(&b).await.unwrap();
    assert!(matches!(b.write_if(Some(&tag), b"two".to_vec()).await, Ok(Written::Yes(_))));
    memory.flip(table + BLOCK_BYTES as u64);
    let error = b.read().await.unwrap_err();
    assert!(matches!(&error, StoreError::Refused(why) if why.contains("slot 0")), "{error:?}");
    assert!(b.write_if(Some(&tag), b"three".to_vec()).await.is_err());
}

#[test]
fn areas_do_not_meet() {
    let header = Header::for_device("w", DEVICE_BYTES).unwrap();
    let mut end = 0;
    for (slot, area) in (0..SLOTS).flat_map(|slot| (0..3).map(move |area| (slot, area))) {
        let (at, bytes) = header.area(super::layout::Region::Main, slot, area);
        assert!(at >= end && at % BLOCK_BYTES as u64 == 0 && bytes > 4 << 20);
        end = at + bytes;
    }
    assert!(end <= DEVICE_BYTES);
}
