//! One to five replicas: what is acknowledged stays, and nobody decides without a majority.

use std::sync::Arc;

use super::LONG;
use super::Lab;
use super::SHORT;
use super::has;
use super::id;
use super::propose;
use super::sign_of_life;
use super::token;
use super::wait;
use crate::raft::LeaderError;
use crate::raft::ProposeError;
use crate::raft::Replica;
use crate::raft::store::lock;

/// Proposes many at once, each of which must be done.
async fn propose_all(replica: &Replica, numbers: std::ops::Range<u64>) {
    let mut tasks = tokio::task::JoinSet::new();
    for n in numbers {
        if tasks.len() >= 256 {
            tasks.join_next().await.unwrap().unwrap();
        }
        let replica = replica.clone();
        tasks.spawn(async move {
            replica.propose(sign_of_life(n), LONG).await.unwrap();
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_leads_at_once_and_keeps_what_it_acknowledged() {
    let mut lab = Lab::new();
    let node = lab.start(1).await.unwrap();
    assert!(node.metrics().borrow().leads());
    propose(&node, 7).await.unwrap();
    assert!(has(&node.state(), 7), "not visible on return");
    propose_all(&node, 1..301).await;
    assert!(matches!(propose(&node, 7).await, Err(ProposeError::Refused(_))));
    node.barrier(LONG).await.unwrap();
    let (state, events) = (node.state(), node.store().last_events(1_000).unwrap());
    lab.stop(1).await;
    let node = lab.start(1).await.unwrap();
    assert!(node.metrics().borrow().leads());
    assert_eq!(node.state(), state);
    assert_eq!(node.store().last_events(1_000).unwrap(), events);
    propose(&node, 301).await.unwrap();
    let all = node.store().events_after(0, 1_000).unwrap();
    assert!(all.iter().zip(1..).all(|(event, seq)| event.seq == seq), "the numbers have no gap");
    assert_eq!(all.len(), events.len() + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn proposals_that_wait_share_an_fsync() {
    let mut lab = Lab::new();
    let node = lab.start(1).await.unwrap();
    let commits = || {
        let mark = crate::raft::mark::read(&lab.path(1).with_extension("mark")).unwrap();
        let crate::raft::mark::Found::Mark(mark) = mark else { panic!("{mark:?}") };
        mark.commits
    };
    let before = commits();
    propose_all(&node, 1..1_001).await;
    let used = commits() - before;
    assert!(used < 500, "{used} commits for 1000 proposals");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_takes_the_place_of_the_log() {
    let mut lab = Lab::new();
    let node = lab.start(1).await.unwrap();
    propose_all(&node, 1..3_601).await;
    wait(&node, |metrics| metrics.snapshot.is_some()).await;
    let events = node.store().last_events(1_000).unwrap();
    let state = node.state();
    lab.stop(1).await;
    let node = lab.start(1).await.unwrap();
    assert_eq!(node.state(), state);
    assert_eq!(node.store().last_events(1_000).unwrap(), events);
    assert!(lock(&node.store().files.cache).purged.is_some(), "nothing was purged");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_node_takes_proposals_and_another_leads_when_the_leader_goes() {
    let mut lab = Lab::formed(3).await;
    for n in 1..=3 {
        propose(&lab.node(n), n as u64).await.unwrap();
        assert!(has(&lab.node(n).state(), n as u64), "not visible where it was proposed");
    }
    lab.converge().await;
    lab.stop(1).await;
    propose(&lab.node(2), 4).await.unwrap();
    propose(&lab.node(3), 5).await.unwrap();
    lab.node(2).barrier(LONG).await.unwrap();
    assert!(has(&lab.node(2).state(), 5), "a read after a barrier is linearizable");
    lab.start(1).await.unwrap();
    propose(&lab.node(1), 6).await.unwrap();
    lab.converge().await;
    let events: Vec<_> = (1..=3).map(|n| lab.node(n).store().last_events(100).unwrap()).collect();
    assert!(!events[0].is_empty());
    assert_eq!(events[0], events[1], "events have the same numbers on each node");
    assert_eq!(events[0], events[2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_refuses() {
    let lab = Lab::formed(3).await;
    let old = lab.leader_among(&[1, 2, 3]).await;
    lab.wire.isolate(id(old), lab.others(old));
    wait(&lab.node(old), |metrics| metrics.leader.is_none()).await;
    assert!(lab.node(old).metrics().borrow().without_leader_since.is_some());
    let refused = lab.node(old).propose(token(1), SHORT).await;
    assert!(matches!(refused, Err(ProposeError::Unavailable(_))), "{refused:?}");
    let barrier = lab.node(old).barrier(SHORT).await;
    assert!(matches!(barrier, Err(LeaderError::Unavailable(_))), "{barrier:?}");
    let rest: Vec<u128> = (1..=3).filter(|n| *n != old).collect();
    let new = lab.leader_among(&rest).await;
    propose(&lab.node(new), 2).await.unwrap();
    assert!(!has(&lab.node(old).state(), 2));
    lab.wire.mend_all();
    lab.node(old).barrier(LONG).await.unwrap();
    assert!(has(&lab.node(old).state(), 2));
    lab.converge().await;
    assert!(!has(&lab.node(old).state(), 1), "what was refused is never done");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minority_refuses() {
    let mut lab = Lab::formed(3).await;
    lab.stop(2).await;
    lab.stop(3).await;
    let node = lab.node(1);
    wait(&node, |metrics| metrics.leader.is_none()).await;
    assert!(node.barrier(SHORT).await.is_err());
    assert!(matches!(node.propose(token(1), SHORT).await, Err(ProposeError::Unavailable(_))));
    lab.start(3).await.unwrap();
    propose(&node, 2).await.unwrap();
    node.barrier(LONG).await.unwrap();
    assert!(has(&node.state(), 2) && !has(&node.state(), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_catches_up_by_log_or_by_snapshot() {
    let mut lab = Lab::formed(3).await;
    lab.stop(3).await;
    propose_all(&lab.node(1), 1..50).await;
    let node = lab.start(3).await.unwrap();
    lab.converge().await;
    assert_eq!(node.metrics().borrow().snapshot, None, "so little comes by the log");
    lab.stop(3).await;
    propose_all(&lab.node(1), 50..3_700).await;
    let leader = lab.leader_among(&[1, 2]).await;
    wait(&lab.node(leader), |metrics| metrics.snapshot.is_some()).await;
    let node = lab.start(3).await.unwrap();
    wait(&node, |metrics| metrics.snapshot.is_some()).await;
    propose(&node, 1).await.unwrap();
    lab.converge().await;
    let last = |n| lab.node(n).store().last_events(500).unwrap();
    assert_eq!(last(3), last(leader), "a snapshot brings the last events along");
    lab.stop(3).await;
    lab.start(3).await.unwrap();
    lab.converge().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_node_in_turn_restarts_under_load() {
    let mut lab = Lab::formed(3).await;
    let mut n = 0;
    for victim in [1, 2, 3] {
        lab.stop(victim).await;
        let other = victim % 3 + 1;
        for _ in 0..10 {
            n += 1;
            propose(&lab.node(other), n).await.unwrap();
        }
        lab.start(victim).await.unwrap();
        n += 1;
        propose(&lab.node(victim), n).await.unwrap();
    }
    lab.converge().await;
    assert!((1..=n).all(|n| has(&lab.node(1).state(), n)));
}

/// The leader takes the proposal, and its answer is lost: the same ticket is sent again and again,
/// and the change is made once.
#[tokio::test(flavor = "multi_thread")]
async fn a_proposal_whose_answer_is_lost_is_done_once() {
    let lab = Lab::formed(3).await;
    let leader = lab.leader_among(&[1, 2, 3]).await;
    let other = leader % 3 + 1;
    lab.wire.cut_one_way(id(leader), id(other));
    let proposer = lab.node(other);
    let task = tokio::spawn(async move { propose(&proposer, 1).await });
    wait(&lab.node(leader), |metrics| metrics.applied_next > 0).await;
    let watcher = lab.node(leader);
    let mut state = watcher.inner.outlet.state.subscribe();
    let seen = tokio::time::timeout(LONG, state.wait_for(|state| has(state, 1))).await;
    seen.unwrap().unwrap();
    lab.wire.mend_all();
    task.await.unwrap().expect("made once, and not refused as made already");
    lab.converge().await;
    let events = lab.node(other).store().last_events(100).unwrap();
    let made = events.iter().filter(|event| event.event.text.contains("t1")).count();
    assert!(made <= 1, "{events:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_decided_in_time_is_unknown() {
    let lab = Lab::formed(3).await;
    let leader = lab.leader_among(&[1, 2, 3]).await;
    // The leader still believes in its majority when it takes the proposal.
    lab.wire.isolate(id(leader), lab.others(leader));
    let node = lab.node(leader);
    let result = node.propose(token(1), SHORT).await;
    assert!(matches!(result, Err(ProposeError::Unknown | ProposeError::Unavailable(_))));
    lab.wire.mend_all();
    // The same ids again: done, or refused because it was done; both are harmless.
    match node.propose(token(1), LONG).await {
        Ok(_) | Err(ProposeError::Refused(_)) => {}
        other => panic!("{other:?}"),
    }
    lab.converge().await;
    assert!(has(&Arc::clone(&node.state()), 1));
}
