//! Mount points of processes that are gone.

use std::fs;
use std::io;
use std::path::Path;

use rustix::mount::UnmountFlags;

/// Beginning of the source of a mount point of ours.
const OURS: &str = "muster:";

/// File system and source of what is mounted right there, the topmost one. Touches nothing of it.
fn mounted_at(mountinfo: &str, path: &str) -> Option<(String, String)> {
    let line = mountinfo.lines().rfind(|line| line.split(' ').nth(4) == Some(path))?;
    let mut words = line.split_once(" - ")?.1.split(' ');
    Some((words.next()?.to_owned(), words.next()?.to_owned()))
}

/// What is mounted right there, if anything is.
pub(crate) fn mounted_here(path: &Path) -> Option<(String, String)> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounted_at(&text, &path.display().to_string())
}

/// Whether a volume of that name is mounted right there by a volume process.
pub(crate) fn is_mounted(path: &Path, name: &str) -> bool {
    let ours = format!("{OURS}{name}");
    mounted_here(path).is_some_and(|(fs, source)| fs.starts_with("fuse") && source == ours)
}

/// Takes a mount point away that a process before this one has left: nobody answers there any more.
///
/// # Errors
/// Something else is mounted there; it cannot be taken away.
pub(super) fn take_away(path: &Path) -> io::Result<()> {
    while let Some((fs, source)) = mounted_here(path) {
        if !fs.starts_with("fuse") || !source.starts_with(OURS) {
            let path = path.display();
            return Err(io::Error::other(format!("a {fs} is mounted at {path}; unmount it")));
        }
        tracing::error!(
            path = %path.display(),
            "the volume process before this one has died: what was open there has failed"
        );
        rustix::mount::unmount(path, UnmountFlags::DETACH)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_mount_counts() {
        let text = "\
            21 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            30 21 0:30 / /muster/volumes/fast rw,nosuid - xfs /dev/sdb rw\n\
            31 30 0:31 / /muster/volumes/fast rw,nosuid - fuse muster:fast rw\n\
            32 21 0:32 / /muster/volumes/faster rw - fuse muster:faster rw\n";
        let at = |path| mounted_at(text, path);
        let ours = ("fuse".to_owned(), "muster:fast".to_owned());
        assert_eq!(at("/muster/volumes/fast"), Some(ours));
        assert_eq!(at("/muster/volumes"), None);
    }
}
