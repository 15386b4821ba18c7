//! The staging directory of one import, and the only writer of its files.
//!
//! ```text
//! <images>/<id>.part/          0711
//!     source                   the bytes as fetched (sparse); read-only once complete
//!     state.json               what is in it: where from, identity, how much is durable
//!     out/                     where qemu-img may write, and nowhere else
//! ```
//!
//! `state.json` is replaced (write, fsync, rename) only after the bytes it speaks of are on disk.
//! So after a crash, or even a power loss, the first `durable` bytes of `source` are true and the
//! rest is cut off. Their hash is computed again from the file: a state of a hash is not kept.

use std::fs;
use std::fs::File;
use std::fs::Permissions;
use std::io;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;
use sha2::Digest;
use sha2::Sha256;

use super::cancel::Cancel;
use super::error::ImageError;
use super::fetch::Position;

/// Version of `state.json`. 1: first.
const STATE_VERSION: u32 = 1;
/// `state.json` is a few hundred bytes; anything larger is not ours.
const STATE_BYTES_MAX: u64 = 16 << 10;
/// Runs of zeros of this length are not written: a hole. The block size of common file systems.
const HOLE_BYTES: usize = 4096;
/// One read while hashing what is there already.
const HASH_READ_BYTES: usize = 1 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    version: u32,
    /// Path or address, and format: what the caller asked for.
    request: String,
    /// Identity of the source, if it has one.
    identity: Option<String>,
    /// Bytes of `source` that are durable.
    durable: u64,
    /// SHA-256 of the whole source, once it is there.
    sha256: Option<String>,
}

/// The staging directory of one import.
pub(super) struct Stage {
    dir: PathBuf,
    file: File,
    hash: Sha256,
    /// Bytes taken so far, holes included.
    offset: u64,
    checkpoint_bytes: u64,
    state: State,
}

impl Stage {
    /// Opens or makes the staging directory and hashes what it has already.
    ///
    /// What is there counts only if it was made for the same `request`.
    pub(super) fn open(
        dir: &Path,
        request: &str,
        checkpoint_bytes: u64,
        cancel: &Cancel,
    ) -> Result<Self, ImageError> {
        let found = read_state(dir).filter(|state| state.request == request);
        if found.is_none() {
            remove(dir)?;
        }
        fs::create_dir_all(dir).map_err(wrap("making the directory", dir))?;
        fs::set_permissions(dir, Permissions::from_mode(0o711))
            .map_err(wrap("setting the mode of", dir))?;
        let path = dir.join("source");
        let complete = found.as_ref().is_some_and(|state| state.sha256.is_some());
        let file = File::options()
            .read(true)
            .write(!complete)
            .create(!complete)
            .truncate(false)
            .open(&path)
            .map_err(wrap("opening", &path))?;
        let state = found.unwrap_or_else(|| State {
            version: STATE_VERSION,
            request: request.to_owned(),
            identity: None,
            durable: 0,
            sha256: None,
        });
        let mut stage = Self {
            dir: dir.to_owned(),
            file,
            hash: Sha256::new(),
            offset: 0,
            checkpoint_bytes,
            state,
        };
        let len = stage.file.metadata().map_err(wrap("looking at", &path))?.len();
        if len < stage.state.durable {
            // Not ours any more: somebody cut it.
            stage.restart()?;
        } else if stage.sha256().is_none() {
            stage.truncate(stage.state.durable)?;
            stage.hash_prefix(cancel)?;
        } else {
            stage.offset = stage.state.durable;
        }
        Ok(stage)
    }

    /// Where the source shall go on.
    pub(super) fn position(&self) -> Position {
        Position { offset: self.offset, identity: self.state.identity.clone() }
    }

    /// The hash of the source, if it is there as a whole.
    pub(super) fn sha256(&self) -> Option<&str> {
        self.state.sha256.as_deref()
    }

    /// The fetched bytes.
    pub(super) fn source(&self) -> &File {
        &self.file
    }

