//! Machines are started on another node when theirs is lost, and never run twice: in a lab, with
//! real daemons, guards, QEMU and guests. Who runs what is read from the process table, not from
//! what any daemon says.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use std::fs;
use std::time::Duration;
use std::time::Instant;

use e2e::GUEST;
use e2e::TestLab;
use e2e::eventually;
use e2e::ha::Auditor;
use e2e::ha::PATIENT;
use e2e::ha::TAKEOVER;
use e2e::ha::answers_elsewhere;
use e2e::ha::answers_on;
use e2e::ha::boot;
use e2e::ha::cluster;
use e2e::ha::generation;
use e2e::ha::show;
use e2e::ha::unique;
use e2e::ha::with_fence_device;

#[tokio::test]
async fn a_machine_answers_elsewhere_after_its_host_lost_power() {
    let lab = cluster("3", "").await;
    with_fence_device(&lab, &["n1", "n2", "n3"]).await;
    let vm = unique("power");
    boot(&lab, "n2", &vm).await;
    let waits = unique("waits");
    let create = ["vm", "create", &waits, "--memory", "64M", "--volume", "shared"];
    lab.muster("n2", &create).await.ok();
    lab.muster("n2", &["vm", "set", &waits, "--after", &vm]).await.ok();
    lab.muster("n2", &["vm", "start", &waits]).await.ok();
    eventually("the state knows that its guest works", GUEST, async || {
        let view = show(&lab, "n1", &vm).await?;
        (view["answered"] == view["generation"]).then_some(())
    })
    .await;
    let auditor = Auditor::start(&vm);
    let began = Instant::now();
    lab.run(&["power-off", "n2"]).await.ok();
    eventually("the one that waits was taken over", TAKEOVER, async || {
        show(&lab, "n1", &waits).await.filter(|view| view["node"] != "n2").map(drop)
    })
    .await;
    let first = show(&lab, "n1", &vm).await.unwrap();
    assert_eq!(first["guest"]["heartbeat"], "ok", "a process is not yet a guest that works");
    let to = answers_elsewhere(&lab, "n1", &vm, "n2").await;
    eprintln!("{vm} answers on {to} after {:?}", began.elapsed());
    // The host comes back, and gets its old machine not.
    lab.run(&["power-on", "n2"]).await.ok();
    eventually("n2 takes part again", TAKEOVER, async || {
        let nodes = lab.muster("n1", &["node", "fencing", "n2", "--json"]).await;
        (nodes.code == 0 && nodes.json()["fenced"].is_null()).then_some(())
    })
    .await;
    answers_on(&lab, "n2", &vm, &to).await;
    assert_eq!(auditor.verdict(), 1);
}

#[tokio::test]
async fn a_short_cut_restarts_nothing() {
    let lab = cluster("3", PATIENT).await;
    with_fence_device(&lab, &["n1", "n2", "n3"]).await;
    let vm = unique("cut");
    boot(&lab, "n2", &vm).await;
    let run = generation(&lab, "n1", &vm).await;
    let auditor = Auditor::start(&vm);
    // It beats on the volume all the time: it is only cut off (FEATURES.md D2).
    lab.run(&["isolate", "n2"]).await.ok();
    tokio::time::sleep(Duration::from_secs(8)).await;
    lab.run(&["mend", "--all"]).await.ok();
    answers_on(&lab, "n1", &vm, "n2").await;
    assert_eq!(generation(&lab, "n1", &vm).await, run, "a cut of eight seconds restarts nothing");
    assert_eq!(auditor.verdict(), 1);
}

/// It hangs: neither heartbeats nor beats.
#[tokio::test]
async fn a_hung_host_is_fenced_and_its_machine_answers_elsewhere() {
    let lab = cluster("3", "beatless_ms = 20000").await;
    with_fence_device(&lab, &["n1", "n2", "n3"]).await;
    let vm = unique("hung");
    boot(&lab, "n2", &vm).await;
    let auditor = Auditor::start(&vm);
    lab.run(&["freeze", "n2"]).await.ok();
    let to = answers_elsewhere(&lab, "n1", &vm, "n2").await;
    assert_ne!(to, "n2");
    assert_eq!(auditor.verdict(), 1);
}

#[tokio::test]
async fn without_a_fence_device_the_guard_ends_a_machine_before_it_runs_elsewhere() {
    let lab = cluster("3", "lease_ms = 8000\nguard_margin_ms = 3000").await;
    let vm = unique("guard");
    boot(&lab, "n2", &vm).await;
    let auditor = Auditor::start(&vm);
    lab.run(&["isolate", "n2"]).await.ok();
    answers_elsewhere(&lab, "n1", &vm, "n2").await;
    lab.run(&["mend", "--all"]).await.ok();
    eventually("n2 takes part again", TAKEOVER, async || {
        let nodes = lab.muster("n1", &["node", "fencing", "n2", "--json"]).await;
        (nodes.code == 0 && nodes.json()["fenced"].is_null()).then_some(())
    })
    .await;
    assert_eq!(auditor.verdict(), 1);
}

