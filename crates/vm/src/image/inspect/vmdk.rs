//! VMDK: hosted sparse extents with an embedded descriptor (monolithicSparse, streamOptimized).
//!
//! ```text
//! 0 "KDMV"  4 version  8 flags  12 capacity  20 grain size  28 descriptor offset  36 descriptor size
//! 44 GTEs per GT  48 redundant GD offset  56 GD offset (all ones: in the footer)  64 overhead   (sectors, LE)
//! 73 newline bytes "\n \r\n"  77 compression (0 none, 1 deflate)
//! ```
//!
//! The descriptor is text. Everything in it that makes a tool open another file (a parent, extents
//! besides this one, a flat extent) is refused; so is a descriptor on its own, since it is nothing
//! but names of files.

use super::HeaderError;
use super::Window;
use super::le16;
use super::le32;
use super::le64;
use super::printable;

pub(super) const MAGIC_SPARSE: &[u8] = b"KDMV";
pub(super) const MAGIC_COWD: &[u8] = b"COWD";
pub(super) const MAGIC_DESCRIPTOR: &[u8] = b"# Disk DescriptorFile";

const SECTOR: u64 = 512;
/// Real descriptors have about 1 KiB in 20 sectors; 128 sectors is generous.
const DESCRIPTOR_BYTES_MAX: u64 = 128 * SECTOR;
/// QEMU reads the descriptor for a parent from here, whatever the header says: so do we.
const DESCRIPTOR_DEFAULT_AT: u64 = SECTOR;
const DESCRIPTOR_DEFAULT_BYTES: u64 = 20 * SECTOR;
const GD_AT_END: u64 = u64::MAX;
/// Footer marker, footer, end-of-stream marker.
const FOOTER_TAIL_BYTES: u64 = 3 * SECTOR;
/// QEMU's limits: grain of at most 2 GiB / 512, 512 entries per grain table.
const GRAIN_SECTORS_MAX: u64 = 0x20_0000;
const GTES_PER_GT_MAX: u32 = 512;
/// Limit of the grain directory, as in QEMU: 32 M entries in all.
const GD_ENTRIES_MAX: u64 = 32 << 20;
const NO_PARENT_CID: &str = "ffffffff";

pub(super) fn inspect(window: &Window<'_>) -> Result<u64, HeaderError> {
    if window.len < SECTOR {
        if starts_with(window, MAGIC_DESCRIPTOR)? {
            return descriptor_only(window);
        }
        return Err(window.contradicts());
    }
    let h: [u8; 512] = window.array(0, "the header")?;
    if h.starts_with(MAGIC_COWD) {
        return Err(window.unsupported("the COWD layout of old ESX servers"));
    }
    if h.starts_with(MAGIC_DESCRIPTOR) {
        return descriptor_only(window);
    }
    if !h.starts_with(MAGIC_SPARSE) {
        return Err(window.contradicts());
    }
    let descriptor = embedded_descriptor(window, &h)?;
    check_descriptor(window, &descriptor)?;
    if le64(&h, 56) == GD_AT_END {
        // The true header of a stream is in its footer; its first one may hold zeros.
        let at = window.len.checked_sub(FOOTER_TAIL_BYTES + SECTOR).map(|at| at + SECTOR);
        let at = at.ok_or_else(|| window.damaged("it has no room for the footer of a stream"))?;
        let tail: [u8; 1536] = window.array(at, "the footer")?;
        let footer = &tail[512..1024];
        if !footer.starts_with(MAGIC_SPARSE) || le64(footer, 56) == GD_AT_END {
            return Err(HeaderError::Truncated {
                format: window.format,
                what: "the footer of the stream",
                need: window.len.saturating_add(SECTOR),
                have: window.len,
            });
        }
        check_extent(window, &h, footer)
    } else {
        check_extent(window, &h, &h)
    }
}

fn starts_with(window: &Window<'_>, magic: &[u8]) -> Result<bool, HeaderError> {
    Ok(window.len >= magic.len() as u64 && window.bytes(0, magic.len(), "the header")? == magic)
}

/// Checks the numbers of a header and that its tables lie in the file; returns the size of the disk
/// in bytes.
fn check_extent(window: &Window<'_>, first: &[u8], h: &[u8]) -> Result<u64, HeaderError> {
    let version = le32(h, 4);
    if !(1..=3).contains(&version) {
        return Err(window.unsupported(format!("VMDK version {version}")));
    }
    let compression = le16(h, 77);
    if compression > 1 {
        return Err(window.unsupported(format!("VMDK compression {compression}")));
    }
    // A capacity of zero makes QEMU follow the descriptor instead of this file.
    if le64(first, 12) == 0 {
        return Err(window.damaged("its capacity is zero"));
    }
    let (capacity, grain, gtes) = (le64(h, 12), le64(h, 20), le32(h, 44));
    if capacity == 0 || capacity > super::VIRTUAL_SIZE_BYTES_MAX / SECTOR {
        let virtual_size = capacity.saturating_mul(SECTOR);
        return Err(HeaderError::TooLarge { format: window.format, virtual_size });
    }
    if !grain.is_power_of_two() || grain > GRAIN_SECTORS_MAX {
        return Err(window.damaged(&format!("its grain size is {grain} sectors")));
    }
    if gtes == 0 || gtes > GTES_PER_GT_MAX {
        return Err(window.damaged(&format!("its grain tables have {gtes} entries")));
    }
    let directory_entries = capacity.div_ceil(grain * u64::from(gtes));
    if directory_entries > GD_ENTRIES_MAX {
        return Err(window.damaged("its grain directory is too large"));
    }
    let directory = sectors(window, le64(h, 56))?;
    let directory_bytes = directory_entries * 4;
    window.within(directory, directory_bytes, "the grain directory")?;
    check_grain_tables(window, directory, directory_entries, gtes)?;
    Ok(capacity * SECTOR)
}

