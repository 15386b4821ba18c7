//! Where the files of VMs and images lie: this node's data directory, or a shared volume.
//!
//! ```text
//!   <data directory>/vms/<vm id>/, images/          local
//!   <share>/.muster-volume                          the volume's id: tells it from an empty mount point
//!   <share>/.muster-forced-<n>                      see `forced`
//!   <share>/vms/<vm id>/, images/                   on every node that mounts it
//! ```

mod forced;
mod sizes;

use std::collections::HashMap;
use std::fs;
use std::fs::File;
use std::io;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use model::ForcedRecord;
use model::ImageId;
use model::ImagePlace;
use model::NodeId;
use model::VmRecord;
use model::VolumeId;
use model::VolumeRecord;
use vm::image::ImageError;
use vm::image::ImageStore;
use vm::image::ImageStoreConfig;
use vm::image::SandboxUser;

use crate::truth::Truth;

pub(crate) use forced::Standing;

/// File that says which volume a directory is.
const STAMP: &str = ".muster-volume";

/// Longest stamp that is read: an id and a line end.
const STAMP_BYTES_MAX: u64 = 128;

/// `nobody` and `nogroup` of Debian: disk tools need no user of their own.
pub(crate) const DISK_TOOL_USER: SandboxUser = SandboxUser { uid: 65534, gid: 65534 };

/// Why a directory cannot be used as a volume. Each ends in a next step.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    #[error("{path} cannot be used on this node: {source}; mount it here")]
    Unreachable { path: String, source: io::Error },
    #[error("{0} is not marked as a volume; is it mounted on this node?")]
    NoStamp(String),
    #[error("{0} is not mounted on this node, or not yet; see why: muster volume show {1}")]
    NotShown(String, String),
    #[error("{path} is volume {found}, not {wanted}; mount the right one there")]
    Other { path: String, found: String, wanted: VolumeId },
    #[error(
        "{0}: the quorum was forced, and this node has not heard all of it yet; it comes by itself"
    )]
    NotYet(String),
    #[error(
        "{0}: the quorum was forced without this node, which may not use the volume any more; see: \
         muster cluster status"
    )]
    GivenUp(String),
    #[error("volume {0} is not known; list them: muster volume list")]
    Unknown(VolumeId),
    #[error(transparent)]
    Images(#[from] ImageError),
}

/// The places of files on this node.
pub(crate) struct Volumes {
    me: NodeId,
    data_dir: PathBuf,
    truth: Arc<dyn Truth>,
    local_images: ImageStore,
    images: Mutex<HashMap<VolumeId, ImageStore>>,
    sizes: sizes::Sizes,
}

impl Volumes {
    /// # Errors
    /// The local image directory cannot be used.
    pub(crate) fn new(
        me: NodeId,
        data_dir: PathBuf,
        truth: Arc<dyn Truth>,
    ) -> Result<Self, VolumeError> {
        let local_images = open_images(&data_dir)?;
        Ok(Self {
            me,
            data_dir,
            truth,
            local_images,
            images: Mutex::default(),
            sizes: Default::default(),
        })
    }

    fn record(&self, volume: VolumeId) -> Result<Arc<VolumeRecord>, VolumeError> {
        let state = self.truth.state();
        state.volumes.get(&volume).cloned().ok_or(VolumeError::Unknown(volume))
    }

    /// The directory in which a VM's own lies. Of a volume that is not known it is a path that
    /// nothing ever makes; [`Volumes::ready`] refuses it.
    pub(crate) fn vms_dir(&self, vm: &VmRecord) -> PathBuf {
        let top = match vm.volume.map(|volume| self.record(volume)) {
            None => self.data_dir.clone(),
            Some(Ok(record)) => PathBuf::from(record.kind.path()),
            Some(Err(_)) => PathBuf::from("/nonexistent"),
        };
        top.join("vms")
    }

    /// Bytes that a file of a VM takes up; of one on a LUN what the last look has found, if there was one.
    pub(crate) fn allocated(&self, vm: &VmRecord, path: PathBuf) -> Option<u64> {
        let record = vm.volume.map(|volume| self.record(volume));
        match record {
            Some(Ok(record)) if record.coordination.is_some() => self.sizes.last(path),
            _ => vm::image::allocated_bytes(&path).ok(),
        }
    }

