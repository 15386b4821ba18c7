//! Hosts of several generations: what guests get of their processors, and where they can go. The
//! hosts are emulated ones that are told to offer no more than an older one has.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use std::fs;

use e2e::BOOT;
use e2e::GUEST;
use e2e::TestLab;
use e2e::eventually;
use e2e::ha::boot;
use e2e::ha::cluster;
use e2e::ha::show;
use e2e::ha::unique;
use e2e::migrate::migrate;
use e2e::migrate::processes;
use serde_json::Value;

/// Every node begins as an old one.
const OLD: &str = "guest_cpu = \"Westmere-v1\"\nguest_machine = \"9.2\"\n";

async fn cpus(lab: &TestLab, by: &str) -> Value {
    lab.muster(by, &["cluster", "cpu", "--json"]).await.ok().json()
}

/// Gives a node another processor and another QEMU, as far as it knows.
async fn becomes(lab: &TestLab, node: &str, cpu: &str, machine: Option<&str>) {
    let file = lab.dir().join(format!("nodes/{node}/etc/config.toml"));
    let kept = fs::read_to_string(&file).unwrap();
    let mut lines: Vec<String> =
        kept.lines().filter(|it| !it.starts_with("guest_")).map(str::to_owned).collect();
    // Before any table of the file.
    lines.insert(0, format!("guest_cpu = \"{cpu}\""));
    if let Some(machine) = machine {
        lines.insert(0, format!("guest_machine = \"{machine}\""));
    }
    fs::write(&file, lines.join("\n")).unwrap();
    lab.run(&["restart", node]).await.ok();
}

fn on(view: &Value, node: &str) -> Value {
    let nodes = view["groups"][0]["nodes"].as_array().cloned().unwrap_or_default();
    nodes.into_iter().find(|it| it["name"] == node).unwrap_or_default()
}

fn has(list: &Value, what: &str) -> bool {
    list.as_array().is_some_and(|list| list.iter().any(|it| it == what))
}

/// What QEMU was started with.
fn started_with(vm: &str) -> String {
    let found = processes(vm);
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].1.replace('\0', " ")
}

#[tokio::test]
async fn a_guest_gets_what_all_hosts_have_and_goes_only_where_that_is() {
    let lab = cluster("2", OLD).await;
    let old = unique("old");
    boot(&lab, "n1", &old).await;
    let line = started_with(&old);
    assert!(line.contains("Nehalem-v1,+aes") && line.contains(",enforce"), "{line}");
    assert!(line.contains("pc-q35-9.2") && !line.contains("avx"), "{line}");

    // One host is replaced by a newer one: nothing changes for whom it is there already.
    becomes(&lab, "n1", "Haswell-v4", None).await;
    let view = eventually("the new host is known", GUEST, async || {
        let view = cpus(&lab, "n2").await;
        has(&on(&view, "n1")["more"], "avx2").then_some(view)
    })
    .await;
    assert!(has(&view["groups"][0]["baseline"], "aes"), "{view}");
    assert!(has(&on(&view, "n2")["lowers"], "avx2"), "{view}");
    assert_eq!(view["machine"], "pc-q35-9.2", "{view}");
    assert_eq!(view["vms"], Value::Array(Vec::new()), "nothing is to be said of any");

    // There and back, also though the newer host knows newer machine types.
    for to in ["n2", "n1"] {
        migrate(&lab, "n1", &old, to).await;
    }
    assert_eq!(show(&lab, "n2", &old).await.unwrap()["pinned"]["machine_type"], "pc-q35-9.2");

    // A machine that wants all of its host stays there, and is told so before a byte moves.
    lab.muster("n1", &["vm", "off", &old, "--yes"]).await.ok();
    lab.muster("n1", &["vm", "set", &old, "--cpu-compat", "node"]).await.ok();
    lab.muster("n1", &["vm", "start", &old]).await.ok();
    assert!(started_with(&old).contains("+avx2"), "{}", started_with(&old));
    let dry = lab.muster("n2", &["vm", "migrate", &old, "--to", "n2", "--dry-run"]).await;
    assert!(dry.code != 0 && (dry.out + &dry.err).contains("avx2"));
    let told = lab.muster("n1", &["vm", "migrate", &old, "--to", "n2"]).await;
    assert!(told.code != 0 && told.err.contains("lacks"), "{told:?}");
    let view = cpus(&lab, "n1").await;
    assert!(has(&view["vms"][0]["kept_from"], "n2"), "{view}");
    let plan = lab.muster("n1", &["node", "drain", "n1", "--dry-run", "--json"]).await.ok().json();
    assert!(plan.to_string().contains("processors"), "{plan}");

    // With the last old host gone, machines can have more, by a word of the administrator.
    let refused = lab.muster("n1", &["vm", "upgrade", &old, "--yes"]).await;
    assert!(refused.code != 0, "{refused:?}");
    becomes(&lab, "n2", "Haswell-v4", None).await;
    eventually("the other new host is known", GUEST, async || {
        (cpus(&lab, "n1").await["machine"] != "pc-q35-9.2").then_some(())
    })
    .await;
    migrate(&lab, "n1", &old, "n2").await;
    lab.muster("n1", &["vm", "off", &old, "--yes"]).await.ok();
    lab.muster("n1", &["vm", "upgrade", &old, "--yes"]).await.ok();
    lab.muster("n1", &["vm", "start", &old]).await.ok();
    let machine = show(&lab, "n1", &old).await.unwrap()["pinned"]["machine_type"].clone();
    let line = started_with(&old);
    assert!(machine != "pc-q35-9.2" && line.contains(machine.as_str().unwrap()), "{line}");
    lab.serial("n2", &old).await.expect("MUSTER-GUEST-READY", BOOT).await;
}
