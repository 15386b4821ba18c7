//! Files by what they are, not by a name: inode number and generation, as `open_by_handle_at(2)` has
//! them. So a file stays the same one over renames, over restarts and from coordinator to coordinator.

#![allow(unsafe_code, reason = "name_to_handle_at and open_by_handle_at have no safe wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;

use crate::lease::FileId;

/// `FILEID_INO32_GEN`: an inode number and a generation of 32 bits each. ext4 has no other; XFS has
/// no other when it is mounted with `inode32`, which the coordinator does.
const KIND: libc::c_int = 1;

const BYTES: libc::c_uint = 8;

#[repr(C)]
struct Handle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    inode: u32,
    generation: u32,
    /// Room for longer ones, which are refused.
    rest: [u32; 30],
}

/// What file this is.
pub(super) fn id_of(file: &impl AsFd) -> io::Result<FileId> {
    let mut handle = Handle { bytes: 128, kind: 0, inode: 0, generation: 0, rest: [0; 30] };
    let mut mount: libc::c_int = 0;
    // SAFETY: the kernel writes at most `bytes` bytes behind the header, and there are 128.
    let result = unsafe {
        libc::name_to_handle_at(
            file.as_fd().as_raw_fd(),
            c"".as_ptr(),
            (&raw mut handle).cast(),
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if handle.kind != KIND || handle.bytes != BYTES {
        return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    }
    Ok(FileId((u64::from(handle.generation) << 32) | u64::from(handle.inode)))
}

/// Opens a file of the file system that `root` is on. `ESTALE` if there is no such file any more.
pub(super) fn open(root: &impl AsFd, file: FileId, flags: i32) -> io::Result<File> {
    let low = u32::try_from(file.0 & 0xFFFF_FFFF).unwrap_or(0);
    let high = u32::try_from(file.0 >> 32).unwrap_or(0);
    let mut handle =
        Handle { bytes: BYTES, kind: KIND, inode: low, generation: high, rest: [0; 30] };
    // SAFETY: the kernel reads the header and `bytes` bytes behind it.
    let fd = unsafe {
        libc::open_by_handle_at(
            root.as_fd().as_raw_fd(),
            (&raw mut handle).cast(),
            flags | libc::O_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, and nobody else knows it.
    Ok(unsafe { File::from_raw_fd(fd) })
}
