//! Who votes, and what may still be lost (pure).
//!
//! ```text
//!   members, who is here or lost ---+
//!   voters and learners now      ---+--> next_change() --> one change of the membership, or none
//!   witness: configured, healthy ---+--> words()       --> the same in words, for people
//! ```
//!
//! The leader asks again after each change, and whenever something it was told has changed. Every
//! answer is one step which a majority of the old voters and a majority of the new ones can commit
//! now; a step that could not be committed is never begun, because a change under way blocks every
//! other one.
//!
//! The wish it works towards:
//!
//! - Every member gets the log. Up to [`NODE_VOTERS_MAX`] of them vote; who votes keeps its vote.
//! - A node votes when it is here and has the log. It loses its vote when its loss is *confirmed*
//!   ([`Presence::Lost`]), or when it leaves; a node that is only silent keeps it. So a cluster can
//!   lose its nodes one after another: each loss that is confirmed while a majority is left makes
//!   the majority smaller.
//! - The witness votes only while the number of node voters is even: it breaks the tie of two
//!   halves, and with an odd number it would make one. With it the last step goes from two nodes to
//!   one, too. A witness that cannot be reached is not made a voter; one that votes and cannot be
//!   reached keeps its vote, which costs nothing: two nodes without the witness need both, with it
//!   they need any two of three.
//! - A leader that leaves gives the leadership away first.
//!
//! What this costs: a node that was voted out cannot come up alone, because it may not have what
//! was decided without it. When the last voter is gone, its return is awaited, or somebody who knows
//! better forces the quorum.

#[cfg(test)]
mod tests;
mod words;

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use model::NodeId;

use crate::raft::Members;

pub use words::words;

/// Nodes that vote, at most: each vote makes a decision slower and survives no more losses at once
/// than three, while the number of losses one after another has no limit.
pub const NODE_VOTERS_MAX: usize = 7;

/// Whether a node takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It answers.
    Here,
    /// It does not answer now. It may be a moment only.
    Silent,
    /// Its loss is confirmed: it has not answered for long, or is known to be off.
    Lost,
}

/// A member of the cluster: a node, never the witness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seat {
    /// Whether it takes part.
    pub presence: Presence,
    /// Whether it has the log, but for the last moment.
    pub caught_up: bool,
    /// It has asked to leave, or is to be without a vote for another reason.
    pub leaving: bool,
}

/// The witness that the cluster is configured with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Witness {
    /// Its id among the members of the log. A witness that is set anew has a new one.
    pub id: NodeId,
    /// Whether it could be reached and its record be read lately.
    pub healthy: bool,
}

/// What the leader knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The leader.
    pub leader: NodeId,
    /// The nodes that belong to the cluster.
    pub seats: BTreeMap<NodeId, Seat>,
    /// Voters and learners as they are in the log.
    pub members: Members,
    /// The witness, if there is one.
    pub witness: Option<Witness>,
}

/// A step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Give the leadership to this voter: the leader is leaving.
    Transfer(NodeId),
    /// Let this node, or the witness, have the log.
    AddLearner(NodeId),
    /// Exactly these vote from now on; others that voted become learners.
    SetVoters(BTreeSet<NodeId>),
    /// This one is no member any more, or a witness of before.
    Remove(NodeId),
}

impl View {
    /// The voters that a change starts from: while they change, the set they change to.
    fn present(&self) -> BTreeSet<NodeId> {
        self.members.voters.last().cloned().unwrap_or_default()
    }

    fn is_witness(&self, id: NodeId) -> bool {
        self.witness.is_some_and(|witness| witness.id == id)
    }

    /// Whether this voter answers now.
    fn answers(&self, id: NodeId) -> bool {
        match self.witness {
            Some(witness) if witness.id == id => witness.healthy,
            _ => {
                id == self.leader
                    || self.seats.get(&id).is_some_and(|seat| seat.presence == Presence::Here)
            }
        }
    }

    /// Whether a majority of this set answers.
    fn majority_of(&self, set: &BTreeSet<NodeId>) -> bool {
        2 * set.iter().filter(|id| self.answers(**id)).count() > set.len()
    }

