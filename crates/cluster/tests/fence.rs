//! Fence agents that work, fail, hang, lie, are slow, and print garbage, as real programs; and one of
//! the package.

#![allow(missing_docs, reason = "tests")]
#![allow(clippy::unwrap_used, reason = "what a helper cannot do fails the test")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use cluster::fence::Action;
use cluster::fence::Agents;
use cluster::fence::Heard;
use cluster::fence::NoProof;
use cluster::fence::Outcome;
use cluster::fence::prove_off;
use model::FenceDevice;
use model::FenceDeviceId;
use model::FenceProof;
use model::NodeId;
use model::UnixMillis;
use uuid::Uuid;

const NODE: NodeId = NodeId::new(Uuid::from_u128(1));

struct Rig {
    dir: tempfile::TempDir,
}

/// A node that is heard, or not.
struct Silent(bool);

impl Heard for Silent {
    fn since(&self, _: NodeId, _: tokio::time::Instant) -> bool {
        !self.0
    }

    fn takes(&self, _: NodeId) -> std::time::Duration {
        std::time::Duration::ZERO
    }
}

/// An honest agent: the power is a file `power-PLUG`.
const HONEST: &str = r#"
case "$action" in
  off) echo off > "$here/power-$plug"; echo "Success: Powered OFF" ;;
  on) rm -f "$here/power-$plug" ;;
  status) if [ -e "$here/power-$plug" ]; then echo "Status: OFF"; exit 2; fi; echo "Status: ON" ;;
  monitor) ;;
  metadata) echo '<resource-agent><actions><action name="off"/><action name="status"/>'
            echo '</actions></resource-agent>' ;;
esac"#;

impl Rig {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// Writes a program that has read its options into variables.
    fn agent(&self, name: &str, body: &str) {
        let here = self.dir.path().display();
        let text = format!(
            "#!/bin/sh\nhere={here}\nwhile IFS='=' read -r key value; do\n\
             eval \"$key=\\$value\"; echo \"$key=$value\" >> $here/{name}.log; done\n{body}\n"
        );
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn agents(&self) -> Agents {
        Agents::in_dir(self.dir.path())
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(format!("{name}.log"))).unwrap_or_default()
    }

    async fn prove(&self, devices: &[(&str, u8)], silent: bool) -> Result<FenceProof, NoProof> {
        let devices: Vec<Arc<FenceDevice>> =
            devices.iter().map(|(agent, level)| Arc::new(device(agent, *level))).collect();
        let now = || UnixMillis::new(42);
        prove_off(&self.agents(), &devices, NODE, &Silent(silent), now).await
    }
}

fn device(agent: &str, level: u8) -> FenceDevice {
    let name = agent.replace('_', "-");
    FenceDevice {
        id: FenceDeviceId::new(Uuid::from_u128(7)),
        name: name.parse().unwrap(),
        agent: agent.to_owned(),
        options: BTreeMap::from([("ip".to_owned(), "192.0.2.1".to_owned())]),
        secrets: BTreeMap::from([("password".to_owned(), "hunter2".to_owned())]),
        nodes: BTreeMap::from([(NODE, Some(name))]),
        level,
        timeout_s: 3,
        created: UnixMillis::new(0),
    }
}

fn failed(result: Result<FenceProof, NoProof>) -> String {
    result.unwrap_err().to_string()
}

#[tokio::test]
async fn off_and_then_status_off_is_a_proof() {
    let rig = Rig::new();
    rig.agent("fence_good", HONEST);
    let FenceProof::Devices { said } = rig.prove(&[("fence_good", 1)], true).await.unwrap() else {
        panic!("another proof");
    };
    assert_eq!(said.len(), 1);
    assert_eq!((said[0].device.as_str(), said[0].output.as_str()), ("fence-good", "Status: OFF"));
    assert_eq!(said[0].at, UnixMillis::new(42));
    let log = rig.log("fence_good");
    let first = "action=off\nip=192.0.2.1\npassword=hunter2\nplug=fence-good\naction=status\n";
    assert!(log.starts_with(first), "{log}");
}

#[tokio::test]
async fn a_device_is_not_believed_when_its_status_stays_on() {
    let rig = Rig::new();
    rig.agent("fence_liar", "[ \"$action\" = status ] && echo 'Status: ON'; exit 0");
    let error = failed(rig.prove(&[("fence_liar", 1)], true).await);
    assert!(error.contains("status is still on"), "{error}");
}

#[tokio::test]
async fn a_device_is_not_believed_while_the_node_is_heard() {
    let rig = Rig::new();
    rig.agent("fence_good", HONEST);
    let error = failed(rig.prove(&[("fence_good", 1)], false).await);
    assert!(error.contains("still heard"), "{error}");
}

#[tokio::test]
async fn a_slow_device_is_waited_for() {
    let rig = Rig::new();
    let slow = "n=$(cat $here/n 2>/dev/null || echo 0); n=$((n + 1)); echo $n > $here/n\n\
        [ $action = status ] && [ $n -gt 4 ] && exit 2; sleep 0.1; exit 0";
    rig.agent("fence_slow", slow);
    rig.prove(&[("fence_slow", 1)], true).await.unwrap();
}

