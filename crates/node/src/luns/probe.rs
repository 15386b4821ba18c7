//! What stands on a LUN. A wrong answer here destroys somebody's data, so in doubt it is not empty.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use model::Bytes;
use model::FsKind;
use model::LunContents;
use rustix::fs::OFlags;

use super::programs::LOOK_SECONDS;
use super::programs::done;
use super::programs::run;

/// How much of the beginning and of the end must be zeros for a LUN to be empty: superblocks, labels and
/// partition tables that exist lie within it.
const EDGE: u64 = 1 << 20;

/// Reads are aligned to this.
const ALIGN: usize = 4096;

/// Longest words of what is told.
const WORDS_MAX: usize = 120;

/// `EBADE`: what Linux makes of a reservation conflict.
const RESERVED: i32 = 52;

/// `EBUSY`.
const BUSY: i32 = 16;

/// Size of a device, and whether it can only be read.
pub(super) fn size(device: &Path) -> Option<(Bytes, bool)> {
    let text = device.as_os_str();
    let size = done(LOOK_SECONDS, "blockdev", ["--getsize64".as_ref(), text]).ok()?;
    let read_only = done(LOOK_SECONDS, "blockdev", ["--getro".as_ref(), text]).ok()?;
    Some((Bytes::new(size.trim().parse().ok()?), read_only.trim() != "0"))
}

/// What stands on a device, read from the device and not from what this host has cached of it.
pub(super) fn contents(device: &Path) -> LunContents {
    let told = look(device);
    told.unwrap_or_else(|why| LunContents::Unreadable {
        why: why.chars().take(WORDS_MAX).collect(),
    })
}

fn look(device: &Path) -> Result<LunContents, String> {
    // What is mounted here is read through that cache, and nobody else writes to it.
    if !is_in_use(device) {
        forget_cached(device)?;
    }
    read(device)
}

fn read(device: &Path) -> Result<LunContents, String> {
    let empty = match edges_are_zero(device) {
        Ok(empty) => empty,
        Err(error) if error.raw_os_error() == Some(RESERVED) => return Ok(LunContents::Reserved),
        Err(error) => return Err(error.to_string()),
    };
    let ended = run(
        LOOK_SECONDS,
        "blkid",
        ["-p".as_ref(), "-o".as_ref(), "export".as_ref(), device.as_os_str()],
    )?;
    match ended.code {
        0 => Ok(named(&ended.out)),
        // Nothing that it knows.
        2 if empty => Ok(LunContents::Empty),
        2 => Ok(LunContents::Unknown),
        8 => Ok(LunContents::Foreign { what: "more than one kind of data".to_owned() }),
        code => Err(format!("blkid ended with {code}: {}", ended.words)),
    }
}

/// Whether a file system of this host, or another program of it, has a device for itself.
pub(super) fn is_in_use(device: &Path) -> bool {
    let Ok(flags) = i32::try_from((OFlags::EXCL | OFlags::CLOEXEC).bits()) else { return true };
    let open = File::options().read(true).custom_flags(flags).open(device);
    open.is_err_and(|error| error.raw_os_error() == Some(BUSY))
}

/// What the host has cached of a device that others write to says nothing.
pub(super) fn forget_cached(device: &Path) -> Result<(), String> {
    done(LOOK_SECONDS, "blockdev", ["--flushbufs".as_ref(), device.as_os_str()]).map(drop)
}

fn named(text: &str) -> LunContents {
    let value = |key: &str| {
        let lines = text.lines().filter_map(|line| line.split_once('='));
        let mut values = lines.filter(|(name, _)| *name == key).map(|(_, value)| value.trim());
        values.next()
    };
    let fs = value("TYPE").and_then(|kind| kind.parse::<FsKind>().ok());
    if let (Some(fs), Some(uuid)) = (fs, value("UUID")) {
        return LunContents::Volume { fs, uuid: uuid.chars().take(WORDS_MAX).collect() };
    }
    let what = match (value("TYPE"), value("PTTYPE")) {
        (Some(kind), _) => kind.to_owned(),
        (None, Some(table)) => format!("a partition table ({table})"),
        (None, None) => "something that blkid knows".to_owned(),
    };
    LunContents::Foreign { what: what.chars().take(WORDS_MAX).collect() }
}

