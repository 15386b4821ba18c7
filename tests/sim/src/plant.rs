//! Mistakes that somebody could make, put in on purpose: each must be found, else the simulator is
//! worth nothing. They stand in the shell around the product's code, never in it.

/// A planted fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plant {
    /// The guard counts a lease from when its answer came, not from before it was asked for.
    CountFromAnswer,
    /// Leases are granted without a read barrier.
    NoBarrier,
    /// Machines are started without a lease.
    StartWithoutLease,
    /// A node that was fenced says that it has ended its machines, and has not.
    KeepMachines,
    /// A guard that starts again begins open.
    ForgetfulGuard,
    /// A disk says that it has synced, and has not.
    LyingDisk,
    /// A fence device says off, and nothing was switched off.
    LyingDevice,
    /// A write is acknowledged before it is agreed on.
    EarlyAnswer,
    /// A read does not wait for the cluster.
    StaleRead,
    /// A leader's clock runs three times too fast.
    FastClock,
    /// A machine with an older right to run is not ended, and the disk's word is not heeded.
    OldGeneration,
    /// A proposal that is sent again is a new one.
    NoTickets,
    /// A guest goes on at the source after a handover of which nothing is known.
    GoOnUnsure,
    /// A machine that waits for a migration goes on under the number of a takeover.
    AnyArrival,
    /// A node that has lost its log begins a new one at once, while the old one still counts.
    EagerRebuild,
    /// A daemon that begins takes what was on its disk for the newest state.
    ActOnOld,
    /// The witness takes the condition of each write for fulfilled.
    CarelessWitness,
    /// The memory of a saved guest stays where it is when the guest goes on.
    MemoryTwice,
}

impl Plant {
    /// All of them.
    pub(crate) const ALL: [Self; 18] = [
        Self::CountFromAnswer,
        Self::NoBarrier,
        Self::StartWithoutLease,
        Self::KeepMachines,
        Self::ForgetfulGuard,
        Self::LyingDisk,
        Self::LyingDevice,
        Self::EarlyAnswer,
        Self::StaleRead,
        Self::FastClock,
        Self::OldGeneration,
        Self::NoTickets,
        Self::GoOnUnsure,
        Self::AnyArrival,
        Self::EagerRebuild,
        Self::ActOnOld,
        Self::CarelessWitness,
        Self::MemoryTwice,
    ];

    /// Those that the tests look for, each with the seed from which on they look: where it was found when this
    /// was written, so that a run takes seconds. What is found at none of so many seeds from there is missed.
    /// `forgetful-guard` and `eager-rebuild` are shown by schedules that are directed at them (`chapters.rs`).
    /// `careless-witness` was found by seed 43 before the schedules with a witness got numbers of their own,
    /// and not since, nor by the first schedules directed at it. Of `count-from-answer`, `no-barrier`,
    /// `old-generation` and `memory-twice` it was not shown that they are found: the schedules seldom come to
    /// what they break.
    pub(crate) const PROVEN: [(Self, u64); 13] = [
        (Self::StartWithoutLease, 57),
        (Self::KeepMachines, 38),
        (Self::ForgetfulGuard, 140),
        (Self::LyingDisk, 1),
        (Self::LyingDevice, 19),
        (Self::EarlyAnswer, 0),
        (Self::StaleRead, 3),
        (Self::FastClock, 0),
        (Self::NoTickets, 0),
        (Self::GoOnUnsure, 24),
        (Self::AnyArrival, 47),
        (Self::EagerRebuild, 120),
        (Self::ActOnOld, 23),
    ];

    /// Its word on the command line.
    pub(crate) fn word(self) -> String {
        let mut word = String::new();
        for letter in format!("{self:?}").chars() {
            if letter.is_uppercase() && !word.is_empty() {
                word.push('-');
            }
            word.extend(letter.to_lowercase());
        }
        word
    }

    /// The plant of that word.
    pub(crate) fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|plant| plant.word() == word)
    }
}
