//! A node's hand on the witness: reads the record, applies the rules, writes it back on condition.
//!
//! ```text
//!   ask --> read --> ours? not rolled back? --> held by another? --> answer()
//!            ^                                                          |
//!            |                           promises nothing new: reply  <-+-> new counter, nonce
//!            |                           (a read is enough if it is fresh)      |
//!            +-- another one was quicker, or no answer: look for our nonce  <-- write_if
//! ```
//!
//! Only a stored record counts as an answer. A write whose answer was lost is neither: the record is
//! read again, and if it has our nonce, it was done. Otherwise the request is worked out anew on
//! what is there now; a follower's rules allow any request to come twice, and a write that arrives
//! late fails on its condition.
//!
//! **Held.** Two nodes that both reach the witness, and not each other, must not unseat each other
//! in turns. A leader that needs the witness marks the record as held and renews it three times in
//! a lease. A candidate waits until a held record of another has stood unchanged for a whole lease,
//! by its own clock, from when it first saw it. This is for calm, not for safety: safety comes from
//! the votes alone.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use model::ClusterId;
use model::NodeId;
use serde::Deserialize;
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use super::record::Record;
use super::record::RecordError;
use super::record::Reply;
use super::record::Request;
use super::record::answer;
use super::store::StoreError;
use super::store::Tag;
use super::store::WitnessStore;
use super::store::Written;

/// How long one operation of a store may take, far more than any takes that works.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);

/// Times that a request is worked out anew because another node was quicker.
const ROUNDS_MAX: usize = 32;

/// Between two of them.
const ROUND_PAUSE: Duration = Duration::from_millis(5);

/// What is wrong with a witness, for good: it must be set anew.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// There is no record.
    #[error("its record is gone from the {place}")]
    Absent {
        /// Where it should be.
        place: String,
    },
    /// The record is of another cluster.
    #[error("the record in the {place} is of another cluster ({cluster})")]
    OtherCluster {
        /// Where it is.
        place: String,
        /// Whose it is.
        cluster: ClusterId,
    },
    /// The record is of a witness that was set before or after.
    #[error("the record in the {place} is of another witness of this cluster ({witness})")]
    OtherWitness {
        /// Where it is.
        place: String,
        /// Whose it is.
        witness: NodeId,
    },
    /// The record is older than one that was seen, or another one with the same number.
    #[error(
        "the record in the {place} was put back to an older one (number {now}, {seen} was seen)"
    )]
    RolledBack {
        /// Where it is.
        place: String,
        /// The number it has now.
        now: u64,
        /// The highest that was seen.
        seen: u64,
    },
    /// The record is damaged or of a later version.
    #[error("the record in the {place} cannot be used: {problem}")]
    Record {
        /// Where it is.
        place: String,
        /// Why.
        problem: RecordError,
    },
}

/// Why the witness gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// It may not be trusted any more.
    #[error("the witness is refused: {0}; set it anew with `muster cluster witness set`")]
    Wrong(#[from] Wrong),
    /// Another node leads by it, or did a moment ago.
    #[error("the witness is held by another node for {wait:?} more")]
    Held {
        /// How long it must stand unchanged from now on.
        wait: Duration,
    },
    /// It was not reached.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Others were quicker each time, or time ran out.
    #[error("the witness is too busy")]
    Busy,
    /// The request is none.
    #[error("no request for a witness: {0}")]
    Bad(&'static str),
}

/// How the witness is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Not asked yet.
    Unknown,
    /// It answered, at that time.
    Good {
        /// When.
        at: Instant,
    },
    /// It did not answer the last time.
    Away {
        /// Since when.
        since: Instant,
        /// Why.
        why: String,
    },
    /// It answered wrong and is refused for good.
    Wrong(Wrong),
}

/// A question to the witness.
#[derive(Debug, Clone)]
pub struct Ask {
    /// It.
    pub request: Request,
    /// Whether the asker's leadership hangs on the witness.
    pub hold: bool,
    /// Entries below this number may be forgotten when they are committed.
    pub floor: u64,
    /// After this nobody waits for the answer.
    pub until: Instant,
}

/// How a witness is used.
#[derive(Debug, Clone)]
pub struct Terms {
    /// The cluster.
    pub cluster: ClusterId,
    /// The witness's id among the members.
    pub witness: NodeId,
    /// This node.
    pub me: NodeId,
    /// How long a held record must stand unchanged before another node campaigns.
    pub lease: Duration,
    /// A file of this node where it keeps which record it saw last, so that one that was put back
    /// is found after a restart, too.
    pub memory: Option<PathBuf>,
}

/// The last record that was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    witness: NodeId,
    counter: u64,
    nonce: Uuid,
}

#[derive(Debug)]
struct Known {
    mark: Option<Mark>,
    /// Since when the record is known to be as it is.
    since: Instant,
    /// When this node wrote it last.
    wrote: Option<Instant>,
    /// A record that was put back: from then on no number means anything.
    lost: Option<Wrong>,
}

