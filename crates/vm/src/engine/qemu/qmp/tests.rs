//! The client against a scripted peer, honest and not.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::ProptestConfig;
use proptest::prelude::any;
use proptest::proptest;
use serde_json::Value;
use serde_json::json;
use tokio::io::AsyncBufReadExt;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::io::BufReader;
use tokio::net::UnixStream;

use super::LINE_MAX;
use super::Qmp;
use super::QmpError;

const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n";
const LIMIT: Duration = Duration::from_secs(5);

/// A peer that greets and answers the first command, then is handed to the test.
async fn connected() -> (Qmp, tokio::sync::mpsc::Receiver<super::QmpEvent>, UnixStream) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let peer = tokio::spawn(async move {
        theirs.write_all(GREETING.as_bytes()).await.unwrap();
        let command = read_command(&mut theirs).await;
        assert_eq!(command["execute"], "qmp_capabilities");
        answer(&mut theirs, json!({ "return": {}, "id": command["id"] })).await;
        theirs
    });
    let (qmp, events) = Qmp::start(ours, LIMIT).await.unwrap();
    (qmp, events, peer.await.unwrap())
}

async fn read_command(stream: &mut UnixStream) -> Value {
    let mut line = String::new();
    BufReader::with_capacity(1, stream).read_line(&mut line).await.unwrap();
    serde_json::from_str(&line).unwrap()
}

async fn answer(stream: &mut UnixStream, value: Value) {
    stream.write_all(format!("{value}\r\n").as_bytes()).await.unwrap();
}

#[tokio::test]
async fn commands_are_answered_in_any_order_between_events() {
    let (qmp, mut events, mut peer) = connected().await;
    let ask = |name: &'static str| {
        let qmp = qmp.clone();
        tokio::spawn(async move { qmp.run(name, json!({ "a": 1 })).await })
    };
    let first = ask("one");
    let one = read_command(&mut peer).await;
    let second = ask("two");
    let two = read_command(&mut peer).await;
    assert_eq!(one["arguments"], json!({ "a": 1 }));
    answer(&mut peer, json!({ "event": "STOP", "timestamp": {} })).await;
    answer(&mut peer, json!({ "return": 2, "id": two["id"] })).await;
    let error = json!({ "class": "GenericError", "desc": "no" });
    answer(&mut peer, json!({ "error": error, "id": one["id"] })).await;
    assert_eq!(second.await.unwrap(), Ok(json!(2)));
    let refused = QmpError::Refused {
        command: "one".to_owned(),
        class: "GenericError".to_owned(),
        desc: "no".to_owned(),
    };
    assert_eq!(first.await.unwrap(), Err(refused));
    assert_eq!(events.recv().await.unwrap().name, "STOP");
}

#[tokio::test]
async fn a_late_answer_is_taken_and_the_connection_goes_on() {
    let (qmp, _events, mut peer) = connected().await;
    let limit = Duration::from_millis(20);
    let slow = qmp.run_within("slow", json!({}), Vec::new(), limit).await;
    assert_eq!(slow, Err(QmpError::Timeout { command: "slow".to_owned(), limit }));
    let command = read_command(&mut peer).await;
    answer(&mut peer, json!({ "return": "late", "id": command["id"] })).await;
    let next = tokio::spawn(async move { qmp.run("next", json!({})).await });
    let command = read_command(&mut peer).await;
    answer(&mut peer, json!({ "return": "in time", "id": command["id"] })).await;
    assert_eq!(next.await.unwrap(), Ok(json!("in time")));
}

