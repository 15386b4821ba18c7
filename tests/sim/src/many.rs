//! Many schedules: each in a process of its own, as many at a time as there are processors.

use std::ops::Range;
use std::process::Command;
use std::process::ExitCode;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use crate::ground::Tally;
use crate::ground::lock;
use crate::plant::Plant;
use crate::world::Options;
use crate::world::Outcome;

/// What all of them have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job {
    pub(crate) nodes: Option<usize>,
    pub(crate) plant: Option<Plant>,
}

/// One schedule, seen from outside.
#[derive(Debug, Clone)]
pub(crate) struct Done {
    pub(crate) seed: u64,
    pub(crate) good: bool,
    pub(crate) output: String,
}

/// What came of all of them.
#[derive(Debug, Default)]
pub(crate) struct Total {
    pub(crate) runs: u64,
    pub(crate) failed: Vec<Done>,
    pub(crate) took: Duration,
    pub(crate) figures: Figures,
}

/// Figures of the summaries, added up.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Figures {
    pub(crate) simulated_s: u64,
    pub(crate) answered: u64,
    pub(crate) unknown: u64,
    pub(crate) takeovers: u64,
    pub(crate) faults: u64,
    /// Migrations that were begun, and VMs that were handed over by one.
    pub(crate) migrations: u64,
    pub(crate) handovers: u64,
    /// Schedules in which a VM was handed over.
    pub(crate) moving: u64,
    /// Handovers that were refused, and those of which nothing was known.
    pub(crate) refused: u64,
    pub(crate) unsure: u64,
    /// Logs that were damaged and made anew.
    pub(crate) damaged: u64,
    /// Moves, guests that went on from their memory, daemons whose disk was full.
    pub(crate) moves: u64,
    pub(crate) resumed: u64,
    pub(crate) evicted: u64,
    pub(crate) full: u64,
}

impl Figures {
    fn add(&mut self, more: &Self) {
        self.simulated_s += more.simulated_s;
        self.answered += more.answered;
        self.unknown += more.unknown;
        self.takeovers += more.takeovers;
        self.faults += more.faults;
        self.migrations += more.migrations;
        self.handovers += more.handovers;
        self.moving += more.moving;
        self.refused += more.refused;
        self.unsure += more.unsure;
        self.damaged += more.damaged;
        self.moves += more.moves;
        self.resumed += more.resumed;
        self.evicted += more.evicted;
        self.full += more.full;
    }
}

/// The words on a failure: what failed, and the one command that shows it again.
pub(crate) fn failed(options: &Options, error: &str) -> String {
    let mut command = format!("cargo xtask sim --seed {}", options.seed);
    if let Some(nodes) = options.nodes {
        command += &format!(" --nodes {nodes}");
    }
    if let Some(plant) = options.plant {
        command += &format!(" --plant {}", plant.word());
    }
    format!("seed {} FAILED: {error}\n  {command} --trace", options.seed)
}

/// One line about a schedule, for people and for [`run`].
pub(crate) fn summary(outcome: &Outcome) -> String {
    let Outcome { lines, digest, simulated_ms, answered, unknown, takeovers, faults, .. } = outcome;
    let Tally { migrations, arrived, refused, not_sent, unsure, damaged, .. } = outcome.tally;
    let Tally { saved, resumed, evicted, full, .. } = outcome.tally;
    format!(
        "summary trace={lines}:{digest:016x} simulated_s={} answered={answered} \
         unknown={unknown} takeovers={takeovers} faults={faults} migrations={migrations} \
         handovers={} arrived={arrived} refused={refused} not_sent={not_sent} unsure={unsure} \
         damaged={damaged} moves={} saved={saved} resumed={resumed} evicted={evicted} full={full}",
        simulated_ms / 1_000,
        outcome.handovers,
        outcome.moves
    )
}

