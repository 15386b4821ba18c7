//! Words of the API about networks that hosts have in common.

use std::net::IpAddr;

use model::IpSubnet;
use model::Name;
use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

/// Networks of hosts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct ClusterNetworksView {
    /// All that at least two nodes have, or that something is said about.
    pub networks: Vec<ClusterNetworkView>,
    /// Whether machines move over networks with the migration role only.
    pub strict: bool,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterNetworkView {
    /// Which.
    #[schema(value_type = String)]
    pub subnet: IpSubnet,
    /// Its name, if it was given one.
    pub name: Option<Name>,
    /// Whether heartbeats and calls between nodes go over it.
    pub cluster: bool,
    /// Whether memory of moving machines goes over it: its place in the order of preference, 1 is
    /// the first.
    pub migration: Option<u8>,
    /// Nodes that are in it, by name.
    pub nodes: Vec<ClusterNetworkNode>,
    /// Nodes that are not.
    pub missing: Vec<Name>,
}

/// A node in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterNetworkNode {
    /// Its name.
    pub node: Name,
    /// Its address there.
    #[schema(value_type = String)]
    pub address: IpAddr,
}

/// What is to be said of a network; what is absent stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterNetworkSetBody {
    /// Its name, or itself, such as `10.90.2.0/24`.
    pub network: String,
    /// What it is called from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// Memory of moving machines goes over it, in this place of the order of preference, 1 to 9; 0
    /// takes the role away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<u8>,
}

/// Whether other networks may be used where those with the migration role do not work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MigrationStrictBody {
    /// Whether they may not.
    pub strict: bool,
}
