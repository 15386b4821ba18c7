//! What the machine's own apt sources say: which archive it uses, so that we use the same one.
//!
//! Both spellings are read: one-line `*.list` files and deb822 `*.sources` files. Nothing here
//! changes a file of the administrator.

use std::fs;
use std::path::Path;
use std::path::PathBuf;

/// One archive and suite that apt reads packages from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) uri: String,
    pub(crate) suite: String,
    pub(crate) signed_by: Option<String>,
}

/// All sources below `/etc/apt`, in the order apt reads them.
pub(crate) fn sources() -> Vec<Source> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        let mut more: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        more.sort();
        files.extend(more);
    }
    files.iter().flat_map(|file| read(file)).collect()
}

fn read(file: &Path) -> Vec<Source> {
    let text = fs::read_to_string(file).unwrap_or_default();
    match file.extension().and_then(|ending| ending.to_str()) {
        Some("list") => parse_list(&text),
        Some("sources") => parse_deb822(&text),
        _ => Vec::new(),
    }
}

/// `deb [option=value ...] uri suite component...`
fn parse_list(text: &str) -> Vec<Source> {
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some(rest) = line.strip_prefix("deb ") else { continue };
        let rest = rest.trim();
        let (options, rest) = match rest.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
            Some((options, rest)) => (options, rest),
            None => ("", rest),
        };
        let mut words = rest.split_whitespace();
        let (Some(uri), Some(suite)) = (words.next(), words.next()) else { continue };
        let signed_by = options
            .split_whitespace()
            .find_map(|option| option.strip_prefix("signed-by="))
            .map(str::to_owned);
        found.push(Source { uri: uri.to_owned(), suite: suite.to_owned(), signed_by });
    }
    found
}

/// Paragraphs of `Field: value` lines; `Types`, `URIs`, `Suites`, `Signed-By`, `Enabled`.
fn parse_deb822(text: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let text: String = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| format!("{line}\n"))
        .collect();
    for paragraph in text.split("\n\n") {
        let field = |name: &str| {
            paragraph.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            })
        };
        let binary = field("Types").is_some_and(|types| types.split(' ').any(|one| one == "deb"));
        if !binary || field("Enabled").is_some_and(|value| value == "no") {
            continue;
        }
        // A key written into the file itself starts with an empty value; we only pass on paths.
        let signed_by = field("Signed-By").filter(|value| value.starts_with('/'));
        for uri in field("URIs").unwrap_or_default().split_whitespace() {
            for suite in field("Suites").unwrap_or_default().split_whitespace() {
                found.push(Source {
                    uri: uri.to_owned(),
                    suite: suite.to_owned(),
                    signed_by: signed_by.clone(),
                });
            }
        }
    }
    found
}

/// The Debian archive this machine uses, found as the source of its own release.
pub(crate) fn archive(codename: &str) -> Option<Source> {
    pick_archive(&sources(), codename)
}

fn pick_archive(sources: &[Source], codename: &str) -> Option<Source> {
    sources.iter().find(|source| source.suite == codename).cloned()
}

/// The security archive this machine uses, if it names one.
pub(crate) fn security_archive() -> Option<Source> {
    sources().into_iter().find(|source| source.suite.ends_with("-security"))
}

/// The machine's Debian code name (`bookworm`, `trixie`), from `/etc/os-release`.
pub(crate) fn codename() -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    let id = text.lines().find_map(|line| line.strip_prefix("ID="))?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    (id == "debian").then(|| name.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::Source;
    use super::parse_deb822;
    use super::parse_list;
    use super::pick_archive;

    fn source(uri: &str, suite: &str, signed_by: Option<&str>) -> Source {
        Source { uri: uri.into(), suite: suite.into(), signed_by: signed_by.map(Into::into) }
    }

    #[test]
    fn one_line_sources_with_and_without_options() {
        let text = "# comment\ndeb http://a/debian bookworm main # tail\n\
                    deb-src http://a/debian bookworm main\n\
                    deb [arch=amd64 signed-by=/k.gpg] https://b/x stable main contrib\ndeb broken\n";
        assert_eq!(
            parse_list(text),
            [
                source("http://a/debian", "bookworm", None),
                source("https://b/x", "stable", Some("/k.gpg"))
            ]
        );
    }

    #[test]
    fn deb822_sources_expand_suites_and_skip_disabled() {
        let text = "Types: deb\n# note\nURIs: http://a/debian\nSuites: bookworm bookworm-updates\n\
                    Signed-By: /k.gpg\n\nTypes: deb-src\nURIs: http://a/debian\nSuites: bookworm\n\n\
                    Types: deb\nEnabled: no\nURIs: http://off\nSuites: bookworm\n";
        let found = parse_deb822(text);
        assert_eq!(
            found,
            [
                source("http://a/debian", "bookworm", Some("/k.gpg")),
                source("http://a/debian", "bookworm-updates", Some("/k.gpg"))
            ]
        );
        assert_eq!(pick_archive(&found, "bookworm"), Some(found[0].clone()));
        assert_eq!(pick_archive(&found, "trixie"), None);
    }
}
