//! Where data is kept, how long a flush takes there, and what the kernel says of it.
//!
//! Whether a flush is *true* cannot be measured by time: a device that lies answers fast, and so
//! does one with a battery. What can be seen is whether the kernel asks the device for a flush at
//! all (file system, its options, the cache mode of the device's queue), and whether a flush is
//! faster than such a device can be.

use std::fs;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use model::VolumeId;

use super::facts::DiskFacts;

/// Flushes that are measured: enough for a 99th percentile that is not the longest one alone.
const FLUSHES: u32 = 128;

/// How long they may take together; a slow disk is seen after some of them.
const FLUSH_TIME: Duration = Duration::from_secs(4);

/// Bytes that are written before each: a page, as the log does for a small change.
const BYTES: usize = 4_096;

/// Blocks of the file that are written in turn.
const BLOCKS: u64 = 16;

/// Looks at a directory and measures it. It blocks.
pub(super) fn look(volume: Option<VolumeId>, path: &Path) -> DiskFacts {
    let mut facts = DiskFacts {
        volume,
        path: path.display().to_string(),
        filesystem: "unknown".to_owned(),
        ..DiskFacts::default()
    };
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    match fs::metadata(path) {
        Ok(metadata) => {
            if let Some(mount) = mount_of(&mounts, metadata.dev(), path) {
                facts.filesystem = mount.filesystem;
                facts.options = mount.options;
                facts.device = mount.source;
            }
            let queue = queue_of(Path::new("/sys/dev/block"), metadata.dev());
            facts.cache = queue.as_ref().and_then(|queue| word(&queue.join("write_cache")));
            facts.rotational = queue
                .as_ref()
                .and_then(|queue| word(&queue.join("rotational")))
                .map(|it| it == "1");
        }
        Err(error) => {
            facts.problem = Some(error.to_string());
            return facts;
        }
    }
    match flushes(path) {
        Ok(mut took) => {
            took.sort_unstable();
            facts.flushes = u32::try_from(took.len()).unwrap_or(u32::MAX);
            facts.median_us = percentile(&took, 50);
            facts.p99_us = percentile(&took, 99);
        }
        Err(error) => facts.problem = Some(error.to_string()),
    }
    facts
}

/// The value that so many percent of sorted values do not exceed; 0 of none.
pub(super) fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).copied().unwrap_or_default()
}

/// A file that goes when it is dropped.
struct Trial(PathBuf);

impl Drop for Trial {
    fn drop(&mut self) {
        // A file of some pages that stays behind does no harm.
        let _ = fs::remove_file(&self.0);
    }
}

