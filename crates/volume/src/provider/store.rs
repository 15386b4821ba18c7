//! The mounted file system as the coordinator has it: its open files, and what is known of each
//! beyond what it says itself.
//!
//! **Lengths.** A file that a node writes is written ahead, in whole blocks, so the file system's own
//! length is a multiple of 4096 and may be greater than what was written. The true length stands
//!
//! ```text
//!   closed                       i_size, exactly                     no record
//!   open for writing             here in memory, and as of the       record: writer, open id, length
//!                                last fsync in the record
//!   its writer has died          the record                          record, until it is opened next
//! ```
//!
//! The *record* is the attribute `trusted.muster.writer` of the file. Bytes between the true length
//! and i_size are zeroes, or the writer's own that it had no answer for; the next writer cuts them.
//!
//! **Page cache.** Other nodes write the same blocks, so nothing here reads or writes a file through
//! the page cache. The kernel itself does, when a length is not a multiple of 4096: before such a
//! length is set, the cached page is dropped ([`Store::forget_pages`]), and the file is synced after.
//!
//! **Settled.** Blocks that this reign has prepared and not moved since: what goes there through the
//! coordinator needs no preparing. See rule 2 of decision 0019.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use model::NodeId;
use rustix::fs::Advice;
use rustix::fs::XattrFlags;
use serde::Deserialize;
use serde::Serialize;

use super::handle;
use crate::block::Buffer;
use crate::lease::BLOCK_BYTES;
use crate::lease::Extent;
use crate::lease::FileId;
use crate::lease::OpenId;
use crate::lease::Span;

const RECORD: &str = "trusted.muster.writer";

/// A record is some hundred bytes of JSON.
const RECORD_BYTES_MAX: usize = 1024;

/// Runs of settled blocks of one file; beyond that the file is prepared again, which is only slower.
const SETTLED_MAX: usize = 1024;

/// Who writes a file, and how long it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) writer: Option<(NodeId, OpenId)>,
    pub(super) length: u64,
}

/// What is known of a file that is in use.
pub(super) struct Known {
    /// Open for direct reading and writing. As long as this is here the kernel frees no block of it,
    /// also when its last name is gone.
    pub(super) file: Arc<File>,
    /// The true length, if somebody writes it.
    pub(super) length: Option<u64>,
    settled: Vec<Span>,
}

/// The mounted file system.
pub(super) struct Store {
    /// `None` when it is closed: what is open cannot be unmounted.
    mounted: Mutex<Option<Arc<OwnedFd>>>,
    root_id: FileId,
    device: File,
    known: Mutex<HashMap<FileId, Known>>,
}

pub(super) fn to_error(error: rustix::io::Errno) -> io::Error {
    error.into()
}

impl Store {
    /// Of what is mounted there.
    pub(super) fn open(mounted: &Path, device: &Path) -> io::Result<Self> {
        let root: OwnedFd = File::open(mounted)?.into();
        let root_id = handle::id_of(&root)?;
        let device = File::open(device)?;
        let mounted = Mutex::new(Some(Arc::new(root)));
        Ok(Self { mounted, root_id, device, known: Mutex::default() })
    }

    pub(super) const fn root_id(&self) -> FileId {
        self.root_id
    }

    /// A descriptor in the file system.
    pub(super) fn root(&self) -> io::Result<Arc<OwnedFd>> {
        let mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        mounted.clone().ok_or_else(|| io::Error::from_raw_os_error(libc::ESHUTDOWN))
    }

    /// Lets go of everything, so that it can be unmounted. Nothing is in work any more.
    pub(super) fn close(&self) {
        let root = self.mounted.lock().unwrap_or_else(PoisonError::into_inner).take();
        let known = std::mem::take(&mut *self.known());
        drop((root, known));
    }

    fn known(&self) -> MutexGuard<'_, HashMap<FileId, Known>> {
        // Held for a look or a change of plain data, never for I/O.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file, kept open until it is swept. Regular files only.
    pub(super) fn file(&self, id: FileId) -> io::Result<Arc<File>> {
        if let Some(known) = self.known().get(&id) {
            return Ok(known.file.clone());
        }
        // What it is has to be known before it is opened: opening a pipe would wait.
        let plain = handle::open(&*self.root()?, id, libc::O_PATH)?;
        if !plain.metadata()?.is_file() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let file = Arc::new(handle::open(&*self.root()?, id, libc::O_RDWR | libc::O_DIRECT)?);
        let mut known = self.known();
        let entry = known.entry(id);
        let entry = entry.or_insert(Known { file, length: None, settled: Vec::new() });
        Ok(entry.file.clone())
    }

    /// Lets go of files that nobody uses.
    pub(super) fn sweep(&self, used: impl Fn(FileId) -> bool) {
        let mut gone = Vec::new();
        self.known().retain(|id, known| {
            // A length may be known before its writer has claimed the file, and after it has died.
            let named = |file: &File| file.metadata().is_ok_and(|found| found.nlink() > 0);
            let keep = used(*id)
                || Arc::strong_count(&known.file) > 1
                || (known.length.is_some() && named(&known.file));
            if !keep {
                gone.push(known.file.clone());
            }
            keep
        });
        // The kernel may free blocks now, which takes its time: without the lock.
        drop(gone);
    }

    pub(super) fn flush_lun(&self) -> io::Result<()> {
        self.device.sync_all()
    }

    // ---- length and record

