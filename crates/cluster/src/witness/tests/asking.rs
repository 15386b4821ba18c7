//! A node's hand on the witness: lost answers, races, records that are not what they should be.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Dice;
use super::W;
use super::at;
use super::blank;
use super::candidate;
use super::cluster;
use super::id;
use super::leader;
use crate::raft::Ballot;
use crate::raft::wire::AppendReply;
use crate::raft::wire::AppendRequest;
use crate::raft::wire::VoteRequest;
use crate::witness::Ask;
use crate::witness::AskError;
use crate::witness::Client;
use crate::witness::Health;
use crate::witness::Record;
use crate::witness::Terms;
use crate::witness::Wrong;
use crate::witness::create;
use crate::witness::memory::Fault;
use crate::witness::memory::MemoryStore;
use crate::witness::record::Reply;
use crate::witness::record::Request;

const LEASE: Duration = Duration::from_secs(3);

fn terms(me: u128) -> Terms {
    Terms { cluster: cluster(), witness: id(W), me: id(me), lease: LEASE, memory: None }
}

fn client(store: &MemoryStore, me: u128) -> Client {
    Client::new(Arc::new(store.clone()), terms(me))
}

async fn made() -> MemoryStore {
    let store = MemoryStore::new();
    create(&store, cluster(), id(W)).await.unwrap();
    store
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

async fn vote(client: &Client, ballot: Ballot) -> Result<bool, AskError> {
    let request = VoteRequest { ballot, last: None, transfer: false, pre_vote: false };
    let ask = Ask { request: Request::Vote(request), hold: true, floor: 0, until: soon() };
    match client.ask(ask).await? {
        (Reply::Vote(reply), _) => Ok(reply.granted),
        other => panic!("{other:?}"),
    }
}

async fn beat(client: &Client, ballot: Ballot, hold: bool) -> Result<AppendReply, AskError> {
    let request = AppendRequest { ballot, previous: None, entries: Vec::new(), committed: None };
    let ask = Ask { request: Request::Append(request), hold, floor: 0, until: soon() };
    match client.ask(ask).await? {
        (Reply::Append(reply), _) => Ok(reply),
        other => panic!("{other:?}"),
    }
}

fn last(store: &MemoryStore) -> Record {
    Record::read(store.history().last().unwrap()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_was_lost_is_found_by_its_nonce() {
    let store = made().await;
    let a = client(&store, 1);
    // A read, then the write.
    store.plan([Fault::Slow(Duration::from_millis(1)), Fault::LoseAnswer]);
    assert_eq!(vote(&a, candidate(1, 1)).await, Ok(true));
    assert_eq!(last(&store).counter, 2, "it was not written twice");
    store.plan([Fault::Slow(Duration::from_millis(1)), Fault::LoseRequest]);
    assert_eq!(vote(&a, candidate(2, 1)).await, Ok(true));
    assert_eq!(last(&store).counter, 3);
}

/// The late write fails on its condition, or is the answer.
#[tokio::test(start_paused = true)]
async fn a_write_that_arrives_late_does_no_harm() {
    let store = made().await;
    let (a, b) = (client(&store, 1), client(&store, 2));
    let late = Fault::DoLater(Duration::from_secs(8));
    store.plan([Fault::Slow(Duration::from_millis(1)), late]);
    // Not there yet when it is looked for: worked out again, and written.
    assert_eq!(vote(&a, candidate(1, 1)).await, Ok(true));
    assert_eq!(beat(&a, leader(1, 1), false).await, Ok(AppendReply::Success));
    assert_eq!(vote(&b, candidate(5, 2)).await, Ok(true));
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(last(&store).ballot, Some(candidate(5, 2)));
    let higher = Ok(AppendReply::HigherVote(candidate(5, 2)));
    assert_eq!(beat(&a, leader(1, 1), true).await, higher);
}

#[tokio::test(start_paused = true)]
async fn whoever_holds_it_keeps_it_while_it_is_renewed() {
    let store = made().await;
    let (a, b) = (client(&store, 1), client(&store, 2));
    vote(&a, candidate(1, 1)).await.unwrap();
    for _ in 0..40 {
        assert_eq!(beat(&a, leader(1, 1), true).await, Ok(AppendReply::Success));
        assert!(matches!(vote(&b, candidate(9, 2)).await, Err(AskError::Held { .. })));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let (reads, writes) = store.used();
    assert!(writes < 30, "a heartbeat that changes nothing is a read: {reads}, {writes}");
    // The holder is silent: a whole lease from when that was seen first.
    let Err(AskError::Held { wait }) = vote(&b, candidate(9, 2)).await else { panic!("not held") };
    assert!(wait > LEASE / 2);
    tokio::time::sleep(wait).await;
    assert_eq!(vote(&b, candidate(9, 2)).await, Ok(true));
    assert!(matches!(vote(&a, candidate(10, 1)).await, Err(AskError::Held { .. })));
    // Let go: no wait.
    assert_eq!(beat(&b, leader(9, 2), false).await, Ok(AppendReply::Success));
    assert_eq!(vote(&a, candidate(10, 1)).await, Ok(true));
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_not_ours_is_refused_by_name() {
    let store = made().await;
    let a = client(&store, 1);
    vote(&a, candidate(1, 1)).await.unwrap();
    let first = store.history()[1].clone();
    beat(&a, leader(1, 1), true).await.unwrap();
    let mut said = String::new();
    let mut note = |what: &str, outcome: Result<Record, AskError>| match outcome {
        Err(AskError::Wrong(wrong)) => said += &format!("{what}: {}\n", AskError::Wrong(wrong)),
        other => panic!("{what}: {other:?}"),
    };
    let foreign = Record::new(model::ClusterId::new(uuid::Uuid::from_u128(5)), id(W), {
        uuid::Uuid::from_u128(6)
    });
    store.put(foreign.write().unwrap());
    note("of another cluster", a.check().await);
    let before = Record::new(cluster(), id(W + 1), uuid::Uuid::from_u128(6));
    store.put(before.write().unwrap());
    note("of an earlier witness", a.check().await);
    store.put(b"GIF89a".to_vec());
    note("damaged", a.check().await);
    assert!(matches!(*a.health().borrow(), Health::Wrong(Wrong::Record { .. })));
    store.put(first.clone());
    note("put back", a.check().await);
    let better = Record { counter: 90, ..Record::read(&first).unwrap() };
    store.put(better.write().unwrap());
    note("put back and written on by others", a.check().await);
    let b = client(&store, 2);
    b.check().await.unwrap();
    crate::witness::WitnessStore::remove(&store).await.unwrap();
    note("deleted", b.check().await);
    assert!(vote(&b, candidate(9, 2)).await.is_err(), "and never made again by itself");
    assert!(store.history().is_empty());
    insta::assert_snapshot!(said);
}

#[tokio::test(start_paused = true)]
async fn a_witness_is_not_made_over_another_one() {
    let store = made().await;
    create(&store, cluster(), id(W)).await.unwrap_err();
    let other = create(&store, cluster(), id(W + 1)).await;
    assert!(matches!(other, Err(AskError::Wrong(Wrong::OtherWitness { .. }))), "{other:?}");
    let foreign = model::ClusterId::new(uuid::Uuid::from_u128(1));
    let other = create(&store, foreign, id(W)).await;
    assert!(matches!(other, Err(AskError::Wrong(Wrong::OtherCluster { .. }))), "{other:?}");
    let store = MemoryStore::new();
    store.plan([Fault::LoseAnswer]);
    create(&store, cluster(), id(W)).await.unwrap();
}

/// What was seen last outlives the process.
#[tokio::test]
async fn a_record_put_back_while_the_daemon_was_down_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let store = made().await;
    let terms = Terms { memory: Some(dir.path().join("witness.seen")), ..terms(1) };
    let a = Client::new(Arc::new(store.clone()), terms.clone());
    for term in 1..4 {
        vote(&a, candidate(term, 1)).await.unwrap();
    }
    drop(a);
    store.put(store.history()[2].clone());
    let a = Client::new(Arc::new(store.clone()), terms.clone());
    let refused = a.check().await;
    assert!(matches!(refused, Err(AskError::Wrong(Wrong::RolledBack { .. }))), "{refused:?}");
    // Another witness begins anew.
    let terms = Terms { witness: id(W + 1), ..terms };
    crate::witness::WitnessStore::remove(&store).await.unwrap();
    create(&store, cluster(), id(W + 1)).await.unwrap();
    Client::new(Arc::new(store.clone()), terms).check().await.unwrap();
}

/// Some nodes ask at random while the store loses, delays and refuses at random. The record's
/// numbers strictly grow; each acknowledged vote and entry is in a version of it; nobody is given a
/// vote after a newer one was given.
async fn schedule(seed: u64) {
    let mut dice = Dice::new(seed);
    let store = made().await;
    let nodes = 2 + u128::from(dice.roll(3));
    let mut askers = tokio::task::JoinSet::new();
    for me in 1..=nodes {
        let (store, mut dice) = (store.clone(), Dice::new(seed * 31 + me as u64));
        askers.spawn(async move {
            let client = Client::new(Arc::new(store), Terms { lease: Duration::ZERO, ..terms(me) });
            let mut told = Vec::new();
            for term in 1..12 {
                tokio::time::sleep(Duration::from_millis(dice.roll(40))).await;
                let term = term + dice.roll(3);
                if vote(&client, candidate(term, me)).await != Ok(true) {
                    continue;
                }
                told.push((candidate(term, me), None));
                let entry = at(term, me, 0);
                let request = AppendRequest {
                    ballot: leader(term, me),
                    previous: None,
                    entries: vec![blank(entry)],
                    committed: None,
                };
                let request = Request::Append(request);
                let ask = Ask { request, hold: false, floor: 0, until: soon() };
                if let Ok((Reply::Append(AppendReply::Success), _)) = client.ask(ask).await {
                    told.push((leader(term, me), Some(entry)));
                }
            }
            told
        });
    }
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_millis(dice.roll(15))).await;
        let time = Duration::from_millis(dice.roll(60));
        store.plan([match dice.roll(5) {
            0 => Fault::Refuse,
            1 => Fault::LoseRequest,
            2 => Fault::LoseAnswer,
            3 => Fault::DoLater(time),
            _ => Fault::Slow(time),
        }]);
    }
    let mut told = Vec::new();
    while let Some(more) = askers.join_next().await {
        told.extend(more.unwrap());
    }
    let history: Vec<Record> =
        store.history().iter().map(|bytes| Record::read(bytes).unwrap()).collect();
    assert!(history.windows(2).all(|pair| pair[0].counter + 1 == pair[1].counter), "seed {seed}");
    let rank = |record: &Record| record.ballot.map(|ballot| crate::witness::record::rank(&ballot));
    assert!(history.windows(2).all(|pair| rank(&pair[0]) <= rank(&pair[1])), "seed {seed}");
    for (ballot, entry) in told {
        let found = history.iter().any(|record| {
            record.ballot == Some(ballot) && entry.is_none_or(|entry| record.last() == Some(entry))
        });
        assert!(found, "seed {seed}: {ballot:?} {entry:?} was acknowledged and never stored");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_acknowledged_was_stored_whatever_the_store_does() {
    let seeds: u64 = std::env::var("MUSTER_WITNESS_SEEDS").map_or(2_000, |s| s.parse().unwrap());
    for seed in 1..=seeds {
        schedule(seed).await;
    }
}
