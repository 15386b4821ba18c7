//! VHDX (MS-VHDX), little-endian: identifier, two headers, two region tables, metadata.
//!
//! ```text
//!   0     "vhdxfile"
//!  64 K   header 1 (4 KiB)   128 K header 2:   0 "head"  4 crc32c  8 sequence  48 log GUID  64 log version
//!                                             66 version  68 log length  72 log offset
//! 192 K   region table 1     256 K table 2:    0 "regi"  4 crc32c  8 entries;
//!                                             entry (32): GUID, offset u64, length u32, required u32
//! metadata region: 0 "metadata"  10 entries u16;  entry (32, from byte 32): GUID, offset u32, length u32, flags
//! ```
//!
//! A non-zero log GUID in the current header means writes wait in the log. We refuse rather than
//! replay: a replay writes where the log says, and the tool that made the image does it better.

use super::HeaderError;
use super::Window;
use super::le16;
use super::le32;
use super::le64;

pub(super) const MAGIC: &[u8] = b"vhdxfile";

const KIB: u64 = 1024;
const MIB: u64 = 1024 * 1024;
const HEADERS_AT: [u64; 2] = [64 * KIB, 128 * KIB];
const HEADER_BYTES: usize = 4096;
const REGION_TABLES_AT: [u64; 2] = [192 * KIB, 256 * KIB];
const TABLE_BYTES: usize = 64 * 1024;
/// Limit of the format for entries in a region table and in the metadata table.
const ENTRIES_MAX: usize = 2047;

/// GUIDs in their byte order on disk.
const REGION_BAT: [u8; 16] = guid(0x2DC2_7766, 0xF623, 0x4200, 0x9D64_115E_9BFD_4A08);
const REGION_METADATA: [u8; 16] = guid(0x8B7C_A206, 0x4790, 0x4B9A, 0xB8FE_575F_050F_886E);
const ITEM_FILE_PARAMETERS: [u8; 16] = guid(0xCAA1_6737, 0xFA36, 0x4D43, 0xB3B6_33F0_AA44_E76B);
const ITEM_DISK_SIZE: [u8; 16] = guid(0x2FA5_4224, 0xCD1B, 0x4876, 0xB211_5DBE_D83B_F4B8);
const ITEM_SECTOR_SIZE: [u8; 16] = guid(0x8141_BF1D, 0xA96F, 0x4709, 0xBA47_F233_A8FA_AB5F);
const ITEM_PARENT: [u8; 16] = guid(0xA8D3_5F2D, 0xB30B, 0x454D, 0xABF7_D3D8_4834_AB0C);

const PARAMETERS_HAS_PARENT: u32 = 1 << 1;

const fn guid(a: u32, b: u16, c: u16, d: u64) -> [u8; 16] {
    let (a, b, c, d) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes(), d.to_be_bytes());
    [a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]]
}

pub(super) fn inspect(window: &Window<'_>) -> Result<u64, HeaderError> {
    if window.len < MAGIC.len() as u64 || &window.array::<8>(0, "the identifier")?[..] != MAGIC {
        return Err(window.contradicts());
    }
    let header = current_header(window)?;
    let version = le16(&header, 66);
    if version != 1 {
        return Err(window.unsupported(format!("VHDX version {version}")));
    }
    if header[48..64].iter().any(|byte| *byte != 0) {
        return Err(HeaderError::NeedsReplay);
    }
    let regions = regions(window)?;
    let items = Items::read(window, regions.metadata)?;
    items.disk_size(window, regions.bat)
}

/// The valid header with the higher sequence number.
fn current_header(window: &Window<'_>) -> Result<Vec<u8>, HeaderError> {
    let mut best: Option<(u64, Vec<u8>)> = None;
    for at in HEADERS_AT {
        let header = window.bytes(at, HEADER_BYTES, "the header")?;
        if !header.starts_with(b"head") || !crc_holds(&header) {
            continue;
        }
        let sequence = le64(&header, 8);
        if best.as_ref().is_none_or(|(have, _)| sequence > *have) {
            best = Some((sequence, header));
        }
    }
    best.map(|(_, header)| header)
        .ok_or_else(|| window.damaged("neither of its two headers is valid"))
}

