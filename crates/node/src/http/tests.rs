//! The daemon over its real socket, with the fake engine: who may do what, and the life of a VM.

use std::sync::Arc;
use std::time::Duration;

use api::ErrorKind;
use api::client::Client;
use api::client::Target;
use api::endpoint as ep;
use api::endpoint::Access;
use api::endpoint::Info;
use api::endpoint::Nothing;
use api::endpoint::ReplyKind;
use api::endpoint::TABLE;
use api::types::DiskAddBody;
use api::types::OpView;
use api::types::OpWaitQuery;
use api::types::Phase;
use api::types::ShutdownBody;
use api::types::TokenCreateBody;
use api::types::UndeleteBody;
use api::types::VmCreateBody;
use api::types::VmDeleteQuery;

use model::OpState;
use model::Role;
use serde_json::Value;
use serde_json::json;
use tower::ServiceExt;
use vm::engine::fake::FakeEngine;
use vm::engine::fake::FakeHost;
use vm::engine::fake::Fault;
use vm::lifecycle::Progress;

use crate::app::App;
use crate::cluster::forward::CALLER_HEADER;
use crate::config::Config;
use crate::config::EngineKind;
use crate::http::Caller;
use crate::http::Peer;
use crate::http::bind_unix;
use crate::http::router;
use crate::http::serve_tls;
use crate::http::serve_unix;
use crate::start::assemble;

pub(super) struct Daemon {
    pub(super) admin: Client,
    pub(super) app: Arc<App>,
    address: String,
    fingerprint: String,
    fake: FakeHost,
    pub(super) router: axum::Router,
    _dir: tempfile::TempDir,
}

pub(super) async fn daemon() -> Daemon {
    daemon_with(|_| {}).await
}

pub(super) async fn daemon_with(change: impl FnOnce(&mut Config)) -> Daemon {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config {
        data_dir: dir.path().to_owned(),
        run_dir: dir.path().to_owned(),
        tls_listen: Some("127.0.0.1:0".parse().unwrap()),
        node_name: Some("h1".to_owned()),
        networking: false,
        engine: EngineKind::Fake,
        ..Config::default()
    };
    change(&mut config);
    let fake = FakeHost::new();
    let engine = Arc::new(FakeEngine::new(&fake));
    let (app, tls) = assemble(&config, engine).await.unwrap();
    let router = router(app.clone());
    let listener = bind_unix(&config.socket_path(), &config).unwrap();
    tokio::spawn(serve_unix(listener, router.clone(), config.clone()));
    let tls = tls.unwrap();
    let info = tls.info.clone();
    tokio::spawn(serve_tls(tls, router.clone(), app.clone()));
    Daemon {
        admin: Client::new(Target::Unix { path: config.socket_path() }),
        app,
        address: info.address.to_string(),
        fingerprint: info.fingerprint,
        fake,
        router,
        _dir: dir,
    }
}

impl Daemon {
    pub(super) fn with_token(&self, token: &str) -> Client {
        Client::new(Target::Tls {
            address: self.address.clone(),
            fingerprint: self.fingerprint.clone(),
            token: token.to_owned(),
        })
    }

    async fn token(&self, role: Role) -> Client {
        let name = role.as_str().parse().unwrap();
        let body = TokenCreateBody { name, role, valid_s: None, certificate: None };
        let made = self.admin.send::<ep::TokenCreate>(&[], &body).await.unwrap();
        self.with_token(&made.secret)
    }

    async fn ended(&self, op: OpView) -> OpView {
        let id = op.id.to_string();
        let query = OpWaitQuery { timeout_ms: 20_000 };
        let until = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            let op = self.admin.call::<ep::OpWait>(&[&id], &query, &Nothing {}).await.unwrap();
            if !op.is_running() || tokio::time::Instant::now() > until {
                return op;
            }
        }
    }

    async fn done(&self, op: OpView) {
        let op = self.ended(op).await;
        assert!(matches!(op.state, OpState::Done { .. }), "{op:?}");
    }

    async fn create(&self, name: &str) {
        let body = serde_json::json!({
            "name": name, "memory": 128 << 20, "disks": [{ "size": 1 << 20 }],
        });
        let body: VmCreateBody = serde_json::from_value(body).unwrap();
        let op = self.admin.send::<ep::VmCreate>(&[], &body).await.unwrap();
        self.done(op).await;
    }

    async fn phase(&self, name: &str) -> Phase {
        self.admin.get::<ep::VmShow>(&[name]).await.unwrap().phase
    }
}

