//! The file of one object: a ring for each resolution, of fixed size.
//!
//! ```text
//!   0     8      12        16          32     36    64
//!   | magic | version | figures | object | crc | zeros | level 0 | level 1 | ... | level 4 |
//!
//!   level k: COUNT slots of 88 bytes, window w in slot w % COUNT
//!   slot:    | window: u32 | 10 means: f32 | 10 peaks: f32 | crc: u32 |         (little-endian)
//! ```
//!
//! A window is a stretch of [`Level::step`] seconds, numbered from 1970. A slot that was never written is
//! zeros, which no checksum fits. Nothing is synced: a crash loses the last seconds, and a slot that was
//! torn by it is a gap. A head that does not fit means that the file is not to be trusted: it is thrown
//! away.
//!
//! When a point is the first of a new window, the window before it is made out of the next finer level,
//! and so on upwards. So nothing but the file has to be known after a restart.
//!
//! Versions: 1 (this).

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::FIGURES;
use super::Values;

/// One resolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Level {
    /// Length of a window, in seconds.
    pub(crate) step: u64,
    /// How many windows are kept.
    pub(crate) count: u64,
}

/// From fine to coarse. Each step is a multiple of the one before, and each level keeps more than one
/// window of the next.
pub(crate) const LEVELS: [Level; 5] = [
    Level { step: 1, count: 600 },
    Level { step: 10, count: 720 },
    Level { step: 60, count: 2_880 },
    Level { step: 600, count: 4_320 },
    Level { step: 3_600, count: 8_784 },
];

const MAGIC: &[u8; 8] = b"MUSTRING";
const VERSION: u32 = 1;
const HEAD: usize = 64;
/// Bytes of the head that its checksum covers.
const HEAD_SUMMED: usize = 32;
const SLOT: usize = 4 + FIGURES * 8 + 4;

/// A clock that was set back by more than this is believed; by less, points wait until it is there again.
const BACK_MAX_S: u64 = 60;

/// Mean and highest value of a window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Slot {
    pub(crate) mean: Values,
    pub(crate) peak: Values,
}

impl Slot {
    /// Mean of the means and highest of the peaks, figure by figure, of those that have one.
    pub(crate) fn together(slots: &[Self]) -> Self {
        let mut mean = [f32::NAN; FIGURES];
        let mut peak = [f32::NAN; FIGURES];
        for figure in 0..FIGURES {
            let means =
                || slots.iter().map(|it| f64::from(it.mean[figure])).filter(|it| !it.is_nan());
            #[allow(clippy::cast_precision_loss, reason = "at most some dozens")]
            let count = means().count() as f64;
            if count > 0.0 {
                #[allow(clippy::cast_possible_truncation, reason = "a mean of values of that type")]
                let of_all = (means().sum::<f64>() / count) as f32;
                mean[figure] = of_all;
            }
            // `max` leaves out what is not a number.
            peak[figure] = slots.iter().map(|it| it.peak[figure]).fold(f32::NAN, f32::max);
        }
        Self { mean, peak }
    }
}

/// An open file.
pub(super) struct Ring {
    file: File,
    last: Option<u64>,
}

impl Ring {
    /// Opens an object's file for writing; makes it where there is none, and anew where it is damaged.
    /// `last` is the second of its newest point, if that is known.
    ///
    /// # Errors
    /// The file system refuses.
    pub(super) fn open(path: &Path, object: u128, last: Option<u64>) -> io::Result<Self> {
        let head = head(object);
        // Not truncated: what is in it counts.
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let length = file.metadata()?.len();
        if length == FILE_BYTES && head_of(&file)? == head {
            let ring = Self { file, last };
            return ring.with_last();
        }
        if length != 0 {
            tracing::warn!(path = %path.display(), "a damaged history of figures is thrown away");
        }
        file.set_len(0)?;
        file.set_len(FILE_BYTES)?;
        file.write_all_at(&head, 0)?;
        Ok(Self { file, last: None })
    }