/// A node's hand on the witness. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: Arc<dyn WitnessStore>,
    terms: Terms,
    known: Mutex<Known>,
    health: watch::Sender<Health>,
}

/// Makes the record of a new witness.
///
/// # Errors
/// The store, or that there is a record already: it may be another cluster's.
pub async fn create(
    store: &dyn WitnessStore,
    cluster: ClusterId,
    witness: NodeId,
) -> Result<(), AskError> {
    let record = Record::new(cluster, witness, Uuid::new_v4());
    let bytes = record.write().map_err(|problem| wrong_record(store, problem))?;
    let written = timed(store.write_if(None, bytes)).await;
    match written {
        Ok(Written::Yes(_)) => return Ok(()),
        Ok(Written::No) | Err(StoreError::Unknown(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let Some((bytes, _)) = timed(store.read()).await? else {
        return Err(StoreError::Unknown("the record is not there yet; try again".to_owned()).into());
    };
    let there = Record::read(&bytes).map_err(|problem| wrong_record(store, problem))?;
    if there == record {
        return Ok(());
    }
    let place = store.place();
    Err(if there.cluster == cluster {
        Wrong::OtherWitness { place, witness: there.witness }.into()
    } else {
        Wrong::OtherCluster { place, cluster: there.cluster }.into()
    })
}

fn wrong_record(store: &dyn WitnessStore, problem: RecordError) -> Wrong {
    Wrong::Record { place: store.place(), problem }
}

async fn timed<T>(
    work: impl Future<Output = Result<T, StoreError>> + Send,
) -> Result<T, StoreError> {
    let late = || StoreError::Unknown(format!("no answer within {STORE_TIMEOUT:?}"));
    tokio::time::timeout(STORE_TIMEOUT, work).await.unwrap_or_else(|_| Err(late()))
}

impl Client {
    /// A hand on the record in `store`.
    pub fn new(store: Arc<dyn WitnessStore>, terms: Terms) -> Self {
        let mark = terms.memory.as_ref().and_then(|path| {
            let mark: Mark = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
            (mark.witness == terms.witness).then_some(mark)
        });
        let known = Known { mark, since: Instant::now(), wrote: None, lost: None };
        let shared = Shared {
            store,
            terms,
            known: Mutex::new(known),
            health: watch::Sender::new(Health::Unknown),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Its id among the members.
    pub fn id(&self) -> NodeId {
        self.shared.terms.witness
    }

    /// Where it is.
    pub fn place(&self) -> String {
        self.shared.store.place()
    }

    /// How it is, as of the last time that it was asked.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.shared.health.subscribe()
    }

    /// Looks whether it is there, and says so in [`Client::health`], too.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn check(&self) -> Result<Record, AskError> {
        let mut known = self.shared.known.lock().await;
        let looked = self.shared.look(&mut known).await.map(|(record, _)| record);
        self.shared.note(&looked);
        looked
    }

    /// Asks the witness. What was begun is brought to an end even if the caller goes away.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn ask(&self, ask: Ask) -> Result<(Reply, Record), AskError> {
        let shared = self.shared.clone();
        let work = tokio::spawn(async move {
            let mut known = shared.known.lock().await;
            let answer = shared.work_out(&mut known, &ask).await;
            shared.note(&answer);
            answer
        });
        work.await.unwrap_or(Err(AskError::Busy))
    }

    /// Lets the witness stand for election in that term, so that its log gets to a node that lacks
    /// it. The record afterwards.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn stand(&self, term: u64, until: Instant) -> Result<Record, AskError> {
        let ballot = crate::raft::Ballot { term, node: self.id(), committed: false };
        let mut known = self.shared.known.lock().await;
        let (record, _) = self.shared.look(&mut known).await?;
        drop(known);
        let request = Request::Vote(crate::raft::wire::VoteRequest {
            ballot,
            last: record.last(),
            transfer: false,
            pre_vote: false,
        });
        let (reply, record) = self.ask(Ask { request, hold: true, floor: 0, until }).await?;
        match reply {
            Reply::Vote(vote) if vote.granted => Ok(record),
            _ => Err(AskError::Busy),
        }
    }
}

impl Shared {
    fn note<T>(&self, outcome: &Result<T, AskError>) {
        self.health.send_modify(|health| match outcome {
            Ok(_) | Err(AskError::Held { .. }) => *health = Health::Good { at: Instant::now() },
            Err(AskError::Wrong(wrong)) => *health = Health::Wrong(wrong.clone()),
            Err(AskError::Busy | AskError::Bad(_)) => {}
            Err(AskError::Store(error)) => {
                let since = match health {
                    Health::Away { since, .. } => *since,
                    _ => Instant::now(),
                };
                *health = Health::Away { since, why: error.to_string() };
            }
        });
    }

    /// The record, if it is the one that is expected.
    async fn look(&self, known: &mut Known) -> Result<(Record, Tag), AskError> {
        let Terms { cluster, witness, .. } = self.terms;
        if let Some(wrong) = &known.lost {
            return Err(wrong.clone().into());
        }
        let Some((bytes, tag)) = timed(self.store.read()).await? else {
            return Err(Wrong::Absent { place: self.store.place() }.into());
        };
        let record = Record::read(&bytes).map_err(|problem| wrong_record(&*self.store, problem))?;
        let place = || self.store.place();
        if record.cluster != cluster {
            let cluster = record.cluster;
            return Err(Wrong::OtherCluster { place: place(), cluster }.into());
        }
        if record.witness != witness {
            let witness = record.witness;
            return Err(Wrong::OtherWitness { place: place(), witness }.into());
        }
        let mark = Mark { witness, counter: record.counter, nonce: record.nonce };
        match known.mark {
            Some(seen) if seen == mark => {}
            Some(seen) if seen.counter >= mark.counter => {
                let (now, seen) = (mark.counter, seen.counter);
                let wrong = Wrong::RolledBack { place: place(), now, seen };
                known.lost = Some(wrong.clone());
                return Err(wrong.into());
            }
            _ => {
                known.mark = Some(mark);
                known.since = Instant::now();
            }
        }
        Ok((record, tag))
    }

    /// Whether the asker must wait for whoever holds the record.
    fn must_wait(&self, known: &Known, record: &Record, request: &Request) -> Option<Duration> {
        let Request::Vote(vote) = request else { return None };
        if !record.held || record.writer == Some(self.terms.me) || vote.transfer {
            return None;
        }
        let wait = self.terms.lease.saturating_sub(known.since.elapsed());
        (!wait.is_zero()).then_some(wait)
    }

    async fn work_out(&self, known: &mut Known, ask: &Ask) -> Result<(Reply, Record), AskError> {
        for _ in 0..ROUNDS_MAX {
            if Instant::now() >= ask.until {
                return Err(AskError::Busy);
            }
            let (record, tag) = self.look(known).await?;
            if let Some(wait) = self.must_wait(known, &record, &ask.request) {
                return Err(AskError::Held { wait });
            }
            let (mut next, reply) = answer(&record, &ask.request).map_err(AskError::Bad)?;
            if self.need_not_write(known, &record, &next, ask) {
                return Ok((reply, record));
            }
            next.held = ask.hold;
            next.trim(ask.floor);
            if self.store_next(known, &mut next, &tag).await? {
                return Ok((reply, next));
            }
            tokio::time::sleep(ROUND_PAUSE).await;
        }
        Err(AskError::Busy)
    }

    fn need_not_write(&self, known: &Known, record: &Record, next: &Record, ask: &Ask) -> bool {
        if !next.promises_as(record) {
            return false;
        }
        match &ask.request {
            // A refusal, or only a question.
            Request::Vote(vote) => vote.pre_vote || record.ballot != Some(vote.ballot),
            Request::Append(append) if record.ballot != Some(append.ballot) => true,
            _ => {
                let mine = record.writer == Some(self.terms.me) && record.held == ask.hold;
                let renew = self.terms.lease / 3;
                let lately = known.wrote.is_some_and(|wrote| wrote.elapsed() < renew);
                self.store.reads_are_fresh() && mine && (lately || !ask.hold)
            }
        }
    }

    /// Stores the record; whether it is there now. What it says then is durable.
    async fn store_next(
        &self,
        known: &mut Known,
        next: &mut Record,
        tag: &Tag,
    ) -> Result<bool, AskError> {
        next.counter += 1;
        next.nonce = Uuid::new_v4();
        next.writer = Some(self.terms.me);
        let bytes = next.write().map_err(|problem| wrong_record(&*self.store, problem))?;
        let began = Instant::now();
        match timed(self.store.write_if(Some(tag), bytes)).await {
            Ok(Written::Yes(_)) => {}
            Ok(Written::No) => return Ok(false),
            Err(StoreError::Unknown(_)) => {
                let (there, _) = self.look(known).await?;
                if there.nonce != next.nonce {
                    return Ok(false);
                }
            }
            Err(error) => return Err(error.into()),
        }
        let mark = Mark { witness: next.witness, counter: next.counter, nonce: next.nonce };
        known.mark = Some(mark);
        known.since = began;
        known.wrote = Some(began);
        self.remember(mark).await;
        Ok(true)
    }

    /// Keeps the mark across restarts. It only serves to find a record that was put back, so that
    /// failing is no reason to lose the witness.
    async fn remember(&self, mark: Mark) {
        let Some(path) = self.terms.memory.clone() else { return };
        let kept = tokio::task::spawn_blocking(move || keep(&path, mark)).await;
        if let Ok(Err(error)) = kept {
            tracing::warn!(%error, "what was last seen of the witness cannot be kept");
        }
    }
}

/// Replaces the file of the mark.
fn keep(path: &std::path::Path, mark: Mark) -> std::io::Result<()> {
    let draft = path.with_extension("new");
    std::fs::write(&draft, serde_json::to_vec(&mark)?)?;
    std::fs::rename(&draft, path)
}
