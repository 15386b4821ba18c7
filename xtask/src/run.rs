//! Running other programs: one place that names the program in each error and keeps output for it.

use std::env;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;

/// Lines of a failed program's output that its error repeats; enough for a compiler's last message.
const ERROR_LINES_MAX: usize = 30;

/// The workspace's root directory.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, PathBuf::from)
}

/// The build directory: where cargo is told to build, or `target` in the workspace.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A command by program and arguments.
pub(crate) fn cmd<'a>(program: &str, args: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}

/// Prepends `sudo` when we are not root. Only for steps that change the machine.
pub(crate) fn as_root<'a>(program: &str, args: impl IntoIterator<Item = &'a str>) -> Command {
    if is_root() {
        return cmd(program, args);
    }
    let mut command = Command::new("sudo");
    command.arg(program).args(args);
    command
}

/// Whether this process is root (by the effective user id the kernel shows).
pub(crate) fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .and_then(|ids| ids.split_whitespace().nth(1))
        == Some("0")
}

/// Runs a program with the user's terminal; its failure is an error.
pub(crate) fn show(mut command: Command) -> Result<()> {
    let shown = words(&command);
    let status = command.status().with_context(|| format!("cannot start {shown}"))?;
    if !status.success() {
        bail!("{shown}: {status}");
    }
    Ok(())
}

/// Runs a program in silence; its output is returned, or repeated in the error when it fails.
pub(crate) fn quiet(mut command: Command) -> Result<String> {
    let shown = words(&command);
    let output = command.stdin(Stdio::null()).output().with_context(|| {
        format!("cannot start {shown} (is it installed? run cargo xtask install)")
    })?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let all = format!("{stdout}{}", String::from_utf8_lossy(&output.stderr));
        let lines: Vec<&str> = all.lines().collect();
        let tail = &lines[lines.len().saturating_sub(ERROR_LINES_MAX)..];
        bail!("{shown}: {}\n{}", output.status, tail.join("\n"));
    }
    Ok(stdout)
}

/// Whether a program runs and says yes; one that cannot be started says no.
pub(crate) fn says_yes(mut command: Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn words(command: &Command) -> String {
    let mut all = vec![command.get_program().to_string_lossy().into_owned()];
    all.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    all.join(" ")
}
