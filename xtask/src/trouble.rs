//! `cargo xtask trouble`: faults by lot in the middle of live migrations, in labs
//! (`tests/e2e/tests/migrate_trouble.rs`).

use anyhow::Result;

use crate::guest;
use crate::guest::Which;
use crate::install;
use crate::run::cmd;
use crate::run::root;
use crate::run::show;

/// Options of `cargo xtask trouble`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// So many migrations, each with a fault; about nine seconds each.
    #[arg(long, default_value_t = 200)]
    runs: u64,
    /// Decides faults and moments.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Builds everything and runs them.
pub(crate) fn run(args: &Args) -> Result<()> {
    install::run()?;
    guest::ensure(Which::Tiny, false)?;
    let mut build = cmd("cargo", ["build", "--workspace", "--quiet"]);
    build.current_dir(root());
    show(build)?;
    let mut test = cmd("cargo", ["test", "--quiet", "--workspace", "--test", "migrate_trouble"]);
    test.args(["--", "--ignored", "--exact", "--nocapture", "faults_by_lot"]);
    test.current_dir(root());
    test.env("MUSTER_TROUBLE_RUNS", args.runs.to_string());
    test.env("MUSTER_TROUBLE_SEED", args.seed.to_string());
    show(test)
}
