//! The LUN itself: no threads, no FUSE.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// The LUN's blocks, in bytes: what is written whole or not at all, unless it is torn on purpose.
pub const SECTOR_BYTES: u64 = 4096;

const SECTOR: usize = 4096;

/// Writes that a log takes: some gigabytes; beyond that the recording is over and says so.
const LOG_MAX: usize = 1 << 20;

type Sector = [u8; SECTOR];

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
    /// There is no such path, or the range is not within the LUN.
    #[error("there is no such path or no such range on the LUN; correct the caller")]
    OutOfRange,
}

#[derive(Debug, Clone)]
struct Path {
    up: bool,
    key: Option<u64>,
}

/// A LUN with its cache, reservation, paths and log.
#[derive(Debug)]
pub struct Lun {
    store: Store,
    size: u64,
    cache: BTreeMap<u64, Arc<Sector>>,
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

impl Lun {
    /// A LUN of so many bytes (whole blocks), with so many paths, all of them up.
    pub fn new(size: u64, paths: usize, store: Store) -> Self {
        Self {
            store,
            size: size / SECTOR_BYTES * SECTOR_BYTES,
            cache: BTreeMap::new(),
            paths: vec![Path { up: true, key: None }; paths],
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
            let data = self.current(sector);
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
            let mut bytes = *self.current(sector);
            bytes[within..within + range.len()].copy_from_slice(&data[range]);
            let bytes = Arc::new(bytes);
            self.cache.insert(sector, bytes.clone());
            self.note(Entry::Write { sector, data: bytes });
        }
        Ok(())
    }

    /// Makes all that is in the cache durable, whoever wrote it.
    ///
    /// # Errors
    ///
    /// See [`LunError`].
    pub fn flush(&mut self, path: usize) -> Result<(), LunError> {
        self.check(path, 0, 0)?;
        self.store.sectors.append(&mut self.cache);
        self.flushes += 1;
        self.note(Entry::Flush);
        Ok(())
    }

    fn current(&self, sector: u64) -> Arc<Sector> {
        self.cache.get(&sector).cloned().unwrap_or_else(|| self.store.sector(sector))
    }

    fn note(&mut self, entry: Entry) {
        if let Some(log) = &mut self.log {
            assert!(log.len() < LOG_MAX, "the LUN's log is full; record less at a time");
            log.push(entry);
        }
    }

    /// The power goes: each cached block has the fate that the caller gives it. Keys stay.
    pub fn power_loss(&mut self, mut fate: impl FnMut(u64) -> Fate) {
        for (sector, data) in std::mem::take(&mut self.cache) {
            match fate(sector) {
                Fate::Lost => {}
                Fate::Kept => drop(self.store.sectors.insert(sector, data)),
                Fate::Torn(bytes) => {
                    let mut old = *self.store.sector(sector);
                    let bytes = bytes.min(SECTOR);
                    old[..bytes].copy_from_slice(&data[..bytes]);
                    self.store.sectors.insert(sector, Arc::new(old));
                }
            }
        }
    }

    /// Begins to record; gives the medium as it is, with all that is cached.
    pub fn record(&mut self) -> Store {
        self.log = Some(Vec::new());
        let mut store = self.store.clone();
        store.sectors.extend(self.cache.iter().map(|(at, data)| (*at, data.clone())));
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
        self.store = store;
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
        });
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
        lun.power_loss(|_| Fate::Lost);
        assert_eq!(byte(&lun, 1, 0), Err(LunError::Conflict), "keys outlive power");
        assert_eq!(lun.keys(1), Ok(vec![10]));
        lun.register(1, 12).expect("a new key");
        assert_eq!(byte(&lun, 1, 0), Ok(9));
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
}
