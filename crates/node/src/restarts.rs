//! Tests: whole daemons that end and begin again on the same data, with work in flight.

use std::sync::Arc;
use std::time::Duration;

use api::client::Client;
use api::client::Target;
use api::endpoint as ep;
use api::endpoint::Nothing;
use api::types::EventQuery;
use api::types::ImageImportBody;
use api::types::OpView;
use api::types::OpWaitQuery;
use api::types::Phase;
use api::types::ShutdownBody;
use api::types::TokenCreateBody;
use api::types::VmCreateBody;
use model::OpState;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::runtime::Runtime;
use vm::engine::fake::FakeEngine;
use vm::engine::fake::FakeHost;
use vm::engine::fake::Fault;

use crate::app::App;
use crate::config::Config;
use crate::config::EngineKind;
use crate::http;
use crate::start::assemble;

/// Longest wait of a test.
const PATIENCE: Duration = Duration::from_secs(60);

/// What outlives a daemon.
struct Host {
    config: Config,
    fake: FakeHost,
    client: Client,
    _dir: TempDir,
}

/// A daemon on a runtime of its own, so that it can go as a process goes: at once, everywhere.
struct Daemon {
    app: Arc<App>,
    runtime: Runtime,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            data_dir: dir.path().to_owned(),
            run_dir: dir.path().to_owned(),
            node_name: Some("h1".to_owned()),
            networking: false,
            engine: EngineKind::Fake,
            ..Config::default()
        };
        let client = Client::new(Target::Unix { path: config.socket_path() });
        Self { config, fake: FakeHost::new(), client, _dir: dir }
    }

    /// Begins as soon as the one before has let the state go.
    async fn daemon(&self) -> Daemon {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            let (config, engine) = (self.config.clone(), FakeEngine::new(&self.fake));
            let begun = runtime.spawn(async move {
                let (app, _) = assemble(&config, Arc::new(engine)).await?;
                let listener = http::bind_unix(&config.socket_path(), &config)?;
                tokio::spawn(http::serve_unix(listener, http::router(app.clone()), config));
                anyhow::Ok(app)
            });
            match begun.await.unwrap() {
                Ok(app) => return Daemon { app, runtime },
                Err(error) if tokio::time::Instant::now() > until => panic!("{error:#}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    async fn ended(&self, op: OpView) -> OpState {
        let query = OpWaitQuery { timeout_ms: 30_000 };
        let id = op.id.to_string();
        loop {
            let op = self.client.call::<ep::OpWait>(&[&id], &query, &Nothing {}).await.unwrap();
            if !op.is_running() {
                return op.state;
            }
        }
    }

    async fn done(&self, op: OpView) {
        let state = self.ended(op).await;
        assert!(matches!(state, OpState::Done { .. }), "{state:?}");
    }

    async fn create(&self, name: &str) {
        let body = serde_json::json!({
            "name": name, "memory": 128 << 20, "disks": [{ "size": 1 << 20 }],
        });
        let body: VmCreateBody = serde_json::from_value(body).unwrap();
        self.done(self.client.send::<ep::VmCreate>(&[], &body).await.unwrap()).await;
    }

    async fn phase(&self, name: &str, wanted: Phase) {
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            let phase = self.client.get::<ep::VmShow>(&[name]).await.unwrap().phase;
            if phase == wanted {
                return;
            }
            assert!(tokio::time::Instant::now() < until, "{name} is {phase:?}, not {wanted:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Daemon {
    /// `kill -9`.
    fn kill(self) {
        self.runtime.shutdown_background();
    }
}

#[tokio::test]
async fn machines_run_on_and_operations_end() {
    let host = Host::new();
    let daemon = host.daemon().await;
    for name in ["a", "b", "c"] {
        host.create(name).await;
    }
    for name in ["a", "b"] {
        host.done(host.client.get::<ep::VmStart>(&[name]).await.unwrap()).await;
    }
    let before = host.client.get::<ep::VmShow>(&["a"]).await.unwrap();
    let b = host.client.get::<ep::VmShow>(&["b"]).await.unwrap().id;
    let c = host.client.get::<ep::VmShow>(&["c"]).await.unwrap().id;
    host.fake.inject(Some(b), Fault::IgnoreShutdown);
    host.fake.inject(Some(c), Fault::LaunchSlow(Duration::from_secs(300)));
    let body = ShutdownBody { patience_s: 30, then_off: false };
    let shutdown = host.client.send::<ep::VmShutdown>(&["b"], &body).await.unwrap();
    let start = host.client.get::<ep::VmStart>(&["c"]).await.unwrap();
    host.phase("c", Phase::Starting).await;
    daemon.kill();
    assert!(host.fake.alive().contains(&before.id));
    host.fake.heal();
    let daemon = host.daemon().await;
    host.done(shutdown).await;
    host.done(start).await;
    host.phase("a", Phase::Running).await;
    host.phase("b", Phase::Off).await;
    host.phase("c", Phase::Running).await;
    let mut alive = host.fake.alive();
    alive.sort();
    let mut wanted = vec![before.id, c];
    wanted.sort();
    assert_eq!(alive, wanted);
    let after = host.client.get::<ep::VmShow>(&["a"]).await.unwrap();
    assert_eq!((after.generation, after.revision), (before.generation, before.revision));
    daemon.kill();
}

/// A server whose first connections send half and fall silent.
async fn half_server(body: Vec<u8>, silent: usize) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut held = Vec::new();
        for number in 0.. {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { break };
                head.push(byte);
            }
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(answer.as_bytes()).await;
            let sent = if number < silent { body.len() / 2 } else { body.len() };
            let _ = stream.write_all(&body[..sent]).await;
            held.push(stream);
        }
    });
    port
}

