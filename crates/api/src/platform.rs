//! Words of the API about what machines can be like on the nodes: processors and machine types.

use model::Accelerator;
use model::Name;
use model::NodeId;
use model::VmId;
use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

/// What machines can be like on the nodes, and which cannot go everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct ClusterCpuView {
    /// Nodes with processors of one maker that are carried out in one way: within a group, machines
    /// can move while they run.
    pub groups: Vec<CpuGroupView>,
    /// Nodes that have not said what they can.
    pub unknown: Vec<Name>,
    /// The newest machine type that all nodes know; new machines and upgraded ones get it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Machines of which there is something to say.
    pub vms: Vec<VmCpuView>,
}

/// Nodes of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CpuGroupView {
    /// What carries processors out there.
    pub accelerator: Accelerator,
    /// The least model of their maker.
    pub base: String,
    /// What all of them have beyond it: machines that are switched on get this.
    pub baseline: Vec<String>,
    /// The nodes, by name.
    pub nodes: Vec<NodeCpuView>,
}

/// One node of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeCpuView {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: Name,
    /// Engine and version.
    pub engine: String,
    /// Its newest machine type.
    pub machine: String,
    /// What it has beyond the baseline.
    pub more: Vec<String>,
    /// What it alone of its group lacks: without it, machines would get these, too.
    pub lowers: Vec<String>,
}

/// One machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmCpuView {
    /// Its id.
    pub id: VmId,
    /// Its name.
    pub name: Name,
    /// Where it is.
    pub node: Name,
    /// Nodes of its group that it cannot go to while it runs or is saved.
    pub kept_from: Vec<Name>,
    /// What it would get if it were off and on again.
    pub gains: Vec<String>,
    /// What it would lose then.
    pub loses: Vec<String>,
    /// The machine type that `upgrade` would give it, where that is newer than its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newer_machine: Option<String>,
}