/// CRC-32C over the structure with its own field, at byte 4, as zero.
fn crc_holds(bytes: &[u8]) -> bool {
    le32(bytes, 4) == checksum(bytes)
}

pub(super) fn checksum(bytes: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&bytes[..4]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, &bytes[8..])
}

#[derive(Clone, Copy)]
struct Region {
    offset: u64,
    len: u64,
}

struct Regions {
    bat: Region,
    metadata: Region,
}

fn regions(window: &Window<'_>) -> Result<Regions, HeaderError> {
    let mut table = None;
    for at in REGION_TABLES_AT {
        let bytes = window.bytes(at, TABLE_BYTES, "the region table")?;
        if bytes.starts_with(b"regi") && crc_holds(&bytes) {
            table = Some(bytes);
            break;
        }
    }
    let table = table.ok_or_else(|| window.damaged("neither of its two region tables is valid"))?;
    let count = le32(&table, 8) as usize;
    if count > ENTRIES_MAX {
        return Err(window.damaged(&format!("its region table has {count} entries")));
    }
    let (mut bat, mut metadata) = (None, None);
    for entry in table[16..].chunks_exact(32).take(count) {
        let region = Region { offset: le64(entry, 16), len: u64::from(le32(entry, 24)) };
        let required = le32(entry, 28) & 1 != 0;
        let slot = match &entry[..16] {
            kind if kind == REGION_BAT => &mut bat,
            kind if kind == REGION_METADATA => &mut metadata,
            _ if required => return Err(window.unsupported("an unknown required VHDX region")),
            _ => continue,
        };
        if region.offset < MIB || !region.offset.is_multiple_of(MIB) || region.len == 0 {
            return Err(window.damaged(&format!("a region of it starts at byte {}", region.offset)));
        }
        window.within(region.offset, region.len, "a region")?;
        if slot.replace(region).is_some() {
            return Err(window.damaged("it has one region twice"));
        }
    }
    match (bat, metadata) {
        (Some(bat), Some(metadata)) => Ok(Regions { bat, metadata }),
        _ => Err(window.damaged("its block table or its metadata region is missing")),
    }
}

#[derive(Default)]
struct Items {
    parameters: Option<[u8; 8]>,
    disk_size: Option<u64>,
    sector_size: Option<u32>,
}

impl Items {
    fn read(window: &Window<'_>, region: Region) -> Result<Self, HeaderError> {
        if region.len < TABLE_BYTES as u64 {
            return Err(window.damaged("its metadata region is too small"));
        }
        let table = window.bytes(region.offset, TABLE_BYTES, "the metadata table")?;
        if !table.starts_with(b"metadata") {
            return Err(window.damaged("its metadata table has no `metadata`"));
        }
        let count = usize::from(le16(&table, 10));
        if count > ENTRIES_MAX {
            return Err(window.damaged(&format!("its metadata table has {count} entries")));
        }
        let mut items = Self::default();
        for entry in table[32..].chunks_exact(32).take(count) {
            items.take(window, region, entry)?;
        }
        Ok(items)
    }

    fn take(
        &mut self,
        window: &Window<'_>,
        region: Region,
        entry: &[u8],
    ) -> Result<(), HeaderError> {
        let (offset, len) = (u64::from(le32(entry, 16)), u64::from(le32(entry, 20)));
        if offset + len > region.len {
            return Err(window.damaged("a metadata item lies outside of its region"));
        }
        let at = region.offset + offset;
        let what = "a metadata item";
        match &entry[..16] {
            kind if kind == ITEM_FILE_PARAMETERS => {
                self.parameters = Some(window.array(at, what)?);
            }
            kind if kind == ITEM_DISK_SIZE => {
                self.disk_size = Some(u64::from_le_bytes(window.array(at, what)?));
            }
            kind if kind == ITEM_SECTOR_SIZE => {
                self.sector_size = Some(u32::from_le_bytes(window.array(at, what)?));
            }
            kind if kind == ITEM_PARENT => return Err(parent(window, at, len)),
            _ => {}
        }
        Ok(())
    }

