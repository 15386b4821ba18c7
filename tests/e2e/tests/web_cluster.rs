//! Sessions of browsers in a cluster: begun at one node, known at the others, ended at all; and what
//! is left of them without a majority. Requests are curl's, with a browser's headers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use api::cluster::ClusterCreateBody;
use api::cluster::ClusterHealth;
use api::cluster::ClusterJoinBody;
use api::cluster::JoinTokenCreateBody;
use api::endpoint as ep;
use e2e::Host;
use e2e::Netns;
use e2e::Options;
use e2e::eventually;
use serde_json::Value;
use serde_json::json;

/// An election and then some, on a busy machine.
const SETTLE: Duration = Duration::from_secs(60);

struct Node {
    host: Host,
    address: String,
}

/// What came back.
#[derive(Debug)]
struct Answer {
    status: u16,
    cookie: Option<String>,
    body: Value,
}

impl Node {
    async fn start(netns: &Arc<Netns>, n: u8, more: &str) -> Self {
        let address = format!("127.0.0.{}:7443", n + 1);
        let extra = format!(
            "cluster_listen = \"127.0.0.{}:7444\"\ntls_listen = \"{address}\"\n{more}",
            n + 1
        );
        let host = Host::start_with(Options {
            engine: "fake",
            networking: false,
            guard: true,
            name: Some(format!("h{n}")),
            netns: Some(netns.clone()),
            extra,
            log_json: true,
            ..Options::default()
        })
        .await;
        Self { host, address }
    }

    /// A request as the page of this node's own address makes it.
    async fn ask(&self, method: &str, path: &str, headers: &[String], body: Value) -> Answer {
        let mut command = self.host.netns().command("curl");
        command.args(["--silent", "--insecure", "--include", "--max-time", "60"]);
        command.args(["--request", method, &format!("https://{}{path}", self.address)]);
        for header in headers {
            command.args(["--header", header]);
        }
        if !body.is_null() {
            command.args(["--data", &body.to_string()]);
        }
        let ran = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        let text = String::from_utf8(ran.stdout).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let cookie = head.lines().find_map(|line| line.strip_prefix("set-cookie: "));
        let cookie = cookie.map(|line| line.split(';').next().unwrap().to_owned());
        Answer { status, cookie, body: serde_json::from_str(body).unwrap_or_default() }
    }

    fn origin(&self) -> String {
        format!("Origin: https://{}", self.address)
    }

    async fn sign_in(&self, body: Value) -> Answer {
        self.ask("POST", "/v1/sessions", &[self.origin()], body).await
    }

    async fn look(&self, path: &str, cookie: &str) -> Answer {
        self.ask("GET", path, &[format!("Cookie: {cookie}")], Value::Null).await
    }

    async fn link(&self) -> Value {
        let made = self.host.cli(&["web", "--json"]).await.ok().json();
        json!({ "link": made["url"].as_str().unwrap().split_once('#').unwrap().1 })
    }
}

async fn pair(netns: &Arc<Netns>, more: &str) -> [Node; 2] {
    let nodes = [Node::start(netns, 1, more).await, Node::start(netns, 2, more).await];
    let body = ClusterCreateBody { name: Some("lab".parse().unwrap()) };
    nodes[0].host.client().send::<ep::ClusterCreate>(&[], &body).await.unwrap();
    let body = JoinTokenCreateBody::default();
    let token = nodes[0].host.client().send::<ep::JoinTokenCreate>(&[], &body).await.unwrap().text;
    nodes[1].host.client().send::<ep::ClusterJoin>(&[], &ClusterJoinBody { token }).await.unwrap();
    for node in &nodes {
        eventually("both vote", SETTLE, async || {
            let view = node.host.client().get::<ep::ClusterShow>(&[]).await.ok()?;
            (view.health == ClusterHealth::Healthy && view.voters == 2).then_some(())
        })
        .await;
    }
    nodes
}