#[tokio::test]
async fn a_drained_node_gives_its_machine_away_and_its_guest_goes_on() {
    let lab = cluster("2", "").await;
    let vm = unique("drain");
    boot(&lab, "n2", &vm).await;
    let run = generation(&lab, "n1", &vm).await;
    let auditor = Auditor::start(&vm);
    let plan = lab.muster("n1", &["node", "drain", "n2", "--dry-run", "--json"]).await.ok().json();
    assert_eq!(
        (&plan["steps"][0]["vm"], &plan["steps"][0]["to"]),
        (&vm.as_str().into(), &"n1".into())
    );
    lab.muster("n1", &["node", "drain", "n2"]).await.ok();
    answers_on(&lab, "n2", &vm, "n1").await;
    assert!(generation(&lab, "n1", &vm).await > run);
    let full = lab.muster("n1", &["vm", "move", &vm, "--to", "n2"]).await;
    assert_ne!(full.code, 0, "it is drained: {full:?}");
    lab.muster("n1", &["node", "resume", "n2"]).await.ok();
    lab.muster("n1", &["vm", "move", &vm, "--to", "n2"]).await.ok();
    answers_on(&lab, "n1", &vm, "n2").await;
    // As its host does when it is switched off, and after it was switched on.
    let list = lab.dir().join("stopped.json");
    let list = ["--list", list.to_str().unwrap()];
    lab.muster("n2", &[&["node", "stop-machines"], &list[..]].concat()).await.ok();
    answers_on(&lab, "n2", &vm, "n1").await;
    let run = generation(&lab, "n1", &vm).await;
    let mode = async || lab.muster("n1", &["node", "show", "n2", "--json"]).await.ok().json();
    assert_eq!(mode().await["mode"], "drain");
    lab.muster("n2", &[&["node", "start-machines"], &list[..]].concat()).await.ok();
    assert_eq!(mode().await["mode"], "active");
    answers_on(&lab, "n1", &vm, "n1").await;
    assert_eq!(generation(&lab, "n1", &vm).await, run, "it has found another home");
    assert_eq!(auditor.verdict(), 1);
}

/// Two nodes cannot tell which of them is left; a witness can. First the leader is lost, then,
/// after it came back, the other one.
#[tokio::test]
async fn two_nodes_and_a_witness_survive_the_loss_of_either() {
    let lab = cluster("2", "beatless_ms = 20000").await;
    with_fence_device(&lab, &["n1", "n2"]).await;
    fs::create_dir(lab.dir().join("share/witness")).unwrap();
    let place = ["cluster", "witness", "set", "--directory", "/muster/share/witness"];
    lab.muster("n1", &place).await.ok();
    whole_with_witness(&lab, "n1").await;
    let vm = unique("either");
    boot(&lab, "n1", &vm).await;
    let auditor = Auditor::start(&vm);
    for (lost, left) in [("n1", "n2"), ("n2", "n1")] {
        lab.run(&["power-off", lost]).await.ok();
        assert_eq!(answers_elsewhere(&lab, left, &vm, lost).await, left);
        lab.run(&["power-on", lost]).await.ok();
        whole_with_witness(&lab, left).await;
    }
    assert_eq!(auditor.verdict(), 1);
}

/// The same by a witness on a LUN, without machines; and the loss of the witness is said and mended.
#[tokio::test]
async fn a_witness_on_a_lun_decides_and_its_loss_is_said() {
    let lab = TestLab::up(&["--nodes", "2", "--fake", "--san", "320M", "--san", "320M"]).await;
    let set =
        async |path: &str| lab.muster("n1", &["cluster", "witness", "set", "--block", path]).await;
    // Neither a file nor a device that holds something is taken.
    for (path, word) in
        [("/muster/etc/config.toml", "below /dev"), ("/muster/san/lun0", "holds something")]
    {
        let scribble = "echo mine | dd of=/muster/san/lun0 conv=fsync";
        lab.run(&["exec", "n1", "--", "sh", "-c", scribble]).await.ok();
        let said = set(path).await;
        assert!(said.code != 0 && said.err.contains(word), "{said:?}");
    }
    set("/muster/san/lun1").await.ok();
    whole_with_witness(&lab, "n1").await;
    for (lost, left) in [("n1", "n2"), ("n2", "n1")] {
        lab.run(&["power-off", lost]).await.ok();
        // A read needs a majority.
        eventually("the other one goes on", TAKEOVER, async || {
            (lab.muster(left, &["vm", "list"]).await.code == 0).then_some(())
        })
        .await;
        lab.run(&["power-on", lost]).await.ok();
        whole_with_witness(&lab, left).await;
    }
    lab.run(&["san", "cut", "n1"]).await.ok();
    lab.run(&["san", "cut", "n2"]).await.ok();
    for node in ["n1", "n2"] {
        eventually("the witness is missed", TAKEOVER, async || {
            let view = lab.muster(node, &["cluster", "status", "--json"]).await.ok().json();
            (view["witness"]["reachable"] == false && view["health"] != "healthy").then_some(())
        })
        .await;
        lab.muster(node, &["vm", "list"]).await.ok();
    }
    lab.run(&["san", "mend", "n1"]).await.ok();
    lab.run(&["san", "mend", "n2"]).await.ok();
    whole_with_witness(&lab, "n2").await;
}

