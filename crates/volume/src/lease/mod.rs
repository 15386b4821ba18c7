//! Who may touch which blocks of a shared LUN.
//!
//! ```text
//!   node A: client ----.                                  .---- node B: client
//!     | reads, writes   \  hello, open, acquire, recall  /         |
//!     | at leased blocks `------> node C: coordinator <-'          |
//!     |                            | mounts the file system        |
//!     v                            v                               v
//!   ======================= LUN: blocks, volatile cache, keys of reservation =======================
//! ```
//!
//! **Epoch**: one number for each reign of a coordinator, given out by the replicated state, only
//! growing. **Session**: one node's stay with one coordinator; its number and the epoch are also the
//! node's **reservation key** on the LUN, and no key is ever used twice. The LUN serves only nodes
//! whose key is registered, for reads as for writes ("exclusive access, all registrants").
//! **Fence** means: the key is preempted and its commands aborted, proved by the LUN's answer.
//! Nothing here concludes anything from silence or from a clock: time only decides when to fence.
//!
//! The law: **a direct read or write reaches a block only while a live lease of the LUN's epoch
//! covers it, and the coordinator moves no block that a live lease covers.** It holds because
//!
//! 1. *Leases end by proof.* A lease ends when its client says that all I/O under it has ended
//!    (released), or when the key it was used with is fenced. Truncate, punch, delete and clone
//!    recall first; who does not answer by the deadline is fenced, and only the proof goes on.
//! 2. *Keys end before they are replaced.* A coordinator welcomes a node again only after the key
//!    of its session before is fenced and its own work for that session is over. A client registers
//!    a new key only when nothing of before is on the way, in its own queues or the host's.
//! 3. *Epochs exclude each other on the LUN itself.* A new coordinator registers its key, then reads
//!    all keys: sees it a higher epoch, it gives up; all of lower epochs it preempts, and only then
//!    mounts. A client does the same with its key: registers, reads, gives up on a higher epoch.
//!    Of two that do so, the later one to register sees the other, so a zombie that wakes up is
//!    either fenced already or finds out by itself ([`Takeover`]).
//! 4. *Only settled blocks are leased.* A grant is made after the file system has the blocks
//!    allocated, written, unshared, and that **on the LUN** (committed and flushed). So a lease
//!    outlives the coordinator's memory, and bytes nobody wrote are never shown.
//! 5. *One writer to a file.* Its id is written into the file, durably, before it may write. After
//!    a takeover the file itself says whose claim is right. Readers are not limited: they read the
//!    LUN, without a cache, so they see what was acknowledged.
//! 6. *A write is done once.* What goes through the coordinator carries session and number; each is
//!    done at most once and its answer kept. A client that lost its session sends again what it has
//!    no answer for only after the next welcome, which proves that nothing of the old one can land.
//!    A client never has two writes to one block on the way.
//!
//! **The flush rule.** Every operation that changes the map or the size of a file is durable before
//! it is answered, and data goes only to blocks whose mapping is durable. What remains is data in
//! the LUN's cache, so a guest's flush is one flush of the LUN, by the way that the data took. A cache
//! can be lost with a path or without one; what no flush has covered is kept by the client and
//! written again after any doubt, before a flush is answered (decision 0026).
//!
//! **Growth** is written ahead: a write lease that reaches into a hole or beyond the end is served in
//! steps ([`Limits::growth_blocks`]) that the coordinator allocates, writes with zeroes and commits.
//!
//! | state of a session | the client may | the coordinator |
//! | --- | --- | --- |
//! | none | nothing | has nothing of it, or fences it |
//! | welcomed | open, claim, read and write through the coordinator | grants no lease |
//! | ready (key registered) | all that, acquire leases, direct I/O | grants and recalls |
//! | ending | nothing: each answer is dropped | waits for the fence and for its own work |
//!
//! Everything in this folder is pure. `coordinator` and `takeover` run where the file system is
//! mounted, `client` on every node. Units: a *block* is [`BLOCK_BYTES`] of a file or of the LUN.
//! Invariants 14 to 18 and 21 of the shared volume, and what breaks them: `tests/leases`.

mod client;
mod coordinator;
mod limits;
mod names;
mod table;
mod takeover;
#[cfg(test)]
mod tests;
mod wire;

pub use client::Client;
pub use client::ClientEffect;
pub use client::ClientInput;
pub use client::DeviceDeed;
pub use client::Io;
pub use client::IoError;
pub use client::IoResult;
pub use client::Mode as IoMode;
pub use client::Part;
pub use client::RegisterOutcome;
pub use coordinator::Coordinator;
pub use coordinator::CoordinatorEffect;
pub use coordinator::CoordinatorInput;
pub use coordinator::Deed;
pub use coordinator::DeedOutcome;
pub use limits::Limits;
pub use names::BLOCK_BYTES;
pub use names::Epoch;
pub use names::FileId;
pub use names::OpenId;
pub use names::ReservationKey;
pub use names::SessionId;
pub use names::Span;
pub use table::LiveLease;
pub use takeover::Takeover;
pub use takeover::TakeoverEffect;
pub use takeover::TakeoverInput;
pub use wire::Access;
pub use wire::Answer;
pub use wire::Ask;
pub use wire::Extent;
pub use wire::Payload;
pub use wire::Refusal;
pub use wire::ToClient;
pub use wire::ToCoordinator;
