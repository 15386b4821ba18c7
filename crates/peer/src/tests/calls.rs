//! Calls between nodes that mean well, over lines that do not always.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::ECHO;
use super::HOLD;
use super::NO;
use super::SOON;
use super::World;
use super::until;
use crate::CallError;
use crate::Method;
use crate::RefusalCode;
use crate::Trust;
use crate::pki::PkiError;
use crate::wire::BODY_BYTES_MAX;

#[tokio::test]
async fn calls_go_both_ways_and_refusals_come_back_in_words() {
    let world = World::new();
    let (a, b) = (world.peer(2).await, world.peer(3).await);
    a.speaks_with(&b).await;
    b.speaks_with(&a).await;
    let error = a.links.call(b.id, NO, Bytes::new(), SOON).await.unwrap_err();
    assert_eq!(error.code(), Some(RefusalCode::Failed));
    assert!(error.to_string().ends_with("no; ask something else"), "{error}");
    let error = a.links.call(b.id, Method(7777), Bytes::new(), SOON).await.unwrap_err();
    assert_eq!(error.code(), Some(RefusalCode::UnknownMethod));
    assert!(error.surely_not_done());
    let error = a.links.call(super::node(99), ECHO, Bytes::new(), SOON).await.unwrap_err();
    assert!(matches!(error, CallError::NoAddress(_)));
}

#[tokio::test]
async fn the_largest_body_passes_and_a_larger_one_is_not_sent() {
    let world = World::new();
    let (a, b) = (world.peer(2).await, world.peer(3).await);
    let body = Bytes::from(vec![7; BODY_BYTES_MAX]);
    let back = a.links.call(b.id, ECHO, body.clone(), SOON).await.unwrap();
    assert!(back == body);
    let larger = Bytes::from(vec![7; BODY_BYTES_MAX + 1]);
    let error = a.links.call(b.id, ECHO, larger, SOON).await.unwrap_err();
    assert!(matches!(error, CallError::TooLarge { .. }));
    assert_eq!(b.calls(), 1);
}

#[tokio::test]
async fn a_quick_call_overtakes_a_slow_one_on_the_same_connection() {
    let world = World::new();
    let (a, b) = (world.peer(2).await, world.peer(3).await);
    let links = a.links.clone();
    let to = b.id;
    let slow = tokio::spawn(async move { links.call(to, HOLD, Bytes::new(), SOON).await });
    until("the slow call is inside", || b.seen.held.load(Ordering::SeqCst) == 1).await;
    let error = a.links.call(b.id, NO, Bytes::new(), SOON).await.unwrap_err();
    assert_eq!(error.code(), Some(RefusalCode::Failed));
    b.gate.send_replace(true);
    assert_eq!(slow.await.unwrap().unwrap(), a.id.to_string());
}

#[tokio::test]
async fn who_does_not_wait_any_longer_is_not_worked_for() {
    let world = World::new();
    let (a, b) = (world.peer(2).await, world.peer(3).await);
    a.speaks_with(&b).await;
    let brief = Duration::from_millis(100);
    let error = a.links.call(b.id, HOLD, Bytes::new(), brief).await.unwrap_err();
    // Whichever side looks at its clock first.
    let told = error.code() == Some(RefusalCode::Deadline);
    assert!(told || matches!(error, CallError::Timeout { after_ms: 100, .. }), "{error}");
    assert!(!error.surely_not_done());
    until("the handler was dropped", || b.seen.dropped.load(Ordering::SeqCst) == 1).await;
    a.speaks_with(&b).await;
}

#[tokio::test]
async fn one_member_cannot_have_more_calls_at_once_than_its_share() {
    let world = World::new();
    let (a, b, c) = (world.peer(2).await, world.peer(3).await, world.peer(4).await);
    let calls = (0..140).map(|_| a.links.call(b.id, HOLD, Bytes::new(), SOON));
    let others = async {
        until("128 are inside", || b.seen.held.load(Ordering::SeqCst) == 128).await;
        // Another member has its own share.
        c.speaks_with(&b).await;
        until("the rest was refused", || b.seen.held.load(Ordering::SeqCst) == 128).await;
        b.gate.send_replace(true);
    };
    let (answers, ()) = tokio::join!(join_all(calls), others);
    let busy = answers.iter().filter(|answer| {
        answer.as_ref().is_err_and(|error| error.code() == Some(RefusalCode::Busy))
    });
    assert_eq!(busy.count(), 12);
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 128);
}

#[tokio::test]
async fn a_restarted_node_is_found_again() {
    let world = World::new();
    let (a, b) = (world.peer(2).await, world.peer(3).await);
    a.speaks_with(&b).await;
    drop(b.server);
    let brief = Duration::from_secs(2);
    let error = a.links.call(b.id, ECHO, Bytes::new(), brief).await.unwrap_err();
    let gone = matches!(error, CallError::Broken { .. } | CallError::Unreachable { .. });
    assert!(gone, "{error}");
    let again = world.peer(3).await;
    // A call that meets the old connection's end may fail; the one after it must not.
    let _ = a.echo(&again, "x").await;
    a.speaks_with(&again).await;
}

