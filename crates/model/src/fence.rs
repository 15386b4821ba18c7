//! Fencing: what makes sure that a node's VMs do not run there before they run elsewhere.
//!
//! ```text
//!   node      serves --- FenceBegin --> wished --- NodeFenced{proof} --> fenced (epoch + 1)
//!               ^                          | FenceEnd (failed, or it came back)   |
//!               +--------------------------+                    VmTakeOver is taken now, only now
//!               +------------------ NodeBack: all its machines have ended --------+
//! ```
//!
//! The proof stands in the state, with what said it and when. [`Command::VmTakeOver`] is refused
//! without it. How a proof comes about is the work of crate `cluster` and of the leader.
//!
//! [`Command::VmTakeOver`]: crate::Command::VmTakeOver

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

use crate::FenceDeviceId;
use crate::Name;
use crate::NodeId;
use crate::UnixMillis;

/// The most that any lease which a node can hold allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeaseTerms {
    /// Longest lease, in milliseconds.
    pub lease_ms: u64,
    /// Longest time of its watchdog, in milliseconds; 0 without a watchdog.
    pub watchdog_ms: u64,
}

/// What the cluster knows of a node's leases, and the way to its fencing. A part of the node's
/// record, beside its epoch and whether it is fenced.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct NodeFence {
    /// Its lease ends by itself, and never exceeds this: then it freezes and kills its machines.
    /// Nothing: nothing can be concluded from time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms: Option<LeaseTerms>,
    /// It is to be fenced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wish: Option<FenceWish>,
    /// How the last try to fence it ended, if it did not succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<FenceFailure>,
}

/// Why a node is to be fenced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum FenceReason {
    /// It is taken for dead.
    Suspected {
        /// What was seen.
        what: String,
    },
    /// An administrator wants it.
    Manual,
    /// An administrator states that it is off.
    ConfirmedOff,
}

/// The wish to fence a node, until it is done or given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FenceWish {
    /// Why.
    pub reason: FenceReason,
    /// Who asked.
    pub actor: String,
    /// Since when.
    pub since: UnixMillis,
}

/// A try to fence a node that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FenceFailure {
    /// When.
    pub at: UnixMillis,
    /// Why not, and what to do.
    pub why: String,
}

/// What a fence device said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceSaid {
    /// Its name.
    pub device: Name,
    /// Its level.
    pub level: u8,
    /// The end of what its program printed.
    pub output: String,
    /// When it said so.
    pub at: UnixMillis,
}

/// A device that can switch nodes off.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceDevice {
    /// Its id.
    pub id: FenceDeviceId,
    /// Its name.
    pub name: Name,
    /// The program of the fence-agents package, such as `fence_ipmilan`.
    pub agent: String,
    /// Its options, by name.
    pub options: BTreeMap<String, String>,
    /// Options that nobody is shown again: passwords.
    pub secrets: BTreeMap<String, String>,
    /// Which nodes it switches off, and the plug (outlet, name) that the device calls each by;
    /// nothing: it needs none.
    pub nodes: BTreeMap<NodeId, Option<String>>,
    /// Levels are tried in order, 1 first; all devices of a level must succeed.
    pub level: u8,
    /// How long one call of its program may take, in seconds.
    pub timeout_s: u32,
    /// When it was added.
    pub created: UnixMillis,
}

/// The leader whose grants and proofs count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LeaseReign {
    /// Its number; a proof of an earlier one is refused.
    pub reign: u64,
    /// Who it is.
    pub leader: Option<NodeId>,
}

impl LeaseTerms {
    /// Longest lease.
    pub const fn lease(self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }

    /// Longest time of the watchdog.
    pub const fn watchdog(self) -> Duration {
        Duration::from_millis(self.watchdog_ms)
    }

    /// Whether all that `other` allows is allowed by these, too.
    pub const fn covers(self, other: Self) -> bool {
        self.lease_ms >= other.lease_ms && self.watchdog_ms >= other.watchdog_ms
    }

    /// The least that covers both.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            lease_ms: self.lease_ms.max(other.lease_ms),
            watchdog_ms: self.watchdog_ms.max(other.watchdog_ms),
        }
    }
}

/// Secrets stay out of logs.
impl fmt::Debug for FenceDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FenceDevice")
            .field("name", &self.name)
            .field("agent", &self.agent)
            .field("level", &self.level)
            .field("secrets", &self.secrets.keys())
            .finish_non_exhaustive()
    }
}
