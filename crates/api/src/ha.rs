//! High availability: plans, capacity, placement rules, moves.

use model::MigrateForecast;
use model::Name;
use model::NodeId;
use model::NodeMode;
use model::RuleId;
use model::RuleKind;
use model::VmId;
use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

/// What an administrator wants of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeModeBody {
    /// `active`: it takes VMs; `drain`: its VMs leave; `standby`: it keeps them and takes no more.
    pub mode: NodeMode,
    /// For `drain`: VMs on its own disks leave, too, with their files.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub with_storage: bool,
}

/// What is to be planned for a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PlanFor {
    /// Its VMs leave, for maintenance.
    #[default]
    Drain,
    /// It is lost.
    Loss,
}

/// Which plan is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanQuery {
    /// What is to happen to the node.
    #[serde(default, rename = "for")]
    #[schema(inline)]
    pub plan: PlanFor,
    /// For a drain: with VMs on its own disks, and their files.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub with_storage: bool,
    /// For a drain: measure how long it will take. That takes some seconds.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub estimate: bool,
}

/// Nodes that are to be emptied at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EvacuationBody {
    /// Names or ids.
    pub nodes: Vec<String>,
    /// VMs on their own disks leave, too, with their files.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub with_storage: bool,
}

/// Nodes that would be emptied at once.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EvacuationQuery {
    /// Names or ids, with commas between them.
    pub nodes: String,
    /// With VMs on their own disks, and their files.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub with_storage: bool,
    /// Measure how long it will take. That takes some seconds.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub estimate: bool,
}

/// Where the VMs of several nodes go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EvacuationView {
    /// Of each of the nodes.
    pub plans: Vec<PlanView>,
    /// How long all of it will take, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate: Option<EstimateView>,
}

/// How long moves will take, by what the ways carry and what the guests change now.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct EstimateView {
    /// Running VMs that were looked at.
    pub vms: u64,
    /// All of their live migrations, one after the other, in milliseconds. As many go at once as carry more
    /// together; the way is the same.
    pub total_ms: u64,
    /// VMs that change their memory faster than the way carries it: they stand longer than others.
    pub slow: Vec<Name>,
    /// Running VMs of which nothing could be learnt, and those that go with their files.
    pub unknown: Vec<Name>,
}

/// How machines wait on the nodes, and what would be moved for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BalanceView {
    /// Whether it is done by itself.
    pub automatic: bool,
    /// The nodes.
    pub nodes: Vec<NodeWaitsView>,
    /// What should be moved now: at most one VM of each node, then it is measured anew.
    pub steps: Vec<ReliefView>,
    /// VMs that would be moved and cannot be.
    pub stay: Vec<UnplacedView>,
}

/// What the machines of a node did lately.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeWaitsView {
    /// Its name.
    pub node: Name,
    /// Whether it has told. One that has not neither gives nor takes.
    pub told: bool,
    /// Running VMs.
    pub vms: u64,
    /// Processor time of its VMs, in percent of its processors.
    pub cpu_percent: u64,
    /// Share of the time in which the VM that waits most waited for a processor, in percent.
    pub cpu_waits_percent: u64,
    /// The same for memory.
    pub memory_waits_percent: u64,
}

/// A VM that should go elsewhere because it or others wait where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReliefView {
    /// Its id.
    pub id: VmId,
    /// Its name.
    pub vm: Name,
    /// Where it is.
    pub from: Name,
    /// Where it should go.
    pub to: Name,
    /// Why, in words.
    pub why: String,
    /// What its migration is expected to take.
    pub predicted: MigrateForecast,
}

/// What is to be balanced by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BalanceBody {
    /// Whether VMs that wait for each other are moved apart by themselves.
    pub automatic: bool,
}

/// Where VMs go. Nothing is done by asking.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlanView {
    /// The node that it is about.
    pub node: Name,
    /// VMs that get another node, in the order in which they go.
    pub steps: Vec<PlanStepView>,
    /// VMs that no other node can take.
    pub unplaced: Vec<UnplacedView>,
    /// VMs on the node's own disks that do not leave with their files: they stay there, and are down
    /// when it is.
    pub local: Vec<Name>,
    /// VMs that are on their way from the node now.
    pub moving: Vec<Name>,
    /// How long it will take, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate: Option<EstimateView>,
}

/// One VM of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlanStepView {
    /// Its id.
    pub id: VmId,
    /// Its name.
    pub vm: Name,
    /// Where it goes.
    pub to: Name,
    /// Whether its guest runs there.
    pub start: bool,
    /// Why it does not; empty if it does.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why_not: String,
    /// VMs that it waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<Name>,
}

/// A VM that gets no node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UnplacedView {
    /// Its name.
    pub vm: Name,
    /// Why.
    pub why: String,
}

/// What would happen if a node were lost now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LossView {
    /// The node.
    pub node: Name,
    /// How many VMs would be started on other nodes.
    pub restarted: u32,
    /// VMs that no other node could start.
    pub unplaced: Vec<UnplacedView>,
    /// Running VMs on the node's own disks, which would be down until it is back.
    pub local: Vec<Name>,
}

/// A new rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleCreateBody {
    /// Its name.
    pub name: Name,
    /// Which VMs: those with this tag.
    pub tag: Name,
    /// On the same node, or on different ones.
    pub kind: RuleKind,
    /// Never broken, even if a VM stays off for it.
    #[serde(default)]
    pub hard: bool,
}

/// A rule on where VMs may run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RuleView {
    /// Its id.
    pub id: RuleId,
    /// Its name.
    pub name: Name,
    /// Which VMs.
    pub tag: Name,
    /// On the same node, or on different ones.
    pub kind: RuleKind,
    /// Never broken.
    pub hard: bool,
    /// VMs with the tag.
    pub vms: Vec<Name>,
}

/// Where a VM is to go.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmMoveBody {
    /// Name or id of a node; the best one where none is named.
    #[serde(default)]
    pub to: Option<String>,
    /// Stop a move that has not given the VM away yet.
    #[serde(default)]
    pub stop: bool,
}

/// A move that has begun, or was stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmMoveView {
    /// The VM.
    pub vm: Name,
    /// The node that has it now.
    pub owner: NodeId,
    /// Where it goes; none if it goes nowhere.
    pub to: Option<Name>,
}
