//! Room on the host's disk: what is free, what a file takes.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::error::ImageError;

/// Left free beyond what an import needs, so that the daemon's own log can go on: 64 MiB.
const RESERVE_BYTES: u64 = 64 << 20;

/// Bytes that can still be written to the file system of `path`.
pub(super) fn available(path: &Path) -> io::Result<u64> {
    // A file that is gone still has a directory that tells.
    let place = path.ancestors().find(|place| place.exists()).unwrap_or(Path::new("/"));
    let stat = nix::sys::statvfs::statvfs(place).map_err(io::Error::from)?;
    Ok(stat.blocks_available() * stat.fragment_size())
}

/// Refuses when `needed` bytes and the reserve do not fit.
pub(super) fn require(path: &Path, needed: u64) -> Result<(), ImageError> {
    let available = available(path).map_err(|source| ImageError::Io {
        action: "asking for the free space of",
        path: path.to_owned(),
        source,
    })?;
    let needed = needed.saturating_add(RESERVE_BYTES);
    if needed > available {
        return Err(ImageError::DiskFull { path: path.to_owned(), needed, available });
    }
    Ok(())
}

/// Refuses when so much more does not fit where `path` is, or is to be.
///
/// # Errors
/// [`ImageError::DiskFull`], with what is there.
pub fn room_for(path: &Path, needed: model::Bytes) -> Result<(), ImageError> {
    require(path, needed.get())
}

/// Bytes that the file at `path` takes on the host's disk (not its length: holes cost nothing).
///
/// # Errors
/// The file cannot be looked at.
pub fn allocated_bytes(path: &Path) -> io::Result<u64> {
    // st_blocks counts units of 512 bytes whatever the file system's block size.
    Ok(std::fs::symlink_metadata(path)?.blocks() * 512)
}
