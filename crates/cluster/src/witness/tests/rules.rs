//! The follower's rules, and the form of the record.

use proptest::prelude::any;
use proptest::prelude::prop;
use proptest::proptest;
use uuid::Uuid;

use super::W;
use super::at;
use super::blank;
use super::candidate;
use super::cluster;
use super::id;
use super::leader;
use crate::raft::MembersAt;
use crate::raft::SnapshotHead;
use crate::raft::wire::AppendReply;
use crate::raft::wire::AppendRequest;
use crate::raft::wire::SnapshotReply;
use crate::raft::wire::VoteRequest;
use crate::witness::record::RECORD_BYTES_MAX;
use crate::witness::record::Record;
use crate::witness::record::RecordError;
use crate::witness::record::Reply;
use crate::witness::record::Request;
use crate::witness::record::answer;

fn new() -> Record {
    Record::new(cluster(), id(W), Uuid::from_u128(1))
}

fn ask(record: &mut Record, request: Request) -> Reply {
    let (next, reply) = answer(record, &request).unwrap();
    *record = Record::read(&next.write().unwrap()).unwrap();
    assert_eq!(*record, next);
    reply
}

fn vote(record: &mut Record, ballot: crate::raft::Ballot, last: Option<(u64, u128, u64)>) -> bool {
    let last = last.map(|(term, leader, index)| at(term, leader, index));
    let request = VoteRequest { ballot, last, transfer: false, pre_vote: false };
    match ask(record, Request::Vote(request)) {
        Reply::Vote(reply) => reply.granted,
        other => panic!("{other:?}"),
    }
}

