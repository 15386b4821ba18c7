//! What was fetched by imports that failed on the way, for the next one of the same source.
//!
//! ```text
//! <images>/<id>.part/  -- the import fails, and may go on --> <images>/kept-<source>/
//!        ^                                                          |
//!        +-- the next import of the same source and format ---------+
//! ```
//!
//! The name is made of what was asked for; whether the source is still the same is seen by its
//! identity and size when the fetch goes on (see `stage`, `fetch`). A few are kept, for some days.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::SystemTime;

use sha2::Digest;
use sha2::Sha256;

use super::error::ImageError;
use super::stage;
use super::stage::wrap;
use super::store::ImportRequest;
use super::store::ImportSource;
use super::store::Shared;
use super::store::sync_dir;

/// Beginning of the directories' names.
const PREFIX: &str = "kept-";

/// Most of them: each may be as large as an image, and who failed four times looks at the source.
const KEPT_MAX: usize = 4;

/// How long one is kept: a weekend and a bit.
const KEPT_FOR: Duration = Duration::from_secs(4 * 24 * 3600);

/// What was asked for, in one line: two requests with the same line may share what was fetched.
pub(super) fn asked(request: &ImportRequest) -> String {
    match &request.source {
        ImportSource::File(path) => format!("{} file {}", request.format, path.display()),
        ImportSource::Url(url) => format!("{} url {url}", request.format),
    }
}

impl Shared {
    fn kept_dir(&self, request: &ImportRequest) -> PathBuf {
        let digest = hex::encode(Sha256::digest(asked(request)));
        self.config.dir.join(format!("{PREFIX}{}", &digest[..32]))
    }

    /// Keeps the staging directory of an import that failed. False where there is nothing in it.
    pub(super) fn keep(&self, request: &ImportRequest) -> Result<bool, ImageError> {
        let (part, kept) = (self.stage_dir(request.id), self.kept_dir(request));
        if !stage::has_bytes(&part) {
            return Ok(false);
        }
        stage::remove(&kept)?;
        fs::rename(&part, &kept).map_err(wrap("moving", &part))?;
        self.prune_kept();
        sync_dir(&self.config.dir)?;
        Ok(true)
    }

    /// Gives an import what an earlier one of the same source has fetched.
    pub(super) fn take_kept(&self, request: &ImportRequest) -> Result<(), ImageError> {
        let (part, kept) = (self.stage_dir(request.id), self.kept_dir(request));
        if part.exists() || !kept.exists() {
            return Ok(());
        }
        fs::rename(&kept, &part).map_err(wrap("moving", &kept))?;
        sync_dir(&self.config.dir)
    }

    /// Removes what is old or too many.
    pub(super) fn prune_kept(&self) {
        let mut kept: Vec<(SystemTime, PathBuf)> = entries(&self.config.dir);
        kept.sort();
        let too_many = kept.len().saturating_sub(KEPT_MAX);
        for (at, (time, path)) in kept.into_iter().enumerate() {
            let old = time.elapsed().is_ok_and(|age| age > KEPT_FOR);
            if (old || at < too_many)
                && let Err(error) = stage::remove(&path)
            {
                tracing::warn!(path = %path.display(), %error, "half an image is left over");
            }
        }
    }
}

fn entries(dir: &Path) -> Vec<(SystemTime, PathBuf)> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let ours = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(PREFIX);
    let dated = |entry: fs::DirEntry| {
        let state = fs::metadata(entry.path().join("state.json"));
        // Without a state it is of no use: the oldest of all.
        let time = state.and_then(|it| it.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        (time, entry.path())
    };
    entries.flatten().filter(ours).map(dated).collect()
}
