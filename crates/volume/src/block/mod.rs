//! Direct I/O on a block device, or on a file that stands for one.
//!
//! ```text
//!   submit --> bounded queue --> one thread for each LUN --> kernel (O_DIRECT)
//!      |  full: Busy, with the request back                     |
//!      '------------------- done(result) <----------------------'
//! ```
//!
//! [`RingIo`] gives the kernel many requests at a time through io_uring; [`PlainIo`] does one after the
//! other with pread and pwrite, for hosts where io_uring is forbidden. One conformance suite holds for
//! both (`tests/block`).
//!
//! What holds for every implementation:
//!
//! - offset and length are multiples of [`BlockIo::alignment`] and lie within [`BlockIo::size`], or
//!   nothing is done;
//! - `done` is called exactly once for each request that was taken, from the LUN's thread, also when
//!   the device fails or the handle is dropped, which waits for all that was taken;
//! - a read or write is whole or an error: what the kernel does in part is gone on with;
//! - a flush that ends well makes durable all writes that had *ended* before it was submitted. One that
//!   failed is final: every later flush fails, too, since the kernel forgets what it could not write;
//! - requests that are on the way at the same time have no order. Who needs one, waits.
//!
//! Who has a thread that may wait asks the device on it, without the queue ([`BlockIo::read_now`] and its
//! like): the same rules hold, and what is asked so counts like any other request, also for flushes.

mod buffer;
mod payload;
mod plain;
mod ring;

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Seek;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

pub use buffer::Buffer;
pub use payload::Payload;
pub use plain::PlainIo;
pub use ring::RingIo;

/// Requests that wait for the LUN's thread: a slow LUN makes callers wait, it does not eat memory.
pub const QUEUE_MAX: usize = 256;

/// Requests that the kernel has at a time; more do not make a LUN faster.
pub const DEPTH_MAX: usize = 128;

/// The longest request, in bytes: one buffer of it is pinned while it is on the way.
pub const REQUEST_BYTES_MAX: u64 = 16 << 20;

/// What is wanted of a device. Offsets and lengths in bytes.
#[derive(Debug)]
pub enum Deed {
    /// Read so many bytes from there.
    Read {
        /// Where.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// Write these bytes there.
    Write {
        /// Where.
        offset: u64,
        /// What.
        data: Buffer,
    },
    /// Write bytes there that others hold, too; whole blocks of 4096, see [`Payload::blocks`].
    WriteShared {
        /// Where.
        offset: u64,
        /// What.
        data: Payload,
    },
    /// Make durable what has been written.
    Flush,
    /// Give the space back; it reads as zeroes afterwards.
    Discard {
        /// Where.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
}

/// Why a request was not done. A read or write that failed may have been done in part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// Offset or length are not multiples of the device's alignment, or the length is 0 or too long.
    #[error(
        "offset {offset} or length {length} is not a multiple of {alignment}, zero or too long"
    )]
    Unaligned {
        /// As asked for.
        offset: u64,
        /// As asked for.
        length: u64,
        /// The device's.
        alignment: u64,
    },
    /// It ends behind the device's end.
    #[error("bytes {offset} to {end} are beyond the device's end at {size}")]
    OutOfRange {
        /// As asked for.
        offset: u64,
        /// Where it would end.
        end: u64,
        /// The device's size.
        size: u64,
    },
    /// The kernel has refused, with this error number.
    #[error("the device failed with error {errno}; look at the path to the LUN")]
    Device {
        /// As in `errno(3)`.
        errno: i32,
    },
    /// The device ended before its end: it has shrunk, or is gone.
    #[error("the device gave fewer bytes than it has; it has shrunk or is gone")]
    Short,
    /// A flush has failed before: nobody knows what is on the device.
    #[error(
        "an earlier flush failed, so what was written before may be lost; open the device anew"
    )]
    FlushLost,
}

/// What came of a request: bytes that were read, or an empty buffer.
pub type Outcome = Result<Buffer, BlockError>;

/// A request, and who is told what came of it.
pub struct Request {
    /// What.
    pub deed: Deed,
    /// Called once, on the LUN's thread: it must not wait.
    pub done: Box<dyn FnOnce(Outcome) + Send>,
}

/// The queue is full, or the device is being closed: nothing was done, and here it is again.
pub struct Busy(pub Request);

/// A device for direct I/O.
pub trait BlockIo: Send + Sync {
    /// Its size in bytes, as it was when it was opened.
    fn size(&self) -> u64;

    /// Offsets, lengths and buffers are multiples of this many bytes; a power of two.
    fn alignment(&self) -> u64;

