//! Volumes: places for the files of VMs and images that several nodes reach.
//!
//! A VM without a volume lives in the data directory of its node and stays with it. One on a shared
//! volume can be started by any node that mounts it, so it can fail over.

use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

use crate::Coordination;
use crate::DiskId;
use crate::FsKind;
use crate::LunId;
use crate::Name;
use crate::NodeId;
use crate::UnixMillis;
use crate::VolumeId;

/// What a volume is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum VolumeKind {
    /// A directory that the administrator has mounted on every node, at the same path: NFS in real
    /// life, a common directory in the lab.
    Share {
        /// Its absolute path, the same on every node.
        path: String,
    },
    /// A LUN that every node has a path to, with a file system on it that one node mounts.
    Lun {
        /// Where it is mounted.
        path: String,
        /// Which LUN.
        lun: LunId,
        /// Its file system.
        fs: FsKind,
        /// UUID of the file system: tells it from another one that stands where it was.
        uuid: String,
        /// Whether the LUN honours reservations, so that a node can be kept from it.
        fences: bool,
    },
}

/// A volume as the cluster knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeRecord {
    /// Its id; it also stands in a file on the volume, so that a wrong mount is found.
    pub id: VolumeId,
    /// Its name, unique among volumes.
    pub name: Name,
    /// What it is made of.
    #[serde(flatten)]
    pub kind: VolumeKind,
    /// When it was made.
    pub created: UnixMillis,
    /// Who mounts it; of volumes on LUNs only, and of all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coordination: Option<Coordination>,
}

/// Where the directory of a VM lies.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(tag = "on", rename_all = "snake_case")]
pub enum VmPlace {
    /// In the data directory of a node: only that node can run it.
    Node {
        /// Which.
        node: NodeId,
    },
    /// On a volume: every node that has it can run it.
    Volume {
        /// Which.
        volume: VolumeId,
    },
}

/// Where the files of a running VM go that migrates together with them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StorageTarget {
    /// The place: the target's own disks, or a volume that it reaches.
    pub place: VmPlace,
    /// Thin copies whose image cannot be read from there: they come as whole disks. Found out when
    /// the operation begins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub whole: Vec<DiskId>,
}

/// Where an image's file lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "on", rename_all = "snake_case")]
pub enum ImagePlace {
    /// In the data directory of one node; only VMs of that node can use it.
    Node {
        /// Which.
        node: NodeId,
    },
    /// On a volume; VMs of every node can use it.
    Volume {
        /// Which.
        volume: VolumeId,
        /// The node that imports and deletes it.
        by: NodeId,
    },
}

impl VolumeKind {
    /// The directory on every node.
    pub fn path(&self) -> &str {
        match self {
            Self::Share { path } | Self::Lun { path, .. } => path,
        }
    }

    /// The LUN, of one that lies on one.
    pub const fn lun(&self) -> Option<&LunId> {
        match self {
            Self::Share { .. } => None,
            Self::Lun { lun, .. } => Some(lun),
        }
    }

    /// Whether a node can be kept from it by a reservation.
    pub const fn fences(&self) -> bool {
        matches!(self, Self::Lun { fences: true, .. })
    }
}

impl VolumeRecord {
    /// Whether nodes can read and write its files: those of a share always, those on a LUN while it is in
    /// use, over their own path or through its coordinator.
    pub fn is_reached(&self) -> bool {
        self.coordination.as_ref().is_none_or(crate::Coordination::in_use)
    }
}

impl ImagePlace {
    /// The node that carries operations on the image out.
    pub const fn executor(self) -> NodeId {
        match self {
            Self::Node { node } | Self::Volume { by: node, .. } => node,
        }
    }
}
