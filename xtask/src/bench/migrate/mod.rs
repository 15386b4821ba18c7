//! `cargo xtask bench migrate`: live migration by Muster against raw QEMU, in turns.
//!
//! ```text
//!   per guest:  boot it under raw QEMU and in a lab of two nodes; both rest
//!     per round:  raw QEMU as it comes | raw QEMU at its best | muster vm migrate
//!                 run the load, migrate, hear the guest, check its memory, rest   (module passage)
//! ```
//!
//! The guest ticks over the network, and the host stamps what it hears (module `ticks`): the
//! blackout is the longest silence from the command until half a second after the end, by the same
//! measure for all three. It includes what the host's other work does to the guest; that is printed
//! as the noise before. Raw QEMU's times leave out the start of the destination, Muster's do not.

mod figures;
mod muster;
mod passage;
mod qmp;
mod raw;

use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use clap::ValueEnum;

use self::figures::Figures;
use self::muster::Muster;
use self::passage::Passage;
use self::raw::Plan;
use self::raw::Raw;
use super::process;
use super::report::Report;
use crate::guest;
use crate::install;
use crate::lab::Lab;
use crate::outside;
use crate::outside::ticks::Load;
use crate::run::cmd;
use crate::run::is_root;
use crate::run::show;
use crate::run::target;
use crate::stop;

/// Options of `cargo xtask bench migrate`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Rounds of raw QEMU twice and Muster, in turns.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// One round of one idle and one loaded guest.
    #[arg(long)]
    quick: bool,
    /// Measure this program instead of building it.
    #[arg(long, value_name = "FILE")]
    muster: Option<PathBuf>,
    /// Only one side; the figures go to target/bench/migrate-SIDE.json then.
    #[arg(long)]
    only: Option<Side>,
    /// Guests, separated by commas.
    #[arg(long, value_delimiter = ',', default_values_t = GUESTS.map(|kind| kind.name.to_owned()))]
    guests: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Side {
    Raw,
    Muster,
}

/// A guest and what it does.
#[derive(Debug, Clone, Copy)]
struct Kind {
    name: &'static str,
    memory_mib: u64,
    load: Load,
}

impl Kind {
    const fn of(name: &'static str, memory_mib: u64, rate_mib: u64, set_mib: u64) -> Self {
        Self { name, memory_mib, load: Load { rate_mib, set_mib } }
    }

    fn is_loaded(self) -> bool {
        self.load.rate_mib > 0
    }
}

const GUESTS: [Kind; 4] = [
    Kind::of("idle512", 512, 0, 0),
    Kind::of("d50", 512, 50, 128),
    Kind::of("d400", 512, 400, 256),
    Kind::of("idle2g", 2048, 0, 0),
];

/// What `--quick` takes.
const QUICK: [&str; 2] = ["idle512", "d50"];

/// Who migrates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Variant {
    /// Raw QEMU, as it comes.
    Defaults,
    /// Raw QEMU with the best known settings.
    Best,
    Muster,
}

