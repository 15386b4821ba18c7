//! Names, numbers and addresses of everything in a lab. Pure.
//!
//! A lab's *tag*, six hexadecimal digits of its directory's digest, is in the name of what lies in
//! common places of the machine: the control group and the cable to the machine. All else is in
//! namespaces of the lab's own and needs none.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::Path;
use std::str::FromStr;

use serde::Deserialize;
use serde::Serialize;
use sha2::Digest;
use sha2::Sha256;

use crate::error::LabError;

/// Most nodes of a lab: as many as the largest cluster that Muster is made for.
pub(crate) const NODES_MAX: u8 = 64;

/// Last byte of the first node's address, less its number: the ones below are the world's own.
const NODE_BASE: u8 = 10;

/// Third byte of the addresses of the cable to the machine.
const HOST_LINK: u8 = 255;

/// First two bytes of the hardware addresses: locally administered, "l" for lab.
const MAC_BEGIN: [u8; 2] = [0x02, 0x6c];

/// One of the networks that each node has a cable to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wire {
    /// Management: API, fence devices.
    Mgmt,
    /// Between the nodes: consensus and heartbeats.
    Cluster,
    /// Memory of machines that move.
    Migration,
    /// What guests are plugged into.
    Vm,
}

impl Wire {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Mgmt, Self::Cluster, Self::Migration, Self::Vm];

    /// The word for it; also the name of its switch in the world.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Mgmt => "mgmt",
            Self::Cluster => "cluster",
            Self::Migration => "migration",
            Self::Vm => "vm",
        }
    }

    /// The end of the cable in a node.
    pub(crate) const fn device(self) -> &'static str {
        match self {
            Self::Mgmt => "mgmt0",
            Self::Cluster => "clus0",
            Self::Migration => "migr0",
            Self::Vm => "vm0",
        }
    }

    /// The device in a node that has the address: guests share the last cable through a bridge.
    pub(crate) const fn address_device(self) -> &'static str {
        match self {
            Self::Vm => "lan0",
            other => other.device(),
        }
    }

    /// The end of a node's cable at the switch.
    pub(crate) fn port(self, node: &NodeName) -> String {
        let short = match self {
            Self::Mgmt => "mgmt",
            Self::Cluster => "clus",
            Self::Migration => "migr",
            Self::Vm => "vm",
        };
        format!("{node}-{short}")
    }

    const fn number(self) -> u8 {
        match self {
            Self::Mgmt => 0,
            Self::Cluster => 1,
            Self::Migration => 2,
            Self::Vm => 3,
        }
    }
}

impl fmt::Display for Wire {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.word())
    }
}

impl FromStr for Wire {
    type Err = LabError;

    fn from_str(text: &str) -> Result<Self, LabError> {
        Self::ALL.into_iter().find(|wire| wire.word() == text).ok_or_else(|| {
            LabError::usage(
                format!("there is no network '{text}' in a lab"),
                "take mgmt, cluster, migration or vm",
            )
        })
    }
}

/// A node: `n1` to `n64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(u8);

impl NodeName {
    /// The node of a number, counted from 1.
    pub(crate) const fn of(number: u8) -> Self {
        Self(number)
    }

    /// Its number, counted from 1.
    pub(crate) const fn number(self) -> u8 {
        self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "n{}", self.0)
    }
}

impl FromStr for NodeName {
    type Err = LabError;

    fn from_str(text: &str) -> Result<Self, LabError> {
        let digits = text.strip_prefix('n').unwrap_or(text);
        let number = digits.parse().ok().filter(|number| (1..=NODES_MAX).contains(number));
        number.map(Self).ok_or_else(|| {
            LabError::usage(
                format!("'{text}' is no node of a lab"),
                "nodes are called n1, n2, ...; see them with: muster lab status",
            )
        })
    }
}

impl TryFrom<String> for NodeName {
    type Error = LabError;

    fn try_from(text: String) -> Result<Self, LabError> {
        text.parse()
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> Self {
        name.to_string()
    }
}

/// The addresses of a lab: two bytes, the rest is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabNet([u8; 2]);

impl Default for LabNet {
    fn default() -> Self {
        Self([10, 90])
    }
}

impl LabNet {
    fn at(self, third: u8, last: u8) -> Ipv4Addr {
        let [a, b] = self.0;
        Ipv4Addr::new(a, b, third, last)
    }

    /// A node's address.
    pub fn of(self, wire: Wire, node: NodeName) -> Ipv4Addr {
        self.at(wire.number(), NODE_BASE + node.number())
    }

    /// The world's own address, which is the gateway.
    pub fn world(self, wire: Wire) -> Ipv4Addr {
        self.at(wire.number(), 1)
    }

