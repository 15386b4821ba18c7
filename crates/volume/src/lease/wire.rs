//! What clients and the coordinator say to each other. Messages may be lost, late, doubled and out
//! of order; each says which session it belongs to, and is refused in any other.

use model::NodeId;
use serde::Deserialize;
use serde::Serialize;

use super::FileId;
use super::OpenId;
use super::SessionId;
use super::Span;

/// Bytes of blocks, one after the other; the protocol does not look into them.
pub use crate::block::Payload;

/// What an open file or a lease is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Reading only; any number of nodes.
    Read,
    /// Reading and writing; one node.
    Write,
}

/// Where blocks of a file lie on the LUN, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Extent {
    /// Blocks of the file.
    pub span: Span,
    /// The LUN's block that holds the first of them.
    pub device: u64,
}

impl Extent {
    /// The blocks of the LUN.
    pub const fn on_device(&self) -> Span {
        Span { start: self.device, count: self.span.count }
    }
}

/// From a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToCoordinator {
    /// Asks for a session; the one before, if any, is over for the client.
    Hello {
        /// Who.
        node: NodeId,
        /// Counts the hellos of this node; strictly grows, also over restarts.
        nonce: u64,
    },
    /// The session's key is registered, and no key of a higher epoch is.
    Registered {
        /// Of this session.
        session: SessionId,
    },
    /// Wants something done.
    Ask {
        /// Of this session.
        session: SessionId,
        /// Its number; counts within the session.
        number: u64,
        /// All with lower numbers have been answered, and their answers need not be kept.
        done: u64,
        /// What.
        ask: Ask,
    },
    /// All I/O under these leases has ended, and none will follow.
    Released {
        /// Of this session.
        session: SessionId,
        /// On this file.
        file: FileId,
        /// Leases with this number and lower.
        upto: u64,
        /// As far as they lie in this range.
        span: Span,
    },
    /// Is alive.
    Ping {
        /// Of this session.
        session: SessionId,
    },
}

/// What a client wants done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Opens a file; for writing it becomes the file's writer.
    Open {
        /// Which.
        file: FileId,
        /// What for.
        access: Access,
    },
    /// Goes on with a file that was open in a session before.
    Claim {
        /// Which.
        file: FileId,
        /// Under this id.
        open: OpenId,
        /// What for.
        access: Access,
    },
    /// There are no further claims.
    Claimed,
    /// Closes a file, with no I/O of it on the way.
    Close {
        /// Under this id.
        open: OpenId,
    },
    /// Wants leases, as far as blocks can be leased.
    Acquire {
        /// Under this id.
        open: OpenId,
        /// Of these blocks of the file.
        span: Span,
        /// For that.
        access: Access,
    },
    /// Reads through the coordinator.
    Read {
        /// Under this id.
        open: OpenId,
        /// These blocks of the file; behind its end there are zeroes.
        span: Span,
    },
    /// Writes through the coordinator; the file grows where needed.
    Write {
        /// Under this id.
        open: OpenId,
        /// These blocks of the file.
        span: Span,
        /// Their bytes.
        data: Payload,
    },
    /// Makes all durable that was written before.
    Flush {
        /// Under this id.
        open: OpenId,
    },
    /// Cuts the file, or extends it by a hole.
    Truncate {
        /// Under this id.
        open: OpenId,
        /// New length in blocks.
        blocks: u64,
    },
    /// Frees blocks in the middle; they read as zeroes.
    Punch {
        /// Under this id.
        open: OpenId,
        /// These.
        span: Span,
    },
    /// Makes a new file that shares all blocks with this one.
    Clone {
        /// The file, which is open under this id.
        open: OpenId,
        /// The new one, which does not exist yet.
        to: FileId,
    },
    /// Deletes a file that nobody has open for writing, but perhaps its asker.
    Delete {
        /// Which.
        file: FileId,
    },
}

/// Why something was not done. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Refusal {
    /// Somebody else writes it.
    #[error("the file is open for writing on node {by}; close it there first")]
    Busy {
        /// Who.
        by: NodeId,
    },
    /// Its writer may still claim it.
    #[error("nodes are still claiming their open files; try again in a few seconds")]
    Grace,
    /// There is no such file.
    #[error("the file does not exist any more; list the volume")]
    NoSuchFile,
    /// Not open, or open for reading only.
    #[error("the file is not open for that; open it again")]
    NotOpen,
    /// Another one has become its writer.
    #[error("the file was taken over by another writer; open it again")]
    Taken,
    /// Leases are for nodes with a registered key.
    #[error("this node has no direct access to the LUN now; use the coordinator")]
    NotRegistered,
    /// Too much of something.
    #[error("too many requests, leases or open files; try again when some have ended")]
    Limit,
    /// A range with nothing in it, bytes that do not fit it, or a name that is taken.
    #[error("the request is not valid: its range, length or name cannot be; correct the caller")]
    Invalid,
    /// There is no space.
    #[error("the volume is full; free some space or grow it")]
    Full,
    /// The file system could not; its own words are in the coordinator's log.
    #[error("the file system refused ({0}); look at the coordinator's log")]
    FileSystem(String),
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// It is done, durably where it changed the file's map.
    Done,
    /// It is open, under this id.
    Opened {
        /// The id.
        open: OpenId,
        /// Length in blocks.
        blocks: u64,
    },
    /// Leases: perhaps fewer than asked for, perhaps none.
    Granted {
        /// Of this file.
        file: FileId,
        /// All of these leases have this number; numbers grow within a session.
        number: u64,
        /// What for.
        access: Access,
        /// Which blocks.
        extents: Vec<Extent>,
    },
    /// What was read.
    Data(Payload),
    /// Not done.
    Refused(Refusal),
}

/// From the coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToClient {
    /// A session has begun; the one before is fenced.
    Welcome {
        /// Answer to the hello with this number.
        nonce: u64,
        /// The new session.
        session: SessionId,
    },
    /// Answer to a request.
    Answer {
        /// Of this session.
        session: SessionId,
        /// With this number.
        number: u64,
        /// What became of it.
        answer: Answer,
    },
    /// Leases are wanted back, by a deadline.
    Recall {
        /// Of this session.
        session: SessionId,
        /// On this file.
        file: FileId,
        /// Leases with this number and lower.
        upto: u64,
        /// As far as they lie in this range.
        span: Span,
    },
    /// That session is over; say hello.
    Gone {
        /// Which.
        session: SessionId,
    },
    /// The coordinator is alive and has this session.
    Pong {
        /// Which.
        session: SessionId,
    },
}
