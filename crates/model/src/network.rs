//! Addresses and virtual networks.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

use crate::Name;
use crate::NetworkId;
use crate::UnixMillis;

/// An Ethernet address, written `52:54:00:12:34:56`. Always unicast.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String)]
pub struct MacAddr([u8; 6]);

/// An IPv4 network, written `10.77.0.0/24`. The host bits are zero; the prefix is 8 to 29.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv4Subnet {
    base: Ipv4Addr,
    prefix: u8,
}

/// Text that is not an address of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseNetworkError {
    /// Not six pairs of hexadecimal digits.
    #[error("'{0}' is not a MAC address; write six pairs of hex digits: 52:54:00:12:34:56")]
    Mac(String),
    /// A group address, which no adapter can own.
    #[error("{0} is a multicast MAC address; the first byte must be even")]
    MulticastMac(String),
    /// Not an IPv4 network.
    #[error("'{0}' is not an IPv4 network; write one such as 10.77.0.0/24, prefix 8 to 29")]
    Subnet(String),
}

/// What a virtual network is made of on each host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum NetworkKind {
    /// A network of the host's own: DHCP and DNS from Muster, the way out by address translation.
    Nat {
        /// The network; its first address is the host's (gateway, DNS).
        #[schema(value_type = String)]
        subnet: Ipv4Subnet,
    },
    /// Guests stand in the host's own network, through a bridge that the administrator has made.
    Bridge {
        /// Name of the host's bridge device, at most 15 characters.
        bridge: String,
    },
}

/// A virtual network as the cluster knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkRecord {
    /// Its id.
    pub id: NetworkId,
    /// Its name, unique among networks.
    pub name: Name,
    /// What it is made of.
    #[serde(flatten)]
    pub kind: NetworkKind,
    /// When it was made.
    pub created: UnixMillis,
}

impl MacAddr {
    /// Wraps six bytes; the group bit is cleared.
    pub const fn from_bytes(mut bytes: [u8; 6]) -> Self {
        bytes[0] &= 0xfe;
        Self(bytes)
    }

    /// The six bytes in wire order.
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddr {
    type Err = ParseNetworkError;

    fn from_str(text: &str) -> Result<Self, ParseNetworkError> {
        let bad = || ParseNetworkError::Mac(text.chars().take(40).collect());
        let mut bytes = [0_u8; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(bad)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() || bytes == [0; 6] {
            return Err(bad());
        }
        if bytes[0] & 1 == 1 {
            return Err(ParseNetworkError::MulticastMac(text.to_owned()));
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MacAddr({self})")
    }
}

impl TryFrom<String> for MacAddr {
    type Error = ParseNetworkError;

    fn try_from(text: String) -> Result<Self, ParseNetworkError> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

impl Ipv4Subnet {
    /// The network's own address.
    pub const fn base(self) -> Ipv4Addr {
        self.base
    }

    /// The prefix length, 8 to 29.
    pub const fn prefix(self) -> u8 {
        self.prefix
    }

    /// The network mask.
    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::MAX << (32 - u32::from(self.prefix)))
    }

    /// The first usable address: the host's own.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.base) + 1)
    }

    /// The last address of the network.
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.base) | !u32::from(self.mask()))
    }

    /// Whether the address lies in the network.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & u32::from(self.mask()) == u32::from(self.base)
    }

    /// The addresses that guests may have, lowest first: all but base, gateway and broadcast.
    pub fn guest_addresses(self) -> impl Iterator<Item = Ipv4Addr> {
        let first = u32::from(self.gateway()) + 1;
        let last = u32::from(self.broadcast());
        (first..last).map(Ipv4Addr::from)
    }

    /// Whether the two networks share an address.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.base) || other.contains(self.base)
    }
}

impl FromStr for Ipv4Subnet {
    type Err = ParseNetworkError;

    fn from_str(text: &str) -> Result<Self, ParseNetworkError> {
        let bad = || ParseNetworkError::Subnet(text.chars().take(40).collect());
        let (base, prefix) = text.split_once('/').ok_or_else(bad)?;
        let base: Ipv4Addr = base.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        if !(8..=29).contains(&prefix) {
            return Err(bad());
        }
        let subnet = Self { base, prefix };
        if u32::from(base) & !u32::from(subnet.mask()) != 0 {
            return Err(bad());
        }
        Ok(subnet)
    }
}

impl fmt::Display for Ipv4Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl fmt::Debug for Ipv4Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ipv4Subnet({self})")
    }
}

impl TryFrom<String> for Ipv4Subnet {
    type Error = ParseNetworkError;

    fn try_from(text: String) -> Result<Self, ParseNetworkError> {
        text.parse()
    }
}

impl From<Ipv4Subnet> for String {
    fn from(subnet: Ipv4Subnet) -> Self {
        subnet.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_are_read_strictly() {
        let mac: MacAddr = "52:54:00:aB:00:01".parse().unwrap();
        assert_eq!(mac.to_string(), "52:54:00:ab:00:01");
        for bad in
            ["", "52:54:00:ab:00", "52:54:00:ab:00:01:02", "5:54:00:ab:00:01", "zz:54:00:ab:00:01"]
        {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
        assert!(matches!(
            "01:00:5e:00:00:01".parse::<MacAddr>(),
            Err(ParseNetworkError::MulticastMac(_))
        ));
    }

    #[test]
    fn a_subnet_knows_its_addresses() {
        let subnet: Ipv4Subnet = "10.77.0.0/29".parse().unwrap();
        assert_eq!(subnet.gateway(), Ipv4Addr::new(10, 77, 0, 1));
        assert_eq!(subnet.broadcast(), Ipv4Addr::new(10, 77, 0, 7));
        let guests: Vec<_> = subnet.guest_addresses().collect();
        assert_eq!(guests.first(), Some(&Ipv4Addr::new(10, 77, 0, 2)));
        assert_eq!(guests.last(), Some(&Ipv4Addr::new(10, 77, 0, 6)));
        assert!("10.77.0.1/24".parse::<Ipv4Subnet>().is_err());
        assert!("10.77.0.0/30".parse::<Ipv4Subnet>().is_err());
        assert!("255.255.255.0/24".parse::<Ipv4Subnet>().is_ok());
    }
}
