//! `muster cluster validate` in a lab: nothing fails where all is well, and each fault that is made
//! is named with its node.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use std::fs;
use std::process::Command;
use std::time::Duration;

use e2e::Ran;
use e2e::TestLab;
use e2e::eventually;
use serde_json::Value;

/// Daemons, elections and volumes settle in this time, on a busy machine.
const SETTLE: Duration = Duration::from_secs(90);

/// A clock that is some seconds ahead, for a program that is started with it: the kernel has no
/// namespace for the date.
const SHIM: &str = r"
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t id, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, id, now);
    if (!failed && id == CLOCK_REALTIME) now->tv_sec += AHEAD;
    return failed;
}
";

async fn healthy(lab: &TestLab, node: &str, nodes: usize) {
    eventually(&format!("{node} sees {nodes} healthy nodes"), SETTLE, async || {
        let said = lab.muster(node, &["cluster", "status", "--json"]).await;
        let view = (said.code == 0).then(|| said.json())?;
        (view["health"] == "healthy" && view["nodes"].as_array()?.len() == nodes).then_some(())
    })
    .await;
}

/// Waits until what follows the start of daemons is there: leases, and heartbeats on all networks.
async fn settled(lab: &TestLab) {
    let checks = ["--check", "latency", "--check", "memory", "--check", "fencing"];
    eventually("leases and heartbeats are there", SETTLE, async || {
        let ran = validate(lab, "n1", &checks).await;
        let unheard = |report: &Value| !of(report, "memory", "warn").is_empty();
        (ran.code == 0 && !unheard(&ran.json())).then_some(())
    })
    .await;
}

async fn validate(lab: &TestLab, by: &str, args: &[&str]) -> Ran {
    lab.muster(by, &[&["--quiet", "--json", "cluster", "validate"], args].concat()).await
}

/// Subject, as the text report shows it, and text of each finding of that verdict.
fn of(report: &Value, check: &str, verdict: &str) -> Vec<(Value, String)> {
    let findings = report["findings"].as_array().unwrap();
    let chosen = findings.iter().filter(|it| it["check"] == check && it["verdict"] == verdict);
    chosen.map(|it| (it["subject"].clone(), it["text"].as_str().unwrap().to_owned())).collect()
}

