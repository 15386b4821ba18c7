//! High availability: what becomes of a VM when its node is lost, and what becomes of nodes.

use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

use crate::Bytes;
use crate::DeviceSaid;
use crate::Millis;
use crate::Name;
use crate::NodeId;
use crate::RuleId;
use crate::UnixMillis;
use crate::VolumeId;

/// The order in which VMs are started when there is not room or time for all at once.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Before all others.
    High,
    /// After high ones.
    #[default]
    Medium,
    /// After medium ones.
    Low,
    /// Never by itself: after the loss of its node it waits for an administrator.
    NoAutoStart,
}

/// What a VM wants when nodes are lost, drained and come back (FEATURES.md area 5). On by default
/// for VMs on a shared volume; without one it has no effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HaSpec {
    /// Whether the VM is started elsewhere when its node is lost.
    pub enabled: bool,
    /// Order of starting.
    pub priority: Priority,
    /// Names of nodes it should run on, the best first; others are taken when these cannot.
    pub preferred: Vec<Name>,
    /// Names of the only nodes it may run on; none is all.
    pub possible: Vec<Name>,
    /// Go back to a preferred node when that is there again.
    pub failback: bool,
    /// Names of VMs that must be healthy before this one is started after a loss.
    pub after: Vec<Name>,
    /// Most takeovers in [`HaSpec::failure_period`]; one more leaves the VM off. 1 to 100.
    pub failures_max: u32,
    /// The period over which takeovers are counted, one minute to 30 days.
    pub failure_period: Millis,
    /// Start the VM again when its guest's heartbeat was there, has been silent for
    /// [`HaSpec::hung_after`], and its disks were idle since. At most three times in ten minutes,
    /// restarts after crashes included.
    pub restart_hung: bool,
    /// How long a silent heartbeat is suffered, 10 s to one hour.
    pub hung_after: Millis,
}

/// A change of [`HaSpec`]; what is absent stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HaChange {
    /// Whether the VM is started elsewhere when its node is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Order of starting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// Preferred nodes, replacing those there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preferred: Option<Vec<Name>>,
    /// Possible nodes, replacing those there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub possible: Option<Vec<Name>>,
    /// Go back to a preferred node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failback: Option<bool>,
    /// VMs that come first, replacing those there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Vec<Name>>,
    /// Most takeovers in the period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failures_max: Option<u32>,
    /// The period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_period: Option<Millis>,
    /// Reset a hung guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_hung: Option<bool>,
    /// How long a lost heartbeat is suffered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hung_after: Option<Millis>,
}

/// Whether VMs with a tag belong together or apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RuleKind {
    /// On the same node.
    Together,
    /// On different nodes.
    Apart,
}

/// A rule on where VMs with a tag may run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RuleRecord {
    /// Its id.
    pub id: RuleId,
    /// Its name, unique among rules.
    pub name: Name,
    /// Which VMs: those with this tag.
    pub tag: Name,
    /// Together or apart.
    pub kind: RuleKind,
    /// A hard rule is never broken, even if a VM stays off for it; a soft one only costs.
    pub hard: bool,
}

/// What a node has to give to VMs, as its daemon said at its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct NodeCapacity {
    /// Processors.
    pub cpus: u32,
    /// Memory that VMs may have: the host's less the reserve.
    pub memory: Bytes,
}

/// What an administrator wants of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeMode {
    /// It takes VMs.
    #[default]
    Active,
    /// Its VMs leave, and it takes no new ones (maintenance).
    Drain,
    /// Its VMs stay, and it takes no new ones.
    Standby,
}

/// How it is known that nothing of a node can write any more (DESIGN.md section 4, rules 2 and 3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum FenceProof {
    /// Fence devices, all of one level, switched it off and said so.
    Devices {
        /// What each said.
        said: Vec<DeviceSaid>,
    },
    /// Its reservations on a volume were preempted.
    Reservation {
        /// Which volume.
        volume: VolumeId,
    },
    /// Its lease, the guard's margin and the error of clocks are over.
    LeaseOver {
        /// How long was waited after the last moment at which it could have got a lease.
        waited: Millis,
    },
    /// An administrator said so, by typing the node's name.
    Statement,
    /// It left by itself, after its machines had ended.
    Left,
}

