//! An ISO 9660 image with a few files in its root: level 1 names, Rock Ridge names for Linux and
//! BSD, Joliet names for Windows. Always the same bytes for the same files.
//!
//! ```text
//! sector (2 KiB)  0-15 empty          19 path table, little-endian     23 root directory
//!                 16   primary        20 path table, big-endian        24 Rock Ridge extension
//!                 17   Joliet         21 the same for Joliet           25 root directory, Joliet
//!                 18   terminator     22                               26 data of the files
//! ```
//!
//! References: ECMA-119; SUSP 1.12 and RRIP 1.12; the Joliet specification. Numbers are stored in
//! both byte orders (`both_16`, `both_32`).

const SECTOR: usize = 2048;
const PRIMARY: usize = 16;
const JOLIET: usize = 17;
const TERMINATOR: usize = 18;
const PATHS: u32 = 19;
const PATHS_JOLIET: u32 = 21;
const ROOT: u32 = 23;
const EXTENSION: u32 = 24;
const ROOT_JOLIET: u32 = 25;
const DATA: u32 = 26;

/// Every date on the disc: the first of January 2020, UTC. Content decides, not the time of day.
const DATE: [u8; 7] = [120, 1, 1, 0, 0, 0, 0];
const LONG_DATE: &[u8; 17] = b"2020010100000000\0";
const NO_DATE: &[u8; 17] = b"0000000000000000\0";

const DIRECTORY: u8 = 2;
const MODE_DIRECTORY: u32 = 0o040_755;
/// Readable by root alone: user-data may hold a password hash.
const MODE_FILE: u32 = 0o100_400;

/// Where a file lies.
struct Entry<'a> {
    name: &'a str,
    /// Its number gives the level 1 name: `FILE0.;1`, `FILE1.;1` ...
    index: usize,
    sector: u32,
    len: u32,
}

/// Builds the image. Names are sorted, ASCII, at most 64 characters; files are below 4 GiB in all;
/// both hold for the three files of a seed.
pub(super) fn build(label: &str, files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut next = DATA;
    let mut entries = Vec::new();
    for (index, (name, data)) in files.iter().enumerate() {
        let len = data.len() as u32;
        entries.push(Entry { name, index, sector: next, len });
        next += len.div_ceil(SECTOR as u32).max(1);
    }
    let mut image = vec![0; next as usize * SECTOR];
    put(&mut image, PRIMARY, &descriptor(1, label, next));
    put(&mut image, JOLIET, &descriptor(2, label, next));
    put(&mut image, TERMINATOR, b"\xffCD001\x01");
    for (at, root) in [(PATHS, ROOT), (PATHS_JOLIET, ROOT_JOLIET)] {
        put(&mut image, at as usize, &path_table(root.to_le_bytes(), 1_u16.to_le_bytes()));
        put(&mut image, at as usize + 1, &path_table(root.to_be_bytes(), 1_u16.to_be_bytes()));
    }
    put(&mut image, ROOT as usize, &root_directory(&entries));
    put(&mut image, EXTENSION as usize, &rock_ridge_reference());
    put(&mut image, ROOT_JOLIET as usize, &root_directory_joliet(&entries));
    for (entry, (_, data)) in entries.iter().zip(files) {
        put(&mut image, entry.sector as usize, data);
    }
    image
}

