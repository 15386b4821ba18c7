//! Peers that do not mean well, or are not who they say.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use model::ClusterId;
use proptest::prelude::Strategy;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use uuid::Uuid;

use super::CLUSTER;
use super::DAY_MS;
use super::ECHO;
use super::Hands;
use super::NOW;
use super::Peer;
use super::SOON;
use super::World;
use super::node;
use super::until;
use crate::CallError;
use crate::Patience;
use crate::RefusalCode;
use crate::Trust;
use crate::link::Dial;
use crate::link::DialError;
use crate::link::Stream;
use crate::link::dial;
use crate::pki::ClusterCa;
use crate::pki::Identity;
use crate::pki::KeyDigest;
use crate::pki::PkiError;
use crate::tls::Expect;
use crate::wire::BODY_BYTES_MAX;
use crate::wire::Dialects;
use crate::wire::Frame;
use crate::wire::Greeting;
use crate::wire::Header;
use crate::wire::Kind;
use crate::wire::Purpose;
use crate::wire::read_frame;
use crate::wire::write_frame;

/// A caller that says and shows what it likes.
fn caller(world: &World, own: Option<Identity>, says: u128, to: &Peer) -> Dial {
    Dial {
        expect: Expect::Node(world.ca.public().clone(), to.id),
        own: own.map(Arc::new),
        greeting: Greeting {
            dialects: Dialects::default(),
            version: "0.1.0".to_owned(),
            cluster: CLUSTER,
            cluster_name: "lab".to_owned(),
            node: node(says),
            purpose: Purpose::Calls,
        },
        clock: Hands::new().clock(),
    }
}

