//! What people read.

use model::NodeId;

use super::W;
use super::id;
use super::set;
use super::view;
use super::with_witness;
use crate::quorum::Presence;
use crate::quorum::View;
use crate::quorum::Witness;
use crate::quorum::words;

fn name(node: NodeId) -> String {
    format!("h{}", node.uuid().as_u128())
}

fn say(what: &str, view: &View) -> String {
    format!("{what}\n    {}\n", words(view, &name))
}

#[test]
fn every_state_of_the_quorum_has_its_words() {
    let mut text = String::new();
    let mut nobody = view(1, &[]);
    nobody.members.voters.clear();
    text += &say("before a cluster", &nobody);
    text += &say("one node", &view(1, &[1]));
    text += &say("two nodes", &view(2, &[1, 2]));
    let mut silent = view(2, &[1, 2]);
    silent.seat(2).presence = Presence::Silent;
    text += &say("two nodes, one silent", &silent);
    text += &say("three nodes", &view(3, &[1, 2, 3]));
    let mut silent = view(3, &[1, 2, 3]);
    silent.seat(3).presence = Presence::Silent;
    text += &say("three nodes, one silent", &silent);
    text += &say("three nodes, one lost and voted out", &view(3, &[1, 2]).lose(3));
    let mut stopped = view(3, &[1, 2, 3]).lose(2).lose(3);
    stopped.leader = id(1);
    text += &say("three nodes, two lost at once", &stopped);
    text += &say("five nodes", &view(5, &[1, 2, 3, 4, 5]));
    text += &say("nine nodes", &view(9, &[1, 2, 3, 4, 5, 6, 7]));
    let pair = with_witness(view(2, &[1, 2, W]));
    text += &say("two nodes and a witness", &pair);
    let mut silent = pair.clone();
    silent.seat(2).presence = Presence::Silent;
    text += &say("two nodes and a witness, one silent", &silent);
    text += &say("the same, voted out", &with_witness(view(2, &[1])).lose(2));
    let mut blind = pair.clone();
    blind.witness = Some(Witness { id: id(W), healthy: false });
    text += &say("two nodes and a witness that cannot be reached", &blind);
    text += &say("the same, and one lost", &blind.lose(2));
    text += &say("four nodes and a witness", &with_witness(view(4, &[1, 2, 3, 4, W])));
    let three = with_witness(view(3, &[1, 2, 3]));
    text += &say("three nodes, the witness waits", &three);
    let mut joint = view(3, &[1, 2, 3]);
    joint.members.voters = vec![set(&[1, 2]), set(&[1, 2, 3])];
    text += &say("a change under way", &joint);
    insta::assert_snapshot!(text);
}
