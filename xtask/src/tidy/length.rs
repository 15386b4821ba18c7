//! Files over 1,000 lines and functions over 70, tests not counted. Old offenders are listed in a
//! file, each with its length, and may only shrink: a longer one fails, and so does a shorter one
//! until its entry is lowered or taken out.

use super::Finding;
use super::code::code_only;
use super::code::is_test_file;
use super::code::lines_before_tests;

/// Entries `LENGTH PATH` or `LENGTH PATH:FUNCTION`, one a line.
pub(super) const OLD_OFFENDERS: &str = "xtask/tidy-old-offenders.txt";

const FILE_LINES_MAX: usize = 1000;
const FUNCTION_LINES_MAX: usize = 70;

/// Something that is too long.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Long {
    place: String,
    lines: usize,
}

/// The file and those of its functions that are too long.
pub(super) fn measure(path: &str, text: &str) -> Vec<Long> {
    if is_test_file(path) {
        return Vec::new();
    }
    let code = code_only(text);
    let cut = lines_before_tests(&code);
    let lines: Vec<&str> = code.lines().take(cut).collect();
    let mut found = Vec::new();
    if cut > FILE_LINES_MAX {
        found.push(Long { place: path.to_owned(), lines: cut });
    }
    for (at, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let length = function_length(&lines[at..]);
        if length > FUNCTION_LINES_MAX {
            found.push(Long { place: format!("{path}:{name}"), lines: length });
        }
    }
    found
}

/// The name of a function whose definition begins on this line.
fn function_name(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("fn ")?;
    let qualifiers = ["pub", "const", "async", "unsafe", "extern", "crate", "super", "default"];
    let plain = before
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .all(|word| qualifiers.contains(&word));
    let name = after.split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
    (plain && !name.is_empty()).then_some(name)
}

/// Lines from the one with `fn` to its closing brace; one that has no body counts as one line.
fn function_length(lines: &[&str]) -> usize {
    let mut depth = 0_usize;
    for (at, line) in lines.iter().enumerate() {
        for c in line.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth <= 1 => return at + 1,
                '}' => depth -= 1,
                ';' if depth == 0 => return 1,
                _ => {}
            }
        }
    }
    lines.len()
}

/// Compares what is too long with the list of what was.
pub(super) fn check(long: &[Long], known: &str) -> Vec<Finding> {
    let known: Vec<(usize, &str)> = known
        .lines()
        .filter_map(|line| {
            let (lines, place) = line.split_once(' ')?;
            Some((lines.parse().ok()?, place.trim()))
        })
        .collect();
    let mut findings = Vec::new();
    for Long { place, lines } in long {
        match known.iter().find(|(_, listed)| listed == place) {
            None => findings.push(Finding::new(place, format!("has {lines} lines; split it"))),
            Some((listed, _)) if listed < lines => {
                let what =
                    format!("grew from {listed} to {lines} lines; old offenders only shrink");
                findings.push(Finding::new(place, what));
            }
            Some((listed, _)) if listed > lines => {
                let what = format!("shrank to {lines} lines; lower its entry in {OLD_OFFENDERS}");
                findings.push(Finding::new(place, what));
            }
            Some(_) => {}
        }
    }
    for (_, listed) in known {
        if !long.iter().any(|one| one.place == listed) {
            let what = format!("is no longer too long; take it out of {OLD_OFFENDERS}");
            findings.push(Finding::new(listed, what));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::Long;
    use super::check;
    use super::measure;

    fn function(lines: usize) -> String {
        format!(
            "impl X {{\n    pub(crate) async fn big(&self) {{\n{}    }}\n}}\n",
            "x();\n".repeat(lines - 2)
        )
    }

    #[test]
    fn a_function_of_71_lines_is_too_long() {
        assert_eq!(measure("crates/a/src/lib.rs", &function(70)), []);
        let found = measure("crates/a/src/lib.rs", &function(71));
        assert_eq!(found, [Long { place: "crates/a/src/lib.rs:big".into(), lines: 71 }]);
    }

    #[test]
    fn braces_in_strings_and_tests_do_not_count() {
        let text =
            format!("fn f() {{ \"{{\"; }}\n#[cfg(test)]\nmod tests {{\n{}}}\n", function(90));
        assert_eq!(measure("crates/a/src/lib.rs", &text), []);
        assert_eq!(measure("crates/a/tests/x.rs", &function(90)), []);
    }

    #[test]
    fn a_file_over_the_limit() {
        let found = measure("crates/a/src/lib.rs", &"x\n".repeat(1001));
        assert_eq!(found, [Long { place: "crates/a/src/lib.rs".into(), lines: 1001 }]);
    }

    #[test]
    fn old_offenders_only_shrink() {
        let long = [Long { place: "a.rs:f".into(), lines: 80 }];
        assert_eq!(check(&long, "80 a.rs:f\n"), []);
        assert!(check(&long, "79 a.rs:f\n")[0].what.contains("grew"));
        assert!(check(&long, "90 a.rs:f\n")[0].what.contains("lower"));
        assert!(check(&long, "").iter().any(|one| one.what.contains("split")));
        assert!(check(&[], "80 a.rs:f\n")[0].what.contains("take it out"));
    }
}
