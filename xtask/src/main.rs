//! The house's own tool: installs what the machine lacks, builds test guests, runs the gate.
//!
//! Every verb is one module. Nothing here is shipped; nothing of ours may be imported here, so that
//! the gate still works when a crate does not compile.

mod apt;
mod bench;
mod check;
mod deb;
mod demo;
mod guest;
mod install;
mod lab;
mod outside;
mod package;
mod run;
mod sim;
mod stop;
mod test;
mod tidy;
mod trouble;
mod web;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use clap::Subcommand;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, check and test Muster")]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install the Debian packages that building and testing need, and say which and why.
    Install,
    /// Build the guest images that tests and the demo boot (cached in target/guests).
    Guest {
        /// Which guest; both when left out.
        which: Option<guest::Which>,
        /// Build even when the cached image is of the current recipe.
        #[arg(long)]
        force: bool,
    },
    /// Show the main job: a Debian guest that never stops, a cluster that loses a host, a migration.
    Demo(demo::Args),
    /// The gate: formatting, lints, tidy and documentation. Changes nothing.
    Check,
    /// The only thing that writes: formatting, the lock file, and what clippy can mend by itself.
    Fix,
    /// Install what is missing, pass the gate, and run every test.
    Test(test::Args),
    /// Check the house rules that neither the compiler nor clippy knows.
    Tidy,
    /// Run schedules of the cluster simulator: many, or one seed with its trace.
    Sim(sim::Args),
    /// Migrate guests in labs with faults by lot in the middle, and look after them.
    Trouble(trouble::Args),
    /// Build the web console, which the daemon serves; needs Node.
    Web(web::Args),
    /// Make a Debian package of the release build.
    Deb(deb::Args),
    /// Install, upgrade and remove the Debian package on a real Debian under systemd.
    PackageTest,
    /// Measure Muster against its targets and its peers.
    Bench(bench::Args),
}

fn main() -> ExitCode {
    match run_verb(Args::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without a backtrace, which would bury what to do next.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_verb(verb: Verb) -> Result<()> {
    match verb {
        Verb::Install => install::run(),
        Verb::Guest { which, force } => {
            install::run()?;
            guest::run(which, force)
        }
        Verb::Demo(args) => demo::run(&args),
        Verb::Check => check::run(),
        Verb::Fix => check::fix(),
        Verb::Test(args) => test::run(&args),
        Verb::Sim(args) => sim::run(&args),
        Verb::Trouble(args) => trouble::run(&args),
        Verb::Web(args) => web::run(&args),
        Verb::Deb(args) => {
            install::run()?;
            deb::run(&args)
        }
        Verb::PackageTest => package::run(),
        Verb::Tidy => tidy::run(),
        Verb::Bench(args) => bench::run(&args),
    }
}