    /// Bytes taken so far.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Forgets what was fetched: the source is another one, or cannot go on.
    pub(super) fn restart(&mut self) -> Result<(), ImageError> {
        self.state.identity = None;
        self.state.durable = 0;
        self.state.sha256 = None;
        self.save()?;
        self.truncate(0)?;
        self.hash = Sha256::new();
        self.offset = 0;
        Ok(())
    }

    /// Notes which source the next bytes are from.
    pub(super) fn set_identity(&mut self, identity: Option<String>) {
        self.state.identity = identity;
    }

    /// Takes the next bytes of the source.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        self.hash.update(bytes);
        let mut at = self.offset;
        for block in bytes.chunks(HOLE_BYTES) {
            if block.iter().any(|byte| *byte != 0) {
                self.file.write_all_at(block, at).map_err(self.wrap("writing"))?;
            }
            at += block.len() as u64;
        }
        self.offset = at;
        if self.offset - self.state.durable >= self.checkpoint_bytes {
            self.checkpoint()?;
        }
        Ok(())
    }

    /// Makes everything taken so far durable.
    pub(super) fn checkpoint(&mut self) -> Result<(), ImageError> {
        self.truncate(self.offset)?;
        self.file.sync_data().map_err(self.wrap("syncing"))?;
        self.state.durable = self.offset;
        self.save()
    }

    /// Ends the source: durable, read-only, with its hash.
    pub(super) fn complete(&mut self) -> Result<String, ImageError> {
        let sha256 = hex::encode(std::mem::take(&mut self.hash).finalize());
        self.file
            .set_permissions(Permissions::from_mode(0o444))
            .map_err(self.wrap("setting the mode of"))?;
        self.truncate(self.offset)?;
        self.file.sync_all().map_err(self.wrap("syncing"))?;
        self.state.durable = self.offset;
        self.state.sha256 = Some(sha256.clone());
        self.save()?;
        Ok(sha256)
    }

    fn hash_prefix(&mut self, cancel: &Cancel) -> Result<(), ImageError> {
        let path = self.dir.join("source");
        let mut buf = vec![0; HASH_READ_BYTES];
        let mut left = self.state.durable;
        let mut from = File::open(&path).map_err(wrap("opening", &path))?;
        while left > 0 {
            cancel.check()?;
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
            from.read_exact(&mut buf[..want]).map_err(wrap("reading", &path))?;
            self.hash.update(&buf[..want]);
            left -= want as u64;
        }
        self.offset = self.state.durable;
        Ok(())
    }

    fn truncate(&self, len: u64) -> Result<(), ImageError> {
        self.file.set_len(len).map_err(self.wrap("setting the length of"))
    }

    fn save(&self) -> Result<(), ImageError> {
        let path = self.dir.join("state.json");
        let fresh = self.dir.join("state.json.new");
        let write = || -> io::Result<()> {
            let mut file = File::create(&fresh)?;
            file.write_all(&serde_json::to_vec(&self.state)?)?;
            file.sync_all()?;
            fs::rename(&fresh, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(wrap("writing", &path))
    }

    fn wrap(&self, action: &'static str) -> impl FnOnce(io::Error) -> ImageError + use<> {
        wrap(action, &self.dir.join("source"))
    }
}

/// Whether there is something in a staging directory with which an import can go on.
pub(super) fn has_bytes(dir: &Path) -> bool {
    read_state(dir).is_some_and(|state| state.durable > 0 && state.identity.is_some())
}

/// Removes a staging directory, if it is there.
pub(super) fn remove(dir: &Path) -> Result<(), ImageError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(wrap("removing", dir)(error)),
        _ => Ok(()),
    }
}

fn read_state(dir: &Path) -> Option<State> {
    let mut bytes = Vec::new();
    let file = File::open(dir.join("state.json")).ok()?;
    file.take(STATE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    let state: State = serde_json::from_slice(&bytes).ok()?;
    (state.version == STATE_VERSION).then_some(state)
}

pub(super) fn wrap(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> ImageError + use<> {
    let path = path.to_owned();
    move |source| ImageError::io(action, &path, source)
}
