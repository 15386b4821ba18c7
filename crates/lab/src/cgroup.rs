//! Control groups (v2): what runs in a node is what is in its group, and nothing leaves it.
//!
//! `muster-lab-<tag>/n1/{daemon,guard,shell,muster-<tag of the daemon>/vm-<id>}`. A group is killed and
//! frozen as a whole, by the kernel, which also catches a process that is just being started.

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use crate::error::LabError;

/// How long killed processes may take to go: memory of guests is given back first.
const KILL_LIMIT: Duration = Duration::from_secs(20);

/// How long a group may take to freeze; a process in the middle of a system call ends it first.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);

/// Pause between two looks.
const POLL: Duration = Duration::from_millis(2);

/// Most groups below one another: node, instance, machine, and some more.
const DEPTH_MAX: usize = 8;

/// A control group; it need not exist.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    mount: PathBuf,
    dir: PathBuf,
}

impl Group {
    /// A group at the top of the v2 tree.
    pub(crate) fn top(name: &str) -> Result<Self, LabError> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")
            .map_err(LabError::io("read", Path::new("/proc/self/mountinfo")))?;
        let mount = mounts.lines().find_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let v2 = after.split(' ').next() == Some("cgroup2");
            before.split(' ').nth(4).filter(|_| v2)
        });
        let mount = PathBuf::from(mount.ok_or_else(|| {
            LabError::failed(
                "there is no cgroup v2 on this machine",
                "mount it: mount -t cgroup2 none /sys/fs/cgroup",
            )
        })?);
        Ok(Self { dir: mount.join(name), mount })
    }

    /// A group below.
    pub(crate) fn child(&self, name: &str) -> Self {
        Self { mount: self.mount.clone(), dir: self.dir.join(name) }
    }

    /// Its directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its path from the mount, as the daemon's configuration wants it.
    pub(crate) fn path(&self) -> String {
        self.dir.strip_prefix(&self.mount).unwrap_or(&self.dir).display().to_string()
    }

    pub(crate) fn exists(&self) -> bool {
        self.dir.is_dir()
    }

    /// Makes it and those above.
    pub(crate) fn make(&self) -> Result<(), LabError> {
        fs::create_dir_all(&self.dir).map_err(LabError::io("make the control group", &self.dir))
    }

    /// Whether anything runs in it or below.
    pub(crate) fn populated(&self) -> bool {
        self.event("populated 1")
    }

    /// Whether it is frozen as a whole.
    pub(crate) fn frozen(&self) -> bool {
        self.event("frozen 1")
    }

    fn event(&self, line: &str) -> bool {
        let text = fs::read_to_string(self.dir.join("cgroup.events"));
        text.is_ok_and(|text| text.lines().any(|one| one == line))
    }

    /// Groups directly below.
    pub(crate) fn children(&self) -> Vec<Self> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let groups = entries.filter(|entry| entry.file_type().is_ok_and(|it| it.is_dir()));
        groups.map(|entry| Self { mount: self.mount.clone(), dir: entry.path() }).collect()
    }

    /// Its last name.
    pub(crate) fn name(&self) -> String {
        self.dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// All processes in it and below.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let mut all = Vec::new();
        self.collect(&mut all, 0);
        all
    }

    fn collect(&self, all: &mut Vec<u32>, depth: usize) {
        let text = fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default();
        all.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
        if depth < DEPTH_MAX {
            self.children().iter().for_each(|child| child.collect(all, depth + 1));
        }
    }

    /// Kills all in it at once; returns how many there were when all are gone.
    pub(crate) fn kill(&self) -> Result<usize, LabError> {
        let count = self.processes().len();
        let started = Instant::now();
        while self.populated() {
            let file = self.dir.join("cgroup.kill");
            fs::write(&file, "1").map_err(LabError::io("write", &file))?;
            // A frozen process is killed when it is thawed, on some kernels.
            let _ = fs::write(self.dir.join("cgroup.freeze"), "0");
            if started.elapsed() > KILL_LIMIT {
                let left = self.processes().iter().map(u32::to_string).collect::<Vec<_>>();
                return Err(LabError::failed(
                    format!("processes {} do not die", left.join(", ")),
                    "see what they wait for (ps -o pid,stat,wchan,cmd), then try again",
                ));
            }
            std::thread::sleep(POLL);
        }
        Ok(count)
    }

    /// Freezes or thaws all in it, and waits until that is so.
    pub(crate) fn freeze(&self, freeze: bool) -> Result<(), LabError> {
        let file = self.dir.join("cgroup.freeze");
        let started = Instant::now();
        fs::write(&file, if freeze { "1" } else { "0" }).map_err(LabError::io("write", &file))?;
        while self.frozen() != freeze {
            if started.elapsed() > FREEZE_LIMIT {
                let word = if freeze { "freeze" } else { "thaw" };
                return Err(LabError::failed(
                    format!("{} does not {word} within {FREEZE_LIMIT:?}", self.path()),
                    "see its processes: muster lab status; try again",
                ));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Kills all in it and takes it and all groups below away; fine where there is none.
    pub(crate) fn remove(&self) -> Result<(), LabError> {
        let started = Instant::now();
        loop {
            if !self.exists() {
                return Ok(());
            }
            // Again in each round: a process may just have been started in it.
            self.kill()?;
            match self.remove_tree(0) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if started.elapsed() > KILL_LIMIT => {
                    return Err(LabError::io("remove the control group", &self.dir)(error));
                }
                Err(_) => std::thread::sleep(POLL),
            }
        }
    }

    fn remove_tree(&self, depth: usize) -> io::Result<()> {
        if depth < DEPTH_MAX {
            for child in self.children() {
                child.remove_tree(depth + 1)?;
            }
        }
        fs::remove_dir(&self.dir)
    }
}
