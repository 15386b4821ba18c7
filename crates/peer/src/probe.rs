//! Probes between nodes: is the way on this network open, how long is it, how large a packet fits.
//!
//! ```text
//!   0       4            20       36       44     45           47
//!   | "MPR1" | cluster id | sender | number | kind | asked size | zeroes ... | HMAC-SHA-256 |
//! ```
//!
//! Numbers are big endian. A probe goes from a socket of its own to the port that hears heartbeats,
//! since that is the way that must be open. A question may have any size up to
//! [`PROBE_BYTES_MAX`]; its answer says that size and has always the smallest one, so that an answer
//! is never larger than the question, whoever may have copied one. It carries the question's number,
//! which is random: an old answer fits no new question.
//!
//! The key is that of heartbeats; the first four bytes, which are signed, tell one from the other.
//!
//! | version | change |
//! | --- | --- |
//! | 1 | first |

use aws_lc_rs::hmac;
use model::NodeId;

use crate::heartbeat::BadHeartbeat;
use crate::heartbeat::HeartbeatKey;
use crate::heartbeat::MAC_BYTES;
use crate::heartbeat::number;

const MAGIC: [u8; 4] = *b"MPR1";

/// Magic, cluster, sender, number, kind, asked size.
const HEAD_BYTES: usize = 47;

const QUESTION: u8 = 1;
const ANSWER: u8 = 2;

/// The smallest question, and every answer.
pub const PROBE_BYTES_MIN: usize = HEAD_BYTES + MAC_BYTES;

/// The largest question: what a packet of 9,216 bytes could hold, the largest that Ethernet devices
/// take.
pub const PROBE_BYTES_MAX: usize = 9_216;

/// A probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Who sent it.
    pub from: NodeId,
    /// That of the question.
    pub number: u64,
    /// Whether it is an answer; then, the size of the question as it arrived.
    pub answers: Option<u16>,
}

/// Whether a datagram means to be a probe.
pub fn is_probe(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

impl HeartbeatKey {
    /// Writes a probe. A question has `bytes` bytes, or as near as limits allow.
    pub fn encode_probe(&self, probe: &Probe, bytes: usize) -> Vec<u8> {
        let size = match probe.answers {
            Some(_) => PROBE_BYTES_MIN,
            None => bytes.clamp(PROBE_BYTES_MIN, PROBE_BYTES_MAX),
        };
        let mut said = Vec::with_capacity(size);
        said.extend(MAGIC);
        said.extend(self.cluster.uuid().as_bytes());
        said.extend(probe.from.uuid().as_bytes());
        said.extend(probe.number.to_be_bytes());
        said.push(if probe.answers.is_some() { ANSWER } else { QUESTION });
        said.extend(probe.answers.unwrap_or_default().to_be_bytes());
        said.resize(size - MAC_BYTES, 0);
        let mac = hmac::sign(&self.key, &said);
        said.extend(mac.as_ref());
        said
    }

    /// Reads a probe and proves that a member sent it.
    ///
    /// # Errors
    /// [`BadHeartbeat`]; nothing of what it says is to be believed then.
    pub fn decode_probe(&self, bytes: &[u8]) -> Result<Probe, BadHeartbeat> {
        if bytes.len() > PROBE_BYTES_MAX {
            return Err(BadHeartbeat::Form);
        }
        let (from, rest) = self.open(MAGIC, bytes)?;
        let (number, rest) = number(rest)?;
        let (kind, rest) = rest.split_first().ok_or(BadHeartbeat::Form)?;
        let (size, _zeroes) = rest.split_first_chunk::<2>().ok_or(BadHeartbeat::Form)?;
        let answers = match *kind {
            QUESTION => None,
            ANSWER => Some(u16::from_be_bytes(*size)),
            _ => return Err(BadHeartbeat::Form),
        };
        Ok(Probe { from, number, answers })
    }

    /// The answer of `me` to a datagram, if it is a question of a member.
    ///
    /// # Errors
    /// [`BadHeartbeat`]; nothing is to be answered then.
    pub fn answer_probe(
        &self,
        me: NodeId,
        bytes: &[u8],
    ) -> Result<(NodeId, Vec<u8>), BadHeartbeat> {
        let question = self.decode_probe(bytes)?;
        if question.answers.is_some() {
            return Err(BadHeartbeat::Form);
        }
        // At most PROBE_BYTES_MAX.
        let size = bytes.len() as u16;
        let answer = Probe { from: me, number: question.number, answers: Some(size) };
        Ok((question.from, self.encode_probe(&answer, PROBE_BYTES_MIN)))
    }
}

#[cfg(test)]
mod tests {
    use model::ClusterId;
    use model::SecretText;
    use proptest::prelude::any;
    use proptest::prelude::prop;
    use proptest::prelude::proptest;
    use uuid::Uuid;

    use super::*;

    fn key(cluster: u128, secret: &str) -> HeartbeatKey {
        HeartbeatKey::new(ClusterId::new(Uuid::from_u128(cluster)), &SecretText::new(secret))
    }

    fn node(n: u128) -> NodeId {
        NodeId::new(Uuid::from_u128(n))
    }

    fn question() -> Probe {
        Probe { from: node(7), number: 1 << 50, answers: None }
    }

    #[test]
    fn an_answer_says_what_arrived_and_is_never_larger_than_the_question() {
        let key = key(1, "s");
        for size in [0, PROBE_BYTES_MIN, 1_472, PROBE_BYTES_MAX, usize::MAX] {
            let asked = key.encode_probe(&question(), size);
            assert_eq!(asked.len(), size.clamp(PROBE_BYTES_MIN, PROBE_BYTES_MAX));
            let (to, answer) = key.answer_probe(node(8), &asked).unwrap();
            assert!(to == node(7) && answer.len() <= asked.len());
            let said = key.decode_probe(&answer).unwrap();
            assert_eq!((said.from, said.number), (node(8), 1 << 50));
            assert_eq!(said.answers.map(usize::from), Some(asked.len()));
            // Answers are not answered: two nodes cannot be made to talk for ever.
            assert!(key.answer_probe(node(7), &answer).is_err());
        }
    }

    #[test]
    fn strangers_and_heartbeats_get_no_answer() {
        let asked = key(1, "s").encode_probe(&question(), 500);
        assert_eq!(key(2, "s").answer_probe(node(8), &asked), Err(BadHeartbeat::Cluster));
        assert_eq!(key(1, "t").answer_probe(node(8), &asked), Err(BadHeartbeat::Signature));
        assert!(key(1, "s").decode(&asked).is_err());
        let beat = crate::Heartbeat {
            from: node(7),
            incarnation: 1,
            number: 1,
            hears: std::collections::BTreeSet::new(),
        };
        assert!(key(1, "s").decode_probe(&key(1, "s").encode(&beat)).is_err());
    }

    #[test]
    fn no_byte_can_be_changed_and_none_cut_off() {
        let asked = key(1, "s").encode_probe(&question(), 100);
        for at in 0..asked.len() {
            let mut changed = asked.clone();
            changed[at] ^= 1;
            assert!(key(1, "s").decode_probe(&changed).is_err(), "byte {at}");
            assert!(key(1, "s").decode_probe(&asked[..at]).is_err(), "cut at {at}");
        }
    }

    proptest! {
        #[test]
        fn garbage_is_refused(garbage in prop::collection::vec(any::<u8>(), 0..2_000)) {
            assert!(key(1, "s").decode_probe(&garbage).is_err());
        }
    }
}
