//! Forcing the quorum: those that are left go on with all that any of them had.

use std::collections::BTreeSet;

use model::Command;
use model::Proposal;
use model::UnixMillis;
use uuid::Uuid;

use super::LONG;
use super::Lab;
use super::SHORT;
use super::has;
use super::id;
use super::propose;
use super::wait;
use crate::raft::Forcing;
use crate::raft::Store;

/// What the administrator's word looks like.
fn word(lost: &[u128]) -> Proposal {
    let command = Command::QuorumForced {
        lost: lost.iter().copied().map(id).collect(),
        word: Uuid::from_u128(7),
        witness: id(100),
    };
    Proposal { at: UnixMillis::new(1), actor: model::Actor::new("test"), command }
}

/// What is decided on a node whose replica has ended.
async fn decide(lab: &Lab, on: u128, left: &[u128], lost: &[u128]) -> Forcing {
    let (store, _) = Store::open(&lab.path(on), id(on)).unwrap();
    let after = store.last_entry().unwrap();
    store.close().await;
    Forcing {
        after,
        term: after.term,
        voters: left.iter().copied().map(id).collect(),
        learners: BTreeSet::new(),
        proposal: word(lost),
    }
}

/// Stops a node and forces the quorum there; whether it was done.
async fn force(lab: &mut Lab, on: u128, forcing: Forcing) -> bool {
    let (store, loaded) = Store::open(&lab.path(on), id(on)).unwrap();
    let done = store.force(&loaded, forcing).await.unwrap();
    lab.run(on, store, loaded).await;
    done
}

#[tokio::test(flavor = "multi_thread")]
async fn those_that_are_left_go_on_with_the_newest_log_among_them() {
    let mut lab = Lab::formed(5).await;
    propose(&lab.node(1), 1).await.unwrap();
    lab.converge().await;
    // Node 5 misses what follows.
    lab.wire.isolate(id(5), lab.others(5));
    for n in 2..=6 {
        propose(&lab.node(1), n).await.unwrap();
    }
    wait(&lab.node(4), |metrics| metrics.applied_next == metrics.log_next).await;
    let leader = lab.leader_among(&[1, 2, 3, 4]).await;
    let lead = lab.node(leader);
    lead.barrier(LONG).await.unwrap();
    lab.node(4).barrier(LONG).await.unwrap();
    assert!(has(&lab.node(4).state(), 6));
    for n in [1, 2, 3] {
        lab.stop(n).await;
    }
    lab.wire.mend_all();
    let refused = lab.node(4).propose(super::token(7), SHORT).await;
    refused.unwrap_err();
    let [four, five] = [4, 5].map(|n| lab.node(n).store().last_entry().unwrap());
    assert!(four > five, "{four:?} {five:?}");
    lab.stop(4).await;
    let forcing = decide(&lab, 4, &[4, 5], &[1, 2, 3]).await;
    assert!(force(&mut lab, 4, forcing).await);
    propose(&lab.node(5), 8).await.unwrap();
    lab.converge().await;
    for n in [4, 5] {
        let replica = lab.node(n);
        assert_eq!(replica.metrics().borrow().voters(), [4, 5].map(id).into());
        assert!((1..=6).all(|token| has(&replica.state(), token)), "lost on node {n}");
    }
    // What is given up asks for votes and is told.
    let back = lab.start(1).await.unwrap();
    wait(&back, |metrics| metrics.removed.is_some()).await;
    propose(&lab.node(4), 9).await.unwrap();
    assert_eq!(lab.node(4).metrics().borrow().voters(), [4, 5].map(id).into());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_node_decides_alone_and_still_does_after_a_restart() {
    let mut lab = Lab::formed(3).await;
    propose(&lab.node(1), 1).await.unwrap();
    lab.converge().await;
    for n in [1, 2, 3] {
        lab.stop(n).await;
    }
    let forcing = decide(&lab, 2, &[2], &[1, 3]).await;
    assert!(force(&mut lab, 2, forcing.clone()).await);
    propose(&lab.node(2), 2).await.unwrap();
    lab.stop(2).await;
    // The same once more, as after a crash before the order was taken away: nothing happens.
    assert!(!force(&mut lab, 2, forcing).await);
    propose(&lab.node(2), 3).await.unwrap();
    let state = lab.node(2).state();
    assert!((1..=3).all(|n| has(&state, n)));
    lab.node(2).barrier(LONG).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_went_on_is_not_forced() {
    let mut lab = Lab::formed(3).await;
    for n in [1, 2, 3] {
        lab.stop(n).await;
    }
    let forcing = decide(&lab, 2, &[2], &[1, 3]).await;
    let others = Forcing { voters: [id(1)].into(), ..forcing.clone() };
    for n in [1, 2, 3] {
        lab.start(n).await.unwrap();
    }
    propose(&lab.node(1), 1).await.unwrap();
    lab.converge().await;
    lab.stop(2).await;
    assert!(!force(&mut lab, 2, forcing).await, "the others have come back meanwhile");
    propose(&lab.node(2), 2).await.unwrap();
    lab.converge().await;
    lab.stop(2).await;
    let others = Forcing { after: decide(&lab, 2, &[2], &[]).await.after, ..others };
    assert!(!force(&mut lab, 2, others).await, "a node does not force itself out");
}
