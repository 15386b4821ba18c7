//! `muster guard`: from the configuration to the guard of crate `cluster`. No runtime, no threads.

use std::path::PathBuf;

use anyhow::Context;
use cluster::guard::GuardConfig;

use crate::config::Config;
use crate::start;

/// What the command line says instead of the configuration.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// The daemon's data directory.
    pub data_dir: Option<PathBuf>,
    /// The daemon's run directory.
    pub run_dir: Option<PathBuf>,
    /// The control group that systemd has delegated to machines.
    pub control_group: Option<PathBuf>,
    /// The watchdog device, or `none`.
    pub watchdog: Option<PathBuf>,
    /// Its longest time in seconds.
    pub watchdog_s: Option<u64>,
}

/// Runs the guard until it is told to end and may, with its log on standard error.
///
/// # Errors
/// Why it could not start, with what to do.
pub fn run(mut config: Config, overrides: Overrides) -> anyhow::Result<()> {
    crate::log_to_stderr();
    let Overrides { data_dir, run_dir, control_group, watchdog, watchdog_s } = overrides;
    config.data_dir = data_dir.unwrap_or(config.data_dir);
    config.run_dir = run_dir.unwrap_or(config.run_dir);
    config.control_group = control_group.or(config.control_group);
    config.watchdog = watchdog.or(config.watchdog);
    config.watchdog_s = watchdog_s.unwrap_or(config.watchdog_s);
    let group = start::machines_group(&config)?;
    let run_dir = std::path::absolute(&config.run_dir)
        .with_context(|| format!("run_dir {}", config.run_dir.display()))?;
    let config = GuardConfig { run_dir, group, watchdog: config.watchdog() };
    // Not under systemd: then there is nobody to tell.
    let ready = || drop(sd_notify::notify(&[sd_notify::NotifyState::Ready]));
    cluster::guard::run(config, ready).map_err(anyhow::Error::from)
}
