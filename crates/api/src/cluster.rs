//! What the API says of the cluster as a whole.

use model::ClusterId;
use model::JoinTokenId;
use model::Name;
use model::NodeId;
use model::UnixMillis;
use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

use crate::witness::WitnessView;

/// The cluster as the node that was asked sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterView {
    /// Its id; absent for a host that never made or joined a cluster.
    pub id: Option<ClusterId>,
    /// Its name.
    pub name: Option<Name>,
    /// When it was made.
    pub created: Option<UnixMillis>,
    /// The node that was asked.
    pub node: NodeId,
    /// Whether changes are possible now.
    pub health: ClusterHealth,
    /// The state of things in sentences: who leads, who votes, what may still be lost, what to do.
    pub words: Vec<String>,
    /// The node that leads.
    pub leader: Option<NodeId>,
    /// Number of the election by which it leads.
    pub term: u64,
    /// How many vote: nodes, and the witness while it votes.
    pub voters: u32,
    /// How many of these must agree to a change.
    pub majority: u32,
    /// How many voters that answer now may be lost while changes stay possible.
    pub may_lose: u32,
    /// The nodes, by name.
    pub nodes: Vec<ClusterNodeView>,
    /// The witness, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub witness: Option<WitnessView>,
}

/// How the cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClusterHealth {
    /// One host by itself: nothing can take its place.
    Single,
    /// Changes are possible and all nodes answer.
    Healthy,
    /// Changes are possible, and something is missing.
    Degraded,
    /// No majority: VMs go on, nothing can be changed.
    NoQuorum,
    /// This node is no longer a member.
    Gone,
}

/// A node as a member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterNodeView {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: Name,
    /// Its part in decisions.
    pub part: ClusterPart,
    /// Whether it answers now.
    pub reachable: bool,
    /// Changes that it does not have yet; absent where it does not answer.
    pub behind: Option<u64>,
    /// Addresses of its peer port.
    pub addresses: Vec<String>,
    /// Version of Muster.
    pub version: String,
    /// When its certificate ends; absent where it does not answer.
    pub certificate_ends: Option<UnixMillis>,
    /// What is wrong with it, with a next step.
    pub problem: Option<String>,
}

/// A node's part in decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClusterPart {
    /// It decides the order of changes.
    Leader,
    /// It votes.
    Voter,
    /// It gets all changes and does not vote.
    Learner,
    /// It has joined and is being brought in.
    Joining,
    /// It has lost its log, does not vote, and gets a new one from the others.
    Damaged,
    /// It has asked to leave.
    Leaving,
    /// It was given up when the quorum was forced.
    Lost,
}

/// A cluster to make of a single host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterCreateBody {
    /// Its name; `muster` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
}

/// A cluster to join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterJoinBody {
    /// The token that a member made.
    pub token: String,
}

/// A join that was accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterJoinView {
    /// The cluster.
    pub id: ClusterId,
    /// Its name.
    pub name: String,
    /// This host's new id. Its daemon starts anew under it now.
    pub node: NodeId,
    /// The members, this one among them.
    pub members: Vec<Name>,
}

/// How to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterLeaveBody {
    /// Forget the cluster without asking it: for a host that was evicted, or whose cluster is lost.
    #[serde(default)]
    pub force: bool,
}

/// How to evict a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct NodeEvictQuery {
    /// Also if VMs lie on its own disks: the cluster forgets them; their files stay on those disks.
    #[serde(default)]
    pub forget_vms: bool,
}

/// Which nodes are given up, so that those that are left go on without a majority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterForceBody {
    /// Name or id of each node that is off for good.
    pub lost: Vec<String>,
    /// The cluster's name, as a person typed it.
    pub confirm: String,
}

/// A forcing of the quorum that was accepted. It is done while the daemon of the node that was asked
/// starts anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterForceView {
    /// The node that was asked.
    pub node: NodeId,
    /// Who is given up: they come back only as new nodes.
    pub lost: Vec<Name>,
    /// Who goes on.
    pub stay: Vec<Name>,
}

/// A join token to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinTokenCreateBody {
    /// How long it is valid, in seconds; one hour if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_s: Option<u64>,
    /// How many hosts it takes in, 1 to 64; 64 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
}

/// A join token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinTokenView {
    /// Its id.
    pub id: JoinTokenId,
    /// When it was made.
    pub created: UnixMillis,
    /// When it ends.
    pub expires: UnixMillis,
    /// How many hosts it can still take in.
    pub uses: u32,
    /// Who made it.
    pub by: String,
}

/// A new join token, which is shown this once and kept nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinTokenSecretView {
    /// The token.
    #[serde(flatten)]
    pub token: JoinTokenView,
    /// What the new host is given: `muster cluster join TOKEN`.
    pub text: String,
}
