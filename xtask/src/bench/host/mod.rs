//! `cargo xtask bench host`: one host. Parts: `state` (thousands of VMs in the state, fake
//! engine), `idle` (a daemon with 50 VMs that does nothing), `start` (one guest against raw QEMU),
//! `herd` (50 guests at once against a shell loop of raw QEMU).

mod guests;
mod idle;
mod raw;
mod state;

use std::path::PathBuf;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;
use clap::ValueEnum;

use super::process;
use super::report::Report;
use crate::install;
use crate::run::cmd;
use crate::run::is_root;
use crate::run::show;
use crate::run::target;

pub(super) use state::create;
pub(super) use state::name;

/// Options of `cargo xtask bench host`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// One part; all when left out. The figures go to target/bench/host-PART.json then.
    part: Option<Part>,
    /// VMs in the state.
    #[arg(long, default_value_t = 8_000)]
    vms: usize,
    /// VMs of the idle daemon, and guests started at once.
    #[arg(long, default_value_t = 50)]
    guests: usize,
    /// How long the idle daemon is watched, in seconds.
    #[arg(long, default_value_t = 60)]
    idle_s: u64,
    /// Rounds of raw QEMU and Muster in turns, one guest each.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Rounds of raw QEMU and Muster in turns, all guests at once each.
    #[arg(long, default_value_t = 1)]
    herds: usize,
    /// Measure this program instead of building it.
    #[arg(long, value_name = "FILE")]
    muster: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Thousands of VMs in the state (fake engine).
    State,
    /// A daemon whose VMs run and of which nobody wants anything (fake engine).
    Idle,
    /// One real guest, against raw QEMU.
    Start,
    /// Many real guests at once, against raw QEMU; then the idle daemon with them.
    Herd,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.part.is_none_or(|part| matches!(part, Part::Start | Part::Herd)) {
        ensure!(is_root(), "real machines need root: sudo -E cargo xtask bench host");
        install::run()?;
    }
    let binary = match &args.muster {
        Some(path) => path.canonicalize().with_context(|| format!("{}", path.display()))?,
        None => build()?,
    };
    let mut report = Report::default();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    report.note("host processors", cpus as f64, "");
    for part in Part::value_variants() {
        if args.part.is_some_and(|only| only != *part) {
            continue;
        }
        let name = part.name();
        report.note(format!("load average before part {name}"), process::load(), "");
        match part {
            Part::State => state::measure(&mut report, &binary, args.vms)?,
            Part::Idle => idle::measure(&mut report, &binary, args.guests, args.idle_s)?,
            Part::Start => guests::start(&mut report, &binary, args.rounds)?,
            Part::Herd => {
                guests::herd(&mut report, &binary, args.guests, args.herds, args.idle_s)?;
            }
        }
        report.note(format!("load average after part {name}"), process::load(), "");
    }
    let name = args.part.map_or_else(|| "host".to_owned(), |part| format!("host-{}", part.name()));
    let missed = report.finish(&name)?;
    if !missed.is_empty() {
        bail!("targets missed:\n  {}", missed.join("\n  "));
    }
    Ok(())
}

impl Part {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

pub(super) fn build() -> Result<PathBuf> {
    println!("Building Muster (a few minutes the first time) ...");
    show(cmd("cargo", ["build", "--quiet", "--release", "--package", "cli"]))?;
    Ok(target().join("release/muster"))
}
