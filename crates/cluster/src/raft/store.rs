//! The state of a node on disk: vote, log, snapshot, and the events that followed.
//!
//! ```text
//!   state.redb
//!     meta      "format"    -> u32           version of this layout
//!               "identity"  -> record        whose store it is, and whether it waits for a join
//!               "boots"     -> u64           how often it was opened
//!               "commits"   -> u64           number of this commit, see the mark
//!               "vote"      -> record        Ballot
//!               "purged"    -> record        Position of the last entry that is gone from the log
//!               "committed" -> record        Position of an entry known to be committed
//!               "snapshot"  -> record        SnapshotHead and its slot
//!     log       index -> record              LogEntry
//!     pieces    slot << 32 | n -> record     the snapshot's content, PIECE_BYTES each
//!     events    seq -> record                the last EVENTS_KEPT
//!   state.mark                               see super::mark
//! ```
//!
//! | format | change |
//! | --- | --- |
//! | 1, 2 | a log of accepted commands, written by one host alone; never released, refused |
//! | 3 | the log of Raft |
//!
//! Records are described in [`super::format`]. One thread writes ([`super::writer`]); everything
//! else here reads. What has no answer to wait for (events, the committed position) is written with
//! the next commit: it follows from the log, and is made again from it if the process dies first.
//!
//! Opening reads and checks everything. What does not hold is named and the store refused: a node
//! with a damaged store must neither vote nor serve. It gets a new one from its peers
//! ([`Store::make_anew`]), or comes back under a new id.

use std::collections::VecDeque;
use std::ops::Bound;
use std::ops::RangeBounds;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::RwLock;

use model::NodeId;
use openraft::entry::RaftEntry;
use redb::Database;
use redb::ReadableDatabase;
use redb::TableDefinition;
use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::cache::LogCache;
use super::format::LogEntry;
use super::format::MachineImage;
use super::format::Position;
use super::format::RecordError;
use super::format::SnapshotHead;
use super::format::StoredEvent;
use super::format::decode;
use super::format::encode;
use super::format::unseal;
use super::mark;
use super::mark::Found;
use super::mark::Mark;
use super::mark::MarkValue;
use super::types::Entry;
use super::writer;
use super::writer::Job;
use crate::simulation::Disk;

pub(crate) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
pub(crate) const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
pub(crate) const PIECES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("pieces");
pub(crate) const EVENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("events");

/// Version of the layout drawn above.
pub(crate) const FORMAT: u32 = 3;

/// How many events are kept: some days of a busy node.
pub(crate) const EVENTS_KEPT: u64 = 100_000;

/// The largest answer to a question for events.
pub const EVENTS_AT_ONCE_MAX: usize = 1_000;

/// A piece of a snapshot: one transaction, so that the log never waits long behind one.
pub(crate) const PIECE_BYTES: usize = 1 << 20;

/// A log that was made anew counts its boots from the next multiple of this: they name its
/// proposals, and those of the log that was lost must not be taken for the same.
const BOOTS_OF_ONE_LOG: u64 = 1 << 32;

/// The largest snapshot that is read into memory: some ten times 8,000 VMs with all their records.
pub(crate) const SNAPSHOT_BYTES_MAX: u64 = 512 << 20;

/// Writes that wait. Beyond that whoever writes waits, too.
const JOBS_MAX: usize = 1_024;

/// Something with the bytes it belongs to, if there is any.
type WithBytes<T> = Option<(T, Arc<Vec<u8>>)>;

