//! `cargo xtask test`: everything, from nothing but a Rust toolchain and apt.
//!
//! ```text
//! install -> gate -> guests -> web -> tests (nextest if present, else cargo test) -> doc tests -> package
//!         -> totals
//! ```
//!
//! A step that fails does not stop the later ones; the summary at the end names it, and it is the
//! exit code. The tests' own totals are repeated last, so that they can be read off a log's end.

use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::num::NonZero;
use std::process::Command;
use std::process::Stdio;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;

use crate::check;
use crate::guest;
use crate::guest::Which;
use crate::install;
use crate::package;
use crate::run::cmd;
use crate::run::is_root;
use crate::run::root;
use crate::run::says_yes;
use crate::web;

/// The root test crate whose tests start guests: two at a time, as `.config/nextest.toml` says.
const GUEST_THREADS: &str = "--test-threads=2";

/// Options of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave out the gate (formatting, lints, tidy, documentation).
    #[arg(long)]
    no_gate: bool,
    /// Only tests whose name contains this.
    filter: Option<String>,
}

/// What a step did.
struct Outcome {
    name: &'static str,
    result: Result<Vec<String>>,
    took: Duration,
}

/// Runs everything and sums up.
pub(crate) fn run(args: &Args) -> Result<()> {
    install::run()?;
    let mut outcomes = Vec::new();
    let mut step = |name, work: &dyn Fn() -> Result<Vec<String>>| {
        println!("\n=== {name}");
        let started = Instant::now();
        let result = work();
        if let Err(error) = &result {
            println!("{error:#}");
        }
        outcomes.push(Outcome { name, result, took: started.elapsed() });
    };
    if !args.no_gate {
        step("gate", &|| check::run().map(|()| Vec::new()));
    }
    step("guests", &|| {
        guest::ensure(Which::Tiny, false)?;
        if is_root() && needs_debian() {
            guest::ensure(Which::Debian, false)?;
        }
        Ok(Vec::new())
    });
    // Before the binary, which has its files in it.
    step("web", &|| web::test().map(|()| Vec::new()));
    // Builds the binary that the end-to-end tests drive as well: its package has tests that run it.
    step("tests", &|| tests(args.filter.as_deref()));
    if args.filter.is_none() {
        step("doc tests", &|| {
            totals(cmd("cargo", ["test", "--workspace", "--doc", "--locked", "--quiet"]))
        });
    }
    // Its host's image has files of many owners, which only root can make.
    if args.filter.is_none() && is_root() {
        step("package", &|| package::run().map(|()| Vec::new()));
    }
    sum_up(&outcomes)
}

/// Whether any end-to-end test asks for the Debian image; building it takes minutes.
fn needs_debian() -> bool {
    let mut dirs = vec![root().join("tests/e2e")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
            } else if fs::read_to_string(&path).is_ok_and(|text| text.contains("debian12.qcow2")) {
                return true;
            }
        }
    }
    false
}

fn tests(filter: Option<&str>) -> Result<Vec<String>> {
    if says_yes(cmd("cargo", ["nextest", "--version"])) {
        let mut command =
            cmd("cargo", ["nextest", "run", "--workspace", "--locked", "--no-fail-fast"]);
        // One more than processors: tests with guests wait most of their time, for those and for clocks.
        let threads = thread::available_parallelism().map_or(2, NonZero::get) + 1;
        command.arg(format!("--test-threads={threads}")).args(filter).env("MUSTER_SUITES", "1");
        return totals(command);
    }
    let others =
        ["test", "--workspace", "--exclude=e2e", "--locked", "--no-fail-fast", "--all-targets"];
    let mut all = Vec::new();
    let mut command = cmd("cargo", others);
    command.args(filter).env("MUSTER_SUITES", "1");
    let first = totals(command);
    let mut command =
        cmd("cargo", ["test", "--package=e2e", "--locked", "--no-fail-fast", "--all-targets"]);
    command.args(filter).args(["--", GUEST_THREADS]);
    let second = totals(command);
    all.extend(first?);
    all.extend(second?);
    Ok(all)
}

/// Longest line of a failed test that is repeated at the end, in characters.
const WHY_MAX: usize = 400;

/// Runs a command, shows all it says, and keeps the lines in which a test runner sums up; if it
/// fails, also those in which tests say why.
fn totals(mut command: Command) -> Result<Vec<String>> {
    // nextest reports on standard error; both go the same way, in order.
    let (reader, writer) = std::io::pipe()?;
    // What a test says is worth more than where it was called from.
    command.current_dir(root()).stdin(Stdio::null()).env("RUST_BACKTRACE", "0");
    command.stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().context("cannot start cargo")?;
    // The command holds the pipe's writing end; the reader would wait for it forever.
    drop(command);
    let (mut kept, mut why) = (Vec::new(), Vec::new());
    let mut says_why = false;
    for line in BufReader::new(reader).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        println!("{line}");
        if is_total(&line) {
            kept.push(line.trim().to_owned());
        }
        let place = line.contains(" panicked at ");
        if place || says_why {
            why.push(line.trim().chars().take(WHY_MAX).collect::<String>());
        }
        says_why = place;
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{status}\n{}", [why, kept].concat().join("\n"));
    }
    Ok(kept)
}

fn is_total(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with("Summary [")
        || line.starts_with("test result:")
        || line.starts_with("FAIL [")
        || line.starts_with("TIMEOUT [")
}

fn sum_up(outcomes: &[Outcome]) -> Result<()> {
    println!("\n=== summary");
    for Outcome { name, result, took } in outcomes {
        let word = if result.is_ok() { "ok" } else { "FAILED" };
        println!("{name:10} {word:7} {:>5} s", took.as_secs());
    }
    for Outcome { name, result, .. } in outcomes {
        match result {
            Ok(lines) => {
                for line in lines.iter().filter(|line| !line.contains(" 0 passed")) {
                    println!("{name}: {line}");
                }
            }
            Err(error) => println!("{name}: {error:#}"),
        }
    }
    let failed: Vec<&str> =
        outcomes.iter().filter(|one| one.result.is_err()).map(|one| one.name).collect();
    if !failed.is_empty() {
        bail!("failed: {}; look above for the first thing that went wrong", failed.join(", "));
    }
    println!("all passed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::cmd;
    use super::is_total;
    use super::totals;

    #[test]
    fn a_runners_last_words_are_known() {
        assert!(is_total("     Summary [   3.1s] 210 tests run: 210 passed, 0 skipped"));
        assert!(is_total("test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured"));
        assert!(!is_total("test a::b ... ok"));
    }

    #[test]
    fn totals_are_kept_from_both_streams_and_repeated_on_failure() {
        let say = "echo 'test result: ok. 1 passed'; echo 'Summary [ 1s] 2 tests run' >&2";
        let kept = totals(cmd("sh", ["-c", say])).expect("it succeeds");
        assert_eq!(kept, ["test result: ok. 1 passed", "Summary [ 1s] 2 tests run"]);
        let why = "echo \"thread 't' panicked at a.rs:1:2:\"; echo 'it is late'; echo 'and so on'";
        let error = totals(cmd("sh", ["-c", &format!("{why}; {say}; exit 3")])).expect_err("fails");
        let error = error.to_string();
        assert!(error.contains("2 tests run") && error.contains("it is late"), "{error}");
        assert!(!error.contains("and so on"), "{error}");
    }
}