    /// Whether each of the voter sets in force has a majority that answers.
    fn decides(&self) -> bool {
        !self.members.voters.is_empty() && self.members.voters.iter().all(|v| self.majority_of(v))
    }

    /// Whether this member may keep its vote.
    fn may_stay(&self, id: NodeId) -> bool {
        self.seats.get(&id).is_some_and(|seat| {
            !seat.leaving && (id == self.leader || seat.presence != Presence::Lost)
        })
    }

    /// Whether this member may get a vote.
    fn may_join(&self, id: NodeId) -> bool {
        self.members.nodes.contains(&id)
            && self.seats.get(&id).is_some_and(|seat| {
                let here = seat.presence == Presence::Here && seat.caught_up;
                !seat.leaving && (id == self.leader || here)
            })
    }

    /// Who shall vote.
    fn wished(&self) -> BTreeSet<NodeId> {
        let present = self.present();
        let mut wished: BTreeSet<NodeId> =
            present.iter().copied().filter(|id| self.may_stay(*id)).collect();
        while wished.len() > NODE_VOTERS_MAX {
            let Some(last) = wished.iter().rev().copied().find(|id| *id != self.leader) else {
                break;
            };
            wished.remove(&last);
        }
        for id in self.seats.keys().copied().filter(|id| self.may_join(*id)) {
            if wished.len() >= NODE_VOTERS_MAX {
                break;
            }
            wished.insert(id);
        }
        if let Some(witness) = self.witness
            && !wished.is_empty()
            && wished.len().is_multiple_of(2)
            && (present.contains(&witness.id)
                || (witness.healthy && self.members.nodes.contains(&witness.id)))
        {
            wished.insert(witness.id);
        }
        wished
    }

    /// Whether each of the sets in force, and the new one, can commit the change to it.
    fn can_change_to(&self, voters: &BTreeSet<NodeId>) -> bool {
        self.decides() && self.majority_of(voters)
    }
}

/// The next step, if there is one that can be taken now. Only the leader asks.
pub fn next_change(view: &View) -> Option<Change> {
    if !view.decides() {
        return None;
    }
    let joint = view.members.voters.len() > 1;
    let wished = view.wished();
    let leader_stays =
        view.seats.get(&view.leader).is_some_and(|seat| !seat.leaving) || wished.is_empty();
    if !leader_stays && !joint {
        let present = view.present();
        let heir = view.seats.iter().find(|(id, seat)| {
            present.contains(id)
                && **id != view.leader
                && seat.presence == Presence::Here
                && seat.caught_up
                && !seat.leaving
        });
        if let Some((heir, _)) = heir {
            return Some(Change::Transfer(*heir));
        }
    }
    if !joint && let Some(new) = view.missing() {
        return Some(Change::AddLearner(new));
    }
    if (joint || wished != view.present()) && leader_stays && !wished.is_empty() {
        return view.can_change_to(&wished).then_some(Change::SetVoters(wished));
    }
    if joint {
        // Left half done by a leader before; it ends where it was going.
        let present = view.present();
        return view.can_change_to(&present).then_some(Change::SetVoters(present));
    }
    let voters = view.members.all_voters();
    let foreign = |id: &NodeId| !view.seats.contains_key(id) && !view.is_witness(*id);
    let gone = view.members.nodes.iter().copied().find(|id| foreign(id) && !voters.contains(id));
    gone.map(Change::Remove)
}

impl View {
    /// A member that does not get the log yet. One that is lost or leaving can wait; the witness is
    /// taken in when it is going to vote.
    fn missing(&self) -> Option<NodeId> {
        let absent = |id: &NodeId| !self.members.nodes.contains(id);
        let node = self
            .seats
            .iter()
            .find(|(id, seat)| absent(id) && !seat.leaving && seat.presence == Presence::Here)
            .map(|(id, _)| *id);
        let even = self.wished().iter().filter(|id| !self.is_witness(**id)).count() % 2 == 0;
        let witness = self.witness.filter(|witness| even && witness.healthy && absent(&witness.id));
        node.or(witness.map(|witness| witness.id))
    }
}
