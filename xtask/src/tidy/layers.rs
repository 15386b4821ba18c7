//! Who may depend on whom: our crates on each other, and which crate owns which foreign one.

use serde_json::Value;

use super::Finding;
use super::members;

/// Our crates, lowest first, and which of ours each may use.
const LAYERS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("placement", &["model"]),
    ("cluster", &["model"]),
    ("peer", &["model"]),
    ("switch", &["model"]),
    ("vm", &["model"]),
    ("volume", &["model"]),
    ("api", &["model"]),
    ("node", &["api", "cluster", "model", "peer", "placement", "switch", "vm", "volume"]),
    // Of the volumes the lab has the pretend SAN only.
    ("lab", &["api", "volume"]),
    ("cli", &["api", "lab", "node"]),
    ("e2e", &["api"]),
    // The simulator drives the decisions of a daemon, with fakes around them.
    ("sim", &["cluster", "model", "node", "placement", "vm"]),
    ("xtask", &[]),
];

/// Foreign crates that only their owners may name, so that they can be replaced in one place.
const OWNERS: &[(&str, &[&str])] = &[
    ("anyhow", &["node", "cli", "xtask", "e2e"]),
    ("axum", &["node"]),
    ("clap", &["cli", "xtask"]),
    ("clap_complete", &["cli"]),
    ("clap_mangen", &["cli"]),
    ("comfy-table", &["cli"]),
    ("command-fds", &["vm"]),
    ("dhcproto", &["switch"]),
    ("fuser", &["volume"]),
    ("hickory-proto", &["switch"]),
    ("hyper", &["api", "node", "vm"]),
    ("indicatif", &["cli"]),
    ("io-uring", &["volume"]),
    ("landlock", &["vm"]),
    ("ratatui", &["cli"]),
    // The node makes the certificate of its TLS port, a witness its own, tests make some, too.
    ("rcgen", &["cluster", "node", "peer", "vm"]),
    ("object_store", &["cluster"]),
    ("openraft", &["cluster"]),
    ("redb", &["cluster"]),
    ("rtnetlink", &["switch"]),
    ("tokio-tungstenite", &["api"]),
    ("x509-parser", &["peer"]),
];

/// All that the pure crate may use: no runtime, no clock, no randomness, no I/O.
const MODEL_USES: &[&str] = &["ipnet", "rpds", "serde", "thiserror", "utoipa", "uuid"];

pub(super) fn check(metadata: &Value) -> Vec<Finding> {
    let names: Vec<&str> = members(metadata).filter_map(|one| one["name"].as_str()).collect();
    let mut findings = Vec::new();
    for package in members(metadata) {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = LAYERS.iter().find(|(layer, _)| *layer == name) else {
            findings.push(Finding::new(name, "is not in tidy's table of layers; add it there"));
            continue;
        };
        for dependency in package["dependencies"].as_array().map(Vec::as_slice).unwrap_or_default()
        {
            let used = dependency["name"].as_str().unwrap_or_default();
            let for_tests = dependency["kind"] == "dev";
            if let Some(what) = refuse(name, used, for_tests, allowed, &names) {
                findings.push(Finding::new(name, what));
            }
        }
    }
    findings
}

fn refuse(
    name: &str,
    used: &str,
    for_tests: bool,
    allowed: &[&str],
    ours: &[&str],
) -> Option<String> {
    if ours.contains(&used) {
        let list = if allowed.is_empty() { "none of ours".into() } else { allowed.join(", ") };
        return (!allowed.contains(&used) && used != name)
            .then(|| format!("must not depend on {used}; it may use {list}"));
    }
    if name == "model" && !for_tests && !MODEL_USES.contains(&used) {
        return Some(format!("must stay pure and not depend on {used}"));
    }
    // Tests may play the other side of a protocol, for which they need its library.
    if for_tests {
        return None;
    }
    let (_, owners) = OWNERS.iter().find(|(foreign, _)| *foreign == used)?;
    (!owners.contains(&name))
        .then(|| format!("must not name {used}; it belongs to {}", owners.join(", ")))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use serde_json::json;

    use super::check;

    fn workspace(crates: &[(&str, &[(&str, bool)])]) -> Value {
        let packages: Vec<Value> = crates
            .iter()
            .map(|(name, uses)| {
                let uses: Vec<Value> = uses
                    .iter()
                    .map(|(used, dev)| json!({"name": used, "kind": dev.then_some("dev")}))
                    .collect();
                json!({"id": name, "name": name, "dependencies": uses})
            })
            .collect();
        let ids: Vec<&str> = crates.iter().map(|(name, _)| *name).collect();
        json!({"packages": packages, "workspace_members": ids})
    }

    fn found(crates: &[(&str, &[(&str, bool)])]) -> Vec<String> {
        check(&workspace(crates)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_law_as_it_stands_is_accepted() {
        let fine: &[(&str, &[(&str, bool)])] = &[
            ("model", &[("serde", false), ("proptest", true)]),
            ("switch", &[("model", false), ("rtnetlink", false)]),
            ("vm", &[("model", false), ("hyper", false)]),
            ("node", &[("vm", false), ("switch", false), ("axum", false)]),
        ];
        assert_eq!(found(fine), [""; 0]);
    }

    #[test]
    fn engines_must_not_know_each_other() {
        let found = found(&[("switch", &[]), ("vm", &[("switch", false)])]);
        assert_eq!(found, ["vm: must not depend on switch; it may use model"]);
    }

    #[test]
    fn also_not_in_tests() {
        assert_eq!(found(&[("node", &[]), ("e2e", &[("node", true)])]).len(), 1);
    }

    #[test]
    fn foreign_crates_stay_with_their_owner() {
        let found = found(&[("cli", &[("axum", false)]), ("model", &[("tokio", false)])]);
        assert_eq!(found.len(), 2);
        assert!(found[0].contains("belongs to node"), "{found:?}");
        assert!(found[1].contains("pure"), "{found:?}");
    }

    #[test]
    fn a_new_crate_must_be_placed_first() {
        assert_eq!(found(&[("drawer", &[])]).len(), 1);
    }
}
