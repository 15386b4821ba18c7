//! qcow2 header (docs/interop/qcow2.rst of QEMU), versions 2 and 3, big-endian.
//!
//! ```text
//!   0 magic "QFI\xfb"   4 version          8 backing offset  16 backing size   20 cluster_bits
//!  24 virtual size     32 crypt method    36 l1 entries      40 l1 offset      48 refcount offset
//!  56 refcount clusters 60 snapshots      64 snapshot offset
//!  72 incompatible     80 compatible      88 autoclear       96 refcount order 100 header length
//! 104 compression      then header extensions (type u32, length u32, data padded to 8) until type 0
//! ```

use super::HeaderError;
use super::Window;
use super::be32;
use super::be64;

pub(super) const MAGIC: &[u8] = b"QFI\xfb";

const HEADER_V2_BYTES: usize = 72;
const HEADER_V3_BYTES: usize = 104;
/// QEMU's own limits on the cluster size: 512 bytes to 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// The format's own limit on the name of a backing file.
const BACKING_NAME_BYTES_MAX: u32 = 1023;
/// QEMU refuses larger L1 tables too: 32 MiB.
const L1_BYTES_MAX: u64 = 32 << 20;
/// QEMU refuses larger refcount tables too: 8 MiB.
const REFCOUNT_TABLE_BYTES_MAX: u64 = 8 << 20;
/// QEMU's limit on internal snapshots.
const SNAPSHOTS_MAX: u32 = 65_536;
/// Extensions we walk before we call the header damaged; real images have up to five.
const EXTENSIONS_MAX: usize = 64;

const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
/// Dirty, corrupt, data file, compression type, extended L2: what we know the meaning of.
const INCOMPATIBLE_KNOWN: u64 = 0b1_1111;
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;

const EXTENSION_END: u32 = 0;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;
const EXTENSION_CRYPTO: u32 = 0x0537_be77;

pub(super) fn inspect(window: &Window<'_>) -> Result<u64, HeaderError> {
    if window.len < MAGIC.len() as u64 || &window.array::<4>(0, "the header")?[..] != MAGIC {
        return Err(window.contradicts());
    }
    let h: [u8; HEADER_V2_BYTES] = window.array(0, "the header")?;
    let version = be32(&h, 4);
    let (incompatible, header_len) = match version {
        2 => (0, HEADER_V2_BYTES as u64),
        3 => version_3(window)?,
        other => return Err(window.unsupported(format!("qcow2 version {other}"))),
    };
    let cluster_bits = be32(&h, 20);
    if !CLUSTER_BITS.contains(&cluster_bits) {
        return Err(window.damaged(&format!("cluster_bits is {cluster_bits}")));
    }
    refuse_backing_file(window, be64(&h, 8), be32(&h, 16))?;
    if be32(&h, 32) != 0 {
        return Err(HeaderError::Encrypted { format: window.format });
    }
    refuse_extensions(window, header_len, 1 << cluster_bits, incompatible)?;

    let virtual_size = be64(&h, 24);
    check_tables(window, &h, cluster_bits, incompatible, virtual_size)?;
    Ok(virtual_size)
}

/// Reads the fields that version 3 added: incompatible features and header length.
fn version_3(window: &Window<'_>) -> Result<(u64, u64), HeaderError> {
    let h: [u8; HEADER_V3_BYTES] = window.array(0, "the header")?;
    let incompatible = be64(&h, 72);
    if incompatible & INCOMPATIBLE_CORRUPT != 0 {
        return Err(window.damaged("it is marked corrupt by the tool that wrote it"));
    }
    if incompatible & !INCOMPATIBLE_KNOWN != 0 {
        let bits = incompatible & !INCOMPATIBLE_KNOWN;
        return Err(window.unsupported(format!("unknown qcow2 features (bits {bits:#x})")));
    }
    let refcount_order = be32(&h, 96);
    if refcount_order > 6 {
        return Err(window.damaged(&format!("refcount order is {refcount_order}")));
    }
    let header_len = be32(&h, 100);
    if !(HEADER_V3_BYTES as u32..=4096).contains(&header_len) || !header_len.is_multiple_of(8) {
        return Err(window.damaged(&format!("its header states a length of {header_len} bytes")));
    }
    Ok((incompatible, u64::from(header_len)))
}

fn refuse_backing_file(window: &Window<'_>, offset: u64, len: u32) -> Result<(), HeaderError> {
    if offset == 0 && len == 0 {
        return Ok(());
    }
    if len > BACKING_NAME_BYTES_MAX {
        return Err(window.damaged(&format!("its backing file name has {len} bytes")));
    }
    let name = window.bytes(offset, len as usize, "the backing file name")?;
    Err(window.names("backing file", &name))
}

/// Walks the header extensions for a data file or a crypto header. The name of a data file may be
/// absent (the flag alone says that data lies elsewhere), so the flag is enough to refuse.
fn refuse_extensions(
    window: &Window<'_>,
    header_len: u64,
    first_cluster_end: u64,
    incompatible: u64,
) -> Result<(), HeaderError> {
    let end = first_cluster_end.min(window.len);
    let mut at = header_len;
    for _ in 0..EXTENSIONS_MAX {
        if at.saturating_add(8) > end {
            break;
        }
        let head: [u8; 8] = window.array(at, "the header extensions")?;
        let (kind, len) = (be32(&head, 0), be32(&head, 4));
        if kind == EXTENSION_END {
            break;
        }
        if u64::from(len) > end - at - 8 {
            return Err(window.damaged(&format!("header extension {kind:#x} has {len} bytes")));
        }
        match kind {
            EXTENSION_DATA_FILE => {
                let shown = len.min(BACKING_NAME_BYTES_MAX) as usize;
                let name = window.bytes(at + 8, shown, "the data file name")?;
                return Err(window.names("data file", &name));
            }
            EXTENSION_CRYPTO => return Err(HeaderError::Encrypted { format: window.format }),
            _ => {}
        }
        at += 8 + u64::from(len).next_multiple_of(8);
    }
    if incompatible & INCOMPATIBLE_DATA_FILE != 0 {
        return Err(window.names("data file", b"(not named)"));
    }
    Ok(())
}

