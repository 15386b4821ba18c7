//! Why an import or a disk operation failed, and what to do next.

use std::io;
use std::path::Path;
use std::path::PathBuf;

use thiserror::Error;

use super::cancel::CancelMode;
use super::fetch::FetchError;
use super::format::SourceFormat;
use super::inspect::HeaderError;

/// Failure of an image or disk operation.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The image itself is refused; trying again will not help.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The source could not be fetched.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The bytes are not the ones that were announced.
    #[error(
        "the source has the SHA-256 {actual}, not {expected} as stated; check the address and the \
         published checksum, then import again"
    )]
    Checksum {
        /// What the caller expected, in hexadecimal.
        expected: String,
        /// What was fetched, in hexadecimal.
        actual: String,
    },
    /// The stated checksum is not one.
    #[error("`{given}` is not a SHA-256; state 64 hexadecimal digits")]
    BadChecksum {
        /// What the caller gave, cut.
        given: String,
    },
    /// No room where images are kept.
    #[error(
        "the disk that holds `{}` is full: {needed} bytes are needed, {available} are free; free \
         some space or move the data directory, then import again (nothing was kept)",
        .path.display()
    )]
    DiskFull {
        /// Directory that is full.
        path: PathBuf,
        /// Bytes still needed there, as far as known.
        needed: u64,
        /// Bytes free there.
        available: u64,
    },
    /// The caller stopped it.
    #[error("the import was cancelled")]
    Cancelled(CancelMode),
    /// The same image is being imported now.
    #[error("this image is being imported already; wait for that operation or cancel it")]
    Busy,
    /// qemu-img said no.
    #[error("qemu-img could not {action}: {stderr}")]
    Tool {
        /// What it was to do.
        action: &'static str,
        /// Its last words.
        stderr: String,
    },
    /// qemu-img could not be run at all.
    #[error("`{program}` could not be started; install it (Debian package qemu-utils)")]
    ToolMissing {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The conversion stopped making progress.
    #[error(
        "qemu-img made no progress for {seconds} s and was ended; check the host's disk and import \
         again"
    )]
    Stalled {
        /// How long it stood still, in seconds.
        seconds: u64,
    },
    /// The result of the conversion is not what was asked for.
    #[error("the converted {format} image is not sound: {what}; report this with the image")]
    BadResult {
        /// Format of the source.
        format: SourceFormat,
        /// What is wrong with it.
        what: String,
    },
    /// A disk would become smaller.
    #[error(
        "the disk has {current} bytes and cannot become smaller ({wanted} bytes); choose a larger \
         size"
    )]
    Shrink {
        /// Present size in bytes.
        current: u64,
        /// Size asked for, in bytes.
        wanted: u64,
    },
    /// A size that no disk can have.
    #[error("a disk of {size} bytes cannot be made; choose 1 MiB to 64 TiB in steps of 512 bytes")]
    BadSize {
        /// Size asked for, in bytes.
        size: u64,
    },
    /// The host refused a file operation.
    #[error("{action} `{}` failed; check the host's disk and permissions", .path.display())]
    Io {
        /// What was to be done.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

impl ImageError {
    /// Whether the fetched part is kept so that the same call goes on where this one stopped.
    #[must_use]
    pub fn is_resumable(&self) -> bool {
        match self {
            Self::Cancelled(mode) => *mode == CancelMode::Keep,
            Self::Fetch(error) => error.may_pass(),
            Self::Busy | Self::Stalled { .. } | Self::ToolMissing { .. } => true,
            _ => false,
        }
    }

    /// Wraps a host error; "no space" becomes [`ImageError::DiskFull`].
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        if full.contains(&source.kind()) {
            return Self::DiskFull {
                path: path.to_owned(),
                needed: 0,
                available: super::space::available(path).unwrap_or(0),
            };
        }
        Self::Io { action, path: path.to_owned(), source }
    }
}
