//! `muster lab`: what it makes is there and apart, its faults take, and nothing of it stays.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use std::collections::BTreeSet;
use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use e2e::GUEST;
use e2e::Netns;
use e2e::OWN;
use e2e::Ran;
use e2e::TestLab;
use e2e::eventually;
use e2e::guest_image;
use serde_json::Value;

/// Nothing of a lab is left; the kernel takes namespaces apart in its own time.
async fn nothing_remains(lab: &TestLab, namespaces: &BTreeSet<u64>) {
    let mut last = BTreeSet::new();
    for _ in 0..100 {
        last = lab.remains(namespaces);
        if last.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("left: {last:#?}");
}

fn refused(ran: &Ran, code: i32, word: &str) {
    assert_eq!(ran.code, code, "{ran:?}");
    assert!(ran.err.contains(word) && ran.err.contains("hint:"), "{ran:?}");
}

#[tokio::test]
async fn three_nodes_answer_are_apart_and_leave_nothing() {
    let lab = TestLab::up(&["--no-cluster", "--nodes", "3", "--fake"]).await;
    for name in ["n1", "n2", "n3"] {
        let said = lab.muster(name, &["node", "list", "--json"]).await.ok().json();
        assert_eq!(said[0]["name"], name, "{said}");
        let host = lab.run(&["exec", name, "--", "hostname"]).await.ok();
        assert_eq!(host.out.trim(), name);
        // Each finds its own daemon at the usual place, and its own data.
        let own = lab.run(&["exec", name, "--", "muster", "node", "list", "--json"]).await.ok();
        assert_eq!(own.json()[0]["name"], name);
        let write =
            format!("echo {name} > /var/lib/muster/mine; echo {name} > /muster/share/{name}");
        lab.run(&["exec", name, "--", "sh", "-c", &write]).await.ok();
    }
    let read = "cat /var/lib/muster/mine /muster/share/n1 /muster/share/n2";
    let read = lab.run(&["exec", "n3", "--", "sh", "-c", read]).await.ok();
    assert_eq!(read.out.split_whitespace().collect::<Vec<_>>(), ["n3", "n1", "n2"]);
    // The command's exit code is its own.
    assert_eq!(lab.run(&["exec", "n1", "--", "sh", "-c", "exit 7"]).await.code, 7);
    // All that a node has is in its own control group and network.
    let node = lab.node("n2").await;
    assert_eq!(node["answers"], true, "{node}");
    let pids = node["processes"].as_array().unwrap();
    assert_eq!(pids.len(), 2, "the daemon and the guard: {node}");
    let links = lab.run(&["exec", "n2", "--", "ip", "-o", "link", "show"]).await.ok().out;
    for device in ["mgmt0", "clus0", "migr0", "vm0", "lan0"] {
        assert!(links.contains(device), "{device} in {links}");
    }
    let probes = lab.run(&["probe", "--json"]).await.ok().json();
    let probes = probes.as_array().unwrap();
    assert_eq!(probes.len(), 24);
    assert!(probes.iter().all(|one| one["passes"] == true), "{probes:?}");
    refused(&lab.run(&["up", "--no-cluster", "--nodes", "3", "--fake"]).await, 5, "up already");

    let namespaces = lab.namespaces();
    assert!(namespaces.len() >= 10, "{namespaces:?}");
    lab.run(&["down"]).await.ok();
    nothing_remains(&lab, &namespaces).await;
    refused(&lab.run(&["down"]).await, 3, "no lab");
    refused(&lab.run(&["status"]).await, 3, "no lab");
    assert!(!lab.dir().exists());
}

/// Waits until a node sees its cluster so, by the command that a person would use.
async fn sees(lab: &TestLab, node: &str, what: &str, so: impl Fn(&Value) -> bool) -> Value {
    eventually(&format!("{node} sees: {what}"), GUEST, async || {
        let said = lab.muster(node, &["cluster", "status", "--json"]).await;
        (said.code == 0).then(|| said.json()).filter(|view| so(view))
    })
    .await
}

#[tokio::test]
async fn a_lab_is_one_cluster_that_outlives_its_leader_and_a_network() {
    let lab = TestLab::new();
    let report = lab.run(&["--json", "up", "--nodes", "3", "--fake"]).await.ok().json();
    assert!(report["formed_ms"].as_u64().is_some(), "{report}");
    eprintln!("{report}");
    let whole = |view: &Value| view["health"] == "healthy" && view["voters"] == 3;
    let view = sees(&lab, "n2", "all vote", whole).await;
    assert_eq!(view["name"], "lab");
    lab.muster("n3", &["network", "create", "a", "--subnet", "10.78.0.0/24"]).await.ok();
    let seen = lab.muster("n1", &["network", "show", "a", "--json"]).await.ok().json();
    assert_eq!(seen["name"], "a");
    // The cluster's own network is gone; the other one does.
    for (a, b) in [("n1", "n2"), ("n1", "n3"), ("n2", "n3")] {
        lab.run(&["cut", a, b, "--network", "cluster"]).await.ok();
    }
    sees(&lab, "n1", "all answer by the other network", whole).await;
    lab.muster("n2", &["network", "create", "b", "--subnet", "10.79.0.0/24"]).await.ok();
    lab.run(&["mend", "--all"]).await.ok();
    // The leader loses power.
    let view = sees(&lab, "n1", "all vote", whole).await;
    let name_of = |view: &Value, id: &Value| {
        let nodes = view["nodes"].as_array().unwrap();
        let node = nodes.iter().find(|node| node["id"] == *id).unwrap();
        node["name"].as_str().unwrap().to_owned()
    };
    let dead = name_of(&view, &view["leader"]);
    lab.run(&["power-off", &dead]).await.ok();
    let left: Vec<_> = ["n1", "n2", "n3"].into_iter().filter(|node| *node != dead).collect();
    let other = |now: &Value| !now["leader"].is_null() && now["leader"] != view["leader"];
    for node in &left {
        let now = sees(&lab, node, "another leads", other).await;
        assert_eq!(now["voters"], 3, "{now}");
    }
    lab.muster(left[0], &["network", "create", "c", "--subnet", "10.80.0.0/24"]).await.ok();
    lab.run(&["power-on", &dead]).await.ok();
    sees(&lab, &dead, "all are back", whole).await;
    lab.muster(&dead, &["network", "show", "c"]).await.ok();
    // A lab that lost all power is the same cluster again.
    let before = sees(&lab, "n1", "all are back", whole).await;
    for node in ["n1", "n2", "n3"] {
        lab.run(&["power-off", node]).await.ok();
    }
    for node in ["n1", "n2", "n3"] {
        lab.run(&["power-on", node]).await.ok();
    }
    let after = sees(&lab, "n1", "all are back", whole).await;
    assert_eq!(after["id"], before["id"]);
    let seen = lab.muster("n1", &["network", "list", "--json"]).await.ok().json();
    let names: Vec<_> = seen.as_array().unwrap().iter().map(|it| &it["name"]).collect();
    assert_eq!(names, ["a", "b", "c", "nat"]);
}

#[tokio::test]
async fn cuts_and_isolation_stop_packets_in_the_directions_that_were_named() {
    let lab = TestLab::up(&["--no-cluster", "--nodes", "3", "--fake"]).await;
    lab.run(&["cut", "n1", "n2", "--network", "cluster", "--one-way"]).await.ok();
    assert!(!lab.arrives("n1", "n2", "cluster").await);
    assert!(lab.arrives("n2", "n1", "cluster").await);
    assert!(lab.arrives("n1", "n2", "mgmt").await);
    assert!(lab.arrives("n1", "n3", "cluster").await);
    let status = lab.status().await;
    assert_eq!(status["faults"][0], "nothing passes from n1 to n2 on cluster");

    lab.run(&["cut", "n1", "n2"]).await.ok();
    for wire in ["mgmt", "cluster", "migration", "vm"] {
        assert!(!lab.arrives("n1", "n2", wire).await, "{wire}");
        assert!(!lab.arrives("n2", "n1", wire).await, "{wire}");
    }
    lab.run(&["mend", "n1", "n2", "--network", "mgmt"]).await.ok();
    assert!(lab.arrives("n1", "n2", "mgmt").await);
    assert!(!lab.arrives("n1", "n2", "cluster").await);

    let report = lab.run(&["--json", "isolate", "n3", "--in"]).await.ok().json();
    assert_eq!(report["checked"].as_array().unwrap().len(), 16, "{report}");
    assert!(!lab.arrives("n1", "n3", "mgmt").await);
    assert!(lab.arrives("n3", "n1", "mgmt").await);
    lab.run(&["isolate", "n3", "--out"]).await.ok();
    assert!(!lab.arrives("n3", "n1", "mgmt").await);

    lab.run(&["slow", "n2", "--rate", "1M"]).await.ok();
    let shown = lab.run(&["exec", "n2", "--", "tc", "qdisc", "show", "dev", "clus0"]).await.ok();
    assert!(shown.out.contains("tbf") && shown.out.contains("1Mbit"), "{shown:?}");
    lab.run(&["mend", "--all"]).await.ok();
    let shown = lab.run(&["exec", "n2", "--", "tc", "qdisc", "show", "dev", "clus0"]).await.ok();
    assert!(!shown.out.contains("tbf"), "{shown:?}");
    assert_eq!(lab.status().await["faults"], Value::Array(Vec::new()));
    let probes = lab.run(&["probe", "--json"]).await.ok().json();
    assert!(probes.as_array().unwrap().iter().all(|one| one["passes"] == true), "{probes}");

    refused(&lab.run(&["cut", "n1", "n1"]).await, 2, "itself");
    refused(&lab.run(&["cut", "n1", "n7"]).await, 3, "n7");
    assert_eq!(lab.run(&["cut", "n1", "n2", "--network", "wifi"]).await.code, 2);
}

/// Gives a node a running machine; returns the process of its QEMU.
async fn start_guest(lab: &TestLab, node: &str) -> u64 {
    let image = guest_image("tiny.img").display().to_string();
    lab.muster(node, &["image", "import", "tiny", &image, "--format", "raw"]).await.ok();
    let create =
        ["vm", "create", "g", "--image", "tiny", "--memory", "128M", "--no-network", "--start"];
    lab.muster(node, &create).await.ok();
    guest_pid(lab, node).await
}

async fn guest_pid(lab: &TestLab, node: &str) -> u64 {
    eventually(&format!("the guest of {node} runs"), GUEST, async || {
        let shown = lab.muster(node, &["vm", "show", "g", "--json"]).await;
        (shown.code == 0).then(|| shown.json()["run"]["pid"].as_u64()).flatten()
    })
    .await
}

async fn generation(lab: &TestLab, node: &str) -> u64 {
    let shown = lab.muster(node, &["vm", "show", "g", "--json"]).await.ok().json();
    shown["generation"].as_u64().unwrap()
}

fn lives(pid: u64) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test]
async fn a_node_without_power_loses_its_machines_and_no_other_node_does() {
    let lab = TestLab::up(&["--no-cluster", "--nodes", "2"]).await;
    let (first, second) = (start_guest(&lab, "n1").await, start_guest(&lab, "n2").await);
    let before = lab.node("n2").await;
    let (node, old) = (lab.node("n1").await, generation(&lab, "n1").await);
    assert_eq!((&node["machines"], &before["machines"]), (&1.into(), &1.into()));
    assert!(node["processes"].as_array().unwrap().contains(&first.into()), "{node}");

    // A command in the node goes with its power, too.
    let mut shell = lab.command();
    let mut shell = shell.args(["exec", "n1", "--", "sleep", "600"]).spawn().unwrap();
    eventually("the command runs in the node", OWN, async || {
        let pids = lab.node("n1").await["processes"].as_array().unwrap().clone();
        pids.contains(&shell.id().into()).then_some(())
    })
    .await;
    lab.run(&["power-off", "n1"]).await.ok();
    for pid in node["processes"].as_array().unwrap() {
        assert!(!lives(pid.as_u64().unwrap()), "{pid} of {node}");
    }
    assert!(!shell.wait().unwrap().success());
    let off = lab.node("n1").await;
    assert_eq!((&off["power"], &off["daemon"]), (&"off".into(), &false.into()));
    assert!(!lab.dir().join("nodes/n1/run/muster").exists());
    assert!(lives(second));
    assert_eq!(lab.node("n2").await["processes"], before["processes"]);
    refused(&lab.run(&["power-off", "n1"]).await, 5, "no power already");
    refused(&lab.run(&["exec", "n1", "--", "true"]).await, 5, "no power");
    refused(&lab.run(&["freeze", "n1"]).await, 5, "no power");

    // After a boot the machine is started anew; nothing of the old run is taken for alive.
    lab.run(&["power-on", "n1"]).await.ok();
    let pid = guest_pid(&lab, "n1").await;
    assert_ne!(pid, first);
    assert!(generation(&lab, "n1").await > old);
    assert_eq!(lab.node("n1").await["machines"], 1);
    assert_eq!(lab.node("n2").await["processes"], before["processes"]);
    refused(&lab.run(&["power-on", "n1"]).await, 5, "power already");

    let namespaces = lab.namespaces();
    lab.run(&["down"]).await.ok();
    assert!(!lives(pid) && !lives(second));
    nothing_remains(&lab, &namespaces).await;
}

