//! Events: what happened, to what, and why, for people and for programs.

use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

use crate::ClusterId;
use crate::FenceDeviceId;
use crate::ImageId;
use crate::NetworkId;
use crate::NodeId;
use crate::OpId;
use crate::RuleId;
use crate::SessionId;
use crate::TokenId;
use crate::UnixMillis;
use crate::VmId;
use crate::VolumeId;

/// How much attention an event asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The course of things.
    Info,
    /// Something worked otherwise than wanted, a fallback among them.
    Warning,
    /// Something failed.
    Error,
}

/// What kind of thing happened. The text form (`vm.started`) is stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub enum EventKind {
    /// An operation began.
    #[serde(rename = "op.begun")]
    OpBegun,
    /// An operation did what it should.
    #[serde(rename = "op.done")]
    OpDone,
    /// An operation failed.
    #[serde(rename = "op.failed")]
    OpFailed,
    /// An operation was cancelled.
    #[serde(rename = "op.cancelled")]
    OpCancelled,
    /// A VM came into being.
    #[serde(rename = "vm.created")]
    VmCreated,
    /// A VM's settled power state changed.
    #[serde(rename = "vm.power")]
    VmPower,
    /// A VM's configuration changed.
    #[serde(rename = "vm.changed")]
    VmChanged,
    /// A VM's process died unasked.
    #[serde(rename = "vm.crashed")]
    VmCrashed,
    /// A VM's guest hangs, and is started again.
    #[serde(rename = "vm.hung")]
    VmHung,
    /// A VM is started again after a crash or a restart of its host.
    #[serde(rename = "vm.restarting")]
    VmRestarting,
    /// A VM was put in the recycle bin.
    #[serde(rename = "vm.deleted")]
    VmDeleted,
    /// A VM came back from the recycle bin.
    #[serde(rename = "vm.undeleted")]
    VmUndeleted,
    /// A VM got a newer machine type.
    #[serde(rename = "vm.upgraded")]
    VmUpgraded,
    /// A migration did not go over the network that it should.
    #[serde(rename = "vm.migration_fallback")]
    MigrationFallback,
    /// A VM that the state had lost came back from its directory.
    #[serde(rename = "vm.registered")]
    VmRegistered,
    /// A VM and its disks are gone for good.
    #[serde(rename = "vm.purged")]
    VmPurged,
    /// A VM is not known any more: its node was evicted with its disks.
    #[serde(rename = "vm.forgotten")]
    VmForgotten,
    /// What is seen of a VM changed: phase, heartbeat, addresses. An observation.
    #[serde(rename = "vm.observed")]
    VmObserved,
    /// Something about a VM went otherwise than wanted. An observation.
    #[serde(rename = "vm.warning")]
    VmWarning,
    /// An image can be used.
    #[serde(rename = "image.ready")]
    ImageReady,
    /// An image is gone.
    #[serde(rename = "image.deleted")]
    ImageDeleted,
    /// A network was made.
    #[serde(rename = "network.created")]
    NetworkCreated,
    /// A network is gone.
    #[serde(rename = "network.deleted")]
    NetworkDeleted,
    /// An API token was made.
    #[serde(rename = "token.created")]
    TokenCreated,
    /// An API token is no longer valid.
    #[serde(rename = "token.revoked")]
    TokenRevoked,
    /// A sign-in link was made.
    #[serde(rename = "session.link")]
    SessionLink,
    /// A browser signed in.
    #[serde(rename = "session.begun")]
    SessionBegun,
    /// A browser's session was ended.
    #[serde(rename = "session.ended")]
    SessionEnded,
    /// A node began to serve.
    #[serde(rename = "node.started")]
    NodeStarted,
    /// What machines can be like on a node has changed.
    #[serde(rename = "node.platform")]
    NodePlatform,
    /// A VM of a lost node goes to another one.
    #[serde(rename = "vm.taken_over")]
    VmTakenOver,
    /// A VM was moved to another node, or a move began or ended.
    #[serde(rename = "vm.moved")]
    VmMoved,
    /// A volume was made known.
    #[serde(rename = "volume.created")]
    VolumeCreated,
    /// A volume on a LUN has another coordinator, or none.
    #[serde(rename = "volume.coordinator")]
    VolumeCoordinator,
    /// Maintenance of a volume began or is over.
    #[serde(rename = "volume.maintenance")]
    VolumeMaintenance,
    /// A volume was forgotten.
    #[serde(rename = "volume.deleted")]
    VolumeDeleted,
    /// A placement rule was made or removed.
    #[serde(rename = "rule.changed")]
    RuleChanged,
    /// Nothing of a node can write any more.
    #[serde(rename = "node.fenced")]
    NodeFenced,
    /// A fenced node takes part again.
    #[serde(rename = "node.back")]
    NodeBack,
    /// A node was lost too often, or is trusted again.
    #[serde(rename = "node.quarantined")]
    NodeQuarantined,
    /// An administrator changed a node's mode.
    #[serde(rename = "node.mode")]
    NodeMode,
    /// A node is to be fenced.
    #[serde(rename = "node.fencing")]
    NodeFencing,
    /// A node could not be fenced, or need not be any more.
    #[serde(rename = "node.fence_ended")]
    NodeFenceEnded,
    /// A fence device was added or removed.
    #[serde(rename = "fence.changed")]
    FenceChanged,
    /// Something about a node went otherwise than wanted. An observation.
    #[serde(rename = "node.warning")]
    NodeWarning,
    /// A cluster got its name and its CA.
    #[serde(rename = "cluster.created")]
    ClusterCreated,
    /// Something was said of a network of hosts.
    #[serde(rename = "cluster.network")]
    ClusterNetwork,
    /// It was said whether machines are moved apart by themselves.
    ClusterBalance,
    /// A join token was made.
    #[serde(rename = "cluster.token_created")]
    JoinTokenCreated,
    /// A join token is no longer valid.
    #[serde(rename = "cluster.token_revoked")]
    JoinTokenRevoked,
    /// A host became a node.
    #[serde(rename = "node.joined")]
    NodeJoined,
    /// A node wants to leave.
    #[serde(rename = "node.leaving")]
    NodeLeaving,
    /// A node has left.
    #[serde(rename = "node.left")]
    NodeLeft,
    /// A node was evicted.
    #[serde(rename = "node.evicted")]
    NodeEvicted,
    /// A node has lost its log.
    #[serde(rename = "node.damaged")]
    NodeDamaged,
    /// A node's log is made anew from the others'.
    #[serde(rename = "node.rebuilt")]
    NodeRebuilt,
    /// The quorum was forced.
    #[serde(rename = "cluster.forced")]
    QuorumForced,
    /// A witness was set or removed.
    #[serde(rename = "cluster.witness")]
    WitnessChanged,
}