    pub(super) fn record(file: &impl AsFd) -> io::Result<Option<Record>> {
        let mut bytes = vec![0; RECORD_BYTES_MAX];
        match rustix::fs::fgetxattr(file, RECORD, &mut bytes[..]) {
            Ok(count) => Ok(serde_json::from_slice(&bytes[..count]).ok()),
            Err(rustix::io::Errno::NODATA | rustix::io::Errno::NOTSUP) => Ok(None),
            // What is there is longer than any that we write, so none of ours.
            Err(rustix::io::Errno::RANGE) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn set_record(file: &File, record: &Record) -> io::Result<()> {
        let bytes = serde_json::to_vec(record)?;
        rustix::fs::fsetxattr(file, RECORD, &bytes, XattrFlags::empty()).map_err(to_error)
    }

    pub(super) fn remove_record(file: &File) -> io::Result<()> {
        match rustix::fs::fremovexattr(file, RECORD) {
            Ok(()) | Err(rustix::io::Errno::NODATA) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The true length of a file whose own is `size`. `None` as record: it is not known yet.
    pub(super) fn length(&self, id: FileId, size: u64, file: &impl AsFd) -> io::Result<u64> {
        if let Some(length) = self.known().get(&id).and_then(|known| known.length) {
            return Ok(length);
        }
        Ok(Self::record(file)?.map_or(size, |record| record.length.min(size)))
    }

    pub(super) fn set_length(&self, id: FileId, length: Option<u64>) {
        if let Some(known) = self.known().get_mut(&id) {
            known.length = length;
        }
    }

    pub(super) fn written_length(&self, id: FileId) -> Option<u64> {
        self.known().get(&id).and_then(|known| known.length)
    }

    /// Drops what the kernel has cached of a file. There is nothing in it that is not on the LUN.
    pub(super) fn forget_pages(file: &File) -> io::Result<()> {
        rustix::fs::fadvise(file, 0, None, Advice::DontNeed).map_err(to_error)
    }

    /// Makes the file system's length a multiple of the block, by zeroes; the true one is unchanged.
    pub(super) fn round_up(file: &File) -> io::Result<()> {
        let size = file.metadata()?.len();
        if size.is_multiple_of(BLOCK_BYTES) {
            return Ok(());
        }
        let start = size / BLOCK_BYTES * BLOCK_BYTES;
        let mut last = Buffer::zeroed(4096);
        read_to_end(file, &mut last, start)?;
        let tail = usize::try_from(size - start).unwrap_or(0);
        last[tail..].fill(0);
        // Direct, so it also throws the cached page out.
        file.write_all_at(&last, start)
    }

    // ---- settled blocks

    pub(super) fn settle(&self, id: FileId, extents: &[Extent]) {
        if let Some(known) = self.known().get_mut(&id) {
            for extent in extents {
                add(&mut known.settled, extent.span);
            }
            if known.settled.len() > SETTLED_MAX {
                known.settled.clear();
            }
        }
    }

    pub(super) fn unsettle(&self, id: FileId, span: Span) {
        if let Some(known) = self.known().get_mut(&id) {
            remove(&mut known.settled, span);
        }
    }

    /// How many settled blocks end where this one begins.
    pub(super) fn settled_before(&self, id: FileId, block: u64) -> u64 {
        let known = self.known();
        let Some(known) = known.get(&id) else { return 0 };
        let run = known.settled.iter().find(|run| run.contains(block) || run.end() == block);
        run.map_or(0, |run| block - run.start)
    }

    pub(super) fn is_settled(&self, id: FileId, span: Span) -> bool {
        self.settled_around(id, span).is_some()
    }

    /// The run of settled blocks that has all of these in it.
    pub(super) fn settled_around(&self, id: FileId, span: Span) -> Option<Span> {
        let known = self.known();
        let mut runs = known.get(&id)?.settled.iter();
        runs.find(|run| run.start <= span.start && span.end() <= run.end()).copied()
    }
}

/// Reads until the buffer is full or the file ends; the rest of the buffer is as it was.
pub(super) fn read_to_end(file: &File, buffer: &mut [u8], start: u64) -> io::Result<()> {
    let mut at = 0;
    while at < buffer.len() {
        match file.read_at(&mut buffer[at..], start + at as u64) {
            Ok(0) => break,
            // Directly only the file's last block can be read in part.
            Ok(count) if count % 4096 != 0 => break,
            Ok(count) => at += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Adds a run, joined with those that touch it.
fn add(runs: &mut Vec<Span>, span: Span) {
    let (mut start, mut end) = (span.start, span.end());
    runs.retain(|run| {
        let touches = run.start <= end && start <= run.end();
        if touches {
            start = start.min(run.start);
            end = end.max(run.end());
        }
        !touches
    });
    runs.push(Span::new(start, end - start));
}

fn remove(runs: &mut Vec<Span>, span: Span) {
    let mut kept = Vec::new();
    for run in runs.drain(..) {
        let before = Span::new(run.start, span.start.saturating_sub(run.start).min(run.count));
        let after_start = span.end().clamp(run.start, run.end());
        let after = Span::new(after_start, run.end() - after_start);
        if run.overlaps(span) {
            kept.extend([before, after].into_iter().filter(|part| !part.is_empty()));
        } else {
            kept.push(run);
        }
    }
    *runs = kept;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_join_and_are_cut() {
        let mut runs = Vec::new();
        add(&mut runs, Span::new(10, 10));
        add(&mut runs, Span::new(30, 10));
        add(&mut runs, Span::new(20, 10));
        assert_eq!(runs, [Span::new(10, 30)]);
        remove(&mut runs, Span::new(15, 5));
        assert_eq!(runs, [Span::new(10, 5), Span::new(20, 20)]);
        remove(&mut runs, Span::new(50, 5));
        remove(&mut runs, Span::from(12));
        assert_eq!(runs, [Span::new(10, 2)]);
    }
}
