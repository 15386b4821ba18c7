//! The simulator as a test program.

use std::process::ExitCode;

use crate::many;
use crate::many::Job;
use crate::plant::Plant;

/// Schedules of one run of the tests; `MUSTER_SIM_SEEDS` runs another number.
const SCHEDULES: u64 = 300;

/// Schedules within which each planted fault must be found.
const PLANT_SEEDS: u64 = 200;

type Test = (&'static str, fn() -> Result<(), String>);

const TESTS: [Test; 3] = [
    ("schedules_keep_the_invariants", schedules),
    ("every_planted_fault_is_found", plants),
    ("a_seed_replays_exactly", replays),
];

/// Lists or runs the tests, as the harness of the standard library does.
pub(crate) fn run(list: bool, ignored: bool, exact: bool, filters: &[String]) -> ExitCode {
    let chosen = |name: &str| {
        filters.is_empty()
            || filters.iter().any(|it| if exact { it == name } else { name.contains(&**it) })
    };
    let tests = TESTS.iter().filter(|(name, _)| !ignored && chosen(name));
    if list {
        tests.for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in tests {
        match test() {
            Ok(()) => {
                println!("test {name} ... ok");
                passed += 1;
            }
            Err(problem) => {
                println!("{problem}\ntest {name} ... FAILED");
                failed += 1;
            }
        }
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn schedules() -> Result<(), String> {
    let seeds = number("MUSTER_SIM_SEEDS", SCHEDULES);
    let total = many::run(&Job { nodes: None, plant: None }, 0..seeds, 3, false);
    println!("{}", many::words(&total));
    if let Some(first) = total.failed.first() {
        return Err(first.output.clone());
    }
    // Schedules in which nothing happens prove nothing.
    let figures = total.figures;
    if figures.faults < 4 * seeds || figures.takeovers < seeds / 4 || figures.answered < 50 * seeds
    {
        return Err("too little happens in these schedules".to_owned());
    }
    // Nearly all move guests; handovers that are refused or of which nothing is known take a fault
    // at the right moment.
    if figures.moving < seeds * 9 / 10
        || figures.handovers < 4 * seeds
        || figures.refused < seeds / 20
        || figures.unsure < seeds / 20
        || figures.damaged < seeds / 10
    {
        return Err(
            "too little becomes of the migrations, or too few logs are damaged, in these schedules"
                .to_owned(),
        );
    }
    // What only some have.
    if figures.moves < seeds / 5 || figures.resumed < seeds / 10 || figures.evicted < seeds / 20 {
        return Err("too few moves or evictions in these schedules".to_owned());
    }
    Ok(())
}

fn plants() -> Result<(), String> {
    let mut missed = Vec::new();
    for (plant, first) in Plant::PROVEN {
        let seeds = first..first + PLANT_SEEDS;
        let total = many::run(&Job { nodes: None, plant: Some(plant) }, seeds, 1, false);
        match total.failed.first() {
            Some(first) => println!("{}: found by seed {}", plant.word(), first.seed),
            None => missed.push(plant.word()),
        }
    }
    if missed.is_empty() { Ok(()) } else { Err(format!("not found: {}", missed.join(", "))) }
}

fn replays() -> Result<(), String> {
    let job = Job { nodes: None, plant: None };
    for seed in [1, 2, 3] {
        let (one, two) = (many::one(&job, seed, true), many::one(&job, seed, true));
        if one.output == two.output && one.output.lines().count() > 100 {
            continue;
        }
        let mut lines = one.output.lines().zip(two.output.lines());
        let first = lines.find(|(a, b)| a != b);
        return Err(format!("seed {seed} went two ways, first at {first:?}"));
    }
    Ok(())
}
