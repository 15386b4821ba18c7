//! What the documents say of the tests is so.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Names of the functions in all sources below a directory.
fn functions(dir: &Path, into: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && entry.file_name() != "target" {
            functions(&path, into);
        } else if path.extension().is_some_and(|it| it == "rs") {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let names = text.split("fn ").skip(1).filter_map(|rest| rest.split('(').next());
            into.extend(names.map(str::to_owned));
        }
    }
}

#[test]
fn the_table_of_trouble_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut known = BTreeSet::new();
    for dir in ["crates", "tests"] {
        functions(&root.join(dir), &mut known);
    }
    let text = fs::read_to_string(root.join("docs/trouble.md")).expect("it is in the tree");
    let quoted = text.split('`').skip(1).step_by(2);
    // Commands and paths are quoted, too; a test's name has only these characters.
    let is_name = |text: &&str| {
        text.contains('_') && text.chars().all(|it| it.is_ascii_lowercase() || it == '_')
    };
    let named: Vec<&str> = quoted.filter(is_name).collect();
    assert!(named.len() > 50, "only {} tests are named", named.len());
    let unknown: Vec<_> = named.into_iter().filter(|name| !known.contains(*name)).collect();
    assert!(unknown.is_empty(), "no such tests: {unknown:?}");
}
