//! What a node may ask another one.
//!
//! Numbers are for ever: a method that goes keeps its number. Bodies are opaque here; who owns a
//! method versions its body. A method that the other side does not know is refused by that name,
//! so that a newer node can fall back.

/// Which connection a call takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Small and in a hurry: votes, heartbeats, leases, proposals.
    Urgent,
    /// Large or slow: snapshots, lists, tables.
    Bulk,
}

/// A method by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Method(pub u16);

impl Method {
    /// Raft: entries, or a heartbeat without.
    pub const RAFT_APPEND: Self = Self(1);
    /// Raft: a vote.
    pub const RAFT_VOTE: Self = Self(2);
    /// Raft: a piece of a snapshot.
    pub const RAFT_SNAPSHOT: Self = Self(3);
    /// Raft: leadership is handed over.
    pub const RAFT_TRANSFER: Self = Self(4);
    /// A proposal on its way to the leader.
    pub const PROPOSE: Self = Self(5);
    /// A read point that the leader has confirmed.
    pub const BARRIER: Self = Self(6);
    /// A change of the members on its way to the leader.
    pub const MEMBERS: Self = Self(7);
    /// A node's lease.
    pub const LEASE: Self = Self(8);
    /// What a node sees of the others.
    pub const OBSERVATIONS: Self = Self(9);
    /// How a node sees the cluster.
    pub const STATUS: Self = Self(100);
    /// What a node sees of its own machines.
    pub const MACHINES: Self = Self(101);
    /// What a node says of its host.
    pub const HOST: Self = Self(104);
    /// What a node finds of itself and of its ways to the others, for a validation.
    pub const VALIDATE: Self = Self(105);
    /// A live migration: whether it can be, and the machine that waits for it.
    pub const MIGRATE: Self = Self(107);
    /// How far an operation is that a node performs.
    pub const PROGRESS: Self = Self(108);
    /// A node has lost its log and asks whether it may begin a new one.
    pub const REBUILD: Self = Self(109);
    /// What a machine or the node itself used, as far as the node has measured it.
    pub const HISTORY: Self = Self(110);
    /// How a node reaches the volumes on LUNs.
    pub const VOLUMES: Self = Self(111);
    /// When browsers' sessions were used last at a node.
    pub const SESSIONS: Self = Self(120);
    /// How much a node's machines do and wait.
    pub const LOADS: Self = Self(121);
    /// Sends the body back: for measuring and trying.
    pub const ECHO: Self = Self(102);
    /// A host wants to join; with [`Method::LOOK`] the only one for strangers.
    pub(crate) const JOIN: Self = Self(103);
    /// A host that may join looks at the cluster first; for strangers with a token's secret.
    pub(crate) const LOOK: Self = Self(106);

    /// Which connection it takes.
    pub const fn class(self) -> Class {
        match self {
            Self::RAFT_SNAPSHOT
            | Self::OBSERVATIONS
            | Self::MACHINES
            | Self::HOST
            | Self::VALIDATE
            | Self::MIGRATE
            | Self::PROGRESS
            | Self::HISTORY
            | Self::VOLUMES
            | Self::SESSIONS
            | Self::ECHO => Class::Bulk,
            _ => Class::Urgent,
        }
    }
}

impl Class {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Urgent, Self::Bulk];
}
