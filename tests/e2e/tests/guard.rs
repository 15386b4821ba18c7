//! The guard of a real machine: what happens to it when its node cannot renew its lease.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::cluster::ClusterCreateBody;
use api::cluster::ClusterJoinBody;
use api::cluster::JoinTokenCreateBody;
use api::endpoint as ep;
use api::fence::CertaintyView;
use api::types::Phase;
use api::types::VmCreateBody;
use e2e::Host;
use e2e::Netns;
use e2e::OWN;
use e2e::Options;
use e2e::eventually;
use e2e::signal;
use e2e::tiny;

/// Long, so that a busy machine sees the time between the freeze (20 s) and the end.
const LEASE: Duration = Duration::from_secs(30);

/// A cluster comes about or comes to rest, on a busy machine.
const SETTLE: Duration = Duration::from_secs(60);

async fn host(netns: &Arc<Netns>, n: u8, engine: &'static str) -> Host {
    Host::start_with(Options {
        engine,
        networking: false,
        guard: true,
        name: Some(format!("h{n}")),
        netns: Some(netns.clone()),
        extra: format!(
            "cluster_listen = \"127.0.0.{}:7444\"\nlease_ms = {}\ncluster_lost_after_s = 600",
            n + 1,
            LEASE.as_millis()
        ),
        ..Options::default()
    })
    .await
}

/// Three nodes; the last one has real machines, and all know that its lease ends by itself.
async fn cluster(netns: &Arc<Netns>) -> [Host; 3] {
    let hosts =
        [host(netns, 1, "fake").await, host(netns, 2, "fake").await, host(netns, 3, "qemu").await];
    let body = ClusterCreateBody { name: Some("lab".parse().unwrap()) };
    hosts[0].client().send::<ep::ClusterCreate>(&[], &body).await.unwrap();
    let body = JoinTokenCreateBody::default();
    let token = hosts[0].client().send::<ep::JoinTokenCreate>(&[], &body).await.unwrap().text;
    for host in &hosts[1..] {
        let body = ClusterJoinBody { token: token.clone() };
        host.client().send::<ep::ClusterJoin>(&[], &body).await.unwrap();
    }
    eventually("the last node confirms its lease", SETTLE, async || {
        let view = hosts[2].client().get::<ep::NodeFencing>(&["h3"]).await.ok()?;
        matches!(view.certainty, CertaintyView::SelfFencing { .. }).then_some(())
    })
    .await;
    hosts
}

/// Waits until the guard says so.
async fn guarded(host: &Host, stage: &str) {
    eventually(&format!("the guard is {stage}"), LEASE * 3, async || {
        (host.guard_status()?["stage"] == stage).then_some(())
    })
    .await;
}

fn alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}/exe")).exists()
}

async fn dead(pid: u32) {
    eventually("QEMU is dead", LEASE * 3, async || (!alive(pid)).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_ends_with_the_lease_whatever_becomes_of_the_daemon_and_the_guard() {
    let netns = Netns::shared("guard");
    let [_first, _second, mut host] = cluster(&netns).await;
    host.import_tiny().await;
    host.create(&VmCreateBody { nics: Vec::new(), ..tiny("a") }).await.start().await;
    let pid = host.vm("a").run().await.pid;
    guarded(&host, "open").await;

    // A daemon that stands still and goes on.
    let daemon = host.daemon_pid().unwrap();
    signal(daemon, "-STOP");
    guarded(&host, "frozen").await;
    assert!(alive(pid), "frozen, not killed");
    dead(pid).await;
    signal(daemon, "-CONT");
    guarded(&host, "open").await;
    let vm = host.vm("a");
    let view = vm.wait("it runs again", |view| view.phase == Phase::Running).await;
    let second = view.run.unwrap().pid;
    assert_ne!(second, pid);

    // A daemon that is gone, and a guard that is killed in the middle.
    host.kill9();
    guarded(&host, "frozen").await;
    host.kill_guard();
    host.start_guard();
    eventually("the next guard answers", OWN, async || host.guard_status()).await;
    dead(second).await;
    guarded(&host, "ended").await;
    host.restart().await;
    guarded(&host, "open").await;
    host.vm("a").wait("it runs again", |view| view.phase == Phase::Running).await;
}