#[tokio::test]
async fn a_frozen_node_is_silent_and_goes_on_where_it_was() {
    let lab = TestLab::up(&["--no-cluster", "--nodes", "2", "--fake"]).await;
    let before = lab.node("n1").await["processes"].clone();
    lab.run(&["freeze", "n1"]).await.ok();
    let frozen = lab.node("n1").await;
    assert_eq!((&frozen["power"], &frozen["daemon"]), (&"frozen".into(), &true.into()));
    let mut asked = std::process::Command::new("timeout");
    asked.args(["2"]).arg(e2e::muster_bin()).arg("--socket");
    asked.arg(frozen["socket"].as_str().unwrap()).args(["node", "list"]).stdout(Stdio::null());
    assert_eq!(asked.status().unwrap().code(), Some(124), "it answered");
    assert_eq!(lab.node("n2").await["answers"], true);
    refused(&lab.run(&["exec", "n1", "--", "true"]).await, 5, "lab thaw");
    lab.run(&["thaw", "n1"]).await.ok();
    eventually("n1 answers", OWN, async || (lab.node("n1").await["answers"] == true).then_some(()))
        .await;
    assert_eq!(lab.node("n1").await["processes"], before);
    // A frozen node dies like any other.
    lab.run(&["freeze", "n1"]).await.ok();
    lab.run(&["power-off", "n1"]).await.ok();
    assert_eq!(lab.node("n1").await["processes"], Value::Array(Vec::new()));
}

