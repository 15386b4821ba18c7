//! What a guard leaves behind for the next one: `guard.state` in the run directory.
//!
//! Replaced by renaming, so it is old or new, never half. Not flushed to a disk: after a crash of
//! the host there is nothing left to guard, and the file of another boot is not looked at.
//!
//! | version | change |
//! | --- | --- |
//! | 1 | first |

use std::fs;
use std::io;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

use crate::lease::Held;

const VERSION: u32 = 1;
/// A longer file is not one of ours.
const FILE_MAX: u64 = 4096;

/// The file.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    part: PathBuf,
    boot: String,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    boot: String,
    held: Held,
}

/// What was found at the start.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// No guard ran since the boot.
    Nothing,
    /// What the last one held.
    Held(Held),
    /// Something that cannot be used.
    Damaged(String),
}

impl Store {
    pub(super) fn new(run_dir: &Path) -> io::Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let path = run_dir.join("guard.state");
        Ok(Self { part: path.with_extension("state.new"), path, boot })
    }

    pub(super) fn load(&self) -> Found {
        let mut text = String::new();
        let read = fs::File::open(&self.path)
            .and_then(|file| file.take(FILE_MAX).read_to_string(&mut text));
        match read {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Found::Nothing,
            Err(error) => return Found::Damaged(error.to_string()),
        }
        match serde_json::from_str::<Stored>(&text) {
            Ok(stored) if stored.version != VERSION => {
                Found::Damaged(format!("it has version {}", stored.version))
            }
            Ok(stored) if stored.boot != self.boot => Found::Nothing,
            Ok(stored) => Found::Held(stored.held),
            Err(error) => Found::Damaged(error.to_string()),
        }
    }

    pub(super) fn save(&self, held: &Held) -> io::Result<()> {
        let stored = Stored { version: VERSION, boot: self.boot.clone(), held: held.clone() };
        let text = serde_json::to_vec(&stored).map_err(io::Error::other)?;
        fs::write(&self.part, text)?;
        fs::rename(&self.part, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_held_is_found_and_damage_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path()).unwrap();
        assert_eq!(store.load(), Found::Nothing);
        let held = Held { epoch: Some(3), scope: Some("a".to_owned()), ..Held::default() };
        store.save(&held).unwrap();
        assert_eq!(store.load(), Found::Held(held.clone()));
        let text = fs::read(&store.path).unwrap();
        for length in 0..text.len() {
            fs::write(&store.path, &text[..length]).unwrap();
            assert!(matches!(store.load(), Found::Damaged(_)), "{length}");
        }
        let other = Store { boot: "another".to_owned(), ..Store::new(dir.path()).unwrap() };
        other.save(&held).unwrap();
        assert_eq!(store.load(), Found::Nothing);
    }
}
