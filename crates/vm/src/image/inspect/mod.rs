//! Read-only header inspectors for the image formats we import.
//!
//! An image comes from anywhere: it is hostile until read. Before any tool of QEMU's opens it,
//! these few hundred lines of ours decide whether it *is* what the caller says (nothing is ever
//! guessed from the content), whether it stands alone (an image that names a backing file, a data
//! file, an extent or a parent would make the tool open a path of the image's choosing), and
//! whether the numbers in its header can be true for a file of this length.
//!
//! Trust boundary: every byte behind [`ImageBytes`]. Reads are bounded ([`Window`]), arithmetic is
//! checked, nothing here allocates by a length the image states without a limit, and nothing
//! panics. The tests mutate headers.

mod qcow2;
mod vhd;
mod vhdx;
mod vmdk;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use thiserror::Error;

use super::format::SourceFormat;

#[cfg(test)]
mod tests;

/// Largest virtual disk we take: 64 TiB, the limit of VHDX and of our own promise.
pub const VIRTUAL_SIZE_BYTES_MAX: u64 = 64 << 40;

/// Longest file name we repeat from an image in an error.
const NAME_SHOWN_CHARS_MAX: usize = 200;

/// Random access to the bytes of an image.
pub trait ImageBytes {
    /// Length of the file in bytes.
    fn byte_len(&self) -> io::Result<u64>;
    /// Fills `buf` from `offset`, or fails.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ImageBytes for File {
    fn byte_len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buf, offset)
    }
}

impl ImageBytes for &[u8] {
    fn byte_len(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(self.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// What a header says, once it has been believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageHeader {
    /// The format that was asked for and that the header confirms.
    pub format: SourceFormat,
    /// Size of the disk the guest will see, in bytes.
    pub virtual_size: u64,
}

/// Why an image is refused by its header.
#[derive(Debug, Error)]
pub enum HeaderError {
    /// The content is of another format than stated.
    #[error(
        "the image was said to be {given} but {}; state the true format and import again",
        describe_found(*.found)
    )]
    Contradicts {
        /// What the caller said.
        given: SourceFormat,
        /// What the first or last bytes show, if we know it.
        found: Option<SourceFormat>,
    },
    /// The file ends before what its header promises.
    #[error(
        "the {format} image is cut off: {what} ends at byte {need}, the file has {have} bytes; \
         download or copy it again"
    )]
    Truncated {
        /// Format of the image.
        format: SourceFormat,
        /// Which part is missing.
        what: &'static str,
        /// First byte after that part.
        need: u64,
        /// Length of the file.
        have: u64,
    },
    /// A field has a value that no correct writer makes.
    #[error(
        "the {format} image is damaged: {what}; get a good copy, or have its own tool repair it"
    )]
    Damaged {
        /// Format of the image.
        format: SourceFormat,
        /// Which field, and why it cannot be.
        what: String,
    },
    /// The image needs another file.
    #[error(
        "the {format} image names a {kind} `{name}`; only images that stand alone are imported: \
         merge the two with the tool that made them, then import the result"
    )]
    NamesOtherFile {
        /// Format of the image.
        format: SourceFormat,
        /// What the other file is to it.
        kind: &'static str,
        /// Its name as the image gives it, made printable and cut.
        name: String,
    },
    /// The content is encrypted.
    #[error(
        "the {format} image is encrypted; decrypt it with its own tool, then import the result"
    )]
    Encrypted {
        /// Format of the image.
        format: SourceFormat,
    },
    /// A correct image that we do not read.
    #[error(
        "the {format} image uses {what}, which is not supported; convert it to a plain image first"
    )]
    Unsupported {
        /// Format of the image.
        format: SourceFormat,
        /// Which feature.
        what: String,
    },
    /// The journal of the image holds writes that were not applied.
    #[error(
        "the VHDX image was not closed cleanly and its log must be replayed first; attach and \
         detach it once where it came from (Hyper-V: Mount-VHD, Dismount-VHD), then import it"
    )]
    NeedsReplay,
    /// The disk is larger than we take.
    #[error(
        "the {format} image claims a disk of {virtual_size} bytes; at most \
         {VIRTUAL_SIZE_BYTES_MAX} bytes (64 TiB) are supported"
    )]
    TooLarge {
        /// Format of the image.
        format: SourceFormat,
        /// Claimed size in bytes.
        virtual_size: u64,
    },
    /// The file is empty.
    #[error("the image is empty; check the source and import again")]
    Empty,
    /// The file could not be read.
    #[error("the image could not be read")]
    Io(#[source] io::Error),
}

fn describe_found(found: Option<SourceFormat>) -> String {
    match found {
        Some(found) => format!("its content is {found}"),
        None => "its header is not of that format".to_owned(),
    }
}

/// Checks that `image` is a lone, sane image of `format` and returns what its header says.
///
/// Reads at most a few hundred KiB (VMDK descriptor, VHDX tables). A raw image has no header: any
/// content is raw.
///
/// # Errors
/// [`HeaderError`]; everything but `Io` is about the image and will not change by trying again.
pub fn inspect(image: &dyn ImageBytes, format: SourceFormat) -> Result<ImageHeader, HeaderError> {
    let window = Window { image, len: image.byte_len().map_err(HeaderError::Io)?, format };
    if window.len == 0 {
        return Err(HeaderError::Empty);
    }
    let virtual_size = match format {
        SourceFormat::Raw => window.len,
        SourceFormat::Qcow2 => qcow2::inspect(&window)?,
        SourceFormat::Vhd => vhd::inspect(&window)?,
        SourceFormat::Vhdx => vhdx::inspect(&window)?,
        SourceFormat::Vmdk => vmdk::inspect(&window)?,
    };
    if virtual_size > VIRTUAL_SIZE_BYTES_MAX {
        return Err(HeaderError::TooLarge { format, virtual_size });
    }
    if virtual_size == 0 {
        return Err(window.damaged("its disk has no bytes"));
    }
    Ok(ImageHeader { format, virtual_size })
}

