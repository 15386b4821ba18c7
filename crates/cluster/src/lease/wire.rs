//! What a node, its guard and the leader say to each other about leases.
//!
//! Version 1. Fields may be added with a default; a meaning never changes.

use std::time::Duration;

use model::NodeId;
use serde::Deserialize;
use serde::Serialize;

use super::BootTime;
use super::LeaseTerms;

/// What ends with a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// A cluster of one: the lease has no end.
    Unlimited,
    /// The node can be stopped from outside; nothing is stopped for a lost lease.
    Proof,
    /// The guard freezes machines at two thirds of the lease and kills them at its end.
    SelfFence,
}

/// Order of grants: a guard never takes one that is not greater than what it has.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct GrantKey {
    /// The leader's term.
    pub term: u64,
    /// The leader's count of grants in this term.
    pub seq: u64,
}

/// A lease as the leader gives it. When it ends is the node's to know: the leader has no part in
/// the node's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseGrant {
    /// Its place in the order.
    pub key: GrantKey,
    /// The node's epoch: raised each time the node is fenced.
    pub epoch: u64,
    /// What ends with it.
    pub mode: Mode,
    /// How long it lasts, in milliseconds from before its request was sent.
    pub lease_ms: u64,
    /// The longest time to set the watchdog to, in milliseconds; 0: none.
    pub watchdog_ms: u64,
}

/// A lease with the moment it counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// What the leader gave.
    #[serde(flatten)]
    pub lease: LeaseGrant,
    /// The node's clock from before the request was sent.
    pub sent: BootTime,
}

/// What a guard says it holds, for the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// Which grant.
    pub key: GrantKey,
    /// Of which kind.
    pub mode: Mode,
}

/// A node asks the leader for a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRequest {
    /// Who asks.
    pub node: NodeId,
    /// The epoch that its guard has: no machine of an older one is left. Nothing: it does not know.
    pub epoch: Option<u64>,
    /// What its guard holds.
    pub holding: Option<Holding>,
    /// Time of its watchdog, in milliseconds; 0: it has none.
    #[serde(default)]
    pub watchdog_ms: u64,
}

/// What a leader answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum LeaseAnswer {
    /// Here it is.
    Granted {
        /// The lease.
        grant: LeaseGrant,
    },
    /// The node was fenced. It must end all its machines and ask again with that epoch.
    Fenced {
        /// Its new epoch.
        epoch: u64,
    },
    /// Not now, for this reason. Ask again.
    Refused {
        /// Why, and what to do.
        why: String,
    },
}

impl LeaseGrant {
    /// How long it lasts.
    pub const fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }

    /// What it allows its holder.
    pub const fn terms(&self) -> LeaseTerms {
        LeaseTerms { lease_ms: self.lease_ms, watchdog_ms: self.watchdog_ms }
    }
}

impl Grant {
    /// When machines are frozen.
    pub fn freeze_at(&self) -> BootTime {
        self.sent.plus(super::settings::freeze_after(self.lease.lease()))
    }

    /// When it ends.
    pub fn ends_at(&self) -> BootTime {
        self.sent.plus(self.lease.lease())
    }

    /// Whether machines may be *started* under it: until the freeze for self-fencing, until its end
    /// where its end stops nothing, always without an end.
    pub fn may_start(&self, now: BootTime) -> bool {
        match self.lease.mode {
            Mode::Unlimited => true,
            Mode::Proof => now < self.ends_at(),
            Mode::SelfFence => now < self.freeze_at(),
        }
    }
}

impl Mode {
    /// The word on the command line and in files.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unlimited => "unlimited",
            Self::Proof => "proof",
            Self::SelfFence => "self_fence",
        }
    }
}
