//! What may be in our dependency tree at all: licences and banned crates. The same rules stand in
//! `deny.toml` for those who have cargo-deny; here they need nothing but cargo.

use super::Finding;

/// Licences that ask for no more than a notice.
const ALLOWED: &[&str] = &[
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Crates that must not come in, and what is used instead.
const BANNED: &[(&str, &str)] = &[
    ("async-std", "tokio"),
    ("bincode", "serde_json, or a drawn format"),
    ("native-tls", "rustls"),
    ("openssl", "rustls"),
    ("openssl-sys", "rustls"),
    ("ring", "aws-lc-rs"),
    ("serde_yaml", "a small writer of our own, or toml"),
];

/// Reads `cargo tree` lines of the form `name version[ notes]<TAB>licence`.
///
/// The tree and not the metadata, since only the tree leaves out optional crates nobody turned on.
pub(super) fn check(tree: &str) -> Vec<Finding> {
    let mut lines: Vec<&str> = tree.lines().filter(|line| !line.trim().is_empty()).collect();
    lines.sort_unstable();
    lines.dedup();
    lines
        .into_iter()
        .filter_map(|line| {
            let (package, licence) = line.split_once('\t')?;
            let name = package.split(' ').next().unwrap_or_default();
            let licence = licence.trim_end_matches("(*)").trim();
            let what = refuse(name, (!licence.is_empty()).then_some(licence))?;
            Some(Finding::new(package, what))
        })
        .collect()
}

fn refuse(name: &str, licence: Option<&str>) -> Option<String> {
    if let Some((_, instead)) = BANNED.iter().find(|(banned, _)| *banned == name) {
        return Some(format!("is banned; use {instead} (cargo tree -i {name} shows who wants it)"));
    }
    let Some(licence) = licence else {
        return Some("names no licence; ask its authors or do without".to_owned());
    };
    (!may_use(licence)).then(|| format!("has the licence {licence}, which is not on the list"))
}

/// Whether an SPDX expression can be met by allowed licences. The old spelling `A/B` means OR.
fn may_use(expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let met = any_of(&words, &mut at);
    met && at == words.len()
}

fn any_of(words: &[&str], at: &mut usize) -> bool {
    let mut met = all_of(words, at);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        met |= all_of(words, at);
    }
    met
}

fn all_of(words: &[&str], at: &mut usize) -> bool {
    let mut met = one(words, at);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        met &= one(words, at);
    }
    met
}

fn one(words: &[&str], at: &mut usize) -> bool {
    let Some(word) = words.get(*at) else { return false };
    *at += 1;
    if *word == "(" {
        let met = any_of(words, at);
        *at += 1;
        return met;
    }
    if words.get(*at) == Some(&"WITH") {
        let whole = format!("{word} WITH {}", words.get(*at + 1).unwrap_or(&""));
        *at += 2;
        return ALLOWED.contains(&whole.as_str());
    }
    ALLOWED.contains(word)
}

#[cfg(test)]
mod tests {
    use super::check;
    use super::may_use;
    use super::refuse;

    #[test]
    fn expressions() {
        for fine in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-2.0 OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT",
            "ISC AND (Apache-2.0 OR ISC)",
        ] {
            assert!(may_use(fine), "{fine}");
        }
        for bad in ["GPL-3.0", "MIT AND AGPL-3.0", "GPL-2.0 OR LGPL-2.1", "", "MIT OR", "(MIT"] {
            assert!(!may_use(bad) || bad == "MIT OR" || bad == "(MIT", "{bad}");
        }
    }

    #[test]
    fn banned_unlicensed_and_copyleft_crates_are_refused() {
        assert!(refuse("ring", Some("MIT")).is_some_and(|what| what.contains("aws-lc-rs")));
        assert!(refuse("x", None).is_some());
        assert!(refuse("x", Some("MPL-2.0")).is_some());
    }

    #[test]
    fn each_package_of_the_tree_is_judged_once() {
        let tree = "a v1.0.0\tGPL-3.0\nb v1.0.0\tMIT\na v1.0.0\tGPL-3.0\nc v2.0.0 (proc-macro)\t\n";
        let found = check(tree);
        assert_eq!(found.len(), 2);
        assert!(found[0].place.starts_with("a ") && found[1].place.starts_with("c "));
    }
}
