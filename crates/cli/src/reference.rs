//! The reference of all commands and exit codes, made from the same texts as `--help`.

use std::fmt::Write;

use clap::Command;
use clap::CommandFactory;

use crate::cli::Cli;
use crate::error::EXIT_CODES;

const HEAD: &str = "\
# Reference: the command `muster`

<!-- Made by `muster util reference`; written anew by `cargo xtask fix`. Do not edit by hand. -->

Every command but `muster daemon` is a client of the daemon's API. A verb that starts an operation
waits until the operation ends, shows its progress on standard error, and takes its exit code from
the outcome; `--no-wait` prints the operation's id instead. With `--json`, the API's JSON goes to
standard output and an error goes to standard error as `{\"error\": {\"kind\", \"code\", \"message\",
\"hint\"}}`.

While a verb waits, the first Ctrl-C stops an import, a save or a shutdown; any other operation is
left to itself, and goes on. A second Ctrl-C leaves it to itself in any case. Verbs that lose data
ask first on a terminal; without a terminal, `vm delete --purge`, `vm disk remove` and
`image delete` need `--yes`.
";

/// The whole reference.
pub(crate) fn markdown() -> String {
    // The environment of whoever makes it must not show.
    let mut root = Cli::command().term_width(96);
    root.build();
    let mut text = HEAD.to_owned();
    text.push_str("\n## Exit codes\n\n| Code | When | What to do |\n| --- | --- | --- |\n");
    for (code, when, what) in EXIT_CODES {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| {code} | {when} | {what} |");
    }
    text.push_str("\n## Global options\n\n```text\n");
    text.push_str(&global_options(&mut root));
    text.push_str("```\n\n## Commands\n");
    let names: Vec<_> = root.get_subcommands().map(|c| c.get_name().to_owned()).collect();
    for name in names {
        if let Some(command) = root.find_subcommand_mut(&name) {
            section(command, &format!("muster {name}"), &mut text);
        }
    }
    text
}

/// They stand once, not under each command.
fn global_options(root: &mut Command) -> String {
    let help = root.render_help().to_string();
    let options = help.split("Global options:\n").nth(1).unwrap_or_default();
    let options = options.split("\nExit codes:").next().unwrap_or_default();
    lines(options)
}

fn section(command: &mut Command, path: &str, text: &mut String) {
    if command.is_hide_set() {
        return;
    }
    let names: Vec<_> = command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
    let _ = write!(text, "\n### {path}\n\n");
    let about = command.get_long_about().or_else(|| command.get_about());
    let _ = writeln!(text, "{}", lines(&about.map(ToString::to_string).unwrap_or_default()));
    if names.is_empty() {
        let help = command.render_help().to_string();
        let help = match help.find("Usage:") {
            Some(at) => &help[at..],
            None => &help,
        };
        let _ = write!(text, "```text\n{}```\n", lines(&without_globals(help)));
    }
    for name in names {
        if let Some(verb) = command.find_subcommand_mut(&name) {
            section(verb, &format!("{path} {name}"), text);
        }
    }
}

/// Leaves the group of global options out of a command's help.
fn without_globals(help: &str) -> String {
    match help.split_once("Global options:\n") {
        Some((before, after)) => {
            let after = after.split_once("\n\n").map(|(_, after)| after).unwrap_or_default();
            format!("{before}{after}")
        }
        None => help.to_owned(),
    }
}

fn lines(text: &str) -> String {
    let mut out = String::new();
    for line in text.trim_end().lines() {
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::markdown;

    /// The committed reference; written anew by `cargo xtask fix`.
    const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operate/reference.md");

    #[test]
    fn the_committed_reference_is_the_one_that_the_code_makes() {
        let fresh = markdown();
        if std::env::var_os("MUSTER_WRITE_REFERENCE").is_some() {
            std::fs::create_dir_all(std::path::Path::new(COMMITTED).parent().unwrap()).unwrap();
            std::fs::write(COMMITTED, &fresh).unwrap();
        }
        let committed = std::fs::read_to_string(COMMITTED).unwrap_or_default();
        assert!(
            committed == fresh,
            "docs/operate/reference.md is stale; write it anew with: cargo xtask fix"
        );
    }
}
