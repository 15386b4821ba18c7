//! The directory of images and the pipeline of an import.
//!
//! ```text
//!  waiting -> fetching -> inspecting -> converting -> checking -> publishing -> <id>.qcow2 (0440)
//!                 |            |             |            |
//!                 v            v             v            v
//!        kept, if it can go on            removed
//! ```
//!
//! Files: `<id>.qcow2` is a ready image and never changes, `<id>.sha256` the hash of its source;
//! `<id>.part/` is an import under way or
//! one that stopped (see `stage`). Any other entry is not ours. A crash at any point leaves one of
//! the two; the next import with the same id goes on or begins again, and [`ImageStore::sweep`]
//! removes imports that nobody asks for any more. `kept-*` is what failed imports have fetched (see
//! `kept`).

use std::collections::HashSet;
use std::fs;
use std::fs::File;
use std::fs::Permissions;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use model::ImageId;
use tokio::sync::Semaphore;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::cancel::Cancel;
use super::cancel::CancelMode;
use super::error::ImageError;
use super::fetch::FetchError;
use super::fetch::HttpLimits;
use super::fetch::HttpSource;
use super::fetch::LocalSource;
use super::fetch::Source;
use super::format::SourceFormat;
use super::pipeline;
use super::qemu_img::QemuImg;
use super::qemu_img::SandboxUser;
use super::stage;
use super::stage::wrap;
use crate::wait::on_disk;

/// Imports that run at once; more wait. Each keeps a disk and a core busy.
const IMPORTS_AT_ONCE_MAX: usize = 2;

/// How an image store works.
#[derive(Debug, Clone)]
pub struct ImageStoreConfig {
    /// Directory of the images; made if it is missing.
    pub dir: PathBuf,
    /// The program; by default `/usr/bin/qemu-img`.
    pub qemu_img: PathBuf,
    /// User for qemu-img where the daemon is root; by default `nobody`.
    pub sandbox_user: Option<SandboxUser>,
    /// Limits of the HTTP client.
    pub http: HttpLimits,
    /// Fetched bytes between two durable points; what a power loss may cost.
    pub checkpoint_bytes: u64,
    /// Attempts in a row that bring no byte before a broken transfer is given up.
    pub fetch_attempts_max: u32,
    /// First pause between two attempts; doubled each time.
    pub fetch_pause: Duration,
    /// How long qemu-img may stand still.
    pub stall: Duration,
}

impl ImageStoreConfig {
    /// The usual limits for images in `dir`.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        // `nobody` and `nogroup` of Debian.
        let nobody = SandboxUser { uid: 65534, gid: 65534 };
        Self {
            dir: dir.into(),
            qemu_img: PathBuf::from("/usr/bin/qemu-img"),
            sandbox_user: Some(nobody),
            http: HttpLimits::default(),
            checkpoint_bytes: 64 << 20,
            fetch_attempts_max: 4,
            fetch_pause: Duration::from_millis(500),
            stall: Duration::from_secs(600),
        }
    }
}

/// What to import.
#[derive(Debug, Clone)]
pub struct ImportRequest {
    /// Names the image's file.
    pub id: ImageId,
    /// Where it comes from.
    pub source: ImportSource,
    /// What it is.
    pub format: SourceFormat,
    /// SHA-256 of the source in hexadecimal, if the caller knows it.
    pub sha256: Option<String>,
}

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImportSource {
    /// A file of this host.
    File(PathBuf),
    /// An http or https address.
    Url(String),
}

/// How far an import is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImportProgress {
    /// What it does now.
    pub phase: ImportPhase,
    /// Bytes done in this phase.
    pub done: u64,
    /// Bytes to do in this phase, if known.
    pub total: Option<u64>,
}

/// The steps of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ImportPhase {
    /// Other imports run.
    Waiting,
    /// Bytes come from the source.
    Fetching,
    /// Hash and header are compared with what was stated.
    Inspecting,
    /// qemu-img writes the qcow2 image.
    Converting,
    /// The result is checked and made durable.
    Checking,
}

/// A ready image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Its file.
    pub path: PathBuf,
    /// Size of the disk that a guest sees, in bytes.
    pub virtual_size: u64,
    /// What its file takes on the host's disk, in bytes.
    pub file_bytes: u64,
    /// SHA-256 of the source, in hexadecimal.
    pub sha256: String,
}

/// What a [`ImageStore::sweep`] removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// Staging directories of unknown ids.
    pub removed: Vec<PathBuf>,
    /// Images of unknown ids, which stay.
    pub unknown: Vec<PathBuf>,
    /// Entries that could not be removed, with the reason.
    pub failed: Vec<(PathBuf, String)>,
}

