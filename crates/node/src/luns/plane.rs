//! What a pass does to the host: the seam at which the data plane of shared volumes plugs in.

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use async_trait::async_trait;
use model::FsKind;
use model::LunPhase;
use model::VolumeKind;
use model::VolumeRecord;

use super::probe;
use super::programs::WORK_SECONDS;
use super::programs::done;
use super::reserve;
use crate::volumes;

/// Why a volume could not be brought where it should be. Tried again by the next pass.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaneError {
    /// This node does not see the LUN.
    #[error("this node has no path to its LUN; see: muster disk list")]
    NoPath,
    /// What stands on the LUN is not the volume's.
    #[error(
        "its LUN holds {0}, which is not this volume; nothing was changed; see: muster disk list"
    )]
    Contents(String),
    /// Somebody on this host has the LUN already.
    #[error("its LUN is in use on this host by hand or by another program; unmount it there")]
    InUse,
    /// Files on it are open.
    #[error("it cannot be unmounted: {0}; see who uses it: fuser -vm {1}")]
    Open(String, String),
    /// Something else.
    #[error("{0}")]
    Failed(String),
}

/// How one node serves volumes. The keeper calls one at a time for each volume. Each call may be repeated,
/// also after a restart of the daemon, and then changes nothing.
///
/// [`LocalMount`] is the coordinator alone. The data plane adds to `coordinate` that peers are served, and
/// to `leave` that this node becomes a client of whoever coordinates it.
#[async_trait]
pub(crate) trait VolumePlane: Send + Sync + 'static {
    /// Whether the volume is served here as its coordinator.
    async fn is_coordinated(&self, volume: &VolumeRecord) -> bool;

    /// Coordinates a volume in an epoch that the state gave to this node. When this returns, nobody of an
    /// earlier epoch can write to the LUN any more, as far as it honours reservations, and the files are
    /// at the volume's path.
    async fn coordinate(
        &self,
        volume: &VolumeRecord,
        device: &Path,
        epoch: u64,
    ) -> Result<(), PlaneError>;

    /// Ceases to coordinate. When this returns, nothing of this host holds the LUN, and all that it wrote
    /// is on the LUN or is lost for good. Without a device: the LUN is gone from here.
    async fn leave(&self, volume: &VolumeRecord, device: Option<&Path>) -> Result<(), PlaneError>;

    /// Takes a volume that was left off its LUN: destroys its file system, if that is wanted and if it is
    /// this volume's, and opens the LUN to everybody.
    async fn clear(
        &self,
        volume: &VolumeRecord,
        device: &Path,
        epoch: u64,
        wipe: bool,
    ) -> Result<(), PlaneError>;
}

/// The coordinator mounts the file system; other nodes have nothing of it.
pub(crate) struct LocalMount;

#[async_trait]
impl VolumePlane for LocalMount {
    async fn is_coordinated(&self, volume: &VolumeRecord) -> bool {
        let path = volume.kind.path().to_owned();
        blocking(move || Ok(is_mounted(&path))).await.unwrap_or(false)
    }

    async fn coordinate(
        &self,
        volume: &VolumeRecord,
        device: &Path,
        epoch: u64,
    ) -> Result<(), PlaneError> {
        let (volume, device) = (volume.clone(), device.to_owned());
        blocking(move || coordinate(&volume, &device, epoch)).await
    }

    async fn leave(&self, volume: &VolumeRecord, device: Option<&Path>) -> Result<(), PlaneError> {
        let (volume, device) = (volume.clone(), device.map(Path::to_owned));
        blocking(move || leave(&volume, device.as_deref())).await
    }

    async fn clear(
        &self,
        volume: &VolumeRecord,
        device: &Path,
        epoch: u64,
        wipe: bool,
    ) -> Result<(), PlaneError> {
        let (volume, device) = (volume.clone(), device.to_owned());
        blocking(move || clear(&volume, &device, epoch, wipe)).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PlaneError> + Send + 'static,
) -> Result<T, PlaneError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(PlaneError::Failed(error.to_string())))
}

