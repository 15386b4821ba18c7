//! Two nodes and a witness: any one of the three may be lost, and what was decided stays.

use std::collections::BTreeSet;
use std::time::Duration;

use super::W;
use super::candidate;
use super::id;
use super::lab::LEASE;
use super::lab::LONG;
use super::lab::Lab;
use super::lab::SHORT;
use super::lab::has;
use super::lab::propose;
use super::lab::wait;
use crate::raft::PeerMethod;
use crate::raft::PeerRequest;
use crate::raft::Replica;
use crate::raft::wire;
use crate::witness::AskError;
use crate::witness::Record;
use crate::witness::WitnessStore;
use crate::witness::Wrong;

async fn stopped(replica: &Replica, n: u64) {
    assert!(propose(replica, n, SHORT).await.is_err(), "it decides without a majority");
    assert!(replica.barrier(SHORT).await.is_err());
}

/// While both answer, the witness is hardly used; once the other is voted out, not at all.
#[tokio::test(flavor = "multi_thread")]
async fn the_witness_is_used_when_it_is_needed() {
    let mut lab = Lab::pair().await;
    lab.settled().await;
    let leader = lab.leader().await;
    let before = lab.store.used().1;
    for n in 1..=60 {
        propose(&lab.node(leader), n, LONG).await.unwrap();
    }
    assert!(lab.store.used().1 - before <= 3, "each decision is written to the witness");
    let other = 3 - leader;
    lab.stop(other).await;
    propose(&lab.node(leader), 61, LONG).await.unwrap();
    assert!(lab.client(leader).check().await.unwrap().held);
    let node = lab.node(leader);
    node.set_voters(BTreeSet::from([id(leader)]), LONG).await.unwrap();
    let (mut reads, mut writes) = lab.store.used();
    for n in 62..=80 {
        propose(&node, n, LONG).await.unwrap();
        if n == 65 {
            // What was under way when it lost its vote has ended.
            (reads, writes) = lab.store.used();
        }
    }
    assert_eq!(lab.store.used(), (reads, writes), "it is out of the path");
    // The other one comes back, and so does the witness.
    let back = lab.start(other, false).await;
    let voters = BTreeSet::from([id(1), id(2), id(W)]);
    node.set_voters(voters, LONG).await.unwrap();
    propose(&back, 81, LONG).await.unwrap();
    lab.converge().await;
    assert!((1..=81).all(|n| has(&back.state(), n)));
}

#[tokio::test(flavor = "multi_thread")]
async fn either_node_may_be_lost() {
    let mut lab = Lab::pair().await;
    propose(&lab.node(1), 1, LONG).await.unwrap();
    for (n, victim) in [(10, 1), (20, 2), (30, 1)] {
        lab.settled().await;
        lab.stop(victim).await;
        let left = lab.node(3 - victim);
        propose(&left, n, LONG).await.unwrap();
        left.barrier(LONG).await.unwrap();
        let back = lab.start(victim, false).await;
        propose(&back, n + 1, LONG).await.unwrap();
        lab.converge().await;
    }
    assert!([1, 10, 11, 20, 21, 30, 31].iter().all(|n| has(&lab.node(1).state(), *n)));
}