fn put(image: &mut [u8], sector: usize, bytes: &[u8]) {
    let at = sector * SECTOR;
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

fn both_16(value: u16) -> [u8; 4] {
    let (le, be) = (value.to_le_bytes(), value.to_be_bytes());
    [le[0], le[1], be[0], be[1]]
}

fn both_32(value: u32) -> [u8; 8] {
    let (le, be) = (value.to_le_bytes(), value.to_be_bytes());
    [le[0], le[1], le[2], le[3], be[0], be[1], be[2], be[3]]
}

/// The primary descriptor (kind 1), or the supplementary one of Joliet (kind 2).
fn descriptor(kind: u8, label: &str, sectors: u32) -> Vec<u8> {
    let joliet = kind == 2;
    let text = |text: &str, len: usize| match joliet {
        true => padded(&utf_16(text), len, &[0, b' ']),
        false => padded(text.as_bytes(), len, b" "),
    };
    let (paths, root) = if joliet { (PATHS_JOLIET, ROOT_JOLIET) } else { (PATHS, ROOT) };
    let mut d = vec![kind];
    d.extend(b"CD001\x01\x00");
    d.extend(text("", 32)); // system
    d.extend(text(label, 32)); // volume
    d.extend([0; 8]);
    d.extend(both_32(sectors));
    let mut escapes = [0; 32];
    if joliet {
        escapes[..3].copy_from_slice(b"%/E"); // UCS-2 level 3
    }
    d.extend(escapes);
    d.extend(both_16(1)); // volumes in the set
    d.extend(both_16(1)); // number of this one
    d.extend(both_16(SECTOR as u16));
    d.extend(both_32(10)); // bytes of the path table
    d.extend(paths.to_le_bytes());
    d.extend([0; 4]);
    d.extend((paths + 1).to_be_bytes());
    d.extend([0; 4]);
    d.extend(record(&[0], root, SECTOR as u32, DIRECTORY, &[]));
    d.extend(text("", 128)); // volume set
    d.extend(text("", 128)); // publisher
    d.extend(text("", 128)); // preparer
    d.extend(text("MUSTER", 128)); // application
    d.extend(text("", 37)); // copyright file
    d.extend(text("", 37)); // abstract file
    d.extend(text("", 37)); // bibliographic file
    d.extend(LONG_DATE); // created
    d.extend(LONG_DATE); // modified
    d.extend(NO_DATE); // expires
    d.extend(NO_DATE); // effective
    d.push(1); // version of the structure
    d
}

fn padded(bytes: &[u8], len: usize, pad: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    while out.len() < len {
        out.extend(pad);
    }
    out.truncate(len);
    // An odd field of two-byte characters ends with a zero.
    if pad.len() == 2 && len % 2 == 1 {
        out[len - 1] = 0;
    }
    out
}

fn utf_16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

fn path_table(root: [u8; 4], parent: [u8; 2]) -> Vec<u8> {
    let mut table = vec![1, 0];
    table.extend(root);
    table.extend(parent);
    table.extend([0, 0]);
    table
}

/// A directory record; `extra` is the system use area.
fn record(name: &[u8], sector: u32, len: u32, flags: u8, extra: &[u8]) -> Vec<u8> {
    let mut r = vec![0, 0];
    r.extend(both_32(sector));
    r.extend(both_32(len));
    r.extend(DATE);
    r.extend([flags, 0, 0]);
    r.extend(both_16(1));
    r.push(name.len() as u8);
    r.extend(name);
    if r.len() % 2 == 1 {
        r.push(0);
    }
    r.extend(extra);
    if r.len() % 2 == 1 {
        r.push(0);
    }
    r[0] = r.len() as u8;
    r
}

fn root_directory(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut own = vec![b'S', b'P', 7, 1, 0xbe, 0xef, 0];
    own.extend(posix(MODE_DIRECTORY, 2));
    own.extend(b"CE\x1c\x01");
    own.extend(both_32(EXTENSION));
    own.extend(both_32(0));
    own.extend(both_32(rock_ridge_reference().len() as u32));
    let mut out = record(&[0], ROOT, SECTOR as u32, DIRECTORY, &own);
    out.extend(record(&[1], ROOT, SECTOR as u32, DIRECTORY, &posix(MODE_DIRECTORY, 2)));
    for entry in entries {
        let mut extra = posix(MODE_FILE, 1);
        extra.extend([b'N', b'M', 5 + entry.name.len() as u8, 1, 0]);
        extra.extend(entry.name.as_bytes());
        let plain = format!("FILE{}.;1", entry.index);
        out.extend(record(plain.as_bytes(), entry.sector, entry.len, 0, &extra));
    }
    out
}

fn root_directory_joliet(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut out = record(&[0], ROOT_JOLIET, SECTOR as u32, DIRECTORY, &[]);
    out.extend(record(&[1], ROOT_JOLIET, SECTOR as u32, DIRECTORY, &[]));
    for entry in entries {
        out.extend(record(&utf_16(entry.name), entry.sector, entry.len, 0, &[]));
    }
    out
}

/// PX: mode, links, owner root, group root.
fn posix(mode: u32, links: u32) -> Vec<u8> {
    let mut px = b"PX\x24\x01".to_vec();
    for value in [mode, links, 0, 0] {
        px.extend(both_32(value));
    }
    px
}

/// ER: says that the entries above are Rock Ridge.
fn rock_ridge_reference() -> Vec<u8> {
    let (id, about, source) = ("RRIP_1991A", "ROCK RIDGE", "IEEE P1282");
    let len = 8 + id.len() + about.len() + source.len();
    let mut er = vec![b'E', b'R', len as u8, 1];
    er.extend([id.len() as u8, about.len() as u8, source.len() as u8, 1]);
    er.extend([id, about, source].concat().as_bytes());
    er
}
