//! The device below: blocks at places, around the page cache.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Seek;
use std::io::SeekFrom;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

use super::super::store::StoreError;

/// All I/O is in blocks of this size, at multiples of it: no sector of a disk is larger.
pub(super) const BLOCK_BYTES: usize = 4096;

/// A place for blocks.
pub(super) trait Medium {
    /// Its size.
    fn bytes(&self) -> Result<u64, StoreError>;

    /// Whole blocks from there.
    fn read(&self, at: u64, bytes: usize) -> Result<Vec<u8>, StoreError>;

    /// Writes blocks, the last one filled with zeros, and returns when they are on the medium.
    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), StoreError>;
}

/// A device, or a file that plays one.
struct Device {
    file: File,
    path: String,
}

/// Memory that direct I/O can use.
struct Aligned {
    memory: Vec<u8>,
    from: usize,
    bytes: usize,
}

impl Aligned {
    fn new(bytes: usize) -> Self {
        let bytes = bytes.next_multiple_of(BLOCK_BYTES);
        let memory = vec![0; bytes + BLOCK_BYTES];
        let from = memory.as_ptr().align_offset(BLOCK_BYTES);
        Self { memory, from, bytes }
    }

    fn get(&mut self) -> &mut [u8] {
        &mut self.memory[self.from..self.from + self.bytes]
    }
}

fn failed(what: &str, path: &str, error: &io::Error) -> StoreError {
    StoreError::Unavailable(format!("{what} {path}: {error}"))
}

fn open_with(path: &Path, more: OFlags) -> Result<Box<dyn Medium>, StoreError> {
    let flags = OFlags::DIRECT | OFlags::DSYNC | OFlags::CLOEXEC | more;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    let name = path.display().to_string();
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
    match file {
        Ok(file) => Ok(Box::new(Device { file, path: name })),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()) => {
            Err(StoreError::Refused(format!(
                "{name} is in use: mounted, or part of something larger; name a device of its own"
            )))
        }
        Err(error) => Err(failed("open", &name, &error)),
    }
}

/// Opens a device for its record.
pub(super) fn open(path: &Path) -> Result<Box<dyn Medium>, StoreError> {
    open_with(path, OFlags::empty())
}

/// Opens it only if nobody on this host uses it for anything else.
pub(super) fn open_alone(path: &Path) -> Result<Box<dyn Medium>, StoreError> {
    open_with(path, OFlags::EXCL)
}

/// Refuses what is no block device.
pub(super) fn check_device(path: &Path) -> Result<(), StoreError> {
    let name = path.display().to_string();
    let facts = std::fs::metadata(path).map_err(|error| failed("look at", &name, &error))?;
    if facts.file_type().is_block_device() {
        return Ok(());
    }
    Err(StoreError::Refused(format!(
        "{name} is no block device; name one by a path that is the same on each node, such as \
         /dev/disk/by-id/..."
    )))
}

impl Medium for Device {
    fn bytes(&self) -> Result<u64, StoreError> {
        let mut file = &self.file;
        file.seek(SeekFrom::End(0)).map_err(|error| failed("measure", &self.path, &error))
    }

    fn read(&self, at: u64, bytes: usize) -> Result<Vec<u8>, StoreError> {
        let mut buffer = Aligned::new(bytes);
        self.file
            .read_exact_at(buffer.get(), at)
            .map_err(|error| failed("read", &self.path, &error))?;
        Ok(buffer.get()[..bytes].to_vec())
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let mut buffer = Aligned::new(bytes.len());
        buffer.get()[..bytes.len()].copy_from_slice(bytes);
        self.file.write_all_at(buffer.get(), at).map_err(|error| {
            // A part of it may be there.
            StoreError::Unknown(format!("write {}: {error}", self.path))
        })
    }
}
