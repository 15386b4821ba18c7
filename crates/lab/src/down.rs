//! `lab down`: nothing is left, whatever step anything was killed at.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use crate::error::LabError;
use crate::layout::Lab;
use crate::layout::STATE_FILE;
use crate::programs::run;
use crate::state::Phase;

/// How long the kernel may take to take the cable to the machine away after its other end went.
const LINK_LIMIT: Duration = Duration::from_secs(5);

/// Pause between two looks.
const POLL: Duration = Duration::from_millis(10);

/// What `up` makes in the directory; the state file and the lock go last.
const OURS: [&str; 11] = [
    "nodes",
    "share",
    "san",
    "san.sock",
    "san.log",
    "ns",
    "bin",
    "batch",
    "bmc.log",
    "lab.json.new",
    STATE_FILE,
];

/// Whether an entry of the directory is the lab's.
pub(crate) fn is_ours(name: &OsStr) -> bool {
    name == "lock" || OURS.iter().any(|ours| name == *ours)
}

impl Lab {
    /// Ends the lab: all processes, namespaces, cables and files, also the disks of its machines.
    /// With `force` also one whose state file is damaged or lost.
    ///
    /// # Errors
    /// There is no lab; something cannot be removed.
    pub fn down(&self, force: bool) -> Result<(), LabError> {
        if !self.dir().is_dir() && !force {
            return self.state().map(drop);
        }
        let begun = self.is_begun();
        let lock = if self.dir().is_dir() { Some(self.lock()?) } else { None };
        match self.try_state() {
            Ok(Some(mut state)) => {
                state.phase = Phase::Ending;
                self.save(&state)?;
            }
            _ if force => {}
            // Killed before the state was written: nothing is there but its beginnings.
            Ok(None) if begun => {}
            Ok(None) => {
                // Not even a lock is to stay where there was no lab.
                let _ = fs::remove_file(self.path("lock"));
                return self.state().map(drop);
            }
            Err(error) => return Err(error),
        }
        let done = self.remove_all();
        drop(lock);
        done
    }

    /// Takes all away; to be called under the lock, which goes, too.
    pub(crate) fn remove_all(&self) -> Result<(), LabError> {
        self.unmake()?;
        self.unlink_host()?;
        for name in OURS {
            remove(&self.path(name))?;
        }
        remove(&self.path("lock"))?;
        // Stays where the user has put something of their own into it.
        let _ = fs::remove_dir(self.dir());
        Ok(())
    }

    /// Whether the directory has entries, and all of them are a lab's.
    fn is_begun(&self) -> bool {
        let entries = fs::read_dir(self.dir()).into_iter().flatten().flatten();
        let names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
        !names.is_empty() && names.iter().all(|name| is_ours(name))
    }

    /// The cable to the machine goes with the world, which the kernel takes apart in its own time.
    fn unlink_host(&self) -> Result<(), LabError> {
        let device = self.tag().host_device();
        let path = Path::new("/sys/class/net").join(&device);
        let started = Instant::now();
        while path.exists() {
            if started.elapsed() > LINK_LIMIT {
                return run("ip", ["link", "delete", &device]).map(drop);
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

fn remove(path: &Path) -> Result<(), LabError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(data) if data.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(LabError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}
