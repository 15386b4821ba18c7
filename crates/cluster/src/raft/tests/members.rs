//! Who belongs: joining, leaving, leading, and learning that one was removed.

use std::collections::BTreeSet;

use super::LONG;
use super::Lab;
use super::SHORT;
use super::has;
use super::id;
use super::propose;
use super::wait;
use crate::raft::LeaderError;
use crate::raft::Role;
use crate::raft::StoreError;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_as_learner_then_voter_then_leader() {
    let mut lab = Lab::new();
    let first = lab.start(1).await.unwrap();
    propose(&first, 1).await.unwrap();
    let second = lab.start_joining(2).await;
    assert_eq!(second.metrics().borrow().role, Role::Learner);
    assert!(second.barrier(SHORT).await.is_err(), "a node that waits decides nothing");
    first.add_learner(id(2), LONG).await.unwrap();
    wait(&second, |metrics| metrics.learners().contains(&id(2))).await;
    propose(&second, 2).await.unwrap();
    assert!(has(&second.state(), 1) && has(&second.state(), 2));
    // The leader learns what is committed first, and need not be the first that has carried it out.
    lab.converge().await;
    assert!(has(&first.state(), 2));
    let refused = second.set_voters(BTreeSet::from([id(1), id(2)]), SHORT).await;
    assert_eq!(refused, Err(LeaderError::NotLeader(Some(id(1)))));
    let refused = first.set_voters(BTreeSet::from([id(1), id(9)]), SHORT).await;
    assert!(matches!(refused, Err(LeaderError::Refused(_))), "{refused:?}");
    first.set_voters(BTreeSet::from([id(1), id(2)]), LONG).await.unwrap();
    first.transfer(id(2), LONG).await.unwrap();
    wait(&second, |metrics| metrics.leads()).await;
    propose(&first, 3).await.unwrap();
    // Down to one again, which then decides alone.
    second.set_voters(BTreeSet::from([id(2)]), LONG).await.unwrap();
    lab.stop(1).await;
    propose(&second, 4).await.unwrap();
    second.barrier(LONG).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_waits_for_a_join_still_does_after_a_restart() {
    let mut lab = Lab::new();
    lab.start_joining(2).await;
    lab.stop(2).await;
    let second = lab.start(2).await.unwrap();
    assert!(second.barrier(SHORT).await.is_err(), "it began a cluster of its own");
    let first = lab.start(1).await.unwrap();
    first.add_learner(id(2), LONG).await.unwrap();
    propose(&first, 1).await.unwrap();
    lab.converge().await;
    lab.stop(2).await;
    let (store, loaded) = crate::raft::Store::open(&lab.path(2), id(2)).unwrap();
    assert!(!loaded.identity.joining, "it is a member now");
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_learns_it_at_once_or_when_it_returns() {
    let mut lab = Lab::formed(4).await;
    let first = lab.node(lab.leader_among(&[1, 2, 3, 4]).await);
    let leader = first.metrics().borrow().leader.unwrap();
    let mut gone: Vec<u128> = (1..=4).filter(|n| id(*n) != leader).collect();
    let (here, away) = (gone.pop().unwrap(), gone.pop().unwrap());
    lab.stop(away).await;
    first.remove(id(here), LONG).await.unwrap();
    first.remove(id(away), LONG).await.unwrap();
    wait(&lab.node(here), |metrics| metrics.removed.is_some()).await;
    assert!(lab.node(here).barrier(SHORT).await.is_err());
    assert!(lab.node(here).propose(super::token(1), SHORT).await.is_err());
    let back = lab.start(away).await.unwrap();
    wait(&back, |metrics| metrics.removed.is_some()).await;
    assert!(back.barrier(SHORT).await.is_err());
    // Those who are left are not disturbed.
    propose(&first, 2).await.unwrap();
    assert_eq!(first.metrics().borrow().members.members.nodes.len(), 2);
    assert_eq!(first.metrics().borrow().removed, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_node_is_refused_and_comes_back_under_a_new_id() {
    let mut lab = Lab::formed(3).await;
    for n in 1..=20 {
        propose(&lab.node(1), n).await.unwrap();
    }
    lab.converge().await;
    lab.stop(3).await;
    let path = lab.path(3);
    let mut bytes = std::fs::read(&path).unwrap();
    // In a record of the log, wherever the file has it: its text is there as it was written, also
    // in pages that are not in use any more.
    let at: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(b"\"t9\"")).collect();
    assert!(!at.is_empty());
    at.iter().for_each(|at| bytes[at + 1] ^= 1);
    std::fs::write(&path, bytes).unwrap();
    let refused = lab.start(3).await;
    assert!(
        matches!(&refused, Err(StoreError::Damaged { .. } | StoreError::Database { .. })),
        "a damaged node runs"
    );
    let leader = lab.node(lab.leader_among(&[1, 2]).await);
    leader.remove(id(3), LONG).await.unwrap();
    let new = lab.start_joining(33).await;
    leader.add_learner(id(33), LONG).await.unwrap();
    leader.set_voters([1, 2, 33].map(id).into(), LONG).await.unwrap();
    propose(&new, 21).await.unwrap();
    lab.converge().await;
    assert!((1..=21).all(|n| has(&new.state(), n)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_of_another_node_is_refused() {
    let mut lab = Lab::new();
    lab.start(1).await.unwrap();
    lab.stop(1).await;
    let refused = crate::raft::Store::open(&lab.path(1), id(2));
    assert!(matches!(refused, Err(StoreError::OtherNode { .. })));
    // A store that is emptied for a join is the new node's, whole, and its own again after a crash.
    let (store, _) = crate::raft::Store::open(&lab.path(1), id(1)).unwrap();
    store.empty_for_join(id(2)).await.unwrap();
    store.close().await;
    let (store, loaded) = crate::raft::Store::open(&lab.path(1), id(2)).unwrap();
    assert!(loaded.pristine && loaded.identity.joining);
    assert!(store.last_events(10).unwrap().is_empty());
}
