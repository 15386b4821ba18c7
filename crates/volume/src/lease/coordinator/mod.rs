//! The coordinator's side: sessions, open files, leases, and what waits for them.
//!
//! `machine` has the sessions (who may speak, what is answered once, when a key is fenced), `files`
//! has the queue of each file: one job at a time, in the order of arrival, so a lease is never
//! granted while the file's map changes. `outcome` is what follows when the file system has done
//! something, `table` the leases of a file.
//!
//! The shell calls [`Coordinator::step`] with `Tick` at least every [`super::Limits::resend`]. It
//! drops the coordinator when the state has a higher epoch, when the LUN refuses it, and when it does
//! not know what a failed deed has changed.

mod files;
mod machine;
mod outcome;

use model::NodeId;

use super::Extent;
use super::FileId;
use super::OpenId;
use super::Payload;
use super::ReservationKey;
use super::Span;
use super::ToClient;
use super::ToCoordinator;

pub use machine::Coordinator;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CoordinatorInput {
    /// A message from a node whose identity its certificate has proved.
    Message {
        /// Who.
        from: NodeId,
        /// What.
        message: ToCoordinator,
    },
    /// The LUN has answered that this key is not registered, and its commands are aborted.
    Fenced(ReservationKey),
    /// The file system has done something, or not.
    Did {
        /// Which order it was.
        id: u64,
        /// What came of it.
        outcome: DeedOutcome,
    },
    /// Time goes by.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CoordinatorEffect {
    /// Send; may be lost.
    Send {
        /// To whom.
        to: NodeId,
        /// What.
        message: ToClient,
    },
    /// Preempt this key and abort its commands; repeat until the LUN answers. There is no giving up.
    Fence(ReservationKey),
    /// Have the file system do something.
    Do {
        /// Number of the order.
        id: u64,
        /// What.
        deed: Deed,
    },
}

/// Work of the file system. Done means: committed and flushed, but for `Read`, `Write` and `Inspect`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    /// Say how long the file is and who writes it. Answer: `File`.
    Inspect {
        /// Which.
        file: FileId,
    },
    /// Note the writer in the file. Answer: `Done`.
    SetWriter {
        /// Which.
        file: FileId,
        /// Whom, or nobody.
        writer: Option<(NodeId, OpenId)>,
    },
    /// Have these blocks allocated, written and unshared, growing the file. Answer: `Extents`, all
    /// of them leasable. All of that must be on the LUN, also where it was somebody else's deed that
    /// made it so: a block that ceased to be shared in memory only would be another file's again
    /// after a crash, with these bytes in it.
    Prepare {
        /// Which.
        file: FileId,
        /// Blocks of it that are wanted.
        span: Span,
        /// Those, and as many more as a step of growth has: how many of them is for the file system
        /// to say, which knows how long the file is and how much space is left.
        ahead: Span,
    },
    /// Say which of these blocks may be leased as they are. Answer: `Extents`.
    Map {
        /// Which.
        file: FileId,
        /// Blocks of it.
        span: Span,
    },
    /// Read. Answer: `Data`.
    Read {
        /// Which.
        file: FileId,
        /// Blocks of it.
        span: Span,
    },
    /// Write into prepared blocks, after preparing them: only then is the data safe from a crash of
    /// the coordinator. Answer: `Done`.
    Write {
        /// Which.
        file: FileId,
        /// Blocks of it.
        span: Span,
        /// Their bytes.
        data: Payload,
    },
    /// Flush the LUN. Answer: `Done`.
    Flush,
    /// Set the length. Answer: `Done`.
    Truncate {
        /// Which.
        file: FileId,
        /// New length in blocks.
        blocks: u64,
    },
    /// Free blocks in the middle. Answer: `Done`.
    Punch {
        /// Which.
        file: FileId,
        /// Blocks of it.
        span: Span,
    },
    /// Make a file that shares all blocks, or find that this was done before. Answer: `Done`.
    Clone {
        /// From this one.
        file: FileId,
        /// The new one.
        to: FileId,
    },
    /// Delete. Answer: `Done`.
    Delete {
        /// Which.
        file: FileId,
    },
}

/// What came of a deed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeedOutcome {
    /// It is done.
    Done,
    /// Answer to `Inspect`.
    File {
        /// Length in blocks.
        blocks: u64,
        /// Who writes it.
        writer: Option<(NodeId, OpenId)>,
    },
    /// Answer to `Prepare` and `Map`.
    Extents(Vec<Extent>),
    /// Answer to `Read`.
    Data(Payload),
    /// There is no such file.
    NoSuchFile,
    /// The volume is full; nothing has changed but that the file may have grown by zeroes.
    Full,
    /// The file system refused, and nothing has changed.
    Failed(String),
}
