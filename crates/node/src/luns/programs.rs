//! Programs of file systems and block devices: with a deadline, and with their words in the failure.

use std::ffi::OsStr;
use std::process::Command;
use std::process::Stdio;

/// Seconds that a look may take; a device that does not answer holds up nobody for longer.
pub(super) const LOOK_SECONDS: u32 = 15;

/// Seconds that making, mounting or checking a file system may take: a journal of gigabytes is replayed.
pub(super) const WORK_SECONDS: u32 = 600;

/// Where the programs are.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Longest words of a failure that are kept.
const WORDS_MAX: usize = 160;

/// How a program ended.
pub(super) struct Ended {
    pub(super) code: i32,
    pub(super) out: String,
    pub(super) words: String,
}

/// Runs a program to its end, or to its deadline (code 124).
pub(super) fn run<S: AsRef<OsStr>>(
    seconds: u32,
    name: &str,
    args: impl IntoIterator<Item = S>,
) -> Result<Ended, String> {
    let mut command = Command::new("timeout");
    command.arg("--kill-after=5").arg(seconds.to_string()).arg(name).args(args);
    command.env("PATH", PATH).env("LC_ALL", "C").stdin(Stdio::null());
    let output = command.output().map_err(|error| format!("{name} cannot be started: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
    Ok(Ended {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        words: last.chars().take(WORDS_MAX).collect(),
    })
}

/// The same; anything but code 0 is a failure, in words.
pub(super) fn done<S: AsRef<OsStr>>(
    seconds: u32,
    name: &str,
    args: impl IntoIterator<Item = S>,
) -> Result<String, String> {
    let ended = run(seconds, name, args)?;
    match ended.code {
        0 => Ok(ended.out),
        124 | 137 => Err(format!("{name} did not end within {seconds} s")),
        127 => {
            Err(format!("there is no program {name}; install util-linux, e2fsprogs and xfsprogs"))
        }
        _ => Err(format!("{name}: {}", ended.words)),
    }
}
