//! The control group above the groups of all machines of this node.
//!
//! Everything is done to the group and never to a list of processes, so a machine that starts while
//! the group is frozen is frozen, too. Files are opened once: nothing is looked up, and next to
//! nothing allocated, when time is short.

use std::fs;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;

/// An empty group of the guard's within the group: the group cannot be removed while it is there,
/// and made anew without what the guard has set.
const ANCHOR: &str = "guard";

/// Bytes of `cgroup.events` that are read; it has two short lines.
const EVENTS_MAX: usize = 256;

/// The group.
#[derive(Debug)]
pub(super) struct Group {
    dir: PathBuf,
    freeze: File,
    kill: File,
    events: File,
}

/// What the kernel says of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    /// Whether a process is in it or below it.
    pub(super) populated: bool,
    /// Whether all of them stand still.
    pub(super) frozen: bool,
}

impl Seen {
    /// Until it was looked at, machines are there.
    pub(super) const UNKNOWN: Self = Self { populated: true, frozen: false };
    /// There is no group.
    pub(super) const NOBODY: Self = Self { populated: false, frozen: false };
}

impl Group {
    /// Makes it if it is not there, and opens it. Nothing: the group that it is to be made in is not
    /// there, so nobody is in it. That one is systemd's, and made by nobody else.
    pub(super) fn open(dir: &Path) -> io::Result<Option<Self>> {
        match fs::create_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => fs::create_dir_all(dir.join(ANCHOR))?,
        }
        let write = |name: &str| File::options().write(true).open(dir.join(name));
        Ok(Some(Self {
            dir: dir.to_owned(),
            freeze: write("cgroup.freeze")?,
            kill: write("cgroup.kill")?,
            events: File::open(dir.join("cgroup.events"))?,
        }))
    }

    /// How it is.
    pub(super) fn seen(&self) -> io::Result<Seen> {
        let mut buffer = [0; EVENTS_MAX];
        let length = self.events.read_at(&mut buffer, 0)?;
        let lines = || buffer[..length].split(|byte| *byte == b'\n');
        let yes = |key: &[u8]| lines().any(|line| line == key);
        if !lines().any(|line| line.starts_with(b"populated ")) {
            return Err(io::Error::other("cgroup.events does not say whether it is populated"));
        }
        Ok(Seen { populated: yes(b"populated 1"), frozen: yes(b"frozen 1") })
    }

    /// Lets everything in it stand still, or go on.
    pub(super) fn freeze(&self, on: bool) -> io::Result<()> {
        self.freeze.write_all_at(if on { b"1" } else { b"0" }, 0)
    }

    /// Kills everything in it, what stands still as well.
    pub(super) fn kill(&self) -> io::Result<()> {
        self.kill.write_all_at(b"1", 0)
    }

    /// Lets it be removed by whoever made it; removes it if nothing is left in it.
    pub(super) fn release(&self) {
        let _ = fs::remove_dir(self.dir.join(ANCHOR));
        let _ = fs::remove_dir(&self.dir);
    }
}

/// Whether this process itself is in the group: it would freeze itself, and for ever.
pub(super) fn holds_us(dir: &Path) -> io::Result<bool> {
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let Some(own) = own.lines().find_map(|line| line.strip_prefix("0::/")) else {
        return Ok(false);
    };
    let above = |path: &Path| !path.as_os_str().is_empty() && dir.ends_with(path);
    Ok(Path::new(own).ancestors().any(above))
}