fn sectors(window: &Window<'_>, count: u64) -> Result<u64, HeaderError> {
    count.checked_mul(SECTOR).ok_or_else(|| window.damaged("an offset in it is beyond any file"))
}

fn check_grain_tables(
    window: &Window<'_>,
    directory: u64,
    entries: u64,
    gtes: u32,
) -> Result<(), HeaderError> {
    const CHUNK_ENTRIES: u64 = 16 * 1024;
    // Each table is there once in a correct image: a directory that repeats one must not cost
    // hours.
    let mut budget = window.len;
    let mut done = 0;
    while done < entries {
        let count = (entries - done).min(CHUNK_ENTRIES);
        let len = count as usize * 4;
        let bytes = window.bytes(directory + done * 4, len, "the grain directory")?;
        for entry in bytes.chunks_exact(4) {
            let table = u64::from(le32(entry, 0)) * SECTOR;
            if table == 0 {
                continue;
            }
            budget = budget
                .checked_sub(u64::from(gtes) * 4)
                .ok_or_else(|| window.damaged("its directory repeats a grain table many times"))?;
            let grains = window.bytes(table, gtes as usize * 4, "a grain table")?;
            for grain in grains.chunks_exact(4) {
                // Zero: not there. One: known to be zeros. Both lead into the file anyway.
                window.within(u64::from(le32(grain, 0)) * SECTOR, 1, "a grain of the disk")?;
            }
        }
        done += count;
    }
    Ok(())
}

/// The text of the descriptor, from where the header says and from where QEMU looks for a parent.
fn embedded_descriptor(window: &Window<'_>, h: &[u8]) -> Result<String, HeaderError> {
    let stated_at = sectors(window, le64(h, 28))?;
    let stated_len = sectors(window, le64(h, 36))?;
    let mut text = String::new();
    if stated_at != 0 {
        if stated_len > DESCRIPTOR_BYTES_MAX {
            return Err(window.damaged(&format!("its descriptor has {stated_len} bytes")));
        }
        let bytes = window.bytes(stated_at, stated_len as usize, "the descriptor")?;
        text.push_str(&until_nul(&bytes));
        text.push('\n');
    }
    let default_len =
        DESCRIPTOR_DEFAULT_BYTES.min(window.len.saturating_sub(DESCRIPTOR_DEFAULT_AT));
    let covered = stated_at == DESCRIPTOR_DEFAULT_AT && stated_len >= default_len;
    if !covered {
        let bytes = window.bytes(DESCRIPTOR_DEFAULT_AT, default_len as usize, "the descriptor")?;
        let there = until_nul(&bytes);
        if there.contains("parentFileNameHint") {
            text.push_str(&there);
        }
    }
    Ok(text)
}

fn until_nul(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn descriptor_only(window: &Window<'_>) -> Result<u64, HeaderError> {
    let len = window.len.min(DESCRIPTOR_BYTES_MAX) as usize;
    let text = until_nul(&window.bytes(0, len, "the descriptor")?);
    check_parent(window, &text)?;
    let name = text.lines().filter_map(Extent::parse).map(|extent| extent.name).next();
    Err(window.names("extent file", name.unwrap_or_else(|| "(not named)".into()).as_bytes()))
}

fn check_descriptor(window: &Window<'_>, text: &str) -> Result<(), HeaderError> {
    check_parent(window, text)?;
    let extents: Vec<Extent> = text.lines().filter_map(Extent::parse).collect();
    if let Some(extent) = extents.iter().find(|extent| extent.kind != "SPARSE") {
        return Err(window.names("extent file", extent.name.as_bytes()));
    }
    if let Some(second) = extents.get(1) {
        return Err(window.names("second extent file", second.name.as_bytes()));
    }
    for line in text.lines() {
        let Some(kind) = value_of(line, "createType") else { continue };
        let known = ["monolithicSparse", "streamOptimized"];
        if !known.iter().any(|known| kind.eq_ignore_ascii_case(known)) {
            return Err(window.unsupported(format!("the layout `{}`", printable(kind.as_bytes()))));
        }
    }
    Ok(())
}

fn check_parent(window: &Window<'_>, text: &str) -> Result<(), HeaderError> {
    // Not by lines: QEMU searches the whole text for these words.
    if let Some((_, rest)) = text.split_once("parentFileNameHint") {
        let rest = rest.trim_start_matches([' ', '\t', '=', '"']);
        let end = rest.find(['"', '\n', '\r']).unwrap_or(rest.len());
        return Err(window.names("parent disk", &rest.as_bytes()[..end]));
    }
    for line in text.lines() {
        if let Some(cid) = value_of(line, "parentCID")
            && !cid.eq_ignore_ascii_case(NO_PARENT_CID)
        {
            return Err(window.names("parent disk", format!("with content id {cid}").as_bytes()));
        }
    }
    Ok(())
}

/// The value of `key = value` or `key="value"`.
fn value_of<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let (name, value) = line.split_once('=')?;
    name.trim().eq_ignore_ascii_case(key).then(|| value.trim().trim_matches('"'))
}

/// A line such as `RW 4192256 SPARSE "disk.vmdk"`.
struct Extent {
    kind: String,
    name: String,
}

impl Extent {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let access = words.next()?;
        if !["RW", "RDONLY", "NOACCESS"].contains(&access) {
            return None;
        }
        let _sectors = words.next()?;
        let kind = words.next().unwrap_or_default().to_owned();
        let name = line.split('"').nth(1).unwrap_or("(not named)").to_owned();
        Some(Self { kind, name })
    }
}