async fn import(host: &Host, port: u16) -> OpView {
    let body = serde_json::json!({
        "name": "img", "format": "raw",
        "source": { "from": "url", "url": format!("http://127.0.0.1:{port}/disk.raw") },
    });
    let body: ImageImportBody = serde_json::from_value(body).unwrap();
    let op = host.client.send::<ep::ImageImport>(&[], &body).await.unwrap();
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        let id = op.id.to_string();
        let seen = host.client.get::<ep::OpShow>(&[&id]).await.unwrap();
        if seen.progress.is_some_and(|progress| progress.done > 0) {
            return op;
        }
        assert!(tokio::time::Instant::now() < until, "the import does not begin: {:?}", seen.state);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn an_import_goes_on_after_a_restart() {
    let host = Host::new();
    let port = half_server(vec![7; 4 << 20], 1).await;
    let daemon = host.daemon().await;
    let op = import(&host, port).await;
    daemon.kill();
    let daemon = host.daemon().await;
    host.done(op).await;
    let image = host.client.get::<ep::ImageShow>(&["img"]).await.unwrap();
    assert!(matches!(image.state, model::ImageState::Ready { .. }), "{image:?}");
    daemon.kill();
}

#[tokio::test]
async fn an_import_is_cancelled_after_a_restart_and_leaves_nothing() {
    let host = Host::new();
    let port = half_server(vec![7; 4 << 20], usize::MAX).await;
    let daemon = host.daemon().await;
    let op = import(&host, port).await;
    daemon.kill();
    let daemon = host.daemon().await;
    let id = op.id.to_string();
    host.client.get::<ep::OpCancel>(&[&id]).await.unwrap();
    let state = host.ended(op).await;
    assert!(matches!(state, OpState::Cancelled { .. }), "{state:?}");
    assert!(host.client.get::<ep::ImageList>(&[]).await.unwrap().is_empty());
    let mut left = Vec::new();
    let mut dirs = vec![host.config.data_dir.join("images")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                dirs.push(entry.path());
            } else if entry.metadata().unwrap().len() > 0 {
                left.push(entry.path());
            }
        }
    }
    assert!(left.is_empty(), "{left:?}");
    daemon.kill();
}

async fn make_token(host: &Host, n: usize) {
    let name = format!("t{n}").parse().unwrap();
    let body =
        TokenCreateBody { name, role: model::Role::Viewer, valid_s: None, certificate: None };
    host.client.send::<ep::TokenCreate>(&[], &body).await.unwrap();
}

