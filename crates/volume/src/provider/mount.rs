//! Mounting the file system of a LUN, where the coordinator is.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;

use rustix::mount::MountFlags;
use rustix::mount::UnmountFlags;
use uuid::Uuid;

use super::CoordinatorError;

/// File systems that are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ext4,
    Xfs,
}

/// What is mounted; unmounted by [`Mounted::unmount`] only.
#[derive(Debug, Clone)]
pub(super) struct Mounted {
    at: PathBuf,
}

/// What stands on a device; with `uuid` only that very file system.
fn kind_of(device: &Path, uuid: Option<Uuid>) -> Result<Kind, CoordinatorError> {
    let device = File::open(device).map_err(CoordinatorError::Device)?;
    // What the kernel has of it may be older than what another coordinator wrote.
    flush_buffers(&device).map_err(CoordinatorError::Device)?;
    let mut start = [0; 2048];
    device.read_exact_at(&mut start, 0).map_err(CoordinatorError::Device)?;
    let (kind, found) = if start[..4] == *b"XFSB" {
        (Kind::Xfs, &start[32..48])
    } else if start[1024 + 56..1024 + 58] == [0x53, 0xEF] {
        (Kind::Ext4, &start[1024 + 0x68..1024 + 0x78])
    } else {
        return Err(CoordinatorError::Foreign);
    };
    match uuid {
        Some(uuid) if uuid.as_bytes() != found => Err(CoordinatorError::Foreign),
        _ => Ok(kind),
    }
}

/// Writes and drops what the kernel has cached of the device itself.
#[allow(unsafe_code, reason = "BLKFLSBUF has no safe wrapper")]
pub(super) fn flush_buffers(device: &File) -> io::Result<()> {
    use std::os::fd::AsRawFd;

    /// `_IO(0x12, 97)`.
    const BLKFLSBUF: libc::c_ulong = 0x1261;
    // SAFETY: it takes no argument.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), BLKFLSBUF, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl Mounted {
    /// Mounts, and so replays the journal. `more` are further options of the file system.
    pub(super) fn mount(
        device: &Path,
        at: &Path,
        more: &str,
        uuid: Option<Uuid>,
    ) -> Result<Self, CoordinatorError> {
        let (kind, options) = match kind_of(device, uuid)? {
            Kind::Ext4 => (c"ext4", ""),
            // Inode numbers of 32 bits, see `handle`.
            Kind::Xfs => (c"xfs", "inode32"),
        };
        let both = if options.is_empty() || more.is_empty() { "" } else { "," };
        let options = std::ffi::CString::new(format!("{options}{both}{more}"))
            .map_err(|error| CoordinatorError::Mount(error.into()))?;
        let flags = MountFlags::NOATIME | MountFlags::NODEV | MountFlags::NOSUID;
        rustix::mount::mount(device, at, kind, flags, &*options)
            .map_err(|error| CoordinatorError::Mount(error.into()))?;
        Ok(Self { at: at.to_owned() })
    }

    /// Unmounts what a process before this one has left there.
    pub(super) fn left_at(at: &Path) -> io::Result<()> {
        loop {
            match rustix::mount::unmount(at, UnmountFlags::empty()) {
                Ok(()) => {
                    tracing::warn!(mount = %at.display(), "a mount was left, and is gone now")
                }
                // Nothing is mounted there.
                Err(rustix::io::Errno::INVAL) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub(super) fn unmount(&self) -> io::Result<()> {
        Ok(rustix::mount::unmount(&self.at, UnmountFlags::empty())?)
    }
}