/// What an event is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Subject {
    /// A virtual machine.
    Vm {
        /// Its id.
        id: VmId,
        /// Its name at the time.
        name: String,
    },
    /// An image.
    Image {
        /// Its id.
        id: ImageId,
        /// Its name at the time.
        name: String,
    },
    /// A network.
    Network {
        /// Its id.
        id: NetworkId,
        /// Its name at the time.
        name: String,
    },
    /// A node.
    Node {
        /// Its id.
        id: NodeId,
        /// Its name at the time.
        name: String,
    },
    /// A volume.
    Volume {
        /// Its id.
        id: VolumeId,
        /// Its name at the time.
        name: String,
    },
    /// A fence device.
    FenceDevice {
        /// Its id.
        id: FenceDeviceId,
        /// Its name at the time.
        name: String,
    },
    /// A placement rule.
    Rule {
        /// Its id.
        id: RuleId,
        /// Its name at the time.
        name: String,
    },
    /// An API token.
    Token {
        /// Its id.
        id: TokenId,
        /// Its name at the time.
        name: String,
    },
    /// A session of a browser.
    Session {
        /// Its id.
        id: SessionId,
        /// In whose name it acts.
        name: String,
    },
    /// The cluster as a whole.
    Cluster {
        /// Its id.
        id: ClusterId,
        /// Its name.
        name: String,
    },
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// When.
    pub at: UnixMillis,
    /// What kind of thing.
    pub kind: EventKind,
    /// How much attention it asks for.
    pub severity: Severity,
    /// To what it happened.
    pub subject: Subject,
    /// One sentence for people.
    pub text: String,
    /// Who asked for it, where somebody did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// The operation it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub op: Option<OpId>,
}

impl EventKind {
    /// The stable text form.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OpBegun => "op.begun",
            Self::OpDone => "op.done",
            Self::OpFailed => "op.failed",
            Self::OpCancelled => "op.cancelled",
            Self::VmCreated => "vm.created",
            Self::VmPower => "vm.power",
            Self::VmChanged => "vm.changed",
            Self::VmCrashed => "vm.crashed",
            Self::VmHung => "vm.hung",
            Self::VmRestarting => "vm.restarting",
            Self::VmDeleted => "vm.deleted",
            Self::VmUndeleted => "vm.undeleted",
            Self::VmUpgraded => "vm.upgraded",
            Self::MigrationFallback => "vm.migration_fallback",
            Self::VmRegistered => "vm.registered",
            Self::VmPurged => "vm.purged",
            Self::VmForgotten => "vm.forgotten",
            Self::VmObserved => "vm.observed",
            Self::VmWarning => "vm.warning",
            Self::ImageReady => "image.ready",
            Self::ImageDeleted => "image.deleted",
            Self::NetworkCreated => "network.created",
            Self::NetworkDeleted => "network.deleted",
            Self::TokenCreated => "token.created",
            Self::TokenRevoked => "token.revoked",
            Self::SessionLink => "session.link",
            Self::SessionBegun => "session.begun",
            Self::SessionEnded => "session.ended",
            Self::NodeStarted => "node.started",
            Self::NodePlatform => "node.platform",
            Self::VmTakenOver => "vm.taken_over",
            Self::VmMoved => "vm.moved",
            Self::VolumeCreated => "volume.created",
            Self::VolumeCoordinator => "volume.coordinator",
            Self::VolumeMaintenance => "volume.maintenance",
            Self::VolumeDeleted => "volume.deleted",
            Self::RuleChanged => "rule.changed",
            Self::NodeFenced => "node.fenced",
            Self::NodeBack => "node.back",
            Self::NodeQuarantined => "node.quarantined",
            Self::NodeMode => "node.mode",
            Self::NodeFencing => "node.fencing",
            Self::NodeFenceEnded => "node.fence_ended",
            Self::FenceChanged => "fence.changed",
            Self::NodeWarning => "node.warning",
            Self::ClusterCreated => "cluster.created",
            Self::ClusterNetwork => "cluster.network",
            Self::ClusterBalance => "cluster.balance",
            Self::JoinTokenCreated => "cluster.token_created",
            Self::JoinTokenRevoked => "cluster.token_revoked",
            Self::NodeJoined => "node.joined",
            Self::NodeLeaving => "node.leaving",
            Self::NodeLeft => "node.left",
            Self::NodeEvicted => "node.evicted",
            Self::NodeDamaged => "node.damaged",
            Self::NodeRebuilt => "node.rebuilt",
            Self::QuorumForced => "cluster.forced",
            Self::WitnessChanged => "cluster.witness",
        }
    }
}
