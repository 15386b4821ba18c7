//! Random worlds.

use std::collections::BTreeSet;

use model::NodeId;
use proptest::prelude::Strategy;
use proptest::prelude::any;
use proptest::prelude::prop;
use proptest::prop_assert;
use proptest::prop_assert_eq;
use proptest::proptest;

use super::W;
use super::apply;
use super::id;
use super::view;
use super::with_witness;
use crate::quorum::Change;
use crate::quorum::NODE_VOTERS_MAX;
use crate::quorum::Presence;
use crate::quorum::Seat;
use crate::quorum::View;
use crate::quorum::Witness;
use crate::quorum::next_change;
use crate::raft::Members;

/// Counted here once more, apart from the code under test.
fn majority_here(view: &View, set: &BTreeSet<NodeId>) -> bool {
    let here = set.iter().filter(|id| match view.witness {
        Some(witness) if witness.id == **id => witness.healthy,
        _ => {
            **id == view.leader || view.seats.get(id).is_some_and(|s| s.presence == Presence::Here)
        }
    });
    here.count() > set.len() / 2
}

/// Whether the log can take this change now.
fn check(view: &View, change: &Change) {
    for set in &view.members.voters {
        assert!(majority_here(view, set), "{change:?} cannot be committed by {view:?}");
    }
    match change {
        Change::SetVoters(voters) => {
            assert!(majority_here(view, voters), "{change:?} stops {view:?}");
            assert!(voters.is_subset(&view.members.nodes), "{change:?} of {view:?}");
            // A leader that goes only finishes what was begun.
            if view.seats.get(&view.leader).is_some_and(|seat| !seat.leaving) {
                let nodes = voters.iter().filter(|id| view.seats.contains_key(id)).count();
                assert!(nodes <= NODE_VOTERS_MAX);
                assert!(nodes == voters.len() || nodes % 2 == 0, "a witness that makes a tie");
                assert!(voters.contains(&view.leader), "the leader votes itself out");
            } else {
                assert_eq!(Some(voters), view.members.voters.get(1));
            }
        }
        Change::AddLearner(node) => assert!(!view.members.nodes.contains(node)),
        Change::Remove(node) => {
            assert!(!view.members.all_voters().contains(node));
            assert!(!view.seats.contains_key(node));
        }
        Change::Transfer(to) => assert!(majority_here(view, &[*to].into())),
    }
}

/// Takes all steps there are; learners catch up in between.
fn settle(view: &mut View) {
    for _ in 0..100 {
        let Some(change) = next_change(view) else { return };
        check(view, &change);
        apply(view, &change);
        let nodes = view.members.nodes.clone();
        for (id, seat) in &mut view.seats {
            seat.caught_up |= nodes.contains(id) && seat.presence == Presence::Here;
        }
    }
    panic!("it does not come to rest: {view:?}");
}

/// Loses a node: silent first, which changes nothing, then for sure. Another node leads if need be.
fn lose(view: &mut View, lost: NodeId) {
    view.seats.get_mut(&lost).unwrap().presence = Presence::Silent;
    if view.leader == lost {
        let voters = view.members.all_voters();
        let here = |id: &NodeId| view.seats.get(id).is_some_and(|s| s.presence == Presence::Here);
        view.leader = voters.into_iter().find(here).expect("a node that votes is here");
    }
    for set in view.members.voters.clone() {
        assert!(majority_here(view, &set), "one loss too many: {view:?}");
    }
    let before = view.members.all_voters();
    settle(view);
    assert!(view.members.all_voters().contains(&lost) || !before.contains(&lost));
    view.seats.get_mut(&lost).unwrap().presence = Presence::Lost;
    view.seats.get_mut(&lost).unwrap().caught_up = false;
    settle(view);
}

fn come_back(view: &mut View, node: NodeId) {
    let listens = view.members.nodes.contains(&node);
    let seat = view.seats.get_mut(&node).unwrap();
    (seat.presence, seat.caught_up) = (Presence::Here, listens);
    settle(view);
}

fn here(view: &View) -> Vec<NodeId> {
    let here = view.seats.iter().filter(|(_, seat)| seat.presence == Presence::Here);
    here.map(|(id, _)| *id).collect()
}

