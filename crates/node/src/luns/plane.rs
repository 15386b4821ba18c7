//! What a pass does to the host: file systems are made and taken away here, all else is ordered of the
//! volume process.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;

use model::ClusterState;
use model::FsKind;
use model::LunPhase;
use model::Membership;
use model::NodeId;
use model::VolumeId;
use model::VolumeKind;
use model::VolumeRecord;

use super::VolumeProcess;
use super::probe;
use super::programs::WORK_SECONDS;
use super::programs::done;
use super::reserve;
use crate::dataplane::words::Answer;
use crate::dataplane::words::Coordinate;
use crate::dataplane::words::Follow;
use crate::dataplane::words::Member;
use crate::dataplane::words::Order;
use crate::dataplane::words::Told;
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
    /// This node has begun the epoch before: it needs a new one.
    #[error("this node has begun epoch {0} before; it takes a new one")]
    Begun(u64),
    /// Something else.
    #[error("{0}")]
    Failed(String),
}

impl From<String> for PlaneError {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

/// How this node serves volumes. The keeper calls one at a time. Each call may be repeated, also after a
/// restart of the daemon, and then changes nothing.
#[derive(Clone)]
pub(crate) struct Plane {
    process: VolumeProcess,
}

impl Plane {
    pub(crate) fn new(process: VolumeProcess) -> Self {
        Self { process }
    }

    /// How each volume is here. Starts no process.
    pub(crate) async fn states(&self) -> Result<BTreeMap<VolumeId, Told>, PlaneError> {
        let told = self.process.look().await?;
        Ok(told.into_iter().map(|it| (it.volume, it)).collect())
    }

    /// Tells who may come and where they are, and that this node's certificate may be another.
    pub(crate) async fn members(&self, state: &ClusterState) -> Result<(), PlaneError> {
        let (there, lost): (Vec<_>, Vec<_>) =
            state.nodes.values().partition(|it| it.membership != Membership::Lost);
        let member = |it: &std::sync::Arc<model::NodeRecord>| Member {
            node: it.id,
            key: it.key.clone(),
            addresses: it.facts.addresses.iter().filter_map(|it| port_of(*it)).collect(),
        };
        let members = there.into_iter().map(member).collect();
        let gone = lost.into_iter().map(|it| it.id).chain(state.gone.keys().copied()).collect();
        Ok(self.process.order(Order::Members { members, gone }).await.map(drop)?)
    }

    /// Shows the volume's files here. Without a device all goes through the coordinator.
    pub(crate) async fn follow(
        &self,
        volume: &VolumeRecord,
        device: Option<&Path>,
        (epoch, holder): (u64, Option<NodeId>),
    ) -> Result<(), PlaneError> {
        let order = Follow {
            volume: volume.id,
            name: volume.name.to_string(),
            path: volume.kind.path().into(),
            device: device.map(Path::to_owned),
            epoch: narrow(epoch)?,
            holder,
        };
        Ok(self.process.order(Order::Follow(order)).await.map(drop)?)
    }

    /// Shows them no more. When this returns, this node's client sends nothing to the LUN any more.
    pub(crate) async fn detach(&self, volume: VolumeId) -> Result<(), PlaneError> {
        if !self.process.runs().await {
            return Ok(());
        }
        Ok(self.process.order(Order::Detach { volume }).await.map(drop)?)
    }

    /// Ceases to coordinate. When this returns, nothing of this host has the LUN mounted, and all that it
    /// wrote is on the LUN or is lost for good. Without a device: the LUN is gone from here.
    pub(crate) async fn resign(
        &self,
        volume: &VolumeRecord,
        device: Option<&Path>,
    ) -> Result<(), PlaneError> {
        let inner = self.process.settings().inner(volume.id);
        let reigns = self.states().await?.remove(&volume.id).is_some_and(|it| it.reign.is_some());
        // What a process that died has left mounted is found here, too.
        if !reigns && crate::dataplane::mounted_here(&inner).is_none() {
            return Ok(());
        }
        let order = Order::Resign {
            volume: volume.id,
            device: device.map(Path::to_owned),
            fences: volume.kind.fences(),
        };
        Ok(self.process.order(order).await.map(drop)?)
    }

