//! Requests that cannot be met, and clients that get in each other's way.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use std::io::Read;
use std::io::Write;
use std::os::unix::net::UnixStream;

use api::ErrorKind;
use api::endpoint as ep;
use api::endpoint::Nothing;
use api::model::Bytes;
use api::model::OpState;
use api::model::VmChange;
use api::types::EventQuery;
use api::types::RevisionQuery;
use api::types::VmCreateBody;
use e2e::Host;
use e2e::OWN;
use e2e::eventually;
use e2e::tiny;

/// A machine without disks and adapters: enough for the control plane.
fn bare(name: &str) -> VmCreateBody {
    VmCreateBody { disks: Vec::new(), nics: Vec::new(), ..tiny(name) }
}

/// Sends a body as it is and returns status and answer.
fn post(host: &Host, path: &str, body: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(host.socket()).unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\
         \r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).and_then(|it| it.parse().ok());
    let text = answer.split_once("\r\n\r\n").map(|(_, text)| text.to_owned());
    (status.unwrap_or(0), text.unwrap_or_default())
}

#[tokio::test]
async fn names_that_cannot_be_are_refused_with_a_reason() {
    let host = Host::start_fake().await;
    let long = "a".repeat(300);
    let bad = ["", "../../etc/passwd", "a/b", "a b", "-x", "naïve", &long];
    for name in bad {
        let body = serde_json::json!({ "name": name }).to_string();
        let (status, text) = post(&host, "/v1/vms", &body);
        assert_eq!(status, 400, "{name}: {text}");
        assert!(text.contains("name"), "{name}: {text}");
    }
    assert!(host.client().get::<ep::VmList>(&[]).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_name_is_given_once_whatever_its_case() {
    let host = Host::start_fake().await;
    host.create(&bare("one")).await;
    let again = host.client().send::<ep::VmCreate>(&[], &bare("ONE")).await.unwrap_err();
    assert_eq!((again.kind, again.code.as_str()), (ErrorKind::Conflict, "name_taken"));
    assert!(!again.hint.is_empty());
}

#[tokio::test]
async fn more_memory_than_the_host_has_is_refused() {
    let host = Host::start_fake().await;
    let body = VmCreateBody { memory: Some(Bytes::gib(8 * 1024)), ..bare("huge") };
    let error = host.client().send::<ep::VmCreate>(&[], &body).await.unwrap_err();
    assert_eq!(error.code, "host_memory");
    assert!(!error.hint.is_empty());
    let vm = host.create(&bare("small")).await;
    let change = VmChange { memory: Some(Bytes::gib(8 * 1024)), ..VmChange::default() };
    let error = host.client().send::<ep::VmSet>(&["small"], &change).await.unwrap_err();
    assert_eq!(error.code, "host_memory");
    assert_eq!(vm.show().await.memory.size, Bytes::mib(128));
}

#[tokio::test]
async fn memory_is_not_promised_twice() {
    let host = Host::start_fake().await;
    let node = host.client().get::<ep::NodeList>(&[]).await.unwrap().remove(0);
    let most = Bytes::mib(node.memory.as_mib() * 2 / 3 / 2 * 2);
    for name in ["first", "second"] {
        host.create(&VmCreateBody { memory: Some(most), ..bare(name) }).await;
    }
    host.vm("first").start().await;
    let error = host.vm("second").try_verb::<ep::VmStart>().await.unwrap_err();
    assert_eq!((error.kind, error.code.as_str()), (ErrorKind::Conflict, "host_memory"));
}

#[tokio::test]
async fn of_two_clients_who_change_the_same_revision_one_wins() {
    let host = Host::start_fake().await;
    let vm = host.create(&bare("shared")).await;
    let query = RevisionQuery { if_revision: Some(vm.show().await.revision) };
    let change =
        |text: &str| VmChange { description: Some(text.to_owned()), ..VmChange::default() };
    let (left, right) = (change("left"), change("right"));
    let client = host.client();
    let (left, right) = tokio::join!(
        client.call::<ep::VmSet>(&["shared"], &query, &left),
        client.call::<ep::VmSet>(&["shared"], &query, &right),
    );
    let mut won = Vec::new();
    for (answer, text) in [(left, "left"), (right, "right")] {
        match answer {
            Ok(op) => {
                let op = host.ended(&op).await;
                match op.state {
                    OpState::Done { .. } => won.push(text),
                    OpState::Failed { failure, .. } => assert_eq!(failure.code, "stale_revision"),
                    other => panic!("{other:?}"),
                }
            }
            Err(error) => assert_eq!(error.kind, ErrorKind::Conflict, "{error:?}"),
        }
    }
    assert_eq!(won.len(), 1);
    assert_eq!(vm.show().await.description, won[0]);
}

#[tokio::test]
async fn of_two_clients_who_start_the_same_machine_one_starts_it() {
    let host = Host::start_fake().await;
    let vm = host.create(&bare("shared")).await;
    let answers = tokio::join!(vm.try_verb::<ep::VmStart>(), vm.try_verb::<ep::VmStart>());
    let done = [answers.0, answers.1]
        .into_iter()
        .filter(|answer| match answer {
            Ok(op) => matches!(op.state, OpState::Done { .. }),
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::Conflict, "{error:?}");
                assert!(!error.hint.is_empty());
                false
            }
        })
        .count();
    assert!(done >= 1);
    assert_eq!(vm.show().await.generation.get(), 1, "it was started once");
}