/// The images of one node. Cheap to clone.
#[derive(Clone)]
pub struct ImageStore {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) config: ImageStoreConfig,
    pub(super) qemu_img: QemuImg,
    slots: Arc<Semaphore>,
    /// Ids that are being imported now: plain data, locked for an instant.
    busy: Mutex<HashSet<ImageId>>,
}

impl ImageStore {
    /// Opens the directory of images, making it if needed.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open(config: ImageStoreConfig) -> Result<Self, ImageError> {
        let dir = &config.dir;
        on_disk(|| fs::create_dir_all(dir)).map_err(wrap("making the directory", dir))?;
        let qemu_img = QemuImg {
            program: config.qemu_img.clone(),
            user: config.sandbox_user,
            stall: config.stall,
        };
        let slots = Arc::new(Semaphore::new(IMPORTS_AT_ONCE_MAX));
        let busy = Mutex::default();
        Ok(Self { shared: Arc::new(Shared { config, qemu_img, slots, busy }) })
    }

    /// Where the file of a ready image is.
    #[must_use]
    pub fn path(&self, id: ImageId) -> PathBuf {
        self.shared.image_path(id)
    }

    /// What the file of a ready image is; `None` if there is none.
    ///
    /// # Errors
    /// The file is there and is not sound.
    pub async fn look(&self, id: ImageId) -> Result<Option<Imported>, ImageError> {
        if !on_disk(|| self.path(id).exists()) {
            return Ok(None);
        }
        pipeline::finished(&self.shared, id, SourceFormat::Qcow2).await.map(Some)
    }

    /// Starts an import, or goes on with one that stopped. If the image is there already, the job
    /// ends at once with what it is.
    ///
    /// Must be called within a tokio runtime.
    #[must_use]
    pub fn import(&self, request: ImportRequest) -> ImportJob {
        let (cancel_sender, cancel) = Cancel::channel();
        let start = ImportProgress { phase: ImportPhase::Waiting, done: 0, total: None };
        let (progress_sender, progress) = watch::channel(start);
        let shared = Arc::clone(&self.shared);
        let task = tokio::spawn(run(shared, request, cancel, progress_sender));
        ImportJob { progress, cancel: cancel_sender, task }
    }

    /// Removes a ready image and whatever is left of its import. Fine if there is nothing.
    ///
    /// # Errors
    /// `Busy` while it is being imported; host errors.
    pub fn remove(&self, id: ImageId) -> Result<(), ImageError> {
        on_disk(|| {
            let _claim = Claim::take(&self.shared, id)?;
            stage::remove(&self.shared.stage_dir(id))?;
            for path in [self.shared.image_path(id), self.shared.hash_path(id)] {
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(wrap("removing", &path)(error));
                    }
                    _ => {}
                }
            }
            sync_dir(&self.shared.config.dir)
        })
    }

    /// Keeps what an import has fetched that failed in a way that may pass, for the next import of
    /// the same source. False if there is nothing; then, as after any other failure, it is to be
    /// removed.
    ///
    /// # Errors
    /// `Busy` while it is being imported; host errors.
    pub fn keep(&self, request: &ImportRequest) -> Result<bool, ImageError> {
        let _claim = Claim::take(&self.shared, request.id)?;
        on_disk(|| self.shared.keep(request))
    }

    /// Removes staging directories whose id is not in `known`, except those that are being imported
    /// now, and tells which images are unknown. Those stay: disks of machines may be thin copies
    /// of them, and if the database was lost they are all that is left. Entries that are not ours
    /// are left alone.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn sweep(&self, known: &HashSet<ImageId>) -> Result<Swept, ImageError> {
        on_disk(|| {
            let dir = &self.shared.config.dir;
            let mut swept = Swept::default();
            for entry in fs::read_dir(dir).map_err(wrap("reading", dir))? {
                let path = entry.map_err(wrap("reading", dir))?.path();
                let Some(id) = owner_of(&path) else { continue };
                if known.contains(&id) {
                    continue;
                }
                if path.extension().is_some_and(|it| it != "part") {
                    if path.extension().is_some_and(|it| it == "qcow2") {
                        swept.unknown.push(path);
                    }
                    continue;
                }
                match self.remove(id) {
                    Ok(()) => swept.removed.push(path),
                    Err(ImageError::Busy) => {}
                    Err(error) => swept.failed.push((path, error.to_string())),
                }
            }
            self.shared.prune_kept();
            Ok(swept)
        })
    }
}

impl Shared {
    pub(super) fn image_path(&self, id: ImageId) -> PathBuf {
        self.config.dir.join(format!("{id}.qcow2"))
    }

    /// The SHA-256 of the source that the image was made from.
    pub(super) fn hash_path(&self, id: ImageId) -> PathBuf {
        self.config.dir.join(format!("{id}.sha256"))
    }

