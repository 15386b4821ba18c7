//! What comes over a stream that is no node's volume, or a mad one's: it ends that stream only.

use proptest::prelude::any;
use proptest::prelude::prop_assert_eq;
use proptest::proptest;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use volume::lease::Answer;
use volume::lease::Ask;
use volume::lease::Epoch;
use volume::lease::FileId;
use volume::lease::OpenId;
use volume::lease::SessionId;
use volume::lease::Span;
use volume::lease::ToClient;
use volume::lease::ToCoordinator;
use volume::provider::Call;
use volume::provider::Name;
use volume::provider::wire::BODY_BYTES_MAX;
use volume::provider::wire::Down;
use volume::provider::wire::FRAME_BYTES;
use volume::provider::wire::Frame;
use volume::provider::wire::HEAD_BYTES_MAX;
use volume::provider::wire::Receiver;
use volume::provider::wire::Sender;
use volume::provider::wire::Unwelcome;
use volume::provider::wire::Up;
use volume::provider::wire::VERSION;
use volume::provider::wire::WireError;
use volume::provider::wire::decode;
use volume::provider::wire::encode;

use crate::cluster::Cluster;
use crate::cluster::EXT4;
use crate::cluster::VOLUME;
use crate::cluster::node;

const EPOCH: Epoch = Epoch(3);

fn written(count: u64) -> Up {
    let session = SessionId { epoch: EPOCH, number: 9 };
    let data = (0..count * 512).map(|at| at as u8).collect();
    let open = OpenId { epoch: EPOCH, number: 2 };
    let ask = Ask::Write { open, span: Span::new(5, count), data };
    Up::Lease(ToCoordinator::Ask { session, number: 4, done: 2, ask })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// All that a receiver makes of some bytes, until it ends.
fn received(bytes: &[u8]) -> (Vec<Up>, WireError) {
    runtime().block_on(async {
        let mut receiver = Receiver::new(bytes);
        let mut all = Vec::new();
        loop {
            match receiver.receive().await {
                Ok(message) => all.push(message),
                Err(error) => return (all, error),
            }
        }
    })
}

fn sent(messages: Vec<Up>) -> Vec<u8> {
    runtime().block_on(async {
        let mut sender = Sender::new(Vec::new());
        for message in messages {
            sender.send(message).await.expect("it fits");
        }
        sender.into_inner()
    })
}

#[test]
fn messages_come_as_they_were_sent() {
    let name = Name::new(b"\xff odd \" name").expect("a name");
    let messages = vec![
        Up::Greet { volume: VOLUME, epoch: EPOCH, life: u64::MAX },
        written(3),
        Up::Call {
            number: 1,
            done: 1,
            again: false,
            call: Call::Lookup { folder: FileId(u64::MAX), name },
        },
        written(0),
    ];
    let (got, error) = received(&sent(messages.clone()));
    assert_eq!(got, messages);
    assert!(matches!(error, WireError::Stream(_)));
    let session = SessionId { epoch: EPOCH, number: 1 };
    let answer = Answer::Data(vec![1; 4096].into());
    let down = Down::Lease(ToClient::Answer { session, number: 1, answer });
    let (bytes, body) = encode(down.clone(), 1).expect("it fits");
    assert_eq!(decode::<Down>(&bytes[FRAME_BYTES..], body).expect("a message"), down);
}

#[test]
fn what_is_wrong_with_a_frame_is_said() {
    let good = sent(vec![written(1), written(2)]);
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        received(&bytes).1
    };
    assert!(matches!(with(0, b'X'), WireError::NotAFrame));
    assert!(matches!(with(4, VERSION + 1), WireError::Version(it) if it == VERSION + 1));
    assert!(matches!(with(6, 1), WireError::NotAFrame));
    assert!(matches!(with(8, 2), WireError::Number { got: 2, wanted: 1 }));
    assert!(matches!(with(19, 0xFF), WireError::TooLong { .. }));
    assert!(matches!(with(23, 0xFF), WireError::TooLong { .. }));
    assert!(matches!(with(FRAME_BYTES, b'X'), WireError::Message(Some(_))));
    // The first frame once more.
    let first = &sent(vec![written(1)])[..];
    let (got, error) = received(&[first, first].concat());
    assert_eq!(got.len(), 1);
    assert!(matches!(error, WireError::Number { got: 1, wanted: 2 }));
    // Blocks where there is no place for them.
    let greet = Up::Greet { volume: VOLUME, epoch: EPOCH, life: 1 };
    let (bytes, _) = encode(greet, 1).expect("it fits");
    let decoded = decode::<Up>(&bytes[FRAME_BYTES..], vec![1].into());
    assert!(matches!(decoded, Err(WireError::Message(None))));
    // Nothing is sent that nobody would take.
    assert!(encode(written(u64::from(BODY_BYTES_MAX) / 512 + 1), 1).is_none());
    let long = Call::Lookup { folder: FileId(1), name: Name::new(&[b'x'; 255]).expect("a name") };
    assert!(encode(Up::Call { number: 1, done: 1, again: true, call: long }, 1).is_some());
    assert!(Name::new(b"..").is_none() && Name::new(b"a/b").is_none() && Name::new(b"").is_none());
    const { assert!(HEAD_BYTES_MAX >= 1024 * 96, "a grant of 1024 extents has no room") };
}