fn append(
    record: &mut Record,
    ballot: crate::raft::Ballot,
    previous: Option<(u64, u128, u64)>,
    entries: &[(u64, u128, u64)],
    committed: Option<(u64, u128, u64)>,
) -> AppendReply {
    let place = |(term, leader, index)| at(term, leader, index);
    let request = AppendRequest {
        ballot,
        previous: previous.map(place),
        entries: entries.iter().copied().map(place).map(blank).collect(),
        committed: committed.map(place),
    };
    match ask(record, Request::Append(request)) {
        Reply::Append(reply) => reply,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_newest_vote_wins_and_goes_to_a_log_that_is_long_enough() {
    let mut record = new();
    assert!(vote(&mut record, candidate(1, 1), None));
    assert!(vote(&mut record, candidate(1, 1), None), "asked twice");
    assert!(!vote(&mut record, candidate(0, 2), None));
    assert!(vote(&mut record, candidate(1, 2), None), "votes of one term are in order, too");
    assert!(!vote(&mut record, candidate(1, 1), None));
    let entries = [(1, 2, 0), (1, 2, 1)];
    assert_eq!(append(&mut record, leader(1, 2), None, &entries, None), AppendReply::Success);
    assert!(!vote(&mut record, candidate(2, 1), Some((1, 2, 0))), "its log is shorter");
    assert_eq!(record.ballot, Some(leader(1, 2)), "then its vote is not taken either");
    assert!(vote(&mut record, candidate(2, 1), Some((1, 2, 1))));
    let old = append(&mut record, leader(1, 2), Some((1, 2, 1)), &[(1, 2, 2)], None);
    assert_eq!(old, AppendReply::HigherVote(candidate(2, 1)));
    assert_eq!(record.last(), Some(at(1, 2, 1)));
}

#[test]
fn a_question_changes_nothing() {
    let record = new();
    let question =
        VoteRequest { ballot: candidate(3, 1), last: None, transfer: false, pre_vote: true };
    let (next, reply) = answer(&record, &Request::Vote(question)).unwrap();
    assert_eq!(next, record);
    assert!(matches!(reply, Reply::Vote(vote) if vote.granted));
}

#[test]
fn entries_follow_what_is_there_and_replace_what_contradicts() {
    let mut record = new();
    let lead = leader(1, 1);
    assert_eq!(append(&mut record, lead, Some((1, 1, 4)), &[], None), AppendReply::Conflict);
    let four = [(1, 1, 0), (1, 1, 1), (1, 1, 2), (1, 1, 3)];
    append(&mut record, lead, None, &four, Some((1, 1, 1)));
    assert_eq!(record.committed, Some(at(1, 1, 1)));
    assert_eq!(append(&mut record, lead, None, &four[..2], None), AppendReply::Success);
    assert_eq!(record.last(), Some(at(1, 1, 3)), "an old message takes nothing away");
    let other = leader(2, 2);
    assert_eq!(append(&mut record, other, Some((2, 2, 3)), &[], None), AppendReply::Conflict);
    assert_eq!(record.last(), Some(at(1, 1, 2)), "from there on it contradicts");
    let new = [(2, 2, 2), (2, 2, 3)];
    append(&mut record, other, Some((1, 1, 1)), &new, Some((2, 2, 9)));
    assert_eq!(record.last(), Some(at(2, 2, 3)));
    assert_eq!(record.committed, None.max(Some(at(2, 2, 3))), "as far as it is there");
}

#[test]
fn requests_that_no_leader_sends_are_refused() {
    let record = new();
    let gap = AppendRequest {
        ballot: leader(1, 1),
        previous: None,
        entries: vec![blank(at(1, 1, 0)), blank(at(1, 1, 2))],
        committed: None,
    };
    assert!(answer(&record, &Request::Append(gap)).is_err());
    let back = AppendRequest {
        ballot: leader(2, 1),
        previous: Some(at(2, 1, 0)),
        entries: vec![blank(at(1, 1, 1))],
        committed: None,
    };
    assert!(answer(&record, &Request::Append(back)).is_err());
}

#[test]
fn what_all_have_is_forgotten_and_still_known() {
    let mut record = new();
    let lead = leader(1, 1);
    let entries: Vec<_> = (0..10).map(|index| (1, 1, index)).collect();
    append(&mut record, lead, None, &entries, Some((1, 1, 7)));
    record.trim(5);
    assert_eq!((record.base, record.entries.len()), (Some(at(1, 1, 4)), 5));
    record.trim(u64::MAX);
    assert_eq!(record.entries.len(), 2, "what is not decided is kept");
    assert_eq!(append(&mut record, lead, Some((1, 1, 3)), &entries[4..], None), {
        AppendReply::Success
    });
    assert_eq!(record.last(), Some(at(1, 1, 9)));
    assert!(!vote(&mut record, candidate(9, 2), Some((1, 1, 8))));
}

#[test]
fn a_snapshot_is_a_position() {
    let head = |index| SnapshotHead {
        last: Some(at(1, 1, index)),
        members: MembersAt::default(),
        bytes: 1,
        crc: 0,
    };
    let mut record = new();
    let lead = leader(1, 1);
    append(&mut record, lead, None, &[(1, 1, 0), (1, 1, 1), (1, 1, 2)], None);
    let take = Request::Snapshot { ballot: lead, head: head(1) };
    assert_eq!(ask(&mut record, take), Reply::Snapshot(SnapshotReply::Done(lead)));
    assert_eq!((record.base, record.entries.len()), (Some(at(1, 1, 1)), 1));
    ask(&mut record, Request::Snapshot { ballot: lead, head: head(50) });
    assert_eq!((record.last(), record.entries.len()), (Some(at(1, 1, 50)), 0));
    ask(&mut record, Request::Snapshot { ballot: lead, head: head(20) });
    assert_eq!(record.last(), Some(at(1, 1, 50)), "an old one changes nothing");
    let late = Request::Snapshot { ballot: leader(0, 2), head: head(90) };
    assert_eq!(ask(&mut record, late), Reply::Snapshot(SnapshotReply::Done(lead)));
    assert_eq!(append(&mut record, lead, Some((1, 1, 50)), &[(1, 1, 51)], None), {
        AppendReply::Success
    });
}

/// The stored form stays readable: this is what version 1 looks like.
#[test]
fn the_form_of_a_record_is_this() {
    let mut record = new();
    append(&mut record, leader(1, 1), None, &[(1, 1, 0)], None);
    let bytes = record.write().unwrap();
    let head = "4d5553545749544e01".to_owned();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(hex(&bytes[..9]), head);
    insta::assert_snapshot!(String::from_utf8(bytes[13..].to_vec()).unwrap());
}

#[test]
fn damage_is_named() {
    let bytes = new().write().unwrap();
    assert_eq!(Record::read(&[]), Err(RecordError::Foreign));
    assert_eq!(Record::read(b"<html>404 not found</html>"), Err(RecordError::Foreign));
    for place in 0..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[place] ^= 0x10;
        assert!(Record::read(&bytes).is_err(), "a flipped bit at {place} was not seen");
    }
    for length in 0..bytes.len() {
        assert!(Record::read(&bytes[..length]).is_err());
    }
    let mut later = bytes.clone();
    later[8] = 2;
    assert_eq!(Record::read(&later), Err(RecordError::Version(2)));
    assert_eq!(Record::read(&vec![0; RECORD_BYTES_MAX + 1]), Err(RecordError::Large));
    let mut odd = new();
    odd.entries.push(blank(at(1, 1, 7)));
    assert_eq!(Record::read(&odd.write().unwrap()), Err(RecordError::Contradiction));
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        assert!(Record::read(&bytes).is_err());
    }

    /// Whatever is asked, in any order: the vote never goes back, what is committed stays, and the
    /// record is one that can be read again.
    #[test]
    fn votes_and_committed_entries_never_go_back(
        steps in prop::collection::vec(
            (0..4_u8, 1..5_u64, 1..4_u128, 0..8_u64, 0..5_u64, any::<bool>()), 0..60),
    ) {
        let mut record = new();
        for (what, term, node, index, count, flag) in steps {
            let before = record.clone();
            let position = |index: u64| at(1 + index / 3, 1, index);
            let previous = (index > 0).then(|| position(index - 1));
            let request = match what {
                0 => Request::Vote(VoteRequest {
                    ballot: candidate(term, node),
                    last: previous,
                    transfer: flag,
                    pre_vote: false,
                }),
                1 => Request::Snapshot {
                    ballot: leader(term, node),
                    head: SnapshotHead {
                        last: previous,
                        members: MembersAt::default(),
                        bytes: 0,
                        crc: 0,
                    },
                },
                _ => Request::Append(AppendRequest {
                    ballot: leader(term, node),
                    previous,
                    entries: (index..index + count).map(position).map(blank).collect(),
                    committed: flag.then(|| position(index)),
                }),
            };
            let _ = ask(&mut record, request);
            if flag {
                record.trim(index);
            }
            let rank = |record: &Record| record.ballot.map(|b| crate::witness::record::rank(&b));
            assert!(rank(&record) >= rank(&before));
            assert!(record.committed >= before.committed);
            assert!(record.last() >= record.committed);
        }
    }
}