    /// Opens an object's file for reading; none where there is none, or a damaged one.
    ///
    /// # Errors
    /// The file system refuses.
    pub(super) fn look(path: &Path, object: u128, last: Option<u64>) -> io::Result<Option<Self>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if file.metadata()?.len() != FILE_BYTES || head_of(&file)? != head(object) {
            return Ok(None);
        }
        Self { file, last }.with_last().map(Some)
    }

    /// Second of the newest point.
    pub(super) fn last(&self) -> Option<u64> {
        self.last
    }

    fn with_last(mut self) -> io::Result<Self> {
        if self.last.is_none() {
            let mut slots = vec![0; SLOT * in_memory(LEVELS[0].count)];
            self.file.read_exact_at(&mut slots, offset(0, 0))?;
            self.last = slots.chunks_exact(SLOT).filter_map(decode).map(|it| it.0).max();
        }
        Ok(self)
    }

    /// Adds the values of a second. One that is not after the newest is dropped, unless the clock was set
    /// back by far.
    ///
    /// # Errors
    /// The file system refuses.
    pub(super) fn append(&mut self, second: u64, values: &Values) -> io::Result<()> {
        if let Some(last) = self.last {
            if second <= last && last - second < BACK_MAX_S {
                return Ok(());
            }
            for (level, Level { step, .. }) in LEVELS.iter().enumerate().skip(1) {
                if last / step != second / step
                    && let Some(slot) = self.compute(level, last / step)?
                {
                    self.put(level, last / step, &slot)?;
                }
            }
        }
        self.put(0, second, &Slot { mean: *values, peak: *values })?;
        self.last = Some(second);
        Ok(())
    }

    /// Some windows of a level.
    ///
    /// # Errors
    /// The file system refuses.
    pub(super) fn read(
        &self,
        level: usize,
        windows: std::ops::Range<u64>,
    ) -> io::Result<Vec<Option<Slot>>> {
        windows.map(|window| self.slot(level, window)).collect()
    }

    /// A window as it stands, or as it stands so far.
    fn slot(&self, level: usize, window: u64) -> io::Result<Option<Slot>> {
        let mut bytes = [0; SLOT];
        self.file.read_exact_at(&mut bytes, offset(level, window))?;
        if let Some((found, slot)) = decode(&bytes)
            && found == window
        {
            return Ok(Some(slot));
        }
        // The window of the newest point is not closed yet.
        let open = level > 0 && self.last.is_some_and(|last| last / LEVELS[level].step == window);
        if open { self.compute(level, window) } else { Ok(None) }
    }

    /// A window out of the next finer level.
    fn compute(&self, level: usize, window: u64) -> io::Result<Option<Slot>> {
        let parts = LEVELS[level].step / LEVELS[level - 1].step;
        let slots = self.read(level - 1, window * parts..(window + 1) * parts)?;
        let slots: Vec<Slot> = slots.into_iter().flatten().collect();
        Ok((!slots.is_empty()).then(|| Slot::together(&slots)))
    }

    fn put(&self, level: usize, window: u64, slot: &Slot) -> io::Result<()> {
        self.file.write_all_at(&encode(window, slot), offset(level, window))
    }
}

const FILE_BYTES: u64 = offset_of_level(LEVELS.len());

const fn offset_of_level(level: usize) -> u64 {
    let mut slots = 0;
    let mut at = 0;
    while at < level {
        slots += LEVELS[at].count;
        at += 1;
    }
    HEAD as u64 + slots * SLOT as u64
}

fn offset(level: usize, window: u64) -> u64 {
    offset_of_level(level) + window % LEVELS[level].count * SLOT as u64
}

fn in_memory(count: u64) -> usize {
    usize::try_from(count).expect("levels are small")
}

fn head(object: u128) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..8].copy_from_slice(MAGIC);
    head[8..12].copy_from_slice(&VERSION.to_le_bytes());
    head[12..16].copy_from_slice(&u32::try_from(FIGURES).expect("few").to_le_bytes());
    head[16..32].copy_from_slice(&object.to_le_bytes());
    let sum = crc32c::crc32c(&head[..HEAD_SUMMED]);
    head[HEAD_SUMMED..HEAD_SUMMED + 4].copy_from_slice(&sum.to_le_bytes());
    head
}

fn head_of(file: &File) -> io::Result<[u8; HEAD]> {
    let mut head = [0; HEAD];
    file.read_exact_at(&mut head, 0)?;
    Ok(head)
}

fn encode(window: u64, slot: &Slot) -> [u8; SLOT] {
    let mut bytes = [0; SLOT];
    // Seconds fit until 2106.
    bytes[..4].copy_from_slice(&u32::try_from(window).unwrap_or(u32::MAX).to_le_bytes());
    let values = slot.mean.iter().chain(&slot.peak);
    for (place, value) in bytes[4..SLOT - 4].chunks_exact_mut(4).zip(values) {
        place.copy_from_slice(&value.to_le_bytes());
    }
    let sum = crc32c::crc32c(&bytes[..SLOT - 4]);
    bytes[SLOT - 4..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// A slot and its window; none for one that was never written, or is damaged.
fn decode(bytes: &[u8]) -> Option<(u64, Slot)> {
    let (summed, sum) = bytes.split_last_chunk::<4>()?;
    let (window, values) = summed.split_first_chunk::<4>()?;
    if crc32c::crc32c(summed) != u32::from_le_bytes(*sum) {
        return None;
    }
    let mut all =
        values.chunks_exact(4).filter_map(|it| it.try_into().ok()).map(f32::from_le_bytes);
    let mut slot = Slot { mean: [f32::NAN; FIGURES], peak: [f32::NAN; FIGURES] };
    for place in slot.mean.iter_mut().chain(&mut slot.peak) {
        *place = all.next()?;
    }
    Some((u64::from(u32::from_le_bytes(*window)), slot))
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
