//! `cargo xtask bench`: figures against their targets, measured through the built binary alone.
//!
//! Each bench starts daemons of its own in directories of its own and removes both, however it
//! ends. It prints a table and writes `target/bench/NAME.json` (module `report`); a target that is
//! missed is the exit code.

mod daemon;
mod ha;
mod host;
mod http;
mod migrate;
mod process;
mod report;
mod ui;
mod volume;

use anyhow::Result;
use clap::Subcommand;

use crate::stop;

/// Options of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    which: Which,
}

#[derive(Debug, Subcommand)]
enum Which {
    /// One host: thousands of VMs in the state, an idle daemon, guests against raw QEMU.
    Host(host::Args),
    /// A lab that loses hosts, machines and leaders.
    Ha(ha::Args),
    /// Live migration: raw QEMU by default, raw QEMU at its best, and Muster in a lab.
    Migrate(migrate::Args),
    /// A shared volume: its mount points beside the raw device path.
    Volume(volume::Args),
    /// The web console in a real browser, with thousands of machines that only pretend.
    Ui(ui::Args),
}

pub(crate) fn run(args: &Args) -> Result<()> {
    stop::listen()?;
    match &args.which {
        Which::Host(args) => host::run(args),
        Which::Ha(args) => ha::run(args),
        Which::Migrate(args) => migrate::run(args),
        Which::Volume(args) => volume::run(args),
        Which::Ui(args) => ui::run(args),
    }
}
