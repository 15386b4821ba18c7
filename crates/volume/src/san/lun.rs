//! The LUN itself: no threads, no FUSE.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The LUN's blocks, in bytes: what is written whole or not at all, unless it is torn on purpose.
pub const SECTOR_BYTES: u64 = 4096;

const SECTOR: usize = 4096;

/// Writes that a log takes: some gigabytes; beyond that the recording is over and says so.
const LOG_MAX: usize = 1 << 20;

/// Cached blocks of a LUN in a file before the oldest go to the medium by themselves: 64 MiB. A cache may
/// do that at any time, and a client that never flushes must not take all memory.
const CACHE_MAX: usize = 16_384;

type Sector = [u8; SECTOR];

/// Where what was flushed is.
#[derive(Debug)]
enum Medium {
    /// In memory: can be recorded, and replaced.
    Memory(Store),
    /// In a file, which may be sparse: outlives the process.
    File(File),
}

/// What is on a medium. Copies share what is the same.
#[derive(Debug, Clone)]
pub struct Store {
    sectors: BTreeMap<u64, Arc<Sector>>,
    /// What was there before anybody wrote.
    fill: u8,
}

/// What becomes of a cached block when the power goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It had been written.
    Kept,
    /// It had not.
    Lost,
    /// So many of its first bytes had.
    Torn(usize),
}

/// What has happened, in order.
#[derive(Debug, Clone)]
pub enum Entry {
    /// A block was written.
    Write {
        /// Which.
        sector: u64,
        /// With what.
        data: Arc<Sector>,
    },
    /// All before it became durable.
    Flush,
    /// The caller's own.
    Mark(u64),
}

/// Why a command was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LunError {
    /// The path is cut.
    #[error("the path to the LUN is cut; mend it")]
    NoPath,
    /// The path has no key, while the LUN is reserved.
    #[error("the LUN is reserved and this path has no key; register one")]
    Conflict,
    /// The file that is the medium cannot be read or written.
    #[error("the LUN's medium fails; see the file system that holds it")]
    Medium,
    /// There is no such path, or the range is not within the LUN.
    #[error("there is no such path or no such range on the LUN; correct the caller")]
    OutOfRange,
}

#[derive(Debug, Clone)]
struct Path {
    up: bool,
    key: Option<u64>,
    life: u64,
    /// How often it was told that the cache may be gone; shared with those who ask at each command.
    losses: Arc<AtomicU64>,
}

impl Path {
    fn new() -> Self {
        Self { up: true, key: None, life: 0, losses: Arc::default() }
    }
}

/// A block that is not on the medium yet.
#[derive(Debug, Clone)]
struct Cached {
    data: Arc<Sector>,
    /// The path by which it came last.
    path: usize,
}

/// A LUN with its cache, reservation, paths and log.
#[derive(Debug)]
pub struct Lun {
    medium: Medium,
    size: u64,
    cache: BTreeMap<u64, Cached>,
    paths: Vec<Path>,
    reserved: bool,
    log: Option<Vec<Entry>>,
    delay: Duration,
    flushes: u64,
}

impl Store {
    /// A medium that is full of one byte.
    pub const fn filled(fill: u8) -> Self {
        Self { sectors: BTreeMap::new(), fill }
    }

    fn sector(&self, sector: u64) -> Arc<Sector> {
        self.sectors.get(&sector).cloned().unwrap_or_else(|| Arc::new([self.fill; SECTOR]))
    }

    /// This medium after some of a log's writes, in the log's order.
    pub fn after<'a>(&self, writes: impl Iterator<Item = &'a Entry>) -> Self {
        let mut store = self.clone();
        for entry in writes {
            if let Entry::Write { sector, data } = entry {
                store.sectors.insert(*sector, data.clone());
            }
        }
        store
    }
}

impl Medium {
    fn read(&self, sector: u64) -> Result<Arc<Sector>, LunError> {
        match self {
            Self::Memory(store) => Ok(store.sector(sector)),
            Self::File(file) => {
                let mut bytes = [0; SECTOR];
                let read = file.read_exact_at(&mut bytes, sector * SECTOR_BYTES);
                read.map(|()| Arc::new(bytes)).map_err(failed)
            }
        }
    }