    /// Whether a VM's volume is there and is the right one.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub(crate) fn ready(&self, vm: &VmRecord) -> Result<(), VolumeError> {
        match vm.volume {
            None => Ok(()),
            Some(volume) => {
                let (record, forced) = (self.record(volume)?, self.truth.state().forced.clone());
                check(&record)?;
                match standing(&record, forced.as_deref(), self.me)? {
                    Standing::Good => Ok(()),
                    Standing::Untold | Standing::Behind => {
                        Err(VolumeError::NotYet(record.kind.path().to_owned()))
                    }
                    Standing::GivenUp => Err(VolumeError::GivenUp(record.kind.path().to_owned())),
                }
            }
        }
    }

    /// The image store of a place.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub(crate) fn images(&self, place: ImagePlace) -> Result<ImageStore, VolumeError> {
        let ImagePlace::Volume { volume, .. } = place else {
            return Ok(self.local_images.clone());
        };
        let record = self.record(volume)?;
        check(&record)?;
        let stores = || self.images.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = stores().get(&volume) {
            return Ok(store.clone());
        }
        // Not under the lock: it may wait for the volume.
        let store = open_images(Path::new(record.kind.path()))?;
        stores().insert(volume, store.clone());
        Ok(store)
    }

    /// The images of this node alone.
    pub(crate) const fn local_images(&self) -> &ImageStore {
        &self.local_images
    }

    /// The file of an image, wherever it lies. Of one that is not known it is a path that nothing
    /// ever makes.
    pub(crate) fn image_path(&self, image: ImageId) -> PathBuf {
        let place = self.truth.state().images.get(&image).map(|image| image.place);
        match place {
            None | Some(ImagePlace::Node { .. }) => self.local_images.path(image),
            Some(place) => match self.images(place) {
                Ok(store) => store.path(image),
                Err(error) => {
                    tracing::warn!(%image, %error, "an image cannot be reached");
                    PathBuf::from("/nonexistent").join(image.to_string())
                }
            },
        }
    }
}

fn open_images(top: &Path) -> Result<ImageStore, VolumeError> {
    let mut config = ImageStoreConfig::new(top.join("images"));
    config.sandbox_user = Some(DISK_TOOL_USER);
    Ok(ImageStore::open(config)?)
}

/// Whether the directory of a volume is that volume, here and now.
///
/// # Errors
/// [`VolumeError`].
pub(crate) fn check(record: &VolumeRecord) -> Result<(), VolumeError> {
    let path = record.kind.path();
    if record.coordination.is_some() {
        // The volume process shows what the state names and nothing else. Its files are not looked at:
        // while a coordinator is on its way, whoever looks waits.
        return match crate::dataplane::is_mounted(Path::new(path), record.name.as_str()) {
            true => Ok(()),
            false => Err(VolumeError::NotShown(path.to_owned(), record.name.to_string())),
        };
    }
    let found = match read_stamp(Path::new(path)) {
        Ok(Some(found)) => found,
        Ok(None) => return Err(VolumeError::NoStamp(path.to_owned())),
        Err(source) => return Err(VolumeError::Unreachable { path: path.to_owned(), source }),
    };
    if found == record.id.to_string() {
        return Ok(());
    }
    Err(VolumeError::Other { path: path.to_owned(), found, wanted: record.id })
}

/// How this node stands to a forcing of the quorum, by the volume's marks.
///
/// # Errors
/// [`VolumeError::Unreachable`].
fn standing(
    record: &VolumeRecord,
    known: Option<&ForcedRecord>,
    me: NodeId,
) -> Result<Standing, VolumeError> {
    if record.coordination.is_some() {
        // No marks stand there: who was given up is kept from it by epoch and reservation.
        return Ok(Standing::Good);
    }
    let path = record.kind.path();
    forced::standing(Path::new(path), known, me)
        .map_err(|source| VolumeError::Unreachable { path: path.to_owned(), source })
}

/// The same, after the volume was told what it did not know.
///
/// # Errors
/// [`VolumeError::Unreachable`].
pub(crate) fn tell_forced(
    record: &VolumeRecord,
    known: Option<&ForcedRecord>,
    me: NodeId,
) -> Result<Standing, VolumeError> {
    let found = standing(record, known, me)?;
    let (Standing::Untold, Some(known)) = (found, known) else { return Ok(found) };
    let path = record.kind.path();
    forced::tell(Path::new(path), known, me)
        .map_err(|source| VolumeError::Unreachable { path: path.to_owned(), source })?;
    standing(record, Some(known), me)
}

