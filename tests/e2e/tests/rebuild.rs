//! A node whose state is damaged neither votes nor serves, gets a new log from the others by itself,
//! and votes again; nothing that was acknowledged is lost.
//!
//! The daemons share a network namespace and differ by their loopback addresses; their machines
//! only pretend.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::cluster::ClusterCreateBody;
use api::cluster::ClusterHealth;
use api::cluster::ClusterJoinBody;
use api::cluster::ClusterPart;
use api::cluster::ClusterView;
use api::cluster::JoinTokenCreateBody;
use api::endpoint as ep;
use api::model::EventKind;
use api::types::VmCreateBody;
use e2e::Host;
use e2e::Netns;
use e2e::Options;
use e2e::eventually;

/// An election, a few changes of the members and then some, on a busy machine.
const SETTLE: Duration = Duration::from_secs(60);

async fn host(netns: &Arc<Netns>, n: u8) -> Host {
    Host::start_with(Options {
        engine: "fake",
        networking: false,
        guard: true,
        name: Some(format!("h{n}")),
        netns: Some(netns.clone()),
        extra: format!("cluster_listen = \"127.0.0.{}:7444\"", n + 1),
        ..Options::default()
    })
    .await
}

async fn status(host: &Host) -> Option<ClusterView> {
    host.client().get::<ep::ClusterShow>(&[]).await.ok()
}

async fn sees(host: &Host, what: &str, so: impl Fn(&ClusterView) -> bool) -> ClusterView {
    let name = host.socket().display().to_string();
    eventually(&format!("{name} sees: {what}"), SETTLE, async || {
        status(host).await.filter(|view| so(view))
    })
    .await
}

fn is_whole(view: &ClusterView) -> bool {
    view.health == ClusterHealth::Healthy && view.voters == 3 && view.leader.is_some()
}

async fn form(netns: &Arc<Netns>) -> Vec<Host> {
    let mut hosts = Vec::new();
    for n in 1..=3 {
        hosts.push(host(netns, n).await);
    }
    let body = ClusterCreateBody { name: Some("lab".parse().unwrap()) };
    hosts[0].client().send::<ep::ClusterCreate>(&[], &body).await.unwrap();
    let token = hosts[0].client();
    let token = token.send::<ep::JoinTokenCreate>(&[], &JoinTokenCreateBody::default()).await;
    let body = ClusterJoinBody { token: token.unwrap().text };
    for host in &hosts[1..] {
        host.client().send::<ep::ClusterJoin>(&[], &body).await.unwrap();
    }
    for host in &hosts {
        sees(host, "all vote", is_whole).await;
    }
    hosts
}

async fn create(host: &Host, name: &str) {
    let body = serde_json::json!({ "name": name, "memory": 64 << 20 });
    let body: VmCreateBody = serde_json::from_value(body).unwrap();
    host.op::<ep::VmCreate>(&[], &body).await;
}

async fn names(host: &Host) -> Vec<String> {
    let list = host.client().get::<ep::VmList>(&[]).await.unwrap();
    list.iter().map(|vm| vm.name.to_string()).collect()
}

/// What a disk may do to the state.
fn damage(data: &Path, how: usize) {
    let (state, mark) = (data.join("state.redb"), data.join("state.mark"));
    let bytes = fs::read(&state).unwrap();
    match how {
        0 => fs::write(&state, &bytes[..bytes.len() / 16]).unwrap(),
        1 => {
            // A bit of each page that is in use.
            let mut bytes = bytes;
            bytes.chunks_mut(4096).filter(|page| page[100] != 0).for_each(|page| page[100] ^= 8);
            fs::write(&state, bytes).unwrap();
        }
        2 => {
            fs::remove_file(&state).unwrap();
            fs::remove_file(&mark).unwrap();
            fs::remove_file(data.join("node-id")).unwrap();
        }
        _ => fs::write(&mark, "what").unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_node_is_rebuilt_from_the_others_and_nothing_acknowledged_is_lost() {
    let netns = Netns::shared("rebuild");
    let mut hosts = form(&netns).await;
    let ids: Vec<_> =
        sees(&hosts[0], "all", is_whole).await.nodes.iter().map(|node| node.id).collect();
    let mut made = vec!["a0".to_owned()];
    create(&hosts[1], "a0").await;
    // The one that made the cluster, and the others; who leads is among them.
    for (how, which) in [0, 1, 2, 0].into_iter().enumerate() {
        let other = (which + 1) % 3;
        create(&hosts[which], &format!("b{how}")).await;
        hosts[which].kill9();
        damage(&hosts[which].data_dir(), how);
        create(&hosts[other], &format!("c{how}")).await;
        made.extend([format!("b{how}"), format!("c{how}")]);
        made.sort();
        hosts[which].spawn();
        for host in &hosts {
            sees(host, &format!("all vote after damage {how}"), is_whole).await;
            assert_eq!(names(host).await, made, "after damage {how}");
        }
        let kept = hosts[which].data_dir().join("damaged/state.mark");
        assert_eq!(kept.exists(), how != 2, "what was damaged is kept");
        let events = hosts[other].events().await;
        let count = |kind| events.iter().filter(|it| it.event.kind == kind).count();
        assert_eq!(count(EventKind::NodeDamaged), how + 1, "{events:?}");
        assert_eq!(count(EventKind::NodeRebuilt), how + 1, "{events:?}");
    }
    // They are the same members, and their new logs decide.
    let now = sees(&hosts[2], "all", is_whole).await;
    assert_eq!(now.nodes.iter().map(|node| node.id).collect::<Vec<_>>(), ids);
    hosts[2].kill9();
    create(&hosts[0], "d").await;
    hosts[1].kill9();
    hosts[2].restart().await;
    create(&hosts[2], "e").await;
    hosts[1].restart().await;
    made.extend(["d".to_owned(), "e".to_owned()]);
    made.sort();
    for host in &hosts {
        sees(host, "all vote", is_whole).await;
        assert_eq!(names(host).await, made);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_of_the_others_a_damaged_node_waits_and_says_so() {
    let netns = Netns::shared("rebuild-alone");
    let mut hosts = form(&netns).await;
    create(&hosts[0], "a").await;
    hosts.iter_mut().for_each(Host::kill9);
    damage(&hosts[0].data_dir(), 3);
    hosts[0].spawn();
    let refused = async |host: &Host| {
        let error = host.client().get::<ep::ClusterShow>(&[]).await.unwrap_err();
        (error.code == "rebuilding").then_some(error)
    };
    let error = eventually("it says so", SETTLE, async || refused(&hosts[0]).await).await;
    assert!(error.hint.contains("force-quorum"), "{error:?}");
    // One of the others is no majority of three, and the damaged one does not make it one.
    hosts[1].restart().await;
    sees(&hosts[1], "no majority", |view| view.health == ClusterHealth::NoQuorum).await;
    eventually("it was asked", SETTLE, async || {
        refused(&hosts[0]).await.filter(|error| error.message.contains("h2: "))
    })
    .await;
    // Killed while it waits, it goes on with the same loss.
    hosts[0].kill9();
    hosts[0].spawn();
    eventually("it says so again", SETTLE, async || refused(&hosts[0]).await).await;
    assert!(!hosts[0].data_dir().join("damaged").exists(), "the old files are there until then");
    hosts[2].spawn();
    for host in &hosts {
        let view = sees(host, "all vote", is_whole).await;
        assert!(view.nodes.iter().all(|node| node.part != ClusterPart::Damaged));
        assert_eq!(names(host).await, ["a"]);
    }
    assert_eq!(hosts[1].count_events(EventKind::NodeDamaged).await, 1);
}
