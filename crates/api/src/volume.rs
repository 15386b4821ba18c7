//! Volumes on LUNs, and the LUNs that nodes see.

use model::Bytes;
use model::FsKind;
use model::LunId;
use model::LunPhase;
use model::Name;
use model::UnixMillis;
use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

/// What a new volume is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum VolumeSource {
    /// A directory that the administrator has mounted on every node, at the same path.
    Share {
        /// Its absolute path, the same on every node.
        path: String,
    },
    /// A LUN that every node has a path to. The node that is asked prepares it, and must see it.
    Lun {
        /// Which; see the list of disks.
        lun: LunId,
        /// File system to make; not to be given where one is adopted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fs: Option<FsKind>,
        /// Whether the XFS or ext4 that is there is kept, with all its files. Otherwise the LUN must be
        /// empty.
        #[serde(default)]
        adopt: bool,
    },
}

/// Who mounts a volume's LUN, and what each node has of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CoordinationView {
    /// Grows with each change of coordinator.
    pub epoch: u64,
    /// The coordinator: the node that has it mounted, or is about to.
    pub coordinator: Option<Name>,
    /// Who shall have it, by an administrator's wish.
    pub wanted: Option<Name>,
    /// Whether it is to be unmounted everywhere.
    pub maintenance: bool,
    /// How far it is.
    #[serde(flatten)]
    pub phase: LunPhase,
    /// What each node has of it.
    pub nodes: Vec<VolumeNodeView>,
}

/// How a node reaches a volume's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VolumeAccess {
    /// Its reads and writes go straight to the LUN, over its own path.
    Direct,
    /// They go through the coordinator, block by block: its own path does not work, or it has none.
    BlockRedirected,
    /// Its path works, but what was wanted last went through the coordinator: holes that were read, or a
    /// file that lies on odd blocks.
    FileRedirected,
    /// Not now: there is no coordinator to talk to, and requests wait for one.
    Waiting,
    /// Not at all: it is not mounted there.
    None,
    /// It did not say.
    Unknown,
}

/// What a node has of a volume on a LUN.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeNodeView {
    /// The node.
    pub node: Name,
    /// How it reaches the files.
    pub access: VolumeAccess,
    /// Whether it has a path to the LUN that works, as it said last.
    pub path: bool,
    /// Why it is so; none where all is as it should be.
    pub why: Option<String>,
    /// Since when, where that is known.
    pub since: Option<UnixMillis>,
}

/// Which node shall coordinate a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeMoveBody {
    /// Name or id of the node.
    pub to: String,
}

/// Whether a volume is to be unmounted everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeMaintenanceBody {
    /// Whether maintenance begins; it ends otherwise.
    pub on: bool,
}

/// What a check of a file system has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeCheckView {
    /// Whether all is well.
    pub clean: bool,
    /// What the checker said.
    pub said: String,
}

/// A LUN, with all nodes that see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LunView {
    /// What it calls itself.
    pub lun: LunId,
    /// Its size; the smallest where nodes differ.
    pub size: Bytes,
    /// The volume on it.
    pub volume: Option<Name>,
    /// What is wrong with it as a whole.
    pub problem: Option<String>,
    /// What each node sees of it.
    pub nodes: Vec<LunNodeView>,
}

/// A LUN as one node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LunNodeView {
    /// The node.
    pub node: Name,
    /// Its paths there; none: it does not see it.
    pub paths: Vec<String>,
    /// What it holds, in words.
    pub holds: Option<String>,
    /// Whether it can only be read there.
    pub read_only: bool,
    /// Whether that node can keep others from it by a reservation.
    pub fences: bool,
}
