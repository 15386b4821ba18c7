//! Volumes on LUNs: which LUN, who mounts it, and what nodes see of LUNs.
//!
//! ```text
//!                create            VolumePrepared               VolumeLeave
//!   Preparing ------------> (holder formats or looks) --> Ready ------------> Leaving --> gone
//!                                                                               VolumeGone
//!   holder n1, epoch 4
//!     | VolumeGiveBack{4}: n1 has unmounted it           | n1 is fenced by a proof that ends its mount
//!     v                                                  |
//!   no holder, epoch 4 -- VolumeClaim{4} by n2 --> holder n2, epoch 5 <-- VolumeClaim{4} by n2 --+
//! ```
//!
//! The *coordinator* is the one node that mounts the LUN's file system. It changes by compare-and-set on
//! the epoch alone, and the epoch only grows; so of two nodes that want it one gets it, and whoever
//! slept through a change is refused. A fenced node's lease says that its *machines* have ended; the
//! kernel of that node may still write what its mount has cached. So a lease that is over is a proof
//! here only where the LUN honours reservations, and the next coordinator takes the key away before it
//! mounts (decisions 0019, 0021).
//!
//! All nodes reach the files, and those that have a path write to the LUN themselves, under leases of the
//! coordinator's. `LunSeen::attached` says of which nodes that may be so: a LUN is opened to everybody only
//! when no other node is among them (decision 0025).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

use crate::Bytes;
use crate::ClusterState;
use crate::FenceProof;
use crate::NodeId;
use crate::NodeRecord;
use crate::VolumeRecord;

/// Longest identity of a LUN: those of SCSI, NVMe and device mapper are below 100 characters.
const LUN_ID_MAX: usize = 128;

/// Text that cannot be the identity of a LUN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no identity of a LUN: 1 to 128 letters, digits and . _ - + :")]
pub struct LunIdError(String);

/// What a LUN calls itself, the same by each path and on each node: its WWID, as a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String)]
pub struct LunId(String);

/// A file system that a LUN can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FsKind {
    /// XFS.
    #[default]
    Xfs,
    /// ext4.
    Ext4,
}

/// What stands on a LUN, as a node that read it says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "holds", rename_all = "snake_case")]
pub enum LunContents {
    /// Nothing: its beginning and its end are zeros.
    Empty,
    /// A file system that a shared volume can have.
    Volume {
        /// Which.
        fs: FsKind,
        /// Its UUID, as text.
        uuid: String,
    },
    /// Something that has a name: another file system, a partition table, a member of a RAID.
    Foreign {
        /// What it is called.
        what: String,
    },
    /// Bytes that nothing is known of.
    Unknown,
    /// It is reserved, and this node has no key.
    Reserved,
    /// It could not be read by any path.
    Unreadable {
        /// Why.
        why: String,
    },
}

/// A LUN as one node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LunSeen {
    /// Paths of its block devices there.
    pub paths: Vec<String>,
    /// Its size.
    pub size: Bytes,
    /// Whether it can only be read.
    pub read_only: bool,
    /// Whether reservations can be made on it by that node.
    pub fences: bool,
    /// Whether that node's data plane may write to it: said before it does, and until it surely does not
    /// any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub attached: bool,
    /// What stands on it.
    #[serde(flatten)]
    pub contents: LunContents,
}

/// How far a volume on a LUN is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum LunPhase {
    /// Its holder makes the file system, or looks at the one that is there.
    Preparing {
        /// Whether the file system that is there is kept.
        adopt: bool,
    },
    /// It can be used.
    Ready,
    /// Its holder unmounts it for good; then it is forgotten.
    Leaving {
        /// Whether the file system is destroyed.
        wipe: bool,
    },
}

/// Who mounts a volume's LUN.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Coordination {
    /// Grows with each change of hands, and never goes back.
    pub epoch: u64,
    /// The coordinator: the only node that may mount it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<NodeId>,
    /// Who shall have it, by an administrator's wish.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted: Option<NodeId>,
    /// Whether it is to be unmounted everywhere, by an administrator's wish.
    #[serde(default)]
    pub maintenance: bool,
    /// How far it is.
    #[serde(flatten)]
    pub phase: LunPhase,
}

impl LunId {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LunId {
    type Err = LunIdError;

    fn from_str(text: &str) -> Result<Self, LunIdError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+:".contains(&byte);
        if !text.is_empty() && text.len() <= LUN_ID_MAX && text.bytes().all(plain) {
            return Ok(Self(text.to_owned()));
        }
        Err(LunIdError(text.chars().take(80).collect()))
    }
}

impl TryFrom<String> for LunId {
    type Error = LunIdError;

    fn try_from(text: String) -> Result<Self, LunIdError> {
        text.parse()
    }
}

impl From<LunId> for String {
    fn from(id: LunId) -> Self {
        id.0
    }
}

impl fmt::Display for LunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FsKind {
    /// What the kernel and its tools call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Xfs => "xfs",
            Self::Ext4 => "ext4",
        }
    }
}

impl FromStr for FsKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "xfs" => Ok(Self::Xfs),
            "ext4" => Ok(Self::Ext4),
            other => Err(format!("{other} is no file system of a shared volume; give xfs or ext4")),
        }
    }
}

impl LunContents {
    /// In words that go on from "it holds".
    pub fn words(&self) -> String {
        match self {
            Self::Empty => "nothing".to_owned(),
            Self::Volume { fs, uuid } => format!("{} {uuid}", fs.name()),
            Self::Foreign { what } => what.clone(),
            Self::Reserved => "the reservation of another cluster or host".to_owned(),
            Self::Unknown => "data of an unknown kind".to_owned(),
            Self::Unreadable { why } => format!("what cannot be read: {why}"),
        }
    }
}

impl Coordination {
    /// Whether machines and images may lie on it now.
    pub const fn in_use(&self) -> bool {
        matches!(self.phase, LunPhase::Ready) && !self.maintenance
    }

    /// Whether its holder is to have it mounted.
    pub const fn wants_mount(&self) -> bool {
        match self.phase {
            LunPhase::Preparing { .. } => true,
            LunPhase::Ready => !self.maintenance,
            LunPhase::Leaving { .. } => false,
        }
    }
}

/// Other nodes whose data plane may still write to a volume's LUN, by name: it is not opened to everybody
/// before there are none. A lost node counts as long as its loss of power is not proved.
pub fn attached_elsewhere(
    state: &ClusterState,
    volume: &VolumeRecord,
    node: NodeId,
) -> Vec<String> {
    let Some(lun) = volume.kind.lun() else { return Vec::new() };
    let has = |it: &&Arc<NodeRecord>| {
        let dead = it.fenced.as_ref().is_some_and(|it| ends_mounts(&it.proof, false));
        it.id != node && !dead && it.luns.get(lun).is_some_and(|it| it.attached)
    };
    state.nodes.values().filter(has).map(|it| it.name.to_string()).collect()
}

/// Whether a proof that a node is fenced says that its mounts write no more. `fences`: the LUN honours
/// reservations, and the next coordinator preempts the node's key before it mounts.
pub const fn ends_mounts(proof: &FenceProof, fences: bool) -> bool {
    match proof {
        FenceProof::Devices { .. } | FenceProof::Statement => true,
        FenceProof::LeaseOver { .. } | FenceProof::Reservation { .. } => fences,
        // Its machines have ended; its mounts are ended by giving back.
        FenceProof::Left => false,
    }
}
