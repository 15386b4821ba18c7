//! What makes several hosts one cluster: the replicated log, and the parts that decide who may act.
//!
//! - [`detect`]: what is heard of other nodes, and whether one is dead or only cut off (pure).
//! - [`quorum`]: who votes, and what may still be lost, in words (pure).
//! - [`lease`]: when machines of a node stop, and when others may start them (pure).
//! - [`guard`]: the process that stops them.
//! - [`fence`]: devices that switch a node off, and when they are believed.
//! - [`raft`]: the replicated state machine of `model`, driven by openraft, kept in redb.
//! - [`simulation`]: what a simulator puts in the place of clocks and disks.
//! - [`witness`]: a voter without a process, in any store that writes on condition.
//!
//! No sockets to other nodes in here: whatever goes to another node goes through a trait
//! ([`raft::RaftTransport`]) that `node` fills in. Only this crate names openraft and redb.
//!
//! Trust boundaries: bytes of peers (a member of the cluster, but perhaps of another version or
//! out of order: typed error, bounded memory, never a panic), bytes of the disk (damage is named
//! and never used), words of the daemon on the guard's socket, and the output of fence agents.

pub mod detect;
pub mod fence;
pub mod guard;
pub mod lease;
pub mod quorum;
pub mod raft;
pub mod simulation;
pub mod witness;
