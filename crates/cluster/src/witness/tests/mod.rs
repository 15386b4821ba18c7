//! The witness: its rules, its stores, and whole replicas that lean on it.

mod asking;
mod lab;
mod objects;
mod replicas;
mod rules;
mod schedule;
pub(super) mod stores;

use model::ClusterId;
use model::NodeId;
use uuid::Uuid;

use crate::raft::Ballot;
use crate::raft::LogEntry;
use crate::raft::LogEntryKind;
use crate::raft::Position;

/// The witness's id.
const W: u128 = 900;

fn id(n: u128) -> NodeId {
    NodeId::new(Uuid::from_u128(n))
}

fn cluster() -> ClusterId {
    ClusterId::new(Uuid::from_u128(77))
}

fn at(term: u64, leader: u128, index: u64) -> Position {
    Position { term, leader: id(leader), index }
}

fn blank(at: Position) -> LogEntry {
    LogEntry { at, what: LogEntryKind::Blank }
}

fn candidate(term: u64, node: u128) -> Ballot {
    Ballot { term, node: id(node), committed: false }
}

fn leader(term: u64, node: u128) -> Ballot {
    Ballot { term, node: id(node), committed: true }
}

/// A small generator: a seed says what happens, in which order.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}
