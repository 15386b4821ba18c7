//! Real images made by qemu-img, the lies we know, and thousands of mutated headers.

use std::path::Path;
use std::process::Command;

use proptest::prelude::any;
use proptest::prop_assert;
use proptest::proptest;

use super::HeaderError;
use super::ImageHeader;
use super::vhd;
use super::vhdx;
use crate::image::format::SourceFormat;

const MIB: u64 = 1 << 20;
const ALL: [SourceFormat; 5] = [
    SourceFormat::Raw,
    SourceFormat::Qcow2,
    SourceFormat::Vhd,
    SourceFormat::Vhdx,
    SourceFormat::Vmdk,
];

fn inspect(bytes: &[u8], format: SourceFormat) -> Result<ImageHeader, HeaderError> {
    super::inspect(&bytes, format)
}

fn qemu_img(args: &[&str], dir: &Path) {
    let done = Command::new("qemu-img")
        .args(args)
        .current_dir(dir)
        .output()
        .expect("qemu-img is installed (package qemu-utils)");
    assert!(done.status.success(), "qemu-img {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// An image of 8 MiB with 1 MiB of data at its start.
fn made(format: &str, options: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let mut raw = vec![0x5a_u8; MIB as usize];
    raw.resize(8 * MIB as usize, 0);
    std::fs::write(dir.path().join("raw"), raw).unwrap();
    let mut args = vec!["convert", "-f", "raw", "-O", format];
    args.extend_from_slice(options);
    args.extend_from_slice(&["raw", "out"]);
    qemu_img(&args, dir.path());
    std::fs::read(dir.path().join("out")).unwrap()
}

fn all_made() -> Vec<(SourceFormat, &'static str, Vec<u8>)> {
    vec![
        (SourceFormat::Qcow2, "v3", made("qcow2", &[])),
        (SourceFormat::Qcow2, "v2", made("qcow2", &["-o", "compat=0.10"])),
        (SourceFormat::Qcow2, "extended", made("qcow2", &["-o", "extended_l2=on"])),
        (SourceFormat::Qcow2, "zstd", made("qcow2", &["-c", "-o", "compression_type=zstd"])),
        (SourceFormat::Vhd, "dynamic", made("vpc", &["-o", "force_size=on"])),
        (SourceFormat::Vhd, "fixed", made("vpc", &["-o", "subformat=fixed,force_size=on"])),
        (SourceFormat::Vhdx, "dynamic", made("vhdx", &[])),
        (SourceFormat::Vhdx, "fixed", made("vhdx", &["-o", "subformat=fixed"])),
        (SourceFormat::Vmdk, "sparse", made("vmdk", &[])),
        (SourceFormat::Vmdk, "stream", made("vmdk", &["-o", "subformat=streamOptimized"])),
    ]
}

#[test]
fn real_images_are_read_and_their_size_is_true() {
    for (format, kind, bytes) in all_made() {
        let header = inspect(&bytes[..], format).unwrap_or_else(|e| panic!("{format} {kind}: {e}"));
        assert_eq!(header.virtual_size, 8 * MIB, "{format} {kind}");
    }
}

#[test]
fn a_wrongly_stated_format_is_a_contradiction_that_names_the_true_one() {
    for (format, kind, bytes) in all_made() {
        assert_eq!(
            inspect(&bytes[..], SourceFormat::Raw).unwrap().virtual_size,
            bytes.len() as u64,
            "anything is raw"
        );
        for given in ALL {
            if given == format || given == SourceFormat::Raw {
                continue;
            }
            match inspect(&bytes[..], given) {
                Err(HeaderError::Contradicts { given: said, found }) => {
                    assert_eq!((said, found), (given, Some(format)), "{kind}");
                }
                other => panic!("{format} {kind} as {given}: {other:?}"),
            }
        }
    }
}

#[test]
fn unknown_content_is_no_image() {
    let noise = vec![7_u8; 4096];
    for given in [SourceFormat::Qcow2, SourceFormat::Vhd, SourceFormat::Vhdx, SourceFormat::Vmdk] {
        let error = inspect(&noise[..], given).unwrap_err();
        assert!(matches!(error, HeaderError::Contradicts { found: None, .. }), "{error}");
        assert!(matches!(inspect(&[][..], given), Err(HeaderError::Empty)));
        assert!(inspect(&[7_u8][..], given).is_err());
    }
}

#[test]
fn cut_images_are_refused_before_conversion() {
    for (format, kind, bytes) in all_made() {
        let whole = bytes.len();
        for keep in [whole - 1, whole - 700, whole / 2, 1024, 512, 100, 9] {
            let cut = &bytes[..keep.min(whole)];
            // The last cluster, grain or padding may be there in part: no table tells where it
            // ends.
            let open_end = !matches!(format, SourceFormat::Vhd) && keep > whole - 1024;
            // What lies there is nobody's: QEMU pads these to a whole block.
            let padded = kind == "dynamic" && format == SourceFormat::Vhdx && keep > whole / 2;
            if open_end || padded {
                continue;
            }
            assert!(inspect(cut, format).is_err(), "{format} {kind} cut to {keep} of {whole}");
        }
    }
}

fn named(bytes: &[u8], format: SourceFormat) -> (&'static str, String) {
    match inspect(bytes, format) {
        Err(HeaderError::NamesOtherFile { kind, name, .. }) => (kind, name),
        other => panic!("{other:?}"),
    }
}

#[test]
fn qcow2_with_a_backing_file_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let target = "/etc/shadow";
    let args = ["create", "-u", "-f", "qcow2", "-F", "raw", "-b", target, "evil", "1M"];
    qemu_img(&args, dir.path());
    let bytes = std::fs::read(dir.path().join("evil")).unwrap();
    assert_eq!(named(&bytes, SourceFormat::Qcow2), ("backing file", target.to_owned()));
}

#[test]
fn qcow2_with_a_data_file_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let options = "data_file=victim,data_file_raw=on";
    qemu_img(&["create", "-f", "qcow2", "-o", options, "evil", "1M"], dir.path());
    let mut bytes = std::fs::read(dir.path().join("evil")).unwrap();
    assert_eq!(named(&bytes, SourceFormat::Qcow2), ("data file", "victim".to_owned()));
    // The name without the flag, and the flag without the name.
    bytes[79] &= !4;
    assert_eq!(named(&bytes, SourceFormat::Qcow2).1, "victim");
    let mut flagged = made("qcow2", &[]);
    flagged[79] |= 4;
    assert_eq!(named(&flagged, SourceFormat::Qcow2).0, "data file");
}

