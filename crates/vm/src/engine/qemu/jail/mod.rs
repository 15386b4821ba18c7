//! The jail a machine's process lives in, and how it gets there.
//!
//! ```text
//!   daemon ---------- spawn(): plan as JSON on stdin, descriptors mapped to agreed numbers
//!     |                                                       (records "starting" before)
//!   launcher (root)   new mount, network, IPC, UTS and process-id namespaces; clone3 into the VM's
//!     |               control group, with CLONE_PARENT
//!     |   \---------> reports the process id, or the failed step, on stdout; ends
//!   process (pid 1)   cgroup namespace; root file system of its own: libraries, firmware, four
//!                     harmless devices, an empty /tmp; no /proc, no /sys; limits; no groups, no
//!                     capabilities, own uid, no new privileges; Landlock; seccomp; exec
//! ```
//!
//! The launcher is this same program under a hidden verb, not a fork of the daemon: a fork of a
//! process with many threads may do next to nothing safely. `CLONE_PARENT` makes the machine's
//! process a child of the daemon, which so learns its exit status; when the daemon dies the
//! process goes on under init.
//!
//! Trust boundary: everything from the `exec` on is in the guest's hands. The test
//! `tests/jail.rs` starts a hostile program in QEMU's place.

mod launcher;
mod root;
mod seccomp;

use std::io::Read;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

use command_fds::CommandFdExt;
use command_fds::FdMapping;
use serde::Deserialize;
use serde::Serialize;

pub use launcher::jail_main;

/// Longest report or error text a launcher may write.
const REPORT_MAX: u64 = 64 * 1024;

/// Longest plan a launcher reads: a command line is a few kilobytes for each device.
const PLAN_MAX: u64 = 4 << 20;

/// How to start the launcher: program and the arguments that make it call [`jail_main`].
#[derive(Debug, Clone)]
pub struct Launcher {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
}

impl Launcher {
    /// This program itself under its hidden verb `launch-vm`.
    ///
    /// # Errors
    /// Where the system does not say what this program is.
    pub fn own() -> std::io::Result<Self> {
        // Not the path that /proc tells: after an upgrade that is "(deleted)", and this link still
        // starts the very binary that runs.
        std::env::current_exe()?;
        Ok(Self { program: "/proc/self/exe".into(), args: vec!["launch-vm".to_owned()] })
    }
}

/// What the launcher is to build and start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JailPlan {
    /// Program to start in the jail, by its path outside.
    pub program: PathBuf,
    /// Its arguments, without the program's own name.
    pub args: Vec<String>,
    /// User and group id of the process.
    pub uid: u32,
    /// Host name inside.
    pub hostname: String,
    /// Control group to join: a directory.
    pub cgroup: PathBuf,
    /// Files and directories to show read-only, at the same path; those that are missing are left
    /// out.
    pub show: Vec<PathBuf>,
    /// Whether `/dev/kvm` is shown.
    pub kvm: bool,
    /// Descriptors to hand on, by number.
    pub keep_fds: Vec<i32>,
    /// Descriptor that becomes standard output and error.
    pub output_fd: i32,
    /// Most threads.
    pub threads_max: u64,
}

/// What the launcher says.
#[derive(Debug, Serialize, Deserialize)]
enum Report {
    /// The program runs in its jail.
    Started { pid: u32 },
    /// It does not, and nothing is left of it.
    Failed { step: String, why: String },
}

/// Why a jailed program was not started.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {why}")]
pub struct JailError {
    /// What was being done.
    pub step: String,
    /// What the system said.
    pub why: String,
}

impl JailError {
    fn new(step: &str, why: impl std::fmt::Display) -> Self {
        Self { step: step.to_owned(), why: why.to_string() }
    }
}

/// Starts a program in a jail; returns its process id. `fds` are handed over under the numbers
/// given. Blocks for some tens of milliseconds: not for an async task.
///
/// # Errors
/// [`JailError`]; the program does not run then.
pub fn spawn(
    launcher: &Launcher,
    plan: &JailPlan,
    fds: Vec<(i32, OwnedFd)>,
) -> Result<u32, JailError> {
    let text = serde_json::to_vec(plan).map_err(|error| JailError::new("write plan", error))?;
    let mut command = Command::new(&launcher.program);
    command
        .args(&launcher.args)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mappings =
        fds.into_iter().map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd }).collect();
    command.fd_mappings(mappings).map_err(|error| JailError::new("map descriptors", error))?;
    let mut child = command.spawn().map_err(|error| JailError::new("start launcher", error))?;
    // The descriptors now belong to the child alone.
    drop(command);
    if let Some(mut stdin) = child.stdin.take() {
        // A launcher that ends early has said why on its output.
        let _ = stdin.write_all(&text);
    }
    let mut report = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        let _ = stdout.take(REPORT_MAX).read_to_end(&mut report);
    }
    let mut words = String::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(REPORT_MAX).read_to_string(&mut words);
    }
    let status = child.wait().map_err(|error| JailError::new("wait for launcher", error))?;
    match serde_json::from_slice(&report) {
        Ok(Report::Started { pid }) => Ok(pid),
        Ok(Report::Failed { step, why }) => Err(JailError { step, why }),
        Err(_) => Err(JailError::new(
            "run launcher",
            format!("{} ended with {status}: {}", launcher.program.display(), words.trim()),
        )),
    }
}
