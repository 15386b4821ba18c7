//! The protocol of leases under every fault, from a seed: real machines (`volume::lease`), a LUN, a
//! file system and hosts in memory. See `docs/decisions/0019-leases-of-a-shared-volume.md`.
//!
//! ```text
//! cargo nextest run --workspace -E 'package(volume) and binary(leases)'
//! MUSTER_LEASE_SEEDS=10000 MUSTER_LEASE_FROM=200 ...            # another number, from another seed
//! MUSTER_LEASE_SEED=42 [MUSTER_LEASE_PLANT=NoClear] ...          # one schedule, with its trace
//! ```
//!
//! | checked | when |
//! | --- | --- |
//! | 14: one coordinator's work on the LUN at a time, epochs only grow | each of its commands |
//! | 15: no direct command of an older epoch than the LUN's | each |
//! | 16: no direct read or write without a live lease on that very block | each |
//! | 17: no block freed or reused under a live lease | each free, each allocation |
//! | 18: a read returns what was acknowledged, or newer | each read; each block at the end |
//! | 21: no read returns what another file or tenant had there | the same |
//! | one writer to a file | each direct write |
//! | flushed data survives loss of power of everything | each read after it |
//! | 36: a flush that is answered covers what was answered before it, also where the LUN lost its cache with a path or alone | each read after it, each block at the end |
//! | no guest is told an error for any of it; all is well again 8 s after the last fault | always |

mod deeds;
mod faults;
mod fs;
mod guests;
mod host;
mod lun;
mod oracle;
mod plant;
mod rng;
mod world;

use plant::Plant;
use world::Tally;
use world::World;

/// Schedules of one run of the tests.
const SCHEDULES: u64 = 200;

/// Schedules within which each planted fault must be found.
const PLANT_SEEDS: u64 = 200;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

fn planted() -> Option<Plant> {
    let word = std::env::var("MUSTER_LEASE_PLANT").ok()?;
    Plant::ALL.into_iter().find(|plant| format!("{plant:?}") == word)
}

fn one(seed: u64, plant: Option<Plant>) -> Result<Tally, String> {
    let mut world = World::new(seed, plant, false);
    world.run().map(|()| world.tally)
}

/// A schedule with all that happened, and what came of it.
fn told(seed: u64, plant: Option<Plant>) -> (String, Result<(), String>) {
    let mut world = World::new(seed, plant, true);
    let result = world.run();
    (world.trace.unwrap_or_default(), result)
}

fn tail(trace: &str) -> String {
    let lines: Vec<&str> = trace.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

fn add(total: &mut Tally, one: &Tally) {
    total.faults += one.faults;
    total.mounts += one.mounts;
    total.fences += one.fences;
    total.direct += one.direct;
    total.redirected += one.redirected;
    total.reads += one.reads;
    total.writes += one.writes;
    total.recalls += one.recalls;
    total.refused += one.refused;
    total.taken += one.taken;
    total.full += one.full;
    total.losses += one.losses;
}

#[test]
fn schedules_keep_the_invariants() {
    if let Some(seed) = number("MUSTER_LEASE_SEED") {
        let (trace, result) = told(seed, planted());
        println!("{trace}");
        return result.unwrap_or_else(|problem| panic!("seed {seed}: {problem}"));
    }
    let seeds = number("MUSTER_LEASE_SEEDS").unwrap_or(SCHEDULES);
    let from = number("MUSTER_LEASE_FROM").unwrap_or(0);
    let mut total = Tally::default();
    let mut failed = Vec::new();
    for seed in from..from + seeds {
        match one(seed, planted()) {
            Ok(tally) => add(&mut total, &tally),
            Err(problem) => failed.push((seed, problem)),
        }
    }
    println!("{seeds} schedules: {total:?}");
    if let Some((seed, problem)) = failed.first() {
        let (trace, _) = told(*seed, planted());
        let seeds: Vec<u64> = failed.iter().map(|(seed, _)| *seed).collect();
        panic!("{}\nseed {seed}: {problem}\nall that failed: {seeds:?}", tail(&trace));
    }
    // Schedules in which nothing happens prove nothing.
    assert!(total.faults > 10 * seeds, "too few faults: {total:?}");
    assert!(total.mounts > 3 * seeds, "too few takeovers: {total:?}");
    assert!(total.direct > 300 * seeds, "too little direct I/O: {total:?}");
    assert!(total.redirected > 50 * seeds, "too little redirected I/O: {total:?}");
    assert!(total.recalls > 5 * seeds && total.fences > 5 * seeds, "too quiet: {total:?}");
    assert!(total.losses > seeds, "too few lost caches: {total:?}");
    assert!(total.refused > seeds, "the LUN refuses too little: {total:?}");
}

#[test]
fn every_planted_fault_is_found() {
    let mut missed = Vec::new();
    for plant in Plant::ALL {
        match (0..PLANT_SEEDS).find_map(|seed| one(seed, Some(plant)).err().map(|it| (seed, it))) {
            Some((seed, problem)) => println!("{plant:?}: seed {seed}: {problem}"),
            None => missed.push(plant),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}

#[test]
fn a_seed_replays_exactly() {
    for seed in [1, 2, 3] {
        let (one, two) = (told(seed, None).0, told(seed, None).0);
        assert!(one.lines().count() > 1_000, "seed {seed} does too little");
        assert!(one == two, "seed {seed} went two ways");
    }
}
