//! Operations: what was asked for, how far it is, and how it ended.
//!
//! ```text
//!   begin (admission in `apply`) -> Running -> Done | Failed | Cancelled
//!                                      |  cancel is asked for at any time
//!                                      |  the deadline is a failure with a named next state
//! ```
//!
//! An operation is a record in the state, so it survives a restart of the daemon: whoever owns the
//! VM or image finds it in `Running` and either goes on or ends it. Progress in between is an
//! observation and stands elsewhere.

use std::fmt;

use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

use crate::Bytes;
use crate::DiskId;
use crate::DiskSpec;
use crate::ImageFormat;
use crate::ImageId;
use crate::ImagePlace;
use crate::ImageSource;
use crate::MigratePolicy;
use crate::MigrateReport;
use crate::MigrateResult;
use crate::Millis;
use crate::Name;
use crate::NicChange;
use crate::NicId;
use crate::NicSpec;
use crate::NodeId;
use crate::OpId;
use crate::Pinned;
use crate::Power;
use crate::Revision;
use crate::SavedState;
use crate::StorageTarget;
use crate::UnixMillis;
use crate::VmChange;
use crate::VmId;
use crate::VmPlace;
use crate::VmSpec;
use crate::VolumeId;

/// What an operation shall do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum OpRequest {
    /// Make a VM and its disks.
    VmCreate {
        /// Its id.
        vm: VmId,
        /// Its name.
        name: Name,
        /// What it is made of.
        spec: Box<VmSpec>,
        /// What is fixed from now on.
        pinned: Pinned,
        /// Who owns it.
        owner: NodeId,
        /// The volume its directory lies on; none is the owner's own data directory.
        #[serde(default)]
        volume: Option<VolumeId>,
    },
    /// Start a VM that is off, or resume one that is saved.
    VmStart {
        /// Which.
        vm: VmId,
    },
    /// Ask the guest to shut down.
    VmShutdown {
        /// Which.
        vm: VmId,
        /// How long the guest may take.
        patience: Millis,
        /// Turn it off when its time is over.
        then_off: bool,
    },
    /// Cut the power. Unwritten data in the guest is lost, and so is a saved memory.
    VmOff {
        /// Which.
        vm: VmId,
    },
    /// Stop the guest's processors, keep its memory.
    VmPause {
        /// Which.
        vm: VmId,
    },
    /// Let a paused or saved guest go on.
    VmResume {
        /// Which.
        vm: VmId,
    },
    /// Write memory and devices to disk and free the host's memory.
    VmSave {
        /// Which.
        vm: VmId,
    },
    /// Move a running guest to another node, while it runs.
    VmMigrate {
        /// Which.
        vm: VmId,
        /// Where to.
        to: NodeId,
        /// How far it may go.
        policy: MigratePolicy,
        /// Where its files go with it; none where they stay on a volume that both nodes reach.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        storage: Option<Box<StorageTarget>>,
    },
    /// Move a VM's directory with all its disks to another place, while it runs if it runs.
    VmMoveStorage {
        /// Which.
        vm: VmId,
        /// Where to.
        to: VmPlace,
    },
    /// Press the reset button. Unwritten data in the guest is lost.
    VmReset {
        /// Which.
        vm: VmId,
    },
    /// Put a VM in the recycle bin.
    VmDelete {
        /// Which.
        vm: VmId,
    },
    /// Remove a deleted VM and its disks for good.
    VmPurge {
        /// Which.
        vm: VmId,
    },
    /// Change a VM's configuration.
    VmSet {
        /// Which.
        vm: VmId,
        /// What.
        change: Box<VmChange>,
        /// Only if the configuration is still this one.
        #[serde(default)]
        if_revision: Option<Revision>,
    },
    /// Add a disk.
    DiskAdd {
        /// To which VM.
        vm: VmId,
        /// What.
        disk: DiskSpec,
    },
    /// Remove a disk and its file.
    DiskRemove {
        /// From which VM.
        vm: VmId,
        /// Which disk.
        disk: DiskId,
    },
    /// Grow a disk.
    DiskResize {
        /// Of which VM.
        vm: VmId,
        /// Which disk.
        disk: DiskId,
        /// Its new size.
        size: Bytes,
    },
    /// Add a network adapter.
    NicAdd {
        /// To which VM.
        vm: VmId,
        /// What.
        nic: NicSpec,
    },
    /// Remove a network adapter.
    NicRemove {
        /// From which VM.
        vm: VmId,
        /// Which.
        nic: NicId,
    },
    /// Change a network adapter.
    NicSet {
        /// Of which VM.
        vm: VmId,
        /// Which.
        nic: NicId,
        /// What.
        change: NicChange,
    },
    /// Fetch and convert an image.
    ImageImport {
        /// Its id.
        image: ImageId,
        /// Its name.
        name: Name,
        /// From where.
        source: ImageSource,
        /// Its format there.
        format: ImageFormat,
        /// The SHA-256 that the source must have, in hexadecimal.
        #[serde(default)]
        sha256: Option<String>,
        /// Where to.
        place: ImagePlace,
    },
    /// Remove an image that no machine uses.
    ImageDelete {
        /// Which.
        image: ImageId,
    },
}