/// Marks a directory as a volume, and makes what stands on it. One that is another volume already is
/// refused.
///
/// # Errors
/// [`VolumeError`].
pub(crate) fn stamp(volume: VolumeId, path: &str) -> Result<(), VolumeError> {
    let unreachable = |source| VolumeError::Unreachable { path: path.to_owned(), source };
    let top = Path::new(path);
    match read_stamp(top).map_err(unreachable)? {
        Some(found) if found == volume.to_string() => {}
        Some(found) => {
            return Err(VolumeError::Other { path: path.to_owned(), found, wanted: volume });
        }
        None => write_stamp(top, volume).map_err(unreachable)?,
    }
    fs::DirBuilder::new().recursive(true).mode(0o711).create(top.join("vms")).map_err(unreachable)
}

/// Takes the mark off again, if it is this volume's.
pub(crate) fn unstamp(record: &VolumeRecord) {
    if check(record).is_ok()
        && let Err(error) = fs::remove_file(Path::new(record.kind.path()).join(STAMP))
    {
        tracing::warn!(volume = %record.name, %error, "the mark of the volume stays");
    }
}

/// Takes the mark off a directory, if it is that volume's.
pub(crate) fn unstamp_at(volume: VolumeId, top: &Path) {
    let ours = read_stamp(top).is_ok_and(|found| found == Some(volume.to_string()));
    if ours && let Err(error) = fs::remove_file(top.join(STAMP)) {
        tracing::warn!(%volume, %error, "the mark of the volume stays");
    }
}

/// Takes any mark off.
///
/// # Errors
/// The file system's.
pub(crate) fn remove_stamp(top: &Path) -> io::Result<()> {
    match fs::remove_file(top.join(STAMP)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn write_stamp(top: &Path, volume: VolumeId) -> io::Result<()> {
    // Two nodes that mark at once must not both think that it is theirs.
    let mut file = File::options().write(true).create_new(true).open(top.join(STAMP))?;
    file.write_all(format!("{volume}\n").as_bytes())?;
    file.sync_all()?;
    File::open(top)?.sync_all()
}

fn read_stamp(top: &Path) -> io::Result<Option<String>> {
    let path = top.join(STAMP);
    let size = match fs::metadata(&path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // Tells a directory without a mark from no directory.
            fs::read_dir(top)?;
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    if size > STAMP_BYTES_MAX {
        return Err(io::Error::other(format!("{STAMP} is damaged")));
    }
    Ok(Some(fs::read_to_string(&path)?.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use model::UnixMillis;
    use model::VolumeKind;
    use uuid::Uuid;

    use super::*;

    fn record(n: u128, path: &Path) -> VolumeRecord {
        VolumeRecord {
            id: VolumeId::new(Uuid::from_u128(n)),
            name: "shared".parse().unwrap(),
            kind: VolumeKind::Share { path: path.to_str().unwrap().to_owned() },
            created: UnixMillis::new(0),
            coordination: None,
        }
    }

    #[test]
    fn a_volume_is_told_from_an_empty_mount_point_and_from_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let ours = record(1, dir.path());
        assert!(matches!(check(&ours), Err(VolumeError::NoStamp(_))));
        stamp(ours.id, ours.kind.path()).unwrap();
        stamp(ours.id, ours.kind.path()).unwrap();
        check(&ours).unwrap();
        let other = record(2, dir.path());
        assert!(matches!(check(&other), Err(VolumeError::Other { .. })));
        assert!(matches!(stamp(other.id, other.kind.path()), Err(VolumeError::Other { .. })));
        unstamp(&other);
        check(&ours).unwrap();
        unstamp(&ours);
        assert!(matches!(check(&ours), Err(VolumeError::NoStamp(_))));
    }

    #[test]
    fn a_directory_that_is_not_there_and_a_damaged_mark_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let gone = record(1, &dir.path().join("gone"));
        assert!(matches!(check(&gone), Err(VolumeError::Unreachable { .. })));
        assert!(stamp(gone.id, gone.kind.path()).is_err());
        fs::write(dir.path().join(STAMP), "x".repeat(4096)).unwrap();
        assert!(matches!(check(&record(1, dir.path())), Err(VolumeError::Unreachable { .. })));
    }
}
