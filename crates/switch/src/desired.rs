//! What a host's network shall look like: pure data, made from the cluster's state by the caller.

use std::net::Ipv4Addr;

use model::Ipv4Subnet;
use model::MacAddr;
use model::Name;
use model::NetworkId;
use model::NetworkKind;
use model::NicId;

/// MTU of a network when nobody asked for another: plain Ethernet.
pub const MTU_DEFAULT: u16 = 1500;

/// The whole desired state of this host's network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// Networks that shall exist on this host.
    pub networks: Vec<NetworkSpec>,
    /// One port per NIC of a machine on this host, whether it runs or not.
    pub ports: Vec<PortSpec>,
}

/// A virtual network on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSpec {
    /// Its id.
    pub id: NetworkId,
    /// Its name, for messages and the device's alias.
    pub name: Name,
    /// What it is made of.
    pub kind: NetworkKind,
    /// MTU in bytes for a NAT network's bridge, taps and guests; a bridged network has its bridge's.
    pub mtu: u16,
}

/// The place where a NIC is plugged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortSpec {
    /// The NIC.
    pub nic: NicId,
    /// Name of the machine: its host name and its name in the network's DNS.
    pub vm: Name,
    /// The network it is plugged into.
    pub network: NetworkId,
    /// The only source address its frames may carry.
    pub mac: MacAddr,
    /// Its reserved address. On a NAT network: its DHCP lease. If given, the port may send from no
    /// other.
    pub address: Option<Ipv4Addr>,
}

impl NetworkSpec {
    /// The subnet of a NAT network.
    pub fn subnet(&self) -> Option<Ipv4Subnet> {
        match &self.kind {
            NetworkKind::Nat { subnet } => Some(*subnet),
            NetworkKind::Bridge { .. } => None,
        }
    }
}
