//! `cargo xtask check`, the one read-only gate, and `cargo xtask fix`, the one thing that writes.

use std::time::Instant;

use anyhow::Result;
use anyhow::bail;

use crate::run::cmd;
use crate::run::root;
use crate::run::says_yes;
use crate::run::show;
use crate::tidy;

/// Runs every step, also after a failed one, so that one run names all that is wrong.
pub(crate) fn run() -> Result<()> {
    let mut failed = Vec::new();
    for (name, step) in STEPS {
        let started = Instant::now();
        println!("== {name}");
        let result = step();
        println!(
            "== {name}: {} ({:.0?})",
            if result.is_ok() { "ok" } else { "FAILED" },
            started.elapsed()
        );
        if let Err(error) = result {
            println!("{error:#}");
            failed.push(*name);
        }
    }
    if !failed.is_empty() {
        bail!("the gate is closed: {}; cargo xtask fix may mend some of it", failed.join(", "));
    }
    println!("the gate is open: {} steps passed", STEPS.len());
    Ok(())
}

type Step = fn() -> Result<()>;

/// Cheapest first. `tests` is the test command's.
const STEPS: &[(&str, Step)] = &[
    ("format", format),
    ("tidy", tidy::run),
    ("clippy", clippy),
    ("documentation", documentation),
    ("cargo-deny", deny),
];

fn format() -> Result<()> {
    cargo(&["fmt", "--all", "--check"], None)
}

fn clippy() -> Result<()> {
    cargo(
        &["clippy", "--workspace", "--all-targets", "--locked", "--quiet", "--", "-Dwarnings"],
        None,
    )
}

/// Private items are documented too, so links to them lead somewhere.
fn documentation() -> Result<()> {
    const FLAGS: &str = "-Dwarnings -Arustdoc::private-intra-doc-links";
    let args =
        ["doc", "--workspace", "--no-deps", "--document-private-items", "--locked", "--quiet"];
    cargo(&args, Some(("RUSTDOCFLAGS", FLAGS)))
}

/// Where it is installed; tidy knows the same rules without it (`deny.toml` says why).
fn deny() -> Result<()> {
    if !says_yes(cmd("cargo", ["deny", "--version"])) {
        println!("not installed; tidy has checked licences and bans");
        return Ok(());
    }
    cargo(&["deny", "--offline", "--locked", "check", "bans", "licenses", "sources"], None)
}

fn cargo(args: &[&str], variable: Option<(&str, &str)>) -> Result<()> {
    let mut command = cmd("cargo", args.iter().copied());
    command.current_dir(root()).envs(variable);
    show(command)
}

/// Mends what a program can mend.
pub(crate) fn fix() -> Result<()> {
    let mend =
        ["clippy", "--fix", "--workspace", "--all-targets", "--allow-dirty", "--allow-staged"];
    cargo(&mend, None)?;
    cargo(&["fmt", "--all"], None)
}
