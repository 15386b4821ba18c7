//! The cluster itself: its name and CA, its members, the tokens by which hosts join, and who is no
//! longer a member.
//!
//! ```text
//!   (host)  -- NodeJoin, by a token -->  member  -- NodeLeave -->  leaving  -- NodeGone --> gone
//!                                           |                         |
//!                                           +------- NodeEvict -------+------------------> gone
//!                                           |                         |
//!                                           +----- QuorumForced ------+--> lost -- NodeEvict --> gone
//! ```
//!
//! A member that leaves stays one until the leader has taken it out of the voters; only then its
//! record goes. Who is gone stays known: its certificate is refused, its id never comes back.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;

use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::ClusterId;
use crate::JoinTokenId;
use crate::Name;
use crate::NodeId;
use crate::NodeInterface;
use crate::UnixMillis;

/// A text that is never shown: not in logs, not by the API.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretText(String);

/// What makes this set of nodes a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRecord {
    /// Its id.
    pub id: ClusterId,
    /// Its name.
    pub name: Name,
    /// Certificate of its CA, PEM.
    pub ca_certificate: String,
    /// Key of its CA, PEM. Never leaves the nodes.
    pub ca_key: SecretText,
    /// When it was made.
    pub created: UnixMillis,
}

/// What a node says of itself; brought up to date at each start of its daemon.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeFacts {
    /// Addresses of its peer port, one for each cluster network, the preferred one first.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<SocketAddr>,
    /// Version of its program.
    #[serde(default)]
    pub version: String,
    /// Addresses of its devices, by which networks of hosts are found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<NodeInterface>,
}

/// How a node stands to the cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Membership {
    /// It takes part.
    #[default]
    Member,
    /// It has asked to leave and is being taken out of the voters.
    Leaving,
    /// It was given up when the quorum was forced: it has no vote, its certificate is refused, and
    /// it comes back only as a new node. Its record stays until no VM is its own any more.
    Lost,
}

/// The last forcing of the quorum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForcedRecord {
    /// How often the quorum of this cluster was forced, this time counted.
    pub count: u64,
    /// Random: tells two halves apart that were both forced.
    pub word: Uuid,
    /// Who was given up, this time and before. Not "who goes on": a node that joins later is none of
    /// those, and may see a mark on a volume before its copy of the state has come so far.
    pub lost: BTreeSet<NodeId>,
    /// When.
    pub at: UnixMillis,
    /// Who forced it.
    pub by: String,
}

/// A token by which hosts may join. The secret itself is known to its bearer only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinTokenRecord {
    /// Its id.
    pub id: JoinTokenId,
    /// SHA-256 of the secret, in hexadecimal.
    pub digest: String,
    /// When it was made.
    pub created: UnixMillis,
    /// When it ends.
    pub expires: UnixMillis,
    /// How many hosts it can still take in.
    pub uses: u32,
    /// Who made it.
    pub by: String,
}

/// Why a node is no longer a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Gone {
    /// It left by itself.
    Left,
    /// It was evicted.
    Evicted,
}

/// A member has lost its log: it takes no part in the log until that counts no more, and gets a new
/// one from the others (docs/decisions/0023).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Rebuild {
    /// Random: names the loss, however often the node tells of it.
    pub word: Uuid,
    /// Since when the others know.
    pub since: UnixMillis,
    /// What is damaged, in the node's words.
    pub problem: String,
}

/// The log of a member was made anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Rebuilt {
    /// Of which loss ([`Rebuild::word`]). When this is committed, so is a membership of the log
    /// without the node, and a new log of it may begin.
    pub word: Uuid,
    /// How often that happened to this node, this time counted.
    pub count: u64,
}

/// A node that was a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GoneNode {
    /// Its id.
    pub id: NodeId,
    /// Its name at the time.
    pub name: Name,
    /// Since when.
    pub at: UnixMillis,
    /// How it went.
    pub how: Gone,
    /// Who asked for it.
    pub by: String,
}

impl SecretText {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText")
    }
}

impl JoinTokenRecord {
    /// Whether it still takes hosts in.
    pub fn is_valid(&self, now: UnixMillis) -> bool {
        self.uses > 0 && now < self.expires
    }
}