fn coordinate(volume: &VolumeRecord, device: &Path, epoch: u64) -> Result<(), PlaneError> {
    let VolumeKind::Lun { path, fs, fences, .. } = &volume.kind else {
        return Err(PlaneError::Failed("it lies on no LUN".to_owned()));
    };
    if *fences {
        reserve::take(device, epoch).map_err(PlaneError::Failed)?;
    }
    if !is_mounted(path) {
        if probe::is_in_use(device) {
            return Err(PlaneError::InUse);
        }
        prepare(volume, device)?;
        fs::create_dir_all(path).map_err(failed("make", path))?;
        // From here on this host's cache of the device is the file system's.
        probe::forget_cached(device).map_err(PlaneError::Failed)?;
        let device = device.display().to_string();
        let args = ["-t", fs.name(), "-o", "nodev,nosuid", &device, path];
        done(WORK_SECONDS, "mount", args).map_err(PlaneError::Failed)?;
    }
    let phase = volume.coordination.as_ref().map(|it| it.phase);
    if phase == Some(LunPhase::Preparing { adopt: true }) {
        // By its UUID it is what the administrator named; the mark is of whoever had it before.
        volumes::remove_stamp(Path::new(path)).map_err(failed("remove the old mark in", path))?;
    }
    volumes::stamp(volume.id, path).map_err(|error| PlaneError::Failed(error.to_string()))
}

/// Makes the file system where it is new, and checks that it is the volume's in any case.
fn prepare(volume: &VolumeRecord, device: &Path) -> Result<(), PlaneError> {
    let VolumeKind::Lun { fs, uuid, .. } = &volume.kind else { return Ok(()) };
    let ours = model::LunContents::Volume { fs: *fs, uuid: uuid.clone() };
    let new = volume.coordination.as_ref().map(|it| it.phase)
        == Some(LunPhase::Preparing { adopt: false });
    match probe::contents(device) {
        found if found == ours => return Ok(()),
        model::LunContents::Empty if new => {}
        other => return Err(PlaneError::Contents(other.words())),
    }
    let device = device.display().to_string();
    let stamp = format!("uuid={uuid}");
    let (program, args) = match fs {
        FsKind::Ext4 => ("mkfs.ext4", ["-q", "-F", "-U", uuid, &device]),
        FsKind::Xfs => ("mkfs.xfs", ["-q", "-K", "-m", &stamp, &device]),
    };
    done(WORK_SECONDS, program, args).map_err(PlaneError::Failed)?;
    Ok(())
}

fn leave(volume: &VolumeRecord, device: Option<&Path>) -> Result<(), PlaneError> {
    let path = volume.kind.path();
    let phase = volume.coordination.as_ref().map(|it| it.phase);
    if matches!(phase, Some(LunPhase::Leaving { .. })) && is_mounted(path) {
        // An ordinary disk from here on.
        volumes::unstamp(volume);
    }
    while is_mounted(path) {
        done(WORK_SECONDS, "umount", [path])
            .map_err(|error| PlaneError::Open(error, path.to_owned()))?;
    }
    let Some(device) = device else { return Ok(()) };
    // A mount name space of a machine, or of somebody's shell, may hold it still.
    if probe::is_in_use(device) {
        return Err(PlaneError::Open("another process has it".to_owned(), path.to_owned()));
    }
    if volume.kind.fences() {
        reserve::give(device).map_err(PlaneError::Failed)?;
    }
    Ok(())
}

fn clear(volume: &VolumeRecord, device: &Path, epoch: u64, wipe: bool) -> Result<(), PlaneError> {
    let VolumeKind::Lun { fs, uuid, fences, .. } = &volume.kind else { return Ok(()) };
    if *fences {
        reserve::take(device, epoch).map_err(PlaneError::Failed)?;
    }
    if probe::is_in_use(device) {
        return Err(PlaneError::InUse);
    }
    let ours = model::LunContents::Volume { fs: *fs, uuid: uuid.clone() };
    if wipe && probe::contents(device) == ours {
        let text = device.as_os_str();
        done(WORK_SECONDS, "wipefs", ["--all".as_ref(), "--quiet".as_ref(), text])
            .map_err(PlaneError::Failed)?;
        probe::clear_edges(device).map_err(failed("clear", &device.display().to_string()))?;
    }
    if *fences {
        reserve::clear(device).map_err(PlaneError::Failed)?;
    }
    let _ = fs::remove_dir(volume.kind.path());
    Ok(())
}

/// Whether something is mounted right there.
fn is_mounted(path: &str) -> bool {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines().any(|line| line.split(' ').nth(4) == Some(path))
}

fn failed<'a>(what: &'a str, path: &'a str) -> impl FnOnce(io::Error) -> PlaneError + 'a {
    move |error| PlaneError::Failed(format!("cannot {what} {path}: {error}"))
}

/// The device that this node reaches a volume's LUN by: the first path that it told of.
pub(crate) fn device_of(volume: &VolumeRecord, node: &model::NodeRecord) -> Option<PathBuf> {
    let seen = volume.kind.lun().and_then(|lun| node.luns.get(lun))?;
    seen.paths.first().map(PathBuf::from)
}
