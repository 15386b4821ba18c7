//! One machine through a list of faults, none of which may cost it: in a lab, with real daemons,
//! guards, QEMU and guest (issue: cuts of 3, 15 and 60 s, a lying fence device, loss of the leader, a
//! jumping clock; loss of power, a hang and a cut of 8 s are in `failover.rs`).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use std::time::Duration;

use e2e::TestLab;
use e2e::eventually;
use e2e::ha::Auditor;
use e2e::ha::PATIENT;
use e2e::ha::TAKEOVER;
use e2e::ha::answers_on;
use e2e::ha::boot;
use e2e::ha::cluster;
use e2e::ha::generation;
use e2e::ha::unique;
use e2e::ha::with_fence_device;
use serde_json::Value;

async fn status(lab: &TestLab, by: &str) -> Option<Value> {
    let said = lab.muster(by, &["cluster", "status", "--json"]).await;
    (said.code == 0).then(|| said.json())
}

/// The node that leads, as another one sees it.
async fn leader(lab: &TestLab, by: &str) -> Option<String> {
    let view = status(lab, by).await?;
    let nodes = view["nodes"].as_array()?;
    let leads = nodes.iter().find(|node| node["part"] == "leader" && node["reachable"] == true)?;
    Some(leads["name"].as_str()?.to_owned())
}

#[tokio::test]
async fn cuts_a_lying_fence_device_a_lost_leader_and_a_clock_cost_no_machine() {
    // A node that is cut off keeps its machines for 45 s; then its device is asked.
    let lab = cluster("3", &format!("{PATIENT}\nresiliency_s = 45")).await;
    with_fence_device(&lab, &["n1", "n2", "n3"]).await;
    let vm = unique("faults");
    boot(&lab, "n2", &vm).await;
    let run = generation(&lab, "n1", &vm).await;
    let auditor = Auditor::start(&vm);

    for seconds in [3, 15] {
        lab.run(&["isolate", "n2"]).await.ok();
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        lab.run(&["mend", "--all"]).await.ok();
        answers_on(&lab, "n1", &vm, "n2").await;
        assert_eq!(generation(&lab, "n1", &vm).await, run, "a cut of {seconds} s");
    }

    // The device switches another outlet: it says off, and the node goes on writing to the volume.
    lab.run(&["fence", "n2", "lies"]).await.ok();
    lab.run(&["isolate", "n2"]).await.ok();
    let begun = tokio::time::Instant::now();
    let why = eventually("the device was asked and not believed", TAKEOVER, async || {
        let by = leader(&lab, "n1").await.filter(|by| by != "n2")?;
        let view = lab.muster(&by, &["node", "fencing", "n2", "--json"]).await;
        let view = (view.code == 0).then(|| view.json())?;
        assert!(view["fenced"].is_null(), "it lives: {view}");
        view["failure"]["why"].as_str().map(str::to_owned)
    })
    .await;
    assert!(why.contains("still heard"), "{why}");
    tokio::time::sleep_until(begun + Duration::from_secs(60)).await;
    lab.run(&["fence", "n2", "works"]).await.ok();
    lab.run(&["mend", "--all"]).await.ok();
    answers_on(&lab, "n1", &vm, "n2").await;
    assert_eq!(generation(&lab, "n1", &vm).await, run, "a cut of 60 s, and a liar");

    let lost = eventually("somebody leads", TAKEOVER, async || leader(&lab, "n2").await).await;
    assert_ne!(lost, "n2", "a node that was cut off leads");
    let left = if lost == "n1" { "n3" } else { "n1" };
    lab.run(&["power-off", &lost]).await.ok();
    eventually("another one leads", TAKEOVER, async || {
        leader(&lab, left).await.filter(|leader| *leader != lost)
    })
    .await;
    lab.muster(left, &["vm", "set", &vm, "--priority", "high"]).await.ok();
    // Its clocks are a day ahead when it comes back.
    lab.run(&["clock", &lost, "--offset", "86400"]).await.ok();
    lab.run(&["power-on", &lost]).await.ok();
    eventually("all three vote", TAKEOVER, async || {
        let view = status(&lab, left).await?;
        (view["health"] == "healthy" && view["voters"] == 3).then_some(())
    })
    .await;
    answers_on(&lab, &lost, &vm, "n2").await;
    assert_eq!(generation(&lab, left, &vm).await, run, "the leader was another node");
    assert_eq!(auditor.verdict(), 1);
}
