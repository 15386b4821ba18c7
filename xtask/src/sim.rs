//! `cargo xtask sim`: schedules of the cluster simulator (`tests/sim/README.md`).

use std::process::Command;

use anyhow::Result;

use crate::run::cmd;
use crate::run::root;
use crate::run::show;

/// Options of `cargo xtask sim`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// This schedule only.
    #[arg(long, conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
    /// So many schedules.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Nodes of each, 3 to 7; the seed decides when left out.
    #[arg(long)]
    nodes: Option<u64>,
    /// With this planted fault, which is to be found.
    #[arg(long)]
    plant: Option<String>,
    /// Show each event (with --seed).
    #[arg(long, requires = "seed")]
    trace: bool,
}

/// Builds the simulator with the workspace's features and runs it.
pub(crate) fn run(args: &Args) -> Result<()> {
    show(command(args))
}

fn command(args: &Args) -> Command {
    let mut command = cmd("cargo", ["test", "--quiet", "--workspace", "--test", "sim", "--"]);
    command.current_dir(root());
    match args.seed {
        Some(seed) => command.args(["--seed", &seed.to_string()]),
        None => {
            command.args(["--seeds", &args.seeds.to_string(), "--from", &args.from.to_string()])
        }
    };
    if let Some(nodes) = args.nodes {
        command.args(["--nodes", &nodes.to_string()]);
    }
    if let Some(plant) = &args.plant {
        command.args(["--plant", plant]);
    }
    if args.trace {
        command.arg("--trace");
    }
    command
}
