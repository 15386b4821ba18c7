//! How a node becomes the coordinator of an epoch that the replicated state gave it.
//!
//! ```text
//!  Draining --drained--> Aborting --aborted--> Registering --registered--> Looking <-----------.
//!                                                  |                        |  | |  all preempted
//!       GaveUp <--- any refusal, a higher epoch's key -----------------------'  | `--> Clearing
//!                                                                              |
//!       Serving <--mounted-- Mounting <--- no key of a lower epoch ------------'
//! ```
//!
//! Both halves of the exclusion are in the order: *register first, look then*. Of two nodes that do
//! so for different epochs, the one that registers later sees the other's key. The lower epoch then
//! gives up, or is preempted by the higher one, after which its own orders are refused by the LUN.
//!
//! Nobody preempts the key that the node itself had before, so it does that itself (*aborting*): what
//! it sent before it lost its power may still be with the LUN, and would land under the new key.

use std::collections::BTreeSet;

use super::Epoch;
use super::ReservationKey;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TakeoverInput {
    /// Nothing of this node is on the way to the LUN any more, and its client sends nothing.
    Drained,
    /// This node's path has no key, and the LUN none of its commands.
    Aborted,
    /// The coordinator's key is registered, in place of any other key of this node.
    Registered,
    /// All keys that the LUN has now.
    Keys(Vec<ReservationKey>),
    /// The LUN says that this key is gone and its commands are aborted.
    Preempted(ReservationKey),
    /// The file system is mounted: the journal replayed, the check of its superblock passed.
    Mounted,
    /// The LUN or the mount refused; also: the state has a higher epoch.
    Refused,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TakeoverEffect {
    /// Stop this node's own direct I/O; answer `Drained` when none is left, in the host's queues
    /// neither.
    Drain,
    /// If this node's path has a key: preempt it and abort its commands.
    AbortOwn,
    /// Register this key and make sure that the LUN is reserved for registrants.
    Register(ReservationKey),
    /// Read all keys.
    ReadKeys,
    /// Preempt this key and abort its commands.
    Preempt(ReservationKey),
    /// Mount the file system.
    Mount,
    /// Begin to serve, with a [`super::Coordinator`] of this epoch.
    Serve,
    /// Take the key back if it is there; the attempt is over.
    GiveUp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Draining,
    Aborting,
    Registering,
    Looking,
    Clearing(BTreeSet<ReservationKey>),
    Mounting,
    Serving,
    GaveUp,
}

/// One attempt to become the coordinator.
#[derive(Debug, Clone)]
pub struct Takeover {
    epoch: Epoch,
    phase: Phase,
}

impl Takeover {
    /// Begins; the replicated state has given `epoch` to this node.
    pub fn new(epoch: Epoch) -> (Self, TakeoverEffect) {
        (Self { epoch, phase: Phase::Draining }, TakeoverEffect::Drain)
    }

    /// The epoch that is being taken over.
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// One step. Answers to orders of an earlier phase change nothing.
    pub fn step(&mut self, input: TakeoverInput) -> Vec<TakeoverEffect> {
        match (&mut self.phase, input) {
            (Phase::Serving | Phase::GaveUp, _) => Vec::new(),
            (_, TakeoverInput::Refused) => self.give_up(),
            (Phase::Draining, TakeoverInput::Drained) => {
                self.phase = Phase::Aborting;
                vec![TakeoverEffect::AbortOwn]
            }
            (Phase::Aborting, TakeoverInput::Aborted) => {
                self.phase = Phase::Registering;
                vec![TakeoverEffect::Register(ReservationKey::of_coordinator(self.epoch))]
            }
            (Phase::Registering, TakeoverInput::Registered) => {
                self.phase = Phase::Looking;
                vec![TakeoverEffect::ReadKeys]
            }
            (Phase::Looking, TakeoverInput::Keys(keys)) => self.look(&keys),
            (Phase::Clearing(left), TakeoverInput::Preempted(key)) => {
                left.remove(&key);
                if !left.is_empty() {
                    return Vec::new();
                }
                // Looks again: one that registered late may have been of a higher epoch.
                self.phase = Phase::Looking;
                vec![TakeoverEffect::ReadKeys]
            }
            (Phase::Mounting, TakeoverInput::Mounted) => {
                self.phase = Phase::Serving;
                vec![TakeoverEffect::Serve]
            }
            _ => Vec::new(),
        }
    }

    fn look(&mut self, keys: &[ReservationKey]) -> Vec<TakeoverEffect> {
        let own = ReservationKey::of_coordinator(self.epoch);
        let others = || keys.iter().copied().filter(|key| *key != own);
        // Without its own key there this node was preempted meanwhile.
        if !keys.contains(&own) || others().any(|key| key.epoch() >= self.epoch) {
            return self.give_up();
        }
        let older: BTreeSet<_> = others().collect();
        if older.is_empty() {
            self.phase = Phase::Mounting;
            return vec![TakeoverEffect::Mount];
        }
        let effects = older.iter().copied().map(TakeoverEffect::Preempt).collect();
        self.phase = Phase::Clearing(older);
        effects
    }

    fn give_up(&mut self) -> Vec<TakeoverEffect> {
        self.phase = Phase::GaveUp;
        vec![TakeoverEffect::GiveUp]
    }
}
