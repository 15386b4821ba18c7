//! Names of kernel objects. Every bridge, tap and rule table of one daemon carries its instance
//! tag, so that several daemons on one machine never touch each other's.
//!
//! ```text
//!   n<tag><short network id>   bridge of a NAT network     4 + 8 characters after the letter,
//!   m<tag><short NIC id>       tap of a port               13 of the kernel's 15
//!   muster_<tag>               our tables in the nft families ip and bridge
//!   muster_<tag>_seen          addresses of guests, noted as they pass (nft family bridge)
//! ```
//!
//! The tag has a fixed length, so that the prefix of one instance is never a prefix of another's.

use std::fmt;

use model::NetworkId;
use model::NicId;
use sha2::Digest;
use sha2::Sha256;

/// Length of an instance tag: leaves room for the eight digits of a short id in a link name.
pub const TAG_CHARS: usize = 4;
/// The longest name of a network device: the kernel's IFNAMSIZ without the final zero.
pub const LINK_NAME_CHARS_MAX: usize = 15;

/// Four characters `a-z0-9` that tell one daemon's kernel objects from another's.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct InstanceTag(String);

/// A text that cannot be an instance tag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an instance tag; use exactly four characters of a-z and 0-9")]
pub struct BadTag(String);

impl InstanceTag {
    /// Takes a tag as it is: exactly four characters `a-z0-9`.
    pub fn new(text: &str) -> Result<Self, BadTag> {
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        if text.len() != TAG_CHARS || !text.bytes().all(good) {
            return Err(BadTag(text.chars().take(40).collect()));
        }
        Ok(Self(text.to_owned()))
    }

    /// Derives a tag from something unique to the instance, such as its data directory.
    pub fn derive(seed: &str) -> Self {
        Self(hex(&Sha256::digest(seed.as_bytes()), TAG_CHARS))
    }

    /// The four characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Name of the tap of a NIC.
    pub fn tap(&self, nic: NicId) -> LinkName {
        LinkName(format!("{}{}", self.tap_prefix(), nic.short()))
    }

    /// Name of the bridge of a NAT network.
    pub fn bridge(&self, network: NetworkId) -> LinkName {
        LinkName(format!("{}{}", self.bridge_prefix(), network.short()))
    }

    /// Name of our rule tables.
    pub fn table(&self) -> String {
        format!("muster_{}", self.0)
    }

    /// Name of the table in which addresses of guests are noted.
    pub(crate) fn learning_table(&self) -> String {
        format!("muster_{}_seen", self.0)
    }

    pub(crate) fn tap_prefix(&self) -> String {
        format!("m{}", self.0)
    }

    pub(crate) fn bridge_prefix(&self) -> String {
        format!("n{}", self.0)
    }

    /// A fixed address for a bridge: without one, the bridge takes the lowest address among its
    /// ports, and guests lose their gateway whenever a port comes or goes.
    pub(crate) fn bridge_mac(&self, network: NetworkId) -> [u8; 6] {
        let digest = Sha256::digest(format!("{} {network}", self.0).as_bytes());
        // 02: locally administered, unicast.
        [0x02, 0x6d, digest[0], digest[1], digest[2], digest[3]]
    }
}

impl fmt::Display for InstanceTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Name of a network device of the host.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LinkName(pub(crate) String);

impl LinkName {
    /// Takes a name as the host gave it. Names longer than 15 characters belong to no device.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The first `chars` hexadecimal digits of a digest.
pub(crate) fn hex(bytes: &[u8], chars: usize) -> String {
    let mut text: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    text.truncate(chars);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_have_one_length_and_names_fit_the_kernel() {
        for bad in ["", "abc", "abcde", "ABCD", "a-cd", "ab/d"] {
            assert!(InstanceTag::new(bad).is_err(), "{bad}");
        }
        let tag = InstanceTag::new("ab12").unwrap();
        let nic = NicId::new(uuid::Uuid::from_u128(0x1234_5678_9abc));
        assert_eq!(tag.tap(nic).as_str(), "mab1256789abc");
        assert!(tag.tap(nic).as_str().len() <= LINK_NAME_CHARS_MAX);
        assert_eq!(InstanceTag::derive("/var/lib/muster"), InstanceTag::derive("/var/lib/muster"));
        assert_ne!(InstanceTag::derive("/a"), InstanceTag::derive("/b"));
        assert!(InstanceTag::new(InstanceTag::derive("/a").as_str()).is_ok());
    }
}
