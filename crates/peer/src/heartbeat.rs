//! Heartbeats between nodes: one small datagram on each cluster network, five times a second.
//!
//! ```text
//!   0       4            20           36            44        52      54
//!   | "MHB1" | cluster id | sender     | incarnation | number  | count | count ids of 16 bytes |
//!   | HMAC-SHA-256 over all before, 32 bytes |
//! ```
//!
//! Numbers are big endian. A heartbeat names those whom the sender hears itself, so that a node that
//! one other node cannot reach is not taken for dead (DESIGN.md section 5).
//!
//! The key is made from the key of the cluster's CA, which all members and nobody else have: a
//! stranger cannot keep a dead node alive. A copy of an old heartbeat is dropped by its number, by
//! whoever counts them; a member that lies about others can only keep them alive, never kill them.
//!
//! | version | change |
//! | --- | --- |
//! | 1 | first |

use std::collections::BTreeSet;
use std::fmt;

use aws_lc_rs::hmac;
use model::ClusterId;
use model::NodeId;
use model::SecretText;
use uuid::Uuid;

const MAGIC: [u8; 4] = *b"MHB1";

/// Before the ids: magic, cluster, sender, incarnation, number, count.
const HEAD_BYTES: usize = 54;

const ID_BYTES: usize = 16;

pub(crate) const MAC_BYTES: usize = 32;

/// As many as a cluster has nodes (DESIGN.md section 1).
const NODES_MAX: usize = 64;

/// The longest heartbeat; it fits into one packet of every network.
pub const HEARTBEAT_BYTES_MAX: usize = HEAD_BYTES + NODES_MAX * ID_BYTES + MAC_BYTES;

/// What says for which use a key was made.
const LABEL: &[u8] = b"muster heartbeat v1";

/// The key that all members of a cluster share.
pub struct HeartbeatKey {
    pub(crate) cluster: ClusterId,
    pub(crate) key: hmac::Key,
}

/// What a heartbeat says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    /// Who sent it.
    pub from: NodeId,
    /// Changes with each start of its daemon.
    pub incarnation: u64,
    /// Grows within an incarnation.
    pub number: u64,
    /// Whom it hears; at most 64.
    pub hears: BTreeSet<NodeId>,
}

/// What is wrong with a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadHeartbeat {
    /// It is none, or one of a version that this one does not know.
    #[error("not a heartbeat of this version")]
    Form,
    /// It is of another cluster.
    #[error("a heartbeat of another cluster")]
    Cluster,
    /// Its sender does not have the key.
    #[error("a heartbeat that is not signed by a member")]
    Signature,
}