    fn write(&mut self, sector: u64, data: Arc<Sector>) -> Result<(), LunError> {
        match self {
            Self::Memory(store) => drop(store.sectors.insert(sector, data)),
            Self::File(file) => {
                file.write_all_at(&*data, sector * SECTOR_BYTES).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Only what is in memory can be looked at as a whole.
    fn store(&mut self) -> &mut Store {
        match self {
            Self::Memory(store) => store,
            Self::File(_) => panic!("a LUN in a file is not recorded; make one in memory"),
        }
    }
}

fn failed(error: io::Error) -> LunError {
    tracing::error!(%error, "the medium of the LUN fails");
    LunError::Medium
}

impl Lun {
    /// A LUN of so many bytes (whole blocks) in memory, with so many paths, all of them up.
    pub fn new(size: u64, paths: usize, store: Store) -> Self {
        Self::of(size, paths, Medium::Memory(store))
    }

    /// The same with its medium in a file, which has that length at least.
    pub fn in_file(file: File, size: u64, paths: usize) -> Self {
        Self::of(size, paths, Medium::File(file))
    }

    fn of(size: u64, paths: usize, medium: Medium) -> Self {
        Self {
            medium,
            size: size / SECTOR_BYTES * SECTOR_BYTES,
            cache: BTreeMap::new(),
            paths: (0..paths).map(|_| Path::new()).collect(),
            reserved: false,
            log: None,
            delay: Duration::ZERO,
            flushes: 0,
        }
    }

    /// In bytes.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// How many paths it has.
    pub const fn paths(&self) -> usize {
        self.paths.len()
    }

    /// How long each command is to take.
    pub const fn delay(&self) -> Duration {
        self.delay
    }

    /// Makes it slow.
    pub const fn set_delay(&mut self, delay: Duration) {
        self.delay = delay;
    }

    /// How many flushes it has done.
    pub const fn flushes(&self) -> u64 {
        self.flushes
    }

    /// Bytes that a loss of power would take.
    pub fn cached(&self) -> u64 {
        self.cache.len() as u64 * SECTOR_BYTES
    }

    /// Whether a path is up; a path that does not exist is not.
    pub fn is_up(&self, path: usize) -> bool {
        self.paths.get(path).is_some_and(|path| path.up)
    }

    /// Which life of its node a path is in, from 0.
    pub fn life(&self, path: usize) -> Option<u64> {
        self.paths.get(path).map(|path| path.life)
    }

    /// The node of a path has lost power: what it still sends comes from nobody. Its key stays, as
    /// those of a real LUN do.
    ///
    /// # Errors
    ///
    /// If there is no such path.
    pub fn end_life(&mut self, path: usize) -> Result<(), LunError> {
        self.paths.get_mut(path).ok_or(LunError::OutOfRange)?.life += 1;
        Ok(())
    }

    /// The key of each path, and whether the LUN is reserved.
    pub fn reservation(&self) -> (Vec<Option<u64>>, bool) {
        (self.paths.iter().map(|path| path.key).collect(), self.reserved)
    }

    /// Puts the keys back that a former process of this LUN had.
    pub fn restore_reservation(&mut self, keys: &[Option<u64>], reserved: bool) {
        for (path, key) in self.paths.iter_mut().zip(keys) {
            path.key = *key;
        }
        self.reserved = reserved;
    }

    /// Cuts or mends a path.
    ///
    /// # Errors
    ///
    /// If there is no such path.
    pub fn set_path(&mut self, path: usize, up: bool) -> Result<(), LunError> {
        self.paths.get_mut(path).ok_or(LunError::OutOfRange)?.up = up;
        Ok(())
    }

    fn check(&self, path: usize, offset: u64, length: usize) -> Result<(), LunError> {
        let path = self.paths.get(path).ok_or(LunError::OutOfRange)?;
        if !path.up {
            return Err(LunError::NoPath);
        }
        if self.reserved && path.key.is_none() {
            return Err(LunError::Conflict);
        }
        let end = offset.checked_add(length as u64).filter(|end| *end <= self.size);
        end.map(|_| ()).ok_or(LunError::OutOfRange)
    }

    /// Reads what was written last, flushed or not.
    ///
    /// # Errors
    ///
    /// See [`LunError`].
    pub fn read(&self, path: usize, offset: u64, buffer: &mut [u8]) -> Result<(), LunError> {
        self.check(path, offset, buffer.len())?;
        for (sector, within, range) in pieces(offset, buffer.len()) {
            let data = self.current(sector)?;
            let length = range.len();
            buffer[range].copy_from_slice(&data[within..within + length]);
        }
        Ok(())
    }

    /// Takes bytes into the cache.
    ///
    /// # Errors
    ///
    /// See [`LunError`]; nothing is written then.
    pub fn write(&mut self, path: usize, offset: u64, data: &[u8]) -> Result<(), LunError> {
        self.check(path, offset, data.len())?;
        for (sector, within, range) in pieces(offset, data.len()) {
            let mut bytes = *self.current(sector)?;
            bytes[within..within + range.len()].copy_from_slice(&data[range]);
            let bytes = Arc::new(bytes);
            self.cache.insert(sector, Cached { data: bytes.clone(), path });
            self.note(Entry::Write { sector, data: bytes });
        }
        self.spill()
    }

    /// Makes all that is in the cache durable, whoever wrote it.
    ///
    /// # Errors
    ///
    /// See [`LunError`].
    pub fn flush(&mut self, path: usize) -> Result<(), LunError> {
        self.check(path, 0, 0)?;
        match &mut self.medium {
            Medium::Memory(store) => {
                let cached = std::mem::take(&mut self.cache).into_iter();
                store.sectors.extend(cached.map(|(sector, it)| (sector, it.data)));
            }
            Medium::File(_) => self.empty_cache(0)?,
        }
        self.flushes += 1;
        self.note(Entry::Flush);
        Ok(())
    }

    /// Brings cached blocks to the medium until so many are left. What fails stays in the cache.
    fn empty_cache(&mut self, left: usize) -> Result<(), LunError> {
        while self.cache.len() > left
            && let Some(entry) = self.cache.first_entry()
        {
            self.medium.write(*entry.key(), entry.get().data.clone())?;
            entry.remove();
        }
        Ok(())
    }

    fn spill(&mut self) -> Result<(), LunError> {
        let over = matches!(self.medium, Medium::File(_)) && self.cache.len() > CACHE_MAX;
        if over { self.empty_cache(CACHE_MAX / 2) } else { Ok(()) }
    }

    fn current(&self, sector: u64) -> Result<Arc<Sector>, LunError> {
        let cached = self.cache.get(&sector).map(|it| it.data.clone());
        cached.map_or_else(|| self.medium.read(sector), Ok)
    }

    fn note(&mut self, entry: Entry) {
        if let Some(log) = &mut self.log {
            assert!(log.len() < LOG_MAX, "the LUN's log is full; record less at a time");
            log.push(entry);
        }
    }

    /// The power goes: each cached block has the fate that the caller gives it. Keys stay.
    ///
    /// # Errors
    ///
    /// [`LunError::Medium`]: the cache is empty all the same.
    pub fn power_loss(&mut self, mut fate: impl FnMut(u64) -> Fate) -> Result<(), LunError> {
        for path in &self.paths {
            path.losses.fetch_add(1, Ordering::SeqCst);
        }
        for (sector, Cached { data, .. }) in std::mem::take(&mut self.cache) {
            match fate(sector) {
                Fate::Lost => {}
                Fate::Kept => self.medium.write(sector, data)?,
                Fate::Torn(bytes) => {
                    let mut old = *self.medium.read(sector)?;
                    let bytes = bytes.min(SECTOR);
                    old[..bytes].copy_from_slice(&data[..bytes]);
                    self.medium.write(sector, Arc::new(old))?;
                }
            }
        }
        Ok(())
    }

    /// A controller of the array dies with its part of the cache: the path is cut, and what came by it
    /// last and was not flushed is gone. When the path is mended it is told.
    ///
    /// # Errors
    ///
    /// If there is no such path.
    pub fn lose_path_with_cache(&mut self, path: usize) -> Result<(), LunError> {
        self.set_path(path, false)?;
        self.cache.retain(|_, cached| cached.path != path);
        self.paths[path].losses.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// Counts how often a path was told that the LUN's cache may be gone.
    pub(super) fn losses(&self, path: usize) -> Option<Arc<AtomicU64>> {
        self.paths.get(path).map(|path| path.losses.clone())
    }

    /// Begins to record; gives the medium as it is, with all that is cached.
    pub fn record(&mut self) -> Store {
        self.log = Some(Vec::new());
        let mut store = self.medium.store().clone();
        store.sectors.extend(self.cache.iter().map(|(at, it)| (*at, it.data.clone())));
        store
    }

    /// Puts a mark of the caller into the log.
    pub fn mark(&mut self, mark: u64) {
        self.note(Entry::Mark(mark));
    }

    /// Ends a recording; what happened since its begin.
    pub fn recorded(&mut self) -> Vec<Entry> {
        self.log.take().unwrap_or_default()
    }

    /// Replaces the medium, as after a crash; the cache is empty.
    pub fn image(&mut self, store: Store) {
        self.cache.clear();
        *self.medium.store() = store;
    }

    // ---- persistent reservation: exclusive access, all registrants

    /// Registers a key for a path, in place of the one it had. The first one reserves the LUN.
    ///
    /// # Errors
    ///
    /// If the path is cut or does not exist, or the key is 0.
    pub fn register(&mut self, path: usize, key: u64) -> Result<(), LunError> {
        let path = self.paths.get_mut(path).ok_or(LunError::OutOfRange)?;
        if !path.up {
            return Err(LunError::NoPath);
        }
        if key == 0 {
            return Err(LunError::OutOfRange);
        }
        path.key = Some(key);
        self.reserved = true;
        Ok(())
    }

    /// Takes a path's own key back. The LUN stays reserved, for whoever registers next: without that,
    /// the last one to leave would open it to those who were fenced.
    ///
    /// # Errors
    ///
    /// If the path is cut or does not exist.
    pub fn unregister(&mut self, path: usize) -> Result<(), LunError> {
        let path = self.paths.get_mut(path).ok_or(LunError::OutOfRange)?;
        if !path.up {
            return Err(LunError::NoPath);
        }
        path.key = None;
        Ok(())
    }

    /// Ends the reservation and takes all keys away. Only a path with a key may do so.
    ///
    /// # Errors
    ///
    /// See [`LunError`].
    pub fn clear(&mut self, path: usize) -> Result<(), LunError> {
        let own = self.paths.get(path).ok_or(LunError::OutOfRange)?;
        if !own.up {
            return Err(LunError::NoPath);
        }
        if own.key.is_none() {
            return Err(LunError::Conflict);
        }
        self.paths.iter_mut().for_each(|path| path.key = None);
        self.reserved = false;
        Ok(())
    }

    /// All keys.
    ///
    /// # Errors
    ///
    /// If the path is cut or does not exist.
    pub fn keys(&self, path: usize) -> Result<Vec<u64>, LunError> {
        match self.paths.get(path) {
            None => Err(LunError::OutOfRange),
            Some(path) if !path.up => Err(LunError::NoPath),
            Some(_) => Ok(self.paths.iter().filter_map(|path| path.key).collect()),
        }
    }

    /// The key of a path.
    ///
    /// # Errors
    ///
    /// If the path is cut or does not exist.
    pub fn key_of(&self, path: usize) -> Result<Option<u64>, LunError> {
        let path = self.paths.get(path).ok_or(LunError::OutOfRange)?;
        if path.up { Ok(path.key) } else { Err(LunError::NoPath) }
    }

    /// Takes a key from whoever has it. Only a path with a key may do so.
    ///
    /// # Errors
    ///
    /// See [`LunError`]. That nobody has the key is none.
    pub fn preempt_and_abort(&mut self, path: usize, victim: u64) -> Result<(), LunError> {
        let own = self.paths.get(path).ok_or(LunError::OutOfRange)?;
        if !own.up {
            return Err(LunError::NoPath);
        }
        if own.key.is_none() {
            return Err(LunError::Conflict);
        }
        for path in self.paths.iter_mut().filter(|path| path.key == Some(victim)) {
            path.key = None;
        }
        Ok(())
    }
}

/// The blocks of a range of bytes: which, from which of its bytes, and where in the range.
fn pieces(
    offset: u64,
    length: usize,
) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= length {
            return None;
        }
        let place = offset + at as u64;
        let within = usize::try_from(place % SECTOR_BYTES).unwrap_or(0);
        let end = length.min(at + SECTOR - within);
        let piece = (place / SECTOR_BYTES, within, at..end);
        at = end;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lun() -> Lun {
        Lun::new(1 << 20, 3, Store::filled(9))
    }

    fn byte(lun: &Lun, path: usize, offset: u64) -> Result<u8, LunError> {
        let mut buffer = [0];
        lun.read(path, offset, &mut buffer).map(|()| buffer[0])
    }

    #[test]
    fn power_takes_what_was_not_flushed_as_it_is_told() {
        let mut lun = lun();
        lun.write(0, 0, &[1; 4096 * 4]).expect("a write");
        lun.flush(1).expect("a flush, by another path");
        lun.write(0, 0, &[2; 4096 * 4]).expect("a write");
        assert_eq!(byte(&lun, 2, 5), Ok(2), "the cache is seen by all paths");
        lun.power_loss(|sector| match sector {
            0 => Fate::Kept,
            1 => Fate::Torn(512),
            _ => Fate::Lost,
        })
        .expect("memory does not fail");
        let at = |offset| byte(&lun, 0, offset);
        assert_eq!([at(0), at(4095)], [Ok(2), Ok(2)]);
        assert_eq!([at(4096), at(4096 + 511), at(4096 + 512)], [Ok(2), Ok(2), Ok(1)]);
        assert_eq!([at(8192), at(4096 * 4)], [Ok(1), Ok(9)]);
    }

    #[test]
    fn a_fenced_path_neither_reads_nor_writes_until_it_registers_again() {
        let mut lun = lun();
        assert_eq!(lun.preempt_and_abort(0, 7), Err(LunError::Conflict));
        lun.register(0, 10).expect("a key");
        lun.register(1, 11).expect("a key");
        assert_eq!(byte(&lun, 2, 0), Err(LunError::Conflict));
        lun.preempt_and_abort(0, 11).expect("a preempt");
        assert_eq!(lun.write(1, 0, &[1]), Err(LunError::Conflict));
        assert_eq!(lun.flush(1), Err(LunError::Conflict));
        assert_eq!(lun.preempt_and_abort(1, 10), Err(LunError::Conflict));
        lun.power_loss(|_| Fate::Lost).expect("memory does not fail");
        assert_eq!(byte(&lun, 1, 0), Err(LunError::Conflict), "keys outlive power");
        assert_eq!(lun.keys(1), Ok(vec![10]));
        lun.register(1, 12).expect("a new key");
        assert_eq!(byte(&lun, 1, 0), Ok(9));
        let mut free = Lun::new(1 << 20, 2, Store::filled(9));
        free.register(0, 1).expect("a key");
        assert_eq!(free.clear(1), Err(LunError::Conflict));
        free.clear(0).expect("a key's right");
        assert_eq!(byte(&free, 1, 0), Ok(9));
        lun.unregister(1).expect("no key");
        lun.unregister(0).expect("no key");
        assert_eq!(byte(&lun, 2, 0), Err(LunError::Conflict), "nobody's is not everybody's");
    }

    #[test]
    fn paths_are_cut_one_by_one() {
        let mut lun = lun();
        lun.set_path(1, false).expect("a path");
        assert_eq!(lun.write(1, 0, &[1]), Err(LunError::NoPath));
        assert_eq!(lun.register(1, 5), Err(LunError::NoPath));
        lun.write(0, 0, &[1]).expect("the other path");
        lun.set_path(1, true).expect("a path");
        assert_eq!(byte(&lun, 1, 0), Ok(1));
        assert_eq!(lun.set_path(3, true), Err(LunError::OutOfRange));
        assert_eq!(lun.write(0, (1 << 20) - 1, &[1, 2]), Err(LunError::OutOfRange));
        assert_eq!(lun.write(0, u64::MAX, &[1]), Err(LunError::OutOfRange));
    }

    #[test]
    fn a_log_gives_every_state_back() {
        let mut lun = lun();
        lun.write(0, 0, &[1; 4096]).expect("a write");
        let base = lun.record();
        lun.write(0, 100, &[2; 4096]).expect("a write");
        lun.flush(0).expect("a flush");
        lun.mark(3);
        lun.write(1, 0, &[3; 4096]).expect("a write");
        let log = lun.recorded();
        assert_eq!(log.len(), 5, "two blocks, a flush, a mark, a block");
        let all = base.after(log.iter());
        lun.image(base.after(log[..2].iter()));
        assert_eq!([byte(&lun, 0, 99), byte(&lun, 0, 100)], [Ok(1), Ok(2)]);
        lun.image(all);
        assert_eq!([byte(&lun, 0, 100), byte(&lun, 0, 4100)], [Ok(3), Ok(2)]);
        lun.image(base);
        assert_eq!([byte(&lun, 0, 100), byte(&lun, 0, 4100)], [Ok(1), Ok(9)]);
    }

    #[test]
    fn what_was_flushed_to_a_file_is_there_for_the_next_process_and_nothing_else() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(1 << 30).expect("a length");
        let again = || file.try_clone().expect("a handle");
        let mut lun = Lun::in_file(again(), 1 << 30, 2);
        lun.write(0, 4096 * 7 + 5, &[1; 4096]).expect("a write");
        lun.flush(1).expect("a flush");
        lun.write(0, 4096 * 7, &[2; 4096]).expect("a write");
        assert_eq!(lun.cached(), 4096);
        lun.register(1, 5).expect("a key");
        lun.end_life(1).expect("a path");
        assert_eq!(lun.life(1), Some(1));
        let (keys, reserved) = lun.reservation();
        let mut lun = Lun::in_file(again(), 1 << 30, 2);
        let at = |lun: &Lun, offset| byte(lun, 1, offset);
        assert_eq!([at(&lun, 4096 * 7 + 4), at(&lun, 4096 * 7 + 5)], [Ok(0), Ok(1)]);
        lun.restore_reservation(&keys, reserved);
        assert_eq!(byte(&lun, 0, 0), Err(LunError::Conflict));
        let mut fates = [Fate::Kept, Fate::Lost, Fate::Torn(9)].into_iter();
        lun.write(1, 0, &[8; 4096 * 3]).expect("a write");
        lun.power_loss(|_| fates.next().expect("three blocks")).expect("the file is fine");
        assert_eq!([at(&lun, 4095), at(&lun, 4096), at(&lun, 8200)], [Ok(8), Ok(0), Ok(8)]);
        assert_eq!(at(&lun, 8201), Ok(0));
    }

    #[test]
    fn a_cache_that_nobody_flushes_is_no_longer_than_its_limit() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(1 << 30).expect("a length");
        let mut lun = Lun::in_file(file, 1 << 30, 1);
        let more = vec![7; SECTOR * 1024];
        for piece in 0..20 {
            lun.write(0, piece * more.len() as u64, &more).expect("a write");
            assert!(lun.cached() <= CACHE_MAX as u64 * SECTOR_BYTES);
        }
        assert_eq!(byte(&lun, 0, 0), Ok(7));
    }
}