impl Variant {
    fn name(self) -> &'static str {
        match self {
            Self::Defaults => "raw defaults",
            Self::Best => "raw best",
            Self::Muster => "Muster",
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(is_root(), "namespaces and labs need root: sudo -E cargo xtask bench migrate");
    let kinds = kinds(args)?;
    let rounds = if args.quick { 1 } else { args.rounds };
    ensure!(rounds > 0, "no rounds");
    install::run()?;
    let image = guest::ensure(guest::Which::Bench, false)?;
    let lab = match args.only {
        Some(Side::Raw) => None,
        _ => Some(lab(args, &image)?),
    };
    let mut report = Report::default();
    report.note("load average before", process::load(), "");
    // Raw QEMU has what Muster found to work on this machine; by itself, what works everywhere.
    let accelerator = lab.as_ref().map_or_else(|| Ok("tcg".to_owned()), muster::accelerator)?;
    println!("Accelerator {accelerator}");
    let plan = (args.only != Some(Side::Muster)).then_some(Plan { image, accelerator });
    let mut figures = Figures::default();
    let outcome = kinds.iter().try_for_each(|kind| {
        measure(*kind, rounds, plan.as_ref(), lab.as_ref(), &mut figures)
            .with_context(|| format!("guest {}", kind.name))
    });
    drop(lab);
    // What was measured is shown, also when it did not go on.
    report.note("load average after", process::load(), "");
    figures.report(&mut report);
    let side = args.only.and_then(|side| side.to_possible_value());
    let name = side.map_or_else(|| "migrate".to_owned(), |it| format!("migrate-{}", it.get_name()));
    let missed = report.finish(&name)?;
    println!("{}", figures.table());
    outcome?;
    ensure!(missed.is_empty(), "missed: {}", missed.join("; "));
    Ok(())
}

fn kinds(args: &Args) -> Result<Vec<Kind>> {
    let wanted = |name: &str| match args.quick {
        true => QUICK.contains(&name),
        false => args.guests.iter().any(|it| it == name),
    };
    for name in &args.guests {
        let known = GUESTS.map(|kind| kind.name);
        ensure!(known.contains(&&**name), "no guest {name}; there are {}", known.join(", "));
    }
    Ok(GUESTS.into_iter().filter(|kind| wanted(kind.name)).collect())
}

fn lab(args: &Args, image: &Path) -> Result<Lab> {
    let binary = match &args.muster {
        Some(path) => path.canonicalize().with_context(|| format!("{}", path.display()))?,
        None => {
            show(cmd("cargo", ["build", "--release", "--quiet", "--package", "cli"]))?;
            target().join("release/muster")
        }
    };
    let lab = Lab::up(&binary, "migrate", 2)?;
    outside::prepare(&lab, image)?;
    Ok(lab)
}

/// All rounds of one guest.
fn measure(
    kind: Kind,
    rounds: usize,
    plan: Option<&Plan>,
    lab: Option<&Lab>,
    figures: &mut Figures,
) -> Result<()> {
    println!("\n{}: {} MiB, {}", kind.name, kind.memory_mib, words(kind.load));
    let mut raw = plan.map(|plan| Raw::boot(kind, plan)).transpose().context("raw QEMU")?;
    let mut muster = lab.map(|lab| Muster::boot(lab, kind)).transpose().context("Muster")?;
    for round in 1..=rounds {
        stop::check()?;
        let mut add = |variant: Variant, passage: Option<Passage>| {
            println!("  {round}, {}: {}", variant.name(), said(passage.as_ref()));
            figures.add(kind, variant, passage);
        };
        if let Some(raw) = &mut raw {
            for variant in [Variant::Defaults, Variant::Best] {
                add(variant, raw.migrate(variant).with_context(|| variant.name())?);
            }
        }
        if let Some(muster) = &mut muster {
            add(Variant::Muster, Some(muster.migrate().context("Muster")?));
        }
    }
    drop(raw);
    muster.map_or(Ok(()), Muster::end)
}

fn words(load: Load) -> String {
    match load.rate_mib {
        0 => "idle".to_owned(),
        rate => format!("dirties {rate} MiB/s over {} MiB", load.set_mib),
    }
}

fn said(passage: Option<&Passage>) -> String {
    let Some(it) = passage else { return "does not converge".to_owned() };
    format!(
        "total {:.0} ms (command {:.0}), blackout {:.0} ms (claimed {:.0}, noise before {:.0}), \
         {:.0} MiB, {} passes, guest dirtied {:.0} MiB/s",
        it.done.total_ms,
        it.done.wall_ms,
        it.blackout_ms,
        it.done.pause_ms,
        it.noise_ms,
        it.done.mib,
        it.done.passes,
        it.dirtied_mib_s,
    )
}

#[cfg(test)]
mod tests {
    use super::Args;
    use super::GUESTS;
    use super::QUICK;
    use super::kinds;

    fn args(quick: bool, guests: &[&str]) -> Args {
        let guests = guests.iter().map(|&it| it.to_owned()).collect();
        Args { rounds: 1, quick, muster: None, only: None, guests }
    }

    #[test]
    fn guests_are_chosen_by_name() {
        let names = |args: &Args| -> Vec<&str> {
            kinds(args).unwrap().into_iter().map(|kind| kind.name).collect()
        };
        assert_eq!(names(&args(false, &["d400", "idle512"])), ["idle512", "d400"]);
        assert_eq!(names(&args(true, &GUESTS.map(|kind| kind.name))), QUICK);
        assert!(kinds(&args(false, &["d5"])).is_err());
    }
}