impl fmt::Debug for HeartbeatKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeartbeatKey").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl HeartbeatKey {
    /// The key of a cluster, from the key of its CA.
    pub fn new(cluster: ClusterId, ca_key: &SecretText) -> Self {
        let root = hmac::Key::new(hmac::HMAC_SHA256, ca_key.reveal().as_bytes());
        let own = hmac::sign(&root, LABEL);
        Self { cluster, key: hmac::Key::new(hmac::HMAC_SHA256, own.as_ref()) }
    }

    /// Writes a heartbeat. Of more than 64 nodes that are heard, the first 64 are named.
    pub fn encode(&self, heartbeat: &Heartbeat) -> Vec<u8> {
        let count = heartbeat.hears.len().min(NODES_MAX);
        let mut bytes = Vec::with_capacity(HEAD_BYTES + count * ID_BYTES + MAC_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(self.cluster.uuid().as_bytes());
        bytes.extend(heartbeat.from.uuid().as_bytes());
        bytes.extend(heartbeat.incarnation.to_be_bytes());
        bytes.extend(heartbeat.number.to_be_bytes());
        // At most 64.
        bytes.extend((count as u16).to_be_bytes());
        for node in heartbeat.hears.iter().take(count) {
            bytes.extend(node.uuid().as_bytes());
        }
        let mac = hmac::sign(&self.key, &bytes);
        bytes.extend(mac.as_ref());
        bytes
    }

    /// Reads a heartbeat and proves that a member sent it.
    ///
    /// # Errors
    /// [`BadHeartbeat`]; nothing of what it says is to be believed then.
    pub fn decode(&self, bytes: &[u8]) -> Result<Heartbeat, BadHeartbeat> {
        let (from, rest) = self.open(MAGIC, bytes)?;
        let (incarnation, rest) = number(rest)?;
        let (number, rest) = number(rest)?;
        let (count, mut rest) = rest.split_first_chunk::<2>().ok_or(BadHeartbeat::Form)?;
        let count = usize::from(u16::from_be_bytes(*count));
        if count > NODES_MAX || rest.len() != count * ID_BYTES {
            return Err(BadHeartbeat::Form);
        }
        let mut hears = BTreeSet::new();
        for _ in 0..count {
            let (node, after) = id(rest)?;
            hears.insert(NodeId::new(node));
            rest = after;
        }
        Ok(Heartbeat { from, incarnation, number, hears })
    }

    /// Proves that a member sent a datagram of that kind: who, and what follows.
    pub(crate) fn open<'a>(
        &self,
        kind: [u8; 4],
        bytes: &'a [u8],
    ) -> Result<(NodeId, &'a [u8]), BadHeartbeat> {
        let (said, mac) = bytes.split_last_chunk::<MAC_BYTES>().ok_or(BadHeartbeat::Form)?;
        let (magic, rest) = said.split_first_chunk::<4>().ok_or(BadHeartbeat::Form)?;
        if *magic != kind {
            return Err(BadHeartbeat::Form);
        }
        let (cluster, rest) = id(rest)?;
        if cluster != self.cluster.uuid() {
            return Err(BadHeartbeat::Cluster);
        }
        hmac::verify(&self.key, said, mac).map_err(|_| BadHeartbeat::Signature)?;
        let (from, rest) = id(rest)?;
        Ok((NodeId::new(from), rest))
    }
}

fn id(bytes: &[u8]) -> Result<(Uuid, &[u8]), BadHeartbeat> {
    let (id, rest) = bytes.split_first_chunk::<ID_BYTES>().ok_or(BadHeartbeat::Form)?;
    Ok((Uuid::from_bytes(*id), rest))
}

pub(crate) fn number(bytes: &[u8]) -> Result<(u64, &[u8]), BadHeartbeat> {
    let (number, rest) = bytes.split_first_chunk::<8>().ok_or(BadHeartbeat::Form)?;
    Ok((u64::from_be_bytes(*number), rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::any;
    use proptest::prelude::prop;
    use proptest::prelude::proptest;

    use super::*;

    fn key(cluster: u128, secret: &str) -> HeartbeatKey {
        HeartbeatKey::new(ClusterId::new(Uuid::from_u128(cluster)), &SecretText::new(secret))
    }

    fn heartbeat(hears: u128) -> Heartbeat {
        let node = |n| NodeId::new(Uuid::from_u128(n));
        Heartbeat {
            from: node(7),
            incarnation: 1 << 40,
            number: u64::MAX,
            hears: (1..=hears).map(node).collect(),
        }
    }

    #[test]
    fn what_was_said_is_heard() {
        for hears in [0, 1, 64] {
            let bytes = key(1, "s").encode(&heartbeat(hears));
            assert!(bytes.len() <= HEARTBEAT_BYTES_MAX);
            assert_eq!(key(1, "s").decode(&bytes), Ok(heartbeat(hears)));
        }
        let crowded = key(1, "s").encode(&heartbeat(80));
        assert_eq!(key(1, "s").decode(&crowded).map(|it| it.hears.len()), Ok(64));
    }

    #[test]
    fn strangers_are_not_heard() {
        let bytes = key(1, "s").encode(&heartbeat(3));
        assert_eq!(key(2, "s").decode(&bytes), Err(BadHeartbeat::Cluster));
        assert_eq!(key(1, "t").decode(&bytes), Err(BadHeartbeat::Signature));
    }

    #[test]
    fn no_byte_can_be_changed_and_none_cut_off() {
        let bytes = key(1, "s").encode(&heartbeat(3));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(key(1, "s").decode(&changed).is_err(), "byte {at}");
            assert!(key(1, "s").decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    proptest! {
        #[test]
        fn garbage_is_refused(garbage in prop::collection::vec(any::<u8>(), 0..2_000)) {
            assert!(key(1, "s").decode(&garbage).is_err());
        }
    }
}
