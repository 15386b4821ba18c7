//! Shared volumes: one LUN that every node reads and writes, with plain XFS or ext4 on it.
//!
//! | module | what | foreign thing |
//! | --- | --- | --- |
//! | [`lease`] | who may touch which blocks of the LUN: pure, no clock, no I/O | - |
//! | [`block`] | direct reads and writes of a block device | io_uring |
//! | [`extent`] | where the bytes of a file lie, and which of them may be leased | FIEMAP |
//! | [`provider`] | all of that as something that runs: coordinator, client, mount point | FUSE, mounts |
//! | [`san`] | a LUN in a file, with every fault of one, for the lab and for tests | FUSE |
//!
//! Trust boundaries: messages of peers (typed, bounded, refused when of another epoch or session),
//! what a file system says about a file (checked before it is leased), what a LUN answers.

pub mod block;
pub mod extent;
pub mod lease;
pub mod provider;
pub mod san;
