//! The daemon: it wires the engines to the truth and to the API. It wires, it does not think.
//!
//! ```text
//!   http (API) ---> truth (log, state) ---> hub ---> one driver for each VM (crate vm)
//!        ^                |                  |-----> image operations
//!        |                v                  +-----> switch (ports, networks)
//!        +---------- events, observations <--+
//! ```
//!
//! Start-up order (`start`): directories and lock, truth (damaged state is refused), engine, switch,
//! hub (adopts machines), API last, so that nothing can be asked before it can be answered.

#![forbid(unsafe_code)]

mod app;
mod balance;
mod cluster;
pub mod config;
pub mod dataplane;
mod events;
mod fencing;
pub mod guard;
mod ha;
mod history;
mod host;
mod http;
mod hub;
mod images;
mod ledger;
mod luns;
mod metrics;
mod migrate;
mod platform;
mod ports;
mod reconcile;
#[cfg(test)]
mod restarts;
mod sample;
pub mod simulation;
mod start;
mod tls;
pub mod truth;
mod validate;
mod views;
mod volumes;
pub mod witness;

/// Runs the daemon until it is told to end, on a runtime of its own, with its log on standard error
/// (`RUST_LOG` chooses what; JSON lines where `MUSTER_LOG=json`).
///
/// # Errors
/// Why it could not start, with what to do.
pub fn run(config: config::Config) -> anyhow::Result<()> {
    log_to_stderr();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(start::run(config));
    // Machines and their files need no farewell; tasks that wait for guests must not hold us up.
    runtime.shutdown_background();
    result
}

/// Removes the networks and control groups that an ended daemon has left, and ends.
///
/// # Errors
/// A daemon or a machine still runs, or something cannot be removed.
pub fn clear(config: config::Config) -> anyhow::Result<()> {
    log_to_stderr();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(start::clear(config))
}

/// What is logged where `RUST_LOG` says nothing. openraft tells each step of an election.
const LOGGED: &str = "info,openraft=warn,openraft::core::heartbeat=error";

fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(LOGGED));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second logger in one process is refused; then the first one goes on.
    let _ = if std::env::var("MUSTER_LOG").is_ok_and(|kind| kind == "json") {
        log.json().try_init()
    } else {
        log.with_ansi(false).try_init()
    };
}

/// Entry of the hidden `launch-vm` command: turns this process into a jailed machine. Called before
/// any thread is started.
pub fn launch_vm_main() -> std::process::ExitCode {
    vm::engine::qemu::jail::jail_main()
}
