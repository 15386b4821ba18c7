//! The guard of a host: like the daemon, no client.

use std::path::PathBuf;

use node::config::Config;
use node::guard::Overrides;

use crate::error::CliError;

/// Run the guard of this host.
///
/// The guard holds the host's lease in a cluster: it freezes machines at two thirds of the lease and
/// kills them at its end where nothing else could stop them, so that no other host starts a machine
/// that still runs here. It is a small process of its own, and lives on when the daemon dies.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster guard
  muster guard --config /etc/muster/config.toml
  muster guard --data-dir /srv/muster --run-dir /run/muster-2 --watchdog none")]
pub(crate) struct Args {
    /// Configuration file; /etc/muster/config.toml is read if it exists and no other is named.
    #[arg(long, value_name = "FILE", env = "MUSTER_CONFIG", hide_env_values = true)]
    pub(crate) config: Option<PathBuf>,
    /// The daemon's data directory: the name of the control group is made from it.
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Where its socket and its state are, the same as the daemon's.
    #[arg(long, value_name = "DIR")]
    pub(crate) run_dir: Option<PathBuf>,
    /// Control group that systemd has delegated to machines, the same as the daemon's.
    #[arg(long, value_name = "PATH")]
    pub(crate) control_group: Option<PathBuf>,
    /// Watchdog device, or `none`; /dev/watchdog is used if it exists and nothing is said.
    #[arg(long, value_name = "DEVICE")]
    pub(crate) watchdog: Option<PathBuf>,
    /// Longest time that the watchdog is set to, in seconds.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) watchdog_s: Option<u64>,
}

/// Runs the guard until it is told to stop and may.
pub(crate) fn run(args: Args) -> Result<(), CliError> {
    let Args { config, data_dir, run_dir, control_group, watchdog, watchdog_s } = args;
    let run = || {
        let config = match config {
            Some(path) => Config::read(&path)?,
            None => Config::read_default()?,
        };
        let overrides = Overrides { data_dir, run_dir, control_group, watchdog, watchdog_s };
        node::guard::run(config, overrides)
    };
    run().map_err(|error: anyhow::Error| {
        CliError::failed(
            format!("the guard cannot run: {error:#}"),
            "see the options: muster guard --help",
        )
    })
}