/// The word for what an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "each is the verb of the request of the same name")]
pub enum Verb {
    VmCreate,
    VmStart,
    VmShutdown,
    VmOff,
    VmPause,
    VmResume,
    VmSave,
    VmMigrate,
    VmMoveStorage,
    VmReset,
    VmDelete,
    VmPurge,
    VmSet,
    DiskAdd,
    DiskRemove,
    DiskResize,
    NicAdd,
    NicRemove,
    NicSet,
    ImageImport,
    ImageDelete,
}

/// How far an operation is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum OpState {
    /// It is being done, or waits for another operation on the same thing.
    Running {
        /// Somebody asked to stop it.
        cancel_requested: bool,
    },
    /// It did what it should.
    Done {
        /// When.
        at: UnixMillis,
    },
    /// It failed; the thing is in the state that the failure names.
    Failed {
        /// When.
        at: UnixMillis,
        /// Why.
        failure: OpFailure,
    },
    /// It was stopped before it did what it should.
    Cancelled {
        /// When.
        at: UnixMillis,
    },
}

/// Why an operation failed, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OpFailure {
    /// A stable word for programs, such as `deadline`, `no_space`, `guest_did_not_release`.
    pub code: String,
    /// What happened, one sentence.
    pub message: String,
    /// What to do next.
    pub hint: String,
}

/// How an operation ended, as its executor reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum OpOutcome {
    /// It did what it should.
    Done,
    /// A VM was saved.
    Saved {
        /// What was written.
        saved: SavedState,
    },
    /// A guest goes on at another node, which says so.
    Migrated {
        /// What it took.
        measured: MigrateResult,
    },
    /// An image was imported.
    Imported {
        /// What a guest sees as its size.
        virtual_size: Bytes,
        /// What it takes on disk.
        file_size: Bytes,
        /// SHA-256 of the source, in hexadecimal.
        sha256: String,
    },
    /// It failed. The VM's settled power state is the given one from now on.
    Failed {
        /// Why.
        failure: OpFailure,
        /// Where the VM was left, if not where it was before.
        #[serde(default)]
        power: Option<Power>,
    },
    /// It was stopped.
    Cancelled {
        /// Where the VM was left, if not where it was before.
        #[serde(default)]
        power: Option<Power>,
    },
}

/// An operation as the cluster knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OpRecord {
    /// Its id.
    pub id: OpId,
    /// What it shall do.
    pub request: OpRequest,
    /// Name of the VM or image at the time it began.
    pub target: Name,
    /// Who asked for it.
    pub actor: String,
    /// When it began.
    pub begun: UnixMillis,
    /// When it fails if it is not done.
    pub deadline: UnixMillis,
    /// Of a live migration: what was expected, and what came true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<Box<MigrateReport>>,
    /// How far it is.
    #[serde(flatten)]
    pub state: OpState,
}

