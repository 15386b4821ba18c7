//! What goes wrong, and when: a list made from the seed before the schedule begins.

use sim::rng::Rng;

use crate::fences::Mood;
use crate::setup::Plan;

/// A fault. Times are milliseconds; hosts are numbers from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A host loses its power; some of what was not synced may be on its disk.
    Power { host: usize, back: u64, kept: usize },
    /// All hosts do.
    Blackout { back: u64 },
    /// A daemon is killed. Of so many entries of its log the next one does not know that they are
    /// committed: its state is older than its machines.
    Kill { host: usize, back: u64, behind: u64 },
    /// The daemon of whoever leads is killed.
    KillLeader { back: u64 },
    /// A guard is killed, and started again within its margin.
    KillGuard { host: usize, back: u64 },
    /// A host stands still, with all its machines.
    Freeze { host: usize, length: u64 },
    /// A daemon stands still; its guard and machines go on.
    Pause { host: usize, length: u64 },
    /// The daemon of whoever leads does.
    PauseLeader { length: u64 },
    /// Two hosts cannot reach each other.
    Cut { a: usize, b: usize, one_way: bool, length: u64 },
    /// One host reaches no other.
    Isolate { host: usize, length: u64 },
    /// Whoever leads reaches no other.
    IsolateLeader { length: u64 },
    /// Two sides.
    Split { side: Vec<usize>, length: u64 },
    /// Messages are lost, so many of a thousand.
    Lossy { permille: u64, length: u64 },
    /// Messages are late.
    Late { most: u64, length: u64 },
    /// A disk is slow.
    SlowDisk { host: usize, delay: u64, length: u64 },
    /// The time of day jumps.
    Wall { host: usize, by: i64 },
    /// The fence devices do something else.
    Device { mood: Mood, length: u64 },
    /// After so many more writes a disk takes none: the daemon ends, and does not come up.
    FullDisk { host: usize, room: u64, length: u64 },
    /// Whoever leads does not reach one of the two others.
    Lag { length: u64 },
    /// Then: the third finds its log damaged, and whoever leads reaches nobody. What it has acknowledged last
    /// is nowhere else.
    Orphan { length: u64 },
    /// A daemon ends and finds its log damaged, if no other one is being rebuilt.
    Damage { host: usize },
    /// An administrator has a node fenced that may be well.
    Fence { host: usize },
    /// The witness answers nobody, or not that host.
    WitnessAway { host: Option<usize>, length: u64 },
    /// Of the next requests to the witness nobody knows what became: not done, done, done later.
    WitnessUnsure { kinds: Vec<u64> },
    /// The same, of a node that is well, and its device only says that it has switched it off.
    Lie { host: usize },
}

/// For which moment of a migration a fault waits, at most [`AIM_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Aim {
    /// For none.
    Anything,
    /// A guest stands, and the last of it is on its way.
    Last,
    /// A handover is being decided.
    HandingOver,
}

/// How long a fault waits for its moment, in milliseconds.
pub(crate) const AIM_MAX: u64 = 3_000;

/// A fault, when it happens, and what it waits for then.
pub(crate) type Timed = (u64, Fault, Aim);

/// Kinds of faults, and of those that take a witness.
const KINDS: u64 = 19;
const WITNESS_KINDS: u64 = 8;

/// The faults of a schedule: `count` of them between two moments.
pub(crate) fn plan(rng: &mut Rng, plan: Plan, from: u64, to: u64) -> Vec<Timed> {
    let Plan { nodes: hosts, devices, witness, .. } = plan;
    let of = if witness { KINDS + WITNESS_KINDS } else { KINDS };
    let count = rng.between(5, 14);
    let mut faults: Vec<Timed> = Vec::new();
    // Some schedules have many faults of a few kinds, others a few of many.
    let kinds: Vec<u64> = (0..rng.between(3, 8)).map(|_| rng.below(of)).collect();
    for _ in 0..count {
        let kind = rng.pick(&kinds).unwrap_or(0);
        let at = rng.between(from, to);
        faults.push((at, one(rng, kind, hosts, devices), aim(rng)));
    }
    faults.sort_by_key(|(at, _, _)| *at);
    faults
}

/// The moments in which a migration is decided are short; without aim they are seldom hit.
fn aim(rng: &mut Rng) -> Aim {
    match rng.below(10) {
        0..4 => Aim::HandingOver,
        4 => Aim::Last,
        _ => Aim::Anything,
    }
}

/// Mostly some seconds, sometimes longer than every lease.
fn length(rng: &mut Rng) -> u64 {
    match rng.below(4) {
        0 => rng.between(200, 2_000),
        1 | 2 => rng.between(2_000, 9_000),
        _ => rng.between(9_000, 30_000),
    }
}

fn one(rng: &mut Rng, kind: u64, hosts: usize, devices: bool) -> Fault {
    let host = rng.place(hosts);
    let length = length(rng);
    match kind {
        0 | 1 => Fault::Power { host, back: length, kept: rng.place(4) },
        2 => Fault::Blackout { back: rng.between(100, 4_000) },
        3 => {
            let back = rng.between(50, 8_000);
            // Without a number of its own, as a schedule of before had none.
            let behind = if back.is_multiple_of(2) { 1 + back / 2 % 120 } else { 0 };
            Fault::Kill { host, back, behind }
        }
        4 => Fault::KillLeader { back: rng.between(50, 8_000) },
        5 => Fault::KillGuard { host, back: rng.between(20, 1_500) },
        6 => Fault::Freeze { host, length },
        7 => Fault::Pause { host, length },
        8 => Fault::PauseLeader { length },
        9 => {
            let b = (host + 1 + rng.place(hosts - 1)) % hosts;
            Fault::Cut { a: host, b, one_way: rng.permille(500), length }
        }
        10 => Fault::Isolate { host, length },
        11 => Fault::IsolateLeader { length },
        12 => {
            let side = (0..hosts).filter(|_| rng.permille(500)).collect();
            Fault::Split { side, length }
        }
        13 => Fault::Lossy { permille: rng.between(20, 400), length },
        14 => Fault::Late { most: rng.between(50, 3_000), length },
        15 => Fault::SlowDisk { host, delay: rng.between(50, 3_000), length },
        16 | 17 => Fault::Damage { host },
        KINDS.. if rng.permille(500) => {
            let host = rng.permille(600).then_some(host);
            Fault::WitnessAway { host, length }
        }
        KINDS.. => {
            let count = rng.between(1, 12);
            Fault::WitnessUnsure { kinds: (0..count).map(|_| rng.below(4)).collect() }
        }
        _ if !devices => Fault::Wall { host, by: rng.between(0, 7_200_000) as i64 - 3_600_000 },
        _ if rng.permille(300) => Fault::Fence { host },
        _ if rng.permille(400) => Fault::Lie { host },
        _ => {
            let moods = [Mood::Fails, Mood::Hangs, Mood::Works];
            Fault::Device { mood: rng.pick(&moods).unwrap_or(Mood::Works), length }
        }
    }
}
