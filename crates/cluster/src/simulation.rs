//! What a simulator of a whole cluster in one thread puts in the place of the host: clocks, disk, and
//! threads that block. Nothing in a daemon sets any of it; then everything here is as if it were not
//! there.
//!
//! A simulated host is one runtime with a paused clock, and all hosts take turns on one thread. So
//! the clocks are kept for each thread: the simulator sets those of a host before its turn.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use model::UnixMillis;
use redb::StorageBackend;

use crate::lease::BootTime;
use crate::raft::lock;

/// The clocks of a simulated host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clocks {
    /// What [`crate::guard::boot_time`] answers.
    pub boot: BootTime,
    /// The time of day.
    pub wall: UnixMillis,
}

thread_local! {
    static CLOCKS: Cell<Option<Clocks>> = const { Cell::new(None) };
}

/// Sets the clocks of the host whose turn it is on this thread; nothing: the real ones.
pub fn set_clocks(clocks: Option<Clocks>) {
    CLOCKS.set(clocks);
}

/// The simulated clocks, where there are any.
pub fn clocks() -> Option<Clocks> {
    CLOCKS.get()
}

/// Does what may block on a thread of its own; in a simulation at once, since the time of another
/// thread is nobody's seed.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, tokio::task::JoinError> {
    if clocks().is_some() {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await
}

/// A disk in memory. It can be cut off from the process that uses it, and lose what was not synced.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    inner: Arc<Mutex<Platter>>,
}

#[derive(Debug, Default)]
struct Platter {
    /// What a reader sees.
    seen: Vec<u8>,
    /// What is there after a loss of power.
    safe: Vec<u8>,
    /// What changed since the last sync.
    dirty: Vec<Change>,
    /// Which process may use it: those that were cut off have a smaller number.
    user: u64,
    /// It says that it has synced, and has not.
    lies: bool,
    /// How long a write takes.
    delay: Duration,
    syncs: u64,
    /// How many more writes it takes; nothing: as many as one likes.
    room: Option<u64>,
    /// It has not taken a write.
    refused: bool,
}

#[derive(Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
}

/// What is lost when a host goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// The process only: the system has all that was written.
    Process,
    /// The power: what was not synced is gone, but for this many of the first writes of it.
    Power {
        /// Writes that came through.
        kept: usize,
    },
}

impl Disk {
    /// How long each transaction takes from now on.
    pub fn set_delay(&self, delay: Duration) {
        lock(&self.inner).delay = delay;
    }

    /// How long a transaction takes.
    pub(crate) fn delay(&self) -> Duration {
        lock(&self.inner).delay
    }

    /// A planted fault: it says that it has synced, and has not.
    pub fn lie(&self) {
        lock(&self.inner).lies = true;
    }

    /// It takes so many more writes and then none, as one that is full; nothing: it has room.
    pub fn fill(&self, room: Option<u64>) {
        lock(&self.inner).room = room;
    }

    /// Whether it has not taken a write of the process that uses it now: that process ends.
    pub fn refused(&self) -> bool {
        lock(&self.inner).refused
    }

    /// How often it has synced.
    pub fn syncs(&self) -> u64 {
        lock(&self.inner).syncs
    }

    /// Writes that are not synced.
    pub fn unsynced(&self) -> usize {
        lock(&self.inner).dirty.len()
    }

    /// Cuts off whoever uses it, and loses what is lost.
    pub fn crash(&self, loss: Loss) {
        let mut platter = lock(&self.inner);
        platter.user += 1;
        platter.refused = false;
        let dirty = std::mem::take(&mut platter.dirty);
        let kept = match loss {
            Loss::Process => dirty.len(),
            Loss::Power { kept } => kept,
        };
        let platter = &mut *platter;
        for change in dirty.iter().take(kept) {
            change.make(&mut platter.safe);
        }
        platter.seen.clone_from(&platter.safe);
    }

    /// Whether nothing was ever kept on it.
    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.inner).seen.is_empty()
    }

    /// The disk for a process that begins.
    pub(crate) fn attach(&self) -> impl StorageBackend {
        let mut platter = lock(&self.inner);
        platter.user += 1;
        Attached { disk: self.clone(), user: platter.user }
    }
}

impl Change {
    fn make(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(at, data) => {
                let at = place(*at);
                bytes[at..at + data.len()].copy_from_slice(data);
            }
            Self::Length(length) => bytes.resize(place(*length), 0),
        }
    }
}

/// A place on a disk that is in memory.
fn place(at: u64) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

/// A process's way to its disk.
#[derive(Debug)]
struct Attached {
    disk: Disk,
    user: u64,
}

impl Attached {
    fn with<T>(&self, act: impl FnOnce(&mut Platter) -> io::Result<T>) -> io::Result<T> {
        let mut platter = lock(&self.disk.inner);
        if platter.user == self.user {
            return act(&mut platter);
        }
        Err(io::Error::other("this process has ended"))
    }

    fn change(&self, change: Change) -> io::Result<()> {
        self.with(|platter| {
            if let Some(room) = &mut platter.room {
                let Some(left) = room.checked_sub(1) else {
                    platter.refused = true;
                    return Err(io::ErrorKind::StorageFull.into());
                };
                *room = left;
            }
            change.make(&mut platter.seen);
            platter.dirty.push(change);
            Ok(())
        })
    }
}

impl StorageBackend for Attached {
    fn len(&self) -> Result<u64, io::Error> {
        self.with(|platter| Ok(platter.seen.len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.with(|platter| {
            let from = place(offset);
            let bytes = platter.seen.get(from..from.saturating_add(out.len()));
            let bytes = bytes.ok_or_else(|| io::Error::other("there is nothing"))?;
            out.copy_from_slice(bytes);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.change(Change::Length(len))
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.with(|platter| {
            if !platter.lies {
                for change in std::mem::take(&mut platter.dirty) {
                    change.make(&mut platter.safe);
                }
            }
            platter.syncs += 1;
            Ok(())
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.change(Change::Write(offset, data.to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_of_power_takes_what_was_not_synced() {
        let disk = Disk::default();
        let way = disk.attach();
        way.set_len(4).unwrap();
        way.write(0, b"safe").unwrap();
        way.sync_data().unwrap();
        way.write(0, b"gone").unwrap();
        way.write(2, b"!!").unwrap();
        disk.crash(Loss::Power { kept: 1 });
        assert!(way.len().is_err(), "an ended process reaches nothing");
        let read = |way: &dyn StorageBackend| {
            let mut bytes = [0; 4];
            way.read(0, &mut bytes).unwrap();
            bytes
        };
        let way = disk.attach();
        assert_eq!(&read(&way), b"gone", "a loss may leave some of it");
        way.write(0, b"kept").unwrap();
        disk.crash(Loss::Process);
        let way = disk.attach();
        assert_eq!(&read(&way), b"kept");
        disk.lie();
        way.write(0, b"lost").unwrap();
        way.sync_data().unwrap();
        disk.crash(Loss::Power { kept: 0 });
        assert_eq!(&read(&disk.attach()), b"kept");
    }

    #[test]
    fn a_full_disk_takes_no_write_and_says_so() {
        let disk = Disk::default();
        let way = disk.attach();
        disk.fill(Some(2));
        way.set_len(2).unwrap();
        way.write(0, b"ab").unwrap();
        assert!(!disk.refused());
        let error = way.write(0, b"xy").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(disk.refused());
        disk.crash(Loss::Process);
        disk.fill(None);
        assert!(!disk.refused());
        let way = disk.attach();
        let mut bytes = [0; 2];
        way.read(0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"ab");
        way.write(0, b"xy").unwrap();
    }
}
