//! The ioctl that lists a file's extents.

#![allow(unsafe_code, reason = "FS_IOC_FIEMAP has no safe wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::lease::BLOCK_BYTES;
use crate::lease::Span;

/// `_IOWR('f', 11, struct fiemap)`.
const FS_IOC_FIEMAP: libc::c_ulong = 0xC020_660B;

/// Write dirty pages first, so that nothing is delayed.
const FLAG_SYNC: u32 = 0x1;

/// Extents of one call: 56 bytes each.
const EXTENTS_AT_A_TIME: usize = 128;

/// Extents of one range: beyond that the file is too much in pieces to be leased as a whole, and the
/// answer ends early, which leases less.
const EXTENTS_MAX: usize = 65_536;

/// An extent as the file system says it. In bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawExtent {
    /// Where in the file.
    pub logical: u64,
    /// Where on the device.
    pub physical: u64,
    /// How long.
    pub length: u64,
    /// What is special about it.
    pub flags: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct KernelExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved_too: [u32; 3],
}

#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [KernelExtent; EXTENTS_AT_A_TIME],
}

/// All extents that touch a range of blocks.
pub(super) fn of(file: &File, span: Span) -> io::Result<Vec<RawExtent>> {
    let mut found: Vec<RawExtent> = Vec::new();
    let mut start = span.start.saturating_mul(BLOCK_BYTES);
    let end = span.end().saturating_mul(BLOCK_BYTES);
    while start < end && found.len() < EXTENTS_MAX {
        let mut call = Fiemap {
            start,
            length: end - start,
            flags: FLAG_SYNC,
            mapped: 0,
            count: u32::try_from(EXTENTS_AT_A_TIME).unwrap_or(0),
            reserved: 0,
            extents: [KernelExtent::default(); EXTENTS_AT_A_TIME],
        };
        // SAFETY: the kernel writes `mapped` and at most `count` extents behind the header, and `call`
        // has room for that many.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut call) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        let mapped = usize::try_from(call.mapped).unwrap_or(0).min(EXTENTS_AT_A_TIME);
        let Some(last) = call.extents[..mapped].last() else { break };
        let next = last.logical.saturating_add(last.length);
        found.extend(call.extents[..mapped].iter().map(|extent| RawExtent {
            logical: extent.logical,
            physical: extent.physical,
            length: extent.length,
            flags: extent.flags,
        }));
        if mapped < EXTENTS_AT_A_TIME || next <= start {
            break;
        }
        start = next;
    }
    Ok(found)
}
