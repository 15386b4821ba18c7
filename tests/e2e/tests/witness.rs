//! Two daemons and a witness: any one of the three may be lost.
//!
//! The daemons and the witness share a network namespace and differ by their loopback addresses;
//! the machines only pretend.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use std::io::BufRead;
use std::io::BufReader;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use api::cluster::ClusterCreateBody;
use api::cluster::ClusterHealth;
use api::cluster::ClusterJoinBody;
use api::cluster::ClusterView;
use api::cluster::JoinTokenCreateBody;
use api::endpoint as ep;
use api::types::VmCreateBody;
use api::witness::WitnessPlaceBody;
use api::witness::WitnessSetBody;
use e2e::Host;
use e2e::Netns;
use e2e::Options;
use e2e::eventually;
use e2e::muster_bin;

/// An election by a witness waits for a hold of five seconds, on a busy machine.
const SETTLE: Duration = Duration::from_secs(90);

/// `muster witness`, ended on drop.
struct Process {
    child: Child,
    token: String,
}

impl Process {
    /// Starts one and waits for its token.
    fn start(netns: &Netns, address: &str, dir: &Path) -> Self {
        let mut command = netns.command(&muster_bin().to_string_lossy());
        command.args(["witness", "--listen", address, "--data-dir"]).arg(dir);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut token = String::new();
        // Its standard output ends with it, so this cannot hang for good.
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut token).unwrap();
        assert!(token.starts_with("muster-witness-1."), "{token:?}");
        Self { child, token: token.trim().to_owned() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn host(netns: &Arc<Netns>, n: u8) -> Host {
    Host::start_with(Options {
        engine: "fake",
        networking: false,
        name: Some(format!("h{n}")),
        netns: Some(netns.clone()),
        // No vote is taken away: whoever comes back shall find the two others still voting.
        extra: format!("cluster_listen = \"127.0.0.{}:7444\"\ncluster_lost_after_s = 3600", n + 1),
        ..Options::default()
    })
    .await
}

/// Waits until a host sees the cluster so.
async fn sees(host: &Host, what: &str, so: impl Fn(&ClusterView) -> bool) -> ClusterView {
    let name = host.socket().display().to_string();
    eventually(&format!("{name} sees: {what}"), SETTLE, async || {
        host.client().get::<ep::ClusterShow>(&[]).await.ok().filter(|view| so(view))
    })
    .await
}

fn is_whole(view: &ClusterView, voters: u32) -> bool {
    view.health == ClusterHealth::Healthy && view.voters == voters && view.leader.is_some()
}

async fn pair(netns: &Arc<Netns>) -> [Host; 2] {
    let hosts = [host(netns, 1).await, host(netns, 2).await];
    let body = ClusterCreateBody { name: Some("lab".parse().unwrap()) };
    hosts[0].client().send::<ep::ClusterCreate>(&[], &body).await.unwrap();
    let body = JoinTokenCreateBody::default();
    let token = hosts[0].client().send::<ep::JoinTokenCreate>(&[], &body).await.unwrap().text;
    let body = ClusterJoinBody { token };
    hosts[1].client().send::<ep::ClusterJoin>(&[], &body).await.unwrap();
    for host in &hosts {
        sees(host, "both vote", |view| is_whole(view, 2)).await;
    }
    hosts
}

async fn set(hosts: &[Host], place: WitnessPlaceBody) {
    let body = WitnessSetBody { place };
    hosts[1].client().send::<ep::WitnessSet>(&[], &body).await.unwrap();
    for host in hosts {
        let view = sees(host, "the witness votes", |view| is_whole(view, 3)).await;
        assert_eq!((view.majority, view.may_lose), (2, 1));
        assert!(view.witness.as_ref().is_some_and(|it| it.votes && it.reachable), "{view:?}");
    }
}

fn remote(token: &str, address: Option<&str>) -> WitnessPlaceBody {
    WitnessPlaceBody::Remote { token: token.to_owned(), address: address.map(str::to_owned) }
}

/// Makes a machine; while a new leader is found, that may have to be asked for again.
async fn create(host: &Host, name: &str) {
    let body = serde_json::json!({ "name": name, "memory": 64 << 20 });
    let body: VmCreateBody = serde_json::from_value(body).unwrap();
    sees(host, "changes are possible", |view| {
        matches!(view.health, ClusterHealth::Healthy | ClusterHealth::Degraded)
    })
    .await;
    host.op::<ep::VmCreate>(&[], &body).await;
}

async fn has(host: &Host, names: &[&str]) {
    eventually(&format!("it has {names:?}"), SETTLE, async || {
        let vms = host.client().get::<ep::VmList>(&[]).await.ok()?;
        let mut seen: Vec<_> = vms.iter().map(|vm| vm.name.to_string()).collect();
        seen.sort_unstable();
        (seen == names).then_some(())
    })
    .await;
}

fn directory(path: PathBuf) -> WitnessPlaceBody {
    WitnessPlaceBody::Directory { path: path.to_string_lossy().into_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_one_of_two_nodes_and_a_witness_may_be_lost() {
    let netns = Netns::shared("wit");
    let mut hosts = pair(&netns).await;
    let dir = hosts[0].file("witness");
    let witness = Process::start(&netns, "127.0.0.9:7446", &dir);
    let token = witness.token.clone();
    set(&hosts, remote(&token, None)).await;
    // Either node.
    for (lost, name) in [(0, "a"), (1, "b")] {
        hosts[lost].kill9();
        let left = &hosts[1 - lost];
        let view = sees(left, "the other is away", |view| {
            view.health == ClusterHealth::Degraded && view.leader == Some(view.node)
        })
        .await;
        assert_eq!((view.voters, view.may_lose), (3, 0), "{view:?}");
        create(left, name).await;
        hosts[lost].restart().await;
        for host in &hosts {
            sees(host, "all are back", |view| is_whole(view, 3)).await;
        }
    }
    // The witness.
    drop(witness);
    for host in &hosts {
        let view = sees(host, "the witness is away", |view| {
            view.health == ClusterHealth::Degraded
                && view.witness.as_ref().is_some_and(|it| !it.reachable)
        })
        .await;
        assert!(view.words.iter().any(|words| words.contains("the witness back")), "{view:?}");
    }
    create(&hosts[0], "c").await;
    create(&hosts[1], "d").await;
    let witness = Process::start(&netns, "127.0.0.9:7446", &dir);
    assert_eq!(witness.token, token, "the next start has the same token");
    for host in &hosts {
        sees(host, "the witness is back", |view| is_whole(view, 3)).await;
        has(host, &["a", "b", "c", "d"]).await;
    }
    // While its vote is needed it stays; then it goes, and leaves no record.
    hosts[1].kill9();
    sees(&hosts[0], "h2 is away", |view| view.may_lose == 0 && view.leader == Some(view.node))
        .await;
    let error = hosts[0].client().get::<ep::WitnessRemove>(&[]).await.unwrap_err();
    assert_eq!(error.code, "no_majority_left", "{error:?}");
    hosts[1].restart().await;
    sees(&hosts[0], "h2 is back", |view| is_whole(view, 3)).await;
    hosts[0].client().get::<ep::WitnessRemove>(&[]).await.unwrap();
    for host in &hosts {
        sees(host, "two vote", |view| is_whole(view, 2) && view.witness.is_none()).await;
    }
    eventually("the record is gone", SETTLE, async || {
        let mut files = std::fs::read_dir(dir.join("records")).unwrap();
        files.next().is_none().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_comes_up_with_the_witness_alone() {
    let netns = Netns::shared("witdir");
    let mut hosts = pair(&netns).await;
    let dir = hosts[0].file("share");
    std::fs::create_dir(&dir).unwrap();
    set(&hosts, directory(dir)).await;
    hosts[1].kill9();
    sees(&hosts[0], "h2 is away", |view| {
        view.health == ClusterHealth::Degraded && view.leader == Some(view.node)
    })
    .await;
    // Decided by h1 and the witness; then h1 is gone, and h2 has never heard of it.
    create(&hosts[0], "a").await;
    hosts[0].kill9();
    hosts[1].restart().await;
    // At first it may still take h1 for the leader.
    sees(&hosts[1], "h2 leads", |view| view.leader == Some(view.node)).await;
    create(&hosts[1], "b").await;
    has(&hosts[1], &["a", "b"]).await;
    hosts[0].restart().await;
    for host in &hosts {
        sees(host, "all are back", |view| is_whole(view, 3)).await;
        has(host, &["a", "b"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_witness_that_cannot_be_is_refused_and_nothing_changes() {
    let netns = Netns::shared("witbad");
    let hosts = pair(&netns).await;
    let own = Process::start(&netns, "127.0.0.9:7446", &hosts[0].file("one"));
    let other = Process::start(&netns, "127.0.0.10:7446", &hosts[0].file("two"));
    let absent = hosts[0].file("absent");
    for (place, code) in [
        (remote("muster-witness-1.nonsense", None), "bad_request"),
        // The token of another witness.
        (remote(&other.token, Some("127.0.0.9:7446")), "witness_unfit"),
        (remote(&own.token, Some("127.0.0.11:7446")), "witness_unfit"),
        (directory(absent), "witness_unfit"),
        (directory("share".into()), "bad_request"),
    ] {
        let body = WitnessSetBody { place };
        let error = hosts[0].client().send::<ep::WitnessSet>(&[], &body).await.unwrap_err();
        assert_eq!(error.code, code, "{error:?}");
    }
    let error = hosts[0].client().get::<ep::WitnessShow>(&[]).await.unwrap_err();
    assert_eq!(error.code, "no_witness", "{error:?}");
    sees(&hosts[1], "two vote", |view| is_whole(view, 2)).await;
    set(&hosts, remote(&own.token, None)).await;
    let again = WitnessSetBody { place: remote(&other.token, None) };
    let error = hosts[0].client().send::<ep::WitnessSet>(&[], &again).await.unwrap_err();
    assert_eq!(error.code, "witness_set", "{error:?}");
}