#[tokio::test]
async fn killed_at_any_step_of_up_it_leaves_nothing_after_down() {
    let lab = TestLab::new();
    let steps = ["switches", "n1:", "n2:", "n3:"];
    for step in steps {
        let mut up = lab.command();
        let up = up.args(["up", "--no-cluster", "--nodes", "3", "--fake"]).stderr(Stdio::piped());
        let mut child = up.stdout(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains(step)), "{step}");
        child.kill().unwrap();
        child.wait().unwrap();
        let namespaces = lab.namespaces();
        lab.run(&["down"]).await.ok();
        nothing_remains(&lab, &namespaces).await;
    }
    // What was half made can also be made whole.
    let mut up = lab.command();
    up = {
        up.args(["up", "--no-cluster", "--nodes", "3", "--fake"]).stderr(Stdio::piped());
        up
    };
    let mut child = up.stdout(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("n2:")));
    child.kill().unwrap();
    child.wait().unwrap();
    refused(&lab.run(&["probe"]).await, 5, "not up");
    let repaired =
        lab.run(&["--json", "up", "--no-cluster", "--nodes", "3", "--fake"]).await.ok().json();
    assert_eq!(repaired["repaired"], true);
    assert_eq!(lab.node("n3").await["answers"], true);
}

#[tokio::test]
async fn killed_at_any_moment_of_up_it_leaves_nothing_after_down() {
    let lab = TestLab::new();
    for after_ms in [1, 15, 40, 90, 160, 300, 700] {
        let mut up = lab.command();
        up.args(["up", "--no-cluster", "--nodes", "2", "--fake"])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = up.spawn().unwrap();
        // Not a wait for anything: any moment is as good.
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let namespaces = lab.namespaces();
        let down = lab.run(&["down"]).await;
        assert!(down.code == 0 || down.err.contains("no lab"), "{after_ms} ms: {down:?}");
        let _ = fs::remove_dir(lab.dir());
        nothing_remains(&lab, &namespaces).await;
    }
}