fn check_tables(
    window: &Window<'_>,
    h: &[u8; HEADER_V2_BYTES],
    cluster_bits: u32,
    incompatible: u64,
    virtual_size: u64,
) -> Result<(), HeaderError> {
    if virtual_size > super::VIRTUAL_SIZE_BYTES_MAX {
        return Err(HeaderError::TooLarge { format: window.format, virtual_size });
    }
    let cluster = 1_u64 << cluster_bits;
    let l1_entries = u64::from(be32(h, 36));
    let l1_bytes = l1_entries * 8;
    if l1_bytes > L1_BYTES_MAX {
        return Err(window.damaged(&format!("its L1 table has {l1_entries} entries")));
    }
    // One L1 entry leads to a cluster of L2 entries of 8 (extended: 16) bytes, each of which maps a
    // cluster.
    let l2_entry_bytes = if incompatible & INCOMPATIBLE_EXTENDED_L2 != 0 { 16 } else { 8 };
    let per_l1 = (cluster / l2_entry_bytes) * cluster;
    if virtual_size.div_ceil(per_l1) > l1_entries {
        return Err(window.damaged(&format!(
            "its L1 table of {l1_entries} entries cannot map a disk of {virtual_size} bytes"
        )));
    }
    let l1_offset = be64(h, 40);
    if !l1_offset.is_multiple_of(cluster) || (l1_entries > 0 && l1_offset == 0) {
        return Err(window.damaged(&format!("its L1 table starts at byte {l1_offset}")));
    }
    window.within(l1_offset, l1_bytes, "the L1 table")?;
    let l2 = L2 { cluster_bits, entry_bytes: l2_entry_bytes as usize };
    check_clusters(window, l1_offset, l1_entries, l2)?;

    let refcount_offset = be64(h, 48);
    let refcount_bytes = u64::from(be32(h, 56)) * cluster;
    if refcount_bytes == 0 || refcount_bytes > REFCOUNT_TABLE_BYTES_MAX.max(cluster) {
        return Err(window.damaged(&format!("its refcount table has {refcount_bytes} bytes")));
    }
    if refcount_offset == 0 || !refcount_offset.is_multiple_of(cluster) {
        return Err(window.damaged(&format!("its refcount table starts at byte {refcount_offset}")));
    }
    window.within(refcount_offset, refcount_bytes, "the refcount table")?;

    let snapshots = be32(h, 60);
    if snapshots > SNAPSHOTS_MAX {
        return Err(window.damaged(&format!("it states {snapshots} internal snapshots")));
    }
    if snapshots > 0 {
        // 40 bytes is the smallest snapshot entry.
        window.within(be64(h, 64), u64::from(snapshots) * 40, "the snapshot table")?;
    }
    Ok(())
}

/// Shape of the second-level tables.
#[derive(Clone, Copy)]
struct L2 {
    cluster_bits: u32,
    entry_bytes: usize,
}

/// Bits 9 to 55 of an L1 or L2 entry: where in the file it leads.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const L2_COMPRESSED: u64 = 1 << 62;
const L2_ZERO: u64 = 1;

/// Checks that every cluster of the disk lies in the file. Without this a file that was cut off
/// would be converted without a word: a read past its end gives zeros.
fn check_clusters(
    window: &Window<'_>,
    l1_offset: u64,
    l1_entries: u64,
    l2: L2,
) -> Result<(), HeaderError> {
    const CHUNK_ENTRIES: u64 = 4096;
    let cluster = 1_u64 << l2.cluster_bits;
    // A correct image has each L2 table once, so all of them together are smaller than the file.
    // This keeps an image whose four million L1 entries all lead to one table from costing hours.
    let mut budget = window.len;
    let mut done = 0;
    while done < l1_entries {
        let count = (l1_entries - done).min(CHUNK_ENTRIES);
        let l1 = window.bytes(l1_offset + done * 8, count as usize * 8, "the L1 table")?;
        for entry in l1.chunks_exact(8) {
            let table = be64(entry, 0) & OFFSET_MASK;
            if table == 0 {
                continue;
            }
            budget = budget
                .checked_sub(cluster)
                .ok_or_else(|| window.damaged("its L1 table leads to one L2 table many times"))?;
            let bytes = window.bytes(table, cluster as usize, "an L2 table")?;
            for entry in bytes.chunks_exact(l2.entry_bytes) {
                check_cluster(window, be64(entry, 0), l2)?;
            }
        }
        done += count;
    }
    Ok(())
}

/// The last cluster of a file may be there in part only: just its first byte is asked for.
fn check_cluster(window: &Window<'_>, entry: u64, l2: L2) -> Result<(), HeaderError> {
    let offset = if entry & L2_COMPRESSED != 0 {
        entry & ((1 << (62 - (l2.cluster_bits - 8))) - 1)
    } else if entry & L2_ZERO != 0 && l2.entry_bytes == 8 {
        0
    } else {
        entry & OFFSET_MASK
    };
    if offset == 0 { Ok(()) } else { window.within(offset, 1, "a cluster of the disk") }
}