    /// Both ends of the cable to the machine: the world's and the machine's.
    pub(crate) fn host_link(self) -> (Ipv4Addr, Ipv4Addr) {
        (self.at(HOST_LINK, 1), self.at(HOST_LINK, 2))
    }
}

impl fmt::Display for LabNet {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/16", self.at(0, 0))
    }
}

impl FromStr for LabNet {
    type Err = LabError;

    fn from_str(text: &str) -> Result<Self, LabError> {
        let bad = || {
            LabError::usage(
                format!("'{text}' is no range for a lab"),
                "give a private network of 16 bits, such as 10.90.0.0/16",
            )
        };
        let address: Ipv4Addr =
            text.strip_suffix("/16").ok_or_else(bad)?.parse().map_err(|_| bad())?;
        let [a, b, c, d] = address.octets();
        if c != 0 || d != 0 || !address.is_private() {
            return Err(bad());
        }
        Ok(Self([a, b]))
    }
}

impl TryFrom<String> for LabNet {
    type Error = LabError;

    fn try_from(text: String) -> Result<Self, LabError> {
        text.parse()
    }
}

impl From<LabNet> for String {
    fn from(net: LabNet) -> Self {
        net.to_string()
    }
}

/// What tells one lab's names from another's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tag {
    text: String,
    bytes: [u8; 3],
}

impl Tag {
    /// The tag of a directory.
    pub(crate) fn of(dir: &Path) -> Self {
        let digest = Sha256::digest(dir.as_os_str().as_encoded_bytes());
        let bytes = [digest[0], digest[1], digest[2]];
        Self { text: bytes.iter().map(|byte| format!("{byte:02x}")).collect(), bytes }
    }

    /// Name of the control group that holds all others.
    pub(crate) fn group(&self) -> String {
        format!("muster-lab-{}", self.text)
    }

    /// The machine's end of the cable.
    pub(crate) fn host_device(&self) -> String {
        format!("mlab-{}", self.text)
    }

    /// Hardware address of a node's device on a wire; without a node, the world's.
    pub(crate) fn mac(&self, wire: Wire, node: Option<NodeName>) -> String {
        let [a, b] = MAC_BEGIN;
        let [c, d, _] = self.bytes;
        let node = node.map_or(0, NodeName::number);
        format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{:02x}:{node:02x}", wire.number())
    }

    /// First user id of a node's machines: nodes must not share one, since limits count per user.
    pub(crate) fn uid_base(&self, node: NodeName) -> u32 {
        /// Above users and containers, below what other daemons of tests take.
        const FIRST: u32 = 600_000_000;
        /// Machines of one node.
        const PER_NODE: u32 = 256;
        /// Labs whose ids do not meet.
        const LABS: u32 = 16_384;
        let [a, b, c] = self.bytes.map(u32::from);
        let lab = (a << 16 | b << 8 | c) % LABS;
        FIRST + (lab * (u32::from(NODES_MAX) + 1) + u32::from(node.number())) * PER_NODE
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::LabNet;
    use super::NODES_MAX;
    use super::NodeName;
    use super::Tag;
    use super::Wire;

    #[test]
    fn every_device_has_a_name_that_the_kernel_takes() {
        let tag = Tag::of(Path::new("/a"));
        for wire in Wire::ALL {
            assert!(wire.port(&NodeName::of(NODES_MAX)).len() <= 15);
            assert_eq!(wire.word().parse::<Wire>(), Ok(wire));
        }
        assert!(tag.host_device().len() <= 15);
    }

    #[test]
    fn names_and_ranges_that_are_none_are_refused() {
        for text in ["", "n0", "n65", "world", "n-1", "n1; reboot", "n1/..", "n300"] {
            assert!(text.parse::<NodeName>().is_err(), "{text}");
        }
        assert_eq!("n7".parse::<NodeName>().unwrap().to_string(), "n7");
        assert_eq!("7".parse::<NodeName>().unwrap().to_string(), "n7");
        for text in ["10.90.0.0", "10.90.1.0/16", "8.8.0.0/16", "10.90.0.0/24", "x/16"] {
            assert!(text.parse::<LabNet>().is_err(), "{text}");
        }
        let net: LabNet = "172.20.0.0/16".parse().unwrap();
        assert_eq!(net.of(Wire::Cluster, NodeName::of(2)).to_string(), "172.20.1.12");
        assert_eq!(net.to_string(), "172.20.0.0/16");
    }

    #[test]
    fn two_labs_share_neither_names_nor_users() {
        let (a, b) = (Tag::of(Path::new("/a")), Tag::of(Path::new("/b")));
        assert_ne!(a.group(), b.group());
        assert_ne!(a.uid_base(NodeName::of(1)), b.uid_base(NodeName::of(1)));
        assert_eq!(a.uid_base(NodeName::of(2)) - a.uid_base(NodeName::of(1)), 256);
        // The last user id of the last lab is one that a user id can be.
        assert!(u64::from(a.uid_base(NodeName::of(64))) < 2_000_000_000);
    }
}
