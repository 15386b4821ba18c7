//! A virtual machine's place in the replicated state.

use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

use crate::Arrival;
use crate::Bytes;
use crate::Generation;
use crate::GuestCpu;
use crate::Moving;
use crate::Name;
use crate::NodeId;
use crate::OpId;
use crate::Pinned;
use crate::Revision;
use crate::UnixMillis;
use crate::VmId;
use crate::VmPlace;
use crate::VmSpec;
use crate::VolumeId;

/// The settled power state: what the VM shall be, apart from an operation under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    /// No process, no memory kept.
    Off,
    /// The guest runs.
    Running,
    /// The process stands, the guest's processors do not run; its memory is kept on the host.
    Paused,
    /// Memory and devices are in a file; the host's memory is free.
    Saved,
}

/// A VM's memory and devices in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SavedState {
    /// The run that was saved.
    pub generation: Generation,
    /// Size of the file on disk.
    pub size: Bytes,
    /// When.
    pub at: UnixMillis,
    /// Processors that the guest had; the restored machine must have the same.
    pub cpus: u32,
    /// Memory that the guest had at its start.
    pub boot_memory: Bytes,
    /// Memory that the guest had when it was saved.
    pub memory: Bytes,
}

/// How a run of a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Exit {
    /// In which way.
    pub kind: ExitKind,
    /// One line for people: exit code, signal, last words of the process.
    pub detail: String,
    /// When it was seen.
    pub at: UnixMillis,
}

/// The ways in which a run of a VM can end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExitKind {
    /// The guest shut itself down.
    GuestShutdown,
    /// An operation ended it: shut down, turned off or saved.
    Requested,
    /// The process died, was killed or had to be killed.
    Crashed,
    /// Its guest did not answer any more, and it was ended to be started again.
    Hung,
    /// The host went down or was started again under it.
    HostRestart,
}

/// A virtual machine as the cluster knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmRecord {
    /// Its id.
    pub id: VmId,
    /// Its name, unique among VMs that are not deleted.
    pub name: Name,
    /// What it is made of.
    pub spec: VmSpec,
    /// What was fixed at its creation.
    pub pinned: Pinned,
    /// The node that owns it.
    pub owner: NodeId,
    /// Small number unique among all VMs, from which the host user of its process follows.
    pub slot: u32,
    /// The present (or last) run.
    pub generation: Generation,
    /// Raised with each change of configuration.
    pub revision: Revision,
    /// The settled power state.
    pub power: Power,
    /// Its memory on disk, while it is saved.
    #[serde(default)]
    pub saved: Option<SavedState>,
    /// Operations on it: the first one is under way, the others wait.
    #[serde(default)]
    pub ops: Vec<OpId>,
    /// How its last run ended.
    #[serde(default)]
    pub last_exit: Option<Exit>,
    /// When it crashed lately, for the limit on restarts.
    #[serde(default)]
    pub crashes: Vec<UnixMillis>,
    /// The volume its directory lies on; none is its node's own data directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeId>,
    /// When it was taken over lately, for the limit on takeovers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub takeovers: Vec<UnixMillis>,
    /// The last run in which its guest's agent has answered. Noted only of VMs that others are
    /// started after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered: Option<Generation>,
    /// Where it is being moved to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<Moving>,
    /// How its present run came to its owner, if it came by a live migration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arrival: Option<Arrival>,
    /// What its processors have, since its last cold start; none if that was before its node said
    /// what it can: then what is pinned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<GuestCpu>,
    /// Places beside its own where a directory of it may lie: half a copy, or the one that it has
    /// left. They are removed, and forgotten then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<VmPlace>,
    /// When it was created.
    pub created: UnixMillis,
    /// When it was put in the recycle bin.
    #[serde(default)]
    pub deleted: Option<UnixMillis>,
}

impl VmRecord {
    /// The operation under way.
    pub fn busy(&self) -> Option<OpId> {
        self.ops.first().copied()
    }

    /// Where its directory lies: the one that counts.
    pub fn place(&self) -> VmPlace {
        match self.volume {
            Some(volume) => VmPlace::Volume { volume },
            None => VmPlace::Node { node: self.owner },
        }
    }

    /// The migration by which the present run came to its owner.
    pub fn arrived_by(&self) -> Option<OpId> {
        let arrival = self.arrival?;
        (arrival.generation == self.generation).then_some(arrival.op)
    }
}