/// How long each flush of a small write took, in microseconds.
fn flushes(directory: &Path) -> io::Result<Vec<u64>> {
    let path = directory.join(format!(".muster-validate-{}", uuid::Uuid::new_v4()));
    let file = File::options().create_new(true).write(true).open(&path)?;
    let _trial = Trial(path);
    // As the log: the file has its size before, so that a flush is of data alone.
    file.write_all_at(&vec![0; BYTES * usize::try_from(BLOCKS).unwrap_or(1)], 0)?;
    file.sync_all()?;
    let begun = Instant::now();
    let mut took = Vec::new();
    for n in 0..FLUSHES {
        if begun.elapsed() > FLUSH_TIME && n > 0 {
            break;
        }
        let block = [u8::try_from(n).unwrap_or_default().wrapping_add(1); BYTES];
        let place = u64::from(n) % BLOCKS * BYTES as u64;
        let started = Instant::now();
        file.write_all_at(&block, place)?;
        file.sync_data()?;
        took.push(u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
    Ok(took)
}

/// What `/proc/self/mountinfo` says of a mount.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    filesystem: String,
    source: Option<String>,
    options: Vec<String>,
}

/// Finds the mount that holds a path: that of its device, else the one of the longest path above.
fn mount_of(text: &str, device: u64, path: &Path) -> Option<Mount> {
    let number = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let mut best: Option<(bool, usize, Mount)> = None;
    for line in text.lines() {
        let Some((mount, place, dev)) = parse(line) else { continue };
        let same = dev == number;
        let above = path.starts_with(&place);
        if !same && !above {
            continue;
        }
        let rank = (same, if above { place.as_os_str().len() } else { 0 });
        if best.as_ref().is_none_or(|(same, length, _)| rank >= (*same, *length)) {
            best = Some((rank.0, rank.1, mount));
        }
    }
    best.map(|(_, _, mount)| mount)
}

/// One line: proc(5), `/proc/pid/mountinfo`.
fn parse(line: &str) -> Option<(Mount, PathBuf, &str)> {
    let (before, after) = line.split_once(" - ")?;
    let before: Vec<&str> = before.split(' ').collect();
    let (dev, place, own) = (before.get(2)?, before.get(4)?, before.get(5)?);
    let mut after = after.split(' ');
    let filesystem = after.next()?.to_owned();
    let source = after.next().filter(|it| it.starts_with('/') || it.contains(':'));
    let super_options = after.next().unwrap_or_default();
    let options = own.split(',').chain(super_options.split(','));
    let mut options: Vec<String> = options.filter(|it| !it.is_empty()).map(str::to_owned).collect();
    options.dedup();
    let place = PathBuf::from(place.replace("\\040", " "));
    Some((Mount { filesystem, source: source.map(str::to_owned), options }, place, dev))
}

/// The directory of a block device's queue; that of the whole disk for a partition.
fn queue_of(top: &Path, device: u64) -> Option<PathBuf> {
    let number = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let here = fs::canonicalize(top.join(number)).ok()?;
    let queue = here.join("queue");
    if queue.is_dir() {
        return Some(queue);
    }
    let whole = here.parent()?.join("queue");
    whole.is_dir().then_some(whole)
}

fn word(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned()).filter(|it| !it.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw,nobarrier
30 22 0:26 / /dev/shm rw,nosuid - tmpfs tmpfs rw,size=100k
31 22 0:40 / /srv/a\\040b rw,relatime - nfs4 nas:/vm rw,vers=4.2
broken line
";

    #[test]
    fn a_mount_is_found_by_device_and_by_path() {
        let root = mount_of(MOUNTS, rustix::fs::makedev(254, 0), Path::new("/var/lib")).unwrap();
        assert_eq!((root.filesystem.as_str(), root.source.as_deref()), ("ext4", Some("/dev/vda")));
        assert!(root.options.contains(&"nobarrier".to_owned()), "{root:?}");
        let nfs = mount_of(MOUNTS, rustix::fs::makedev(0, 40), Path::new("/srv/a b/x")).unwrap();
        assert_eq!((nfs.filesystem.as_str(), nfs.source.as_deref()), ("nfs4", Some("nas:/vm")));
        // A file system such as btrfs has a number that no mount shows.
        let other = mount_of(MOUNTS, rustix::fs::makedev(0, 99), Path::new("/dev/shm/y")).unwrap();
        assert_eq!((other.filesystem.as_str(), other.source), ("tmpfs", None));
        assert_eq!(mount_of("", 0, Path::new("/")), None);
    }

    #[test]
    fn flushes_are_measured_and_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let facts = look(None, dir.path());
        assert_eq!(facts.problem, None);
        assert!(facts.flushes > 0 && facts.p99_us >= facts.median_us, "{facts:?}");
        assert_ne!(facts.filesystem, "unknown");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let gone = look(None, &dir.path().join("gone"));
        assert!(gone.problem.is_some() && gone.flushes == 0);
    }

    #[test]
    fn percentiles() {
        let hundred: Vec<u64> = (1..=100).collect();
        assert_eq!((percentile(&hundred, 50), percentile(&hundred, 99)), (50, 99));
        assert_eq!((percentile(&[7], 50), percentile(&[7], 99), percentile(&[], 50)), (7, 7, 0));
    }

    #[test]
    fn the_queue_of_a_partition_is_that_of_its_disk() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("devices/sda");
        fs::create_dir_all(disk.join("queue")).unwrap();
        fs::create_dir_all(disk.join("sda1")).unwrap();
        fs::write(disk.join("queue/write_cache"), "write back\n").unwrap();
        let numbers = dir.path().join("block");
        fs::create_dir(&numbers).unwrap();
        std::os::unix::fs::symlink(&disk, numbers.join("8:0")).unwrap();
        std::os::unix::fs::symlink(disk.join("sda1"), numbers.join("8:1")).unwrap();
        for minor in [0, 1] {
            let queue = queue_of(&numbers, rustix::fs::makedev(8, minor)).unwrap();
            assert_eq!(word(&queue.join("write_cache")).as_deref(), Some("write back"));
        }
        assert_eq!(queue_of(&numbers, rustix::fs::makedev(9, 9)), None);
    }
}
