//! Why a network or a port cannot be had, in words that end in a next step.

use std::net::Ipv4Addr;

use model::Ipv4Subnet;
use model::NetworkId;
use model::NicId;

use crate::tag::LinkName;

/// Why a network or a port cannot be had now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The host already reaches these addresses another way.
    #[error(
        "network {network} wants {subnet}, but this host has a route to {route} through {link}; \
         give the network another subnet, or remove that route (ip route del {route})"
    )]
    RouteConflict {
        /// Name of the network.
        network: String,
        /// What it wants.
        subnet: Ipv4Subnet,
        /// The route in the way.
        route: String,
        /// The device of that route.
        link: String,
    },
    /// Two networks share addresses.
    #[error(
        "network {network} ({subnet}) overlaps network {other} ({other_subnet}); give one of them \
         another subnet"
    )]
    SubnetOverlap {
        /// Name of the refused network.
        network: String,
        /// Its subnet.
        subnet: Ipv4Subnet,
        /// Name of the one that has the addresses.
        other: String,
        /// Its subnet.
        other_subnet: Ipv4Subnet,
    },
    /// No such bridge on this host.
    #[error(
        "network {network} uses the host bridge '{bridge}', which {what}; make it (ip link add \
         {bridge} type bridge) or name another bridge in the network"
    )]
    NoHostBridge {
        /// Name of the network.
        network: String,
        /// Name of the bridge.
        bridge: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A device with the name we need exists and is something else.
    #[error("the device name {link} is taken by something that is not ours; rename that device")]
    NameTaken {
        /// The device.
        link: LinkName,
    },
    /// Two ids give one device name.
    #[error("two ids share the short name {link}; make one of the two anew")]
    ShortIdCollision {
        /// The device.
        link: LinkName,
    },
    /// The port names a network that is not here.
    #[error("the NIC's network {0} does not exist on this host; attach the NIC to another network")]
    NoNetwork(NetworkId),
    /// The network itself is refused.
    #[error("the NIC's network cannot be had: {0}")]
    NetworkRefused(Box<Refused>),
    /// The reserved address is not one of the network's guest addresses.
    #[error("address {address} cannot be given to a guest of {subnet}; reserve another")]
    BadAddress {
        /// The address.
        address: Ipv4Addr,
        /// The network.
        subnet: Ipv4Subnet,
    },
    /// Another port of the network has the same MAC or IP address.
    #[error("{what} is already in use on this network by NIC {other}; change one of them")]
    Duplicate {
        /// The address, as text.
        what: String,
        /// Who has it.
        other: NicId,
    },
}