fn seat() -> impl Strategy<Value = Seat> {
    (0..4_u8, any::<bool>(), prop::bool::weighted(0.1)).prop_map(
        |(presence, caught_up, leaving)| {
            let presence = match presence {
                0 => Presence::Silent,
                1 => Presence::Lost,
                _ => Presence::Here,
            };
            Seat { presence, caught_up, leaving }
        },
    )
}

/// Any view at all, also ones that no history leads to.
fn any_view() -> impl Strategy<Value = View> {
    let ids = || prop::collection::btree_set((1..12_u128).prop_map(id), 1..8);
    let witness = prop::option::of(any::<bool>());
    let voters = prop::collection::vec((ids(), any::<bool>()), 1..3);
    (prop::collection::btree_map((1..12_u128).prop_map(id), seat(), 1..12), voters, ids(), witness)
        .prop_map(|(seats, voters, learners, healthy)| {
            let voters: Vec<BTreeSet<NodeId>> = voters
                .into_iter()
                .map(|(mut set, witness)| {
                    set.extend((witness && healthy.is_some()).then(|| id(W)));
                    set
                })
                .collect();
            let leader = *voters.iter().flatten().find(|voter| **voter != id(W)).expect("a node");
            let nodes = voters.iter().flatten().copied().chain(learners).collect();
            View {
                leader,
                seats,
                members: Members { voters, nodes },
                witness: healthy.map(|healthy| Witness { id: id(W), healthy }),
            }
        })
}

proptest! {
    #[test]
    fn any_change_can_be_committed_by_the_old_and_the_new_voters(view in any_view()) {
        if let Some(change) = next_change(&view) {
            check(&view, &change);
        }
    }

    /// Single losses, with time between them, in any order and with returns in between.
    #[test]
    fn a_cluster_and_a_witness_go_down_to_the_last_node(
        nodes in 1..20_u128,
        steps in prop::collection::vec((any::<prop::sample::Index>(), 0..3_u8), 0..40),
    ) {
        let mut view = with_witness(view(nodes, &[1]));
        settle(&mut view);
        for (which, what) in steps {
            let here = here(&view);
            let away: Vec<_> =
                view.seats.keys().copied().filter(|id| !here.contains(id)).collect();
            if what == 0 && !away.is_empty() {
                come_back(&mut view, *which.get(&away));
            } else if here.len() > 1 {
                let lost = *which.get(&here);
                lose(&mut view, lost);
            }
        }
        while here(&view).len() > 1 {
            let lost = here(&view)[nodes as usize % here(&view).len()];
            lose(&mut view, lost);
        }
        let last = here(&view);
        prop_assert_eq!(view.members.all_voters().into_iter().collect::<Vec<_>>(), last);
        for n in 1..=nodes {
            come_back(&mut view, id(n));
        }
        let voters = view.members.all_voters();
        let voting = voters.iter().filter(|voter| **voter != id(W)).count();
        prop_assert_eq!(voting, NODE_VOTERS_MAX.min(nodes as usize));
        prop_assert_eq!(voters.contains(&id(W)), voting % 2 == 0);
    }

    /// Without a witness the last two need each other.
    #[test]
    fn a_cluster_alone_goes_down_to_two_nodes(
        nodes in 3..20_u128,
        order in prop::collection::vec(any::<prop::sample::Index>(), 20),
    ) {
        let mut view = view(nodes, &[1]);
        settle(&mut view);
        for which in order {
            let here = here(&view);
            if here.len() == 2 {
                break;
            }
            let lost = *which.get(&here);
            lose(&mut view, lost);
        }
        let left: BTreeSet<_> = here(&view).into_iter().collect();
        prop_assert_eq!(view.members.all_voters(), left.clone());
        prop_assert!(left.len() == 2);
    }

    /// A witness that comes and goes costs nobody a vote, and stops nothing that has a majority
    /// of nodes.
    #[test]
    fn a_witness_that_comes_and_goes_does_no_harm(
        nodes in 2..9_u128,
        healthy in prop::collection::vec(any::<bool>(), 1..8),
    ) {
        let mut view = with_witness(view(nodes, &[1]));
        for healthy in healthy {
            view.witness = Some(Witness { id: id(W), healthy });
            settle(&mut view);
            let voting = view.members.all_voters().iter().filter(|v| **v != id(W)).count();
            prop_assert_eq!(voting, NODE_VOTERS_MAX.min(nodes as usize));
        }
    }
}
