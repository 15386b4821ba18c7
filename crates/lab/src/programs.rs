//! Calling the programs of the system: with a limit, and with their words in the failure.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;

use crate::error::LabError;
use crate::layout::Lab;

/// Seconds that a program may take; they take milliseconds. `timeout` also gives it a process group
/// of its own, so that Ctrl-C meets the lab alone, which then clears up.
const LIMIT_SECONDS: &str = "30";

/// Where the programs are, whatever the user's own path is.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Programs that a lab needs, and the Debian packages they are in.
pub(crate) const NEEDED: [(&str, &str); 7] = [
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("losetup", "mount"),
    ("timeout", "coreutils"),
];

/// A program of the system, with a limit.
pub(crate) fn program<S: AsRef<OsStr>>(name: &str, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=2", LIMIT_SECONDS, name]).args(args);
    command.env("PATH", PATH).env("LC_ALL", "C").stdin(Stdio::null());
    command
}

/// Runs a program that must end well.
pub(crate) fn run<S: AsRef<OsStr>>(
    name: &str,
    args: impl IntoIterator<Item = S>,
) -> Result<String, LabError> {
    let mut command = program(name, args);
    let output = command.output().map_err(|error| {
        LabError::failed(format!("cannot start {name}: {error}"), "install coreutils")
    })?;
    ended_well(name, &command, &output)
}

fn ended_well(name: &str, command: &Command, output: &Output) -> Result<String, LabError> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let words: Vec<_> = command.get_args().skip(2).map(OsStr::to_string_lossy).collect();
    let package = NEEDED.iter().find(|(program, _)| *program == name).map(|(_, package)| *package);
    let (what, hint) = match (output.status.code(), package) {
        // What `timeout` says where there is no such program.
        (Some(127), Some(package)) => (
            format!("there is no program {name} on this machine"),
            format!("install it: apt-get install {package}"),
        ),
        (Some(124 | 137), _) => (
            format!("{} did not end within {LIMIT_SECONDS} s", words.join(" ")),
            "see what the machine is busy with, then try again".to_owned(),
        ),
        _ => (
            format!("{} failed: {}", words.join(" "), said.trim()),
            "clear up with 'muster lab down', then try again".to_owned(),
        ),
    };
    Err(LabError::failed(what, hint))
}

impl Lab {
    /// Runs a program in a network namespace.
    pub(crate) fn run_in(&self, net: &Path, name: &str, args: &[&str]) -> Result<String, LabError> {
        let enter = format!("--net={}", net.display());
        run("nsenter", [enter.as_str(), "--", name].into_iter().chain(args.iter().copied()))
    }

    /// Gives `ip` many commands at once, in a network namespace.
    pub(crate) fn ip_batch(&self, net: &Path, label: &str, text: &str) -> Result<(), LabError> {
        let file = self.text_file(&format!("{label}.ip"), text)?;
        self.run_in(net, "ip", &["-batch", &file]).map(drop)
    }

    /// Loads rules into a network namespace, all or nothing.
    pub(crate) fn nft(&self, net: &Path, label: &str, text: &str) -> Result<(), LabError> {
        let file = self.text_file(&format!("{label}.nft"), text)?;
        self.run_in(net, "nft", &["-f", &file]).map(drop)
    }

    /// A text for a program; kept, so that it can be looked at.
    fn text_file(&self, name: &str, text: &str) -> Result<String, LabError> {
        let dir = self.path("batch");
        fs::create_dir_all(&dir).map_err(LabError::io("make", &dir))?;
        let path = dir.join(name);
        fs::write(&path, text).map_err(LabError::io("write", &path))?;
        Ok(path.display().to_string())
    }
}

/// Checks that all programs are there, so that `up` does not fail half way.
pub(crate) fn check_programs() -> Result<(), LabError> {
    let missing: Vec<_> = NEEDED.iter().filter(|(name, _)| !is_there(name)).collect();
    let Some((name, _)) = missing.first() else { return Ok(()) };
    let mut packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    packages.dedup();
    Err(LabError::failed(
        format!("there is no program {name} on this machine"),
        format!("install what a lab needs: apt-get install {}", packages.join(" ")),
    ))
}

fn is_there(name: &str) -> bool {
    PATH.split(':').any(|dir| Path::new(dir).join(name).exists())
}
