//! Whom this node takes calls from: told by the replicated state, through a closure.

use std::sync::Arc;

use model::NodeId;
use model::UnixMillis;

use crate::error::Refusal;
use crate::error::RefusalCode;
use crate::pki::KeyDigest;

/// What the state knows of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// A member. Its key must be this one, where the state has it.
    Member(Option<KeyDigest>),
    /// Not in the state as it is known here. The certificate alone decides: a node that lags
    /// behind must hear from members that joined meanwhile, or it could never catch up.
    Unknown,
    /// Evicted; its certificate is worth nothing.
    Evicted {
        /// When.
        at: UnixMillis,
    },
    /// It has left by itself.
    Left {
        /// When.
        at: UnixMillis,
    },
}

/// Asks the state about a node. Called for each connection and each call: it must be quick.
pub type TrustList = Arc<dyn Fn(NodeId) -> Trust + Send + Sync>;

impl Trust {
    /// Whether a node with this key may take part.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn admit(&self, node: NodeId, key: &KeyDigest) -> Result<(), Refusal> {
        match self {
            Self::Member(Some(known)) if known != key => Err(Refusal::new(
                RefusalCode::OtherKey,
                format!("node {node} shows another key than the one it joined with"),
                "if the host was set up anew, evict the old node and join it again",
            )),
            Self::Member(_) | Self::Unknown => Ok(()),
            Self::Evicted { .. } => Err(Refusal::new(
                RefusalCode::Evicted,
                format!("node {node} was evicted from this cluster"),
                "on that host: muster cluster leave --force, then join again with a new token",
            )),
            Self::Left { .. } => Err(Refusal::new(
                RefusalCode::Left,
                format!("node {node} has left this cluster"),
                "to take it in again: muster cluster token here, muster cluster join there",
            )),
        }
    }
}
