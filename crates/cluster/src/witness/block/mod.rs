//! A record on a small block device that all nodes see: a LUN or a partition of its own.
//!
//! A disk has no write on condition. So the nodes agree on each next version by themselves, by
//! Paxos over blocks that each have one writer (Gafni and Lamport, "Disk Paxos", with one disk):
//! [`paxos`]. Each node has a *slot* of its own, a number that the cluster's state gives out and
//! never gives to another one while this witness lives. Nothing here depends on clocks.
//!
//! ```text
//!          0   header        | magic | CRC-32C | length | JSON: name, area_bytes |    twice, 4 KiB apart
//!     64 KiB   slots         64 times two copies of 4 KiB, one after the other
//!      1 MiB   slots for trials, four times the same
//!      3 MiB   values of trials, four times 64 times three of 4 KiB
//!      8 MiB   values        64 times three areas of area_bytes (at most 16 MiB)
//! ```
//!
//! All I/O goes around the page cache (`O_DIRECT`) and is on the medium when it returns
//! (`O_DSYNC`). A slot is written copy after copy, so a torn write leaves the other copy, and so
//! does a block that goes bad later. A slot of which no copy holds stops the witness: what was
//! promised there is not known.
//!
//! What is assumed of the device: a write that has returned is on the medium, seen by each read that
//! begins later at any node, and a write never reaches the medium after one of the same node that
//! was begun later. A path that may hold a write back and let it loose after its node has come up
//! again breaks that (docs/decisions/0024).

mod layout;
mod medium;
mod paxos;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Mutex as AsyncMutex;
use tokio::sync::OwnedMutexGuard;

use self::layout::Header;
use self::layout::Region;
use self::layout::TRIALS;
use self::medium::Medium;
use self::paxos::Record;
use super::store::StoreError;
use super::store::Tag;
use super::store::WitnessStore;
use super::store::Written;

pub use self::layout::SLOTS;

/// How long an operation waits for the one before it: a device that is gone blocks whoever touches
/// it, without end.
const ROOM_WAIT: Duration = Duration::from_secs(3);

/// Opens the device, each time: a path that was cut and came back is another open file.
type Open = Arc<dyn Fn() -> Result<Box<dyn Medium>, StoreError> + Send + Sync>;

/// One writer at a time for each slot of each device in this process.
type Turn = Arc<AsyncMutex<()>>;

/// Device, slot, and what it is about.
type Place = (PathBuf, u16, What);

/// Who owns which turn.
static TURNS: LazyLock<Mutex<HashMap<Place, Turn>>> = LazyLock::new(Mutex::default);

/// What a turn is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum What {
    /// An operation.
    Step(Region),
    /// A whole trial.
    Trial(u8),
}

/// A trial that has begun: where, and that no other one of this process is there.
type Trial = Option<(u8, OwnedMutexGuard<()>)>;

/// A record on a block device.
#[derive(Clone)]
pub struct Block {
    path: PathBuf,
    name: String,
    /// Of the header: for a trial another one than `name`.
    owner: String,
    slot: u16,
    open: Open,
    /// A trial has its slot of one of the regions for itself until it is dropped.
    trial: Option<Arc<AsyncMutex<Trial>>>,
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Block({}, {}, slot {})", self.path.display(), self.name, self.slot)
    }
}

fn turn(path: &Path, slot: u16, what: What) -> Turn {
    let mut turns = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
    turns.entry((path.to_owned(), slot, what)).or_default().clone()
}

/// Makes a device ready for the record `name`. One that holds anything else than zeros or an old
/// record that was removed is refused, and so is one that is in use or too small.
///
/// # Errors
/// [`StoreError`], in words with a next step.
pub async fn prepare(path: &Path, name: &str) -> Result<(), StoreError> {
    let (path, name) = (path.to_owned(), name.to_owned());
    let done = tokio::task::spawn_blocking(move || {
        medium::check_device(&path)?;
        prepare_on(&*medium::open_alone(&path)?, &name)
    });
    done.await.unwrap_or_else(|error| Err(StoreError::Unknown(error.to_string())))
}