/// The link is cut, and both reach the witness: one leads, and goes on leading.
#[tokio::test(flavor = "multi_thread")]
async fn two_that_reach_the_witness_only_do_not_unseat_each_other() {
    let lab = Lab::pair().await;
    lab.settled().await;
    lab.wire.cut(id(1), id(2));
    let leader = lab.leader().await;
    propose(&lab.node(leader), 1, LONG).await.unwrap();
    let leader = lab.leader().await;
    let term = lab.node(leader).metrics().borrow().term;
    let end = tokio::time::Instant::now() + LEASE * 4;
    let mut n = 2;
    while tokio::time::Instant::now() < end {
        propose(&lab.node(leader), n, LONG).await.unwrap();
        n += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(lab.node(leader).metrics().borrow().term, term, "it was unseated");
    stopped(&lab.node(3 - leader), 900).await;
    lab.wire.mend_all();
    propose(&lab.node(3 - leader), 901, LONG).await.unwrap();
    lab.converge().await;
    assert!((1..n).all(|n| has(&lab.node(3 - leader).state(), n)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_witness_may_be_lost_and_both_at_once_not() {
    let mut lab = Lab::pair().await;
    lab.store.down(true);
    propose(&lab.node(1), 1, LONG).await.unwrap();
    propose(&lab.node(2), 2, LONG).await.unwrap();
    let leader = lab.leader().await;
    lab.stop(3 - leader).await;
    stopped(&lab.node(leader), 3).await;
    lab.store.down(false);
    propose(&lab.node(leader), 4, LONG).await.unwrap();
    lab.start(3 - leader, false).await;
    lab.converge().await;
}

/// The leader reaches neither the other node nor the witness: the other node goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_from_all_is_replaced() {
    let lab = Lab::pair().await;
    lab.settled().await;
    let leader = lab.leader().await;
    lab.wire.cut(id(1), id(2));
    lab.ways[&leader].cut(true);
    propose(&lab.node(3 - leader), 1, LONG).await.unwrap();
    stopped(&lab.node(leader), 2).await;
    lab.wire.mend_all();
    lab.ways[&leader].cut(false);
    propose(&lab.node(leader), 3, LONG).await.unwrap();
    lab.converge().await;
}

/// A and the witness decide, A is gone, B never saw it: B comes up alone, with it.
async fn comes_up_with_it(mut lab: Lab) {
    lab.settled().await;
    let leader = lab.leader().await;
    let other = 3 - leader;
    lab.stop(other).await;
    for n in 1..=20 {
        propose(&lab.node(leader), n, LONG).await.unwrap();
    }
    lab.stop(leader).await;
    let back = lab.start(other, false).await;
    back.barrier(LONG).await.unwrap();
    assert!((1..=20).all(|n| has(&back.state(), n)), "what was acknowledged is lost");
    propose(&back, 21, LONG).await.unwrap();
    lab.start(leader, false).await;
    lab.converge().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_node_and_the_witness_decided_comes_back_with_the_other() {
    comes_up_with_it(Lab::pair().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_serves_as_well() {
    let dir = tempfile::tempdir().unwrap();
    comes_up_with_it(Lab::of(2, Some(dir.path().to_owned())).await).await;
}

/// The same, and B has seen a newer vote than the one by which the entries were written: the
/// witness has to stand for election itself.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_when_a_newer_vote_was_seen() {
    let mut lab = Lab::pair().await;
    lab.settled().await;
    let leader = lab.leader().await;
    let other = 3 - leader;
    lab.stop(other).await;
    propose(&lab.node(leader), 1, LONG).await.unwrap();
    let position = lab.client(leader).check().await.unwrap().last();
    lab.stop(leader).await;
    // It cannot win on its own: the witness is away until the vote was seen.
    lab.ways[&other].cut(true);
    let back = lab.start(other, false).await;
    let term = back.metrics().borrow().term + 5;
    let vote = wire::VoteRequest {
        ballot: candidate(term, leader),
        last: position,
        transfer: true,
        pre_vote: false,
    };
    let request = PeerRequest {
        method: PeerMethod::Vote,
        version: wire::WIRE_VERSION,
        timeout: LONG,
        body: wire::write(&vote),
    };
    lab.nodes[&other].service.serve(id(leader), request).await.unwrap();
    wait(&back, |metrics| metrics.term >= term).await;
    lab.ways[&other].cut(false);
    back.barrier(LONG).await.unwrap();
    assert!(has(&back.state(), 1), "what was acknowledged is lost");
    propose(&back, 2, LONG).await.unwrap();
    lab.start(leader, false).await;
    lab.converge().await;
}

/// A record that was tampered with is no vote: with both nodes all goes on, with one it stops.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_not_what_it_was_gives_no_vote() {
    let mut lab = Lab::pair().await;
    lab.settled().await;
    let leader = lab.leader().await;
    let now = lab.client(leader).check().await.unwrap();
    let old = Record { counter: now.counter - 1, ..now };
    lab.store.put(old.write().unwrap());
    propose(&lab.node(leader), 1, LONG).await.unwrap();
    let refused = lab.client(leader).check().await;
    assert!(matches!(refused, Err(AskError::Wrong(Wrong::RolledBack { .. }))), "{refused:?}");
    lab.stop(3 - leader).await;
    stopped(&lab.node(leader), 2).await;
    lab.store.remove().await.unwrap();
    stopped(&lab.node(leader), 3).await;
    lab.start(3 - leader, false).await;
    propose(&lab.node(leader), 4, LONG).await.unwrap();
    lab.converge().await;
}

/// Four nodes and the witness: two may be lost at once; and two that never saw what the others and
/// the witness decided come up with it.
#[tokio::test(flavor = "multi_thread")]
async fn four_nodes_and_a_witness_lose_any_two() {
    let mut lab = Lab::of(4, None).await;
    lab.settled().await;
    let leader = lab.leader().await;
    let others: Vec<u128> = (1..=4).filter(|n| *n != leader).collect();
    let (away, with) = (&others[..2], others[2]);
    for n in away {
        lab.stop(*n).await;
    }
    for n in 1..=10 {
        propose(&lab.node(with), n, LONG).await.unwrap();
    }
    for n in [leader, with] {
        lab.stop(n).await;
    }
    for n in away {
        lab.start(*n, false).await;
    }
    let back = lab.node(away[0]);
    back.barrier(LONG).await.unwrap();
    assert!((1..=10).all(|n| has(&back.state(), n)), "what was acknowledged is lost");
    propose(&back, 11, LONG).await.unwrap();
    for n in [leader, with] {
        lab.start(n, false).await;
    }
    lab.converge().await;
}
