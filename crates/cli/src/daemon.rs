//! The door to crate `node`: the only place of this crate that names it.

use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use node::config::Config;

use crate::cli::SOCKET_DEFAULT;
use crate::error::CliError;

/// Run the daemon of this host.
///
/// It serves the API on a Unix socket in the run directory and, where the configuration says so, on
/// a TLS port. It may die at any moment: machines go on, and the next start adopts them.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster daemon
  muster daemon --config /etc/muster/config.toml
  muster daemon --data-dir /srv/muster --run-dir /run/muster
  muster daemon --clear")]
pub(crate) struct Args {
    /// Configuration file; /etc/muster/config.toml is read if it exists and no other is named.
    #[arg(long, value_name = "FILE", env = "MUSTER_CONFIG", hide_env_values = true)]
    pub(crate) config: Option<PathBuf>,
    /// Where images, disks and the state are kept.
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Where sockets and what else a reboot may forget are kept.
    #[arg(long, value_name = "DIR")]
    pub(crate) run_dir: Option<PathBuf>,
    /// Address of the TLS port, such as 0.0.0.0:7443.
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) listen: Option<String>,
    /// Control group that systemd has delegated to machines, as a path from the cgroup v2 mount.
    #[arg(long, value_name = "PATH")]
    pub(crate) control_group: Option<PathBuf>,
    /// Do not run: remove the bridges, taps, rules and control groups that an ended daemon has left,
    /// and end. Refused while a daemon or a machine runs.
    #[arg(long)]
    pub(crate) clear: bool,
}

/// Runs the daemon until it is told to stop.
pub(crate) fn run(args: Args, socket: &Path) -> Result<(), CliError> {
    let clear = args.clear;
    let config = config(args, socket).map_err(|error| failed(&error))?;
    let result = if clear { node::clear(config) } else { node::run(config) };
    result.map_err(|error| failed(&error))
}

fn config(args: Args, socket: &Path) -> anyhow::Result<Config> {
    let Args { config, data_dir, run_dir, listen, control_group, clear: _ } = args;
    let mut settings = match config {
        Some(path) => Config::read(&path)?,
        None => Config::read_default()?,
    };
    if let Some(dir) = data_dir {
        settings.data_dir = dir;
    }
    if let Some(dir) = run_dir {
        settings.run_dir = dir;
    }
    if control_group.is_some() {
        settings.control_group = control_group;
    }
    if let Some(listen) = listen {
        let address = listen.parse().with_context(|| format!("'{listen}' is no ADDRESS:PORT"))?;
        settings.tls_listen = Some(address);
    }
    // The global option says where to listen here, as it says where to call elsewhere.
    if socket != Path::new(SOCKET_DEFAULT) {
        settings.socket = Some(socket.to_owned());
    }
    Ok(settings)
}

fn failed(error: &anyhow::Error) -> CliError {
    CliError::failed(
        format!("the daemon cannot run: {error:#}"),
        "see the options: muster daemon --help",
    )
}

/// The hidden verb of the process that serves shared volumes.
pub(crate) const VOLUMES_VERB: &str = node::dataplane::VERB;

/// Serves this node's shared volumes; started by the daemon only.
pub(crate) fn serve_volumes() -> ExitCode {
    let settings = std::env::args_os().nth(2).unwrap_or_default();
    match node::dataplane::run(&settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the volume process cannot run: {error:#}; the daemon starts it by itself");
            ExitCode::FAILURE
        }
    }
}

/// The first process of a VM; started by the daemon only.
pub(crate) fn launch_vm() -> ExitCode {
    node::launch_vm_main()
}
