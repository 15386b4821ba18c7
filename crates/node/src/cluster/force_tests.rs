//! When the quorum may be forced, and when not.

use uuid::Uuid;

use super::*;

fn id(n: u128) -> NodeId {
    NodeId::new(Uuid::from_u128(n))
}

fn at(term: u64, index: u64) -> Position {
    Position { term, leader: id(1), index }
}

/// Node 1 of five, of which the last only gets the log.
fn own() -> Own {
    let voters = vec![(1..=4).map(id).collect()];
    let members = Members { voters, nodes: (1..=5).map(id).collect() };
    Own { node: id(1), name: "h1".parse().unwrap(), term: 4, last: at(4, 90), members }
}

fn dead(n: u128) -> (NodeId, Found) {
    let name = format!("h{n}").parse().unwrap();
    let verdict = Verdict::Dead { since: Duration::ZERO };
    (id(n), Found { name, lost: true, answer: None, verdict })
}

fn here(n: u128, term: u64, last: Position) -> (NodeId, Found) {
    let answer = Some(Answer { leader: None, term, last: Some(last) });
    let (id, found) = dead(n);
    (id, Found { lost: false, answer, verdict: Verdict::Alive, ..found })
}

fn refused(others: [(NodeId, Found); 4]) -> String {
    check(&own(), &others.into()).unwrap_err().code
}

#[test]
fn those_that_are_left_vote_as_they_did() {
    let others = [dead(2), dead(3), here(4, 7, at(4, 90)), here(5, 4, at(3, 95))];
    let left = check(&own(), &others.into()).unwrap();
    assert_eq!(left.term, 7, "above every term that one of them knows");
    assert_eq!(left.voters, [1, 4].map(id).into());
    assert_eq!(left.learners, [5].map(id).into());
    // A node that voted for nobody before is voter where it is the last.
    let mut own = own();
    own.node = id(5);
    let others = [dead(1), dead(2), dead(3), dead(4)];
    assert_eq!(check(&own, &others.into()).unwrap().voters, [5].map(id).into());
}

#[test]
fn a_host_that_has_not_been_brought_in_is_no_member_by_it() {
    let mut own = own();
    own.members.nodes.remove(&id(5));
    let others = [dead(2), dead(3), dead(4), here(5, 1, at(1, 1))];
    let left = check(&own, &others.into()).unwrap();
    assert!(left.learners.is_empty());
    assert_eq!(left.voters, [1].map(id).into());
}

#[test]
fn what_is_named_must_be_silent_everywhere() {
    let since = Duration::ZERO;
    let with = |verdict, answer| {
        let (two, found) = dead(2);
        refused([(two, Found { verdict, answer, ..found }), dead(3), dead(4), dead(5)])
    };
    let answer = Some(Answer { leader: None, term: 1, last: None });
    assert_eq!(with(Verdict::Dead { since }, answer), "not_lost");
    assert_eq!(with(Verdict::Alive, None), "not_lost");
    assert_eq!(with(Verdict::Isolated { since, over: true }, None), "not_lost");
    assert_eq!(with(Verdict::Silent { since }, None), "not_sure");
}

#[test]
fn who_is_not_named_must_answer_and_know_of_no_leader_and_of_nothing_newer() {
    let rest = || [dead(3), dead(4), dead(5)];
    let with = |two: (NodeId, Found)| {
        let [three, four, five] = rest();
        refused([two, three, four, five])
    };
    let (two, found) = here(2, 4, at(4, 90));
    assert_eq!(with((two, Found { answer: None, ..found.clone() })), "not_named");
    let leads = Some(Answer { leader: Some(id(3)), term: 4, last: Some(at(4, 90)) });
    assert_eq!(with((two, Found { answer: leads, ..found })), "quorum_there");
    assert_eq!(with(here(2, 4, at(4, 91))), "newer_elsewhere");
    let silent = Some(Answer { leader: None, term: 4, last: None });
    let (two, found) = here(2, 4, at(4, 90));
    assert_eq!(with((two, Found { answer: silent, ..found })), "log_unknown");
    // A later term counts for more than a longer log.
    assert_eq!(with(here(2, 5, at(5, 70))), "newer_elsewhere");
    let none =
        [here(2, 4, at(4, 1)), here(3, 4, at(4, 1)), here(4, 4, at(4, 1)), here(5, 4, at(4, 1))];
    assert_eq!(refused(none), "nothing_lost");
}