/// Validates, which must end with that failure, and gives what failed.
async fn failures(lab: &TestLab, by: &str, check: &str) -> Vec<(Value, String)> {
    let ran = validate(lab, by, &["--check", check]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    let report = ran.json();
    assert_eq!(report["checks"], serde_json::json!([check]), "only what was asked for");
    of(&report, check, "fail")
}

async fn nothing_fails(lab: &TestLab, by: &str, check: &str) {
    let ran = validate(lab, by, &["--check", check]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
}

async fn with_fence_device(lab: &TestLab) {
    let add = [
        "fence",
        "device",
        "add",
        "bmc",
        "--agent",
        "fence_muster_lab",
        "--node",
        "n1=n1",
        "--node",
        "n2=n2",
        "--node",
        "n3=n3",
    ];
    lab.muster("n1", &add).await.ok();
}

/// Runs a program in a node's network namespace.
async fn in_net(lab: &TestLab, node: &str, args: &[&str]) {
    let path = lab.node(node).await["network_namespace"].as_str().unwrap().to_owned();
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={path}")).arg("--").args(args);
    assert!(command.status().unwrap().success(), "{command:?}");
}

/// From and to of ways between nodes, on the network that is named.
fn ways(found: &[(Value, String)], network: &str) -> Vec<(String, String)> {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let on = found.iter().filter(|(subject, _)| subject["network"] == network);
    on.map(|(subject, _)| (word(&subject["from"]), word(&subject["to"]))).collect()
}

fn pair(from: &str, to: &str) -> (String, String) {
    (from.to_owned(), to.to_owned())
}

/// All that is well, in all forms of the report.
async fn all_is_well(lab: &TestLab) {
    let ran = validate(lab, "n1", &[]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let report = ran.json();
    assert_eq!((&report["failed"], &report["cluster"]), (&0.into(), &"lab".into()));
    // Each check has looked at something.
    for check in report["checks"].as_array().unwrap() {
        let findings = report["findings"].as_array().unwrap();
        assert!(findings.iter().any(|it| it["check"] == *check), "{check} in {report}");
    }
    assert_eq!(report["checks"].as_array().unwrap().len(), 12);
    // Three nodes, each to two others, on two networks.
    let links = report["links"].as_array().unwrap();
    assert_eq!(links.len(), 12, "{links:?}");
    for link in links {
        assert_eq!((&link["mtu"], &link["passed"]), (&1500.into(), &1500.into()), "{link}");
    }
    let nodes = report["nodes"].as_array().unwrap();
    assert!(nodes.iter().all(|node| node["disks"].as_array().unwrap().len() == 2), "{nodes:?}");
    // The report is kept where it was made, and there only.
    let last = lab.muster("n1", &["cluster", "validate", "--last", "--json"]).await.ok().json();
    assert_eq!(last["started"], report["started"]);
    let other = lab.muster("n2", &["cluster", "validate", "--last"]).await;
    assert!(other.code == 1 && other.err.contains("muster cluster validate"), "{other:?}");
    for (end, word) in [("txt", "\nmtu\n"), ("json", "\"findings\""), ("html", "</html>")] {
        let file = lab.dir().with_extension(end);
        let path = file.to_str().unwrap();
        lab.muster("n1", &["cluster", "validate", "--last", "-o", path]).await.ok();
        let text = fs::read_to_string(&file).unwrap();
        fs::remove_file(&file).unwrap();
        assert!(text.contains(word) && text.contains("10.90.1.0/24"), "{end}: {text}");
    }
}

#[tokio::test]
async fn each_fault_is_named_with_its_node() {
    let lab = TestLab::up(&["--nodes", "3", "--fake"]).await;
    healthy(&lab, "n1", 3).await;
    lab.muster("n1", &["volume", "create", "shared", "--share", "/muster/share"]).await.ok();
    with_fence_device(&lab).await;
    settled(&lab).await;
    all_is_well(&lab).await;

    // A fence device that is out of order, and one that lies.
    lab.run(&["fence", "n2", "fails"]).await.ok();
    let found = failures(&lab, "n3", "fencing").await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((&found[0].0["device"], &found[0].0["node"]), (&"bmc".into(), &"n2".into()));
    assert!(found[0].1.contains("n1, n2, n3"), "all three asked: {found:?}");
    lab.run(&["fence", "n2", "works"]).await.ok();
    nothing_fails(&lab, "n3", "fencing").await;

    // A small MTU on one device of one node: large packets to it are lost.
    in_net(&lab, "n3", &["ip", "link", "set", "clus0", "mtu", "1400"]).await;
    let ran = validate(&lab, "n1", &["--check", "mtu"]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    let report = ran.json();
    let found = of(&report, "mtu", "fail");
    assert_eq!(ways(&found, "10.90.1.0/24"), [pair("n1", "n3"), pair("n2", "n3")], "{found:?}");
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].1.contains("1500"), "{found:?}");
    let odd = of(&report, "mtu", "warn");
    assert!(odd.len() == 1 && odd[0].0["node"] == "n3" && odd[0].1.contains("1400"), "{odd:?}");
    // Asked for one node, the other's troubles are left out.
    let ran = validate(&lab, "n1", &["--check", "mtu", "--node", "n2"]).await;
    let found = of(&ran.json(), "mtu", "fail");
    assert_eq!(ways(&found, "10.90.1.0/24"), [pair("n2", "n3")], "{found:?}");
    in_net(&lab, "n3", &["ip", "link", "set", "clus0", "mtu", "1500"]).await;
    nothing_fails(&lab, "n1", "mtu").await;

    // One network between two nodes is cut, in one direction only: neither gets an answer.
    lab.run(&["cut", "n1", "n2", "--network", "cluster", "--one-way"]).await.ok();
    let found = failures(&lab, "n3", "latency").await;
    let cut = ways(&found, "10.90.1.0/24");
    assert_eq!(cut, [pair("n1", "n2"), pair("n2", "n1")], "{found:?}");
    assert_eq!(found.len(), 2, "{found:?}");
    lab.run(&["mend", "--all"]).await.ok();
    nothing_fails(&lab, "n3", "latency").await;

    // The volume is not mounted on one node.
    lab.run(&["exec", "n3", "--", "umount", "-l", "/muster/share"]).await.ok();
    let found = failures(&lab, "n1", "volumes").await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((&found[0].0["volume"], &found[0].0["node"]), (&"shared".into(), &"n3".into()));
}

#[tokio::test]
async fn a_wrong_clock_and_a_silent_node_are_named() {
    let lab = TestLab::up(&["--nodes", "3", "--fake"]).await;
    healthy(&lab, "n1", 3).await;
    nothing_fails(&lab, "n1", "clock").await;
    lab.run(&["power-off", "n2"]).await.ok();
    let found = failures(&lab, "n1", "nodes").await;
    assert!(found.len() == 1 && found[0].0["node"] == "n2", "{found:?}");

    let (source, library) = (lab.dir().with_extension("c"), lab.dir().with_extension("so"));
    fs::write(&source, SHIM).unwrap();
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-DAHEAD=60", "-o"]).arg(&library).arg(&source);
    assert!(cc.status().unwrap().success(), "{cc:?}");
    let mut on = lab.command();
    on.args(["power-on", "n2"]).env("LD_PRELOAD", &library);
    let on = Ran::new(&on.output().unwrap());
    for file in [&source, &library] {
        fs::remove_file(file).unwrap();
    }
    on.ok();
    for node in ["n1", "n2"] {
        healthy(&lab, node, 3).await;
    }
    // Whoever asks: also the one whose clock it is.
    for by in ["n1", "n2"] {
        let found = failures(&lab, by, "clock").await;
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].0["node"] == "n2" && found[0].1.contains("ahead"), "{found:?}");
    }
}

