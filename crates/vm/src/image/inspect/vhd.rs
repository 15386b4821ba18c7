//! VHD ("Virtual PC") footer and dynamic disk header, big-endian.
//!
//! ```text
//! fixed:    data ... | footer (512)
//! dynamic:  footer copy (512) | dynamic header (1024) | BAT | blocks ... | footer (512)
//!
//! footer:   0 "conectix"  16 data offset  40 original size  48 current size  60 disk type  64 checksum
//!           type 2 fixed, 3 dynamic, 4 differencing
//! dynamic:  0 "cxsparse"  16 table offset  28 table entries  32 block size  36 checksum  64 parent name (UTF-16)
//! ```

use super::HeaderError;
use super::Window;
use super::be32;
use super::be64;

pub(super) const MAGIC: &[u8; 8] = b"conectix";
pub(super) const FOOTER_BYTES: u64 = 512;

const DYNAMIC_MAGIC: &[u8; 8] = b"cxsparse";
/// Limit of the format: 2 TiB less a little; QEMU has the same.
const VHD_BYTES_MAX: u64 = 2 << 40;
/// Block sizes seen are 512 KiB and 2 MiB; QEMU wants a power of two of at least 512 bytes.
const BLOCK_BYTES_MAX: u32 = 256 << 20;
/// A sector: unit of the offsets in the BAT.
const SECTOR: u64 = 512;

const TYPE_FIXED: u32 = 2;
const TYPE_DYNAMIC: u32 = 3;
const TYPE_DIFFERENCING: u32 = 4;

pub(super) fn inspect(window: &Window<'_>) -> Result<u64, HeaderError> {
    if window.len < FOOTER_BYTES {
        return Err(window.contradicts());
    }
    let head: [u8; 512] = window.array(0, "the footer copy")?;
    let footer: [u8; 512] = window.array(window.len - FOOTER_BYTES, "the footer")?;
    let at_start = head.starts_with(MAGIC);
    let at_end = footer.starts_with(MAGIC);
    if !at_end {
        // A dynamic image shows itself at its start; without the footer at its end it was cut.
        return Err(match at_start {
            true => HeaderError::Truncated {
                format: window.format,
                what: "the footer",
                need: window.len.saturating_add(FOOTER_BYTES),
                have: window.len,
            },
            false => window.contradicts(),
        });
    }
    check_sum(window, &footer, 64, "footer")?;
    let size = be64(&footer, 48);
    if size > VHD_BYTES_MAX {
        return Err(window.damaged(&format!("it claims {size} bytes, the format ends at 2 TiB")));
    }
    match be32(&footer, 60) {
        TYPE_FIXED if at_start => {
            Err(window.damaged("it has the header of a dynamic disk and the footer of a fixed one"))
        }
        TYPE_FIXED => {
            if size > window.len - FOOTER_BYTES {
                let need = size.saturating_add(FOOTER_BYTES);
                let have = window.len;
                let format = window.format;
                return Err(HeaderError::Truncated { format, what: "the disk", need, have });
            }
            Ok(size)
        }
        TYPE_DYNAMIC if !at_start => Err(window.damaged("its first sector is not a footer copy")),
        TYPE_DYNAMIC => {
            check_sum(window, &head, 64, "footer copy")?;
            if be32(&head, 60) != TYPE_DYNAMIC || be64(&head, 48) != size {
                return Err(window.damaged("its footer and the copy at its start disagree"));
            }
            dynamic(window, be64(&head, 16), size)?;
            Ok(size)
        }
        TYPE_DIFFERENCING => Err(parent(window, be64(&footer, 16))),
        other => Err(window.unsupported(format!("VHD disk type {other}"))),
    }
}

fn dynamic(window: &Window<'_>, offset: u64, size: u64) -> Result<(), HeaderError> {
    let h: [u8; 1024] = window.array(offset, "the dynamic disk header")?;
    if !h.starts_with(DYNAMIC_MAGIC) {
        return Err(window.damaged("its dynamic disk header has no `cxsparse`"));
    }
    check_sum(window, &h, 36, "dynamic disk header")?;
    let (entries, block) = (be32(&h, 28), be32(&h, 32));
    if !block.is_power_of_two() || !(512..=BLOCK_BYTES_MAX).contains(&block) {
        return Err(window.damaged(&format!("its block size is {block}")));
    }
    if u64::from(entries) * u64::from(block) < size {
        return Err(window.damaged(&format!(
            "its {entries} blocks of {block} bytes cannot hold a disk of {size} bytes"
        )));
    }
    // A name of a parent in a disk that is not differencing is a lie in one of the two places.
    if h[40..56].iter().any(|byte| *byte != 0) {
        return Err(parent(window, offset));
    }
    let table = be64(&h, 16);
    window.within(table, u64::from(entries) * 4, "the block table")?;
    check_blocks(window, table, entries, block)
}

/// Checks that each block the table names lies in the file. The table has at most 4 bytes per 512
/// bytes of 2 TiB; the header check above has already held it against the length of the file.
fn check_blocks(
    window: &Window<'_>,
    table: u64,
    entries: u32,
    block: u32,
) -> Result<(), HeaderError> {
    const CHUNK_ENTRIES: u32 = 16 * 1024;
    // Each block begins with a bitmap of one bit per sector, padded to a sector.
    let bitmap = (u64::from(block) / SECTOR / 8).next_multiple_of(SECTOR);
    let mut done = 0;
    while done < entries {
        let count = (entries - done).min(CHUNK_ENTRIES);
        let bytes =
            window.bytes(table + u64::from(done) * 4, count as usize * 4, "the block table")?;
        for entry in bytes.chunks_exact(4) {
            let sector = be32(entry, 0);
            if sector != u32::MAX {
                let need = bitmap + u64::from(block);
                window.within(u64::from(sector) * SECTOR, need, "a block of the disk")?;
            }
        }
        done += count;
    }
    Ok(())
}

fn parent(window: &Window<'_>, header: u64) -> HeaderError {
    let name = match window.array::<1024>(header, "the dynamic disk header") {
        Ok(h) => {
            let units: Vec<u16> = h[64..576]
                .chunks_exact(2)
                .map(|unit| u16::from_be_bytes([unit[0], unit[1]]))
                .take_while(|unit| *unit != 0)
                .collect();
            String::from_utf16_lossy(&units)
        }
        Err(_) => String::new(),
    };
    let name = if name.is_empty() { "(not named)" } else { &name };
    window.names("parent disk", name.as_bytes())
}

/// The checksum is the one's complement of the sum of all bytes, its own field taken as zero.
fn check_sum(
    window: &Window<'_>,
    bytes: &[u8],
    field: usize,
    what: &'static str,
) -> Result<(), HeaderError> {
    if be32(bytes, field) == sum(bytes, field) {
        Ok(())
    } else {
        Err(window.damaged(&format!("the checksum of its {what} is wrong")))
    }
}

pub(super) fn sum(bytes: &[u8], field: usize) -> u32 {
    let total = bytes
        .iter()
        .enumerate()
        .filter(|(at, _)| !(field..field + 4).contains(at))
        .fold(0_u32, |total, (_, byte)| total.wrapping_add(u32::from(*byte)));
    !total
}
