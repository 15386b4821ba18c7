//! This node's replica, behind the door.

use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::time::Duration;

use async_trait::async_trait;
use cluster::raft::LeaderError;
use cluster::raft::Loaded;
use cluster::raft::Metrics;
use cluster::raft::NoPeers;
use cluster::raft::PeerReply;
use cluster::raft::PeerRequest;
use cluster::raft::PeerService;
use cluster::raft::ProposeError;
use cluster::raft::RaftTransport;
use cluster::raft::Replica;
use cluster::raft::Start;
use cluster::raft::StartError;
use cluster::raft::Store;
use cluster::raft::StoredEvent;
use cluster::raft::Timing;
use model::Applied;
use model::ClusterState;
use model::NodeId;
use model::Proposal;
use tokio::sync::broadcast;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::BARRIER_MAX;
use super::PROPOSE_MAX;
use super::Truth;

/// How long a host alone waits for its own disk: longer than any disk that still works takes.
const ALONE_MAX: Duration = Duration::from_secs(120);

/// The replicated state, by this node's replica of the log.
pub struct RaftTruth {
    replica: RwLock<Replica>,
    metrics: watch::Sender<Metrics>,
    follower: Mutex<AbortHandle>,
    parts: Parts,
}

/// What stays when the replica is replaced for a join.
struct Parts {
    store: Store,
    transport: Arc<dyn RaftTransport>,
    timing: Timing,
    state: watch::Sender<Arc<ClusterState>>,
    events: broadcast::Sender<StoredEvent>,
    out: bool,
}

impl Parts {
    fn new(
        store: Store,
        transport: Arc<dyn RaftTransport>,
        timing: Timing,
        events: broadcast::Sender<StoredEvent>,
        out: bool,
    ) -> Self {
        Self { store, transport, timing, state: watch::Sender::default(), events, out }
    }

    async fn start(&self, loaded: Loaded) -> Result<Replica, StartError> {
        Replica::start(Start {
            store: self.store.clone(),
            loaded,
            transport: self.transport.clone(),
            timing: self.timing,
            state: self.state.clone(),
            events: self.events.clone(),
            out: self.out,
        })
        .await
    }
}

impl RaftTruth {
    /// Opens the state of `node` in `path` and starts its replica. Events go to `events` when they
    /// are certain.
    ///
    /// # Errors
    /// The state cannot be read or does not fit together; nothing was started.
    pub async fn open(
        path: &Path,
        node: NodeId,
        transport: Arc<dyn RaftTransport>,
        timing: Timing,
        events: broadcast::Sender<StoredEvent>,
    ) -> anyhow::Result<Arc<Self>> {
        let (store, loaded) = load(path, node).await?;
        Self::with_store(store, loaded, transport, timing, events).await
    }

    /// The same for a log that was made anew: this node asks for no votes until
    /// [`Replica::may_lead`] is called.
    ///
    /// # Errors
    /// As [`RaftTruth::open`].
    pub async fn open_quiet(
        path: &Path,
        node: NodeId,
        transport: Arc<dyn RaftTransport>,
        timing: Timing,
        events: broadcast::Sender<StoredEvent>,
    ) -> anyhow::Result<Arc<Self>> {
        let (store, loaded) = load(path, node).await?;
        Self::with_store(store, loaded.quiet(), transport, timing, events).await
    }

    /// The same for a node that was taken out of its cluster: its state can be looked at, and it
    /// takes part in nothing.
    ///
    /// # Errors
    /// As [`RaftTruth::open`].
    pub async fn open_out(
        path: &Path,
        node: NodeId,
        events: broadcast::Sender<StoredEvent>,
    ) -> anyhow::Result<Arc<Self>> {
        let (store, loaded) = load(path, node).await?;
        let (transport, timing) = (Arc::new(NoPeers), Timing::default());
        Self::begin(Parts::new(store, transport, timing, events, true), loaded).await
    }

    /// The same with a store that is open.
    ///
    /// # Errors
    /// The state does not fit together; nothing was started.
    pub async fn with_store(
        store: Store,
        loaded: Loaded,
        transport: Arc<dyn RaftTransport>,
        timing: Timing,
        events: broadcast::Sender<StoredEvent>,
    ) -> anyhow::Result<Arc<Self>> {
        Self::begin(Parts::new(store, transport, timing, events, false), loaded).await
    }

    async fn begin(parts: Parts, loaded: Loaded) -> anyhow::Result<Arc<Self>> {
        let replica = parts.start(loaded).await?;
        let metrics = watch::Sender::new(replica.metrics().borrow().clone());
        let follower = tokio::spawn(follow(replica.metrics(), metrics.clone())).abort_handle();
        let (replica, follower) = (RwLock::new(replica), Mutex::new(follower));
        Ok(Arc::new(Self { replica, metrics, follower, parts }))
    }

    /// The file, for reading events.
    pub fn store(&self) -> &Store {
        &self.parts.store
    }

