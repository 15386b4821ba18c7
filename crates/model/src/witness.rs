//! The witness: a voter of the cluster's log that is no node. How it votes is the work of crate
//! `cluster`; here stands which one it is and how it is reached.
//!
//! ```text
//!   (none)  -- WitnessSet -->  set  -- WitnessRemove -->  retired  -- WitnessGone --> (none)
//! ```
//!
//! As with a node that leaves, the record goes only when the leader has taken the witness out of the
//! log: up to then its vote may be needed to do so. Each one that is set has an id of its own, so
//! that a vote of one before it never counts for it.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde::Deserialize;
use serde::Serialize;

use crate::NodeId;
use crate::SecretText;
use crate::UnixMillis;

/// Where the record of a witness is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum WitnessPlace {
    /// A directory of a share that all nodes mount at the same path.
    Directory {
        /// Absolute.
        path: String,
    },
    /// An object store.
    Object {
        /// `s3://BUCKET/FOLDER` or `az://CONTAINER/FOLDER`.
        url: String,
        /// Options such as `aws_endpoint`, by name.
        #[serde(default)]
        options: BTreeMap<String, String>,
        /// Options that nobody is shown again, such as `aws_secret_access_key`.
        #[serde(default)]
        secrets: BTreeMap<String, SecretText>,
    },
    /// A block device that all nodes see, for nothing else.
    Block {
        /// Absolute, the same on each node.
        path: String,
        /// Where on the device each node writes. A number is never given again while the witness
        /// lives: an evicted node may still write there. Who joins later gets the next one.
        slots: BTreeMap<NodeId, u16>,
    },
    /// A `muster witness` on another machine.
    Remote {
        /// Where it listens.
        address: SocketAddr,
        /// What it printed: pins its certificate and lets its bearer in.
        token: SecretText,
    },
}

/// Slots that a device may give out: as many as a cluster has nodes, those that are gone counted.
/// A node beyond them does without the witness until it is set anew.
pub const WITNESS_SLOTS_MAX: u16 = 64;

/// Slots for the nodes of a device's first day.
pub fn witness_slots(nodes: impl IntoIterator<Item = NodeId>) -> BTreeMap<NodeId, u16> {
    let nodes: BTreeSet<NodeId> = nodes.into_iter().collect();
    nodes.into_iter().zip(0..WITNESS_SLOTS_MAX).collect()
}

/// The witness of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WitnessRecord {
    /// Its id among the members of the log.
    pub id: NodeId,
    /// Where it is.
    pub place: WitnessPlace,
    /// When it was set.
    pub since: UnixMillis,
    /// Who set it.
    pub by: String,
    /// It is being taken out of the voters.
    #[serde(default)]
    pub retired: bool,
}
