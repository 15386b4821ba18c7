//! Machines that wait for each other are moved apart, and several nodes are emptied at once: in a lab, with
//! real QEMU and guests that take all the processors there are. What waits is measured, not pretended.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use e2e::BOOT;
use e2e::TestLab;
use e2e::eventually;
use e2e::ha::Auditor;
use e2e::ha::TAKEOVER;
use e2e::ha::answers_on;
use e2e::ha::cluster;
use e2e::ha::show;
use e2e::ha::unique;
use serde_json::Value;

/// Where each of them is.
async fn places(lab: &TestLab, vms: &[String]) -> Vec<String> {
    let mut places = Vec::new();
    for vm in vms {
        let view = show(lab, "n2", vm).await.unwrap();
        places.push(view["node"].as_str().unwrap().to_owned());
    }
    places
}

#[tokio::test]
async fn machines_that_wait_are_moved_apart_and_nodes_are_emptied_together() {
    let lab = cluster("3", "").await;
    let vms = ["first", "second", "third"].map(unique);
    for vm in &vms {
        let create = [
            "vm", "create", vm, "--image", "tiny", "--memory", "128M", "--volume", "shared",
            "--start",
        ];
        lab.muster("n1", &create).await.ok();
    }
    for vm in &vms {
        answers_on(&lab, "n1", vm, "n1").await;
    }
    let auditors = vms.each_ref().map(|vm| Auditor::start(vm));
    for vm in &vms {
        let mut serial = lab.serial("n1", vm).await;
        serial.expect("MUSTER-GUEST-READY", BOOT).await;
        serial.run("(while :; do :; done > /dev/null 2>&1 &)").await;
    }
    // Asked of one that has none of them.
    let found = eventually("n1 is found to be crowded", TAKEOVER, async || {
        let said = lab.muster("n2", &["cluster", "balance", "--dry-run", "--json"]).await;
        let view: Value = (said.code == 0).then(|| said.json())?;
        eprintln!("{}", view["nodes"]);
        view["steps"].get(0).cloned()
    })
    .await;
    assert_eq!(found["from"], "n1", "{found}");
    assert!(found["why"].as_str().unwrap().contains("waits for a processor"), "{found}");
    assert_eq!(found["predicted"]["converges"], true, "{found}");
    assert_eq!(places(&lab, &vms).await, ["n1", "n1", "n1"], "it was only looked at");
    lab.muster("n2", &["cluster", "balance"]).await.ok();
    let now = places(&lab, &vms).await;
    assert_eq!(now.iter().filter(|node| *node == "n1").count(), 2, "{now:?}");

    let nodes = ["cluster", "evacuate", "n1", "n2"];
    let plan = lab.muster("n3", &[&nodes[..], &["--dry-run", "--json"]].concat()).await.ok().json();
    let steps: Vec<&Value> = plan["plans"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|it| it["steps"].as_array().unwrap())
        .collect();
    assert_eq!(steps.len(), now.iter().filter(|node| *node != "n3").count(), "{plan}");
    assert!(steps.iter().all(|step| step["to"] == "n3"), "{plan}");
    assert_eq!(plan["estimate"]["vms"], steps.len(), "{plan}");
    assert!(plan["estimate"]["total_ms"].as_u64().unwrap() > 0, "{plan}");
    lab.muster("n1", &nodes).await.ok();
    for vm in &vms {
        answers_on(&lab, "n1", vm, "n3").await;
    }
    for auditor in auditors {
        assert_eq!(auditor.verdict(), 1);
    }
}
