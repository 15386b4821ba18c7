//! The door to the replicated state: propose a command, read a snapshot, follow changes.
//!
//! Behind the trait stands [`RaftTruth`], this node's replica of the log in crate `cluster`. One
//! host alone is a cluster of one voter: it leads at once and decides by itself.

mod raft;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use model::Applied;
use model::ClusterState;
use model::Proposal;
use tokio::sync::watch;

pub use cluster::raft::EVENTS_AT_ONCE_MAX;
pub use cluster::raft::LeaderError;
pub use cluster::raft::Metrics;
pub use cluster::raft::ProposeError;
pub use cluster::raft::Store;
pub use cluster::raft::StoreError;
pub use cluster::raft::StoredEvent;
pub use raft::RaftTruth;

/// How long a proposal waits for the cluster: an election and then some, but less than a person
/// or a client's own limit.
pub const PROPOSE_MAX: Duration = Duration::from_secs(10);

/// How long a read waits for the cluster before it is refused.
pub const BARRIER_MAX: Duration = Duration::from_secs(5);

/// The replicated state as the daemon sees it.
#[async_trait]
pub trait Truth: Send + Sync + 'static {
    /// Carries a command out. When this returns, the change is durable on a majority and visible
    /// in [`Truth::state`]. In a cluster it takes at most [`PROPOSE_MAX`].
    ///
    /// # Errors
    /// [`ProposeError`]: refused or unavailable, and nothing was changed; or unknown.
    async fn propose(&self, proposal: Proposal) -> Result<Applied, ProposeError>;

    /// A snapshot of the state, with all that was acknowledged here before the call. Elsewhere
    /// more may have been, see [`Truth::barrier`].
    fn state(&self) -> Arc<ClusterState>;

    /// Tells of each change of the state, with the newest snapshot.
    fn watch(&self) -> watch::Receiver<Arc<ClusterState>>;

    /// Waits until [`Truth::state`] has all that was acknowledged anywhere before the call. In
    /// a cluster it takes at most [`BARRIER_MAX`].
    ///
    /// # Errors
    /// [`LeaderError::Unavailable`]: there is no majority; the state may be old.
    async fn barrier(&self) -> Result<(), LeaderError>;

    /// What this node knows of the log and its members, and each change of it.
    fn metrics(&self) -> watch::Receiver<Metrics>;
}
