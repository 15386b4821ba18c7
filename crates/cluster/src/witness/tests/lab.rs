//! Nodes with real logs, a wire in memory, and a witness.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use model::Actor;
use model::Applied;
use model::ClusterState;
use model::Command;
use model::Proposal;
use model::TokenId;
use model::UnixMillis;
use tempfile::TempDir;
use tokio::sync::broadcast;
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use super::W;
use super::cluster;
use super::id;
use crate::raft::Metrics;
use crate::raft::PeerService;
use crate::raft::ProposeError;
use crate::raft::Replica;
use crate::raft::Start;
use crate::raft::Store;
use crate::raft::Timing;
use crate::raft::memory::MemoryWire;
use crate::witness::Client;
use crate::witness::Terms;
use crate::witness::WitnessStore;
use crate::witness::WitnessTransport;
use crate::witness::create;
use crate::witness::memory::MemoryStore;

/// Quick, but slow enough for a loaded machine whose disk takes tens of milliseconds.
const TIMING: Timing = Timing {
    heartbeat: Duration::from_millis(100),
    election_min: Duration::from_millis(500),
    election_max: Duration::from_millis(1_000),
};

/// How long a held record must stand unchanged here.
pub(super) const LEASE: Duration = Duration::from_millis(1_500);

/// Longer than anything may take on a loaded machine.
pub(super) const LONG: Duration = Duration::from_secs(60);

/// Within this nothing can be decided that needs those who are away.
pub(super) const SHORT: Duration = Duration::from_millis(2_500);

fn token_id(n: u64) -> TokenId {
    TokenId::new(Uuid::from_u128(n.into()))
}

pub(super) fn has(state: &ClusterState, n: u64) -> bool {
    state.tokens.contains_key(&token_id(n))
}

pub(super) async fn propose(
    replica: &Replica,
    n: u64,
    timeout: Duration,
) -> Result<Applied, ProposeError> {
    let command = Command::TokenCreate {
        token: token_id(n),
        name: format!("t{n}").parse().unwrap(),
        role: model::Role::Viewer,
        digest: "0".repeat(64),
        expires: None,
        certificate: None,
    };
    let proposal = Proposal { at: UnixMillis::new(n), actor: Actor::new("test"), command };
    replica.propose(proposal, timeout).await
}

pub(super) async fn wait(replica: &Replica, until: impl FnMut(&Metrics) -> bool) {
    let mut metrics = replica.metrics();
    let met = tokio::time::timeout(LONG, metrics.wait_for(until)).await;
    let met = met.map(|met| met.map(drop));
    assert!(matches!(met, Ok(Ok(()))), "it does not come about: {:?}", replica.metrics().borrow());
}

pub(super) struct Node {
    pub(super) replica: Replica,
    pub(super) service: Arc<dyn PeerService>,
    pub(super) client: Client,
}

/// Nodes, the wire between them, and where the witness is.
pub(super) struct Lab {
    dir: TempDir,
    pub(super) wire: MemoryWire,
    pub(super) store: MemoryStore,
    pub(super) ways: BTreeMap<u128, MemoryStore>,
    pub(super) nodes: BTreeMap<u128, Node>,
    directory: Option<PathBuf>,
}

impl Lab {
    async fn new(directory: Option<PathBuf>) -> Self {
        let lab = Self {
            dir: tempfile::tempdir().unwrap(),
            wire: MemoryWire::new(),
            store: MemoryStore::new(),
            ways: BTreeMap::new(),
            nodes: BTreeMap::new(),
            directory,
        };
        create(&*lab.way(0), cluster(), id(W)).await.unwrap();
        lab
    }

    fn way(&self, n: u128) -> Arc<dyn WitnessStore> {
        match (&self.directory, self.ways.get(&n)) {
            (Some(dir), _) => Arc::new(crate::witness::Directory::new(dir, "witness")),
            (None, Some(way)) => Arc::new(way.clone()),
            (None, None) => Arc::new(self.store.clone()),
        }
    }

    /// Nodes 1 and 2 and the witness vote. Node 1 leads.
    pub(super) async fn pair() -> Self {
        Self::of(2, None).await
    }