/// Waits until both nodes and the witness vote.
async fn whole_with_witness(lab: &TestLab, by: &str) {
    eventually("two nodes and the witness vote", TAKEOVER, async || {
        let said = lab.muster(by, &["cluster", "status", "--json"]).await;
        let view = (said.code == 0).then(|| said.json())?;
        (view["health"] == "healthy" && view["voters"] == 3 && view["may_lose"] == 1).then_some(())
    })
    .await;
}

/// Two of three hosts burn down. What is left is refused while anything speaks against it, then goes
/// on with all it knew; what comes back after all, a majority of the old voters, does not.
#[tokio::test]
async fn a_forced_quorum_goes_on_and_what_was_given_up_does_not() {
    let lab = cluster("3", "").await;
    let vm = unique("forced");
    boot(&lab, "n2", &vm).await;
    let status = async |by: &str| {
        let said = lab.muster(by, &["cluster", "status", "--json"]).await;
        (said.code == 0).then(|| said.json())
    };
    let name = status("n1").await.unwrap()["name"].as_str().unwrap().to_owned();
    let force = async |lost: &[&str], typed: &str| {
        let mut args = vec!["cluster", "force-quorum", "--typed", typed];
        lost.iter().for_each(|node| args.extend(["--lost", node]));
        lab.muster("n1", &args).await
    };
    let said = force(&["n2"], &name).await;
    assert!(said.err.contains("there is a majority"), "{said:?}");
    let auditor = Auditor::start(&vm);
    for node in ["n2", "n3"] {
        lab.run(&["power-off", node]).await.ok();
    }
    // Silence needs its time, first that of the leader and then that of the others.
    eventually("only the name of n3 is missing", TAKEOVER, async || {
        let said = force(&["n2"], &name).await;
        assert_ne!(said.code, 0, "{said:?}");
        said.err.contains("--lost n3").then_some(())
    })
    .await;
    let said = force(&["n2", "n3"], "another").await;
    assert!(said.code != 0 && said.err.contains("is not that of the cluster"), "{said:?}");
    let forced = eventually("the quorum is forced", TAKEOVER, async || {
        let said = force(&["n2", "n3"], &name).await;
        (said.code == 0).then_some(said)
    })
    .await;
    assert!(forced.out.contains("n1 goes on without n2, n3"), "{forced:?}");
    assert_eq!(answers_elsewhere(&lab, "n1", &vm, "n2").await, "n1");
    let run = generation(&lab, "n1", &vm).await;
    // One comes back that reaches nobody: the volume tells it. The other one is told by n1.
    lab.run(&["cut", "n1", "n3"]).await.ok();
    for node in ["n3", "n2"] {
        lab.run(&["power-on", node]).await.ok();
    }
    for node in ["n3", "n2"] {
        eventually(&format!("{node} knows that it is out"), TAKEOVER, async || {
            status(node).await.filter(|view| view["health"] == "gone").map(drop)
        })
        .await;
    }
    lab.run(&["mend", "--all"]).await.ok();
    answers_on(&lab, "n1", &vm, "n1").await;
    assert_eq!(generation(&lab, "n1", &vm).await, run, "it was left in peace");
    assert_eq!(auditor.verdict(), 1);
    // A host of those comes back as a new node.
    for node in ["n2", "n3"] {
        lab.muster("n1", &["cluster", "evict", node, "--yes"]).await.ok();
    }
    lab.muster("n2", &["cluster", "leave", "--force", "--yes"]).await.ok();
    let token = lab.muster("n1", &["cluster", "token", "--json"]).await.ok().json();
    let token = token["text"].as_str().unwrap().to_owned();
    eventually("n2 joins again", TAKEOVER, async || {
        let said = lab.muster("n2", &["cluster", "join", &token]).await;
        (said.code == 0 || said.err.contains("in_cluster")).then_some(())
    })
    .await;
    eventually("two nodes vote", TAKEOVER, async || {
        let view = status("n1").await?;
        (view["health"] == "healthy" && view["voters"] == 2).then_some(())
    })
    .await;
}
