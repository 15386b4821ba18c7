//! A small file beside the store that says how far the store had come, so that damage to the
//! store's last commit cannot pass for a commit that was cut off by a crash.
//!
//! ```text
//!   state.mark   two slots, at 0 and at 4096, written in turn:
//!     "MUSTERMK" | version u32 | store uuid (16) | commits u64 | CRC-32C of all before u32
//! ```
//!
//! Numbers are little endian. redb keeps the commit before the last one, and goes back to it when
//! the last one does not verify after a crash: it cannot know whether that one was finished. We
//! can: `commits` is written here after the commit's fsync has returned and before anybody is told.
//! A store that is behind its mark has lost something that was acknowledged, and is refused.
//!
//! The mark is written at once, so it is exact whenever the process dies; it is synced shortly
//! after ([`SYNC_EVERY`]), so that an acknowledgement costs one fsync, not two. What remains is a
//! power cut within that time *and* damage to the very pages of the last commit
//! (docs/decisions/0007).

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use uuid::Uuid;

const MAGIC: &[u8; 8] = b"MUSTERMK";
const VERSION: u32 = 1;
const SLOT_BYTES: usize = 40;

/// Far enough apart to lie in different sectors and pages: a torn write harms one slot.
const SLOT_STEP: u64 = 4096;

/// Time between two syncs of the mark. One sync each time would compete with the log's own.
const SYNC_EVERY: Duration = Duration::from_millis(50);

/// What a mark says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MarkValue {
    /// Of which store.
    pub(crate) store: Uuid,
    /// Its last finished commit.
    pub(crate) commits: u64,
}

/// What was found at the mark's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// No file.
    Nothing,
    /// A file without a slot that holds.
    Damaged,
    /// A mark.
    Mark(MarkValue),
}

/// The mark of an open store.
#[derive(Debug)]
pub(crate) struct Mark {
    /// Nothing: a simulated disk, which keeps its word.
    file: Option<Arc<File>>,
    store: Uuid,
    sync: Option<mpsc::SyncSender<()>>,
}

fn slot(value: MarkValue) -> [u8; SLOT_BYTES] {
    let mut slot = [0; SLOT_BYTES];
    slot[..8].copy_from_slice(MAGIC);
    slot[8..12].copy_from_slice(&VERSION.to_le_bytes());
    slot[12..28].copy_from_slice(value.store.as_bytes());
    slot[28..36].copy_from_slice(&value.commits.to_le_bytes());
    let crc = crc32c::crc32c(&slot[..36]);
    slot[36..].copy_from_slice(&crc.to_le_bytes());
    slot
}

fn parse(slot: &[u8]) -> Option<MarkValue> {
    let slot: &[u8; SLOT_BYTES] = slot.try_into().ok()?;
    let number = |at: usize| slot[at..at + 4].try_into().map(u32::from_le_bytes).ok();
    let whole = slot[..8] == *MAGIC
        && number(8) == Some(VERSION)
        && number(36) == Some(crc32c::crc32c(&slot[..36]));
    whole.then_some(())?;
    let store = Uuid::from_slice(&slot[12..28]).ok()?;
    let commits = u64::from_le_bytes(slot[28..36].try_into().ok()?);
    Some(MarkValue { store, commits })
}

/// Reads the mark, without changing anything.
pub(crate) fn read(path: &Path) -> io::Result<Found> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(error),
    };
    let at = |n: u64| {
        let from = usize::try_from(n * SLOT_STEP).ok()?;
        parse(bytes.get(from..from + SLOT_BYTES)?)
    };
    // The later one counts. Slots of two stores: the store was made anew, and the caller decides
    // by the store's own number.
    Ok(match (at(0), at(1)) {
        (None, None) => Found::Damaged,
        (Some(one), None) | (None, Some(one)) => Found::Mark(one),
        (Some(a), Some(b)) => Found::Mark(if a.commits > b.commits { a } else { b }),
    })
}

impl Mark {
    /// Opens the mark's file and writes both slots durably.
    pub(crate) fn open(path: &Path, value: MarkValue) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        // Both slots exist from now on, so that no later write changes the file's size.
        for n in 0..2 {
            file.write_all_at(&slot(value), n * SLOT_STEP)?;
            file.sync_all()?;
        }
        let dir = path.parent().unwrap_or(Path::new("."));
        File::open(dir)?.sync_all()?;
        let file = Arc::new(file);
        let (sync, syncs) = mpsc::sync_channel::<()>(1);
        let synced = file.clone();
        std::thread::Builder::new().name("mark".to_owned()).spawn(move || {
            while syncs.recv().is_ok() {
                if let Err(error) = synced.sync_data() {
                    super::store::die(&error, "the mark");
                }
                std::thread::sleep(SYNC_EVERY);
            }
        })?;
        Ok(Self { file: Some(file), store: value.store, sync: Some(sync) })
    }

    /// No mark.
    pub(crate) fn none() -> Self {
        Self { file: None, store: Uuid::nil(), sync: None }
    }

    /// Notes that a commit is finished.
    pub(crate) fn set(&self, commits: u64) -> io::Result<()> {
        let value = MarkValue { store: self.store, commits };
        if let Some(file) = &self.file {
            file.write_all_at(&slot(value), (commits % 2) * SLOT_STEP)?;
        }
        if let Some(sync) = &self.sync {
            // Full: a sync that has not begun yet will take this one with it.
            let _ = sync.try_send(());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_survives_the_loss_of_one_slot() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.mark");
        assert_eq!(read(&path).unwrap(), Found::Nothing);
        let store = Uuid::from_u128(7);
        let mark = Mark::open(&path, MarkValue { store, commits: 4 }).unwrap();
        assert_eq!(read(&path).unwrap(), Found::Mark(MarkValue { store, commits: 4 }));
        mark.set(5).unwrap();
        mark.set(6).unwrap();
        mark.set(7).unwrap();
        assert_eq!(read(&path).unwrap(), Found::Mark(MarkValue { store, commits: 7 }));
        let whole = std::fs::read(&path).unwrap();
        let mut bad = whole.clone();
        bad[4096 + 30] ^= 4;
        std::fs::write(&path, &bad).unwrap();
        assert_eq!(read(&path).unwrap(), Found::Mark(MarkValue { store, commits: 6 }));
        bad[3] ^= 4;
        std::fs::write(&path, &bad).unwrap();
        assert_eq!(read(&path).unwrap(), Found::Damaged);
        std::fs::write(&path, b"").unwrap();
        assert_eq!(read(&path).unwrap(), Found::Damaged);
    }

    #[test]
    fn the_form_of_a_slot_stays() {
        let value = MarkValue { store: Uuid::from_u128(0x0102_0304), commits: 258 };
        let text: String = slot(value).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            text,
            "4d55535445524d4b01000000000000000000000000000000010203040201000000000000c8b7a77f"
        );
    }
}
