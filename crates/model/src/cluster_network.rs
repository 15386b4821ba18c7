//! Networks that hosts have in common, and what they are for (DESIGN.md section 5).
//!
//! A network is found by itself: every node tells the addresses of its devices. An administrator gives
//! it a name and the role that memory of moving machines goes over it, in an order of preference.

use std::fmt;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

use crate::ClusterState;
use crate::Name;
use crate::NodeId;

/// Lowest preference of a network.
pub(crate) const PREFERENCE_MAX: u8 = 9;

/// An IP network of hosts, written `10.90.2.0/24` or `fd00:2::/64`. The host bits are zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IpSubnet(IpNet);

/// Text that is no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a network; write one such as 10.90.2.0/24 or fd00:2::/64")]
pub struct SubnetError(String);

/// An address of a node's device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct NodeInterface {
    /// The address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// How many of its bits name its network.
    pub prefix: u8,
}

/// A network of hosts that an administrator has said something about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterNetworkRecord {
    /// Which.
    #[schema(value_type = String)]
    pub subnet: IpSubnet,
    /// Its name, unique among them.
    pub name: Name,
    /// Whether machines' memory goes over it when they move, and in which order of preference: 1 is
    /// the first, 9 the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<u8>,
}

/// A way from one node to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// The other's address.
    pub address: SocketAddr,
    /// The network with the role that it belongs to; none: it is the way of all other calls.
    pub network: Option<Name>,
}

impl IpSubnet {
    /// The network of an address; none where there are not so many bits.
    pub fn of(address: IpAddr, prefix: u8) -> Option<Self> {
        IpNet::new(address, prefix).ok().map(|net| Self(net.trunc()))
    }

    /// Whether an address belongs to it.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }
}

impl NodeInterface {
    /// The network that it is in.
    pub fn subnet(&self) -> Option<IpSubnet> {
        IpSubnet::of(self.address, self.prefix)
    }
}

impl FromStr for IpSubnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let bad = || SubnetError(text.chars().take(60).collect());
        let net: IpNet = text.parse().map_err(|_| bad())?;
        if net.prefix_len() > 0 && net.trunc() == net { Ok(Self(net)) } else { Err(bad()) }
    }
}

impl fmt::Display for IpSubnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for IpSubnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IpSubnet({self})")
    }
}

impl TryFrom<String> for IpSubnet {
    type Error = SubnetError;

    fn try_from(text: String) -> Result<Self, SubnetError> {
        text.parse()
    }
}

impl From<IpSubnet> for String {
    fn from(subnet: IpSubnet) -> Self {
        subnet.to_string()
    }
}

impl ClusterState {
    /// The network of a name or of its own words.
    pub fn cluster_network(&self, selector: &str) -> Option<&ClusterNetworkRecord> {
        let key = selector.to_ascii_lowercase();
        let is_it = |record: &&std::sync::Arc<ClusterNetworkRecord>| {
            record.name.key() == key || record.subnet.to_string() == key
        };
        self.cluster_networks.values().find(is_it).map(|record| &**record)
    }

    /// Networks with the migration role, the preferred one first.
    pub fn migration_networks(&self) -> Vec<&ClusterNetworkRecord> {
        let mut networks: Vec<_> = self
            .cluster_networks
            .values()
            .map(|record| &**record)
            .filter(|it| it.migration.is_some())
            .collect();
        networks.sort_by_key(|it| (it.migration, it.subnet));
        networks
    }

    /// Ways for the memory of a machine that moves, the preferred one first: networks with the role
    /// that both nodes are in, and after them, where no network has the role or it is allowed, the way
    /// of all other calls. Empty: there is none that may be used.
    pub fn migration_ways(&self, from: NodeId, to: NodeId) -> Vec<Way> {
        let (Some(from), Some(to)) = (self.nodes.get(&from), self.nodes.get(&to)) else {
            return Vec::new();
        };
        let Some(port) = to.facts.addresses.first().map(SocketAddr::port) else {
            return Vec::new();
        };
        let networks = self.migration_networks();
        let mut ways = Vec::new();
        for network in &networks {
            let has = |it: &&NodeInterface| it.subnet() == Some(network.subnet);
            if from.facts.interfaces.iter().any(|it| has(&it))
                && let Some(there) = to.facts.interfaces.iter().find(has)
            {
                let address = SocketAddr::new(there.address, port);
                ways.push(Way { address, network: Some(network.name.clone()) });
            }
        }
        if networks.is_empty() || !self.migration_strict {
            let known = |address: &SocketAddr| ways.iter().any(|way| way.address == *address);
            let others: Vec<SocketAddr> =
                to.facts.addresses.iter().copied().filter(|it| !known(it)).collect();
            ways.extend(others.into_iter().map(|address| Way { address, network: None }));
        }
        ways
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_strictly() {
        for good in ["10.90.2.0/24", "10.0.0.4/30", "192.168.1.1/32", "fd00:2::/64", "fe80::1/128"]
        {
            assert_eq!(good.parse::<IpSubnet>().unwrap().to_string(), good);
        }
        for bad in
            ["", "10.90.2.1/24", "10.90.2.0", "10.0.0.0/33", "fd00::/129", "0.0.0.0/0", "x/8"]
        {
            assert!(bad.parse::<IpSubnet>().is_err(), "{bad}");
        }
        let net: IpSubnet = "10.90.2.0/24".parse().unwrap();
        assert!(net.contains("10.90.2.255".parse().unwrap()));
        assert!(!net.contains("10.90.3.0".parse().unwrap()));
        assert!(!net.contains("fd00::1".parse().unwrap()));
    }
}