impl OpRequest {
    /// The word for it.
    pub const fn verb(&self) -> Verb {
        match self {
            Self::VmCreate { .. } => Verb::VmCreate,
            Self::VmStart { .. } => Verb::VmStart,
            Self::VmShutdown { .. } => Verb::VmShutdown,
            Self::VmOff { .. } => Verb::VmOff,
            Self::VmPause { .. } => Verb::VmPause,
            Self::VmResume { .. } => Verb::VmResume,
            Self::VmSave { .. } => Verb::VmSave,
            Self::VmMigrate { .. } => Verb::VmMigrate,
            Self::VmMoveStorage { .. } => Verb::VmMoveStorage,
            Self::VmReset { .. } => Verb::VmReset,
            Self::VmDelete { .. } => Verb::VmDelete,
            Self::VmPurge { .. } => Verb::VmPurge,
            Self::VmSet { .. } => Verb::VmSet,
            Self::DiskAdd { .. } => Verb::DiskAdd,
            Self::DiskRemove { .. } => Verb::DiskRemove,
            Self::DiskResize { .. } => Verb::DiskResize,
            Self::NicAdd { .. } => Verb::NicAdd,
            Self::NicRemove { .. } => Verb::NicRemove,
            Self::NicSet { .. } => Verb::NicSet,
            Self::ImageImport { .. } => Verb::ImageImport,
            Self::ImageDelete { .. } => Verb::ImageDelete,
        }
    }

    /// The VM it is about, if it is about one.
    pub const fn vm(&self) -> Option<VmId> {
        match self {
            Self::VmCreate { vm, .. }
            | Self::VmStart { vm }
            | Self::VmShutdown { vm, .. }
            | Self::VmOff { vm }
            | Self::VmPause { vm }
            | Self::VmResume { vm }
            | Self::VmSave { vm }
            | Self::VmMigrate { vm, .. }
            | Self::VmMoveStorage { vm, .. }
            | Self::VmReset { vm }
            | Self::VmDelete { vm }
            | Self::VmPurge { vm }
            | Self::VmSet { vm, .. }
            | Self::DiskAdd { vm, .. }
            | Self::DiskRemove { vm, .. }
            | Self::DiskResize { vm, .. }
            | Self::NicAdd { vm, .. }
            | Self::NicRemove { vm, .. }
            | Self::NicSet { vm, .. } => Some(*vm),
            Self::ImageImport { .. } | Self::ImageDelete { .. } => None,
        }
    }

    /// The image it is about, if it is about one.
    pub const fn image(&self) -> Option<ImageId> {
        match self {
            Self::ImageImport { image, .. } | Self::ImageDelete { image } => Some(*image),
            _ => None,
        }
    }
}

impl Verb {
    /// The words for people: `start`, `add disk`.
    pub const fn words(self) -> &'static str {
        match self {
            Self::VmCreate => "create",
            Self::VmStart => "start",
            Self::VmShutdown => "shut down",
            Self::VmOff => "turn off",
            Self::VmPause => "pause",
            Self::VmResume => "resume",
            Self::VmSave => "save",
            Self::VmMigrate => "migrate",
            Self::VmMoveStorage => "move storage of",
            Self::VmReset => "reset",
            Self::VmDelete => "delete",
            Self::VmPurge => "purge",
            Self::VmSet => "change",
            Self::DiskAdd => "add disk to",
            Self::DiskRemove => "remove disk from",
            Self::DiskResize => "resize disk of",
            Self::NicAdd => "add adapter to",
            Self::NicRemove => "remove adapter from",
            Self::NicSet => "change adapter of",
            Self::ImageImport => "import",
            Self::ImageDelete => "delete image",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.words())
    }
}

impl OpRecord {
    /// Whether it has not ended.
    pub const fn is_running(&self) -> bool {
        matches!(self.state, OpState::Running { .. })
    }

    /// Whether somebody asked to stop it and it has not ended.
    pub const fn cancel_requested(&self) -> bool {
        matches!(self.state, OpState::Running { cancel_requested: true })
    }

    /// What it shall do, in words: `start web-1`.
    pub fn title(&self) -> String {
        format!("{} {}", self.request.verb(), self.target)
    }
}