/// Makes a LUN empty again whose file system was destroyed: its beginning and its end become zeros.
pub(super) fn clear_edges(device: &Path) -> io::Result<()> {
    let file = File::options().write(true).open(device)?;
    let size = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))?;
    let length = EDGE.min(size);
    let zeros = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    for at in [0, size - length] {
        file.write_all_at(&zeros, at)?;
    }
    file.sync_all()
}

/// Reads around the cache of this host.
fn edges_are_zero(device: &Path) -> io::Result<bool> {
    let flags = OFlags::DIRECT | OFlags::CLOEXEC;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    let file = File::options().read(true).custom_flags(flags).open(device)?;
    let size = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))?;
    let length = usize::try_from(EDGE.min(size)).map_err(io::Error::other)? / ALIGN * ALIGN;
    if length == 0 {
        return Err(io::Error::other("it has no length"));
    }
    let mut memory = vec![0; length + ALIGN];
    let begin = memory.as_ptr().align_offset(ALIGN);
    let buffer = &mut memory[begin..begin + length];
    for at in [0, (size - length as u64) / ALIGN as u64 * ALIGN as u64] {
        file.read_exact_at(buffer, at)?;
        if buffer.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file in the place of a device: `blkid` and direct reads take both.
    fn file(size: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size).unwrap();
        file
    }

    #[test]
    fn what_stands_there_is_named_and_only_zeros_are_empty() {
        let made = |program: &str, args: &[&str]| {
            let file = file(320 << 20);
            let path = file.path().to_str().unwrap().to_owned();
            done(LOOK_SECONDS, program, args.iter().copied().chain([path.as_str()])).unwrap();
            read(file.path()).unwrap()
        };
        assert_eq!(read(file(64 << 20).path()), Ok(LunContents::Empty));
        assert_eq!(read(file(8 << 10).path()), Ok(LunContents::Empty), "smaller than its edges");
        let uuid = "0191f6a0-7c1e-7d2a-8f00-000000000001";
        let ext4 = made("mkfs.ext4", &["-q", "-F", "-U", uuid]);
        assert_eq!(ext4, LunContents::Volume { fs: FsKind::Ext4, uuid: uuid.to_owned() });
        let xfs = made("mkfs.xfs", &["-q", "-m", &format!("uuid={uuid}")]);
        assert_eq!(xfs, LunContents::Volume { fs: FsKind::Xfs, uuid: uuid.to_owned() });
        assert_eq!(made("mkswap", &[]), LunContents::Foreign { what: "swap".to_owned() });
        read(file(0).path()).unwrap_err();
        for at in [0, 512, (1 << 20) - 1, (64 << 20) - 1, (63 << 20) + 7] {
            let file = file(64 << 20);
            file.as_file().write_all_at(b"x", at).unwrap();
            assert_eq!(read(file.path()), Ok(LunContents::Unknown), "a byte at {at}");
        }
        let full = file(64 << 20);
        full.as_file().write_all_at(&[7; 4096], 0).unwrap();
        full.as_file().write_all_at(&[7; 4096], (64 << 20) - 4096).unwrap();
        clear_edges(full.path()).unwrap();
        assert_eq!(read(full.path()), Ok(LunContents::Empty));
        let gone = contents(Path::new("/dev/there-is-none"));
        assert!(matches!(gone, LunContents::Unreadable { .. }), "{gone:?}");
    }

    #[test]
    fn names_of_what_is_found() {
        let fs = "DEVNAME=/dev/x\nUUID=6f1c\nTYPE=ext4\nUSAGE=filesystem\n";
        let ours = LunContents::Volume { fs: FsKind::Ext4, uuid: "6f1c".to_owned() };
        assert_eq!(named(fs), ours);
        let foreign = |what: &str| LunContents::Foreign { what: what.to_owned() };
        assert_eq!(named("TYPE=LVM2_member\nUUID=1\n"), foreign("LVM2_member"));
        assert_eq!(named("PTUUID=1\nPTTYPE=gpt\n"), foreign("a partition table (gpt)"));
        assert_eq!(named("TYPE=ext4\n"), foreign("ext4"), "without a UUID it cannot be told apart");
        assert_eq!(named(""), foreign("something that blkid knows"));
    }
}