    /// Some nodes and the witness vote. Node 1 leads.
    pub(super) async fn of(count: u128, directory: Option<PathBuf>) -> Self {
        let mut lab = Self::new(directory).await;
        let first = lab.start(1, false).await;
        for n in 2..=count {
            lab.start(n, true).await;
            first.add_learner(id(n), LONG).await.unwrap();
        }
        first.add_learner(id(W), LONG).await.unwrap();
        let voters: BTreeSet<_> = (1..=count).chain([W]).map(id).collect();
        first.set_voters(voters.clone(), LONG).await.unwrap();
        for n in 2..=count {
            wait(&lab.node(n), |metrics| metrics.voters() == voters).await;
        }
        lab
    }

    /// Starts a node; a new one as a cluster alone, or waiting to be taken in.
    pub(super) async fn start(&mut self, n: u128, joining: bool) -> Replica {
        let dir = self.dir.path().join(n.to_string());
        std::fs::create_dir_all(&dir).unwrap();
        let (store, mut loaded) = Store::open(&dir.join("state.redb"), id(n)).unwrap();
        if joining {
            loaded = store.empty_for_join(id(n)).await.unwrap();
        }
        self.ways.entry(n).or_insert_with(|| self.store.way());
        let terms = Terms {
            cluster: cluster(),
            witness: id(W),
            me: id(n),
            lease: LEASE,
            memory: Some(dir.join("witness.seen")),
        };
        let client = Client::new(self.way(n), terms);
        let transport = WitnessTransport::new(id(n), self.wire.transport(id(n)), TIMING.heartbeat);
        transport.set(Some(client.clone()));
        let replica = Replica::start(Start {
            store,
            loaded,
            transport: transport.clone(),
            timing: TIMING,
            state: watch::Sender::default(),
            events: broadcast::channel(16).0,
            out: false,
        })
        .await
        .unwrap();
        transport.attach(&replica);
        let service: Arc<dyn PeerService> = Arc::new(replica.clone());
        self.wire.attach(id(n), &service);
        self.nodes.insert(n, Node { replica: replica.clone(), service, client });
        replica
    }

    pub(super) async fn stop(&mut self, n: u128) {
        self.wire.detach(id(n));
        if let Some(Node { replica, service, .. }) = self.nodes.remove(&n) {
            drop(service);
            replica.stop().await;
            replica.store().close().await;
        }
    }

    pub(super) fn node(&self, n: u128) -> Replica {
        self.nodes[&n].replica.clone()
    }

    pub(super) fn client(&self, n: u128) -> Client {
        self.nodes[&n].client.clone()
    }

    /// Waits until one of these leads and says so itself.
    pub(super) async fn leader(&self) -> u128 {
        let end = Instant::now() + LONG;
        loop {
            let leads = |(_, node): &(&u128, &Node)| node.replica.metrics().borrow().leads();
            if let Some((leader, _)) = self.nodes.iter().find(leads) {
                return *leader;
            }
            assert!(Instant::now() < end, "nobody leads");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until all nodes have the same log in their state.
    pub(super) async fn converge(&self) {
        let end = Instant::now() + LONG;
        loop {
            let seen = |node: &Node| {
                let metrics = node.replica.metrics().borrow().clone();
                (metrics.applied_next, metrics.log_next)
            };
            let seen: Vec<_> = self.nodes.values().map(seen).collect();
            if seen.iter().all(|(applied, log)| applied == log && seen[0].0 == *applied) {
                break;
            }
            assert!(Instant::now() < end, "they do not become the same: {seen:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let states: Vec<_> = self.nodes.values().map(|node| node.replica.state()).collect();
        assert!(states.iter().all(|state| *state == states[0]));
    }

    /// Waits until the record is let go: both nodes answer.
    pub(super) async fn settled(&self) {
        let leader = self.leader().await;
        let end = Instant::now() + LONG;
        loop {
            let record = self.client(leader).check().await.unwrap();
            if record.ballot.is_some() && !record.held {
                return;
            }
            assert!(Instant::now() < end, "it is not let go: {record:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