/// Passes bytes on until it is told to swallow them, as a cut cable does.
async fn cable(to: std::net::SocketAddr) -> (std::net::SocketAddr, watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (cut, is_cut) = watch::channel(false);
    tokio::spawn(async move {
        loop {
            let (near, _) = listener.accept().await.unwrap();
            let mut is_cut = is_cut.clone();
            tokio::spawn(async move {
                let _ = is_cut.wait_for(|cut| !cut).await;
                let far = TcpStream::connect(to).await.unwrap();
                let (mut near_in, mut near_out) = near.into_split();
                let (mut far_in, mut far_out) = far.into_split();
                let passing = async {
                    tokio::join!(
                        tokio::io::copy(&mut near_in, &mut far_out),
                        tokio::io::copy(&mut far_in, &mut near_out),
                    )
                };
                let cut = async {
                    // Cut: both ends stay open and hear nothing.
                    let _ = is_cut.wait_for(|cut| *cut).await;
                };
                tokio::select! {
                    _ = passing => return,
                    () = cut => {}
                }
                std::future::pending::<()>().await;
            });
        }
    });
    (address, cut)
}

#[tokio::test]
async fn a_network_that_goes_silent_is_left_for_another_one() {
    let world = World::new();
    let (a, b) = (world.peer(2).await, world.peer(3).await);
    let (first, cut) = cable(b.address).await;
    world.book.lock().unwrap().insert(b.id, vec![first]);
    a.speaks_with(&b).await;
    world.book.lock().unwrap().insert(b.id, vec![first, b.address]);
    cut.send_replace(true);
    let brief = Duration::from_millis(800);
    let error = a.links.call(b.id, ECHO, Bytes::new(), brief).await.unwrap_err();
    assert!(matches!(error, CallError::Timeout { .. }), "{error}");
    assert_eq!(a.links.call(b.id, ECHO, Bytes::from("x"), SOON).await.unwrap(), "x");
}

#[tokio::test]
async fn a_connection_is_made_also_when_its_first_caller_has_given_up() {
    let world = World::new();
    let (a, b) = (world.peer(2).await, world.peer(3).await);
    let no_time = Duration::from_micros(1);
    let error = a.links.call(b.id, ECHO, Bytes::new(), no_time).await.unwrap_err();
    assert!(error.surely_not_done(), "{error}");
    a.speaks_with(&b).await;
}

#[tokio::test]
async fn a_stream_carries_bytes_both_ways() {
    let world = World::new();
    let (a, b) = (world.peer(2).await, world.peer(3).await);
    let mut stream = a.links.stream(b.id, "shout").await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HELLO");
    // A stream that nobody knows just ends.
    let mut stream = a.links.stream(b.id, "what").await.unwrap();
    assert_eq!(stream.read(&mut answer).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn a_renewed_certificate_is_taken_up_and_an_expired_one_comes_with_advice() {
    let world = World::new();
    let (a, b) = (world.peer(2).await, world.peer(3).await);
    a.speaks_with(&b).await;
    world.hands.set_days(91);
    let error = a.echo(&b, "x").await.unwrap_err();
    assert!(matches!(&error, CallError::Pki(PkiError::Expired { .. })), "{error}");
    assert!(error.to_string().contains("restart that node's daemon so that it renews"), "{error}");
    for peer in [&a, &b] {
        let old = peer.identity.borrow().clone();
        let new = old.renewed(&world.ca, world.hands.clock().now()).unwrap();
        peer.identity.send_replace(Arc::new(new));
    }
    a.speaks_with(&b).await;
    world.hands.set_days(180);
    a.speaks_with(&b).await;
}

#[tokio::test]
async fn an_evicted_node_is_cut_off_also_on_a_connection_that_stands() {
    let world = World::new();
    let (a, b) = (world.peer(2).await, world.peer(3).await);
    let member = Trust::Member(Some(a.identity.borrow().key_digest()));
    world.trust(a.id, member);
    a.speaks_with(&b).await;
    world.trust(a.id, Trust::Evicted { at: super::NOW });
    let calls = b.calls();
    for _ in 0..3 {
        let error = a.echo(&b, "x").await.unwrap_err();
        assert_eq!(error.code(), Some(RefusalCode::Evicted), "{error}");
        assert!(error.to_string().contains("muster cluster leave --force"), "{error}");
    }
    // Nobody calls it either.
    let error = b.echo(&a, "x").await.unwrap_err();
    assert_eq!(error.code(), Some(RefusalCode::Evicted));
    assert_eq!((b.calls(), a.calls()), (calls, 0));
    world.trust(a.id, Trust::Left { at: super::NOW });
    assert_eq!(a.echo(&b, "x").await.unwrap_err().code(), Some(RefusalCode::Left));
}
