//! Names and ranges of the protocol.

use std::fmt;

use serde::Deserialize;
use serde::Serialize;

/// What a block is in this protocol: the unit of leases, in a file and on the LUN.
pub const BLOCK_BYTES: u64 = 4096;

/// A reign of one coordinator. Given out by the replicated state; only grows; 1 is the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u32);

/// One node's stay with one coordinator. Number 0 is the coordinator itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionId {
    /// The coordinator's reign.
    pub epoch: Epoch,
    /// Counts within it.
    pub number: u32,
}

/// A key of a persistent reservation: epoch above, session below. Never zero, never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReservationKey(u64);

/// A file for as long as it exists: inode number and its generation. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FileId(pub u64);

/// An open file of one node; of a writer it also stands in the file. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OpenId {
    /// In which reign it was opened.
    pub epoch: Epoch,
    /// Counts within it.
    pub number: u64,
}

/// A range of blocks: from `start`, `count` of them. Its end fits in 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Span {
    /// The first block.
    pub start: u64,
    /// How many; an empty range overlaps nothing.
    pub count: u64,
}

impl SessionId {
    /// The key that this session registers at the LUN.
    pub const fn key(self) -> ReservationKey {
        ReservationKey(((self.epoch.0 as u64) << 32) | self.number as u64)
    }
}

impl ReservationKey {
    /// The coordinator's own key.
    pub const fn of_coordinator(epoch: Epoch) -> Self {
        SessionId { epoch, number: 0 }.key()
    }

    /// As the LUN has it.
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// For the LUN.
    pub const fn word(self) -> u64 {
        self.0
    }

    /// The reign it belongs to.
    pub const fn epoch(self) -> Epoch {
        Epoch((self.0 >> 32) as u32)
    }
}

impl fmt::Debug for ReservationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {}.{}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl Span {
    /// A range; cut where it would end beyond the last block there can be.
    pub const fn new(start: u64, count: u64) -> Self {
        let room = u64::MAX - start;
        Self { start, count: if count < room { count } else { room } }
    }

    /// From a block to the end of everything.
    pub const fn from(start: u64) -> Self {
        Self::new(start, u64::MAX)
    }

    /// The block behind the last one.
    pub const fn end(self) -> u64 {
        self.start.saturating_add(self.count)
    }

    /// Whether there is nothing in it.
    pub const fn is_empty(self) -> bool {
        self.count == 0
    }

    /// Whether both have a block in common.
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end() && other.start < self.end() && self.count > 0 && other.count > 0
    }

    /// Whether a block is in it.
    pub const fn contains(self, block: u64) -> bool {
        self.start <= block && block < self.end()
    }

    /// What both have in common.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        let start = self.start.max(other.start);
        let end = self.end().min(other.end());
        Self { start, count: end.saturating_sub(start) }
    }
}
