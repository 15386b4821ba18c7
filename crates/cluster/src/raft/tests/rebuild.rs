//! A node that has lost its log begins a new one under its own id, when the lost one counts no more.

use std::path::Path;

use super::LONG;
use super::Lab;
use super::SHORT;
use super::has;
use super::id;
use super::propose;
use super::wait;
use crate::raft::LeaderError;
use crate::raft::Store;
use crate::raft::StoreError;

/// Damages the record of an entry, wherever the file has it.
fn damage(path: &Path, entry: &str) {
    let mut bytes = std::fs::read(path).unwrap();
    let text = format!("\"{entry}\"").into_bytes();
    let at: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(&text)).collect();
    assert!(!at.is_empty(), "{entry} is not in {}", path.display());
    at.iter().for_each(|at| bytes[at + 1] ^= 1);
    std::fs::write(path, bytes).unwrap();
}

fn put_aside(path: &Path) {
    std::fs::remove_file(path).unwrap();
    std::fs::remove_file(path.with_extension("mark")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lost_its_log_comes_back_under_its_own_id_and_nothing_is_lost() {
    let mut lab = Lab::formed(3).await;
    for n in 1..=20 {
        propose(&lab.node(3), n).await.unwrap();
    }
    lab.converge().await;
    for count in 1..=2 {
        let (first, damaged) = (20 * count + 1, format!("t{}", 20 * count - 11));
        lab.stop(3).await;
        damage(&lab.path(3), &damaged);
        let error = lab.start(3).await.map(drop).unwrap_err();
        assert!(error.damage().is_some(), "{error}");
        // Those who are left take it out, and go on meanwhile.
        let leader = lab.node(lab.leader_among(&[1, 2]).await);
        leader.set_voters([1, 2].map(id).into(), LONG).await.unwrap();
        leader.remove(id(3), LONG).await.unwrap();
        wait(&leader, |metrics| !metrics.members_applied.members.nodes.contains(&id(3))).await;
        propose(&leader, first).await.unwrap();
        put_aside(&lab.path(3));
        Store::make_anew(&lab.path(3), id(3), count).unwrap();
        let (store, loaded) = Store::open(&lab.path(3), id(3)).unwrap();
        let back = lab.run(3, store, loaded.quiet()).await;
        assert_eq!(back.metrics().borrow().voters().len(), 0, "an empty log makes no cluster");
        leader.add_learner(id(3), LONG).await.unwrap();
        let taken_in = leader.metrics().borrow().log_next;
        wait(&back, |metrics| metrics.applied_next >= taken_in).await;
        back.may_lead();
        leader.set_voters([1, 2, 3].map(id).into(), LONG).await.unwrap();
        // Its own proposals are not taken for those of the log that was lost.
        for n in first + 1..first + 20 {
            propose(&back, n).await.unwrap();
        }
        lab.converge().await;
        assert!((1..first + 20).all(|n| has(&back.state(), n)));
    }
    // Its vote counts again, and the newest log wins with it.
    lab.stop(1).await;
    lab.leader_among(&[2, 3]).await;
    propose(&lab.node(3), 100).await.unwrap();
    lab.stop(2).await;
    assert!(lab.node(3).propose(super::token(101), SHORT).await.is_err(), "one of three decides");
    lab.start(1).await.unwrap();
    lab.leader_among(&[1, 3]).await;
    lab.start(2).await.unwrap();
    lab.converge().await;
    assert!((1..=59).chain([100]).all(|n| has(&lab.node(1).state(), n)));
}

/// The reason for taking a node out first: an entry that only it and the leader had is on the others
/// before its new log may help anybody to lead.
#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_lost_log_and_the_leader_had_is_on_the_others_before_the_new_log_begins() {
    let mut lab = Lab::formed(3).await;
    propose(&lab.node(1), 1).await.unwrap();
    lab.converge().await;
    let leader = lab.leader_among(&[1, 2, 3]).await;
    let [late, damaged] = match leader {
        1 => [2, 3],
        2 => [1, 3],
        _ => [1, 2],
    };
    lab.stop(late).await;
    for n in 2..=10 {
        propose(&lab.node(leader), n).await.unwrap();
    }
    lab.stop(damaged).await;
    damage(&lab.path(damaged), "t5");
    // Alone, the leader can take nobody out.
    let first = lab.node(leader);
    let voters = [leader, late].map(id);
    assert!(first.set_voters(voters.into(), SHORT).await.is_err());
    // The third one is back, without those entries; then it can, and has them by that.
    lab.start(late).await.unwrap();
    let first = lab.node(lab.leader_among(&[leader, late]).await);
    assert_eq!(first.node(), id(leader), "the one without them cannot lead");
    // The change that was begun before may be in the way for a moment.
    while let Err(error) = first.set_voters(voters.into(), LONG).await {
        assert!(matches!(error, LeaderError::Refused(_)), "{error}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    wait(&first, |metrics| metrics.members_applied.members.voters == [voters.into()]).await;
    let third = lab.node(late);
    wait(&third, |metrics| metrics.members.members.voters.last() == Some(&voters.into())).await;
    first.remove(id(damaged), LONG).await.unwrap();
    lab.stop(leader).await;
    let third = lab.start_again(late).await;
    assert!(third.store().last_entry().is_some_and(|at| at.index > 10), "it has the entries");
    lab.start(leader).await.unwrap();
    lab.leader_among(&[leader, late]).await;
    lab.converge().await;
    assert!((1..=10).all(|n| has(&lab.node(late).state(), n)));
}

/// The first node of a cluster was its only voter once, and its new log says so for a moment.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_log_that_is_behind_elects_nobody() {
    let mut lab = Lab::formed(3).await;
    for n in 1..=5 {
        propose(&lab.node(2), n).await.unwrap();
    }
    lab.converge().await;
    // Only what the first node wrote when it was alone.
    let first = lab.node(1).store().read_entries(0..2).unwrap();
    let copy = Lab::new();
    Store::make_anew(&copy.path(1), id(1), 1).unwrap();
    let (store, loaded) = Store::open(&copy.path(1), id(1)).unwrap();
    let mut alone = copy;
    let replica = alone.run(1, store, loaded.quiet()).await;
    let leader = crate::raft::format::Ballot { term: 1, node: id(2), committed: true };
    let request = crate::raft::wire::AppendRequest {
        ballot: leader,
        previous: None,
        entries: first.iter().map(crate::raft::LogEntry::of).collect(),
        committed: None,
    };
    let request = crate::raft::PeerRequest {
        method: crate::raft::PeerMethod::Append,
        version: crate::raft::wire::WIRE_VERSION,
        timeout: LONG,
        body: crate::raft::wire::write(&request),
    };
    crate::raft::PeerService::serve(&replica, id(2), request).await.unwrap();
    wait(&replica, |metrics| metrics.voters() == [id(1)].into()).await;
    tokio::time::sleep(SHORT).await;
    assert_eq!(replica.metrics().borrow().leader.filter(|leader| *leader == id(1)), None);
    assert_eq!(replica.store().last_entry().unwrap().index, 1, "it has written nothing");
    lab.stop(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_log_is_never_begun_over_an_old_one() {
    let mut lab = Lab::new();
    lab.start(1).await.unwrap();
    lab.stop(1).await;
    let path = lab.path(1);
    let refused =
        |path: &Path| matches!(Store::make_anew(path, id(1), 1), Err(StoreError::Damaged { .. }));
    assert!(refused(&path));
    std::fs::remove_file(&path).unwrap();
    assert!(refused(&path), "its mark is still there");
    std::fs::remove_file(path.with_extension("mark")).unwrap();
    Store::make_anew(&path, id(1), 3).unwrap();
    let (store, loaded) = Store::open(&path, id(1)).unwrap();
    assert!(loaded.pristine && loaded.identity.joining);
    assert_eq!(loaded.boot, (3 << 32) + 1);
    store.close().await;
}