#[tokio::test]
async fn a_reader_that_lags_or_comes_back_misses_no_event() {
    // More than the live queue holds.
    const EVENTS: usize = 1_500;
    let host = Host::new();
    let daemon = host.daemon().await;
    let mut slow = daemon.app.events.subscribe(None).unwrap();
    let first = host.client.get::<ep::EventList>(&[]).await.unwrap().last().unwrap().seq;
    // From there on: the daemon's start may tell something between the list and the stream.
    let query = EventQuery { after: Some(first), limit: None };
    let mut stream = host.client.events::<ep::EventStream>(&query).await.unwrap();
    for n in (0..EVENTS / 2).map(|n| n * 2) {
        let (name, id) = (format!("n{n}"), crate::app::new_uuid());
        let actor = model::Actor::new("test");
        let token = model::TokenId::new(id);
        let command = model::Command::TokenCreate {
            token,
            name: name.parse().unwrap(),
            role: model::Role::Viewer,
            digest: "0".repeat(64),
            expires: None,
            certificate: None,
        };
        daemon.app.propose(&actor, command).await.unwrap();
        daemon.app.propose(&actor, model::Command::TokenRevoke { token }).await.unwrap();
    }
    let last = first + EVENTS as u64;
    let mut wanted = first + 1;
    while wanted <= last {
        let next = tokio::time::timeout(PATIENCE, slow.next()).await.unwrap().unwrap().unwrap();
        // What the daemon's start told between the subscription and the list.
        if next.seq <= first {
            continue;
        }
        assert_eq!(next.seq, wanted, "by the daemon's own reader");
        wanted += 1;
    }
    for wanted in first + 1..=last - 100 {
        let next = tokio::time::timeout(PATIENCE, stream.next()).await.unwrap();
        assert_eq!(next.unwrap().unwrap().seq, wanted, "over the socket");
    }
    // The stream breaks with the daemon, and the next one goes on where it was.
    drop((slow, stream));
    daemon.kill();
    let daemon = host.daemon().await;
    let query = EventQuery { after: Some(last - 100), limit: Some(1_000) };
    let mut stream = host.client.events::<ep::EventStream>(&query).await.unwrap();
    make_token(&host, 0).await;
    let listed = host.client.call::<ep::EventList>(&[], &query, &Nothing {}).await.unwrap();
    for (event, wanted) in listed.iter().zip(last - 99..) {
        let next = tokio::time::timeout(PATIENCE, stream.next()).await.unwrap();
        assert_eq!(event.seq, wanted);
        assert_eq!(next.unwrap().as_ref().map(|event| event.seq), Some(wanted));
    }
    assert!(listed.len() > 101, "the start of the daemon and the token");
    daemon.kill();
}

#[tokio::test]
async fn a_client_that_hangs_up_leaves_nothing_behind() {
    let host = Host::new();
    let daemon = host.daemon().await;
    let readers = daemon.app.events.sender().receiver_count();
    let mut streams = Vec::new();
    for _ in 0..50 {
        streams.push(host.client.events::<ep::EventStream>(&EventQuery::default()).await.unwrap());
    }
    assert_eq!(daemon.app.events.sender().receiver_count(), readers + 50);
    drop(streams);
    let until = tokio::time::Instant::now() + PATIENCE;
    while daemon.app.events.sender().receiver_count() > readers {
        assert!(tokio::time::Instant::now() < until, "streams of clients that are gone stay");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    daemon.kill();
}

#[tokio::test]
async fn a_second_daemon_on_the_same_data_is_refused() {
    let host = Host::new();
    let first = tokio::spawn(crate::start::run(host.config.clone()));
    let until = tokio::time::Instant::now() + PATIENCE;
    while !host.config.socket_path().exists() {
        assert!(!first.is_finished() && tokio::time::Instant::now() < until, "it does not begin");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let error = crate::start::run(host.config.clone()).await.unwrap_err().to_string();
    assert!(error.contains("another daemon uses"), "{error}");
    assert!(error.contains("--data-dir"), "{error}");
    assert_eq!(host.client.get::<ep::NodeList>(&[]).await.unwrap().len(), 1, "the first serves on");
    first.abort();
}

#[tokio::test]
async fn a_damaged_state_ends_the_start_with_its_name() {
    let host = Host::new();
    host.daemon().await.kill();
    std::fs::write(host.config.data_dir.join("state.redb"), "nonsense").unwrap();
    let engine = Arc::new(FakeEngine::new(&host.fake));
    let error = assemble(&host.config, engine).await.err().map(|error| error.to_string());
    assert!(error.as_ref().is_some_and(|error| error.contains("state.redb")), "{error:?}");
}