#[test]
fn encrypted_qcow2_is_refused() {
    let mut bytes = made("qcow2", &[]);
    bytes[35] = 2;
    assert!(matches!(inspect(&bytes[..], SourceFormat::Qcow2), Err(HeaderError::Encrypted { .. })));
}

#[test]
fn qcow2_lies_are_refused() {
    type Lie = (&'static str, fn(&mut Vec<u8>));
    let lies: [Lie; 9] = [
        ("version", |b| b[7] = 4),
        ("cluster bits", |b| b[23] = 63),
        ("virtual size of 8 EiB", |b| b[24] = 0x70),
        ("virtual size of 1 TiB in a small L1 table", |b| b[26] = 1),
        ("virtual size of zero", |b| b[24..32].fill(0)),
        ("L1 table beyond the file", |b| b[43] = 0x70),
        ("L1 table of 4 G entries", |b| b[36] = 0xff),
        ("refcount table beyond the file", |b| b[51] = 0x70),
        ("unknown incompatible feature", |b| b[72] = 0x80),
    ];
    let good = made("qcow2", &[]);
    for (what, lie) in lies {
        let mut bytes = good.clone();
        lie(&mut bytes);
        assert!(inspect(&bytes[..], SourceFormat::Qcow2).is_err(), "{what}");
    }
}

fn reseal_vhd(bytes: &mut [u8], at: usize, len: usize, field: usize) {
    let sum = vhd::sum(&bytes[at..at + len], field);
    bytes[at + field..at + field + 4].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn differencing_vhd_is_refused_by_name() {
    let mut bytes = made("vpc", &[]);
    let last = bytes.len() - 512;
    for at in [0, last] {
        bytes[at + 63] = 4;
        reseal_vhd(&mut bytes, at, 512, 64);
    }
    for (unit, letter) in bytes[512 + 64..].chunks_exact_mut(2).zip("base.vhd".encode_utf16()) {
        unit.copy_from_slice(&letter.to_be_bytes());
    }
    assert_eq!(named(&bytes, SourceFormat::Vhd), ("parent disk", "base.vhd".to_owned()));
}

#[test]
fn vhd_lies_are_refused() {
    let good = made("vpc", &[]);
    let mut huge = good.clone();
    let last = huge.len() - 512;
    for at in [0, last] {
        huge[at + 48 + 3] = 0x10;
        reseal_vhd(&mut huge, at, 512, 64);
    }
    let error = inspect(&huge[..], SourceFormat::Vhd).unwrap_err();
    assert!(error.to_string().contains("cannot hold") || error.to_string().contains("2 TiB"));

    let mut outside = good.clone();
    outside[1536] = 0x70; // first entry of the block table
    assert!(matches!(
        inspect(&outside[..], SourceFormat::Vhd),
        Err(HeaderError::Truncated { what: "a block of the disk", .. })
    ));

    let mut unsealed = good;
    unsealed[last + 20] ^= 1;
    assert!(matches!(inspect(&unsealed[..], SourceFormat::Vhd), Err(HeaderError::Damaged { .. })));
}

/// Seals header, region table after a change.
fn reseal_vhdx(bytes: &mut [u8], at: usize, len: usize) {
    let crc = vhdx::checksum(&bytes[at..at + len]);
    bytes[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn vhdx_with_a_log_to_replay_is_refused() {
    let mut bytes = made("vhdx", &[]);
    for at in [64 << 10, 128 << 10] {
        bytes[at + 48] = 1;
        reseal_vhdx(&mut bytes, at, 4096);
    }
    assert!(matches!(inspect(&bytes[..], SourceFormat::Vhdx), Err(HeaderError::NeedsReplay)));
}

fn find(bytes: &[u8], needle: &[u8]) -> usize {
    bytes.windows(needle.len()).position(|window| window == needle).expect("present")
}

#[test]
fn differencing_vhdx_is_refused() {
    let mut bytes = made("vhdx", &[]);
    let metadata = find(&bytes[1 << 20..], b"metadata") + (1 << 20);
    // The first item is the file parameters; its second word has the flag for a parent.
    let item = u32::from_le_bytes(bytes[metadata + 48..metadata + 52].try_into().unwrap()) as usize;
    bytes[metadata + item + 4] |= 2;
    assert_eq!(named(&bytes, SourceFormat::Vhdx).0, "parent disk");
}

#[test]
fn vhdx_without_a_valid_header_or_region_table_is_refused() {
    for (from, to) in [(64 << 10, 192 << 10), (192 << 10, 320 << 10)] {
        let mut bytes = made("vhdx", &[]);
        bytes[from..to].iter_mut().for_each(|byte| *byte ^= 0x55);
        let error = inspect(&bytes[..], SourceFormat::Vhdx).unwrap_err();
        assert!(matches!(error, HeaderError::Damaged { .. }), "{error}");
    }
}

#[test]
fn vmdk_descriptors_that_name_files_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let options = "subformat=monolithicFlat";
    qemu_img(&["create", "-f", "vmdk", "-o", options, "flat.vmdk", "1M"], dir.path());
    let bytes = std::fs::read(dir.path().join("flat.vmdk")).unwrap();
    assert_eq!(named(&bytes, SourceFormat::Vmdk), ("extent file", "flat-flat.vmdk".to_owned()));

    let edit = |from: &str, to: &str| {
        let mut bytes = made("vmdk", &[]);
        let at = find(&bytes, from.as_bytes());
        let text_end = at + bytes[at..].iter().position(|byte| *byte == 0).unwrap();
        let tail = String::from_utf8(bytes[at..text_end].to_vec()).unwrap().replacen(from, to, 1);
        bytes[at..at + tail.len()].copy_from_slice(tail.as_bytes());
        bytes
    };
    let parent = edit("parentCID=ffffffff", "parentCID=12345678");
    assert_eq!(named(&parent, SourceFormat::Vmdk).0, "parent disk");
    let hint = edit("createType", "parentFileNameHint=\"/etc/passwd\"\ncreateType");
    assert_eq!(named(&hint, SourceFormat::Vmdk), ("parent disk", "/etc/passwd".to_owned()));
    let flat = edit(" SPARSE ", " FLAT ");
    assert_eq!(named(&flat, SourceFormat::Vmdk).0, "extent file");
    let second = edit("# The Disk Data Base", "RW 8 SPARSE \"/dev/vda\"\n#");
    assert_eq!(named(&second, SourceFormat::Vmdk), ("second extent file", "/dev/vda".to_owned()));
}

#[test]
fn vmdk_lies_are_refused() {
    type Lie = (&'static str, fn(&mut Vec<u8>));
    let lies: [Lie; 6] = [
        ("capacity of zero", |b| b[12..20].fill(0)),
        ("capacity absurd", |b| b[19] = 0x70),
        ("grain size", |b| b[20..28].fill(3)),
        ("grain table entries", |b| b[44..48].fill(0xff)),
        ("directory beyond the file", |b| b[61] = 0x70),
        ("descriptor huge", |b| b[41] = 0x70),
    ];
    let good = made("vmdk", &[]);
    for (what, lie) in lies {
        let mut bytes = good.clone();
        lie(&mut bytes);
        assert!(inspect(&bytes[..], SourceFormat::Vmdk).is_err(), "{what}");
    }
}

/// Interesting places to damage: the structures, not the data of the guest.
fn structure_at(bytes: &[u8], pick: usize) -> usize {
    let regions = [
        0..2048,
        64 << 10..(64 << 10) + 128,
        192 << 10..(192 << 10) + 128,
        1 << 20..(1 << 20) + 2048,
        2 << 20..(2 << 20) + 2048,
        bytes.len() - 2048..bytes.len(),
    ];
    let region = regions[pick % regions.len()].clone();
    (region.start + (pick / regions.len()) % region.len()).min(bytes.len() - 1)
}

#[test]
fn mutated_headers_never_panic_and_never_lie_about_the_limits() {
    let images = all_made();
    let config = proptest::test_runner::Config { cases: 2000, ..Default::default() };
    proptest!(config, |(
        which in any::<usize>(),
        as_format in any::<usize>(),
        places in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..12),
        keep in any::<u16>(),
        reseal in any::<bool>(),
    )| {
        let (format, _, good) = &images[which % images.len()];
        let mut bytes = good.clone();
        for (pick, value) in places {
            let at = structure_at(&bytes, pick);
            bytes[at] = value;
        }
        if reseal {
            let last = bytes.len() - 512;
            match format {
                SourceFormat::Vhd => {
                    for at in [0, last] { reseal_vhd(&mut bytes, at, 512, 64); }
                    reseal_vhd(&mut bytes, 512, 1024, 36);
                }
                SourceFormat::Vhdx => {
                    for at in [64 << 10, 128 << 10] { reseal_vhdx(&mut bytes, at, 4096); }
                    for at in [192 << 10, 256 << 10] { reseal_vhdx(&mut bytes, at, 65536); }
                }
                _ => {}
            }
        }
        if keep % 8 == 0 {
            bytes.truncate(usize::from(keep) * 64);
        }
        let format = if as_format % 4 == 0 { ALL[which % 5] } else { *format };
        if let Ok(header) = inspect(&bytes[..], format) {
            prop_assert!(header.virtual_size <= super::VIRTUAL_SIZE_BYTES_MAX);
            prop_assert!(header.virtual_size > 0);
        }
    });
}

#[test]
fn names_from_images_are_made_printable_and_cut() {
    let name = super::printable(format!("a\x1b[31m\n{}", "x".repeat(500)).as_bytes());
    assert!(!name.contains('\x1b') && !name.contains('\n'));
    assert!(name.chars().count() <= super::NAME_SHOWN_CHARS_MAX + 1);
}
