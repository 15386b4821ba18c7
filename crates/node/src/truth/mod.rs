//! The door to the replicated state: propose a command, read a snapshot, follow changes.
//!
//! Behind the trait stands [`LocalTruth`], a log on this host's disk driven by one thread. The
//! cluster puts Raft behind the same trait; callers do not change (docs/decisions/0002).

#[cfg(test)]
mod damage;
mod local;
#[cfg(test)]
mod snapshots;
mod store;

use std::sync::Arc;

use async_trait::async_trait;
use model::Applied;
use model::ClusterState;
use model::Proposal;
use model::Refused;
use tokio::sync::watch;

pub use local::LocalTruth;
pub use store::EVENTS_AT_ONCE_MAX;
pub use store::Store;
pub use store::StoreError;
pub use store::StoredEvent;

/// Why a proposal was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// The state machine refuses it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The daemon is stopping, or too many proposals wait. It may be proposed again.
    #[error("the state takes no changes now: {0}")]
    Unavailable(&'static str),
}

/// The replicated state as the daemon sees it.
#[async_trait]
pub trait Truth: Send + Sync + 'static {
    /// Carries a command out. When this returns, the change is durable and visible in
    /// [`Truth::state`].
    ///
    /// # Errors
    /// [`ProposeError`]; nothing was changed.
    async fn propose(&self, proposal: Proposal) -> Result<Applied, ProposeError>;

    /// A snapshot of the state, with all that was acknowledged before the call.
    fn state(&self) -> Arc<ClusterState>;

    /// Tells of each change of the state, with the newest snapshot.
    fn watch(&self) -> watch::Receiver<Arc<ClusterState>>;
}