    /// Coordinates a volume in an epoch that the state gave to this node. When this returns, nobody of an
    /// earlier epoch can write to the LUN any more, as far as it honours reservations.
    pub(crate) async fn coordinate(
        &self,
        volume: &VolumeRecord,
        device: &Path,
        epoch: u64,
        members: BTreeSet<NodeId>,
    ) -> Result<(), PlaneError> {
        let VolumeKind::Lun { fences, uuid, fs, .. } = &volume.kind else {
            return Err(PlaneError::Failed("it lies on no LUN".to_owned()));
        };
        let phase = volume.coordination.as_ref().map(|it| it.phase);
        let new = matches!(phase, Some(LunPhase::Preparing { .. }));
        let reign = self.states().await?.remove(&volume.id).and_then(|it| it.reign);
        if new && reign.is_none_or(|it| u64::from(it.epoch) != epoch) {
            let first = self.is_first(volume);
            let (volume, device) = (volume.clone(), device.to_owned());
            blocking(move || make(&volume, &device, epoch, first)).await?;
        }
        let uuid = uuid.parse().map_err(|_| format!("{uuid} is no UUID of a file system"))?;
        let order = Coordinate {
            volume: volume.id,
            device: device.to_owned(),
            fences: *fences,
            epoch: narrow(epoch)?,
            uuid,
            // A device that is named by a file is one of a lab.
            one_kernel: *fs == FsKind::Xfs
                && Path::new(&format!("{}.wwid", device.display())).exists(),
            members,
        };
        match self.process.order(Order::Coordinate(order)).await? {
            Answer::Begun => return Err(PlaneError::Begun(epoch)),
            _ if !new => return Ok(()),
            _ => {}
        }
        let inner = self.process.settings().inner(volume.id);
        let (id, adopt) = (volume.id, phase == Some(LunPhase::Preparing { adopt: true }));
        blocking(move || mark(id, &inner, adopt)).await
    }

    /// Takes a volume off its LUN: destroys its file system, if that is wanted and if it is this volume's,
    /// and opens the LUN to everybody. Nobody may have it attached any more.
    pub(crate) async fn clear(
        &self,
        volume: &VolumeRecord,
        device: &Path,
        epoch: u64,
        wipe: bool,
    ) -> Result<(), PlaneError> {
        let first = self.is_first(volume);
        let (volume, device) = (volume.clone(), device.to_owned());
        blocking(move || clear(&volume, &device, epoch, (wipe, first))).await
    }

    /// Whether no node can have taken the volume's LUN yet: this one was given its first epoch, and has not
    /// begun it.
    fn is_first(&self, volume: &VolumeRecord) -> bool {
        !crate::dataplane::has_begun(&self.process.settings().data_dir, volume.id)
    }

    /// An ordinary disk from here on: the mark goes while the file system is still mounted.
    pub(crate) async fn unmark(&self, volume: &VolumeRecord) -> Result<(), PlaneError> {
        let (id, inner) = (volume.id, self.process.settings().inner(volume.id));
        blocking(move || {
            if crate::dataplane::mounted_here(&inner).is_some() {
                volumes::unstamp_at(id, &inner);
            }
            Ok(())
        })
        .await
    }
}

/// The port of a node's volume process is the one after its peer port.
pub(crate) fn port_of(peer: SocketAddr) -> Option<SocketAddr> {
    Some(SocketAddr::new(peer.ip(), peer.port().checked_add(1)?))
}

fn narrow(epoch: u64) -> Result<u32, PlaneError> {
    u32::try_from(epoch).map_err(|_| PlaneError::Failed("no epoch is left for a key".to_owned()))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PlaneError> + Send + 'static,
) -> Result<T, PlaneError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(PlaneError::Failed(error.to_string())))
}

/// Reserves the LUN of a volume that is not in use yet, and sees to its file system.
fn make(volume: &VolumeRecord, device: &Path, epoch: u64, first: bool) -> Result<(), PlaneError> {
    if volume.kind.fences() {
        reserve::take(device, epoch, first).map_err(PlaneError::Failed)?;
    }
    if probe::is_in_use(device) {
        return Err(PlaneError::InUse);
    }
    prepare(volume, device)?;
    // What this host has cached of the device is older.
    probe::forget_cached(device).map_err(PlaneError::Failed)
}

/// Marks a new volume, while it is mounted for its coordinator alone.
fn mark(volume: VolumeId, inner: &Path, adopt: bool) -> Result<(), PlaneError> {
    if crate::dataplane::mounted_here(inner).is_none() {
        return Err(PlaneError::Failed("its file system is not mounted".to_owned()));
    }
    let text = inner.display().to_string();
    if adopt {
        // By its UUID it is what the administrator named; the mark is of whoever had it before.
        volumes::remove_stamp(inner).map_err(failed("remove the old mark in", &text))?;
    }
    volumes::stamp(volume, &text).map_err(|error| PlaneError::Failed(error.to_string()))
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

fn clear(
    volume: &VolumeRecord,
    device: &Path,
    epoch: u64,
    (wipe, first): (bool, bool),
) -> Result<(), PlaneError> {
    let VolumeKind::Lun { fs, uuid, fences, .. } = &volume.kind else { return Ok(()) };
    if *fences {
        reserve::take(device, epoch, first).map_err(PlaneError::Failed)?;
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

fn failed<'a>(what: &'a str, path: &'a str) -> impl FnOnce(io::Error) -> PlaneError + 'a {
    move |error| PlaneError::Failed(format!("cannot {what} {path}: {error}"))
}

/// The device that this node reaches a volume's LUN by: the first path that it told of.
pub(crate) fn device_of(volume: &VolumeRecord, node: &model::NodeRecord) -> Option<PathBuf> {
    let seen = volume.kind.lun().and_then(|lun| node.luns.get(lun))?;
    seen.paths.first().map(PathBuf::from)
}
