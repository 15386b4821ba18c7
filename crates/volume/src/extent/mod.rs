//! Where the bytes of a file lie on the LUN, and which of them may be leased.
//!
//! The file system says so (FIEMAP); we believe it only where it says nothing special. A block may be
//! leased if its extent is written, allocated, unshared, and lies on whole blocks of 4096 bytes in the
//! file *and* on the LUN. Anything else, also a flag that we do not know, goes through the coordinator:
//!
//! | said of an extent | read or written directly it would |
//! | --- | --- |
//! | unwritten | show what the blocks held before: another tenant's bytes |
//! | delayed, unknown | not be there yet |
//! | inline, tail, unaligned | hit other files' bytes or metadata |
//! | encoded, encrypted | not be the file's bytes |
//! | shared | change another file, too |
//!
//! [`prepare()`] makes the blocks of a range leasable: what is a hole or unwritten it writes with zeroes,
//! what is shared it writes anew, and all of that is on the LUN, with its journal, before it returns.

mod fiemap;
mod prepare;

use std::fs::File;
use std::io;

pub use fiemap::RawExtent;
pub use prepare::PrepareError;
pub use prepare::prepare;

use crate::lease::BLOCK_BYTES;
use crate::lease::Extent;
use crate::lease::Span;

/// The last extent of the file.
const FLAG_LAST: u32 = 0x1;
/// Extents that were one for us and many for a file system without extents.
const FLAG_MERGED: u32 = 0x1000;
/// Allocated, never written.
const FLAG_UNWRITTEN: u32 = 0x800;
/// Of several files.
const FLAG_SHARED: u32 = 0x2000;

/// Flags that say nothing against a lease. Not on this list is not leased.
const FLAGS_HARMLESS: u32 = FLAG_LAST | FLAG_MERGED;

/// Which blocks of a file may be leased as they are now, after the file's dirty pages are written.
///
/// # Errors
///
/// The system's; a file system that knows no FIEMAP says that it is not supported.
pub fn leasable(file: &File, span: Span) -> io::Result<Vec<Extent>> {
    let raw = fiemap::of(file, span)?;
    Ok(select(&raw, span, file.metadata()?.len()))
}

/// Those of a file's extents that may be leased, cut to `span` and to whole blocks before `length`.
fn select(raw: &[RawExtent], span: Span, length: u64) -> Vec<Extent> {
    let mut runs: Vec<RawExtent> = Vec::new();
    for extent in raw.iter().filter(|it| it.flags & !FLAGS_HARMLESS == 0 && it.length > 0) {
        // Small blocks of a file system may make up whole ones of ours together.
        match runs.last_mut() {
            Some(last)
                if last.logical.checked_add(last.length) == Some(extent.logical)
                    && last.physical.checked_add(last.length) == Some(extent.physical) =>
            {
                last.length += extent.length;
            }
            _ => runs.push(*extent),
        }
    }
    let blocks = length / BLOCK_BYTES;
    let wanted = span.intersection(Span::new(0, blocks));
    runs.iter().filter_map(|run| whole_blocks(run, wanted)).collect()
}

/// The whole blocks of a run of bytes, in the file and on the LUN.
fn whole_blocks(run: &RawExtent, wanted: Span) -> Option<Extent> {
    if run.logical % BLOCK_BYTES != run.physical % BLOCK_BYTES {
        return None;
    }
    let end = run.logical.checked_add(run.length)? / BLOCK_BYTES;
    let start = run.logical.div_ceil(BLOCK_BYTES);
    let span = Span { start, count: end.saturating_sub(start) }.intersection(wanted);
    if span.is_empty() {
        return None;
    }
    let device = run.physical.checked_add(span.start * BLOCK_BYTES - run.logical)? / BLOCK_BYTES;
    Some(Extent { span, device })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(logical: u64, physical: u64, length: u64, flags: u32) -> RawExtent {
        RawExtent { logical, physical, length, flags }
    }

    fn all(raw: &[RawExtent]) -> Vec<Extent> {
        select(raw, Span::from(0), 1 << 40)
    }

    #[test]
    fn only_plain_extents_are_leased() {
        for bit in 0..32 {
            let flag = 1 << bit;
            let found = all(&[raw(0, 8192, 4096, flag)]);
            let harmless = flag == FLAG_LAST || flag == FLAG_MERGED;
            assert_eq!(found.len(), usize::from(harmless), "flag {flag:#x}");
        }
    }

    #[test]
    fn small_blocks_make_whole_ones_only_where_they_lie_together() {
        let together: Vec<_> = (0..8).map(|n| raw(n * 1024, 40960 + n * 1024, 1024, 0)).collect();
        assert_eq!(all(&together), [Extent { span: Span::new(0, 2), device: 10 }]);
        let shifted: Vec<_> = (0..8).map(|n| raw(n * 1024, 41984 + n * 1024, 1024, 0)).collect();
        assert_eq!(all(&shifted), []);
        let apart = [raw(0, 40960, 2048, 0), raw(2048, 81920, 2048, 0)];
        assert_eq!(all(&apart), []);
    }

    #[test]
    fn what_begins_and_ends_within_blocks_is_cut() {
        let found = all(&[raw(1024, 9216, 10240, 0)]);
        assert_eq!(found, [Extent { span: Span::new(1, 1), device: 3 }]);
    }

    #[test]
    fn nothing_behind_the_end_and_nothing_beyond_numbers() {
        let extent = raw(0, 8192, 16384, 0);
        let found = select(&[extent], Span::new(1, 9), 10_000);
        assert_eq!(found, [Extent { span: Span::new(1, 1), device: 3 }]);
        assert_eq!(select(&[raw(u64::MAX - 4095, 0, 8192, 0)], Span::from(0), u64::MAX), []);
    }
}