    pub(super) fn stage_dir(&self, id: ImageId) -> PathBuf {
        self.config.dir.join(format!("{id}.part"))
    }

    fn source(&self, source: &ImportSource) -> Result<Box<dyn Source>, FetchError> {
        Ok(match source {
            ImportSource::File(path) => Box::new(LocalSource::new(path)),
            ImportSource::Url(url) => Box::new(HttpSource::new(url, self.config.http.clone())?),
        })
    }
}

fn owner_of(path: &Path) -> Option<ImageId> {
    let name = path.file_name()?.to_str()?;
    let (id, suffix) = name.split_once('.')?;
    ["qcow2", "sha256", "part"].contains(&suffix).then(|| id.parse().ok())?
}

/// An import under way. Dropping it stops the import and keeps what was fetched.
pub struct ImportJob {
    progress: watch::Receiver<ImportProgress>,
    cancel: watch::Sender<Option<CancelMode>>,
    task: JoinHandle<Result<Imported, ImageError>>,
}

impl ImportJob {
    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<ImportProgress> {
        self.progress.clone()
    }

    /// Asks it to stop; [`ImportJob::wait`] then returns soon. Too late is no error.
    pub fn cancel(&self, mode: CancelMode) {
        self.cancel.send_replace(Some(mode));
    }

    /// Waits for its end. May be dropped and called again until it has returned.
    ///
    /// # Errors
    /// See [`ImageError`]; [`ImageError::is_resumable`] tells whether what was fetched is kept.
    pub async fn wait(&mut self) -> Result<Imported, ImageError> {
        match (&mut self.task).await {
            Ok(done) => done,
            Err(error) => Err(ImageError::Io {
                action: "running the import in",
                path: PathBuf::from("(task)"),
                source: std::io::Error::other(error),
            }),
        }
    }
}

impl Drop for ImportJob {
    fn drop(&mut self) {
        self.cancel.send_if_modified(|mode| {
            let unset = mode.is_none();
            mode.get_or_insert(CancelMode::Keep);
            unset
        });
    }
}

/// The right to work on one image.
struct Claim<'a> {
    shared: &'a Shared,
    id: ImageId,
}

impl<'a> Claim<'a> {
    fn take(shared: &'a Shared, id: ImageId) -> Result<Self, ImageError> {
        let mut busy = shared.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if busy.insert(id) { Ok(Self { shared, id }) } else { Err(ImageError::Busy) }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut busy = self.shared.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.remove(&self.id);
    }
}

async fn run(
    shared: Arc<Shared>,
    request: ImportRequest,
    mut cancel: Cancel,
    progress: watch::Sender<ImportProgress>,
) -> Result<Imported, ImageError> {
    let _claim = Claim::take(&shared, request.id)?;
    let slot = cancel.guard(Arc::clone(&shared.slots).acquire_owned()).await;
    let done = match slot {
        Ok(_slot) => {
            let source = shared.source(&request.source)?;
            pipeline::run(&shared, &request, source, &mut cancel, &progress).await
        }
        Err(cancelled) => Err(cancelled),
    };
    let Err(error) = done else { return done };
    if !error.is_resumable() {
        let dir = shared.stage_dir(request.id);
        let removed = tokio::task::spawn_blocking(move || stage::remove(&dir)).await;
        if let Ok(Err(leftover)) = removed {
            tracing::warn!(id = %request.id, error = %leftover, "staging directory was not removed");
        }
    }
    Err(error)
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), ImageError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(wrap("syncing", dir))
}

/// Opens a file that a child made: a regular one, by its own name, with no other name.
pub(super) fn open_made(path: &Path) -> Result<File, ImageError> {
    use std::os::unix::fs::MetadataExt;
    let file = File::options()
        .read(true)
        .custom_flags((nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK).bits())
        .open(path)
        .map_err(wrap("opening", path))?;
    let metadata = file.metadata().map_err(wrap("looking at", path))?;
    if metadata.is_file() && metadata.nlink() == 1 {
        return Ok(file);
    }
    Err(wrap("opening", path)(std::io::Error::other("it is not a plain file")))
}

/// Makes a finished file ours, read-only or not, and durable.
pub(super) fn seal(file: &File, path: &Path, mode: u32) -> Result<(), ImageError> {
    if nix::unistd::Uid::effective().is_root() {
        std::os::unix::fs::fchown(file, Some(0), Some(0)).map_err(wrap("taking over", path))?;
    }
    file.set_permissions(Permissions::from_mode(mode))
        .map_err(wrap("setting the mode of", path))?;
    file.sync_all().map_err(wrap("syncing", path))
}
