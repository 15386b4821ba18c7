//! Random faults, and a client who remembers what it was promised.
//!
//! A safety phase with cuts, delays and restarts, then all faults end, and the cluster must become
//! one again and serve. What a client was told is held against the end: done is there, "not done"
//! is not, and "unknown" may be either. A read after a barrier has all that was done before it.
//!
//! Time is real here, so a seed does not replay exactly; it names the faults and their order.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::LONG;
use super::Lab;
use super::has;
use super::id;
use super::propose;
use super::token;
use crate::raft::ProposeError;
use crate::raft::Replica;
use crate::raft::store::lock;

/// Writes of the clients together while there are faults: the state takes 1,000 tokens, and a few
/// are written at the end.
const WRITES_MAX: u64 = 900;

/// From one write of a client to its next, so that a fast disk has some left for the last fault.
const PACE: Duration = Duration::from_millis(25);

/// A small generator: the faults of a seed are always the same.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// What clients were told.
#[derive(Default)]
struct Oracle {
    next: AtomicU64,
    done: Mutex<BTreeSet<u64>>,
    not_done: Mutex<BTreeSet<u64>>,
    unknown: Mutex<BTreeSet<u64>>,
    reads: AtomicU64,
}

async fn write(replica: &Replica, oracle: &Oracle, n: u64) {
    match replica.propose(token(n), Duration::from_secs(3)).await {
        Ok(_) => {
            assert!(has(&replica.state(), n), "{n} is not visible where it was proposed");
            lock(&oracle.done).insert(n);
        }
        Err(ProposeError::Refused(refused)) => panic!("{n} was refused: {refused}"),
        Err(ProposeError::Unavailable(_)) => {
            lock(&oracle.not_done).insert(n);
        }
        Err(ProposeError::Unknown) => {
            lock(&oracle.unknown).insert(n);
        }
    }
}

/// Proposes and reads at one node until told to end, or until the node goes.
async fn client(replica: Replica, oracle: Arc<Oracle>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(PACE).await;
        let n = oracle.next.fetch_add(1, Ordering::Relaxed) + 1;
        if n <= WRITES_MAX {
            write(&replica, &oracle, n).await;
        }
        let promised = lock(&oracle.done).clone();
        if replica.barrier(Duration::from_secs(1)).await.is_ok() {
            let state = replica.state();
            let missing: Vec<_> = promised.iter().filter(|n| !has(&state, **n)).collect();
            assert!(missing.is_empty(), "a read after a barrier lacks {missing:?}");
            oracle.reads.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn schedule(seed: u64) {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let count = 3 + u128::from(dice.roll(2)) * 2;
    let mut lab = Lab::formed(count).await;
    let oracle = Arc::new(Oracle::default());
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = tokio::task::JoinSet::new();
    for n in 1..=count {
        clients.spawn(client(lab.node(n), oracle.clone(), stop.clone()));
    }
    for _ in 0..8 {
        let victim = u128::from(dice.roll(count as u64)) + 1;
        let other = u128::from(dice.roll(count as u64)) + 1;
        match dice.roll(6) {
            0 => lab.wire.isolate(id(victim), lab.others(victim)),
            1 => lab.wire.cut_one_way(id(victim), id(other)),
            2 => lab.wire.delay(id(victim), id(other), Duration::from_millis(dice.roll(400))),
            3 => lab.wire.mend_all(),
            _ => {
                lab.stop(victim).await;
                lab.start(victim).await.unwrap();
                clients.spawn(client(lab.node(victim), oracle.clone(), stop.clone()));
            }
        }
        tokio::time::sleep(Duration::from_millis(dice.roll(900))).await;
    }
    lab.wire.mend_all();
    for n in 1..=count {
        let number = oracle.next.fetch_add(1, Ordering::Relaxed) + 1;
        propose(&lab.node(n), number).await.unwrap();
        lock(&oracle.done).insert(number);
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    lab.node(1).barrier(LONG).await.unwrap();
    lab.converge().await;
    let state = lab.node(1).state();
    let (done, not_done) = (lock(&oracle.done).clone(), lock(&oracle.not_done).clone());
    let lost: Vec<_> = done.iter().filter(|n| !has(&state, **n)).collect();
    let ghosts: Vec<_> = not_done.iter().filter(|n| has(&state, **n)).collect();
    assert!(lost.is_empty(), "seed {seed}: acknowledged and lost: {lost:?}");
    assert!(ghosts.is_empty(), "seed {seed}: refused and done: {ghosts:?}");
    let unknown = lock(&oracle.unknown).len();
    let reads = oracle.reads.load(Ordering::Relaxed);
    println!(
        "seed {seed}: {count} nodes, {} done, {} not done, {unknown} unknown, {reads} reads",
        done.len(),
        not_done.len()
    );
    assert!(done.len() > 10 && reads > 0, "the schedule shows nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_acknowledged_write_is_lost_and_no_refused_one_is_done() {
    let seeds: u64 = std::env::var("MUSTER_RAFT_SEEDS").map_or(3, |text| text.parse().unwrap());
    for seed in 1..=seeds {
        schedule(seed).await;
    }
}
