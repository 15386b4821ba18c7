//! Rules on the text of one source file: globs, channels, clocks in pure files, typed ids.

use super::Finding;
use super::code::code_only;
use super::code::is_test_file;
use super::code::lines_before_tests;
use super::code::names;

/// Names that make a file impure.
const IMPURE: &[&str] = &["SystemTime", "Instant", "rand", "getrandom", "tokio"];

/// Ways to make a queue without a limit.
const UNBOUNDED: &[&str] = &["unbounded_channel", "unbounded"];

/// Types that an id must not have where another crate can see it.
const RAW_ID_TYPES: &[&str] = &["String", "&str", "u32", "u64", "u128", "Uuid"];

/// Where ids are made of raw values.
const IDS_FILE: &str = "crates/model/src/ids.rs";

pub(super) fn check(path: &str, text: &str) -> Vec<Finding> {
    let code = code_only(text);
    let lines: Vec<&str> = code.lines().collect();
    let own = lines_before_tests(&code);
    let mut findings = Vec::new();
    let mut find = |line: usize, what: String| {
        findings.push(Finding::new(format!("{path}:{}", line + 1), what));
    };
    for (at, line) in lines.iter().enumerate() {
        let import = line.trim_start().trim_start_matches("pub ");
        let in_tests = at >= own || is_test_file(path);
        let of_parent = in_tests && import.starts_with("use super::*;");
        if import.starts_with("use ") && line.contains("::*") && !of_parent {
            find(at, "imports everything; name what is used".to_owned());
        }
        if let Some(word) = UNBOUNDED.iter().find(|word| names(line, word)) {
            find(at, format!("{word} has no limit; use a channel with a named one"));
        }
        if line.contains("std::sync::mpsc::channel") || line.contains("sync::mpsc::channel;") {
            find(at, "std's channel has no limit; use sync_channel".to_owned());
        }
        if is_pure(path) && at < own {
            for word in IMPURE.iter().filter(|word| names(line, word)) {
                find(at, format!("names {word}, but this file is pure: pass the value in"));
            }
        }
    }
    if path.starts_with("crates/") && path != IDS_FILE && !is_test_file(path) {
        let own: String = lines[..own].iter().map(|line| format!("{line}\n")).collect();
        for (at, what) in raw_ids(&own) {
            find(own[..at].matches('\n').count(), what);
        }
    }
    findings
}

/// The model, and every file that holds a state machine or its admission.
fn is_pure(path: &str) -> bool {
    let file = path.rsplit('/').next().unwrap_or_default();
    let in_model = path.starts_with("crates/model/src/") && !is_test_file(path);
    // In an engine a machine is a running QEMU, or the fake of one, and not a state machine.
    let engine = path.contains("/engine/");
    in_model || !engine && (file == "machine.rs" || file == "admit.rs")
}

/// Public fields and parameters of public functions that are ids of a raw type, with their place.
fn raw_ids(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("pub ") {
        let after = &code[at + 4..];
        let item = after.trim_start_matches("const ").trim_start_matches("async ");
        let declared = match item.strip_prefix("fn ") {
            Some(function) => parameters(function),
            None => &after[..after.find([',', '\n', ';', '{', '(']).unwrap_or(0)],
        };
        for one in declared.split(',') {
            let Some((name, kind)) = one.split_once(':') else { continue };
            let (name, kind) = (name.trim(), kind.trim());
            let kind = kind.trim_start_matches("Option<").trim_end_matches('>');
            // What a user typed, a name or an id, is text until somebody looks it up.
            let typed = name == "name_or_id";
            let is_id = !typed && name.ends_with("_id") && is_plain(name);
            if is_id && RAW_ID_TYPES.contains(&kind) {
                found.push((at, format!("{name} is a {kind}; give it an id type")));
            }
        }
    }
    found
}

fn is_plain(name: &str) -> bool {
    name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// The text between a function's parentheses.
fn parameters(function: &str) -> &str {
    let Some(open) = function.find('(') else { return "" };
    let mut depth = 0;
    for (at, c) in function[open..].char_indices() {
        match c {
            '(' => depth += 1,
            ')' if depth == 1 => return &function[open + 1..open + at],
            ')' => depth -= 1,
            _ => {}
        }
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::check;

    fn found(path: &str, text: &str) -> Vec<String> {
        check(path, text).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn globs_are_found_save_the_parent_in_its_tests() {
        assert_eq!(found("crates/a/src/b/tests.rs", "use super::*;\n"), [""; 0]);
        assert_eq!(found("crates/a/src/b/tests.rs", "use proptest::prelude::*;\n").len(), 1);
        assert_eq!(found("xtask/src/a.rs", "use a::b;\n    use super::*;\n").len(), 1);
        assert_eq!(found("xtask/src/a.rs", "// use a::*;\n"), [""; 0]);
    }

    #[test]
    fn queues_without_a_limit() {
        assert_eq!(found("crates/a/src/a.rs", "let (a, b) = mpsc::unbounded_channel();").len(), 1);
        assert_eq!(found("crates/a/src/a.rs", "use std::sync::mpsc::channel;").len(), 1);
        assert_eq!(found("crates/a/src/a.rs", "let (a, b) = mpsc::channel(QUEUE_MAX);"), [""; 0]);
    }

    #[test]
    fn clocks_and_chance_in_pure_files() {
        let text = "use std::time::Instant;\nuse tokio::sync::mpsc;\nlet a = rand::random();\n";
        assert_eq!(found("crates/vm/src/lifecycle/machine.rs", text).len(), 3);
        assert_eq!(found("crates/model/src/spec.rs", text).len(), 3);
        assert_eq!(found("crates/vm/src/lifecycle/driver.rs", text), [""; 0]);
        assert_eq!(found("crates/vm/src/admit.rs", "// an Instant\nlet operand = 1;"), [""; 0]);
    }

    #[test]
    fn raw_ids_in_public_places() {
        let text = "pub struct A {\n    pub vm_id: String,\n    pub disk_id: Option<u64>,\n    \
                    host_id: u64,\n    pub node_id: NodeId,\n}\n\
                    pub fn f(\n    vm_id: &str,\n    name: String,\n) {}\npub fn g(id: VmId) {}\n";
        let found = found("crates/a/src/a.rs", text);
        assert_eq!(found.len(), 3, "{found:#?}");
        assert!(found[0].starts_with("crates/a/src/a.rs:2:"), "{found:?}");
    }
}