    /// How long to wait for the log. A host alone waits for nobody but its own disk.
    fn patience(&self, among_others: Duration) -> Duration {
        if self.metrics.borrow().voters().len() == 1 { ALONE_MAX } else { among_others }
    }

    /// The replica at present, for changes of the members and for the requests of peers.
    pub fn replica(&self) -> Replica {
        self.replica.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets the present state, whole, and waits as `node` for a leader to take it into another
    /// cluster. What is kept here must not be needed any more: the caller has checked that.
    ///
    /// # Errors
    /// The new replica did not start; the store is empty and waits for a join all the same.
    pub async fn empty_for_join(&self, node: NodeId) -> anyhow::Result<()> {
        self.replica().stop().await;
        let loaded = self.parts.store.empty_for_join(node).await?;
        let replica = self.parts.start(loaded).await?;
        {
            let mut follower = self.follower.lock().unwrap_or_else(PoisonError::into_inner);
            follower.abort();
            let following = follow(replica.metrics(), self.metrics.clone());
            *follower = tokio::spawn(following).abort_handle();
        }
        *self.replica.write().unwrap_or_else(PoisonError::into_inner) = replica;
        Ok(())
    }
}

async fn load(path: &Path, node: NodeId) -> anyhow::Result<(Store, Loaded)> {
    let path = path.to_owned();
    Ok(tokio::task::spawn_blocking(move || Store::open(&path, node)).await??)
}

/// Shows one replica's metrics as this node's, until it ends.
async fn follow(mut from: watch::Receiver<Metrics>, to: watch::Sender<Metrics>) {
    loop {
        let metrics = from.borrow_and_update().clone();
        to.send_replace(metrics);
        if from.changed().await.is_err() {
            return;
        }
    }
}

#[async_trait]
impl Truth for RaftTruth {
    async fn propose(&self, proposal: Proposal) -> Result<Applied, ProposeError> {
        self.replica().propose(proposal, self.patience(PROPOSE_MAX)).await
    }

    fn state(&self) -> Arc<ClusterState> {
        self.parts.state.borrow().clone()
    }

    fn watch(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.parts.state.subscribe()
    }

    async fn barrier(&self) -> Result<(), LeaderError> {
        self.replica().barrier(self.patience(BARRIER_MAX)).await
    }

    fn metrics(&self) -> watch::Receiver<Metrics> {
        self.metrics.subscribe()
    }
}

#[async_trait]
impl PeerService for RaftTruth {
    async fn serve(&self, from: NodeId, request: PeerRequest) -> Result<PeerReply, String> {
        self.replica().serve(from, request).await
    }
}

#[cfg(test)]
mod tests {
    use model::Actor;
    use model::Command;
    use model::TokenId;
    use model::UnixMillis;
    use uuid::Uuid;

    use super::*;

    fn node(n: u128) -> NodeId {
        NodeId::new(Uuid::from_u128(n))
    }

    fn token(n: u64) -> Proposal {
        let command = Command::TokenCreate {
            token: TokenId::new(Uuid::from_u128(n.into())),
            name: format!("t{n}").parse().unwrap(),
            role: model::Role::Viewer,
            digest: "0".repeat(64),
            expires: None,
            certificate: None,
        };
        Proposal { at: UnixMillis::new(n), actor: Actor::new("test"), command }
    }

    async fn open(path: &Path) -> Arc<RaftTruth> {
        let events = broadcast::channel(16).0;
        RaftTruth::open(path, node(1), Arc::new(NoPeers), Timing::default(), events).await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_acknowledged_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let truth = open(&path).await;
        let mut states = truth.watch();
        for n in 1..=10 {
            truth.propose(token(n)).await.unwrap();
            assert_eq!(truth.state().tokens.len(), usize::try_from(n).unwrap());
        }
        assert_eq!(states.borrow_and_update().tokens.len(), 10);
        let refused = truth.propose(token(3)).await;
        assert!(matches!(refused, Err(ProposeError::Refused(_))), "{refused:?}");
        assert!(!states.has_changed().unwrap(), "a refusal is no change");
        truth.barrier().await.unwrap();
        let state = truth.state();
        truth.replica().stop().await;
        truth.store().close().await;
        let truth = open(&path).await;
        assert_eq!(truth.state(), state);
        assert!(truth.metrics().borrow().leads());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_node_that_is_emptied_for_a_join_keeps_its_watchers() {
        let dir = tempfile::tempdir().unwrap();
        let truth = open(&dir.path().join("state.redb")).await;
        truth.propose(token(1)).await.unwrap();
        let (mut states, mut metrics) = (truth.watch(), truth.metrics());
        states.borrow_and_update();
        truth.empty_for_join(node(2)).await.unwrap();
        states.changed().await.unwrap();
        assert_eq!(**states.borrow_and_update(), ClusterState::default());
        let empty = metrics.wait_for(|metrics| metrics.node == node(2)).await.unwrap();
        assert_eq!(empty.leader, None);
        drop(empty);
        assert!(truth.store().last_events(10).unwrap().is_empty());
    }
}