/// What is wrong with the stored state.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database itself cannot be opened or read.
    #[error(
        "the state in {path} cannot be read: {source}; end another daemon that may use it. If it \
         is damaged: a node of a cluster gets a new one from the others by itself, or is evicted, \
         its data directory moved away, and may join again; a host alone needs the file and \
         state.mark from a backup"
    )]
    Database {
        /// The file.
        path: PathBuf,
        /// What redb said.
        source: Box<redb::Error>,
    },
    /// A record is not what was written.
    #[error(
        "the state in {path} is damaged at {place}: {problem}; a node of a cluster gets a new one \
         from the others by itself, or is evicted, its data directory moved away, and may join \
         again; a host alone needs the file and state.mark from a backup, or begins with an empty state if state.redb, state.mark and node-id are moved \
         away (the VMs' own files are not touched)"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Table and key.
        place: String,
        /// What is wrong.
        problem: String,
    },
    /// A newer Muster wrote it.
    #[error("the state in {path} has format {found}; this version reads format {FORMAT}: upgrade")]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// A version before the first release wrote it.
    #[error(
        "the state in {path} has format {found}, of a version before the first release; move \
         {path} away to begin with an empty state (the VMs' own files are not touched: `muster vm \
         register DIR` takes each of them in again), or keep on with the version that wrote it"
    )]
    TooOld {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// It belongs to another node.
    #[error(
        "the state in {path} belongs to node {found}, and this is node {node}; put the right \
         node-id file back, or move both away to begin anew"
    )]
    OtherNode {
        /// The file.
        path: PathBuf,
        /// The node that the store names.
        found: NodeId,
        /// The node that opens it.
        node: NodeId,
    },
    /// It was closed.
    #[error("the state in {path} has been closed; the daemon is stopping")]
    Closed {
        /// The file.
        path: PathBuf,
    },
}

/// Whose store it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// This store; a new one each time a file is made.
    pub(crate) store: Uuid,
    /// Its node.
    pub(crate) node: NodeId,
    /// It was emptied for a join: it waits for a leader and never begins a cluster of its own.
    pub(crate) joining: bool,
}

/// Where the snapshot's pieces are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotPlace {
    pub(crate) slot: u32,
    pub(crate) head: SnapshotHead,
}

/// What follows from the log and is written with the next commit.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    pub(crate) events: VecDeque<StoredEvent>,
    pub(crate) committed: Option<Position>,
    pub(crate) committed_changed: bool,
}

/// What readers and the writer share.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) path: PathBuf,
    pub(crate) database: RwLock<Option<Database>>,
    pub(crate) mark: Mark,
    pub(crate) cache: Mutex<LogCache>,
    pub(crate) tail: Mutex<Tail>,
}

/// The open store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) files: Arc<Files>,
    pub(crate) jobs: mpsc::Sender<Job>,
    /// Snapshots are written one after another; this is the one in use.
    pub(crate) snapshot_turn: Arc<tokio::sync::Mutex<Option<SnapshotPlace>>>,
}

/// What a store held when it was opened.
#[derive(Debug)]
pub struct Loaded {
    pub(crate) identity: Identity,
    pub(crate) boot: u64,
    pub(crate) snapshot: Option<LoadedSnapshot>,
    pub(crate) last_event: u64,
    /// Whether it has never been part of any cluster.
    pub(crate) pristine: bool,
    /// Whether its replica shall not ask for votes until it is told to.
    pub(crate) quiet: bool,
}

impl Loaded {
    /// The same for a log that was made anew and has not come as far as the old one: its replica
    /// asks for no votes before [`super::Replica::may_lead`]. The memberships that it receives first
    /// are those of long ago, in which this node may have been a majority.
    #[must_use]
    pub fn quiet(self) -> Self {
        Self { quiet: true, ..self }
    }
}

#[derive(Debug)]
pub(crate) struct LoadedSnapshot {
    pub(crate) place: SnapshotPlace,
    pub(crate) head: SnapshotHead,
    pub(crate) image: MachineImage,
}

/// Locks plain data that is whole also if a holder panicked.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the process: when a write or fsync failed, since the memory then holds what the disk may not, and
/// asking the disk again proves nothing (RELIABILITY.md section 2, point 3); and when the log has ended.
pub(crate) fn die(error: &dyn std::fmt::Display, what: &str) -> ! {
    tracing::error!(%error, what, "the log cannot go on; the daemon ends");
    std::process::abort();
}