/// Size of the disk in a qcow2 file of our own making (it may name its image), in bytes.
///
/// # Errors
/// Not a qcow2 file, or a size that is none.
pub(super) fn qcow2_virtual_size(image: &dyn ImageBytes) -> Result<u64, HeaderError> {
    let format = SourceFormat::Qcow2;
    let window = Window { image, len: image.byte_len().map_err(HeaderError::Io)?, format };
    let head: [u8; 32] = window.array(0, "the header")?;
    let virtual_size = be64(&head, 24);
    match head.starts_with(qcow2::MAGIC) {
        false => Err(window.contradicts()),
        true if virtual_size > VIRTUAL_SIZE_BYTES_MAX => {
            Err(HeaderError::TooLarge { format, virtual_size })
        }
        true => Ok(virtual_size),
    }
}

/// Names the format whose magic number the content carries. Only for error messages: never to
/// choose a format.
fn recognise(window: &Window<'_>) -> Option<SourceFormat> {
    let mut head = [0_u8; 21];
    let have = usize::try_from(window.len).unwrap_or(usize::MAX).min(head.len());
    window.image.read_exact_at(&mut head[..have], 0).ok()?;
    if head.starts_with(qcow2::MAGIC) {
        return Some(SourceFormat::Qcow2);
    }
    if head.starts_with(vhdx::MAGIC) {
        return Some(SourceFormat::Vhdx);
    }
    if head.starts_with(vmdk::MAGIC_SPARSE)
        || head.starts_with(vmdk::MAGIC_COWD)
        || head.starts_with(vmdk::MAGIC_DESCRIPTOR)
    {
        return Some(SourceFormat::Vmdk);
    }
    if head.starts_with(vhd::MAGIC) {
        return Some(SourceFormat::Vhd);
    }
    let mut tail = [0_u8; 8];
    let footer = window.len.checked_sub(vhd::FOOTER_BYTES)?;
    window.image.read_exact_at(&mut tail, footer).ok()?;
    (&tail == vhd::MAGIC).then_some(SourceFormat::Vhd)
}

/// An image with its length and stated format: the only way the inspectors read.
struct Window<'a> {
    image: &'a dyn ImageBytes,
    len: u64,
    format: SourceFormat,
}

impl Window<'_> {
    /// Reads `N` bytes at `offset`; a file too short is `Truncated`.
    fn array<const N: usize>(
        &self,
        offset: u64,
        what: &'static str,
    ) -> Result<[u8; N], HeaderError> {
        let mut out = [0_u8; N];
        self.within(offset, N as u64, what)?;
        self.image.read_exact_at(&mut out, offset).map_err(HeaderError::Io)?;
        Ok(out)
    }

    /// Reads `len` bytes at `offset`. The caller has limited `len`.
    fn bytes(&self, offset: u64, len: usize, what: &'static str) -> Result<Vec<u8>, HeaderError> {
        self.within(offset, len as u64, what)?;
        let mut out = vec![0_u8; len];
        self.image.read_exact_at(&mut out, offset).map_err(HeaderError::Io)?;
        Ok(out)
    }

    /// Checks that `len` bytes at `offset` lie in the file.
    fn within(&self, offset: u64, len: u64, what: &'static str) -> Result<(), HeaderError> {
        let Some(need) = offset.checked_add(len) else {
            return Err(self.damaged(&format!("{what} lies beyond any file")));
        };
        if need > self.len {
            return Err(HeaderError::Truncated { format: self.format, what, need, have: self.len });
        }
        Ok(())
    }

    fn damaged(&self, what: &str) -> HeaderError {
        HeaderError::Damaged { format: self.format, what: what.to_owned() }
    }

    fn unsupported(&self, what: impl Into<String>) -> HeaderError {
        HeaderError::Unsupported { format: self.format, what: what.into() }
    }

    fn names(&self, kind: &'static str, name: &[u8]) -> HeaderError {
        HeaderError::NamesOtherFile { format: self.format, kind, name: printable(name) }
    }

    fn contradicts(&self) -> HeaderError {
        HeaderError::Contradicts {
            given: self.format,
            found: recognise(self).filter(|found| *found != self.format),
        }
    }
}

/// A name out of an image, fit for a terminal and a log line.
fn printable(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    let text = text.trim_matches('\0');
    let mut out: String = text
        .chars()
        .take(NAME_SHOWN_CHARS_MAX)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if text.chars().nth(NAME_SHOWN_CHARS_MAX).is_some() {
        out.push('…');
    }
    out
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(fixed(bytes, at))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(fixed(bytes, at))
}

fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(fixed(bytes, at))
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(fixed(bytes, at))
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(fixed(bytes, at))
}

/// `N` bytes at `at`, zeros where the slice ends: the callers pass constants inside arrays they
/// have read whole.
fn fixed<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    debug_assert!(at + N <= bytes.len(), "field outside of the header that was read");
    let mut out = [0_u8; N];
    if let Some(field) = bytes.get(at..at + N) {
        out.copy_from_slice(field);
    }
    out
}
