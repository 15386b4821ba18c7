//! The simulator: the control plane of several nodes in one process, from one seed. See README.md.
//!
//! ```text
//!   sim --seed S [--nodes N] [--plant WORD] [--trace]     one schedule, in this process
//!   sim --seeds N [--from S] ...                          many, each in a process of its own
//!   sim --list / --exact NAME / [FILTER]                  as a test program, for nextest and cargo
//! ```

mod chapters;
mod clients;
mod drivers;
mod entropy;
mod faults;
mod fences;
mod ground;
mod guard;
mod host;
mod invariants;
mod many;
mod movers;
mod plant;
mod setup;
mod staff;
mod suite;
mod vault;
mod wire;
mod world;

use std::process::ExitCode;

use plant::Plant;
use world::Options;

/// What is asked for on the command line.
#[derive(Default)]
struct Args {
    seed: Option<u64>,
    seeds: Option<u64>,
    from: u64,
    nodes: Option<usize>,
    plant: Option<Plant>,
    trace: bool,
    list: bool,
    ignored: bool,
    exact: bool,
    filters: Vec<String>,
}

fn main() -> ExitCode {
    let args = match parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(problem) => {
            eprintln!("error: {problem}; see tests/sim/README.md");
            return ExitCode::from(2);
        }
    };
    if let Some(seed) = args.seed {
        let Args { nodes, plant, trace, .. } = args;
        return one(&Options { seed, nodes, plant, trace });
    }
    if let Some(count) = args.seeds {
        let job = many::Job { nodes: args.nodes, plant: args.plant };
        return many::report(&job, args.from..args.from.saturating_add(count));
    }
    suite::run(args.list, args.ignored, args.exact, &args.filters)
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, String> {
    let mut args = Args::default();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        let number =
            |text: String| text.parse::<u64>().map_err(|_| format!("'{text}' is no number"));
        match word.as_str() {
            "--seed" => args.seed = Some(number(value()?)?),
            "--seeds" => args.seeds = Some(number(value()?)?),
            "--from" => args.from = number(value()?)?,
            "--nodes" => {
                let nodes = number(value()?)?;
                if !(3..=7).contains(&nodes) {
                    return Err("--nodes is 3 to 7".to_owned());
                }
                args.nodes = usize::try_from(nodes).ok();
            }
            "--plant" => {
                let word = value()?;
                let plant = Plant::of(&word);
                args.plant = Some(plant.ok_or_else(|| format!("there is no plant '{word}'"))?);
            }
            "--trace" => args.trace = true,
            "--list" => args.list = true,
            "--ignored" => args.ignored = true,
            "--exact" => args.exact = true,
            // What test programs are told, and what makes no difference to this one.
            "--format" | "--test-threads" | "--color" => drop(value()?),
            flag if flag.starts_with('-') => {}
            filter => args.filters.push(filter.to_owned()),
        }
    }
    Ok(args)
}

/// One schedule. The last line is for the program that started this one.
fn one(options: &Options) -> ExitCode {
    entropy::seed(options.seed);
    // A thread that has not drawn any numbers yet.
    let own = *options;
    let outcome = std::thread::spawn(move || world::run(&own)).join();
    let Ok(outcome) = outcome else {
        println!("{}", many::failed(options, "it panicked"));
        return ExitCode::FAILURE;
    };
    if let Some(error) = &outcome.error {
        if !options.trace {
            outcome.tail.iter().for_each(|line| println!("{line}"));
        }
        println!("{}", many::failed(options, error));
    }
    println!("{}", many::summary(&outcome));
    if outcome.error.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
