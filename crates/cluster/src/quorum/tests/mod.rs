//! The rule for votes against a small world, against arbitrary views, and its words.

mod props;
mod say;

use std::collections::BTreeSet;

use model::NodeId;
use uuid::Uuid;

use super::Change;
use super::Presence;
use super::Seat;
use super::View;
use super::Witness;
use super::next_change;
use crate::raft::Members;

/// The witness.
const W: u128 = 900;

fn id(n: u128) -> NodeId {
    NodeId::new(Uuid::from_u128(n))
}

fn set(ids: &[u128]) -> BTreeSet<NodeId> {
    ids.iter().copied().map(id).collect()
}

const HERE: Seat = Seat { presence: Presence::Here, caught_up: true, leaving: false };

/// Nodes 1 to `nodes`, all here; 1 leads.
fn view(nodes: u128, voters: &[u128]) -> View {
    View {
        leader: id(1),
        seats: (1..=nodes).map(|n| (id(n), HERE)).collect(),
        members: Members {
            voters: vec![set(voters)],
            nodes: (1..=nodes).map(id).chain(voters.iter().copied().map(id)).collect(),
        },
        witness: None,
    }
}

fn with_witness(mut view: View) -> View {
    view.witness = Some(Witness { id: id(W), healthy: true });
    view
}

impl View {
    fn seat(&mut self, n: u128) -> &mut Seat {
        self.seats.get_mut(&id(n)).unwrap()
    }

    fn lose(mut self, n: u128) -> Self {
        self.seat(n).presence = Presence::Lost;
        self
    }
}

/// The witness comes in with the second node and goes with the third.
#[test]
fn the_witness_votes_while_the_number_of_nodes_is_even() {
    let mut view = with_witness(view(2, &[1]));
    assert_eq!(next_change(&view), Some(Change::AddLearner(id(W))));
    view.members.nodes.insert(id(W));
    assert_eq!(next_change(&view), Some(Change::SetVoters(set(&[1, 2, W]))));
    view.members.voters = vec![set(&[1, 2, W])];
    assert_eq!(next_change(&view), None);
    view.seats.insert(id(3), Seat { caught_up: false, ..HERE });
    assert_eq!(next_change(&view), Some(Change::AddLearner(id(3))));
    view.members.nodes.insert(id(3));
    assert_eq!(next_change(&view), None, "it has to catch up first");
    view.seat(3).caught_up = true;
    assert_eq!(next_change(&view), Some(Change::SetVoters(set(&[1, 2, 3]))));
}

#[test]
fn only_a_confirmed_loss_costs_the_vote() {
    let mut view = view(3, &[1, 2, 3]);
    view.seat(2).presence = Presence::Silent;
    assert_eq!(next_change(&view), None);
    let mut view = view.lose(2);
    assert_eq!(next_change(&view), Some(Change::SetVoters(set(&[1, 3]))));
    view.members.voters = vec![set(&[1, 3])];
    view.seat(2).presence = Presence::Here;
    view.seat(2).caught_up = false;
    assert_eq!(next_change(&view), None);
    view.seat(2).caught_up = true;
    assert_eq!(next_change(&view), Some(Change::SetVoters(set(&[1, 2, 3]))));
}

#[test]
fn nothing_is_begun_that_cannot_be_committed() {
    let two = view(2, &[1, 2]).lose(2);
    assert_eq!(next_change(&two), None, "one of two decides nothing");
    let mut pair = with_witness(view(2, &[1, 2, W])).lose(2);
    assert_eq!(next_change(&pair), Some(Change::SetVoters(set(&[1]))));
    pair.witness = Some(Witness { id: id(W), healthy: false });
    assert_eq!(next_change(&pair), None, "nor one of two without its witness");
}

/// A witness that cannot be reached gets no vote, and keeps the one it has.
#[test]
fn a_witness_that_cannot_be_reached() {
    let mut pair = with_witness(view(2, &[1, 2, W]));
    pair.witness = Some(Witness { id: id(W), healthy: false });
    assert_eq!(next_change(&pair), None);
    pair.members = Members { voters: vec![set(&[1, 2])], nodes: set(&[1, 2]) };
    assert_eq!(next_change(&pair), None);
}

#[test]
fn a_witness_set_anew_takes_the_place_of_the_old_one() {
    const OLD: u128 = 901;
    let mut view = with_witness(view(2, &[1, 2, OLD]));
    let mut steps = Vec::new();
    while let Some(change) = next_change(&view) {
        apply(&mut view, &change);
        steps.push(change);
        assert!(steps.len() < 9);
    }
    assert_eq!(
        steps,
        [Change::AddLearner(id(W)), Change::SetVoters(set(&[1, 2, W])), Change::Remove(id(OLD))]
    );
    view.witness = None;
    assert_eq!(next_change(&view), Some(Change::SetVoters(set(&[1, 2]))));
}

#[test]
fn a_change_left_half_done_is_finished() {
    let mut view = view(3, &[1, 2, 3]);
    view.members.voters = vec![set(&[1, 2]), set(&[1, 2, 3])];
    assert_eq!(next_change(&view), Some(Change::SetVoters(set(&[1, 2, 3]))));
    let view = view.lose(3);
    assert_eq!(next_change(&view), Some(Change::SetVoters(set(&[1, 2]))));
}

#[test]
fn a_leader_that_leaves_gives_the_leadership_away() {
    let mut view = view(3, &[1, 2, 3]);
    view.seat(1).leaving = true;
    view.seat(2).presence = Presence::Silent;
    assert_eq!(next_change(&view), Some(Change::Transfer(id(3))));
    view.leader = id(3);
    view.seat(2).presence = Presence::Here;
    assert_eq!(next_change(&view), Some(Change::SetVoters(set(&[2, 3]))));
    view.members.voters = vec![set(&[2, 3])];
    assert_eq!(next_change(&view), None, "it is a member until its record goes");
    view.seats.remove(&id(1));
    assert_eq!(next_change(&view), Some(Change::Remove(id(1))));
}

#[test]
fn a_leader_that_was_evicted_gives_the_leadership_away_too() {
    let mut view = view(3, &[1, 2, 3]);
    view.seats.remove(&id(1));
    assert_eq!(next_change(&view), Some(Change::Transfer(id(2))));
}

#[test]
fn seven_vote_and_one_that_is_lost_is_replaced_in_one_step() {
    let nine = view(9, &[1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(next_change(&nine), None);
    let nine = nine.lose(4);
    assert_eq!(next_change(&nine), Some(Change::SetVoters(set(&[1, 2, 3, 5, 6, 7, 8]))));
}

/// What the log does with a change.
fn apply(view: &mut View, change: &Change) {
    match change {
        Change::Transfer(to) => view.leader = *to,
        Change::AddLearner(node) => {
            view.members.nodes.insert(*node);
        }
        Change::SetVoters(voters) => view.members.voters = vec![voters.clone()],
        Change::Remove(node) => {
            assert!(!view.members.all_voters().contains(node));
            view.members.nodes.remove(node);
        }
    }
}
