//! Tests with whole replicas: real stores, and a wire in memory that can be cut.

mod damage;
mod failing_disk;
mod force;
mod hostile;
mod members;
mod rebuild;
mod records;
mod replicas;
mod schedule;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use model::Actor;
use model::Applied;
use model::ClusterState;
use model::Command;
use model::NodeId;
use model::Proposal;
use model::TokenId;
use model::UnixMillis;
use tempfile::TempDir;
use tokio::sync::broadcast;
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use super::Metrics;
use super::PeerService;
use super::ProposeError;
use super::Replica;
use super::Start;
use super::Store;
use super::StoreError;
use super::Timing;
use super::memory::MemoryWire;

/// Quick, but slow enough for a loaded machine whose disk takes tens of milliseconds.
const TIMING: Timing = Timing {
    heartbeat: Duration::from_millis(100),
    election_min: Duration::from_millis(500),
    election_max: Duration::from_millis(1_000),
};

/// Longer than anything may take on a loaded machine.
const LONG: Duration = Duration::from_secs(60);

/// Within this nothing can be decided that needs those who are away.
const SHORT: Duration = Duration::from_millis(2_500);

fn id(n: u128) -> NodeId {
    NodeId::new(Uuid::from_u128(n))
}

fn token_id(n: u64) -> TokenId {
    TokenId::new(Uuid::from_u128(n.into()))
}

fn token(n: u64) -> Proposal {
    Proposal {
        at: UnixMillis::new(n),
        actor: Actor::new("test"),
        command: Command::TokenCreate {
            token: token_id(n),
            name: format!("t{n}").parse().unwrap(),
            role: model::Role::Viewer,
            digest: "0".repeat(64),
            expires: None,
            certificate: None,
        },
    }
}

/// A change of which there may be any number: a node says that it started at `n`.
fn sign_of_life(n: u64) -> Proposal {
    // From JSON, so that a field more in the command does not matter here.
    let command = serde_json::json!({ "command": "node_started", "node": id(1), "name": "h1" });
    let command = serde_json::from_value(command).unwrap();
    Proposal { at: UnixMillis::new(n), actor: Actor::new("test"), command }
}

fn has(state: &ClusterState, n: u64) -> bool {
    state.tokens.contains_key(&token_id(n))
}

struct Running {
    replica: Replica,
    service: Arc<dyn PeerService>,
}

/// Some nodes and the wire between them.
struct Lab {
    dir: TempDir,
    wire: MemoryWire,
    nodes: BTreeMap<u128, Running>,
}

impl Lab {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), wire: MemoryWire::new(), nodes: BTreeMap::new() }
    }

    fn path(&self, n: u128) -> PathBuf {
        let dir = self.dir.path().join(n.to_string());
        std::fs::create_dir_all(&dir).unwrap();
        dir.join("state.redb")
    }

    /// Starts a node as its store says: alone the first time.
    async fn start(&mut self, n: u128) -> Result<Replica, StoreError> {
        let (store, loaded) = Store::open(&self.path(n), id(n))?;
        Ok(self.run(n, store, loaded).await)
    }

    /// Starts a new node that waits to be taken in.
    async fn start_joining(&mut self, n: u128) -> Replica {
        let (store, _) = Store::open(&self.path(n), id(n)).unwrap();
        let loaded = store.empty_for_join(id(n)).await.unwrap();
        self.run(n, store, loaded).await
    }

    async fn run(&mut self, n: u128, store: Store, loaded: super::Loaded) -> Replica {
        let replica = Replica::start(Start {
            store,
            loaded,
            transport: self.wire.transport(id(n)),
            timing: TIMING,
            state: watch::Sender::default(),
            events: broadcast::channel(16).0,
            out: false,
        })
        .await
        .unwrap();
        let service: Arc<dyn PeerService> = Arc::new(replica.clone());
        self.wire.attach(id(n), &service);
        self.nodes.insert(n, Running { replica: replica.clone(), service });
        replica
    }

    async fn stop(&mut self, n: u128) {
        self.wire.detach(id(n));
        if let Some(Running { replica, service }) = self.nodes.remove(&n) {
            drop(service);
            replica.stop().await;
            replica.store().close().await;
        }
    }

    /// Stops a node and starts it again.
    async fn start_again(&mut self, n: u128) -> Replica {
        self.stop(n).await;
        self.start(n).await.unwrap()
    }

    /// A cluster of `count` voters. Node 1 leads.
    async fn formed(count: u128) -> Self {
        let mut lab = Self::new();
        let first = lab.start(1).await.unwrap();
        for n in 2..=count {
            lab.start_joining(n).await;
            first.add_learner(id(n), LONG).await.unwrap();
        }
        first.set_voters((1..=count).map(id).collect(), LONG).await.unwrap();
        for n in 2..=count {
            wait(&lab.node(n), |metrics| metrics.voters().len() == count as usize).await;
        }
        lab
    }

    fn node(&self, n: u128) -> Replica {
        self.nodes[&n].replica.clone()
    }

    fn others(&self, n: u128) -> Vec<NodeId> {
        self.nodes.keys().filter(|other| **other != n).map(|other| id(*other)).collect()
    }

    /// Waits until one of these leads and says so itself.
    async fn leader_among(&self, among: &[u128]) -> u128 {
        let end = Instant::now() + LONG;
        loop {
            let leads = |n: &&u128| self.nodes[n].replica.metrics().borrow().leads();
            if let Some(leader) = among.iter().find(leads) {
                return *leader;
            }
            assert!(Instant::now() < end, "nobody leads");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until all nodes have the same log in their state.
    async fn converge(&self) {
        let end = Instant::now() + LONG;
        loop {
            let seen: Vec<_> = self
                .nodes
                .values()
                .map(|node| {
                    let metrics = node.replica.metrics().borrow().clone();
                    (metrics.applied_next, metrics.log_next)
                })
                .collect();
            let same = seen.iter().all(|(applied, log)| applied == log && seen[0].0 == *applied);
            if same && seen[0].0 > 0 {
                break;
            }
            assert!(Instant::now() < end, "they do not become the same: {seen:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let states: Vec<_> = self.nodes.values().map(|node| node.replica.state()).collect();
        for state in &states {
            assert_eq!(*state, states[0]);
            state.check_invariants().unwrap();
        }
    }
}

async fn wait(replica: &Replica, until: impl FnMut(&Metrics) -> bool) {
    let mut metrics = replica.metrics();
    let met = tokio::time::timeout(LONG, metrics.wait_for(until)).await;
    let met = met.map(|met| met.map(drop));
    assert!(matches!(met, Ok(Ok(()))), "it does not come about: {:?}", replica.metrics().borrow());
}

async fn propose(replica: &Replica, n: u64) -> Result<Applied, ProposeError> {
    replica.propose(token(n), LONG).await
}
