//! A log on this host alone: one thread owns the state and the file.
//!
//! Proposals that come while an fsync is under way are carried out together in the next one, so
//! many clients cost few fsyncs. A reader sees a change only after it is durable. Snapshots are
//! written by a thread of their own, from a copy of the state that costs nothing to make.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use async_trait::async_trait;
use model::Applied;
use model::ClusterState;
use model::Proposal;
use model::Refused;
use tokio::sync::broadcast;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::sync::watch;

use super::ProposeError;
use super::Store;
use super::StoreError;
use super::StoredEvent;
use super::Truth;

/// Proposals that wait. Beyond that a caller is told to come back: the disk is far behind.
const QUEUE_MAX: usize = 1_024;

/// Proposals in one fsync: keeps the wait of the first one short.
const BATCH_MAX: usize = 128;

/// Entries after which a snapshot is stored: replaying them takes well under a second.
const SNAPSHOT_EVERY: u64 = 2_000;

type Reply = oneshot::Sender<Result<Applied, Refused>>;

/// A state that one host keeps by itself.
pub struct LocalTruth {
    proposals: mpsc::Sender<(Proposal, Reply)>,
    state: watch::Receiver<Arc<ClusterState>>,
    store: Arc<Store>,
}

struct Owner {
    store: Arc<Store>,
    state: Arc<ClusterState>,
    index: u64,
    entries: u64,
    event_seq: u64,
    published: watch::Sender<Arc<ClusterState>>,
    events: broadcast::Sender<StoredEvent>,
    /// The snapshot that is being written.
    snapshot: Option<JoinHandle<()>>,
}

impl LocalTruth {
    /// Opens the state in `path` and starts its thread. Events go to `events` when they are
    /// durable.
    ///
    /// # Errors
    /// [`StoreError`]: the state cannot be read, and nothing was started.
    pub fn open(path: &Path, events: broadcast::Sender<StoredEvent>) -> Result<Self, StoreError> {
        let (store, loaded) = Store::open(path)?;
        let store = Arc::new(store);
        let state = Arc::new(loaded.state);
        let (published, state_out) = watch::channel(state.clone());
        let (proposals, inbox) = mpsc::channel(QUEUE_MAX);
        let owner = Owner {
            store: store.clone(),
            state,
            index: loaded.index,
            entries: loaded.entries,
            event_seq: loaded.event_seq,
            published,
            events,
            snapshot: None,
        };
        std::thread::Builder::new()
            .name("truth".to_owned())
            .spawn(move || owner.run(inbox))
            .expect("the first thread of a process can be started");
        Ok(Self { proposals, state: state_out, store })
    }

    /// The file, for reading events.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }
}

#[async_trait]
impl Truth for LocalTruth {
    async fn propose(&self, proposal: Proposal) -> Result<Applied, ProposeError> {
        let (reply, answer) = oneshot::channel();
        self.proposals.try_send((proposal, reply)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ProposeError::Unavailable("the disk is behind"),
            mpsc::error::TrySendError::Closed(_) => ProposeError::Unavailable("it is stopping"),
        })?;
        match answer.await {
            Ok(result) => Ok(result?),
            Err(_) => Err(ProposeError::Unavailable("it is stopping")),
        }
    }

    fn state(&self) -> Arc<ClusterState> {
        self.state.borrow().clone()
    }

    fn watch(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.state.clone()
    }
}

