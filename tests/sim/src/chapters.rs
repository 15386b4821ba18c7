//! What a share of the schedules has besides the faults of all: each part drawn by numbers of its own, so
//! that the other schedules stay what they were, and what they are known to find.

use sim::rng::Rng;

use crate::faults::Aim;
use crate::faults::Fault;
use crate::faults::Timed;
use crate::setup::Plan;

/// Of a thousand schedules, so many with each part.
const QUICK: u64 = 250;
const FAILBACK: u64 = 150;
/// Not drawn yet: a replica whose store fails may end the process by itself (`cluster::raft::replica`), and
/// here that is the whole simulator.
const FULL: u64 = 0;
const STAFF: u64 = 200;
const GUARDLESS: u64 = 60;
const FORGETTING: u64 = 60;
const DUEL: u64 = 400;

/// The most writes that a disk still takes when it begins to be full: a commit is some ten.
const ROOM_MAX: u64 = 24;

/// The parts of a schedule.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Chapters {
    /// VMs are moved by saving and resuming them.
    pub(crate) quick: bool,
    /// VMs prefer a node and go back to it; the time of day is so late that the leader trusts all nodes.
    pub(crate) failback: bool,
    /// Disks of nodes are full for a while.
    pub(crate) full: bool,
    /// Nodes are evicted, and come back as new ones.
    pub(crate) staff: bool,
    /// A host that is cut off for longer than each lease, and whose guard begins anew meanwhile.
    pub(crate) guardless: bool,
    /// Of three nodes one lags, one loses its log and the leader is cut off, in this order.
    pub(crate) forgetting: bool,
    /// A pair is cut apart, and whoever led it goes on with what it knew of the witness before.
    pub(crate) duel: bool,
}

impl Chapters {
    pub(crate) fn of(seed: u64) -> Self {
        let drawn =
            |word: &[u8; 8], share| Rng::new(seed ^ u64::from_be_bytes(*word)).permille(share);
        Self {
            quick: drawn(b"quick???", QUICK),
            failback: drawn(b"failback", FAILBACK),
            full: drawn(b"fulldisk", FULL),
            staff: drawn(b"evicted!", STAFF),
            guardless: drawn(b"guardles", GUARDLESS),
            forgetting: drawn(b"forgets!", FORGETTING),
            duel: drawn(b"duel????", DUEL),
        }
    }

    /// The faults that come with them, between two moments.
    pub(crate) fn faults(self, seed: u64, plan: Plan, from: u64, to: u64) -> Vec<Timed> {
        let mut rng = Rng::new(seed ^ u64::from_be_bytes(*b"chapters"));
        let mut faults = Vec::new();
        let mut add = |at, fault| faults.push((at, fault, Aim::Anything));
        let hosts = plan.nodes;
        if self.full {
            // Seldom a majority at a time: then nothing is decided, which is right and shows little.
            for _ in 0..rng.between(1, 3) {
                let host = rng.place(hosts);
                let (room, length) = (rng.below(ROOM_MAX), rng.between(500, 9_000));
                add(rng.between(from, to), Fault::FullDisk { host, room, length });
            }
        }
        if self.guardless {
            let (host, at) = (rng.place(hosts), rng.between(from, to - 8_000));
            add(at, Fault::Isolate { host, length: rng.between(22_000, 30_000) });
            let back = rng.between(20, 1_500);
            add(at + rng.between(500, 7_000), Fault::KillGuard { host, back });
        }
        if self.forgetting && hosts == 3 {
            let (at, lag) = (rng.between(from, to - 8_000), rng.between(150, 1_500));
            add(at, Fault::Lag { length: lag + 40 });
            add(at + lag, Fault::Orphan { length: rng.between(2_000, 8_000) });
        }
        if self.duel && plan.witness {
            // Whoever leads stands still while the other asks the witness, and then goes on with what it
            // knew, before it hears anything else.
            for _ in 0..rng.between(1, 3) {
                let (at, stands) = (rng.between(from, to - 8_000), rng.between(2_000, 5_000));
                let length = stands + rng.between(1_000, 4_000);
                add(at, Fault::Cut { a: 0, b: 1, one_way: false, length });
                add(at + 40, Fault::PauseLeader { length: stands });
            }
        }
        faults
    }
}