/// A node that reports on what it did, with the epoch in which it did it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Speaker {
    /// Which.
    pub node: NodeId,
    /// Its epoch, as it knows it.
    pub epoch: u64,
}

/// A node that was fenced and has not come back yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Fenced {
    /// When.
    pub at: UnixMillis,
    /// How it is known.
    #[serde(flatten)]
    pub proof: FenceProof,
}

/// A VM on its way to another node by an administrator's wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Moving {
    /// Where to.
    pub to: NodeId,
    /// Whether its guest shall go on there.
    pub resume: bool,
    /// Whether it is saved and moved, and not migrated while it runs.
    #[serde(default)]
    pub quick: bool,
}

/// Limits of what an [`HaSpec`] can say.
const NODES_NAMED_MAX: usize = 64;
const AFTER_MAX: usize = 64;

impl Default for HaSpec {
    fn default() -> Self {
        Self {
            enabled: true,
            priority: Priority::default(),
            preferred: Vec::new(),
            possible: Vec::new(),
            failback: false,
            after: Vec::new(),
            failures_max: 3,
            failure_period: Millis::from_secs(3_600),
            restart_hung: false,
            hung_after: Millis::from_secs(60),
        }
    }
}

impl HaSpec {
    /// Whether this is what every VM has that nobody said anything about.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Checks every limit.
    ///
    /// # Errors
    /// A sentence on the first limit that does not hold.
    pub fn validate(&self) -> Result<(), String> {
        if self.preferred.len() > NODES_NAMED_MAX || self.possible.len() > NODES_NAMED_MAX {
            return Err(format!("at most {NODES_NAMED_MAX} nodes can be named"));
        }
        if self.after.len() > AFTER_MAX {
            return Err(format!("a VM can wait for at most {AFTER_MAX} others"));
        }
        if !(1..=100).contains(&self.failures_max) {
            return Err(format!("{} takeovers; it must be 1 to 100", self.failures_max));
        }
        if !(60_000..=30 * 86_400_000).contains(&self.failure_period.get()) {
            return Err("the period of takeovers must be one minute to 30 days".to_owned());
        }
        if !(10_000..=3_600_000).contains(&self.hung_after.get()) {
            return Err("a lost heartbeat can be suffered for 10 s to one hour".to_owned());
        }
        if let Some(outside) =
            self.preferred.iter().find(|node| !self.possible.is_empty() && !self.may_run_on(node))
        {
            return Err(format!("{outside} is preferred, but it is not among the possible nodes"));
        }
        Ok(())
    }

    /// Whether the VM may run on the node of that name.
    pub fn may_run_on(&self, node: &Name) -> bool {
        self.possible.is_empty() || self.possible.iter().any(|name| name.key() == node.key())
    }

    /// Applies a change.
    pub fn change(&mut self, change: &HaChange) {
        fn put<T: Clone>(to: &mut T, from: Option<&T>) {
            if let Some(from) = from {
                to.clone_from(from);
            }
        }
        put(&mut self.enabled, change.enabled.as_ref());
        put(&mut self.priority, change.priority.as_ref());
        put(&mut self.preferred, change.preferred.as_ref());
        put(&mut self.possible, change.possible.as_ref());
        put(&mut self.failback, change.failback.as_ref());
        put(&mut self.after, change.after.as_ref());
        put(&mut self.failures_max, change.failures_max.as_ref());
        put(&mut self.failure_period, change.failure_period.as_ref());
        put(&mut self.restart_hung, change.restart_hung.as_ref());
        put(&mut self.hung_after, change.hung_after.as_ref());
    }
}

impl HaChange {
    /// Whether nothing would change.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl FenceProof {
    /// In words, for people.
    pub fn words(&self) -> String {
        match self {
            Self::Devices { said } => {
                let names: Vec<&str> = said.iter().map(|said| said.device.as_str()).collect();
                format!("{} switched it off", names.join(" and "))
            }
            Self::Reservation { .. } => "its reservations were preempted".to_owned(),
            Self::LeaseOver { waited } => {
                format!("its lease is over since long ({} s were waited)", waited.get() / 1000)
            }
            Self::Statement => "an administrator said that it is off".to_owned(),
            Self::Left => "it left by itself".to_owned(),
        }
    }
}
