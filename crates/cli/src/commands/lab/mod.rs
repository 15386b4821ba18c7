//! `muster lab`: a cluster on this machine, to try and to break. No client of a daemon: it makes
//! the daemons.

mod bmc;
mod clock;
mod cut;
mod down;
mod exec;
mod fence;
mod fence_agent;
mod freeze;
mod isolate;
mod mend;
mod node_root;
mod power_off;
mod power_on;
mod probe;
mod restart;
mod san;
mod san_server;
mod shell;
mod slow;
mod status;
mod thaw;
mod up;

use std::path::PathBuf;

use api::ApiError;
use api::ErrorKind;
use lab::FaultReport;
use lab::Lab;
use lab::LabError;
use lab::LabErrorKind;
use serde::Serialize;

use crate::error::CliError;
use crate::output::Output;

/// A whole cluster on this machine, to try and to break.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory of the lab: its disks, logs and names. Several labs can exist side by side.
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "MUSTER_LAB",
        hide_env_values = true,
        default_value = "/var/tmp/muster-lab"
    )]
    dir: PathBuf,
    /// What to do.
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Up(up::Args),
    Down(down::Args),
    Status(status::Args),
    Shell(shell::Args),
    Exec(exec::Args),
    PowerOff(power_off::Args),
    PowerOn(power_on::Args),
    Restart(restart::Args),
    Freeze(freeze::Args),
    Thaw(thaw::Args),
    Cut(cut::Args),
    Isolate(isolate::Args),
    Slow(slow::Args),
    Mend(mend::Args),
    Probe(probe::Args),
    Clock(clock::Args),
    Fence(fence::Args),
    San(san::Args),
    #[command(hide = true)]
    NodeRoot(node_root::Args),
    #[command(hide = true)]
    Bmc(bmc::Args),
    #[command(hide = true)]
    SanServer(san_server::Args),
    #[command(hide = true)]
    FenceAgent(fence_agent::Args),
}

/// Does what the verb says.
pub(crate) fn run(args: Args, wait: bool, out: Output) -> Result<(), CliError> {
    // The agent runs as whoever calls it, in a node, and needs no lab of its own.
    if let Verb::FenceAgent(args) = args.verb {
        return fence_agent::run(&args);
    }
    let lab = Lab::at(&args.dir)?;
    match args.verb {
        Verb::Up(args) => up::run(&args, &lab, out),
        Verb::Down(args) => down::run(&args, &lab, out),
        Verb::Status(args) => status::run(&args, &lab, out),
        Verb::Shell(args) => shell::run(&args, &lab),
        Verb::Exec(args) => exec::run(&args, &lab),
        Verb::PowerOff(args) => power_off::run(&args, &lab, out),
        Verb::PowerOn(args) => power_on::run(&args, &lab, wait, out),
        Verb::Restart(args) => restart::run(&args, &lab, out),
        Verb::Freeze(args) => freeze::run(&args, &lab, out),
        Verb::Thaw(args) => thaw::run(&args, &lab, out),
        Verb::Cut(args) => cut::run(&args, &lab, out),
        Verb::Isolate(args) => isolate::run(&args, &lab, out),
        Verb::Slow(args) => slow::run(&args, &lab, out),
        Verb::Mend(args) => mend::run(&args, &lab, out),
        Verb::Probe(args) => probe::run(&args, &lab, out),
        Verb::Clock(args) => clock::run(&args, &lab, out),
        Verb::Fence(args) => fence::run(&args, &lab, out),
        Verb::NodeRoot(args) => node_root::run(&args, &lab),
        Verb::San(args) => san::run(&args, &lab, out),
        Verb::SanServer(args) => san_server::run(&args, &lab),
        Verb::Bmc(args) => bmc::run(&args, &lab),
        Verb::FenceAgent(_) => Ok(()),
    }
}

impl From<LabError> for CliError {
    fn from(error: LabError) -> Self {
        let kind = match error.kind {
            LabErrorKind::Usage => ErrorKind::BadRequest,
            LabErrorKind::NotFound => ErrorKind::NotFound,
            LabErrorKind::Conflict => ErrorKind::Conflict,
            LabErrorKind::Failed => ErrorKind::Failed,
            LabErrorKind::Interrupted => return Self::interrupted(error.message, error.hint),
        };
        ApiError::new(kind, "lab", error.message, error.hint).into()
    }
}

/// Prints something as JSON.
fn json(out: Output, value: &impl Serialize) -> Result<(), CliError> {
    let text = serde_json::to_vec(value)
        .map_err(|error| CliError::failed(format!("cannot make JSON: {error}"), ""))?;
    out.raw_json(&text)
}

/// Prints what was done and how it was tried.
fn tried(out: Output, done: &str, report: &FaultReport) -> Result<(), CliError> {
    if out.json {
        return json(out, report);
    }
    let count = report.checked.len();
    let stopped = report.checked.iter().filter(|one| !one.wanted).count();
    let tested = match (count, stopped) {
        (0, _) => "nothing could be tried".to_owned(),
        (count, 0) => format!("tried {count} ways: packets pass on all"),
        (count, stopped) if count == stopped => format!("tried {count} ways: no packet passes"),
        (count, stopped) => {
            format!("tried {count} ways: no packet passes on {stopped}, on the others they do")
        }
    };
    let off: Vec<_> = report.without_power.iter().map(ToString::to_string).collect();
    let off = match off.is_empty() {
        true => String::new(),
        false => format!("; without power: {}", off.join(", ")),
    };
    out.done(&format!("{done} ({tested}{off})"))
}