    fn disk_size(&self, window: &Window<'_>, bat: Region) -> Result<u64, HeaderError> {
        let (Some(parameters), Some(size)) = (&self.parameters, self.disk_size) else {
            return Err(window.damaged("its metadata states no block size or no disk size"));
        };
        let sector = self.sector_size.unwrap_or(512);
        if sector != 512 && sector != 4096 {
            return Err(window.damaged(&format!("its logical sectors have {sector} bytes")));
        }
        if le32(parameters, 4) & PARAMETERS_HAS_PARENT != 0 {
            return Err(window.names("parent disk", b"(not named)"));
        }
        let block = u64::from(le32(parameters, 0));
        if !block.is_power_of_two() || !(MIB..=256 * MIB).contains(&block) {
            return Err(window.damaged(&format!("its block size is {block}")));
        }
        if size > super::VIRTUAL_SIZE_BYTES_MAX {
            return Err(HeaderError::TooLarge { format: window.format, virtual_size: size });
        }
        // After every `ratio` payload entries the table has one for a sector bitmap.
        let ratio = ((1_u64 << 23) * u64::from(sector)) / block;
        let blocks = size.div_ceil(block);
        let entries = blocks + blocks.saturating_sub(1) / ratio.max(1);
        if entries.saturating_mul(8) > bat.len {
            return Err(window.damaged(&format!(
                "its block table of {} bytes cannot map a disk of {size} bytes",
                bat.len
            )));
        }
        self.check_blocks(window, bat, entries, block, ratio)?;
        Ok(size)
    }

    /// Checks that every fully present payload block lies in the file.
    fn check_blocks(
        &self,
        window: &Window<'_>,
        bat: Region,
        entries: u64,
        block: u64,
        ratio: u64,
    ) -> Result<(), HeaderError> {
        const CHUNK_ENTRIES: u64 = 8 * 1024;
        const FULLY_PRESENT: u64 = 6;
        let mut done = 0;
        while done < entries {
            let count = (entries - done).min(CHUNK_ENTRIES);
            let len = count as usize * 8;
            let bytes = window.bytes(bat.offset + done * 8, len, "the block table")?;
            for (index, entry) in (done..).zip(bytes.chunks_exact(8)) {
                let entry = le64(entry, 0);
                let is_bitmap = index % (ratio + 1) == ratio;
                if !is_bitmap && entry & 7 == FULLY_PRESENT {
                    window.within(entry & !(MIB - 1), block, "a block of the disk")?;
                }
            }
            done += count;
        }
        Ok(())
    }
}

/// Takes the parent's path out of the locator for the message: the longest value is the absolute
/// path.
fn parent(window: &Window<'_>, at: u64, len: u64) -> HeaderError {
    /// A locator holds a handful of paths.
    const LOCATOR_BYTES_MAX: u64 = 64 * 1024;
    let name = (|| {
        let bytes = window.bytes(at, len.min(LOCATOR_BYTES_MAX) as usize, "the locator").ok()?;
        let count = usize::from(u16::from_le_bytes(bytes.get(18..20)?.try_into().ok()?));
        let mut best = String::new();
        for entry in bytes.get(20..)?.chunks_exact(12).take(count) {
            let (start, size) = (le32(entry, 4) as usize, usize::from(le16(entry, 10)));
            let Some(value) = start.checked_add(size).and_then(|end| bytes.get(start..end)) else {
                continue;
            };
            let units: Vec<u16> =
                value.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect();
            let text = String::from_utf16_lossy(&units);
            if text.contains(['\\', '/']) && text.len() > best.len() {
                best = text;
            }
        }
        (!best.is_empty()).then_some(best)
    })();
    window.names("parent disk", name.as_deref().unwrap_or("(not named)").as_bytes())
}