fn prepare_on(medium: &dyn Medium, name: &str) -> Result<(), StoreError> {
    let bytes = medium.bytes()?;
    let header = Header::for_device(name, bytes)?;
    match Header::find(medium)? {
        Some(old) if old == header => return Ok(()),
        Some(old) => {
            let record =
                Record { medium, header: &old, name: &old.name, slot: 0, region: Region::Main };
            if record.read()?.is_some() {
                return Err(StoreError::Refused(format!(
                    "it holds the record of another witness ({}); remove that one first, or if no \
                     cluster uses it any more, wipe the first 8 MiB of the device",
                    old.name
                )));
            }
        }
        None => layout::check_blank(medium, bytes)?,
    }
    layout::clear(medium)?;
    header.write(medium)
}

impl Block {
    /// The record `name` on a device, by the node that has that slot (below [`SLOTS`]).
    pub fn new(path: impl Into<PathBuf>, name: &str, slot: u16) -> Self {
        let path = path.into();
        let device = path.clone();
        let open: Open = Arc::new(move || medium::open(&device));
        Self::on(path, name, slot, open)
    }

    fn on(path: PathBuf, name: &str, slot: u16, open: Open) -> Self {
        let (name, owner) = (name.to_owned(), name.to_owned());
        Self { path, name, owner, slot, open, trial: None }
    }

    /// Which region this is about; a trial takes a free one.
    async fn region(&self) -> Option<Region> {
        let Some(trial) = &self.trial else { return Some(Region::Main) };
        let mut held = trial.lock().await;
        if held.is_none() {
            *held = (0..TRIALS).find_map(|number| {
                let whole = turn(&self.path, self.slot, What::Trial(number));
                Some((number, whole.try_lock_owned().ok()?))
            });
        }
        held.as_ref().map(|(number, _)| Region::Trial(*number))
    }

    /// Runs what may block, when nothing else works on the slot.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Record<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let hangs = || {
            StoreError::Unavailable(format!("{} does not answer, or is busy", self.path.display()))
        };
        let region = self.region().await.ok_or_else(hangs)?;
        let turn = turn(&self.path, self.slot, What::Step(region));
        let room = tokio::time::timeout(ROOM_WAIT, turn.lock_owned()).await;
        let permit = room.map_err(|_| hangs())?;
        let own = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let done = own.on_device(region, work);
            drop(permit);
            done
        });
        done.await.unwrap_or_else(|error| Err(StoreError::Unknown(error.to_string())))
    }

    fn on_device<T>(
        &self,
        region: Region,
        work: impl FnOnce(&Record<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if self.slot >= SLOTS {
            return Err(StoreError::Refused(format!(
                "it has {SLOTS} slots, and this node would need another; remove the witness and \
                 set it anew"
            )));
        }
        let medium = (self.open)()?;
        let header = Header::find(&*medium)?.filter(|header| header.name == self.owner);
        let Some(header) = header else {
            return Err(StoreError::Refused(format!(
                "{} does not hold this cluster's witness (any more)",
                self.path.display()
            )));
        };
        let Self { name, slot, .. } = self;
        work(&Record { medium: &*medium, header: &header, name, slot: *slot, region })
    }
}

#[async_trait]
impl WitnessStore for Block {
    async fn read(&self) -> Result<Option<(Vec<u8>, Tag)>, StoreError> {
        self.run(|record| record.read()).await
    }

    async fn write_if(
        &self,
        expected: Option<&Tag>,
        bytes: Vec<u8>,
    ) -> Result<Written, StoreError> {
        let expected = expected.cloned();
        self.run(move |record| record.write_if(expected.as_ref(), &bytes)).await
    }

    async fn remove(&self) -> Result<(), StoreError> {
        self.run(|record| record.remove()).await
    }

    fn beside(&self, name: &str) -> Arc<dyn WitnessStore> {
        Arc::new(Self { name: name.to_owned(), trial: Some(Arc::default()), ..self.clone() })
    }

    fn reads_are_fresh(&self) -> bool {
        true
    }

    fn place(&self) -> String {
        format!("block device {}", self.path.display())
    }
}
