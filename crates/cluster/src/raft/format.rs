//! The forms of what is kept on disk and sent to peers. openraft's own types appear in neither, so
//! that a new version of it changes nothing that is stored.
//!
//! ```text
//!   record = version (1 byte) | CRC-32C of place and content (4 bytes, little endian) | content
//!   place  = the table and key it is stored under, "log/17"; it is not stored with the record
//! ```
//!
//! The place is in the checksum, so that a record that turns up in another's place is found.
//! The content is JSON (docs/decisions/0003), for the pieces of a snapshot a part of one.
//!
//! | version | change |
//! | --- | --- |
//! | 1 | first (JSON of a proposal alone; format 1 of the store) |
//! | 2 | the place is part of the checksum |

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;

use model::ClusterState;
use model::Event;
use model::NodeId;
use openraft::EntryPayload;
use openraft::entry::RaftEntry;
use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::session::Sessions;
use super::types::Entry;
use super::types::Envelope;
use super::types::LeaderId;
use super::types::LogId;
use super::types::Membership;
use super::types::RaftId;
use super::types::StoredMembership;
use super::types::Vote;
use super::types::nodes_of;

/// Version of a record's encoding.
const RECORD_VERSION: u8 = 2;

/// Bytes before the content.
const HEAD_BYTES: usize = 5;

/// An event with its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredEvent {
    /// Its number, the same on each node. Zero: an observation that is not kept.
    pub seq: u64,
    /// What happened.
    pub event: Event,
}

/// A place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// The term of the leader that wrote the entry.
    pub term: u64,
    /// That leader.
    pub leader: NodeId,
    /// The entry's number, from 0.
    pub index: u64,
}

/// The vote of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ballot {
    /// In which term.
    pub term: u64,
    /// For whom.
    pub node: NodeId,
    /// Whether a quorum has given it: that node is leader.
    pub committed: bool,
}

/// The members of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Members {
    /// The voters; two sets while they change, and a majority of each is needed.
    pub voters: Vec<BTreeSet<NodeId>>,
    /// All members, learners among them.
    pub nodes: BTreeSet<NodeId>,
}

/// Members, and the entry that made them so.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MembersAt {
    /// Where in the log.
    pub at: Option<Position>,
    /// Who.
    pub members: Members,
}

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Where it is.
    pub at: Position,
    /// What it is.
    pub what: LogEntryKind,
}

/// What an entry of the log is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogEntryKind {
    /// Nothing: a new leader writes it to learn what is committed.
    Blank,
    /// A proposal.
    Proposal(Arc<Envelope>),
    /// A change of the members.
    Members(Members),
}

/// What a snapshot is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotHead {
    /// The last entry in it.
    pub last: Option<Position>,
    /// The members then.
    pub members: MembersAt,
    /// How long its content is, in bytes.
    pub bytes: u64,
    /// CRC-32C of its content.
    pub crc: u32,
}

/// The state machine, whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MachineImage {
    pub(crate) state: Arc<ClusterState>,
    pub(crate) event_seq: u64,
    pub(crate) sessions: Sessions,
    /// The last events, so that a node that begins with a snapshot has some.
    #[serde(default)]
    pub(crate) events: Vec<StoredEvent>,
}

/// What is wrong with a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("it is cut short")]
    Short,
    #[error("record version {0} is unknown")]
    Version(u8),
    #[error("its checksum does not hold")]
    Checksum,
    #[error("{0}")]
    Content(String),
}

fn checksum(place: &str, content: &[u8]) -> [u8; 4] {
    crc32c::crc32c_append(crc32c::crc32c(place.as_bytes()), content).to_le_bytes()
}

/// A record of raw content.
pub(crate) fn seal(place: &str, content: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(content.len() + HEAD_BYTES);
    record.push(RECORD_VERSION);
    record.extend_from_slice(&checksum(place, content));
    record.extend_from_slice(content);
    record
}

/// The content of a record.
pub(crate) fn unseal<'a>(place: &str, record: &'a [u8]) -> Result<&'a [u8], RecordError> {
    let (head, content) = record.split_at_checked(HEAD_BYTES).ok_or(RecordError::Short)?;
    if head[0] != RECORD_VERSION {
        return Err(RecordError::Version(head[0]));
    }
    if head[1..] != checksum(place, content) {
        return Err(RecordError::Checksum);
    }
    Ok(content)
}