/// Calls an endpoint with a name that nothing has and an empty body: whoever may call it gets some
/// answer about that, whoever may not is told so.
async fn try_endpoint(client: &Client, info: &Info) -> Result<(), ErrorKind> {
    let path: Vec<&str> = info.parameters().map(|_| "no-such-thing").collect();
    client.call_raw(info, &path, &Nothing {}, &Nothing {}).await.map(drop).map_err(|e| e.kind)
}

fn is_denied(result: Result<(), ErrorKind>) -> bool {
    matches!(result, Err(ErrorKind::Forbidden | ErrorKind::Unauthenticated))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_keeps_to_the_authorization_table() {
    let daemon = daemon().await;
    let roles = [Role::Viewer, Role::Operator, Role::Administrator];
    let mut clients = Vec::new();
    for role in roles {
        clients.push((role, daemon.token(role).await));
    }
    let nobody = daemon.with_token("wrong");
    // A stream's answer has no end to wait for; its check is the same code and runs before it.
    for info in TABLE.iter().filter(|info| info.reply != ReplyKind::EventStream) {
        let needed = match info.access {
            Access::Anyone => None,
            Access::Needs(role) => Some(role),
        };
        assert_eq!(
            is_denied(try_endpoint(&nobody, info).await),
            needed.is_some(),
            "{} without a token",
            info.id
        );
        for (role, client) in &clients {
            let denied = is_denied(try_endpoint(client, info).await);
            let expected = needed.is_some_and(|needed| *role < needed);
            assert_eq!(denied, expected, "{} as {role}", info.id);
        }
    }
}

/// What a monitoring program asks for, and what its own checker says of it.
#[tokio::test(flavor = "multi_thread")]
async fn figures_are_as_monitoring_programs_read_them() {
    let daemon = daemon().await;
    daemon.create("web-1").await;
    let asked = async |path: &str, peer: Peer| {
        let request = axum::extract::Request::builder().uri(path).extension(peer);
        let request = request.body(axum::body::Body::empty()).unwrap();
        let answer = daemon.router.clone().oneshot(request).await.unwrap();
        let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
        let status = answer.status();
        let bytes = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        (status, kind, String::from_utf8(bytes.to_vec()).unwrap())
    };
    assert_eq!(asked("/metrics", Peer::Tls(None)).await.0, axum::http::StatusCode::UNAUTHORIZED);
    let root = || Peer::Unix(Some(Caller::by_word(model::Actor::new("test"), Role::Viewer)));
    let (status, kind, text) = asked("/metrics", root()).await;
    assert_eq!((status.as_u16(), kind.starts_with("application/openmetrics-text")), (200, true));
    for line in [
        "muster_cluster_health{health=\"single\"} 1.0",
        "muster_node_vms_running 0.0",
        "muster_vm_memory_bytes{vm=\"web-1\",id=",
        "# EOF",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    let phase = text.lines().find(|line| line.starts_with("muster_vm_phase{")).unwrap();
    assert!(phase.contains("vm=\"web-1\"") && phase.contains("phase=\"off\""), "{phase}");
    assert_eq!(asked("/v1/metrics", root()).await.2.lines().count(), text.lines().count());

    let tool = std::env::current_exe().unwrap();
    let tool =
        tool.ancestors().find_map(|dir| Some(dir.join("tools/promtool")).filter(|it| it.exists()));
    let tool = tool.expect("promtool is missing: cargo xtask install");
    let mut check = std::process::Command::new(tool);
    check.args(["check", "metrics"]).stdin(std::process::Stdio::piped());
    check.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = check.spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
    let said = child.wait_with_output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
}

/// A machine's figures come from what this node has measured, by name and by id, to a viewer.
#[tokio::test(flavor = "multi_thread")]
async fn figures_over_time_are_told_and_nonsense_is_refused() {
    let daemon = daemon().await;
    daemon.create("a").await;
    let viewer = daemon.token(Role::Viewer).await;
    let vm = daemon.admin.get::<ep::VmShow>(&["a"]).await.unwrap().id;
    let empty = viewer.get::<ep::VmMetrics>(&["a"]).await.unwrap();
    assert_eq!((empty.resolution_s, empty.series.len()), (1, 0), "it never ran");

    let second = crate::app::now().get() / 1_000;
    let mut values = [f32::NAN; api::history::Figure::ALL.len()];
    values[0] = 12.345;
    daemon.app.history.note(crate::history::Object::Vm(vm), second, values);
    for name in ["a", &vm.to_string()] {
        let view = viewer.get::<ep::VmMetrics>(&[name]).await.unwrap();
        assert_eq!(view.series.len(), 1);
        assert_eq!(view.series[0].figure, api::history::Figure::CpuPercent);
        let place = usize::try_from(second - view.from.get() / 1_000).unwrap();
        assert_eq!(view.series[0].mean[place], Some(12.35));
        assert_eq!(view.series[0].mean.len() as u64, view.points);
        assert!(view.silent.is_empty());
    }
    // The node itself is measured from its first second on.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let view = viewer.get::<ep::NodeMetrics>(&["h1"]).await.unwrap();
        let memory = view.series.iter().find(|it| it.figure == api::history::Figure::Memory);
        if let Some(used) = memory.and_then(|it| it.mean.iter().flatten().last()) {
            assert!(*used > 1e6, "{used}");
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "nothing was measured");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    let query = api::history::MetricsQuery { resolution_s: Some(7), ..Default::default() };
    let error = viewer.call::<ep::VmMetrics>(&["a"], &query, &Nothing {}).await.unwrap_err();
    assert_eq!((error.kind, error.code.as_str()), (ErrorKind::BadRequest, "bad_time"));
    let error = viewer.get::<ep::VmMetrics>(&["none"]).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    let error = viewer.get::<ep::NodeMetrics>(&["none"]).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
}

/// What a node's certificate opens, whomever the node says it asks for.
#[tokio::test(flavor = "multi_thread")]
async fn a_nodes_certificate_is_not_an_administrators() {
    let daemon = daemon().await;
    let node = model::NodeId::new(uuid::Uuid::from_u128(7));
    let claim = hex::encode(r#"{"actor":"root","role":"administrator"}"#);
    let mut passed = Vec::new();
    for info in TABLE.iter().filter(|info| info.reply != ReplyKind::EventStream) {
        let path: Vec<&str> = info.parameters().map(|_| "no-such-thing").collect();
        let request = axum::extract::Request::builder()
            .method(info.method.as_str())
            .uri(info.fill(&path))
            .header(CALLER_HEADER, &claim)
            .extension(Peer::Member(node))
            .body(axum::body::Body::empty())
            .unwrap();
        let answer = daemon.router.clone().oneshot(request).await.unwrap();
        match answer.status() {
            axum::http::StatusCode::FORBIDDEN => {}
            axum::http::StatusCode::NOT_FOUND => passed.push(info.id),
            other => panic!("{}: {other}", info.id),
        }
    }
    let seen_by_the_owner_only =
        ["VmShow", "VmFreeze", "VmThaw", "VmScreenshot", "VmSerial", "VmVnc", "NodeShow"];
    passed.sort_unstable();
    let mut expected = seen_by_the_owner_only.to_vec();
    expected.sort_unstable();
    assert_eq!(passed, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_and_a_foreign_certificate_are_refused() {
    let daemon = daemon().await;
    let viewer = daemon.token(Role::Viewer).await;
    viewer.get::<ep::WhoAmI>(&[]).await.unwrap();
    daemon.admin.get::<ep::TokenRevoke>(&["viewer"]).await.unwrap();
    let error = viewer.get::<ep::WhoAmI>(&[]).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unauthenticated);

    let other = Client::new(Target::Tls {
        address: daemon.address.clone(),
        fingerprint: "00".repeat(32),
        token: String::new(),
    });
    let error = other.get::<ep::Version>(&[]).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_life_of_a_vm() {
    let daemon = daemon().await;
    let admin = &daemon.admin;
    daemon.create("a").await;
    assert_eq!(daemon.phase("a").await, Phase::Off);

    daemon.done(admin.get::<ep::VmStart>(&["a"]).await.unwrap()).await;
    assert_eq!(daemon.phase("a").await, Phase::Running);
    daemon.done(admin.get::<ep::VmPause>(&["a"]).await.unwrap()).await;
    assert_eq!(daemon.phase("a").await, Phase::Paused);
    daemon.done(admin.get::<ep::VmResume>(&["a"]).await.unwrap()).await;
    assert_eq!(daemon.phase("a").await, Phase::Running);

    let disk = DiskAddBody { size: Some(model::Bytes::mib(1)), ..DiskAddBody::default() };
    daemon.done(admin.send::<ep::DiskAdd>(&["a"], &disk).await.unwrap()).await;
    let vm = admin.get::<ep::VmShow>(&["a"]).await.unwrap();
    assert_eq!(vm.disks.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), ["disk0", "disk1"]);
    daemon.done(admin.get::<ep::DiskRemove>(&["a", "disk1"]).await.unwrap()).await;

    daemon.done(admin.get::<ep::VmSave>(&["a"]).await.unwrap()).await;
    assert_eq!(daemon.phase("a").await, Phase::Saved);
    assert!(daemon.fake.alive().is_empty(), "a saved VM has no process");
    daemon.done(admin.get::<ep::VmStart>(&["a"]).await.unwrap()).await;
    assert_eq!(daemon.phase("a").await, Phase::Running);

    let body = ShutdownBody { patience_s: 10, then_off: false };
    daemon.done(admin.send::<ep::VmShutdown>(&["a"], &body).await.unwrap()).await;
    assert_eq!(daemon.phase("a").await, Phase::Off);
    assert!(daemon.fake.alive().is_empty());
    daemon.done(admin.get::<ep::VmDelete>(&["a"]).await.unwrap()).await;
    let error = admin.get::<ep::VmShow>(&["a"]).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    let back = UndeleteBody { name: Some("b".parse().unwrap()) };
    let back = admin.send::<ep::VmUndelete>(&["a"], &back).await.unwrap();
    assert_eq!((back.name.as_str(), back.phase), ("b", Phase::Off));
    daemon.done(admin.get::<ep::VmDelete>(&["b"]).await.unwrap()).await;
    let purge = VmDeleteQuery { purge: true };
    let op = admin.call::<ep::VmDelete>(&["b"], &purge, &Nothing {}).await.unwrap();
    daemon.done(op).await;
    let error = admin.get::<ep::VmShow>(&[&back.id.to_string()]).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_an_operation_hears_how_far_it_is() {
    let daemon = daemon().await;
    let admin = &daemon.admin;
    daemon.create("a").await;
    daemon.done(admin.get::<ep::VmStart>(&["a"]).await.unwrap()).await;
    daemon.fake.inject(None, Fault::IgnoreShutdown);
    let body = ShutdownBody { patience_s: 60, then_off: false };
    let op = admin.send::<ep::VmShutdown>(&["a"], &body).await.unwrap();
    let (id, query) = (op.id.to_string(), OpWaitQuery { timeout_ms: 20_000 });
    let path = [id.as_str()];
    let begun = tokio::time::Instant::now();
    let news = async {
        for done in 1.. {
            let told = admin.call::<ep::OpWait>(&path, &query, &Nothing {});
            let moves = async {
                // After the request was made; if it was not, the next round finds it.
                tokio::time::sleep(Duration::from_millis(100)).await;
                let progress = Progress { step: "test".to_owned(), done, total: 0 };
                daemon.app.progresses.set(op.id, progress);
            };
            let (told, ()) = tokio::join!(told, moves);
            let progress = told.unwrap().progress;
            if progress.is_some_and(|progress| progress.step == "test") {
                return;
            }
        }
    };
    news.await;
    assert!(begun.elapsed() < Duration::from_secs(15), "it was told at the end of the wait");
    admin.get::<ep::OpCancel>(&[&id]).await.unwrap();
    daemon.ended(op).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clients_at_once_one_is_told_to_wait() {
    let daemon = daemon().await;
    daemon.create("a").await;
    let (one, two) = tokio::join!(
        daemon.admin.get::<ep::VmStart>(&["a"]),
        daemon.admin.get::<ep::VmStart>(&["a"]),
    );
    let (won, lost) = match (one, two) {
        (Ok(won), Err(lost)) | (Err(lost), Ok(won)) => (won, lost),
        both => panic!("exactly one may win: {both:?}"),
    };
    assert_eq!(lost.kind, ErrorKind::Conflict);
    assert!(!lost.hint.is_empty());
    daemon.done(won).await;
    assert_eq!(daemon.fake.alive().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crashed_vm_is_started_again_and_the_event_says_so() {
    let daemon = daemon().await;
    daemon.create("a").await;
    daemon.done(daemon.admin.get::<ep::VmStart>(&["a"]).await.unwrap()).await;
    let mut events = daemon.admin.events::<ep::EventStream>(&Default::default()).await.unwrap();
    let vm = daemon.admin.get::<ep::VmShow>(&["a"]).await.unwrap();
    daemon.fake.crash(vm.id);
    let wait = async {
        loop {
            let event = events.next().await.unwrap().unwrap();
            if event.event.kind == model::EventKind::VmRestarting {
                break;
            }
        }
        while daemon.fake.alive().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), wait).await.unwrap();
    let again = daemon.admin.get::<ep::VmShow>(&["a"]).await.unwrap();
    assert_eq!(again.generation, vm.generation.next());
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_get_a_typed_answer() {
    let daemon = daemon().await;
    let admin = &daemon.admin;
    for name in ["", "../x", "a b", &"x".repeat(300)] {
        let body = serde_json::json!({ "name": name });
        let error = admin
            .call_raw(&<ep::VmCreate as ep::Endpoint>::INFO, &[], &Nothing {}, &body)
            .await
            .unwrap_err();
        assert_eq!(error.kind, ErrorKind::BadRequest, "{name}");
    }
    let body = serde_json::json!({ "name": "big", "memory": 1_u64 << 43 });
    let error = admin
        .call_raw(&<ep::VmCreate as ep::Endpoint>::INFO, &[], &Nothing {}, &body)
        .await
        .unwrap_err();
    assert_eq!(error.code, "host_memory", "{error}");
    daemon.create("a").await;
    let body = serde_json::json!({ "name": "A" });
    let error = admin
        .call_raw(&<ep::VmCreate as ep::Endpoint>::INFO, &[], &Nothing {}, &body)
        .await
        .unwrap_err();
    assert_eq!(error.code, "name_taken");
    let huge = serde_json::json!({ "name": "h", "description": "x".repeat(2 << 20) });
    let error = admin
        .call_raw(&<ep::VmCreate as ep::Endpoint>::INFO, &[], &Nothing {}, &huge)
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::TooLarge);
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_admitted_by_size_maximum_and_what_is_left() {
    let daemon = daemon().await;
    let admin = &daemon.admin;
    let host = crate::host::memory().total;
    let create = async |name: &str, memory: u64, max: u64| {
        let body = serde_json::json!({ "name": name, "memory": memory, "memory_max": max });
        let body: VmCreateBody = serde_json::from_value(body).unwrap();
        admin.send::<ep::VmCreate>(&[], &body).await
    };
    let mib = 1 << 20;
    let beyond = (host.get() / (2 * mib) + 1) * 2 * mib;
    for (memory, max) in [(beyond, beyond), (128 * mib, beyond)] {
        let error = create("big", memory, max).await.unwrap_err();
        assert_eq!((error.kind, error.code.as_str()), (ErrorKind::BadRequest, "host_memory"));
    }
    // A maximum within the host promises nothing: two may hope for the same memory.
    let most = (host.get() - 1) / (2 * mib) * 2 * mib;
    for name in ["a", "b"] {
        daemon.done(create(name, 128 * mib, most).await.unwrap()).await;
    }
    let memory = |memory: u64| model::VmChange {
        memory: Some(model::Bytes::new(memory)),
        ..model::VmChange::default()
    };
    let max = model::VmChange {
        memory_max: Some(model::Bytes::new(beyond)),
        ..model::VmChange::default()
    };
    let error = admin.send::<ep::VmSet>(&["a"], &max).await.unwrap_err();
    assert_eq!(error.code, "host_memory");
    daemon.done(admin.get::<ep::VmStart>(&["a"]).await.unwrap()).await;
    // What a running VM is to get must be there.
    let error = admin.send::<ep::VmSet>(&["a"], &memory(most)).await.unwrap_err();
    assert_eq!((error.kind, error.code.as_str()), (ErrorKind::Conflict, "host_memory"));
    daemon.done(admin.send::<ep::VmSet>(&["a"], &memory(256 * mib)).await.unwrap()).await;
    daemon.done(admin.send::<ep::VmSet>(&["b"], &memory(most)).await.unwrap()).await;
    let error = admin.get::<ep::VmStart>(&["b"]).await.unwrap_err();
    assert_eq!(error.code, "host_memory");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_guest_would_be_told_is_shown_and_nothing_is_made() {
    let daemon = daemon().await;
    let asked = async |config: Value| {
        let body = json!({ "name": "web_1", "nics": [{ "network": "nat" }], "cloud_init": config });
        let body: VmCreateBody = serde_json::from_value(body).unwrap();
        daemon.admin.send::<ep::VmFirstBoot>(&[], &body).await
    };
    assert_eq!(asked(Value::Null).await.unwrap().files, []);
    let told = asked(json!({ "user": "anna" })).await.unwrap().files;
    let text = |name: &str| told.iter().find(|file| file.name == name).unwrap().text.clone();
    assert!(text("user-data").starts_with("#cloud-config\n"), "{told:?}");
    assert!(text("user-data").contains("\"name\": \"anna\""), "{told:?}");
    assert!(text("meta-data").contains("\"local-hostname\": \"web-1\""), "{told:?}");
    assert!(text("network-config").contains("macaddress"), "{told:?}");
    let refused = asked(json!({ "user": "anna", "ssh_keys": ["nonsense"] })).await.unwrap_err();
    assert_eq!((refused.kind, refused.code.as_str()), (ErrorKind::BadRequest, "first_boot"));
    assert!(daemon.admin.get::<ep::VmList>(&[]).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_not_emptied_where_nobody_would_take_their_machines() {
    let daemon = daemon().await;
    let evacuate = async |nodes: &[&str]| {
        let nodes = nodes.iter().map(|name| (*name).to_owned()).collect();
        let body = api::ha::EvacuationBody { nodes, with_storage: false };
        daemon.admin.send::<ep::Evacuate>(&[], &body).await.unwrap_err()
    };
    let node = daemon.admin.get::<ep::NodeList>(&[]).await.unwrap().remove(0);
    let refused = evacuate(&[&node.id.to_string()]).await;
    assert_eq!((refused.kind, refused.code.as_str()), (ErrorKind::Conflict, "nowhere"));
    assert!(refused.hint.contains("muster node resume"), "{refused:?}");
    assert_eq!(evacuate(&[]).await.kind, ErrorKind::BadRequest);
    assert_eq!(evacuate(&["host-9"]).await.kind, ErrorKind::NotFound);
    let after = daemon.admin.get::<ep::NodeList>(&[]).await.unwrap().remove(0);
    assert_eq!(after.mode, model::NodeMode::Active);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_is_told_with_who_did_it_and_sets_it_back() {
    let daemon = daemon().await;
    let body = json!({ "name": "a", "memory": model::Bytes::mib(64) });
    let body: VmCreateBody = serde_json::from_value(body).unwrap();
    let op = daemon.admin.send::<ep::VmCreate>(&[], &body).await.unwrap();
    daemon.ended(op).await;
    assert_eq!(daemon.admin.get::<ep::VmHistory>(&["a"]).await.unwrap(), []);
    let operator = daemon.token(Role::Operator).await;
    let change = model::VmChange {
        memory: Some(model::Bytes::mib(128)),
        keys: [("password".to_owned(), "hunter2".to_owned())].into(),
        ..model::VmChange::default()
    };
    let op = operator.send::<ep::VmSet>(&["a"], &change).await.unwrap();
    daemon.ended(op).await;
    let viewer = daemon.token(Role::Viewer).await;
    let changes = viewer.get::<ep::VmHistory>(&["a"]).await.unwrap();
    let [change] = changes.as_slice() else { panic!("{changes:?}") };
    assert_eq!(change.by, "token operator");
    assert!(!format!("{changes:?}").contains("hunter2"));
    let fields: Vec<_> = change.fields.iter().map(|it| it.field.as_str()).collect();
    assert_eq!(fields, ["memory", "most memory", "key password"]);
    let back = change.back.clone().unwrap();
    let op = operator.send::<ep::VmSet>(&["a"], &back).await.unwrap();
    daemon.ended(op).await;
    let vm = daemon.admin.get::<ep::VmShow>(&["a"]).await.unwrap();
    assert_eq!(vm.memory.size, model::Bytes::mib(64));
    let changes = daemon.admin.get::<ep::VmHistory>(&["a"]).await.unwrap();
    assert_eq!(changes[0].fields[0].new.as_deref(), Some("64 MiB"), "newest first");
}