#[tokio::test]
async fn a_witness_that_is_gone_is_named() {
    let lab = TestLab::up(&["--nodes", "2", "--fake"]).await;
    healthy(&lab, "n1", 2).await;
    // Two nodes without one: a warning, which stops nothing.
    let ran = validate(&lab, "n2", &["--check", "witness"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(of(&ran.json(), "witness", "warn").len(), 1, "{ran:?}");

    let witness = lab.dir().join("share/witness");
    fs::create_dir(&witness).unwrap();
    let set = ["cluster", "witness", "set", "--directory", "/muster/share/witness"];
    lab.muster("n1", &set).await.ok();
    eventually("the witness is used by both", SETTLE, async || {
        let ran = validate(&lab, "n1", &["--check", "witness"]).await;
        (ran.code == 0 && of(&ran.json(), "witness", "warn").is_empty()).then_some(())
    })
    .await;
    fs::rename(&witness, lab.dir().join("share/away")).unwrap();
    let found = failures(&lab, "n1", "witness").await;
    let nodes: Vec<&str> =
        found.iter().map(|(subject, _)| subject["node"].as_str().unwrap()).collect();
    assert_eq!(nodes, ["n1", "n2"], "{found:?}");
}

#[tokio::test]
async fn a_host_is_compared_with_a_cluster_before_it_joins() {
    let lab = TestLab::up(&["--nodes", "2", "--fake", "--no-cluster"]).await;
    lab.muster("n1", &["cluster", "create", "lab"]).await.ok();
    let token = lab.muster("n1", &["cluster", "token", "--uses", "1", "--json"]).await.ok().json();
    let token = token["text"].as_str().unwrap().to_owned();
    let with_token = ["--join-token", &token];
    let ran = validate(&lab, "n2", &with_token).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let report = ran.json();
    let names: Vec<_> = report["nodes"].as_array().unwrap().iter().map(|it| &it["node"]).collect();
    assert_eq!(names, ["n1", "n2"]);
    assert_eq!(report["links"].as_array().unwrap().len(), 2, "{report}");
    for check in report["checks"].as_array().unwrap() {
        let findings = report["findings"].as_array().unwrap();
        assert!(findings.iter().any(|it| it["check"] == *check), "{check} in {report}");
    }

    lab.run(&["cut", "n1", "n2", "--network", "cluster"]).await.ok();
    let ran = validate(&lab, "n2", &[&with_token[..], &["--check", "latency"]].concat()).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    let found = of(&ran.json(), "latency", "fail");
    assert_eq!(ways(&found, "10.90.1.0/24"), [pair("n2", "n1")], "{found:?}");
    assert_eq!(found.len(), 1, "{found:?}");
    lab.run(&["mend", "--all"]).await.ok();

    // It has only looked: the token, which is good for one host, still takes it in.
    let one = lab.muster("n1", &["node", "list", "--json"]).await.ok().json();
    assert_eq!(one.as_array().unwrap().len(), 1, "{one}");
    lab.muster("n2", &["cluster", "join", &token]).await.ok();
    healthy(&lab, "n2", 2).await;
    // A member has nothing to look at from outside.
    let ran = validate(&lab, "n2", &with_token).await;
    assert_eq!(ran.code, 5, "{ran:?}");
}

#[tokio::test]
async fn a_token_that_has_ended_shows_nothing_of_the_cluster() {
    let lab = TestLab::up(&["--nodes", "2", "--fake", "--no-cluster"]).await;
    lab.muster("n1", &["cluster", "create", "lab"]).await.ok();
    let token = lab.muster("n1", &["cluster", "token", "--json"]).await.ok().json();
    let (id, text) = (token["id"].as_str().unwrap(), token["text"].as_str().unwrap());
    lab.muster("n1", &["cluster", "token", "--revoke", id]).await.ok();
    let ran = validate(&lab, "n2", &["--join-token", text]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    let report = ran.json();
    let found = of(&report, "nodes", "fail");
    assert!(found.len() == 1 && found[0].0["kind"] == "cluster", "{found:?}");
    assert!(!report.to_string().contains("\"n1\""), "{report}");
}
