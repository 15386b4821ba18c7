//! openraft's own tests of a log and a state machine, on ours.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use model::NodeId;
use openraft::StorageError;
use openraft::testing::log::StoreBuilder;
use openraft::testing::log::Suite;
use tempfile::TempDir;
use tokio::sync::broadcast;
use tokio::sync::watch;

use super::applier::Machine;
use super::applier::Outlet;
use super::format::MembersAt;
use super::store::Store;
use super::types::RaftId;
use super::types::Types;

struct Builder;

impl StoreBuilder<Types, Store, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, Store, Machine), StorageError<Types>> {
        let dir = tempfile::tempdir().unwrap();
        let node: NodeId = RaftId::from(0).0;
        let (store, loaded) = Store::open(&dir.path().join("state.redb"), node).unwrap();
        let outlet = Arc::new(Outlet {
            node,
            boot: loaded.boot,
            state: watch::Sender::default(),
            events: broadcast::channel(16).0,
            applied: watch::Sender::new(0),
            members: watch::Sender::new(MembersAt::default()),
            was_member: AtomicBool::new(false),
            waiting: Mutex::new(HashMap::new()),
        });
        let machine =
            Machine::new(store.clone(), outlet, loaded.snapshot, loaded.last_event).unwrap();
        Ok((dir, store, machine))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_passes_the_suite_of_openraft() {
    Suite::test_all(Builder).await.unwrap();
}