    /// Gives it a request. Never waits.
    ///
    /// # Errors
    ///
    /// The request, if the queue is full. What is wrong with a request is told by its `done`.
    fn submit(&self, request: Request) -> Result<(), Busy>;

    /// Reads on the caller's thread, and waits for the device. The buffer, as a [`Buffer`]'s memory, lies
    /// at a multiple of [`BlockIo::alignment`]; after an error nobody knows what is in it.
    ///
    /// # Errors
    ///
    /// See [`BlockError`].
    fn read_now(&self, offset: u64, buffer: &mut [u8]) -> Result<(), BlockError>;

    /// Writes on the caller's thread; the bytes lie as those of [`BlockIo::read_now`].
    ///
    /// # Errors
    ///
    /// See [`BlockError`]; it may have been done in part.
    fn write_now(&self, offset: u64, data: &[u8]) -> Result<(), BlockError>;

    /// Flushes on the caller's thread.
    ///
    /// # Errors
    ///
    /// See [`BlockError`]; final, as each flush that fails.
    fn flush_now(&self) -> Result<(), BlockError>;
}

/// An open device, and what it says of itself.
#[derive(Debug)]
struct Opened {
    file: File,
    size: u64,
    alignment: u64,
    /// A flush has failed.
    flush_lost: AtomicBool,
}

/// Opens a block device or a file for reading and writing without the page cache.
fn open(path: &Path) -> io::Result<Opened> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_DIRECT | libc::O_CLOEXEC);
    let mut file = options.open(path)?;
    let kind = file.metadata()?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(io::Error::from_raw_os_error(libc::ENOTBLK));
    }
    // Of a block device its metadata says 0.
    let size = file.seek(io::SeekFrom::End(0))?;
    let alignment = crate::block::buffer::ALIGNMENT;
    let flush_lost = AtomicBool::new(false);
    Ok(Opened { file, size: size / alignment * alignment, alignment, flush_lost })
}

impl Opened {
    fn check(&self, deed: &Deed) -> Result<(), BlockError> {
        match deed {
            Deed::Flush if self.flush_lost.load(Ordering::SeqCst) => Err(BlockError::FlushLost),
            Deed::Flush => Ok(()),
            Deed::Read { offset, length } => self.check_range(*offset, *length, REQUEST_BYTES_MAX),
            Deed::Discard { offset, length } => self.check_range(*offset, *length, u64::MAX),
            Deed::Write { offset, data } => self.check_bytes(*offset, data),
            Deed::WriteShared { offset, data } => self.check_bytes(*offset, data),
        }
    }

    fn check_bytes(&self, offset: u64, bytes: &[u8]) -> Result<(), BlockError> {
        let (alignment, length) = (self.alignment, bytes.len() as u64);
        if !(bytes.as_ptr() as u64).is_multiple_of(alignment) {
            return Err(BlockError::Unaligned { offset, length, alignment });
        }
        self.check_range(offset, length, REQUEST_BYTES_MAX)
    }

    fn check_range(&self, offset: u64, length: u64, most: u64) -> Result<(), BlockError> {
        let alignment = self.alignment;
        let long = length > most;
        let even = offset.is_multiple_of(alignment) && length.is_multiple_of(alignment);
        if !even || length == 0 || long {
            return Err(BlockError::Unaligned { offset, length, alignment });
        }
        let end = offset.saturating_add(length);
        if end > self.size {
            return Err(BlockError::OutOfRange { offset, end, size: self.size });
        }
        Ok(())
    }

    fn read_now(&self, offset: u64, buffer: &mut [u8]) -> Result<(), BlockError> {
        self.check_bytes(offset, buffer)?;
        self.file.read_exact_at(buffer, offset).map_err(short)
    }

    fn write_now(&self, offset: u64, data: &[u8]) -> Result<(), BlockError> {
        self.check_bytes(offset, data)?;
        self.file.write_all_at(data, offset).map_err(short)
    }

    fn flush_now(&self) -> Result<(), BlockError> {
        self.check(&Deed::Flush)?;
        self.file.sync_data().map_err(|error| {
            self.flush_lost.store(true, Ordering::SeqCst);
            error.into()
        })
    }
}

fn short(error: io::Error) -> BlockError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::WriteZero => BlockError::Short,
        _ => error.into(),
    }
}

impl From<io::Error> for BlockError {
    fn from(error: io::Error) -> Self {
        Self::Device { errno: error.raw_os_error().unwrap_or(libc::EIO) }
    }
}

impl From<nix::Error> for BlockError {
    fn from(error: nix::Error) -> Self {
        Self::Device { errno: error as i32 }
    }
}
