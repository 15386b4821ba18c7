//! The witness: a record in a store in memory (`cluster::witness::memory`), which each host reaches by
//! a way of its own. What stands between is time, and the planted fault.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cluster::witness::StoreError;
use cluster::witness::Tag;
use cluster::witness::WitnessStore;
use cluster::witness::Written;
use cluster::witness::memory::Fault;
use cluster::witness::memory::MemoryStore;
use model::NodeId;
use node::simulation::WitnessOpener;
use uuid::Uuid;

use crate::ground::Ground;
use crate::host::index_of;
use crate::plant::Plant;

/// The witness's id among the members.
pub(crate) const WITNESS: NodeId = NodeId::new(Uuid::from_u128(900));

/// How long an answer takes at most, in milliseconds.
const ANSWER_MAX: u64 = 40;

/// The witness, and the ways to it.
pub(crate) struct Vault {
    ground: Arc<Ground>,
    store: MemoryStore,
    ways: Vec<MemoryStore>,
}

impl Vault {
    pub(crate) fn new(ground: &Arc<Ground>, hosts: usize) -> Self {
        let store = MemoryStore::new();
        let ways = (0..hosts).map(|_| store.way()).collect();
        Self { ground: ground.clone(), store, ways }
    }

    /// How a host reaches it.
    pub(crate) fn way(&self, host: usize) -> Arc<dyn WitnessStore> {
        let way = Arc::new(self.ways[host].clone());
        let careless = self.ground.has(Plant::CarelessWitness);
        Arc::new(Hand { ground: self.ground.clone(), way, careless })
    }

    /// The same for the daemons.
    pub(crate) fn opener(self: &Arc<Self>) -> WitnessOpener {
        let vault = self.clone();
        Arc::new(move |_, _, me| Ok(vault.way(index_of(me))))
    }

    /// It answers nobody, or everybody again.
    pub(crate) fn down(&self, down: bool) {
        self.store.down(down);
    }

    /// One host does not reach it, or does again.
    pub(crate) fn cut(&self, host: usize, cut: bool) {
        self.ways[host].cut(cut);
    }

    /// What becomes of the next requests, whoever asks.
    pub(crate) fn plan(&self, faults: impl IntoIterator<Item = Fault>) {
        self.store.plan(faults);
    }

    /// The records after the first `count`, oldest first.
    pub(crate) fn since(&self, count: usize) -> Vec<Vec<u8>> {
        self.store.history_after(count)
    }
}

/// A way to the record.
struct Hand {
    ground: Arc<Ground>,
    way: Arc<dyn WitnessStore>,
    /// A planted fault: it takes the condition of a write for fulfilled. A probe finds that, so the
    /// records of probes are kept as they should be.
    careless: bool,
}

impl std::fmt::Debug for Hand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hand")
    }
}

impl Hand {
    async fn wait(&self) {
        let time = self.ground.between(1, ANSWER_MAX);
        tokio::time::sleep(Duration::from_millis(time)).await;
    }
}

#[async_trait]
impl WitnessStore for Hand {
    async fn read(&self) -> Result<Option<(Vec<u8>, Tag)>, StoreError> {
        self.wait().await;
        self.way.read().await
    }

    async fn write_if(
        &self,
        expected: Option<&Tag>,
        bytes: Vec<u8>,
    ) -> Result<Written, StoreError> {
        self.wait().await;
        let there = match self.careless {
            true => self.way.read().await?.map(|(_, tag)| tag),
            false => None,
        };
        self.way.write_if(there.as_ref().or(expected), bytes).await
    }

    async fn remove(&self) -> Result<(), StoreError> {
        self.way.remove().await
    }

    fn beside(&self, name: &str) -> Arc<dyn WitnessStore> {
        let (ground, way) = (self.ground.clone(), self.way.beside(name));
        Arc::new(Self { ground, way, careless: false })
    }

    fn reads_are_fresh(&self) -> bool {
        true
    }

    fn place(&self) -> String {
        "simulated".to_owned()
    }
}
