//! The lock of a lab: one change at a time, also between processes. It ends with its holder.

use std::fs::File;
use std::fs::TryLockError;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use crate::error::LabError;
use crate::layout::Lab;

/// How long a command waits for another one; the longest is a node that is built.
const WAIT: Duration = Duration::from_secs(20);

/// Pause between two tries.
const POLL: Duration = Duration::from_millis(20);

/// Held while the lab is changed.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lab {
    /// Waits until nobody else changes the lab.
    pub(crate) fn lock(&self) -> Result<Lock, LabError> {
        self.lock_within(WAIT)
    }

    /// As [`Lab::lock`], with a limit.
    pub(crate) fn lock_within(&self, limit: Duration) -> Result<Lock, LabError> {
        let path = self.path("lock");
        let started = Instant::now();
        loop {
            let file = File::options().create(true).truncate(false).write(true).open(&path);
            let file = file.map_err(LabError::io("open", &path))?;
            match file.try_lock() {
                Ok(()) if is_still(&file, &path) => return Ok(Lock { _file: file }),
                // The one before us was `down`, and has taken the file with it.
                Ok(()) => {}
                Err(TryLockError::Error(error)) => {
                    return Err(LabError::io("lock", &path)(error));
                }
                Err(TryLockError::WouldBlock) if started.elapsed() < limit => {
                    std::thread::sleep(POLL);
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(LabError::conflict(
                        format!("another command is changing the lab in {}", self.dir().display()),
                        "wait for it, or end it, then try again",
                    ));
                }
            }
        }
    }
}

/// Whether a path still leads to an open file.
fn is_still(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(there)) = (file.metadata(), std::fs::metadata(path)) else { return false };
    (open.dev(), open.ino()) == (there.dev(), there.ino())
}