#[tokio::test]
async fn a_client_that_hangs_up_in_a_stream_disturbs_nobody() {
    let host = Host::start_fake().await;
    let daemon = host.daemon_pid().unwrap();
    let open = || std::fs::read_dir(format!("/proc/{daemon}/fd")).unwrap().count();
    let before = open();
    let mut stays = host.client().events::<ep::EventStream>(&EventQuery::default()).await.unwrap();
    for _ in 0..20 {
        let mut stream = UnixStream::connect(host.socket()).unwrap();
        stream.write_all(b"GET /v1/events/stream HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut first = [0; 16];
        stream.read_exact(&mut first).unwrap();
        // And one that goes in the middle of its request.
        let mut half = UnixStream::connect(host.socket()).unwrap();
        half.write_all(b"POST /v1/vms HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
            .unwrap();
    }
    host.create(&bare("still-here")).await;
    let event = stays.next().await.unwrap().expect("the stream goes on");
    assert!(event.event.text.contains("still-here"), "{event:?}");
    drop(stays);
    eventually("their connections are closed", OWN, async || (open() <= before + 2).then_some(()))
        .await;
}

#[tokio::test]
async fn a_request_that_is_nonsense_gets_an_answer_in_our_words() {
    let host = Host::start_fake().await;
    for body in ["", "{", "[]", "{\"name\":7}", "{\"name\":\"x\",\"cpus\":-1}", "{\"nmae\":\"x\"}"]
    {
        let (status, text) = post(&host, "/v1/vms", body);
        assert_eq!(status, 400, "{body}: {text}");
        let error: api::ApiError = serde_json::from_str(&text).unwrap();
        assert!(!error.message.is_empty(), "{body}: {text}");
    }
    let large = format!("{{\"name\":\"{}\"}}", "x".repeat(16 << 20));
    let answer = std::panic::catch_unwind(|| post(&host, "/v1/vms", &large));
    // Either it is told, or the daemon stops listening before all is sent.
    assert!(answer.is_err() || matches!(answer, Ok((400 | 413, _))));
    assert!(host.client().get::<ep::Version>(&[]).await.is_ok());
    let missing = host.client().send::<ep::VmStart>(&["nobody"], &Nothing {}).await.unwrap_err();
    assert_eq!(missing.kind, ErrorKind::NotFound);
}
