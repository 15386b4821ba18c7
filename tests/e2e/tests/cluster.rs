//! Several daemons become one cluster, lose nodes, and stay one.
//!
//! The daemons share a network namespace and differ by their loopback addresses; their machines
//! only pretend.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use api::ApiError;
use api::ErrorKind;
use api::client::Client;
use api::cluster::ClusterCreateBody;
use api::cluster::ClusterHealth;
use api::cluster::ClusterJoinBody;
use api::cluster::ClusterLeaveBody;
use api::cluster::ClusterPart;
use api::cluster::ClusterView;
use api::cluster::JoinTokenCreateBody;
use api::endpoint as ep;
use api::endpoint::Endpoint;
use api::endpoint::Method;
use api::endpoint::Nothing;
use api::endpoint::ReplyKind;
use api::endpoint::TABLE;
use api::fence::CertaintyView;
use api::model::NodeId;
use api::types::Phase;
use api::types::VmCreateBody;
use api::types::VmSummary;
use e2e::Host;
use e2e::Netns;
use e2e::Options;
use e2e::eventually;

/// Three hosts are a cluster within ten seconds where nothing else happens; here, other things are
/// built and tested at the same time.
const FORM_LIMIT: Duration = Duration::from_secs(60);

/// An election and then some, on a busy machine.
const SETTLE: Duration = Duration::from_secs(60);

/// After how much silence a vote is taken away: more than a busy machine keeps a daemon waiting.
const LOST_AFTER_S: u64 = 10;

/// A host by itself, as number `n` of a test's namespace.
async fn host(netns: &Arc<Netns>, n: u8, name: &str) -> Host {
    Host::start_with(Options {
        engine: "fake",
        networking: false,
        guard: true,
        name: Some(name.to_owned()),
        netns: Some(netns.clone()),
        extra: format!(
            "cluster_listen = \"127.0.0.{}:7444\"\ncluster_lost_after_s = {LOST_AFTER_S}",
            n + 1
        ),
        ..Options::default()
    })
    .await
}

async fn hosts(netns: &Arc<Netns>, count: u8) -> Vec<Host> {
    let mut hosts = Vec::new();
    for n in 1..=count {
        hosts.push(host(netns, n, &format!("h{n}")).await);
    }
    hosts
}

async fn create(host: &Host, name: &str) -> ClusterView {
    let body = ClusterCreateBody { name: Some(name.parse().unwrap()) };
    host.client().send::<ep::ClusterCreate>(&[], &body).await.unwrap()
}

async fn token(host: &Host, body: JoinTokenCreateBody) -> String {
    host.client().send::<ep::JoinTokenCreate>(&[], &body).await.unwrap().text
}

async fn join(host: &Host, token: &str) -> Result<(), ApiError> {
    let body = ClusterJoinBody { token: token.to_owned() };
    host.client().send::<ep::ClusterJoin>(&[], &body).await.map(drop)
}

async fn status(host: &Host) -> Option<ClusterView> {
    host.client().get::<ep::ClusterShow>(&[]).await.ok()
}

/// Waits until a host sees the cluster so.
async fn sees(host: &Host, what: &str, so: impl Fn(&ClusterView) -> bool) -> ClusterView {
    let name = host.socket().display().to_string();
    eventually(&format!("{name} sees: {what}"), SETTLE, async || {
        status(host).await.filter(|view| so(view))
    })
    .await
}

fn is_whole(view: &ClusterView, voters: u32) -> bool {
    view.health == ClusterHealth::Healthy && view.voters == voters && view.leader.is_some()
}

/// One command per host.
async fn form(hosts: &[Host]) {
    let began = Instant::now();
    create(&hosts[0], "lab").await;
    let token = token(&hosts[0], JoinTokenCreateBody::default()).await;
    for host in &hosts[1..] {
        join(host, &token).await.unwrap();
    }
    let voters = u32::try_from(hosts.len()).unwrap();
    for host in hosts {
        sees(host, "all vote", |view| is_whole(view, voters)).await;
    }
    let took = began.elapsed();
    eprintln!("a cluster of {voters} after {took:?}");
    assert!(took < FORM_LIMIT, "{took:?}");
}