fn figures(output: &str) -> Figures {
    let line = output.lines().rfind(|line| line.starts_with("summary ")).unwrap_or_default();
    let value = |name: &str| {
        let mut words = line.split(' ').filter_map(|word| word.split_once('='));
        words.find(|(key, _)| *key == name).and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
    };
    Figures {
        simulated_s: value("simulated_s"),
        answered: value("answered"),
        unknown: value("unknown"),
        takeovers: value("takeovers"),
        faults: value("faults"),
        migrations: value("migrations"),
        handovers: value("handovers"),
        moving: value("handovers").min(1),
        refused: value("refused"),
        unsure: value("unsure"),
        damaged: value("damaged"),
        moves: value("moves"),
        resumed: value("resumed"),
        evicted: value("evicted"),
        full: value("full"),
    }
}

/// Runs one in a process of its own.
pub(crate) fn one(job: &Job, seed: u64, trace: bool) -> Done {
    let not_run = |why: String| Done { seed, good: false, output: why };
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return not_run(format!("this program is not found: {error}")),
    };
    let mut command = Command::new(program);
    command.args(["--seed", &seed.to_string()]).stdin(Stdio::null());
    if let Some(nodes) = job.nodes {
        command.args(["--nodes", &nodes.to_string()]);
    }
    if let Some(plant) = job.plant {
        command.args(["--plant", &plant.word()]);
    }
    if trace {
        command.arg("--trace");
    }
    match command.output() {
        Ok(output) => {
            let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
            text += &String::from_utf8_lossy(&output.stderr);
            if output.status.code().is_none() {
                // An assertion of openraft, say: a log that cannot go on ends its process.
                let Job { nodes, plant } = *job;
                let options = Options { seed, nodes, plant, trace };
                text += &failed(&options, &format!("its process ended by a {}", output.status));
            }
            Done { seed, good: output.status.success(), output: text }
        }
        Err(error) => not_run(format!("no process: {error}")),
    }
}

/// Runs seeds in order until all are done, or `enough` of them have failed.
pub(crate) fn run(job: &Job, seeds: Range<u64>, enough: usize, loud: bool) -> Total {
    let begun = Instant::now();
    let next = AtomicU64::new(seeds.start);
    let total = Mutex::new(Total::default());
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= seeds.end || lock(&total).failed.len() >= enough {
                        return;
                    }
                    let done = one(job, seed, false);
                    let seen = figures(&done.output);
                    let mut total = lock(&total);
                    total.runs += 1;
                    total.figures.add(&seen);
                    if !done.good {
                        if loud {
                            println!("{}", done.output);
                        }
                        total.failed.push(done);
                    }
                }
            });
        }
    });
    let mut total = total.into_inner().unwrap_or_default();
    total.took = begun.elapsed();
    total.failed.sort_by_key(|done| done.seed);
    total
}

/// Runs them and tells a person.
pub(crate) fn report(job: &Job, seeds: Range<u64>) -> ExitCode {
    let total = run(job, seeds, usize::MAX, true);
    println!("{}", words(&total));
    if total.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What came of all of them, in a line.
pub(crate) fn words(total: &Total) -> String {
    let Figures { simulated_s, answered, unknown, takeovers, faults, .. } = total.figures;
    let Figures { migrations, handovers, moving, refused, unsure, damaged, .. } = total.figures;
    let Figures { moves, resumed, evicted, full, .. } = total.figures;
    let each = total.took.as_secs_f64() / (total.runs.max(1) as f64);
    format!(
        "{} schedules, {} failed, in {:.0} s ({each:.2} s each); {simulated_s} simulated s, \
         {faults} faults, {takeovers} takeovers, {answered} calls answered and {unknown} not, \
         {migrations} migrations, {handovers} handovers in {moving} schedules, {refused} refused, \
         {unsure} unknown, {damaged} logs damaged, {moves} moves, {resumed} guests resumed, \
         {evicted} evictions, {full} daemons with a full disk",
        total.runs,
        total.failed.len(),
        total.took.as_secs_f64()
    )
}
