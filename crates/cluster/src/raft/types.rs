//! The types that openraft works with. It is named in this folder only, and never in its public
//! interface.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use model::NodeId;
use model::Proposal;
use openraft::EmptyNode;
use serde::Deserialize;
use serde::Serialize;

openraft::declare_raft_types!(
    /// What the replicated log is made of.
    pub(crate) Types:
        D = Arc<Envelope>,
        R = (),
        NodeId = RaftId,
        Node = EmptyNode,
);

pub(crate) type LogId = openraft::type_config::alias::LogIdOf<Types>;
pub(crate) type Vote = openraft::type_config::alias::VoteOf<Types>;
pub(crate) type Entry = openraft::type_config::alias::EntryOf<Types>;
pub(crate) type LeaderId = openraft::type_config::alias::LeaderIdOf<Types>;
pub(crate) type Membership = openraft::Membership<RaftId, EmptyNode>;
pub(crate) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<Types>;
pub(crate) type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<Types>;
pub(crate) type Snapshot = openraft::type_config::alias::SnapshotOf<Types, SnapshotBytes>;

/// A state machine as it goes over the wire and onto the disk, see [`super::format`].
pub(crate) type SnapshotBytes = Arc<Vec<u8>>;

/// A member of the log: the node's own id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct RaftId(pub(crate) NodeId);

impl Default for RaftId {
    fn default() -> Self {
        Self(NodeId::new(uuid::Uuid::nil()))
    }
}

impl fmt::Display for RaftId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
impl From<u64> for RaftId {
    fn from(n: u64) -> Self {
        Self(NodeId::new(uuid::Uuid::from_u128(n.into())))
    }
}

/// Which proposal this is, of all that were ever made. It lets a proposal be sent again when its
/// fate is unknown: the state machine carries each ticket out once (see [`super::session`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ticket {
    /// The node that made the proposal.
    pub node: NodeId,
    /// How often that node's store had been opened. Tickets of an earlier run are void.
    pub boot: u64,
    /// Its number in that run, from 1.
    pub number: u64,
    /// All lower numbers of that run are settled: nobody waits for them.
    pub floor: u64,
}

/// An entry of the log: a proposal with its ticket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Which one it is.
    pub ticket: Ticket,
    /// What is proposed.
    pub proposal: Proposal,
}

impl Envelope {
    /// How long its stored form is, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        /// Counts what would be written.
        struct Count(usize);
        impl std::io::Write for Count {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0 += bytes.len();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let mut count = Count(0);
        // Counting cannot fail, and a state type always has a JSON form.
        let _ = serde_json::to_writer(&mut count, self);
        count.0
    }
}

impl fmt::Display for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ticket { node, boot, number, .. } = self.ticket;
        write!(f, "{node}/{boot}/{number}")
    }
}

/// All nodes of a membership, voters and learners.
pub(crate) fn nodes_of(ids: impl IntoIterator<Item = NodeId>) -> BTreeMap<RaftId, EmptyNode> {
    ids.into_iter().map(|id| (RaftId(id), EmptyNode::new())).collect()
}