proptest! {
    #[test]
    fn garbage_is_an_error_and_nothing_else(bytes: Vec<u8>) {
        let (got, _) = received(&bytes);
        prop_assert_eq!(got.len(), 0);
    }

    #[test]
    fn damaged_frames_are_errors_or_messages(at in 0_usize..400, byte: u8, cut: u16) {
        let mut bytes = sent(vec![written(1), written(0)]);
        let length = bytes.len();
        bytes[at % length] = byte;
        bytes.truncate(usize::from(cut) % (length + 1));
        let (got, _) = received(&bytes);
        assert!(got.len() <= 2);
    }

    #[test]
    fn heads_of_frames_never_ask_for_more_than_is_allowed(bytes in any::<[u8; FRAME_BYTES]>()) {
        let mut bytes = bytes;
        bytes[..8].copy_from_slice(&[b'M', b'V', b'O', b'L', VERSION, 0, 0, 0]);
        bytes[8..16].copy_from_slice(&7_u64.to_le_bytes());
        if let Ok(frame) = Frame::parse(&bytes, 7) {
            assert!(frame.head <= HEAD_BYTES_MAX as usize && frame.body <= BODY_BYTES_MAX as usize);
        }
    }
}

/// On a coordinator that serves: each such connection ends, the others go on.
#[test]
fn mad_connections_end_alone() {
    let mut cluster = Cluster::new(2, 64 << 20, EXT4);
    let file = cluster.at(1, "file");
    std::fs::write(&file, b"before").expect("a file");
    let coordinator = cluster.coordinator();
    let serve = |said: Vec<u8>, from: usize| -> (Vec<u8>, Option<WireError>) {
        let coordinator = coordinator.clone();
        cluster.runtime.block_on(async move {
            let (mut near, far) = tokio::io::duplex(1 << 20);
            let serving = tokio::spawn(async move { coordinator.serve(node(from), far).await });
            near.write_all(&said).await.expect("it is taken");
            near.shutdown().await.expect("the end");
            let mut answer = Vec::new();
            near.read_to_end(&mut answer).await.expect("an end");
            (answer, serving.await.expect("no panic").err())
        })
    };
    let unwelcome = |said: Up, from: usize| {
        let (answer, _) = serve(sent(vec![said]), from);
        let body = Vec::new();
        match decode::<Down>(&answer[FRAME_BYTES..], body.into()) {
            Ok(Down::Unwelcome(why)) => why,
            other => panic!("it was answered {other:?}"),
        }
    };
    let greet = |volume, epoch| Up::Greet { volume, epoch: Epoch(epoch), life: 5 };
    assert_eq!(unwelcome(greet(uuid::Uuid::nil(), 1), 1), Unwelcome::OtherVolume);
    assert_eq!(unwelcome(greet(VOLUME, 2), 1), Unwelcome::OtherEpoch(Epoch(1)));
    assert_eq!(unwelcome(greet(VOLUME, 1), 9), Unwelcome::Stranger(node(9)));
    assert!(matches!(serve(vec![7; 5000], 1).1, Some(WireError::NotAFrame)));
    assert!(matches!(serve(sent(vec![written(1)]), 1).1, Some(WireError::Message(None))));
    let first = sent(vec![greet(VOLUME, 1)]);
    let again = serve([first.clone(), first.clone()].concat(), 1).1;
    assert!(matches!(again, Some(WireError::Number { got: 1, wanted: 2 })), "{again:?}");
    // Names that are none, and files that are none, are refused in words.
    let bad: Name = serde_json::from_str("[46,46]").expect("bytes");
    let number = 1;
    let calls = vec![
        greet(VOLUME, 1),
        Up::Call {
            number,
            done: 0,
            again: false,
            call: Call::Lookup { folder: FileId(2), name: bad },
        },
        Up::Lease(ToCoordinator::Ping { session: SessionId { epoch: EPOCH, number: 77 } }),
        written(2),
    ];
    let (_, error) = serve(sent(calls), 1);
    assert!(matches!(error, Some(WireError::Stream(_))), "{error:?}");
    drop(coordinator);
    assert_eq!(std::fs::read(&file).expect("it is served"), b"before");
    std::fs::write(cluster.at(0, "file"), b"after").expect("it is served");
    cluster.end();
}
