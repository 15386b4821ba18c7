//! `cargo xtask web`: the web console, from its sources to the files that the daemon serves.
//!
//! ```text
//!   npm ci (when the lock file is newer) -> types from openapi/ -> tsc [-> vitest] -> vite -> compress
//! ```
//!
//! `cargo build` never runs this: without it the daemon serves a page that says how to build it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;

use crate::run::cmd;
use crate::run::quiet;
use crate::run::root;
use crate::run::show;

/// The oldest Node that the build tools run on.
const NODE_MIN: (u32, u32) = (20, 19);

/// Types of the API, made from its document.
const TYPES: &str = "src/api/schema.ts";

/// Options of `cargo xtask web`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run the tests of its parts, too.
    #[arg(long)]
    test: bool,
    /// Write the types of the API anew from openapi/.
    #[arg(long)]
    types: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    check_node()?;
    install()?;
    if args.types {
        show(npm(&["run", "--silent", "types"]))?;
    }
    check_types()?;
    show(npm(&["run", "--silent", "check"])).context("its types do not fit")?;
    if args.test {
        show(npm(&["test", "--silent"]))?;
    }
    show(npm(&["run", "--silent", "build"]))
}

/// Builds it, as a step of something else.
pub(crate) fn build() -> Result<()> {
    run(&Args { test: false, types: false })
}

/// Builds it and runs the tests of its parts.
pub(crate) fn test() -> Result<()> {
    run(&Args { test: true, types: false })
}

fn dir() -> PathBuf {
    root().join("web")
}

fn npm(args: &[&str]) -> Command {
    let mut command = cmd("npm", args.iter().copied());
    // Nobody is there to be told of newer versions, and CI has no screen to draw on.
    command.current_dir(dir()).env("CI", "1").env("NPM_CONFIG_UPDATE_NOTIFIER", "false");
    command
}

fn check_node() -> Result<()> {
    let said = quiet(cmd("node", ["--version"])).with_context(|| {
        let (major, minor) = NODE_MIN;
        format!("the web console needs Node {major}.{minor} or newer, with npm")
    })?;
    let mut parts = said.trim().trim_start_matches('v').split('.').map(str::parse::<u32>);
    let version = (parts.next().and_then(Result::ok), parts.next().and_then(Result::ok));
    match version {
        (Some(major), Some(minor)) if (major, minor) >= NODE_MIN => Ok(()),
        _ => bail!(
            "Node is {}; the web console needs {}.{} or newer",
            said.trim(),
            NODE_MIN.0,
            NODE_MIN.1
        ),
    }
}

/// Brings the libraries of the lock file, unless they are there.
fn install() -> Result<()> {
    let time = |path: &str| fs::metadata(dir().join(path)).and_then(|it| it.modified());
    let wanted = time("package-lock.json").context("web/package-lock.json is missing")?;
    if time("node_modules/.package-lock.json").is_ok_and(|have| have >= wanted) {
        return Ok(());
    }
    println!("Bringing the libraries of the web console ...");
    // No library's own programs are run while it is installed.
    quiet(npm(&["ci", "--ignore-scripts", "--no-audit", "--no-fund"]))
        .context("npm could not bring the libraries; check the network and npm's registry")?;
    Ok(())
}

/// The committed types must be those that the committed document gives.
fn check_types() -> Result<()> {
    let fresh = root().join("target/web-schema.ts");
    fs::create_dir_all(root().join("target"))?;
    let to = fresh.to_string_lossy();
    let document = "../openapi/muster-v1.json";
    quiet(npm(&["exec", "--offline", "--", "openapi-typescript", document, "--output", &to]))?;
    if fs::read(&fresh)? != fs::read(dir().join(TYPES)).unwrap_or_default() {
        bail!("web/{TYPES} is not what openapi/ gives; write it anew: cargo xtask web --types");
    }
    Ok(())
}