/// Which of the hosts leads.
async fn leading(hosts: &[Host]) -> (usize, NodeId) {
    let leader = sees(&hosts[0], "a leader", |view| view.leader.is_some()).await.leader.unwrap();
    for (n, host) in hosts.iter().enumerate() {
        if status(host).await.unwrap().node == leader {
            return (n, leader);
        }
    }
    panic!("{leader} leads and is none of them");
}

/// Waits until every node holds a lease, and the cluster knows that it ends by itself.
async fn leases(hosts: &[Host]) {
    for host in hosts {
        for node in host.client().get::<ep::NodeList>(&[]).await.unwrap() {
            let name = node.name.to_string();
            eventually(&format!("{name} confirms a lease"), SETTLE, async || {
                let view = host.client().get::<ep::NodeFencing>(&[&name]).await.ok()?;
                matches!(view.certainty, CertaintyView::SelfFencing { .. }).then_some(())
            })
            .await;
        }
    }
}

async fn list(host: &Host) -> Vec<VmSummary> {
    host.client().get::<ep::VmList>(&[]).await.unwrap()
}

fn vm_body(name: &str) -> VmCreateBody {
    let body = serde_json::json!({ "name": name, "memory": 64 << 20 });
    serde_json::from_value(body).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hosts_form_a_cluster_and_outlive_its_leader() {
    let netns = Netns::shared("form");
    let mut hosts = hosts(&netns, 3).await;
    form(&hosts).await;
    leases(&hosts).await;
    // Made by one node, started by another, seen by all.
    hosts[1].op::<ep::VmCreate>(&[], &vm_body("a")).await;
    hosts[2].op::<ep::VmStart>(&["a"], &Nothing {}).await;
    for host in &hosts {
        let seen = list(host).await;
        assert_eq!((seen.len(), seen[0].phase, seen[0].node.as_str()), (1, Phase::Running, "h2"));
        let vm = host.client().get::<ep::VmShow>(&["a"]).await.unwrap();
        assert!(vm.run.is_some(), "what only its node sees");
        let nodes = host.client().get::<ep::NodeList>(&[]).await.unwrap();
        assert_eq!(
            nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>(),
            ["h1", "h2", "h3"]
        );
        assert!(nodes.iter().all(|node| node.memory.get() > 0 && node.qemu.is_some()));
        let other = host.client().get::<ep::NodeShow>(&["h3"]).await.unwrap();
        assert_eq!(other.name.as_str(), "h3");
    }
    let (dead, leader) = leading(&hosts).await;
    hosts[dead].kill9();
    let began = Instant::now();
    for host in hosts.iter().filter(|host| host.daemon_pid().is_some()) {
        let view = sees(host, "another leads", |view| {
            view.leader.is_some_and(|now| now != leader) && view.health == ClusterHealth::Degraded
        })
        .await;
        assert_eq!(view.may_lose, 0);
        assert!(view.words.iter().any(|words| words.contains("does not answer")), "{view:?}");
    }
    eprintln!("another leads after {:?}", began.elapsed());
    let live = (0..3).find(|n| *n != dead).unwrap();
    hosts[live].op::<ep::VmCreate>(&[], &vm_body("b")).await;
    hosts[dead].restart().await;
    for host in &hosts {
        sees(host, "all are back", |view| is_whole(view, 3)).await;
        let names: Vec<_> = list(host).await.iter().map(|vm| vm.name.to_string()).collect();
        assert_eq!(names, ["a", "b"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_nothing_changes_and_status_says_why() {
    let netns = Netns::shared("quorum");
    let mut hosts = hosts(&netns, 3).await;
    form(&hosts).await;
    hosts[1].kill9();
    hosts[2].kill9();
    let view = sees(&hosts[0], "no majority", |view| view.health == ClusterHealth::NoQuorum).await;
    assert_eq!((view.voters, view.majority, view.may_lose), (3, 2, 0));
    assert!(view.words.iter().any(|words| words.contains("Bring h2, h3 back")), "{view:?}");
    let error = hosts[0].client().send::<ep::VmCreate>(&[], &vm_body("a")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.hint.contains("muster cluster status"), "{error:?}");
    // A restart without a majority shows the same, and waits for nobody.
    hosts[0].kill9();
    hosts[0].restart().await;
    sees(&hosts[0], "still no majority", |view| view.health == ClusterHealth::NoQuorum).await;
    hosts[2].restart().await;
    for n in [0, 2] {
        sees(&hosts[n], "a majority", |view| view.health == ClusterHealth::Degraded).await;
    }
    hosts[0].op::<ep::VmCreate>(&[], &vm_body("a")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_node_is_refused_and_joins_again_as_a_new_one() {
    let netns = Netns::shared("evict");
    let mut hosts = hosts(&netns, 3).await;
    form(&hosts).await;
    let old = status(&hosts[2]).await.unwrap().node;
    hosts[2].kill9();
    sees(&hosts[0], "h3 is silent", |view| view.health == ClusterHealth::Degraded).await;
    hosts[0].client().get::<ep::NodeEvict>(&["h3"]).await.unwrap();
    for host in &hosts[..2] {
        sees(host, "two are left", |view| is_whole(view, 2) && view.nodes.len() == 2).await;
    }
    // It comes back with its certificate and its data.
    hosts[2].restart().await;
    let view = sees(&hosts[2], "it is out", |view| view.health == ClusterHealth::Gone).await;
    assert!(view.words[0].contains("h3"), "{view:?}");
    let error = hosts[2].client().send::<ep::VmCreate>(&[], &vm_body("a")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error:?}");
    assert_eq!(status(&hosts[0]).await.unwrap().nodes.len(), 2);
    // By itself again, then a member under a new id.
    let force = ClusterLeaveBody { force: true };
    // Its daemon starts anew when it has heard that it is out.
    eventually("it leaves", SETTLE, async || {
        hosts[2].client().send::<ep::ClusterLeave>(&[], &force).await.ok()
    })
    .await;
    sees(&hosts[2], "by itself", |view| view.name.is_none() && view.leader.is_some()).await;
    let token = token(&hosts[1], JoinTokenCreateBody::default()).await;
    join(&hosts[2], &token).await.unwrap();
    for host in &hosts {
        sees(host, "three again", |view| is_whole(view, 3)).await;
    }
    assert_ne!(status(&hosts[2]).await.unwrap().node, old);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_are_lost_one_after_another_lose_their_votes_and_get_them_back() {
    let netns = Netns::shared("shrink");
    let mut hosts = hosts(&netns, 5).await;
    form(&hosts).await;
    hosts[3].kill9();
    hosts[4].kill9();
    sees(&hosts[0], "three vote", |view| view.voters == 3 && view.may_lose == 1).await;
    // Five votes would be too few now.
    hosts[2].kill9();
    sees(&hosts[0], "h3 is silent", |view| view.voters == 3 && view.may_lose == 0).await;
    hosts[1].op::<ep::VmCreate>(&[], &vm_body("a")).await;
    // Who was voted out does not come up by itself.
    hosts[0].kill9();
    hosts[1].kill9();
    for n in [3, 4] {
        hosts[n].restart().await;
    }
    for n in [3, 4] {
        let lacks = |view: &ClusterView| view.health == ClusterHealth::NoQuorum;
        sees(&hosts[n], "no majority", lacks).await;
    }
    for n in [0, 1] {
        hosts[n].restart().await;
    }
    hosts[2].restart().await;
    for host in &hosts {
        sees(host, "all vote", |view| is_whole(view, 5)).await;
        assert_eq!(list(host).await.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_may_be_interrupted_at_any_moment() {
    let netns = Netns::shared("broken");
    let first = host(&netns, 1, "h1").await;
    create(&first, "lab").await;
    let token = token(&first, JoinTokenCreateBody::default()).await;
    let moments = [0_u64, 15, 40, 100, 300, 600, 900];
    let mut nodes = 1;
    for (n, moment) in (2_u8..).zip(moments) {
        let mut host = host(&netns, n, &format!("h{n}")).await;
        let (client, text) = (host.client().clone(), token.clone());
        let asked = tokio::spawn(async move {
            client.send::<ep::ClusterJoin>(&[], &ClusterJoinBody { token: text }).await
        });
        tokio::time::sleep(Duration::from_millis(moment)).await;
        host.kill9();
        let _ = asked.await.unwrap();
        host.restart().await;
        // It is in, or asks again; it is never half in, nor there twice.
        if status(&host).await.unwrap().name.is_none()
            && let Err(error) = join(&host, &token).await
        {
            assert_eq!(error.code, "in_cluster", "{moment} ms: {error:?}");
        }
        nodes += 1;
        let whole =
            |view: &ClusterView| view.health == ClusterHealth::Healthy && view.nodes.len() == nodes;
        sees(&host, "it is a node", whole).await;
        sees(&first, "it is a node", whole).await;
        // Its part is played; a silent node is what other tests are about.
        let leave = ClusterLeaveBody::default();
        host.client().send::<ep::ClusterLeave>(&[], &leave).await.unwrap();
        nodes -= 1;
        sees(&first, "it has left", |view| view.nodes.len() == nodes).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_nodes_none_is_evicted_and_one_can_leave() {
    let netns = Netns::shared("two");
    let hosts = hosts(&netns, 2).await;
    form(&hosts).await;
    let error = hosts[0].client().get::<ep::NodeEvict>(&["h2"]).await.unwrap_err();
    assert_eq!(error.code, "no_majority_left", "{error:?}");
    let leave = ClusterLeaveBody::default();
    hosts[1].client().send::<ep::ClusterLeave>(&[], &leave).await.unwrap();
    sees(&hosts[0], "one", |view| view.voters == 1 && view.nodes.len() == 1).await;
    sees(&hosts[1], "by itself", |view| view.name.is_none() && view.leader.is_some()).await;
    hosts[0].op::<ep::VmCreate>(&[], &vm_body("a")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_shrinks_the_cluster_also_when_the_leader_goes() {
    let netns = Netns::shared("leave");
    let hosts = hosts(&netns, 3).await;
    form(&hosts).await;
    hosts[0].op::<ep::VmCreate>(&[], &vm_body("a")).await;
    let leave = ClusterLeaveBody::default();
    let error = hosts[0].client().send::<ep::ClusterLeave>(&[], &leave).await.unwrap_err();
    assert_eq!(error.code, "owns_vms", "{error:?}");
    hosts[0].op::<ep::VmDelete>(&["a"], &Nothing {}).await;
    let purge = api::types::VmDeleteQuery { purge: true };
    let id = {
        let deleted = api::types::VmListQuery { deleted: true, tag: None };
        let bin = hosts[0].client().call::<ep::VmList>(&[], &deleted, &Nothing {}).await.unwrap();
        bin[0].id.to_string()
    };
    let op = hosts[0].client().call::<ep::VmDelete>(&[&id], &purge, &Nothing {}).await.unwrap();
    hosts[0].ended(&op).await;
    // The leader first, wherever it is.
    let (first, _) = leading(&hosts).await;
    hosts[first].client().send::<ep::ClusterLeave>(&[], &leave).await.unwrap();
    sees(&hosts[first], "by itself", |view| view.name.is_none() && view.leader.is_some()).await;
    let rest: Vec<_> = (0..3).filter(|n| *n != first).collect();
    for n in &rest {
        sees(&hosts[*n], "two", |view| is_whole(view, 2) && view.nodes.len() == 2).await;
    }
    hosts[rest[0]].client().send::<ep::ClusterLeave>(&[], &leave).await.unwrap();
    let last = &hosts[rest[1]];
    sees(last, "one", |view| view.voters == 1 && view.nodes.len() == 1).await;
    let error = last.client().send::<ep::ClusterLeave>(&[], &leave).await.unwrap_err();
    assert_eq!(error.code, "last_node", "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_join_is_told_why() {
    let netns = Netns::shared("refuse");
    let hosts = hosts(&netns, 3).await;
    let body = JoinTokenCreateBody::default();
    let error = hosts[0].client().send::<ep::JoinTokenCreate>(&[], &body).await.unwrap_err();
    assert_eq!(error.code, "no_cluster");
    create(&hosts[0], "lab").await;
    create(&hosts[1], "office").await;
    let good = token(&hosts[0], body).await;

    let refused = async |host: &Host, token: &str| join(host, token).await.unwrap_err();
    let mut typo = good.clone();
    let last = typo.pop().unwrap();
    typo.push(if last == 'A' { 'B' } else { 'A' });
    let error = refused(&hosts[2], &typo).await;
    assert_eq!(
        (error.kind, error.code.as_str()),
        (ErrorKind::BadRequest, "bad_token"),
        "{error:?}"
    );
    let brief = token(&hosts[0], JoinTokenCreateBody { valid_s: Some(1), uses: Some(1) }).await;
    eventually("the token ends", SETTLE, async || {
        let tokens = hosts[0].client().get::<ep::JoinTokenList>(&[]).await.unwrap();
        (tokens.len() == 1).then_some(())
    })
    .await;
    let error = refused(&hosts[2], &brief).await;
    assert_eq!(
        (error.kind, error.code.as_str()),
        (ErrorKind::Forbidden, "join_token"),
        "{error:?}"
    );
    let revoked = token(&hosts[0], body).await;
    for token in hosts[0].client().get::<ep::JoinTokenList>(&[]).await.unwrap() {
        let id = token.id.to_string();
        hosts[0].client().get::<ep::JoinTokenRevoke>(&[&id]).await.unwrap();
    }
    assert_eq!(refused(&hosts[2], &revoked).await.code, "join_token");
    let good = token(&hosts[0], body).await;
    // A host with something of its own.
    hosts[2].op::<ep::VmCreate>(&[], &vm_body("mine")).await;
    let error = refused(&hosts[2], &good).await;
    assert_eq!(error.code, "has_vms");
    assert!(error.message.contains("mine"), "{error:?}");
    // A second node of the same name.
    let namesake = host(&netns, 9, "H1").await;
    namesake.import_tiny().await;
    assert_eq!(refused(&namesake, &good).await.code, "has_images");
    namesake.op::<ep::ImageDelete>(&["tiny"], &Nothing {}).await;
    assert_eq!(refused(&namesake, &good).await.code, "join_refused");
    let error = refused(&namesake, &good).await;
    assert!(error.message.contains("named H1 exists"), "{error:?}");
    // The cluster itself; and a token whose cluster is another than the one that answers there.
    assert_eq!(refused(&hosts[0], &good).await.code, "own_token");
    let view = status(&hosts[0]).await.unwrap();
    assert_eq!(view.nodes.len(), 1, "nobody came in");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_the_ca_never_leaves_by_the_api() {
    let netns = Netns::shared("secret");
    let host = host(&netns, 1, "h1").await;
    create(&host, "lab").await;
    token(&host, JoinTokenCreateBody::default()).await;
    let client: &Client = host.client();
    let quiet =
        |info: &&api::endpoint::Info| info.method == Method::Get && info.reply == ReplyKind::Json;
    for info in TABLE.iter().filter(quiet) {
        for name in ["h1", "lab", "nat", "1"] {
            let path: Vec<_> = info.parameters().map(|_| name).collect();
            let answer = client.call_raw(info, &path, &Nothing {}, &Nothing {}).await;
            let text = answer.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            let text = text.unwrap_or_else(|error| format!("{error:?}"));
            assert!(!text.contains("PRIVATE KEY"), "{}", info.id);
        }
    }
    assert!(!host.log_tail().contains("PRIVATE KEY"));
    // A node's part is not shown by the name of another.
    let view = status(&host).await.unwrap();
    assert_eq!(view.nodes[0].part, ClusterPart::Leader);
    assert_eq!(<ep::ClusterShow as Endpoint>::INFO.id, "ClusterShow");
}