/// It and all that it has started are killed; nothing of it is waited for.
#[tokio::test]
async fn a_device_that_hangs_is_killed_with_its_children() {
    let rig = Rig::new();
    let hang = "sleep 977 & echo $! > $here/child; echo waiting; wait";
    rig.agent("fence_hang", hang);
    let begun = Instant::now();
    let error = failed(rig.prove(&[("fence_hang", 1)], true).await);
    assert!(error.contains("more than 3 s"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let child = fs::read_to_string(rig.dir.path().join("child")).unwrap();
    let stat = Path::new("/proc").join(child.trim()).join("stat");
    let end = Instant::now() + Duration::from_secs(20);
    // Gone, or a zombie that init has yet to collect.
    while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(Instant::now() < end, "its child lives");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_fails_prints_garbage_or_is_missing_is_no_proof() {
    let rig = Rig::new();
    rig.agent("fence_fail", "echo 'Failed: password hunter2 refused' >&2; exit 1");
    rig.agent("fence_garbage", "head -c 3000000 /dev/urandom; exit 7");
    rig.agent("fence_signal", "kill -9 $$");
    for (agent, word) in [
        ("fence_fail", "password [hidden] refused"),
        ("fence_garbage", "failed"),
        ("fence_signal", "failed"),
        ("fence_missing", "apt-get install fence-agents"),
    ] {
        let error = failed(rig.prove(&[(agent, 1)], true).await);
        assert!(error.contains(word), "{agent}: {error}");
        assert!(!error.contains("hunter2") && error.len() < 3_000, "{agent}: {error}");
    }
    assert_eq!(rig.log("fence_fail").matches("action=off").count(), 2, "tried twice");
}

#[tokio::test]
async fn output_is_bounded_and_its_end_is_kept() {
    let rig = Rig::new();
    rig.agent("fence_talk", "yes talk | head -c 2000000; echo last words");
    let called = rig.agents().call(&device("fence_talk", 1), None, Action::Monitor).await;
    assert_eq!(called.outcome, Outcome::Done);
    assert!(called.output.len() <= 2_048 && called.output.ends_with("last words"));
}

#[tokio::test]
async fn levels_are_tried_in_order_and_all_devices_of_one_must_succeed() {
    let rig = Rig::new();
    rig.agent("fence_fail", "exit 1");
    rig.agent("fence_good", HONEST);
    rig.agent("fence_other", HONEST);
    // Level 1: one of two power supplies stays on.
    let error = failed(rig.prove(&[("fence_good", 1), ("fence_fail", 1)], true).await);
    assert!(error.starts_with("level 1: fence-fail: off failed"), "{error}");
    let devices = [("fence_fail", 1), ("fence_other", 2), ("fence_good", 2)];
    let FenceProof::Devices { said } = rig.prove(&devices, true).await.unwrap() else {
        panic!("another proof");
    };
    let names: Vec<&str> = said.iter().map(|said| said.device.as_str()).collect();
    assert_eq!(names, ["fence-other", "fence-good"]);
    assert!(said.iter().all(|said| said.level == 2));
    assert_eq!(rig.prove(&[], true).await, Err(NoProof::NoDevice));
}

/// Both supplies are off at the same time: the first one is asked again after the second went off.
#[tokio::test]
async fn a_supply_that_comes_back_is_noticed() {
    let rig = Rig::new();
    rig.agent("fence_good", HONEST);
    let spoils = "[ $action = off ] && rm -f $here/power-fence-good; [ $action = off ] || exit 2";
    rig.agent("fence_spoil", spoils);
    let error = failed(rig.prove(&[("fence_good", 1), ("fence_spoil", 1)], true).await);
    assert!(error.contains("fence-good: off was done"), "{error}");
}

#[tokio::test]
async fn an_agent_without_status_is_believed_by_its_exit_code_only() {
    let rig = Rig::new();
    let blind = "case $action in off) echo done;; \
        metadata) echo '<resource-agent><action name=\"off\"/></resource-agent>';; *) exit 1;; esac";
    rig.agent("fence_blind", blind);
    let FenceProof::Devices { said } = rig.prove(&[("fence_blind", 1)], true).await.unwrap() else {
        panic!("another proof");
    };
    assert_eq!(said[0].output, "done (it has no action status)");
    // One that says what it is only in part could have one.
    let half = "case $action in off) ;; metadata) echo '<action name=\"off\"/>';; *) exit 1;; esac";
    rig.agent("fence_half", half);
    assert!(rig.prove(&[("fence_half", 1)], true).await.is_err());
}

/// One of the package fence-agents, which keeps its power in a file.
#[tokio::test]
async fn an_agent_of_the_package() {
    let rig = Rig::new();
    let file = rig.dir.path().join("power").display().to_string();
    let mut dummy = device("fence_dummy", 1);
    dummy.options = BTreeMap::from([("status_file".to_owned(), file)]);
    // Python on a busy host.
    dummy.timeout_s = 30;
    let agents = Agents::default();
    assert!(agents.has("fence_dummy"), "install it: apt-get install fence-agents");
    assert_eq!(agents.knows_status(&dummy).await, Some(true));
    assert_eq!(agents.call(&dummy, None, Action::On).await.outcome, Outcome::Done);
    let status = agents.call(&dummy, None, Action::Status).await;
    assert_eq!(status.outcome, Outcome::Done);
    // It knows no password and no plug, and says that, too.
    assert!(status.output.starts_with("Status: ON"), "{}", status.output);
    let devices = [Arc::new(dummy)];
    let now = || UnixMillis::new(42);
    let proof = prove_off(&agents, &devices, NODE, &Silent(true), now).await.unwrap();
    let FenceProof::Devices { said } = proof else { panic!("another proof") };
    assert!(said[0].output.starts_with("Status: OFF"), "{}", said[0].output);
}
