//! The stored forms stay as they are: what one version writes, the next one reads.

use std::collections::BTreeSet;
use std::sync::Arc;

use model::Actor;
use model::ClusterState;
use model::Command;
use model::Event;
use model::EventKind;
use model::Proposal;
use model::Severity;
use model::Subject;
use model::UnixMillis;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::id;
use crate::raft::Envelope;
use crate::raft::StoredEvent;
use crate::raft::Ticket;
use crate::raft::format::Ballot;
use crate::raft::format::LogEntry;
use crate::raft::format::LogEntryKind;
use crate::raft::format::MachineImage;
use crate::raft::format::Members;
use crate::raft::format::MembersAt;
use crate::raft::format::Position;
use crate::raft::format::SnapshotHead;
use crate::raft::format::decode;
use crate::raft::format::encode;
use crate::raft::format::seal;
use crate::raft::format::unseal;
use crate::raft::session::Sessions;
use crate::raft::store::Identity;
use crate::raft::store::SnapshotPlace;

/// Set to write the file anew, after a change that adds a form or a version.
const WRITE: &str = "MUSTER_WRITE_GOLDEN";

fn at(index: u64) -> Position {
    Position { term: 3, leader: id(1), index }
}

fn members() -> Members {
    let set = |ids: &[u128]| -> BTreeSet<_> { ids.iter().copied().map(id).collect() };
    Members { voters: vec![set(&[1, 2]), set(&[1, 2, 3])], nodes: set(&[1, 2, 3, 4]) }
}

/// A line: the place and the record, and a check that it is read as it was written.
fn line<T>(lines: &mut String, place: &str, value: &T)
where
    T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let record = encode(place, value);
    assert_eq!(decode::<T>(place, &record).as_ref(), Ok(value));
    let head: String = record[..5].iter().map(|byte| format!("{byte:02x}")).collect();
    lines.push_str(&format!("{place} {head} {}\n", std::str::from_utf8(&record[5..]).unwrap()));
}

fn lines() -> String {
    let mut lines = String::new();
    let ticket = Ticket { node: id(2), boot: 5, number: 8, floor: 7 };
    let proposal = Proposal {
        at: UnixMillis::new(1_700_000_000_000),
        actor: Actor::new("uid 1000 (anna)"),
        command: Command::CancelOp { op: model::OpId::new(uuid::Uuid::from_u128(8)) },
    };
    let event = Event {
        at: UnixMillis::new(1_700_000_000_000),
        kind: EventKind::OpBegun,
        severity: Severity::Info,
        subject: Subject::Vm {
            id: model::VmId::new(uuid::Uuid::from_u128(9)),
            name: "web".to_owned(),
        },
        text: "began".to_owned(),
        actor: Some("anna".to_owned()),
        op: None,
    };
    let envelope = Arc::new(Envelope { ticket, proposal });
    let kinds =
        [LogEntryKind::Blank, LogEntryKind::Proposal(envelope), LogEntryKind::Members(members())];
    for (index, what) in (16..).zip(kinds) {
        line(&mut lines, &format!("log/{index}"), &LogEntry { at: at(index), what });
    }
    line(&mut lines, "meta/vote", &Ballot { term: 3, node: id(1), committed: true });
    line(&mut lines, "meta/purged", &at(15));
    line(
        &mut lines,
        "meta/identity",
        &Identity { store: uuid::Uuid::from_u128(77), node: id(1), joining: false },
    );
    let head = SnapshotHead {
        last: Some(at(15)),
        members: MembersAt { at: Some(at(2)), members: members() },
        bytes: 12,
        crc: 34,
    };
    line(&mut lines, "meta/snapshot", &SnapshotPlace { slot: 1, head });
    line(&mut lines, "events/4", &event);
    let mut sessions = Sessions::default();
    sessions.admit(&ticket);
    let image = MachineImage {
        state: Arc::new(ClusterState::default()),
        event_seq: 4,
        sessions,
        events: vec![StoredEvent { seq: 4, event }],
    };
    // The state's own form is `model`'s; a field more there is no new form here.
    let mut json = serde_json::to_value(&image).unwrap();
    json["state"] = serde_json::Value::Null;
    lines.push_str(&format!("image {json}\n"));
    lines
}

#[test]
fn the_stored_forms_are_those_of_the_golden_file() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/raft/tests/records.golden");
    let lines = lines();
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(path, &lines).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap();
    assert_eq!(lines, golden, "a stored form has changed: give it a new version");
}

#[test]
fn a_record_holds_at_its_own_place_only() {
    let record = seal("log/7", b"content");
    assert_eq!(unseal("log/7", &record), Ok(b"content".as_slice()));
    assert!(unseal("log/8", &record).is_err());
    for at in 0..record.len() {
        for bit in 0..8 {
            let mut bad = record.clone();
            bad[at] ^= 1 << bit;
            assert!(unseal("log/7", &bad).is_err(), "bit {bit} of byte {at}");
        }
        assert!(unseal("log/7", &record[..at]).is_err());
    }
}