async fn refused(plan: &Dial, to: &Peer) -> RefusalCode {
    match dial(plan, to.address).await {
        Err(DialError::Refused(refusal)) => {
            assert!(!refusal.message.is_empty());
            refusal.code
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn who_is_not_a_member_is_told_why() {
    let world = World::new();
    let b = world.peer(3).await;
    let no_certificate = caller(&world, None, 2, &b);
    assert_eq!(refused(&no_certificate, &b).await, RefusalCode::NoCertificate);

    let office = ClusterCa::create(CLUSTER, "office", NOW).unwrap();
    let forged = Identity::first((CLUSTER, "lab"), node(2), &office, NOW).unwrap();
    let foreign = caller(&world, Some(forged), 2, &b);
    assert_eq!(refused(&foreign, &b).await, RefusalCode::ForeignCertificate);

    let mut wrong = caller(&world, Some(world.identity(2)), 2, &b);
    wrong.greeting.cluster = ClusterId::new(Uuid::from_u128(77));
    wrong.greeting.cluster_name = "office".to_owned();
    match dial(&wrong, b.address).await {
        Err(DialError::Refused(refusal)) => {
            assert_eq!(refusal.code, RefusalCode::WrongCluster);
            assert!(refusal.message.contains("'office'; this is 'lab'"), "{refusal}");
        }
        other => panic!("{other:?}"),
    }
    let another = caller(&world, Some(world.identity(2)), 4, &b);
    assert_eq!(refused(&another, &b).await, RefusalCode::WrongNode);
    let itself = caller(&world, Some(world.identity(3)), 3, &b);
    assert_eq!(refused(&itself, &b).await, RefusalCode::WrongNode);

    world.trust(node(2), Trust::Member(Some(KeyDigest([1; 32]))));
    let other_key = caller(&world, Some(world.identity(2)), 2, &b);
    assert_eq!(refused(&other_key, &b).await, RefusalCode::OtherKey);
    assert_eq!(b.calls(), 0);
}

#[tokio::test]
async fn the_called_side_judges_by_its_own_clock() {
    let world = World::new();
    let b = world.peer(3).await;
    // The caller's clock stands, so it finds nothing wrong.
    let plan = |not_before: u64| {
        let at = model::UnixMillis::new(NOW.get() + not_before * DAY_MS);
        let own = Identity::first((CLUSTER, "lab"), node(2), &world.ca, at).unwrap();
        let mut plan = caller(&world, Some(own), 2, &b);
        let hands = Hands::new();
        hands.set_days(not_before);
        plan.clock = hands.clock();
        plan
    };
    // b's certificate must hold for the caller: 80 days later it still does.
    assert_eq!(refused(&plan(80), &b).await, RefusalCode::CertificateNotYetValid);
    let early = plan(0);
    world.hands.set_days(91);
    let renewed = b.identity.borrow().renewed(&world.ca, world.hands.clock().now()).unwrap();
    b.identity.send_replace(Arc::new(renewed));
    // The caller's clock is three months behind: to it, b's new certificate is from the future.
    match dial(&early, b.address).await {
        Err(DialError::Pki(PkiError::NotYetValid { .. })) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(b.calls(), 0);
}

#[tokio::test]
async fn a_false_node_hears_nothing() {
    let world = World::new();
    let (a, c) = (world.peer(2).await, world.peer(4).await);
    // Another member has the address of the one that is meant.
    world.book.lock().unwrap().insert(node(3), vec![c.address]);
    let error = a.links.call(node(3), ECHO, Bytes::new(), SOON).await.unwrap_err();
    let expected = PkiError::WrongNode { wanted: node(3), found: c.id };
    assert!(matches!(&error, CallError::Pki(error) if *error == expected), "{error}");

    // A node of another cluster that has taken the cluster's id and name.
    let other = World::new();
    let forged = other.peer(3).await;
    world.book.lock().unwrap().insert(node(3), vec![forged.address]);
    let error = a.links.call(node(3), ECHO, Bytes::new(), SOON).await.unwrap_err();
    assert!(matches!(&error, CallError::Pki(PkiError::OtherCluster { .. })), "{error}");
    assert_eq!((c.calls(), forged.calls()), (0, 0));
}

#[tokio::test]
async fn versions_that_have_nothing_in_common_say_so() {
    let world = World::new();
    let old = world.peer_with(world.identity(2), Dialects { min: 1, max: 1 }, Patience::default());
    let old = old.await;
    let next = world.peer_with(world.identity(3), Dialects { min: 1, max: 2 }, Patience::default());
    let next = next.await;
    let far = world.peer_with(world.identity(4), Dialects { min: 3, max: 4 }, Patience::default());
    let far = far.await;
    // One version apart they speak the older dialect, both ways.
    old.speaks_with(&next).await;
    next.speaks_with(&old).await;
    for (from, to, word) in [(&old, &far, "older"), (&far, &old, "newer")] {
        let error = from.echo(to, "x").await.unwrap_err();
        assert_eq!(error.code(), Some(RefusalCode::NoCommonVersion));
        assert!(error.to_string().contains(word), "{error}");
    }
}

/// An admitted connection whose owner then does as it likes.
async fn admitted(world: &World, to: &Peer) -> Stream {
    let plan = caller(world, Some(world.identity(2)), 2, to);
    dial(&plan, to.address).await.unwrap().0
}

async fn read(stream: &mut Stream) -> Option<Frame> {
    let read = read_frame(stream, BODY_BYTES_MAX, SOON, async |_: &Header| ());
    tokio::time::timeout(SOON, read).await.unwrap().ok().map(|(frame, ())| frame)
}

/// Waits for the end that the other side makes.
async fn ended(stream: &mut (impl AsyncReadExt + Unpin)) {
    let mut rest = Vec::new();
    let end = stream.read_to_end(&mut rest);
    // An abrupt end is one, too.
    let _ = tokio::time::timeout(SOON, end).await.expect("the connection is ended");
}

fn call(number: u32, body: &'static [u8]) -> Frame {
    let mut frame = Frame::new(Kind::Call, ECHO.0, number, Bytes::from_static(body));
    frame.header.deadline_ms = 5_000;
    frame
}

#[tokio::test]
async fn garbage_on_the_port_ends_the_connection_and_nothing_else() {
    let world = World::new();
    let (a, b) = (world.peer(2).await, world.peer(3).await);
    let mut runner = TestRunner::deterministic();
    let bytes = proptest::collection::vec(proptest::num::u8::ANY, 1..2_000);
    for round in 0..40 {
        let garbage = bytes.new_tree(&mut runner).unwrap().current();
        // Before TLS, and inside it instead of a greeting, and instead of a call.
        let mut raw = TcpStream::connect(b.address).await.unwrap();
        let _ = raw.write_all(&garbage).await;
        let _ = raw.shutdown().await;
        ended(&mut raw).await;
        if round % 4 == 0 {
            let mut stream = admitted(&world, &b).await;
            let _ = stream.write_all(&garbage).await;
            let _ = stream.shutdown().await;
            ended(&mut stream).await;
        }
    }
    a.speaks_with(&b).await;
}

#[tokio::test]
async fn frames_that_cannot_be_end_the_connection_with_a_word() {
    let world = World::new();
    let b = world.peer(3).await;
    let header = |kind, length| Header { kind, method: 102, call: 1, deadline_ms: 1_000, length };
    let too_large = u32::try_from(BODY_BYTES_MAX + 1).unwrap();
    let mut bad = [
        header(Kind::Call, too_large).encode(),
        header(Kind::Call, u32::MAX).encode(),
        header(Kind::Reply, 0).encode(),
        header(Kind::Greeting, 0).encode(),
        [0xff; 16],
    ];
    bad[4][0] = 4;
    for bytes in bad {
        let mut stream = admitted(&world, &b).await;
        stream.write_all(&bytes).await.unwrap();
        let answer = read(&mut stream).await.expect("a word");
        assert_eq!(answer.header.kind, Kind::Refused);
        assert_eq!(crate::link::refusal(&answer.body).code, RefusalCode::Malformed);
        ended(&mut stream).await;
    }
    assert_eq!(b.calls(), 0);
}

#[tokio::test]
async fn a_frame_that_is_cut_in_the_middle_is_not_a_call() {
    let world = World::new();
    let (a, b) = (world.peer(2).await, world.peer(3).await);
    let frame = call(1, b"hello");
    let mut bytes = frame.header.encode().to_vec();
    bytes.extend_from_slice(&frame.body);
    for cut in [1, 8, 15, 16, 18, 20] {
        let mut stream = admitted(&world, &b).await;
        stream.write_all(&bytes[..cut]).await.unwrap();
        let _ = stream.shutdown().await;
        ended(&mut stream).await;
        // And without a farewell.
        let mut stream = admitted(&world, &b).await;
        stream.write_all(&bytes[..cut]).await.unwrap();
        stream.flush().await.unwrap();
        drop(stream);
    }
    a.speaks_with(&b).await;
    assert_eq!(b.calls(), 1);
}

#[tokio::test]
async fn a_call_number_that_is_under_way_is_not_taken_twice() {
    let world = World::new();
    let b = world.peer(3).await;
    let mut stream = admitted(&world, &b).await;
    let mut held = call(5, b"");
    held.header.method = super::HOLD.0;
    write_frame(&mut stream, &held).await.unwrap();
    write_frame(&mut stream, &held).await.unwrap();
    let answer = read(&mut stream).await.unwrap();
    assert_eq!(crate::link::refusal(&answer.body).code, RefusalCode::Malformed);
    ended(&mut stream).await;
    assert!(b.calls() <= 1);
}

#[tokio::test]
async fn a_recorded_session_cannot_be_played_again() {
    let world = World::new();
    let (a, b) = (world.peer(2).await, world.peer(3).await);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tapped = listener.local_addr().unwrap();
    let to = b.address;
    let tap = tokio::spawn(async move {
        let (near, _) = listener.accept().await.unwrap();
        let far = TcpStream::connect(to).await.unwrap();
        let (mut near_in, mut near_out) = near.into_split();
        let (mut far_in, mut far_out) = far.into_split();
        tokio::spawn(async move { tokio::io::copy(&mut far_in, &mut near_out).await });
        let mut recorded = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = near_in.read(&mut buffer).await {
            recorded.extend_from_slice(&buffer[..count]);
            if far_out.write_all(&buffer[..count]).await.is_err() {
                break;
            }
        }
        recorded
    });
    world.book.lock().unwrap().insert(b.id, vec![tapped]);
    a.speaks_with(&b).await;
    assert_eq!(b.calls(), 1);
    a.links.retain(|_| false);
    let recorded = tokio::time::timeout(SOON, tap).await.unwrap().unwrap();
    assert!(recorded.len() > 1_000, "handshake, greeting and call");
    for _ in 0..3 {
        let mut replay = TcpStream::connect(b.address).await.unwrap();
        let _ = replay.write_all(&recorded).await;
        let _ = replay.shutdown().await;
        ended(&mut replay).await;
    }
    assert_eq!(b.calls(), 1);
}

#[tokio::test]
async fn those_who_connect_and_say_nothing_do_not_keep_members_out() {
    let world = World::new();
    let patience = Patience { greeting: Duration::from_secs(2), ..Patience::default() };
    let b = world.peer_with(world.identity(3), Dialects::default(), patience).await;
    let a = world.peer(2).await;
    a.speaks_with(&b).await;
    // More than this address may have; each byte takes its time.
    let mut silent = Vec::new();
    for _ in 0..60 {
        silent.push(TcpStream::connect(b.address).await.unwrap());
    }
    // A member that is connected notices nothing.
    a.speaks_with(&b).await;
    for stream in &mut silent {
        let _ = stream.write_all(&[0x16]).await;
    }
    for stream in &mut silent {
        ended(stream).await;
    }
    // And a new one comes in when the silent ones have been shown out.
    let c = world.peer(4).await;
    c.speaks_with(&b).await;
}

#[tokio::test]
async fn half_a_frame_does_not_hold_a_connection_for_ever() {
    let world = World::new();
    let patience = Patience { frame: Duration::from_millis(300), ..Patience::default() };
    let b = world.peer_with(world.identity(3), Dialects::default(), patience).await;
    let mut stream = admitted(&world, &b).await;
    // A connection without calls may rest for longer than that.
    tokio::time::sleep(Duration::from_millis(400)).await;
    write_frame(&mut stream, &call(1, b"x")).await.unwrap();
    assert_eq!(read(&mut stream).await.unwrap().body, "x");
    stream.write_all(&call(2, b"hello").header.encode()).await.unwrap();
    stream.flush().await.unwrap();
    ended(&mut stream).await;
    assert_eq!(b.calls(), 1);
}

#[tokio::test]
async fn a_member_that_reads_no_answers_is_dropped() {
    let world = World::new();
    let patience = Patience { frame: Duration::from_millis(500), ..Patience::default() };
    let b = world.peer_with(world.identity(3), Dialects::default(), patience).await;
    let mut stream = admitted(&world, &b).await;
    let body = Bytes::from(vec![1; 4 << 20]);
    let mut sent = 0;
    for number in 0..64 {
        let mut frame = Frame::new(Kind::Call, ECHO.0, number, body.clone());
        frame.header.deadline_ms = 60_000;
        let write = write_frame(&mut stream, &frame);
        if !matches!(tokio::time::timeout(SOON, write).await, Ok(Ok(()))) {
            break;
        }
        sent += 1;
    }
    assert!(sent < 64, "it took {sent} calls and nobody read the answers");
}

/// A false server: answers each connection with these bytes inside TLS.
async fn false_server(own: Identity, hands: &Hands, bytes: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = crate::tls::server(&own, &hands.clock()).unwrap();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let acceptor = tokio_rustls::TlsAcceptor::from(config.clone());
            let Ok(mut stream) = acceptor.accept(tcp).await else { continue };
            let _ = stream.write_all(&bytes).await;
            let _ = stream.flush().await;
            let _ = stream.shutdown().await;
        }
    });
    address
}

#[tokio::test]
async fn a_member_that_answers_nonsense_gives_an_error_and_no_more() {
    let world = World::new();
    let a = world.peer(2).await;
    let mut runner = TestRunner::deterministic();
    let any = proptest::collection::vec(proptest::num::u8::ANY, 0..300);
    let welcome = Frame::new(
        Kind::Welcome,
        0,
        0,
        Bytes::from(format!(r#"{{"dialect":1,"node":"{}"}}"#, node(3))),
    );
    for round in 0..12 {
        let mut bytes = Vec::new();
        if round % 2 == 0 {
            bytes.extend_from_slice(&welcome.header.encode());
            bytes.extend_from_slice(&welcome.body);
        }
        bytes.extend(any.new_tree(&mut runner).unwrap().current());
        let address = false_server(world.identity(3), &world.hands, bytes).await;
        world.book.lock().unwrap().insert(node(3), vec![address]);
        let error = a.links.call(node(3), ECHO, Bytes::new(), SOON).await.unwrap_err();
        let told = matches!(
            error,
            CallError::Broken { .. } | CallError::Unreachable { .. } | CallError::Refused { .. }
        );
        assert!(told, "{error}");
        a.links.retain(|_| false);
    }
}

#[tokio::test]
async fn the_port_takes_no_more_strangers_of_one_address_than_said() {
    let world = World::new();
    let b = world.peer(3).await;
    let mut silent = Vec::new();
    for _ in 0..32 {
        silent.push(TcpStream::connect(b.address).await.unwrap());
    }
    // The next one is shown out at once, long before the first ones run out of time.
    let began = std::time::Instant::now();
    let mut next = TcpStream::connect(b.address).await.unwrap();
    ended(&mut next).await;
    assert!(began.elapsed() < Duration::from_secs(4));
    drop(silent);
    let a = world.peer(2).await;
    let mut spoke = false;
    for _ in 0..50 {
        spoke = a.echo(&b, "x").await.is_ok();
        if spoke {
            break;
        }
    }
    assert!(spoke);
    until("nothing else", || true).await;
}
