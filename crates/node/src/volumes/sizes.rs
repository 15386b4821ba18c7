//! What disks on shared volumes take up: looked at on the side, because a look may wait for the volume.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

/// What the last look at each disk has found.
#[derive(Clone, Default)]
pub(super) struct Sizes(Arc<Mutex<HashMap<PathBuf, Seen>>>);

#[derive(Default)]
struct Seen {
    bytes: Option<u64>,
    looking: bool,
}

impl Sizes {
    /// Bytes that a file took up when it was last looked at, none before that; and has it looked at again.
    pub(super) fn last(&self, path: PathBuf) -> Option<u64> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = all.entry(path.clone()).or_default();
        // One at a time: those that wait must not become more with each question.
        if !std::mem::replace(&mut seen.looking, true) {
            let sizes = self.clone();
            tokio::task::spawn_blocking(move || sizes.look(path));
        }
        seen.bytes
    }

    fn look(&self, path: PathBuf) {
        let found = vm::image::allocated_bytes(&path);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match found {
            Ok(bytes) => drop(all.insert(path, Seen { bytes: Some(bytes), looking: false })),
            // It is gone, or cannot be looked at: nothing is known of it.
            Err(_) => drop(all.remove(&path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_file_is_known_from_the_last_look_and_forgotten_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let (path, sizes) = (dir.path().join("disk"), Sizes::default());
        std::fs::write(&path, [1; 8192]).unwrap();
        let until = async |wanted: Option<u64>| {
            let found = async {
                while sizes.last(path.clone()) != wanted {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(30), found).await.unwrap();
        };
        assert_eq!(sizes.last(path.clone()), None);
        until(Some(8192)).await;
        std::fs::remove_file(&path).unwrap();
        until(None).await;
    }
}