#[tokio::test]
async fn an_interrupted_up_clears_up_by_itself() {
    let lab = TestLab::new();
    let mut up = lab.command();
    let mut up = up
        .args(["up", "--no-cluster", "--nodes", "3", "--fake"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut reader = BufReader::new(up.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("n1:") {
        line.clear();
        assert_ne!(reader.read_line(&mut line).unwrap(), 0);
    }
    let namespaces = lab.namespaces();
    let sent = std::process::Command::new("kill").args(["-INT", &up.id().to_string()]).status();
    assert!(sent.unwrap().success());
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    assert_eq!(up.wait().unwrap().code(), Some(130), "{rest}");
    nothing_remains(&lab, &namespaces).await;
}

#[tokio::test]
async fn labs_do_not_meet() {
    let (a, b) = (TestLab::new(), TestLab::new());
    a.run(&["up", "--no-cluster", "--nodes", "2", "--fake"]).await.ok();
    b.run(&["up", "--no-cluster", "--nodes", "2", "--fake"]).await.ok();
    let namespaces = a.namespaces();
    a.run(&["isolate", "n1"]).await.ok();
    assert!(b.arrives("n1", "n2", "cluster").await);
    a.run(&["down"]).await.ok();
    nothing_remains(&a, &namespaces).await;
    assert_eq!(b.node("n1").await["answers"], true);
    assert!(b.arrives("n1", "n2", "cluster").await);
    // One whose state is damaged says so, and can still be ended.
    fs::write(b.dir().join("lab.json"), "{").unwrap();
    let namespaces = b.namespaces();
    refused(&b.run(&["status"]).await, 1, "damaged");
    refused(&b.run(&["down"]).await, 1, "--force");
    b.run(&["down", "--force"]).await.ok();
    nothing_remains(&b, &namespaces).await;
}

#[tokio::test]
async fn what_cannot_be_a_lab_is_refused_before_anything_is_made() {
    let lab = TestLab::new();
    refused(&lab.run(&["up", "--nodes", "0"]).await, 2, "0 nodes");
    refused(&lab.run(&["up", "--nodes", "65"]).await, 2, "65 nodes");
    assert_eq!(lab.run(&["up", "--net", "8.8.0.0/16"]).await.code, 2);
    assert!(!lab.dir().exists());
    fs::create_dir(lab.dir()).unwrap();
    fs::write(lab.dir().join("precious"), "").unwrap();
    refused(&lab.run(&["up", "--fake"]).await, 5, "precious");
    refused(&lab.run(&["down"]).await, 3, "no lab");
    assert!(lab.dir().join("precious").exists());
    fs::remove_dir_all(lab.dir()).unwrap();
}

/// Calls the fence agent in n1; what it says, and its exit code.
async fn fence(lab: &TestLab, options: &str) -> (i32, String) {
    let mut command = lab.command();
    command.args(["exec", "n1", "--", "timeout", "5", "fence_muster_lab"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(options.as_bytes()).unwrap();
    let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await.unwrap();
    let output = output.unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8_lossy(&said).into_owned())
}

#[tokio::test]
async fn the_fence_device_works_fails_hangs_and_lies_as_it_is_told() {
    let lab = TestLab::up(&["--no-cluster", "--nodes", "2", "--fake"]).await;
    let (code, said) = fence(&lab, "action=metadata\n").await;
    assert!(code == 0 && said.contains("<action name=\"off\"/>"), "{said}");
    assert_eq!(fence(&lab, "action=monitor\n").await.0, 0);
    assert_eq!(fence(&lab, "action=status\nplug=n2\n").await.0, 0);
    assert_eq!(fence(&lab, "action=off\nplug=n9\n").await.0, 1);
    assert_eq!(fence(&lab, "action=dance\nplug=n2\n").await.0, 1);
    for (mood, code) in [("fails", 1), ("hangs", 124), ("lies", 0)] {
        lab.run(&["fence", "n2", mood]).await.ok();
        let (ended, said) = fence(&lab, "action=off\nplug=n2\n").await;
        assert_eq!(ended, code, "{mood}: {said}");
        assert_eq!(lab.node("n2").await["power"], "on", "{mood}");
        assert_eq!(lab.node("n2").await["answers"], true, "{mood}");
    }
    lab.run(&["fence", "n2", "works"]).await.ok();
    let (ended, said) = fence(&lab, "action=off\nplug=n2\n").await;
    assert_eq!(ended, 0, "{said}");
    assert_eq!(lab.node("n2").await["power"], "off");
    assert_eq!(fence(&lab, "action=status\nplug=n2\n").await.0, 2);
    // Off is off, however often it is asked for.
    assert_eq!(fence(&lab, "action=off\nplug=n2\n").await.0, 0);

    // Its clock is set while it has no power, and counts from the next start.
    lab.run(&["clock", "n2", "--offset", "5000"]).await.ok();
    assert_eq!(fence(&lab, "action=on\nplug=n2\n").await.0, 0);
    eventually("n2 answers", OWN, async || (lab.node("n2").await["answers"] == true).then_some(()))
        .await;
    let uptime = |text: &str| text.split('.').next().unwrap().parse::<u64>().unwrap();
    let there = lab.run(&["exec", "n2", "--", "cat", "/proc/uptime"]).await.ok().out;
    let here = fs::read_to_string("/proc/uptime").unwrap();
    assert!((4990..5010).contains(&(uptime(&there) - uptime(&here))), "{there} {here}");
    refused(&lab.run(&["clock", "n1", "--offset", "5"]).await, 5, "power-off");
    refused(&lab.run(&["clock", "n2", "--offset=-99999999"]).await, 2, "ahead");

    // Who is cut off cannot fence.
    lab.run(&["isolate", "n1"]).await.ok();
    assert_ne!(fence(&lab, "action=off\nplug=n2\npower_timeout=1\n").await.0, 0);
    assert_eq!(lab.node("n2").await["answers"], true);
}

#[tokio::test]
async fn the_bmc_refuses_what_is_no_request() {
    let lab = TestLab::up(&["--no-cluster", "--nodes", "1", "--fake"]).await;
    let long = "x".repeat(100_000);
    for text in ["", "\n", "off\n", "off n1 n1\n", "off n64\n", "\u{0}\u{1b}[2J\n", &long] {
        let script = "exec 3<>/dev/tcp/10.90.0.1/6230; cat >&3; head -c 100 <&3";
        let mut command = lab.command();
        command.args(["exec", "n1", "--", "timeout", "20", "bash", "-c", script]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        // It may close before it has read all.
        let _ = child.stdin.take().unwrap().write_all(text.as_bytes());
        let said = child.wait_with_output().unwrap().stdout;
        let said = String::from_utf8_lossy(&said);
        assert!(said.is_empty() || said.starts_with("error "), "{text:?}: {said}");
    }
    assert_eq!(lab.node("n1").await["answers"], true);
    assert_eq!(fence(&lab, "action=status\nplug=n1\n").await.0, 0);
}

#[tokio::test]
async fn with_a_cable_the_machine_reaches_each_node() {
    let machine = Netns::new(format!("m-lab-{}", std::process::id()));
    let lab = TestLab::on(machine.path());
    lab.run(&["up", "--no-cluster", "--nodes", "2", "--fake", "--host-link"]).await.ok();
    for address in ["10.90.0.11", "10.90.0.12"] {
        let script = format!("exec 3<>/dev/tcp/{address}/7443");
        assert!(machine.says_yes("timeout", &["10", "bash", "-c", &script]), "{address}");
    }
    let status = lab.status().await;
    let device = status["host_link"].as_str().unwrap().to_owned();
    assert!(machine.links().contains(&device), "{:?}", machine.links());
    // A second lab with the same addresses cannot have a cable, and says what to do.
    let second = TestLab::on(machine.path());
    refused(&second.run(&["up", "--nodes", "1", "--fake", "--host-link"]).await, 5, "--net");
    assert!(!second.dir().exists());
    lab.run(&["down"]).await.ok();
    eventually("the cable is gone", OWN, async || machine.links().is_empty().then_some(())).await;
}
