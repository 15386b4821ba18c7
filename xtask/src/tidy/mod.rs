//! `cargo xtask tidy`: the house rules that neither the compiler nor clippy knows.
//!
//! ```text
//! layers     which crate may use which, ours and foreign       from cargo metadata
//! licences   what may be in the dependency tree at all         from cargo tree
//! source     globs, channels, clocks, typed ids                from the text of each .rs file
//! length     files and functions, with a list of old offenders that may only shrink
//! places     no committed text names a path of somebody's machine
//! ```
//!
//! Every rule is a function from text to findings, so each has tests with planted violations.

mod code;
mod layers;
mod length;
mod licences;
mod source;

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use serde_json::Value;

use crate::run::cmd;
use crate::run::quiet;
use crate::run::root;

/// Paths that exist on one machine only; written in two halves so that this line is not one.
const FORBIDDEN_PLACES: &[&str] = &[concat!("/wo", "rk/"), concat!("/ho", "me/user/")];

/// One broken rule at one place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// File and line, or crate.
    place: String,
    /// What is wrong and what to do instead.
    what: String,
}

impl Finding {
    fn new(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self { place: place.into(), what: what.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.place, self.what)
    }
}

/// Checks the whole tree; prints each finding.
pub(crate) fn run() -> Result<()> {
    let mut findings = Vec::new();
    let metadata = metadata()?;
    findings.extend(layers::check(&metadata));
    findings.extend(licences::check(&tree()?));
    let mut long = Vec::new();
    for path in committed_files()? {
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        findings.extend(check_places(&path, &text));
        if Path::new(&path).extension().is_some_and(|ending| ending == "rs") {
            findings.extend(source::check(&path, &text));
            long.extend(length::measure(&path, &text));
        }
    }
    let known = fs::read_to_string(root().join(length::OLD_OFFENDERS)).unwrap_or_default();
    findings.extend(length::check(&long, &known));
    for finding in &findings {
        println!("{finding}");
    }
    if !findings.is_empty() {
        bail!("tidy found {} broken rules; STYLE rules are in CONTRIBUTING.md", findings.len());
    }
    Ok(())
}

/// What cargo knows about all packages that this platform's build uses.
fn metadata() -> Result<Value> {
    let platform = "--filter-platform=x86_64-unknown-linux-gnu";
    let mut command = cmd("cargo", ["metadata", "--format-version=1", "--locked", platform]);
    command.current_dir(root());
    // Downloading crates is reported on standard error, so only standard output is JSON.
    let text = quiet(command).context("cargo metadata failed; is Cargo.lock up to date?")?;
    serde_json::from_str(&text).context("cargo metadata is not JSON")
}

/// Every package that a build or a test of the workspace uses, with its licence.
fn tree() -> Result<String> {
    let edges = "--edges=normal,build,dev";
    let format = "--format={p}\t{l}";
    let mut command =
        cmd("cargo", ["tree", "--workspace", "--locked", "--prefix=none", edges, format]);
    command.current_dir(root());
    quiet(command)
}

/// Files in git or about to be, without those that git ignores.
fn committed_files() -> Result<Vec<String>> {
    let mut command = cmd("git", ["ls-files", "--cached", "--others", "--exclude-standard"]);
    command.current_dir(root());
    Ok(quiet(command)?.lines().map(str::to_owned).collect())
}

fn check_places(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        for place in FORBIDDEN_PLACES.iter().filter(|place| line.contains(**place)) {
            let what = format!("names {place}, which exists on one machine only");
            findings.push(Finding::new(format!("{path}:{number}"), what));
        }
    }
    findings
}

/// The packages of the metadata that are members of the workspace.
fn members(metadata: &Value) -> impl Iterator<Item = &Value> {
    let list = |name: &str| metadata[name].as_array().map(Vec::as_slice).unwrap_or_default();
    let ids = list("workspace_members");
    list("packages").iter().filter(move |package| ids.contains(&package["id"]))
}

#[cfg(test)]
mod tests {
    use super::check_places;

    #[test]
    fn a_path_of_one_machine_is_found_with_its_line() {
        let text = concat!("fine\nsee /wo", "rk/main/x\n");
        let found = check_places("docs/a.md", text);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].place, "docs/a.md:2");
        assert_eq!(check_places("docs/a.md", "the work/ folder, /workspace"), []);
    }
}