#[tokio::test]
async fn a_session_holds_at_every_node_and_ends_at_every_node() {
    let netns = Netns::shared("web");
    let [one, two] = pair(&netns, "").await;

    // A link made here is used there, and nowhere a second time; also at the same moment.
    let link = one.link().await;
    let (first, second) = tokio::join!(one.sign_in(link.clone()), two.sign_in(link.clone()));
    let mut statuses = [first.status, second.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 401], "{first:?} {second:?}");
    let (begun, cookie) = [first, second]
        .into_iter()
        .find_map(|answer| Some((answer.body.clone(), answer.cookie?)))
        .unwrap();

    for node in [&one, &two] {
        // At once, or as soon as the other node has heard of it.
        eventually("the session is known", SETTLE, async || {
            let me = node.look("/v1/whoami", &cookie).await;
            (me.status == 200 && me.body["session"]["id"] == begun["session"]["id"]).then_some(())
        })
        .await;
        // Answered by the other node, which looks at the session itself.
        for name in ["h1", "h2"] {
            let answer = node.look(&format!("/v1/nodes/{name}"), &cookie).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(answer.body["name"], name);
        }
    }
    // The page of one node is a stranger at the other.
    let headers = [format!("Cookie: {cookie}"), one.origin()];
    let answer = two.ask("GET", "/v1/vms", &headers, Value::Null).await;
    assert_eq!(answer.body["code"], "wrong_origin");

    // Ended at one, it opens nothing at the other.
    let id = begun["session"]["id"].as_str().unwrap();
    let csrf = begun["session"]["csrf"].as_str().unwrap();
    let headers = [format!("Cookie: {cookie}"), one.origin(), format!("x-muster-csrf: {csrf}")];
    let answer = one.ask("DELETE", &format!("/v1/sessions/{id}"), &headers, Value::Null).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(one.look("/v1/whoami", &cookie).await.body["code"], "session_ended");
    eventually("the other node knows that it has ended", SETTLE, async || {
        let code = two.look("/v1/whoami", &cookie).await.body["code"].clone();
        (code == "session_ended").then_some(())
    })
    .await;
}

#[tokio::test]
async fn without_a_majority_who_is_signed_in_stays_so_and_nobody_else_signs_in() {
    let netns = Netns::shared("alone");
    let [one, mut two] = pair(&netns, "").await;
    let begun = one.sign_in(one.link().await).await;
    let cookie = begun.cookie.clone().unwrap();
    let made = one.host.cli(&["token", "create", "late", "--role", "viewer"]).await.ok();
    let late = json!({ "token": made.out.trim() });
    two.host.kill9();

    assert_eq!(one.look("/v1/whoami", &cookie).await.status, 200);
    assert_eq!(one.look("/v1/vms?stale=true", &cookie).await.status, 200);
    let refused = one.sign_in(late.clone()).await;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(!refused.body["hint"].as_str().unwrap().is_empty());

    two.host.restart().await;
    eventually("changes are possible again", SETTLE, async || {
        (one.sign_in(late.clone()).await.status == 200).then_some(())
    })
    .await;
    assert_eq!(one.look("/v1/whoami", &cookie).await.status, 200);
}

/// The limit on sessions that nobody uses, in this test.
const IDLE: Duration = Duration::from_secs(3);

#[tokio::test]
async fn a_session_that_is_used_at_one_node_is_ended_by_none_until_nobody_uses_it() {
    let netns = Netns::shared("idle");
    let more = format!("session_idle_s = {}", IDLE.as_secs());
    let [one, two] = pair(&netns, &more).await;
    // It began at the first node, which never hears of it again.
    let begun = one.sign_in(one.link().await).await;
    let (id, cookie) = (begun.body["session"]["id"].clone(), begun.cookie.unwrap());
    let touched = [format!("Cookie: {cookie}"), "x-muster-idle: 0".to_owned()];
    eventually("the other node knows the session", SETTLE, async || {
        (two.ask("GET", "/v1/whoami", &touched, Value::Null).await.status == 200).then_some(())
    })
    .await;
    let used_until = Instant::now() + 3 * IDLE;
    while Instant::now() < used_until {
        let answer = two.ask("GET", "/v1/whoami", &touched, Value::Null).await;
        assert_eq!(answer.status, 200, "ended while somebody used it: {answer:?}");
        // Each request is a program: some pause between them leaves the machine to the others.
        tokio::time::sleep(IDLE / 10).await;
    }
    // Asked by the command line from now on, which is no use of it.
    let listed = async |node: &Node| {
        let sessions = node.host.cli(&["session", "list", "--json"]).await.ok().json();
        sessions.as_array().unwrap().iter().any(|session| session["id"] == id)
    };
    for node in [&one, &two] {
        eventually("it has ended at both", SETTLE, async || (!listed(node).await).then_some(()))
            .await;
        let answer = node.look("/v1/whoami", &cookie).await;
        assert_eq!((answer.status, &answer.body["code"]), (401, &json!("session_ended")));
    }
    let events = one.host.events().await;
    let ended = events.iter().find(|it| it.event.kind.as_str() == "session.ended").unwrap();
    assert!(format!("{ended:?}").contains("the idle limit"), "{ended:?}");
}

/// What collects logs reads each line by itself, whatever a name or an error holds.
#[tokio::test]
async fn a_log_of_json_is_json_in_every_line() {
    let netns = Netns::shared("log");
    let node = Node::start(&netns, 1, "").await;
    node.host.cli(&["network", "create", "a\"b", "--isolated"]).await;
    let lines = node.host.log();
    assert!(lines.lines().count() > 3, "{lines}");
    for line in lines.lines() {
        let told: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for part in ["timestamp", "level", "fields", "target"] {
            assert!(!told[part].is_null(), "no {part} in {line}");
        }
    }
}
