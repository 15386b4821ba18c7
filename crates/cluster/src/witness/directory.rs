//! A record in a directory: of a share that all nodes mount, or of a small machine that serves it.
//!
//! ```text
//!   NAME.0000000000000041     versions, each written once; the highest number is the record
//!   NAME.0000000000000042
//!   .NAME.<nonce>             on its way: written, synced, then linked to the next number
//! ```
//!
//! To replace version 41, a writer links its file as 42. `link` never replaces a name, and on every
//! file system, NFS and SMB among them, the server decides who was first. The directory is synced
//! before anybody is told. No lock is ever held, so none can be left behind.
//!
//! Old versions are removed when there are [`KEPT`] later ones. A writer whose view is older than
//! that could find its next number free again: it looks once more after linking, and has lost when
//! there is a higher number. Readers never look at it: a higher number is there.
//!
//! A network file system may show a directory as it was some seconds ago. That delays a reader, and
//! makes a writer fail; it makes nobody succeed. So reads are not called fresh
//! ([`WitnessStore::reads_are_fresh`]).

use std::fs::File;
use std::io::ErrorKind;
use std::io::Read;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::record::RECORD_BYTES_MAX;
use super::store::StoreError;
use super::store::Tag;
use super::store::WitnessStore;
use super::store::Written;

/// Versions that are kept behind the newest: enough for any view of the directory that is late.
const KEPT: u64 = 64;

/// Operations that may hang on this directory at once. A share whose server is gone blocks whoever
/// touches it, without end; the next ones are told so after [`ROOM_WAIT`].
const HANGING_MAX: usize = 4;
const ROOM_WAIT: Duration = Duration::from_secs(3);

/// How often a version that was removed under the reader is looked for again.
const LOOKS_MAX: usize = 16;

/// A record in a directory.
#[derive(Debug, Clone)]
pub struct Directory {
    dir: PathBuf,
    name: String,
    room: Arc<Semaphore>,
}

fn failed(what: &str, path: &Path, error: &std::io::Error) -> StoreError {
    StoreError::Unavailable(format!("{what} {}: {error}", path.display()))
}

impl Directory {
    /// The record `name` (letters, digits, dashes) in a directory that exists.
    pub fn new(dir: impl Into<PathBuf>, name: &str) -> Self {
        Self { dir: dir.into(), name: name.to_owned(), room: Arc::new(Semaphore::new(HANGING_MAX)) }
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{}.{number:016}", self.name))
    }

    /// The numbers there are, in no order.
    fn numbers(&self) -> Result<Vec<u64>, StoreError> {
        let entries =
            std::fs::read_dir(&self.dir).map_err(|error| failed("read", &self.dir, &error))?;
        let mut numbers = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| failed("read", &self.dir, &error))?;
            let file = entry.file_name();
            let number = file
                .to_str()
                .and_then(|file| file.strip_prefix(self.name.as_str())?.strip_prefix('.'))
                .filter(|digits| digits.len() == 16)
                .and_then(|digits| digits.parse::<u64>().ok());
            numbers.extend(number);
        }
        Ok(numbers)
    }

    fn read_now(&self) -> Result<Option<(Vec<u8>, Tag)>, StoreError> {
        for _ in 0..LOOKS_MAX {
            let Some(mut number) = self.numbers()?.into_iter().max() else { return Ok(None) };
            // The list may be of a moment ago; a name that is asked for is not.
            while self.path(number + 1).exists() {
                number += 1;
            }
            let path = self.path(number);
            let mut bytes = Vec::new();
            let read = File::open(&path)
                .and_then(|file| file.take(RECORD_BYTES_MAX as u64 + 1).read_to_end(&mut bytes));
            match read {
                Ok(_) => return Ok(Some((bytes, Tag(number.to_string())))),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(failed("read", &path, &error)),
            }
        }
        Err(StoreError::Unavailable(format!("{} changes too fast", self.dir.display())))
    }

    fn write_now(&self, expected: Option<&Tag>, bytes: &[u8]) -> Result<Written, StoreError> {
        let expected = match expected {
            None => 0,
            Some(tag) => match tag.0.parse::<u64>() {
                Ok(number) if number > 0 && number < u64::MAX => number,
                _ => return Ok(Written::No),
            },
        };
        let newest = self.numbers()?.into_iter().max().unwrap_or(0);
        if newest != expected {
            // The list is never ahead of what is there.
            if newest > expected || !self.path(expected).exists() {
                return Ok(Written::No);
            }
        }
        self.put(expected + 1, bytes)
    }

    /// Writes that version, if nobody else has.
    pub(super) fn put(&self, number: u64, bytes: &[u8]) -> Result<Written, StoreError> {
        let next = self.path(number);
        let draft = self.dir.join(format!(".{}.{}", self.name, Uuid::new_v4()));
        let written = File::create_new(&draft).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
        let linked = written.map_err(|error| failed("write", &draft, &error)).and_then(|()| {
            match std::fs::hard_link(&draft, &next) {
                Ok(()) => Ok(true),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
                Err(error) => Err(StoreError::Unknown(format!("link {}: {error}", next.display()))),
            }
        });
        // It has its name, or is of no use; a draft left behind harms nobody.
        let _ = std::fs::remove_file(&draft);
        if !linked? {
            return Ok(Written::No);
        }
        let unknown = |error: &dyn std::fmt::Display| {
            StoreError::Unknown(format!("sync {}: {error}", self.dir.display()))
        };
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(|error| unknown(&error))?;
        let numbers = self.numbers().map_err(|error| unknown(&error))?;
        if numbers.iter().any(|other| *other > number) {
            return Err(StoreError::Unknown("another one has written meanwhile".to_owned()));
        }
        for old in numbers.into_iter().filter(|old| old.saturating_add(KEPT) < number) {
            // Somebody else may have been quicker.
            let _ = std::fs::remove_file(self.path(old));
        }
        Ok(Written::Yes(Tag(number.to_string())))
    }

    fn remove_now(&self) -> Result<(), StoreError> {
        let mut numbers = self.numbers()?;
        // The newest last: what is left by an interruption is still the record.
        numbers.sort_unstable();
        for number in numbers {
            let path = self.path(number);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(failed("remove", &path, &error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Runs what may block, if not too much is blocked already.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let room = tokio::time::timeout(ROOM_WAIT, self.room.clone().acquire_owned()).await;
        let Ok(Ok(permit)) = room else {
            let hangs = format!("{} does not answer", self.dir.display());
            return Err(StoreError::Unavailable(hangs));
        };
        let own = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let done = work(own);
            drop(permit);
            done
        });
        done.await.unwrap_or_else(|error| Err(StoreError::Unknown(error.to_string())))
    }
}

#[async_trait]
impl WitnessStore for Directory {
    async fn read(&self) -> Result<Option<(Vec<u8>, Tag)>, StoreError> {
        self.run(|own| own.read_now()).await
    }

    async fn write_if(
        &self,
        expected: Option<&Tag>,
        bytes: Vec<u8>,
    ) -> Result<Written, StoreError> {
        let expected = expected.cloned();
        self.run(move |own| own.write_now(expected.as_ref(), &bytes)).await
    }

    async fn remove(&self) -> Result<(), StoreError> {
        self.run(|own| own.remove_now()).await
    }

    fn beside(&self, name: &str) -> Arc<dyn WitnessStore> {
        Arc::new(Self { dir: self.dir.clone(), name: name.to_owned(), room: self.room.clone() })
    }

    fn reads_are_fresh(&self) -> bool {
        false
    }

    fn place(&self) -> String {
        format!("directory {}", self.dir.display())
    }
}