impl Owner {
    fn run(mut self, mut inbox: mpsc::Receiver<(Proposal, Reply)>) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        while let Some(first) = inbox.blocking_recv() {
            batch.push(first);
            while batch.len() < BATCH_MAX
                && let Ok(next) = inbox.try_recv()
            {
                batch.push(next);
            }
            self.carry_out(std::mem::take(&mut batch));
        }
    }

    fn carry_out(&mut self, batch: Vec<(Proposal, Reply)>) {
        let mut accepted = Vec::new();
        let mut answers = Vec::new();
        let mut events = Vec::new();
        let state = Arc::make_mut(&mut self.state);
        for (proposal, reply) in batch {
            match state.apply(&proposal) {
                Ok(applied) => {
                    for event in &applied.events {
                        self.event_seq += 1;
                        events.push(StoredEvent { seq: self.event_seq, event: event.clone() });
                    }
                    accepted.push(proposal);
                    answers.push((reply, Ok(applied)));
                }
                Err(refused) => answers.push((reply, Err(refused))),
            }
        }
        if !accepted.is_empty() {
            let written = self.store.append(self.index + 1, &accepted, &events);
            or_die(written, "an entry of the log");
            self.index += accepted.len() as u64;
            self.entries += accepted.len() as u64;
            self.published.send_replace(self.state.clone());
        }
        for event in events {
            // Nobody listening is fine: events are read from the file, too.
            let _ = self.events.send(event);
        }
        for (reply, answer) in answers {
            // A caller that has gone does not need its answer; the change stands.
            let _ = reply.send(answer);
        }
        let writing = self.snapshot.as_ref().is_some_and(|thread| !thread.is_finished());
        if self.entries >= SNAPSHOT_EVERY && !writing {
            self.begin_snapshot();
        }
    }

    fn begin_snapshot(&mut self) {
        let (store, state, index) = (self.store.clone(), self.state.clone(), self.index);
        let write = move || or_die(store.snapshot(&state, index), "a snapshot");
        match std::thread::Builder::new().name("snapshot".to_owned()).spawn(write) {
            Ok(thread) => {
                self.snapshot = Some(thread);
                self.entries = 0;
            }
            // The log only grows longer. It is tried again with the next change.
            Err(error) => tracing::warn!(%error, "a snapshot could not be begun"),
        }
    }
}

/// Ends the process when a write or fsync failed: the memory then holds what the disk may not, and
/// asking the disk again proves nothing (RELIABILITY.md section 2, point 3).
fn or_die(result: Result<(), redb::Error>, what: &str) {
    if let Err(error) = result {
        tracing::error!(%error, what, "the disk did not take it; the daemon ends");
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use model::Actor;
    use model::Command;
    use model::NodeId;
    use model::UnixMillis;
    use redb::ReadableTable;

    use super::*;

    fn started(n: u64) -> Proposal {
        Proposal {
            at: UnixMillis::new(n),
            actor: Actor::new("test"),
            command: Command::NodeStarted {
                node: NodeId::new(uuid::Uuid::from_u128(1)),
                name: "h1".parse().unwrap(),
                capacity: model::NodeCapacity::default(),
            },
        }
    }

    fn open(dir: &Path) -> Result<LocalTruth, StoreError> {
        LocalTruth::open(&dir.join("state.redb"), broadcast::channel(16).0)
    }

    /// Waits until the owner's thread, and one that writes a snapshot, have let the file go.
    async fn reopen(dir: &Path) -> LocalTruth {
        let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while std::time::Instant::now() < until {
            match open(dir) {
                Ok(truth) => return truth,
                Err(StoreError::Database { .. }) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
            std::thread::yield_now();
        }
        panic!("the file stays locked");
    }

    #[tokio::test]
    async fn what_was_acknowledged_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let truth = open(dir.path()).unwrap();
        for n in 1..=SNAPSHOT_EVERY + 10 {
            truth.propose(started(n)).await.unwrap();
        }
        let state = truth.state();
        drop(truth);
        let truth = reopen(dir.path()).await;
        assert_eq!(truth.state(), state);
        let events = truth.store().last_events(3).unwrap();
        assert_eq!(events.last().unwrap().seq, SNAPSHOT_EVERY + 10);
        assert_eq!(events.len(), 3);
        assert_eq!(truth.store().events_after(SNAPSHOT_EVERY + 8, 100).unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_refused_command_is_not_logged() {
        let dir = tempfile::tempdir().unwrap();
        let truth = open(dir.path()).unwrap();
        let mut proposal = started(1);
        proposal.command = Command::CancelOp { op: model::OpId::new(uuid::Uuid::from_u128(9)) };
        assert!(matches!(truth.propose(proposal).await, Err(ProposeError::Refused(_))));
        drop(truth);
        let truth = reopen(dir.path()).await;
        assert_eq!(*truth.state(), ClusterState::default());
    }

    #[tokio::test]
    async fn a_damaged_record_is_named_and_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        {
            let (store, loaded) = Store::open(&path).unwrap();
            store.append(loaded.index + 1, &[started(1)], &[]).unwrap();
            let write = store.database_for_tests().begin_write().unwrap();
            {
                let mut log =
                    write.open_table(redb::TableDefinition::<u64, &[u8]>::new("log")).unwrap();
                let mut bytes = log.get(1).unwrap().unwrap().value().to_vec();
                let last = bytes.len() - 10;
                bytes[last] ^= 1;
                log.insert(1, bytes.as_slice()).unwrap();
            }
            write.commit().unwrap();
        }
        let error = Store::open(&path).unwrap_err().to_string();
        assert!(error.contains("log/1") && error.contains("checksum"), "{error}");
    }
}
