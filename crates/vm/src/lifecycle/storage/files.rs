//! Copies of plain files. Holes stay holes, and nothing counts before it is durable.

use std::collections::BTreeSet;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use model::Generation;
use model::OpId;
use model::VmId;
use nix::unistd::Whence;

use crate::lifecycle::VmFiles;

/// What is read at once: 1 MiB, so that a copy can be stopped soon.
const CHUNK: usize = 1 << 20;

/// How far a copy is, and whether it shall stop.
#[derive(Debug, Default)]
pub(super) struct Copying {
    pub(super) done: AtomicU64,
    pub(super) stop: AtomicBool,
}

/// Room that the files of a directory take on the disk.
pub(super) fn allocated(dir: &Path) -> io::Result<u64> {
    let mut sum = 0;
    for path in plain_files(dir)? {
        sum += crate::image::allocated_bytes(&path)?;
    }
    Ok(sum)
}

/// All plain files of a VM's directory.
fn plain_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for place in [dir.to_owned(), dir.join("disks")] {
        let entries = match fs::read_dir(&place) {
            Ok(entries) => entries,
            // One without disks on this host has no directory.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Whether a file of a VM's directory means nothing after a move: half-written ones, and those that
/// are made anew.
pub(crate) fn stays_behind(name: &str) -> bool {
    let over = [".new", ".removed", ".part", ".used"].iter().any(|end| name.ends_with(end));
    // The newest run is written by a claim, which looks first.
    over || name == "run" || name == "coming"
}

/// The files that a VM without a process takes along, with their names below its directory. Its
/// cloud-init disc is made anew at each start.
pub(crate) fn files_to_take(of: &VmFiles) -> io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for path in plain_files(of.dir())? {
        let below = path.strip_prefix(of.dir()).map_err(io::Error::other)?;
        let name = below.to_string_lossy().into_owned();
        let last = name.strip_prefix("disks/").unwrap_or(&name);
        if !stays_behind(last) && path != of.seed() {
            found.push((name, path));
        }
    }
    Ok(found)
}

/// Copies all files of a VM that are not in `live`, and makes them durable.
pub(super) fn copy_rest(
    from: &VmFiles,
    to: &VmFiles,
    live: &BTreeSet<PathBuf>,
    copying: &Copying,
) -> io::Result<()> {
    for path in plain_files(from.dir())? {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        if live.contains(&path) || name.is_none_or(|name| stays_behind(&name)) {
            continue;
        }
        let below = path.strip_prefix(from.dir()).map_err(io::Error::other)?;
        copy(&path, &to.dir().join(below), copying)?;
    }
    sync_all(to.dir())
}

/// Makes an empty directory for a VM that comes, claimed by its run where other nodes see it, in the
/// place of whatever an earlier attempt has left.
pub(crate) fn make_room(
    vms_dir: &Path,
    vm: VmId,
    run: Generation,
    op: OpId,
    on_volume: bool,
) -> io::Result<VmFiles> {
    remove_copy(vms_dir, vm, run)?;
    let staged = VmFiles::staged(vms_dir, vm, run);
    staged.make()?;
    staged.mark_coming(op)?;
    if on_volume {
        staged.claim(run)?;
    }
    Ok(staged)
}

/// Removes what lies of a VM in a place that is not its own, as run `run` of it knows. What a newer run
/// has claimed there is left alone: then it is this node that knows an old state.
///
/// # Errors
/// What the system said; or that a newer run uses it.
pub fn remove_copy(vms_dir: &Path, vm: VmId, run: Generation) -> io::Result<()> {
    let entries = match fs::read_dir(vms_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let prefix = format!("{vm}.");
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let of = name.strip_prefix(&prefix).and_then(|rest| rest.split_once('-'));
        if of.and_then(|(_, of)| of.parse().ok()).is_some_and(|of| Generation::new(of) <= run) {
            remove_claimed(&entry.path(), run)?;
        }
    }
    let (own, aside) = (vms_dir.join(vm.to_string()), vms_dir.join(format!("{prefix}old-{run}")));
    // First out of its name, then looked at: nobody can put another one there in between.
    match fs::rename(&own, &aside) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    }
    if let Err(error) = remove_claimed(&aside, run) {
        if fs::rename(&aside, &own).is_err() {
            tracing::error!(path = %aside.display(), "a directory could not be put back");
        }
        return Err(error);
    }
    File::open(vms_dir)?.sync_all()
}

