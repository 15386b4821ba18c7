//! Random faults of nodes, link and witness, and clients who remember what they were promised.
//!
//! Time is real here, so a seed does not replay exactly; it names the faults and their order.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Dice;
use super::id;
use super::lab::LONG;
use super::lab::Lab;
use super::lab::has;
use super::lab::propose;
use crate::raft::ProposeError;
use crate::raft::Replica;
use crate::witness::memory::Fault;

/// Writes of a schedule: the state takes 1,000 tokens.
const WRITES_MAX: u64 = 900;

#[derive(Default)]
struct Oracle {
    next: AtomicU64,
    done: Mutex<BTreeSet<u64>>,
    not_done: Mutex<BTreeSet<u64>>,
    reads: AtomicU64,
}

async fn client(replica: Replica, oracle: Arc<Oracle>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(25)).await;
        let n = oracle.next.fetch_add(1, Ordering::Relaxed) + 1;
        if n <= WRITES_MAX {
            match propose(&replica, n, Duration::from_secs(3)).await {
                Ok(_) => drop(oracle.done.lock().unwrap().insert(n)),
                Err(ProposeError::Refused(refused)) => panic!("{n} was refused: {refused}"),
                Err(ProposeError::Unavailable(_)) => {
                    oracle.not_done.lock().unwrap().insert(n);
                }
                Err(ProposeError::Unknown) => {}
            }
        }
        let promised = oracle.done.lock().unwrap().clone();
        if replica.barrier(Duration::from_secs(1)).await.is_ok() {
            let state = replica.state();
            let missing: Vec<_> = promised.iter().filter(|n| !has(&state, **n)).collect();
            assert!(missing.is_empty(), "a read after a barrier lacks {missing:?}");
            oracle.reads.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn schedule(seed: u64) {
    let mut dice = Dice::new(seed);
    let mut lab = Lab::pair().await;
    let oracle = Arc::new(Oracle::default());
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = tokio::task::JoinSet::new();
    for n in 1..=2 {
        clients.spawn(client(lab.node(n), oracle.clone(), stop.clone()));
    }
    for _ in 0..8 {
        let victim = u128::from(dice.roll(2)) + 1;
        match dice.roll(8) {
            0 => lab.wire.cut(id(1), id(2)),
            1 => lab.wire.cut_one_way(id(victim), id(3 - victim)),
            2 => lab.ways[&victim].cut(true),
            3 => lab.store.down(true),
            4 => {
                let time = Duration::from_millis(dice.roll(200));
                lab.store.plan([Fault::LoseAnswer, Fault::DoLater(time), Fault::LoseRequest]);
            }
            5 => mend(&lab),
            _ => {
                lab.stop(victim).await;
                tokio::time::sleep(Duration::from_millis(dice.roll(1_500))).await;
                lab.start(victim, false).await;
                clients.spawn(client(lab.node(victim), oracle.clone(), stop.clone()));
            }
        }
        tokio::time::sleep(Duration::from_millis(dice.roll(900))).await;
        if dice.roll(3) == 0 {
            mend(&lab);
        }
    }
    mend(&lab);
    for n in 1..=2 {
        let number = oracle.next.fetch_add(1, Ordering::Relaxed) + 1;
        propose(&lab.node(n), number, LONG).await.unwrap();
        oracle.done.lock().unwrap().insert(number);
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    lab.node(1).barrier(LONG).await.unwrap();
    lab.converge().await;
    let state = lab.node(1).state();
    let (done, not_done) = (oracle.done.lock().unwrap(), oracle.not_done.lock().unwrap());
    let lost: Vec<_> = done.iter().filter(|n| !has(&state, **n)).collect();
    let ghosts: Vec<_> = not_done.iter().filter(|n| has(&state, **n)).collect();
    assert!(lost.is_empty(), "seed {seed}: acknowledged and lost: {lost:?}");
    assert!(ghosts.is_empty(), "seed {seed}: refused and done: {ghosts:?}");
    let reads = oracle.reads.load(Ordering::Relaxed);
    println!("seed {seed}: {} done, {} not done, {reads} reads", done.len(), not_done.len());
    assert!(done.len() > 5 && reads > 0, "the schedule shows nothing");
}

fn mend(lab: &Lab) {
    lab.wire.mend_all();
    lab.store.down(false);
    lab.ways.values().for_each(|way| way.cut(false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_pair_loses_nothing_whatever_fails() {
    let seeds: u64 = std::env::var("MUSTER_PAIR_SEEDS").map_or(2, |text| text.parse().unwrap());
    for seed in 1..=seeds {
        schedule(seed).await;
    }
}
