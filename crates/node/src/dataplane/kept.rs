//! What a volume process keeps on its node's disk, so that no epoch and no life is used twice.
//!
//! ```text
//!   <data>/volumes/<id>.epoch   the last epoch of the volume that this node has begun to coordinate
//!   <data>/volumes/lives        how many clients it has started
//! ```

use std::fs;
use std::fs::File;
use std::io;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;

use model::VolumeId;

/// Hellos that a client may say in its life.
const HELLOS: u64 = 1_000_000_000;

/// The folder.
pub(super) struct Kept {
    dir: PathBuf,
    alone: Mutex<()>,
}

/// Whether this node has ever begun to coordinate a volume.
pub(crate) fn has_begun(data_dir: &Path, volume: VolumeId) -> bool {
    data_dir.join("volumes").join(format!("{volume}.epoch")).exists()
}

impl Kept {
    pub(super) fn new(data_dir: &Path) -> io::Result<Self> {
        let dir = data_dir.join("volumes");
        fs::create_dir_all(&dir)?;
        Ok(Self { dir, alone: Mutex::default() })
    }

    /// Begins an epoch of a volume: once only, and none before it afterwards. False where it was begun.
    ///
    /// # Errors
    /// The disk's; then it may have been begun.
    pub(super) fn begin(&self, volume: VolumeId, epoch: u32) -> io::Result<bool> {
        let _alone = self.alone.lock().unwrap_or_else(PoisonError::into_inner);
        let name = format!("{volume}.epoch");
        if self.read(&name)?.is_some_and(|begun| begun >= u64::from(epoch)) {
            return Ok(false);
        }
        self.write(&name, u64::from(epoch))?;
        Ok(true)
    }

    /// The first hello of a new client: greater than any before.
    ///
    /// # Errors
    /// The disk's.
    pub(super) fn first_hello(&self) -> io::Result<u64> {
        let _alone = self.alone.lock().unwrap_or_else(PoisonError::into_inner);
        let life = self.read("lives")?.unwrap_or(0) + 1;
        self.write("lives", life)?;
        life.checked_mul(HELLOS).ok_or_else(|| io::Error::other("no life is left"))
    }

    fn read(&self, name: &str) -> io::Result<Option<u64>> {
        match fs::read_to_string(self.dir.join(name)) {
            Ok(text) => {
                let number = text.trim().parse();
                let bad = |_| io::Error::other(format!("{name} is damaged; see its folder"));
                number.map(Some).map_err(bad)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn write(&self, name: &str, number: u64) -> io::Result<()> {
        let part = self.dir.join(format!("{name}.new"));
        let mut file = File::create(&part)?;
        writeln!(file, "{number}")?;
        file.sync_all()?;
        fs::rename(&part, self.dir.join(name))?;
        File::open(&self.dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariant 34, the part that outlives a process.
    #[test]
    fn an_epoch_is_begun_once() {
        let data = tempfile::tempdir().unwrap();
        let [one, two] = [1, 2].map(|n| VolumeId::new(uuid::Uuid::from_u128(n)));
        let kept = Kept::new(data.path()).unwrap();
        assert!(kept.begin(one, 1).unwrap());
        assert!(!kept.begin(one, 1).unwrap());
        assert!(kept.begin(two, 1).unwrap());
        assert!(kept.begin(one, 5).unwrap());
        let again = Kept::new(data.path()).unwrap();
        for epoch in [1, 4, 5] {
            assert!(!again.begin(one, epoch).unwrap(), "{epoch}");
        }
        assert!(again.begin(one, 6).unwrap());
        fs::write(data.path().join(format!("volumes/{one}.epoch")), "x").unwrap();
        assert!(again.begin(one, 7).is_err(), "what is damaged is not taken for nothing");
    }

    #[test]
    fn a_life_is_greater_than_all_before() {
        let data = tempfile::tempdir().unwrap();
        let first = Kept::new(data.path()).unwrap().first_hello().unwrap();
        let second = Kept::new(data.path()).unwrap().first_hello().unwrap();
        assert!(second >= first + HELLOS);
    }
}
