//! The changes of which every pass is made.

use std::fmt;
use std::net::Ipv4Addr;

use crate::rules::Ruleset;
use crate::tag::LinkName;

/// One change of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Delete a device of ours.
    DeleteLink(LinkName),
    /// Make a bridge, down.
    CreateBridge {
        /// Its name.
        name: LinkName,
        /// Its fixed Ethernet address.
        mac: [u8; 6],
        /// A line for people who look at `ip link`.
        alias: String,
    },
    /// The host speaks no IPv6 on this device: a NAT network is IPv4 only.
    SilenceIpv6(LinkName),
    /// Set a device's MTU.
    SetMtu {
        /// The device.
        link: LinkName,
        /// Bytes.
        mtu: u32,
    },
    /// Give a bridge an address.
    AddAddress {
        /// The bridge.
        link: LinkName,
        /// The address.
        address: Ipv4Addr,
        /// Its prefix length.
        prefix: u8,
    },
    /// Take an address away from a bridge.
    RemoveAddress {
        /// The bridge.
        link: LinkName,
        /// The address.
        address: Ipv4Addr,
        /// Its prefix length.
        prefix: u8,
    },
    /// Replace our rules.
    LoadRules(Ruleset),
    /// Begin to note the addresses of guests.
    LearnAddresses,
    /// Remove our rules and what was noted.
    RemoveRules,
    /// Let the host forward IPv4. Never taken back: others may rely on it by then.
    EnableForwarding,
    /// Set a device up.
    SetUp(LinkName),
    /// Make a tap a port of a bridge.
    Attach {
        /// The tap.
        tap: LinkName,
        /// The bridge.
        bridge: LinkName,
    },
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeleteLink(link) => write!(f, "delete {link}"),
            Self::CreateBridge { name, .. } => write!(f, "make the bridge {name}"),
            Self::SilenceIpv6(link) => write!(f, "keep the host's IPv6 off {link}"),
            Self::SetMtu { link, mtu } => write!(f, "set the MTU of {link} to {mtu}"),
            Self::AddAddress { link, address, prefix } => {
                write!(f, "give {address}/{prefix} to {link}")
            }
            Self::RemoveAddress { link, address, prefix } => {
                write!(f, "take {address}/{prefix} from {link}")
            }
            Self::LoadRules(ruleset) => write!(f, "load {} packet rules", ruleset.id.rules),
            Self::LearnAddresses => write!(f, "note the addresses of guests"),
            Self::RemoveRules => write!(f, "remove the packet rules"),
            Self::EnableForwarding => write!(f, "let the host forward IPv4"),
            Self::SetUp(link) => write!(f, "set {link} up"),
            Self::Attach { tap, bridge } => write!(f, "attach {tap} to {bridge}"),
        }
    }
}
