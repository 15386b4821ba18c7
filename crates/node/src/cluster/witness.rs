//! The witness as this node uses it: found in the state, tried out, then put among the peers.
//!
//! ```text
//!   state: witness --> open --> probe --> WitnessTransport::set --> check, again and again
//!                        \         \
//!                         +---------+--> what is wrong, in words, for `cluster status`
//! ```
//!
//! Each node tries the store out for itself before it asks it for the first time, and at each start:
//! only this node sees whether *its* mount of the share, *its* way to the bucket keeps its word. A
//! witness that is being removed is used until the leader has taken it out of the voters.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use api::witness::WitnessPlaceView;
use api::witness::WitnessView;
use cluster::raft::RaftTransport;
use cluster::raft::Replica;
use cluster::witness::Block;
use cluster::witness::Client;
use cluster::witness::Directory;
use cluster::witness::HOLD_LEASE;
use cluster::witness::Health;
use cluster::witness::Object;
use cluster::witness::Remote;
use cluster::witness::Terms;
use cluster::witness::WitnessStore;
use cluster::witness::WitnessToken;
use cluster::witness::WitnessTransport;
use cluster::witness::probe::Unfit;
use cluster::witness::probe::probe;
use model::ClusterId;
use model::ClusterState;
use model::NodeId;
use model::WITNESS_SLOTS_MAX;
use model::WitnessPlace;
use model::WitnessRecord;
use tokio::sync::watch;

use crate::app::App;

/// How often it is looked whether the witness is there. It is one small read.
const CHECK_EVERY: Duration = Duration::from_secs(2);

/// Between two attempts to try out a witness that cannot be reached.
const AGAIN: Duration = Duration::from_secs(5);

/// How old an answer may be: some checks, and the longest that a store may take.
const FRESH: Duration = Duration::from_secs(15);

/// How this node finds the witness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Condition {
    /// It has not been asked yet.
    Unknown,
    /// It answers.
    Good,
    /// It does not answer, and why.
    Away(String),
    /// It is not to be trusted, and why: it must be removed and set anew.
    Refused(String),
}

/// This node's hand on the witness. Clones share it.
#[derive(Clone)]
pub(crate) struct Witness(Arc<Inner>);

/// Opens the store of a witness's record, for a node.
pub type Opener = Arc<
    dyn Fn(&WitnessPlace, NodeId, NodeId) -> Result<Arc<dyn WitnessStore>, String> + Send + Sync,
>;

struct Inner {
    me: NodeId,
    transport: Arc<WitnessTransport>,
    /// What was seen of the record last is kept here; a simulated node keeps nothing.
    memory: Option<PathBuf>,
    open: Opener,
    /// Why the witness of that id is not used here.
    unused: Mutex<Option<(NodeId, Condition)>>,
}

/// What the record of a witness is called in its store.
pub(crate) fn record_name(id: NodeId) -> String {
    format!("witness-{id}")
}

/// The store of a record, for node `me`. `id` is that of the witness: each has a record of its own.
///
/// # Errors
/// In words, with a next step.
pub(crate) fn open(
    place: &WitnessPlace,
    id: NodeId,
    me: NodeId,
) -> Result<Arc<dyn WitnessStore>, String> {
    let name = record_name(id);
    match place {
        WitnessPlace::Block { path, slots } => match slots.get(&me) {
            Some(slot) => Ok(Arc::new(Block::new(path, &name, *slot))),
            None => Err(format!(
                "this node has no place on {path}: all {WITNESS_SLOTS_MAX} are given out"
            )),
        },
        WitnessPlace::Directory { path } => Ok(Arc::new(Directory::new(path, &name))),
        WitnessPlace::Object { url, options, secrets } => {
            let mut all = options.clone();
            let hidden = secrets.iter().map(|(name, value)| (name, value.reveal().to_owned()));
            all.extend(hidden.map(|(name, value)| (name.clone(), value)));
            let object = Object::new(url, &all, &name).map_err(|error| error.to_string())?;
            Ok(Arc::new(object))
        }
        WitnessPlace::Remote { address, token } => {
            let token: WitnessToken = token
                .reveal()
                .parse()
                .map_err(|error: cluster::witness::BadToken| error.to_string())?;
            let remote = Remote::new(token.at(*address), &name);
            Ok(Arc::new(remote.map_err(|error| error.to_string())?))
        }
    }
}

impl Witness {
    /// Puts a witness, none yet, between the log and its way to the peers.
    pub(crate) fn new(
        me: NodeId,
        inner: Arc<dyn RaftTransport>,
        heartbeat: Duration,
        memory: PathBuf,
    ) -> Self {
        Self::with_stores(me, inner, heartbeat, (Some(memory), Arc::new(open)))
    }

    /// The same with other stores than those of the places.
    pub(crate) fn with_stores(
        me: NodeId,
        inner: Arc<dyn RaftTransport>,
        heartbeat: Duration,
        (memory, open): (Option<PathBuf>, Opener),
    ) -> Self {
        let transport = WitnessTransport::new(me, inner, heartbeat);
        Self(Arc::new(Inner { me, transport, memory, open, unused: Mutex::default() }))
    }

    /// The way to the peers, for the log.
    pub(crate) fn transport(&self) -> Arc<dyn RaftTransport> {
        self.0.transport.clone()
    }

