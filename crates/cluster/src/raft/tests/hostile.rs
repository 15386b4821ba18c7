//! Bytes of a peer that is broken or hostile: each is refused in words, and the replica goes on.

use proptest::prelude::Strategy;
use proptest::prelude::any;
use proptest::prop_assert;
use proptest::proptest;

use super::LONG;
use super::Lab;
use super::id;
use super::propose;
use crate::raft::PeerMethod;
use crate::raft::PeerRequest;
use crate::raft::PeerService;
use crate::raft::format::Ballot;
use crate::raft::format::LogEntry;
use crate::raft::format::LogEntryKind;
use crate::raft::format::Members;
use crate::raft::format::MembersAt;
use crate::raft::format::Position;
use crate::raft::format::SnapshotHead;
use crate::raft::wire;
use crate::raft::wire::WIRE_VERSION;

fn at(index: u64) -> Position {
    Position { term: 3, leader: id(2), index }
}

/// A whole message of each kind that has a form of its own.
fn whole() -> Vec<Vec<u8>> {
    let ballot = Ballot { term: 3, node: id(2), committed: true };
    let members = Members { voters: vec![[id(1), id(2)].into()], nodes: [id(1), id(2)].into() };
    let entry = LogEntry { at: at(8), what: LogEntryKind::Members(members.clone()) };
    let members = MembersAt { at: Some(at(4)), members };
    let head = SnapshotHead { last: Some(at(7)), members, bytes: 10, crc: 1 };
    let append = wire::AppendRequest {
        ballot,
        previous: Some(at(7)),
        entries: vec![entry],
        committed: Some(at(7)),
    };
    let vote = wire::VoteRequest { ballot, last: Some(at(7)), transfer: false, pre_vote: true };
    let piece = wire::SnapshotPiece { ballot, head, offset: 0 };
    let transfer = wire::TransferRequest { from: ballot, to: id(1), last: None };
    vec![
        wire::write(&append),
        wire::write(&vote),
        wire::write_piece(&piece, b"0123456789"),
        wire::write(&transfer),
        wire::write(&wire::RemovedNotice { at: at(9) }),
        wire::write(&wire::LeaderReply::Removed(at(9))),
    ]
}

/// Bytes of any kind, or a whole message with some of its bytes changed, cut or repeated.
fn bodies() -> impl Strategy<Value = Vec<u8>> {
    let random = proptest::collection::vec(any::<u8>(), 0..400);
    let changed = (
        0..6_usize,
        proptest::collection::vec((any::<usize>(), any::<u8>()), 1..6),
        any::<usize>(),
    )
        .prop_map(|(which, changes, cut)| {
            let mut body = whole().swap_remove(which);
            for (place, byte) in changes {
                let place = place % body.len();
                body[place] = byte;
            }
            if cut % 3 == 0 {
                body.truncate(cut / 3 % body.len());
            } else if cut % 7 == 0 {
                body.extend_from_within(cut % body.len()..);
            }
            body
        });
    proptest::prop_oneof![random, changed]
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(2_000))]

    /// Each decoder of the log's messages takes any bytes without a panic, and what it takes is what
    /// it would write.
    #[test]
    fn any_bytes_are_read_as_messages_of_the_log_without_a_panic(body in bodies()) {
        fn again<T>(body: &[u8]) -> bool
        where
            T: serde::Serialize + serde::de::DeserializeOwned + PartialEq,
        {
            let Ok(message) = wire::read::<T>(WIRE_VERSION, body) else { return true };
            wire::read(WIRE_VERSION, &wire::write(&message)) == Ok(message)
        }
        prop_assert!(again::<wire::AppendRequest>(&body));
        prop_assert!(again::<wire::AppendReply>(&body));
        prop_assert!(again::<wire::VoteRequest>(&body));
        prop_assert!(again::<wire::VoteReply>(&body));
        prop_assert!(again::<wire::SnapshotReply>(&body));
        prop_assert!(again::<wire::TransferRequest>(&body));
        prop_assert!(again::<wire::TransferReply>(&body));
        prop_assert!(again::<wire::ProposeRequest>(&body));
        prop_assert!(again::<wire::RemovedNotice>(&body));
        prop_assert!(again::<wire::Answer<wire::LeaderReply>>(&body));
        if let Ok((piece, content)) = wire::read_piece(WIRE_VERSION, &body) {
            prop_assert!(content.len() < body.len());
            let whole = wire::write_piece(&piece, content);
            prop_assert!(wire::read_piece(WIRE_VERSION, &whole) == Ok((piece, content)));
        }
        prop_assert!(wire::read::<wire::VoteRequest>(WIRE_VERSION + 1, &body).is_err());
    }
}

/// A stranger to the log sends noise by every method: it gets words, and nothing stops.
#[tokio::test(flavor = "multi_thread")]
async fn noise_by_every_method_stops_no_replica() {
    use proptest::strategy::ValueTree;
    let mut lab = Lab::new();
    let replica = lab.start(1).await.unwrap();
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let noise = proptest::collection::vec(any::<u8>(), 0..300);
    for round in 0..200 {
        let body = noise.new_tree(&mut runner).unwrap().current();
        for method in PeerMethod::ALL {
            let version = if round % 5 == 0 { 7 } else { WIRE_VERSION };
            let body = body.clone();
            let request = PeerRequest { method, version, timeout: LONG, body };
            let answer = replica.serve(id(9), request).await;
            // The question for a read point has no content.
            assert!(answer.is_err() || method == PeerMethod::Barrier, "{method:?}: {answer:?}");
        }
    }
    propose(&replica, 1).await.unwrap();
}