impl StoreError {
    /// What is damaged, if that is the matter: not if the file is another's, in use, or of another
    /// version.
    pub fn damage(&self) -> Option<String> {
        match self {
            Self::Damaged { place, problem, .. } => Some(format!("{place}: {problem}")),
            Self::Database { source, .. } => match &**source {
                redb::Error::Io(error) => unreadable(error).then(|| error.to_string()),
                redb::Error::Corrupted(_)
                | redb::Error::UpgradeRequired(_)
                | redb::Error::TableTypeMismatch { .. }
                | redb::Error::TableIsMultimap(_)
                | redb::Error::TableDoesNotExist(_)
                | redb::Error::TypeDefinitionChanged { .. } => Some(source.to_string()),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Whether the content, or the medium below it, is what is wrong.
fn unreadable(error: &std::io::Error) -> bool {
    const MEDIUM: i32 = 5; // EIO
    matches!(error.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof)
        || error.raw_os_error() == Some(MEDIUM)
}

impl Store {
    /// Makes the store of a node that has lost its log for the `count`th time (from 1). It waits for
    /// a leader to take it in, and no file of before may be there. The caller knows that a
    /// membership of the log without this node is committed: only then may a new log of it begin
    /// (docs/decisions/0023).
    ///
    /// # Errors
    /// [`StoreError`]; a file or mark is there, or the disk does not take it.
    pub fn make_anew(path: &Path, node: NodeId, count: u64) -> Result<(), StoreError> {
        for left in [path.to_owned(), path.with_extension("mark")] {
            if left.try_exists().unwrap_or(true) {
                let problem = format!("{} is still there", left.display());
                return Err(damaged(path, "the new file's place", &problem));
            }
        }
        make(path, First::anew(node, count)).map_err(|error| database_error(path, error))
    }

    /// Opens or makes the file of a node, and checks all of it.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was changed.
    pub fn open(path: &Path, node: NodeId) -> Result<(Self, Loaded), StoreError> {
        let mark_path = path.with_extension("mark");
        let found = mark::read(&mark_path).map_err(|error| database_error(path, error))?;
        if !path.try_exists().unwrap_or(true) {
            if let Found::Mark(MarkValue { commits: 1.., .. }) | Found::Damaged = found {
                return Err(damaged(path, "the file itself", "it is gone, but its mark is there"));
            }
            let first = First { node, joining: false, boots: 0 };
            make(path, first).map_err(|error| database_error(path, error))?;
        }
        // redb takes a file's word for much, and panics where that does not fit together.
        let opened = std::panic::catch_unwind(|| {
            let database = open_checked(path)?;
            check_format(path, &database)?;
            Ok(database)
        });
        match opened {
            Ok(database) => {
                let mark = |store, commits| {
                    check_mark(path, store, commits, found)?;
                    let value = MarkValue { store, commits };
                    Mark::open(&mark_path, value).map_err(|error| database_error(path, error))
                };
                Self::open_database(path, database?, node, mark, writer::spawn)
            }
            Err(_) => Err(damaged(path, "the database's own pages", "they contradict each other")),
        }
    }

    /// The same on a simulated disk, where the runtime of the host writes, not a thread.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was changed.
    pub fn open_simulated(disk: &Disk, node: NodeId) -> Result<(Self, Loaded), StoreError> {
        let path = Path::new("simulated");
        let failed = |error: redb::Error| database_error(path, error);
        let first = disk.is_empty();
        let database = Database::builder().create_with_backend(disk.attach());
        let mut database = database.map_err(|error| failed(error.into()))?;
        if first {
            fill(&database, First { node, joining: false, boots: 0 }).map_err(failed)?;
        } else if !database.check_integrity().map_err(|error| failed(error.into()))? {
            return Err(damaged(path, "the database's own pages", "their checksums do not hold"));
        }
        check_format(path, &database)?;
        let disk = disk.clone();
        let spawn = |files, inbox| {
            tokio::spawn(writer::run_simulated(files, inbox, disk));
            Ok(())
        };
        Self::open_database(path, database, node, |_, _| Ok(Mark::none()), spawn)
    }

    /// [`Store::make_anew`] on a simulated disk, which must be empty.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn make_anew_simulated(disk: &Disk, node: NodeId, count: u64) -> Result<(), StoreError> {
        let failed = |error: redb::Error| database_error(Path::new("simulated"), error);
        if !disk.is_empty() {
            return Err(damaged(Path::new("simulated"), "the new file's place", "it is in use"));
        }
        let database = Database::builder().create_with_backend(disk.attach());
        let database = database.map_err(|error| failed(error.into()))?;
        fill(&database, First::anew(node, count)).map_err(failed)
    }

    /// Forgets of so many of the last entries that they are committed, as a daemon does whose last word
    /// of it had not come to the disk: they are applied when the leader says so again. For a simulation,
    /// before a replica runs on it.
    pub fn forget_commits(&self, count: u64) {
        let mut cache = lock(&self.files.cache);
        let before = cache.committed.and_then(|at| at.index.checked_sub(count));
        let entry = before.and_then(|at| cache.read(at..at + 1).1.into_iter().next());
        cache.committed = entry.map(|entry| Position::of(entry.log_id()));
    }

    fn open_database(
        path: &Path,
        database: Database,
        node: NodeId,
        mark: impl FnOnce(Uuid, u64) -> Result<Mark, StoreError>,
        spawn: impl FnOnce(Arc<Files>, mpsc::Receiver<Job>) -> std::io::Result<()>,
    ) -> Result<(Self, Loaded), StoreError> {
        let reader = Reader::new(path, &database)?;
        let identity: Identity = reader
            .meta("identity")?
            .ok_or_else(|| damaged(path, "meta/identity", "it is missing"))?;
        let commits = reader.number("commits")?;
        let mark = mark(identity.store, commits)?;
        if identity.node != node {
            return Err(StoreError::OtherNode {
                path: path.to_owned(),
                found: identity.node,
                node,
            });
        }
        let (cache, snapshot, last_event) = reader.everything()?;
        drop(reader);
        let pristine = cache.is_empty() && snapshot.is_none();
        let committed = cache.committed;
        let files = Arc::new(Files {
            path: path.to_owned(),
            database: RwLock::new(Some(database)),
            mark,
            cache: Mutex::new(cache),
            tail: Mutex::new(Tail { committed, ..Tail::default() }),
        });
        let boot = writer::count_boot(&files).map_err(|error| database_error(path, error))?;
        let (jobs, inbox) = mpsc::channel(JOBS_MAX);
        spawn(files.clone(), inbox).map_err(|error| database_error(path, error))?;
        let place = snapshot.as_ref().map(|snapshot| snapshot.place.clone());
        let snapshot_turn = Arc::new(tokio::sync::Mutex::new(place));
        let store = Self { files, jobs, snapshot_turn };
        Ok((store, Loaded { identity, boot, snapshot, last_event, pristine, quiet: false }))
    }

    /// Writes what waits and lets the file go. Readers get [`StoreError::Closed`] from now on.
    pub async fn close(&self) {
        let (reply, done) = oneshot::channel();
        if self.jobs.send(Job::Stop { reply }).await.is_ok() {
            let _ = done.await;
        }
    }

    /// Empties the store in one step and gives it to `node`, which waits to be taken into a
    /// cluster. No replica may run on it.
    ///
    /// # Errors
    /// [`StoreError::Closed`].
    pub async fn empty_for_join(&self, node: NodeId) -> Result<Loaded, StoreError> {
        let (reply, done) = oneshot::channel();
        let closed = || StoreError::Closed { path: self.files.path.clone() };
        self.jobs.send(Job::Empty { node, reply }).await.map_err(|_| closed())?;
        let mut place = self.snapshot_turn.lock().await;
        let (identity, boot) = done.await.map_err(|_| closed())?;
        *place = None;
        let (snapshot, last_event) = (None, 0);
        Ok(Loaded { identity, boot, snapshot, last_event, pristine: true, quiet: false })
    }

    /// Events with a number above `after`, oldest first, at most `limit` and
    /// [`EVENTS_AT_ONCE_MAX`].
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn events_after(&self, after: u64, limit: usize) -> Result<Vec<StoredEvent>, StoreError> {
        let limit = limit.min(EVENTS_AT_ONCE_MAX);
        // First those that wait for their commit: one that is written meanwhile is in the file.
        let waiting: Vec<_> = {
            let tail = lock(&self.files.tail);
            tail.events.iter().filter(|event| event.seq > after).take(limit).cloned().collect()
        };
        let mut events = self.files.with_reader(|reader| {
            reader.events(after.saturating_add(1).., limit, Order::OldestFirst)
        })?;
        let last = events.last().map_or(after, |event| event.seq);
        let room = limit - events.len();
        events.extend(waiting.into_iter().filter(|event| event.seq > last).take(room));
        Ok(events)
    }

    /// The last `limit` events, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn last_events(&self, limit: usize) -> Result<Vec<StoredEvent>, StoreError> {
        let limit = limit.min(EVENTS_AT_ONCE_MAX);
        let waiting: Vec<_> = lock(&self.files.tail).events.iter().cloned().collect();
        let mut events =
            self.files.with_reader(|reader| reader.events(.., limit, Order::NewestFirst))?;
        events.reverse();
        let last = events.last().map_or(0, |event| event.seq);
        events.extend(waiting.into_iter().filter(|event| event.seq > last));
        Ok(events.split_off(events.len().saturating_sub(limit)))
    }

    /// Entries of the log from the file.
    pub(crate) fn read_entries(
        &self,
        range: std::ops::Range<u64>,
    ) -> Result<Vec<Entry>, StoreError> {
        self.files.with_reader(|reader| reader.entries(range))
    }

    /// The snapshot, if there is one.
    pub(crate) fn read_snapshot(&self) -> Result<WithBytes<SnapshotHead>, StoreError> {
        let found = self.files.with_reader(|reader| reader.snapshot())?;
        Ok(found.map(|(place, content)| (place.head, content)))
    }
}

impl Files {
    fn with_reader<T>(
        &self,
        read: impl FnOnce(&Reader<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = database.as_ref() else {
            return Err(StoreError::Closed { path: self.path.clone() });
        };
        read(&Reader::new(&self.path, database)?)
    }
}

/// Which end of a range is read first.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    OldestFirst,
    NewestFirst,
}

/// One look at the file.
struct Reader<'a> {
    path: &'a Path,
    read: redb::ReadTransaction,
}

impl<'a> Reader<'a> {
    fn new(path: &'a Path, database: &Database) -> Result<Self, StoreError> {
        let read = database.begin_read().map_err(|error| database_error(path, error))?;
        Ok(Self { path, read })
    }

