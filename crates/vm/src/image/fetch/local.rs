//! A file of this host as a source.

use std::fs::File;
use std::fs::Metadata;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::Body;
use super::FetchError;
use super::Opened;
use super::Position;
use super::Source;

/// One read: large enough to keep a disk busy, small enough to stop quickly.
const READ_BYTES: usize = 1 << 20;

pub(in crate::image) struct LocalSource {
    path: PathBuf,
}

impl LocalSource {
    pub(in crate::image) fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    fn open_file(path: &Path) -> Result<(File, Metadata), FetchError> {
        let shown = || path.display().to_string();
        let read = |source| FetchError::Read { path: shown(), source };
        // Non-blocking: opening a FIFO must not wait for its other end.
        let flags = (nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_NOCTTY).bits();
        let file = File::options().read(true).custom_flags(flags).open(path).map_err(read)?;
        let metadata = file.metadata().map_err(read)?;
        if !metadata.is_file() {
            return Err(FetchError::NotAFile { path: shown() });
        }
        Ok((file, metadata))
    }
}

fn identity(metadata: &Metadata) -> String {
    format!(
        "file {}:{} {} bytes {}.{:09}",
        metadata.dev(),
        metadata.ino(),
        metadata.size(),
        metadata.mtime(),
        metadata.mtime_nsec()
    )
}

#[async_trait]
impl Source for LocalSource {
    async fn open(&self, position: &Position) -> Result<Opened, FetchError> {
        let path = self.path.clone();
        let (file, metadata) = blocking(move || Self::open_file(&path)).await?;
        let identity = identity(&metadata);
        let same = position.identity.as_ref() == Some(&identity);
        let offset = if same { position.offset.min(metadata.size()) } else { 0 };
        Ok(Opened {
            offset,
            total: Some(metadata.size()),
            identity: Some(identity.clone()),
            body: Box::new(LocalBody {
                file: Arc::new(file),
                path: self.path.display().to_string(),
                identity,
                offset,
            }),
        })
    }
}

struct LocalBody {
    file: Arc<File>,
    path: String,
    identity: String,
    offset: u64,
}

#[async_trait]
impl Body for LocalBody {
    async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        let (file, offset, path) = (Arc::clone(&self.file), self.offset, self.path.clone());
        let piece = blocking(move || {
            let mut buf = vec![0; READ_BYTES];
            let read = |source| FetchError::Read { path: path.clone(), source };
            let got = file.read_at(&mut buf, offset).map_err(read)?;
            buf.truncate(got);
            let now = if got == 0 { Some(file.metadata().map_err(read)?) } else { None };
            Ok((buf, now))
        });
        let (buf, at_end) = piece.await?;
        if let Some(metadata) = at_end {
            if identity(&metadata) != self.identity || self.offset != metadata.size() {
                return Err(FetchError::Changed { path: self.path.clone() });
            }
            return Ok(None);
        }
        self.offset += buf.len() as u64;
        Ok(Some(buf.into()))
    }
}

/// Runs file work off the runtime's threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FetchError> + Send + 'static,
) -> Result<T, FetchError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(FetchError::Read {
            path: "(reader)".to_owned(),
            source: std::io::Error::other(error),
        }),
    }
}
