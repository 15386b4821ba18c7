//! Making blocks leasable: allocated, written, unshared, and all that on the LUN.

use std::fs::File;
use std::io;
use std::io::IoSlice;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use nix::fcntl::FallocateFlags;
use nix::fcntl::fallocate;
use nix::unistd::syncfs;

use super::FLAG_SHARED;
use super::FLAG_UNWRITTEN;
use super::FLAGS_HARMLESS;
use super::RawExtent;
use super::fiemap;
use super::leasable;
use crate::block::Buffer;
use crate::lease::BLOCK_BYTES;
use crate::lease::Extent;
use crate::lease::Span;

/// Bytes that are written at a time.
const CHUNK_BYTES: u64 = 1 << 20;

/// Chunks of zeroes in one call: 16 MiB, enough for a LUN far away.
const CHUNKS_AT_A_TIME: usize = 16;

/// Why blocks were not made leasable. The file has at most grown, by zeroes.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The volume is full.
    #[error("the volume is full; free some space or grow it")]
    Full,
    /// The range has no blocks, or ends beyond what a file can have.
    #[error("the range of blocks is empty or too long; correct the caller")]
    Range,
    /// The file system refused.
    #[error("the file system refused; look at the kernel's log")]
    System(#[source] io::Error),
}

impl From<io::Error> for PrepareError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Self::Full,
            _ => Self::System(error),
        }
    }
}

/// Makes the blocks of a range leasable, and says where they lie. The file was opened with O_DIRECT for
/// reading and writing. **Nobody changes the file's map meanwhile, and nobody writes what is a hole,
/// unwritten or shared there**; blocks under live leases are none of these and are left alone. Blocks
/// that cannot be leased even so (a file system with small, unaligned blocks) are missing in the answer.
///
/// # Errors
///
/// See [`PrepareError`]. After [`PrepareError::System`] it is not known what is on the LUN: whoever
/// serves leases stops doing so.
pub fn prepare(file: &File, span: Span) -> Result<Vec<Extent>, PrepareError> {
    let start = span.start.checked_mul(BLOCK_BYTES).ok_or(PrepareError::Range)?;
    let length = span.count.checked_mul(BLOCK_BYTES).ok_or(PrepareError::Range)?;
    let end = start.checked_add(length).filter(|end| i64::try_from(*end).is_ok());
    let (Some(end), true) = (end, length > 0) else { return Err(PrepareError::Range) };
    // All of it at once, so that it lies together; only now can the volume be full.
    let place = (i64::try_from(start), i64::try_from(length));
    let (Ok(from), Ok(long)) = place else { return Err(PrepareError::Range) };
    fallocate(file, FallocateFlags::empty(), from, long)
        .map_err(|error| PrepareError::from(io::Error::from(error)))?;
    let raw = fiemap::of(file, span)?;
    let mut at = start;
    for extent in &raw {
        let first = extent.logical.max(at);
        let last = extent.logical.saturating_add(extent.length).min(end);
        // What the file system does not name is a hole again: zeroes are right there, too.
        zero(file, at, first.min(end))?;
        if first < last {
            settle(file, extent, first, last)?;
        }
        at = at.max(last);
    }
    zero(file, at, end)?;
    // Not only this file: what ceased to be shared by another file's change must be so on the LUN
    // before anything is written in place.
    syncfs(file).map_err(|error| PrepareError::System(error.into()))?;
    Ok(leasable(file, span)?)
}

fn settle(file: &File, extent: &RawExtent, first: u64, last: u64) -> io::Result<()> {
    let odd = extent.flags & !FLAGS_HARMLESS;
    if odd & FLAG_UNWRITTEN != 0 {
        return zero(file, first, last);
    }
    if odd & FLAG_SHARED != 0 {
        return rewrite(file, first, last);
    }
    Ok(())
}

/// Many chunks in one call, so that the LUN has them beside each other.
fn zero(file: &File, first: u64, last: u64) -> io::Result<()> {
    static ZEROES: OnceLock<Buffer> = OnceLock::new();
    let chunk = usize::try_from(CHUNK_BYTES).unwrap_or(0);
    let zeroes = ZEROES.get_or_init(|| Buffer::zeroed(chunk));
    let mut at = first;
    while at < last {
        let left = usize::try_from(last - at).unwrap_or(usize::MAX);
        let whole = (left / chunk).min(CHUNKS_AT_A_TIME);
        let mut slices = vec![IoSlice::new(zeroes); whole];
        if whole < CHUNKS_AT_A_TIME {
            slices.push(IoSlice::new(&zeroes[..left % chunk]));
        }
        match rustix::io::pwritev(file, &slices, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => at += count as u64,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Writes what is there once more: the file system puts it into blocks of this file's own.
fn rewrite(file: &File, first: u64, last: u64) -> io::Result<()> {
    in_chunks(first, last, |at, length| {
        let mut buffer = Buffer::zeroed(usize::try_from(length).unwrap_or(0));
        file.read_exact_at(&mut buffer, at)?;
        file.write_all_at(&buffer, at)
    })
}

fn in_chunks(
    first: u64,
    last: u64,
    mut each: impl FnMut(u64, u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut at = first;
    while at < last {
        let length = (last - at).min(CHUNK_BYTES);
        each(at, length)?;
        at += length;
    }
    Ok(())
}
