//! The client's side: a node's open files, its leases, and the I/O of its guests.
//!
//! ```text
//!            hello                 welcome                    key registered, no higher epoch
//!   Lost ----------> Greeting ---------------> Welcomed ------------------------------> Ready
//!    ^                  ^                         |  (through the coordinator)            | (direct)
//!    |                  '------ reset ------------+---------------------------------------'
//!    '-- no coordinator is known    reset: gone, higher epoch, failed direct I/O, path lost
//! ```
//!
//! After a reset nothing that was on the way is believed: each request waits for the next welcome,
//! which proves that the old key is fenced, and is then sent again. The new key is registered only
//! when every command of before has come back ("drained"), in this process by the machine and in the
//! host's queues by the shell. Requests of guests never fail for any of that; they wait.
//!
//! What had ended but was not flushed may be gone, too, with the cache of an array that took its paths
//! down: it is kept, and written again in the next session before any flush (`unflushed`).
//!
//! `machine` has the session, `io` the requests of guests, `asks` what the coordinator answers.

mod asks;
mod io;
mod machine;
mod unflushed;

use model::NodeId;

use super::Access;
use super::Epoch;
use super::FileId;
use super::Payload;
use super::Refusal;
use super::ReservationKey;
use super::Span;
use super::ToClient;
use super::ToCoordinator;

pub use machine::Client;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientInput {
    /// The replicated state names a coordinator.
    View {
        /// Its reign; older news are ignored.
        epoch: Epoch,
        /// Its node.
        coordinator: NodeId,
    },
    /// A message from a node whose identity its certificate has proved.
    Message {
        /// Who.
        from: NodeId,
        /// What.
        message: ToClient,
    },
    /// A file is to be opened under a handle of the caller's choice, not in use.
    Open {
        /// The caller's handle.
        handle: u64,
        /// Which file.
        file: FileId,
        /// What for.
        access: Access,
    },
    /// A handle is not needed any more; its requests still end.
    Close {
        /// The handle.
        handle: u64,
    },
    /// A request of a guest, under a number that was never used before.
    Submit {
        /// Its number; grows.
        io: u64,
        /// What.
        what: Io,
    },
    /// Blocks from there on will be written soon, in a file that grows: leases are asked for now, so that
    /// nobody waits for them then. Nothing comes of it where something else is asked for just now.
    Ahead {
        /// A handle for writing.
        handle: u64,
        /// The first of the blocks.
        block: u64,
    },
    /// A command at the LUN has ended: `None` if it failed, or if it is not known to have worked.
    Device {
        /// Which.
        part: u64,
        /// What was read; empty for others.
        result: Option<Payload>,
    },
    /// What came of registering a key.
    Registered {
        /// Which key.
        key: ReservationKey,
        /// What came of it.
        outcome: RegisterOutcome,
    },
    /// Whether this node may use a path of its own to the LUN (not where the coordinator is: there
    /// the file system is used, with O_DIRECT).
    Path(bool),
    /// Time goes by.
    Tick,
}

/// What came of registering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegisterOutcome {
    /// It is registered, and *after that* all keys were read: none is of a higher epoch.
    Registered,
    /// There is a key of a higher epoch; the own one was taken back.
    Superseded,
    /// The path does not work.
    Failed,
}

/// A request of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Io {
    /// On this open file.
    pub handle: u64,
    /// These blocks; ignored by a flush.
    pub span: Span,
    /// What.
    pub mode: Mode,
}

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// Read the blocks.
    Read,
    /// Write these bytes, the same number for each block.
    Write(Payload),
    /// Make durable all that had ended before.
    Flush,
    /// Free the blocks; they read as zeroes.
    Punch,
    /// End the file where the range starts; its count is ignored.
    Truncate,
    /// Make a file that shares all blocks, under an id that was never used: sent again, it is done
    /// once.
    CloneTo(FileId),
    /// Delete the file; done, too, if it is gone already.
    Delete,
}

/// What became of a request.
pub type IoResult = Result<Payload, IoError>;

/// Why a request failed for good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    /// The handle is not open.
    #[error("the file is not open; open it again")]
    NotOpen,
    /// The coordinator has refused it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// More requests than [`super::Limits::ios_max`].
    #[error("too many requests have not ended yet; wait for some of them")]
    Limit,
    /// A range or bytes that cannot be.
    #[error("the request's range and bytes do not fit; correct the caller")]
    Invalid,
}

/// A command at the LUN: blocks of the LUN, from `start`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceDeed {
    /// Read.
    Read(Span),
    /// Write.
    Write(Span, Payload),
    /// Flush its cache.
    Flush,
}

/// Names a command at the LUN; never used twice by one client.
pub type Part = u64;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientEffect {
    /// Send; may be lost.
    Send {
        /// To whom.
        to: NodeId,
        /// What.
        message: ToCoordinator,
    },
    /// Have the LUN do something; answer with `Device`, always.
    Device {
        /// Names it.
        part: Part,
        /// On which file, and from which of its blocks on; nothing of a flush.
        at: (FileId, u64),
        /// Under the leases of the session with this key, which is the one registered now.
        key: ReservationKey,
        /// What.
        deed: DeviceDeed,
    },
    /// When nothing of this host is on the way to the LUN: register this key in place of any other
    /// of this node, then read all keys, and take it back where one is of a higher epoch.
    Register(ReservationKey),
    /// An open has ended: with the length in blocks.
    Opened {
        /// The caller's handle; gone where it failed.
        handle: u64,
        /// What came of it.
        result: Result<u64, Refusal>,
    },
    /// A request has ended.
    Complete {
        /// Which.
        io: u64,
        /// What came of it.
        result: IoResult,
    },
}
