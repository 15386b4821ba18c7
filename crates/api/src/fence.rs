//! Requests and views of fencing.

use std::collections::BTreeMap;

use model::FenceDeviceId;
use model::FenceFailure;
use model::FenceWish;
use model::Fenced;
use model::Name;
use model::NodeId;
use model::UnixMillis;
use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

/// A fence device. Secrets are named and never shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FenceDeviceView {
    /// Its id.
    pub id: FenceDeviceId,
    /// Its name.
    pub name: Name,
    /// The program of the fence-agents package.
    pub agent: String,
    /// Its options.
    pub options: BTreeMap<String, String>,
    /// Names of the options that are not shown.
    pub secrets: Vec<String>,
    /// Names of the nodes that it switches off, with the plug of each where it needs one.
    pub nodes: BTreeMap<String, Option<String>>,
    /// Levels are tried in order; all devices of a level must succeed.
    pub level: u8,
    /// How long one call of its program may take, in seconds.
    pub timeout_s: u32,
    /// When it was added.
    pub created: UnixMillis,
}

/// A fence device to add.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FenceDeviceAddBody {
    /// Its name.
    pub name: Name,
    /// The program of the fence-agents package, such as `fence_ipmilan`.
    pub agent: String,
    /// Its options.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// Options that are never shown again.
    #[serde(default)]
    pub secrets: BTreeMap<String, String>,
    /// Names or ids of the nodes that it switches off, with the plug of each where it needs one.
    pub nodes: BTreeMap<String, Option<String>>,
    /// 1 to 9; levels are tried in order, all devices of a level must succeed.
    #[serde(default = "first_level")]
    pub level: u8,
    /// How long one call of its program may take, in seconds, 1 to 300.
    #[serde(default = "usual_timeout")]
    pub timeout_s: u32,
}

/// What a fence device says of a node, asked without switching anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FenceTestView {
    /// The node.
    pub node: String,
    /// Whether it could be asked.
    pub ok: bool,
    /// `on`, `off`, or what went wrong.
    pub says: String,
    /// The end of what its program printed.
    pub output: String,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

/// What makes sure that a node's VMs do not run there any more, before they run elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum CertaintyView {
    /// It is the only node: there is nobody who could take over.
    Alone,
    /// A fence device: takeover follows its word at once.
    Proof,
    /// Its guard kills its machines when its lease ends: takeover waits for that.
    SelfFencing {
        /// Whether a watchdog stands behind the guard.
        watchdog: bool,
        /// How long takeover waits, in milliseconds.
        takeover_ms: u64,
    },
    /// Nothing: only an administrator's word.
    None,
}

/// Leases and fencing of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeFencingView {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: Name,
    /// Raised each time it is fenced.
    pub epoch: u64,
    /// What makes sure that its VMs do not run there any more.
    pub certainty: CertaintyView,
    /// It is being fenced.
    pub wish: Option<FenceWish>,
    /// It is fenced.
    pub fenced: Option<Fenced>,
    /// How the last try to fence it ended, if it did not succeed.
    pub failure: Option<FenceFailure>,
}

/// A dangerous request, with the node's name typed once more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TypedNameBody {
    /// The node's name.
    pub confirm: String,
}

const fn first_level() -> u8 {
    1
}

const fn usual_timeout() -> u32 {
    20
}

/// Secrets stay out of logs.
impl std::fmt::Debug for FenceDeviceAddBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FenceDeviceAddBody")
            .field("name", &self.name)
            .field("agent", &self.agent)
            .finish_non_exhaustive()
    }
}