    /// Tells it of the log that it serves.
    pub(crate) fn attach(&self, replica: &Replica) {
        self.0.transport.attach(replica);
    }

    fn unused(&self) -> MutexGuard<'_, Option<(NodeId, Condition)>> {
        // Plain data, changed in single steps.
        self.0.unused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How this node finds that witness.
    pub(crate) fn condition(&self, id: NodeId) -> Condition {
        if let Some(client) = self.0.transport.witness().filter(|client| client.id() == id) {
            return match client.health().borrow().clone() {
                Health::Unknown => Condition::Unknown,
                Health::Good { at } if at.elapsed() < FRESH => Condition::Good,
                Health::Good { .. } => Condition::Away("it has not answered for long".to_owned()),
                Health::Away { why, .. } => Condition::Away(why),
                Health::Wrong(wrong) => Condition::Refused(wrong.to_string()),
            };
        }
        let unused = self.unused().clone().filter(|(of, _)| *of == id);
        unused.map_or(Condition::Unknown, |(_, why)| why)
    }

    /// Follows the state and looks whether the witness is there, until the daemon ends.
    pub(crate) async fn follow(self, mut states: watch::Receiver<Arc<ClusterState>>) {
        loop {
            let state = states.borrow_and_update().clone();
            let wanted = state.cluster.as_ref().zip(state.witness.as_ref());
            let pause = match wanted {
                None => {
                    self.0.transport.set(None);
                    *self.unused() = None;
                    None
                }
                Some((cluster, record)) => Some(self.tend(cluster.id, record).await),
            };
            let now = state.witness.as_ref().map(|record| record.id);
            // Other changes of the state are many, and no reason to ask the witness.
            let other = states.wait_for(|state| state.witness.as_ref().map(|it| it.id) != now);
            let ended = match pause {
                None => other.await.is_err(),
                Some(pause) => matches!(tokio::time::timeout(pause, other).await, Ok(Err(_))),
            };
            if ended {
                return;
            }
        }
    }

    /// Uses this witness, or looks how it is; when to look again.
    async fn tend(&self, cluster: ClusterId, record: &WitnessRecord) -> Duration {
        let used = self.0.transport.witness().filter(|client| client.id() == record.id);
        if let Some(client) = used {
            // What it says stands in its health.
            let _ = client.check().await;
            return CHECK_EVERY;
        }
        self.0.transport.set(None);
        let refused =
            |of: &(NodeId, Condition)| of.0 == record.id && matches!(of.1, Condition::Refused(_));
        if self.unused().as_ref().is_some_and(refused) {
            // A store that broke its word once is not asked until it happens to keep it.
            return AGAIN;
        }
        match self.take(cluster, record).await {
            Ok(()) => {
                *self.unused() = None;
                tracing::info!(witness = %record.id, "the witness is used from now on");
                CHECK_EVERY
            }
            Err(why) => {
                tracing::warn!(witness = %record.id, ?why, "the witness cannot be used");
                *self.unused() = Some((record.id, why));
                AGAIN
            }
        }
    }

    async fn take(&self, cluster: ClusterId, record: &WitnessRecord) -> Result<(), Condition> {
        let open = &self.0.open;
        let store = open(&record.place, record.id, self.0.me).map_err(Condition::Refused)?;
        match probe(&*store).await {
            Ok(()) => {}
            Err(unfit @ Unfit::BreaksItsWord { .. }) => {
                return Err(Condition::Refused(unfit.to_string()));
            }
            Err(unfit @ Unfit::Failed { .. }) => return Err(Condition::Away(unfit.to_string())),
        }
        let terms = Terms {
            cluster,
            witness: record.id,
            me: self.0.me,
            lease: HOLD_LEASE,
            memory: self.0.memory.clone(),
        };
        let client = Client::new(store, terms);
        let _ = client.check().await;
        self.0.transport.set(Some(client));
        Ok(())
    }
}

/// The witness for people, as this node finds it.
pub(crate) fn view(
    app: &App,
    state: &ClusterState,
    voters: &BTreeSet<NodeId>,
) -> Option<WitnessView> {
    let record = state.witness.as_ref()?;
    let condition = app.witness.condition(record.id);
    let problem = match &condition {
        Condition::Good => None,
        Condition::Unknown => Some("it has not been asked yet".to_owned()),
        Condition::Away(why) => Some(why.clone()),
        Condition::Refused(why) => Some(format!(
            "{why}; remove it and set it anew: muster cluster witness remove, then set"
        )),
    };
    let place = match &record.place {
        WitnessPlace::Directory { path } => WitnessPlaceView::Directory { path: path.clone() },
        WitnessPlace::Block { path, .. } => WitnessPlaceView::Block { path: path.clone() },
        WitnessPlace::Object { url, options, secrets } => WitnessPlaceView::Object {
            url: url.clone(),
            options: options.clone(),
            secrets: secrets.keys().cloned().collect(),
        },
        WitnessPlace::Remote { address, .. } => {
            WitnessPlaceView::Remote { address: address.to_string() }
        }
    };
    Some(WitnessView {
        id: record.id,
        place,
        since: record.since,
        by: record.by.clone(),
        votes: voters.contains(&record.id),
        retired: record.retired,
        reachable: condition == Condition::Good,
        problem,
    })
}
