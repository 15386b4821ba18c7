//! What nodes say to each other about the log: the bodies of peer requests and replies.
//!
//! Bodies are JSON; a piece of a snapshot has its bytes behind it:
//!
//! ```text
//!   Snapshot request = length of the JSON (u32, little endian) | JSON of SnapshotPiece | bytes
//! ```
//!
//! | version | change |
//! | --- | --- |
//! | 1 | first |
//!
//! A field may be added with a default; anything else is a new version, and a node speaks this one
//! and the one before.

use model::NodeId;
use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::format::Ballot;
use super::format::LogEntry;
use super::format::Position;
use super::format::SnapshotHead;
use super::format::json;
use super::types::Envelope;

/// Version of the bodies below.
pub const WIRE_VERSION: u16 = 1;

/// Bytes of a snapshot in one request.
pub(crate) const SNAPSHOT_PIECE_BYTES: usize = 1 << 20;

/// Entries to append, or a heartbeat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AppendRequest {
    /// The leader's vote.
    pub ballot: Ballot,
    /// The entry before the first one.
    pub previous: Option<Position>,
    /// What follows it.
    pub entries: Vec<LogEntry>,
    /// How far the leader knows the log to be committed.
    pub committed: Option<Position>,
}

/// The answer to [`AppendRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AppendReply {
    /// All entries are durable.
    Success,
    /// The entries up to this one are durable.
    Partial(Option<Position>),
    /// The entry before the first one is not the leader's.
    Conflict,
    /// There is a newer vote.
    HigherVote(Ballot),
}

/// A request for a vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoteRequest {
    /// The vote wanted.
    pub ballot: Ballot,
    /// The candidate's last entry.
    pub last: Option<Position>,
    /// It follows from a transfer of the leadership.
    pub transfer: bool,
    /// Only a question: nothing is to be noted.
    pub pre_vote: bool,
}

/// The answer to [`VoteRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoteReply {
    /// The peer's vote now.
    pub ballot: Ballot,
    /// Whether it is given.
    pub granted: bool,
    /// The peer's last entry.
    pub last: Option<Position>,
}

/// A piece of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotPiece {
    /// The leader's vote.
    pub ballot: Ballot,
    /// The snapshot.
    pub head: SnapshotHead,
    /// Where in its content the piece belongs.
    pub offset: u64,
}

/// The answer to [`SnapshotPiece`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotReply {
    /// Send the piece that begins here.
    Continue(u64),
    /// It is installed, or there is a newer vote: this one.
    Done(Ballot),
}

/// Take the leadership over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferRequest {
    /// The leader's vote.
    pub from: Ballot,
    /// Who shall lead.
    pub to: NodeId,
    /// The leader's last entry.
    pub last: Option<Position>,
}

/// The answer to [`TransferRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransferReply {
    /// It is tried.
    Accepted,
    /// The vote has changed.
    VoteChanged {
        /// The leader's.
        expected: Ballot,
        /// The peer's.
        actual: Ballot,
    },
    /// The peer's log is not there yet.
    LogNotFlushed {
        /// The leader's last entry.
        expected: Option<Position>,
        /// The peer's.
        actual: Option<Position>,
    },
}

/// A proposal for the leader.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProposeRequest {
    /// It, with its ticket.
    pub envelope: Envelope,
}

/// The leader's answer to a proposal or a question for a read point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaderReply {
    /// The proposal is in the log below this number; or all that was acknowledged before the
    /// question is.
    At(u64),
    /// Nothing was done: the peer does not lead.
    NotLeader(Option<NodeId>),
    /// Nothing was done: the peer leads, but does not reach a majority.
    NoQuorum,
    /// What became of the proposal is not known.
    Unknown,
    /// The asker is no member since this entry.
    Removed(Position),
}

/// Word to a node that it is no member any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedNotice {
    /// The entry that removed it.
    pub at: Position,
}

/// An answer, or word that the asker was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer<T> {
    /// The answer.
    Here(T),
    /// The asker is no member since this entry.
    Removed(Position),
}

/// The bytes of a body.
pub fn write(body: &impl Serialize) -> Vec<u8> {
    json(body)
}

/// The body in these bytes.
///
/// # Errors
/// What is wrong with them.
pub fn read<T: DeserializeOwned>(version: u16, bytes: &[u8]) -> Result<T, String> {
    if version != WIRE_VERSION {
        return Err(format!("version {version} is not spoken here, only {WIRE_VERSION}"));
    }
    serde_json::from_slice(bytes).map_err(|error| error.to_string())
}

/// The body of a snapshot request.
pub fn write_piece(piece: &SnapshotPiece, content: &[u8]) -> Vec<u8> {
    let head = json(piece);
    let length = u32::try_from(head.len()).expect("a head of some hundred bytes");
    let mut body = Vec::with_capacity(4 + head.len() + content.len());
    body.extend_from_slice(&length.to_le_bytes());
    body.extend_from_slice(&head);
    body.extend_from_slice(content);
    body
}

/// The parts of a snapshot request's body.
///
/// # Errors
/// What is wrong with it.
pub fn read_piece(version: u16, body: &[u8]) -> Result<(SnapshotPiece, &[u8]), String> {
    let (length, rest) = body.split_first_chunk::<4>().ok_or("it is cut short")?;
    let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| "it is too long")?;
    let (head, content) = rest.split_at_checked(length).ok_or("it is cut short")?;
    Ok((read(version, head)?, content))
}