/// Removes a directory that no newer run has claimed.
fn remove_claimed(dir: &Path, run: Generation) -> io::Result<()> {
    let newest = crate::lifecycle::files::newest_run(dir)?;
    if newest > run {
        return Err(io::Error::other(format!("run {newest} uses it, and this is run {run}")));
    }
    fs::remove_dir_all(dir)
}

/// Copies one file; holes stay holes.
fn copy(from: &Path, to: &Path, copying: &Copying) -> io::Result<()> {
    let source = File::open(from)?;
    let size = source.metadata()?.len();
    let target = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(to)?;
    target.set_len(size)?;
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while let Some((begin, end)) = data_from(&source, at, size)? {
        at = begin;
        while at < end {
            if copying.stop.load(Ordering::Relaxed) {
                return Err(io::Error::from(io::ErrorKind::Interrupted));
            }
            let want = usize::try_from(end - at).map_or(CHUNK, |left| left.min(CHUNK));
            source.read_exact_at(&mut buffer[..want], at)?;
            target.write_all_at(&buffer[..want], at)?;
            at += want as u64;
            copying.done.fetch_add(want as u64, Ordering::Relaxed);
        }
    }
    target.sync_all()
}

/// The next stretch of data of a file.
pub(crate) fn data_from(file: &File, at: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= size {
        return Ok(None);
    }
    let seek = |from: u64, what| {
        let from = i64::try_from(from).map_err(io::Error::other)?;
        match nix::unistd::lseek(file, from, what) {
            Ok(found) => Ok(u64::try_from(found).ok()),
            // Nothing but a hole is left.
            Err(nix::errno::Errno::ENXIO) => Ok(None),
            Err(error) => Err(io::Error::from(error)),
        }
    };
    let Some(begin) = seek(at, Whence::SeekData)? else { return Ok(None) };
    let end = seek(begin, Whence::SeekHole)?.unwrap_or(size).min(size);
    Ok((begin < end).then_some((begin, end)))
}

/// A blank file as large as another one.
pub(super) fn make_raw_like(from: &Path, to: &Path) -> io::Result<()> {
    let size = fs::metadata(from)?.len();
    let made = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(to)?;
    made.set_len(size)?;
    made.sync_all()
}

/// Makes every file of a VM's directory durable, and their names.
pub(crate) fn sync_all(dir: &Path) -> io::Result<()> {
    for path in plain_files(dir)? {
        File::open(path)?.sync_all()?;
    }
    for place in [dir.join("disks"), dir.to_owned()] {
        File::open(place)?.sync_all()?;
    }
    // The VM's own name.
    dir.parent().map_or(Ok(()), |above| File::open(above)?.sync_all())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn what_a_newer_run_has_claimed_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (vms, vm) = (dir.path(), VmId::new(uuid::Uuid::from_u128(7)));
        let run = Generation::new;
        remove_copy(&vms.join("nowhere"), vm, run(3)).unwrap();
        let op = OpId::new(uuid::Uuid::from_u128(9));
        let staged = make_room(vms, vm, run(3), op, true).unwrap();
        let newer = make_room(vms, vm, run(4), op, true).unwrap();
        assert!(!staged.dir().exists(), "of an earlier run");
        assert!(newer.dir().exists());
        let own = VmFiles::new(vms, vm);
        newer.publish(&own).unwrap();
        newer.publish(&own).unwrap();
        // The old owner wakes up, and knows nothing of the new one.
        assert!(remove_copy(vms, vm, run(3)).is_err());
        assert!(make_room(vms, vm, run(3), op, true).is_err());
        assert!(own.dir().join("run").exists(), "it is where it was");
        let late = VmFiles::staged(vms, vm, run(3));
        late.make().unwrap();
        assert!(late.publish(&own).is_err(), "it is not replaced");
        let other = VmId::new(uuid::Uuid::from_u128(8));
        VmFiles::new(vms, other).make().unwrap();
        remove_copy(vms, vm, run(5)).unwrap();
        let left: Vec<_> = fs::read_dir(vms).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert_eq!(left, [other.to_string().as_str()], "another VM's files are its own");
    }

    #[test]
    fn a_copy_has_the_same_bytes_and_the_same_holes() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        let file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&[7; 5000], 3 << 20).unwrap();
        file.write_all_at(&[9; 100], (64 << 20) - 100).unwrap();
        file.sync_all().unwrap();
        let copying = Copying::default();
        copy(&from, &to, &copying).unwrap();
        assert_eq!(fs::read(&from).unwrap(), fs::read(&to).unwrap());
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20, "thin stays thin");
        copying.stop.store(true, Ordering::Relaxed);
        assert!(copy(&from, &to, &copying).is_err());
    }
}
