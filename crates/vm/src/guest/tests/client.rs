//! The client against an agent that does everything wrong.

use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::fake_agent::FakePort;
use super::fake_agent::Quirk;
use crate::guest::AgentClient;
use crate::guest::AgentError;
use crate::guest::CallLimits;

const LIMIT: Duration = Duration::from_secs(5);

fn client(port: &FakePort) -> AgentClient {
    AgentClient::new(Box::new(port.open()), 1)
}

async fn ping(client: &mut AgentClient) -> Result<serde_json::Value, AgentError> {
    client.call("guest-ping", None, CallLimits::within(LIMIT)).await
}

#[tokio::test(start_paused = true)]
async fn each_bad_answer_is_its_own_error_and_the_next_command_works() {
    let deep = format!("{{\"return\":{}1{}}}\n", "[".repeat(100_000), "]".repeat(100_000));
    let long = format!("{{\"return\":\"{}\"}}\n", "x".repeat(3 << 20));
    type Expected = fn(&AgentError) -> bool;
    let cases: [(Quirk, Expected); 9] = [
        (Quirk::Silent, |e| matches!(e, AgentError::Timeout { .. })),
        (Quirk::Bytes(b"hello\n".to_vec()), |e| matches!(e, AgentError::NotJson { .. })),
        (Quirk::Bytes(b"{\"return\": \n".to_vec()), |e| matches!(e, AgentError::NotJson { .. })),
        (Quirk::Bytes(b"\xff\xfe\x00\n".to_vec()), |e| matches!(e, AgentError::NotJson { .. })),
        (Quirk::Bytes(deep.into_bytes()), |e| matches!(e, AgentError::NotJson { .. })),
        (Quirk::Bytes(long.into_bytes()), |e| matches!(e, AgentError::TooLong { .. })),
        (Quirk::Bytes(b"{\"event\": \"x\"}\n".repeat(100)), |e| matches!(e, AgentError::Flood)),
        (Quirk::Bytes(b"{\"return\": {}, \"id\": 1}\n".to_vec()), |e| {
            matches!(e, AgentError::Timeout { .. })
        }),
        (Quirk::Error("GenericError"), |e| matches!(e, AgentError::Refused { .. })),
    ];
    let port = FakePort::new();
    let mut client = client(&port);
    client.sync(LIMIT).await.unwrap();
    for (quirk, expected) in cases {
        port.quirk("guest-ping", 1, quirk);
        let error = ping(&mut client).await.unwrap_err();
        assert!(expected(&error), "{error:?}");
        assert!(!error.to_string().contains('\x1b'));
        assert_eq!(ping(&mut client).await.unwrap(), json!({}), "after {error}");
    }
    port.quirk("guest-ping", 1, Quirk::Close);
    assert!(matches!(ping(&mut client).await, Err(AgentError::Closed)));
}

#[tokio::test(start_paused = true)]
async fn what_was_said_before_the_sync_is_not_taken_for_an_answer() {
    let mut port = FakePort::new();
    port.greeting = b"login: \n{\"return\": 1}\n\xff{\"return\": 99}\n\xffjunk\n\xff\xff".to_vec();
    let mut client = client(&port);
    assert_eq!(ping(&mut client).await.unwrap(), json!({}));
}

#[tokio::test(start_paused = true)]
async fn an_old_agent_that_repeats_no_ids_is_understood() {
    let port = FakePort::new();
    port.guest().old = true;
    let mut client = client(&port);
    assert_eq!(ping(&mut client).await.unwrap(), json!({}));
    assert_eq!(ping(&mut client).await.unwrap(), json!({}));
    assert_eq!(port.count("guest-sync-delimited"), 1, "one sync is enough");
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_is_not_taken_for_the_next_one() {
    let (ours, mut guest) = tokio::io::duplex(64 << 10);
    let mut client = AgentClient::new(Box::new(ours), 1);
    let script = tokio::spawn(async move {
        let mut buf = vec![0; 4096];
        let mut request = async |guest: &mut tokio::io::DuplexStream| {
            let got = guest.read(&mut buf).await.unwrap();
            let start = buf.iter().position(|byte| *byte == b'{').unwrap();
            serde_json::from_slice::<serde_json::Value>(&buf[start..got]).unwrap()
        };
        let sync = request(&mut guest).await;
        let id = &sync["arguments"]["id"];
        guest.write_all(b"\0").await.unwrap();
        guest.write_all(&[0xff]).await.unwrap();
        guest.write_all(format!("{{\"return\": {id}}}\n").as_bytes()).await.unwrap();
        let _first = request(&mut guest).await; // not answered in time
        let again = request(&mut guest).await;
        assert_eq!(again["execute"], "guest-sync-delimited");
        guest.write_all(b"{\"return\": \"late\"}\n").await.unwrap();
        guest.write_all(&[0xff]).await.unwrap();
        let id = &again["arguments"]["id"];
        guest.write_all(format!("{{\"return\": {id}}}\n").as_bytes()).await.unwrap();
        let _second = request(&mut guest).await;
        guest.write_all(b"{\"return\": \"right\"}\n").await.unwrap();
        guest
    });
    let error = ping(&mut client).await.unwrap_err();
    assert!(matches!(error, AgentError::Timeout { .. }), "{error}");
    assert_eq!(ping(&mut client).await.unwrap(), json!("right"));
    script.await.unwrap();
}

/// Real sockets: a guest that sends as fast as it can must neither fill our memory nor hold us.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gigabyte_is_cut_off_early() {
    for (piece, newline) in [(vec![b'x'; 1 << 16], false), (b"\xff{}\n".repeat(10_000), true)] {
        let (ours, mut guest) = UnixStream::pair().unwrap();
        let sent = tokio::spawn(async move {
            let mut sent = 0_u64;
            while sent < 1 << 30 && guest.write_all(&piece).await.is_ok() {
                sent += piece.len() as u64;
            }
            sent
        });
        let mut client = AgentClient::new(Box::new(ours), 1);
        let error = client.sync(Duration::from_secs(30)).await.unwrap_err();
        assert!(matches!(error, AgentError::Flood), "{newline}: {error}");
        drop(client);
        assert!(sent.await.unwrap() < 64 << 20);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_does_not_confuse_the_next() {
    let port = FakePort::new();
    let mut client = client(&port);
    client.sync(LIMIT).await.unwrap();
    port.quirk("guest-ping", 1, Quirk::Silent);
    let dropped = tokio::time::timeout(Duration::from_millis(1), ping(&mut client)).await;
    assert!(dropped.is_err());
    assert_eq!(ping(&mut client).await.unwrap(), json!({}));
}