#[tokio::test]
async fn nonsense_closes_the_connection_with_its_reason() {
    let deep = "[".repeat(100_000);
    let bad = [
        "no json at all",
        "[1, 2]",
        "{}",
        "{\"return\": 1}",
        "{\"return\": 1, \"id\": 999}",
        "{\"return\": 1, \"id\": \"x\"}",
        "{\"event\": 7}",
        "{\"error\": \"flat\", \"id\": 1}",
        "\u{0}\u{1}\u{2}",
        &deep,
    ];
    for line in bad {
        let (qmp, _events, mut peer) = connected().await;
        let asked = qmp.clone();
        let waiting = tokio::spawn(async move { asked.run("query-status", json!({})).await });
        read_command(&mut peer).await;
        let _ = peer.write_all(format!("{line}\n").as_bytes()).await;
        let got = waiting.await.unwrap();
        assert!(matches!(got, Err(QmpError::Garbage(_))), "{line:.40}: {got:?}");
        // The peer sees the end, and the next command is refused at once.
        let mut rest = Vec::new();
        let _ = peer.read_to_end(&mut rest).await;
        assert!(qmp.run("query-status", json!({})).await.is_err());
    }
}

#[tokio::test]
async fn an_endless_line_is_cut_off() {
    let (qmp, _events, mut peer) = connected().await;
    let waiting = tokio::spawn(async move { qmp.run("query-status", json!({})).await });
    read_command(&mut peer).await;
    let block = vec![b'a'; 1 << 20];
    let mut sent = 0;
    while sent <= 4 * LINE_MAX && peer.write_all(&block).await.is_ok() {
        sent += block.len();
    }
    assert!(sent <= 2 * LINE_MAX, "the peer could send {sent} bytes");
    assert!(matches!(waiting.await.unwrap(), Err(QmpError::Garbage(_))));
}

#[tokio::test]
async fn a_closed_or_silent_peer_is_told_from_an_answer() {
    let (qmp, _events, peer) = connected().await;
    let waiting = tokio::spawn(async move { qmp.run("query-status", json!({})).await });
    drop(peer);
    assert_eq!(waiting.await.unwrap(), Err(QmpError::Closed));

    let (ours, _theirs) = UnixStream::pair().unwrap();
    let silent = Qmp::start(ours, Duration::from_millis(20)).await;
    assert!(matches!(silent.err(), Some(QmpError::Timeout { .. })));

    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await.unwrap();
    assert!(matches!(Qmp::start(ours, LIMIT).await.err(), Some(QmpError::Garbage(_))));
}

#[tokio::test]
async fn descriptors_go_with_their_command() {
    use std::io::IoSliceMut;
    use std::os::fd::AsRawFd;

    let (qmp, _events, peer) = connected().await;
    let file = tempfile::tempfile().unwrap();
    let waiting = tokio::spawn(async move {
        qmp.run_with_fds("getfd", json!({ "fdname": "x" }), vec![file.into()]).await
    });
    let peer = peer.into_std().unwrap();
    peer.set_nonblocking(false).unwrap();
    let receive = move || {
        let mut buffer = [0; 256];
        let mut data = [IoSliceMut::new(&mut buffer)];
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; 2]);
        let flags = nix::sys::socket::MsgFlags::empty();
        let fd = peer.as_raw_fd();
        let message =
            nix::sys::socket::recvmsg::<()>(fd, &mut data, Some(&mut space), flags).unwrap();
        message.cmsgs().unwrap().next()
    };
    let got = tokio::task::spawn_blocking(receive).await.unwrap();
    let Some(nix::sys::socket::ControlMessageOwned::ScmRights(fds)) = got else {
        panic!("no descriptor came: {got:?}");
    };
    assert_eq!(fds.len(), 1);
    assert_eq!(waiting.await.unwrap(), Err(QmpError::Closed));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a peer sends, a command ends with an error or an answer, soon.
    #[test]
    fn random_bytes_never_hang_or_break_the_client(noise in vec(any::<u8>(), 0..4096)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (qmp, _events, mut peer) = connected().await;
            let waiting = tokio::spawn(async move { qmp.run("query-status", json!({})).await });
            read_command(&mut peer).await;
            let _ = peer.write_all(&noise).await;
            drop(peer);
            let result = tokio::time::timeout(LIMIT, waiting).await.unwrap().unwrap();
            assert!(result.is_err());
        });
    }
}