/// A value's record.
pub(crate) fn encode(place: &str, value: &impl Serialize) -> Vec<u8> {
    seal(place, &json(value))
}

/// A record's value.
pub(crate) fn decode<T: DeserializeOwned>(place: &str, record: &[u8]) -> Result<T, RecordError> {
    let content = unseal(place, record)?;
    serde_json::from_slice(content).map_err(|error| RecordError::Content(error.to_string()))
}

/// A value's JSON form.
pub(crate) fn json(value: &impl Serialize) -> Vec<u8> {
    // Our own types, whose maps have text keys: they always have a JSON form.
    serde_json::to_vec(value).expect("a state type has a JSON form")
}

impl Position {
    pub(crate) fn of(id: LogId) -> Self {
        Self { term: id.leader_id.term, leader: id.leader_id.node_id.0, index: id.index }
    }

    pub(crate) fn log_id(self) -> LogId {
        let leader_id = LeaderId { term: self.term, node_id: RaftId(self.leader) };
        LogId { leader_id, index: self.index }
    }
}

impl Ballot {
    pub(crate) fn of(vote: Vote) -> Self {
        let LeaderId { term, node_id } = vote.leader_id;
        Self { term, node: node_id.0, committed: vote.committed }
    }

    pub(crate) fn vote(self) -> Vote {
        let leader_id = LeaderId { term: self.term, node_id: RaftId(self.node) };
        Vote { leader_id, committed: self.committed }
    }
}

impl Members {
    pub(crate) fn of(members: &Membership) -> Self {
        let plain = |set: &BTreeSet<RaftId>| set.iter().map(|id| id.0).collect();
        Self {
            voters: members.get_joint_config().iter().map(plain).collect(),
            nodes: members.nodes().map(|(id, _)| id.0).collect(),
        }
    }

    /// # Errors
    /// What openraft has against them: a voter that is no member, or no voter at all.
    pub(crate) fn to_raft(&self) -> Result<Membership, RecordError> {
        if self.voters.is_empty() && self.nodes.is_empty() {
            return Ok(Membership::default());
        }
        let set = |set: &BTreeSet<NodeId>| set.iter().copied().map(RaftId).collect();
        let voters: Vec<BTreeSet<RaftId>> = self.voters.iter().map(set).collect();
        let nodes: BTreeMap<RaftId, _> = nodes_of(self.nodes.iter().copied());
        Membership::new(voters, nodes).map_err(|error| RecordError::Content(error.to_string()))
    }

    /// Who votes, whatever set they are in.
    pub fn all_voters(&self) -> BTreeSet<NodeId> {
        self.voters.iter().flatten().copied().collect()
    }

    /// Who only listens.
    pub fn learners(&self) -> BTreeSet<NodeId> {
        let voters = self.all_voters();
        self.nodes.difference(&voters).copied().collect()
    }
}

impl MembersAt {
    pub(crate) fn of(stored: &StoredMembership) -> Self {
        Self {
            at: stored.log_id().as_ref().map(|id| Position::of(*id)),
            members: Members::of(stored.membership()),
        }
    }

    pub(crate) fn to_raft(&self) -> Result<StoredMembership, RecordError> {
        Ok(StoredMembership::new(self.at.map(Position::log_id), self.members.to_raft()?))
    }
}

impl LogEntry {
    pub(crate) fn of(entry: &Entry) -> Self {
        let what = match &entry.payload {
            EntryPayload::Blank => LogEntryKind::Blank,
            EntryPayload::Normal(envelope) => LogEntryKind::Proposal(envelope.clone()),
            EntryPayload::Membership(members) => LogEntryKind::Members(Members::of(members)),
        };
        Self { at: Position::of(entry.log_id()), what }
    }

    pub(crate) fn into_raft(self) -> Result<Entry, RecordError> {
        let payload = match self.what {
            LogEntryKind::Blank => EntryPayload::Blank,
            LogEntryKind::Proposal(envelope) => EntryPayload::Normal(envelope),
            LogEntryKind::Members(members) => EntryPayload::Membership(members.to_raft()?),
        };
        Ok(Entry::new(self.at.log_id(), payload))
    }
}