    fn failed(&self, error: impl Into<redb::Error>) -> StoreError {
        database_error(self.path, error)
    }

    fn damaged(&self, place: &str, problem: impl std::fmt::Display) -> StoreError {
        damaged(self.path, place, &problem.to_string())
    }

    fn raw(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let table = self.read.open_table(META).map_err(|error| self.failed(error))?;
        let value = table.get(key).map_err(|error| self.failed(error))?;
        Ok(value.map(|value| value.value().to_vec()))
    }

    fn number(&self, key: &str) -> Result<u64, StoreError> {
        let bytes = self.raw(key)?.unwrap_or_default();
        let bytes: [u8; 8] = bytes
            .try_into()
            .map_err(|_| self.damaged(&format!("meta/{key}"), "it is not eight bytes"))?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn meta<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, StoreError> {
        let place = format!("meta/{key}");
        self.raw(key)?.map(|record| self.decode(&place, &record)).transpose()
    }

    fn decode<T: DeserializeOwned>(&self, place: &str, record: &[u8]) -> Result<T, StoreError> {
        decode(place, record).map_err(|error| self.damaged(place, error))
    }

    fn entries(&self, range: impl RangeBounds<u64>) -> Result<Vec<Entry>, StoreError> {
        let table = self.read.open_table(LOG).map_err(|error| self.failed(error))?;
        let rows = table.range::<u64>(range).map_err(|error| self.failed(error))?;
        rows.map(|row| {
            let (key, value) = row.map_err(|error| self.failed(error))?;
            let place = format!("log/{}", key.value());
            let entry: LogEntry = self.decode(&place, value.value())?;
            if entry.at.index != key.value() {
                return Err(self.damaged(&place, "it has another entry's number"));
            }
            entry.into_raft().map_err(|error: RecordError| self.damaged(&place, error))
        })
        .collect()
    }

    fn events(
        &self,
        range: impl RangeBounds<u64>,
        limit: usize,
        order: Order,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        let table = self.read.open_table(EVENTS).map_err(|error| self.failed(error))?;
        let mut rows = table.range::<u64>(range).map_err(|error| self.failed(error))?;
        let mut events = Vec::new();
        while events.len() < limit {
            let row = match order {
                Order::OldestFirst => rows.next(),
                Order::NewestFirst => rows.next_back(),
            };
            let Some(row) = row else { break };
            let (key, value) = row.map_err(|error| self.failed(error))?;
            let seq = key.value();
            let event = self.decode(&format!("events/{seq}"), value.value())?;
            events.push(StoredEvent { seq, event });
        }
        Ok(events)
    }

    fn snapshot(&self) -> Result<WithBytes<SnapshotPlace>, StoreError> {
        let Some(place) = self.meta::<SnapshotPlace>("snapshot")? else { return Ok(None) };
        let SnapshotPlace { slot, head } = &place;
        if head.bytes > SNAPSHOT_BYTES_MAX {
            return Err(self.damaged("meta/snapshot", "it is larger than a state can be"));
        }
        let mut content = Vec::new();
        let table = self.read.open_table(PIECES).map_err(|error| self.failed(error))?;
        let rows = table.range(piece_keys(*slot)).map_err(|error| self.failed(error))?;
        for row in rows {
            let (key, value) = row.map_err(|error| self.failed(error))?;
            let place = format!("pieces/{}", key.value());
            let piece =
                unseal(&place, value.value()).map_err(|error| self.damaged(&place, error))?;
            content.extend_from_slice(piece);
            if content.len() as u64 > head.bytes {
                return Err(self.damaged(&place, "the snapshot has more than it should"));
            }
        }
        if content.len() as u64 != head.bytes || crc32c::crc32c(&content) != head.crc {
            return Err(self.damaged("pieces", "the snapshot is not whole"));
        }
        Ok(Some((place, Arc::new(content))))
    }

    /// Reads and checks all that there is.
    fn everything(&self) -> Result<(LogCache, Option<LoadedSnapshot>, u64), StoreError> {
        let snapshot = match self.snapshot()? {
            None => None,
            Some((place, content)) => {
                let image: MachineImage = serde_json::from_slice(&content)
                    .map_err(|error| self.damaged("the snapshot", error))?;
                image
                    .state
                    .check_invariants()
                    .map_err(|problem| self.damaged("the snapshot", problem))?;
                let head = place.head.clone();
                head.members.to_raft().map_err(|error| self.damaged("meta/snapshot", error))?;
                Some(LoadedSnapshot { place, head, image })
            }
        };
        let mut cache = LogCache::default();
        cache.vote = self.meta("vote")?;
        cache.committed = self.meta("committed")?;
        if let Some(purged) = self.meta("purged")? {
            cache.purge(purged);
        }
        let mut next = cache.purged.map_or(0, |at| at.index + 1);
        for entry in self.entries(..)? {
            let index = entry.index();
            if index != next {
                return Err(self.damaged(&format!("log/{index}"), "an entry before it is missing"));
            }
            next = index + 1;
            cache.append(entry);
            cache.set_durable(next, cache.truncations());
        }
        self.check_positions(&cache, snapshot.as_ref())?;
        // The older ones are checked when they are read; a snapshot may have left a gap in them.
        let events = self.events(.., 1, Order::NewestFirst)?;
        Ok((cache, snapshot, events.last().map_or(0, |event| event.seq)))
    }

    /// Vote, log and snapshot must fit each other.
    fn check_positions(
        &self,
        cache: &LogCache,
        snapshot: Option<&LoadedSnapshot>,
    ) -> Result<(), StoreError> {
        let covered = snapshot.and_then(|snapshot| snapshot.head.last).map_or(0, |at| at.index + 1);
        let last = cache.last.map_or(0, |at| at.index + 1);
        let purged = cache.purged.map_or(0, |at| at.index + 1);
        if purged > covered {
            return Err(self.damaged("meta/purged", "it is beyond the snapshot"));
        }
        if let Some(committed) = cache.committed
            && committed.index >= last.max(covered)
        {
            return Err(self.damaged("meta/committed", "it is beyond the log"));
        }
        match cache.vote {
            None if cache.last.is_some_and(|at| at.term > 0) => {
                Err(self.damaged("meta/vote", "it is missing"))
            }
            Some(vote) if cache.last.is_some_and(|at| at.term > vote.term) => {
                Err(self.damaged("meta/vote", "it is older than the log"))
            }
            _ => Ok(()),
        }
    }
}

/// The keys of a slot's pieces.
pub(crate) fn piece_keys(slot: u32) -> (Bound<u64>, Bound<u64>) {
    let first = u64::from(slot) << 32;
    (Bound::Included(first), Bound::Excluded(first + (1 << 32)))
}

fn database_error(path: &Path, error: impl Into<redb::Error>) -> StoreError {
    StoreError::Database { path: path.to_owned(), source: Box::new(error.into()) }
}

fn damaged(path: &Path, place: &str, problem: &str) -> StoreError {
    StoreError::Damaged {
        path: path.to_owned(),
        place: place.to_owned(),
        problem: problem.to_owned(),
    }
}

fn open_checked(path: &Path) -> Result<Database, StoreError> {
    let mut database = Database::open(path).map_err(|error| database_error(path, error))?;
    let whole = database.check_integrity().map_err(|error| database_error(path, error))?;
    if !whole {
        return Err(damaged(path, "the database's own pages", "their checksums do not hold"));
    }
    Ok(database)
}

fn check_format(path: &Path, database: &Database) -> Result<(), StoreError> {
    let reader = Reader::new(path, database)?;
    let bytes = reader.raw("format")?.unwrap_or_default();
    let found = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(bytes) => u32::from_le_bytes(bytes),
        Err(_) => return Err(reader.damaged("meta/format", "it is not four bytes")),
    };
    match found.cmp(&FORMAT) {
        std::cmp::Ordering::Less => Err(StoreError::TooOld { path: path.to_owned(), found }),
        std::cmp::Ordering::Greater => Err(StoreError::TooNew { path: path.to_owned(), found }),
        std::cmp::Ordering::Equal => Ok(()),
    }
}

/// A store must have come at least as far as its mark says.
fn check_mark(path: &Path, store: Uuid, commits: u64, found: Found) -> Result<(), StoreError> {
    match found {
        // Just made, and the process ended before its mark was written.
        _ if commits == 0 => Ok(()),
        Found::Nothing => Err(damaged(path, "its mark", "state.mark is missing")),
        Found::Damaged => Err(damaged(path, "its mark", "state.mark does not hold")),
        Found::Mark(mark) if mark.store != store => {
            Err(damaged(path, "its mark", "state.mark belongs to another state"))
        }
        Found::Mark(mark) if mark.commits > commits => Err(damaged(
            path,
            "the last commit",
            "something that was acknowledged is missing: the file is older than its mark",
        )),
        Found::Mark(_) => Ok(()),
    }
}

/// Makes an empty store. It appears under its name only when it is whole: an empty file of that
/// name is then damage, never a first start that was cut off.
fn make(path: &Path, first: First) -> Result<(), redb::Error> {
    let part = path.with_extension("new");
    match std::fs::remove_file(&part) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let database = Database::create(&part)?;
    fill(&database, first)?;
    drop(database);
    std::fs::rename(&part, path)?;
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::File::open(dir)?.sync_all()?;
    Ok(())
}

/// What a store is made with.
#[derive(Clone, Copy)]
struct First {
    node: NodeId,
    joining: bool,
    boots: u64,
}

impl First {
    /// After the `count`th loss.
    fn anew(node: NodeId, count: u64) -> Self {
        Self { node, joining: true, boots: count.saturating_mul(BOOTS_OF_ONE_LOG) }
    }
}

/// Gives an empty database its layout.
fn fill(database: &Database, first: First) -> Result<(), redb::Error> {
    let First { node, joining, boots } = first;
    let write = database.begin_write()?;
    {
        write.open_table(LOG)?;
        write.open_table(PIECES)?;
        write.open_table(EVENTS)?;
        let mut meta = write.open_table(META)?;
        let identity = Identity { store: Uuid::new_v4(), node, joining };
        meta.insert("format", FORMAT.to_le_bytes().as_slice())?;
        meta.insert("identity", encode("meta/identity", &identity).as_slice())?;
        meta.insert("boots", boots.to_le_bytes().as_slice())?;
        meta.insert("commits", 0_u64.to_le_bytes().as_slice())?;
    }
    write.commit()?;
    Ok(())
}
