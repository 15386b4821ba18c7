//! High availability: plans, capacity, placement rules, moves.

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
