//! The one thread that writes the store.
//!
//! It takes all writes that wait, in order, into one transaction, and answers them when its commit
//! has returned: redb has called fsync then. So many appends cost one fsync, and nothing is
//! acknowledged that a crash could take back. A write or fsync that fails ends the process.

use std::sync::Arc;
use std::sync::PoisonError;

use model::NodeId;
use openraft::entry::RaftEntry;
use openraft::storage::IOFlushed;
use redb::ReadableTable;
use redb::WriteTransaction;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

use super::cache::LogCache;
use super::format::Ballot;
use super::format::LogEntry;
use super::format::Position;
use super::format::StoredEvent;
use super::format::decode;
use super::format::encode;
use super::format::seal;
use super::store::EVENTS;
use super::store::EVENTS_KEPT;
use super::store::Files;
use super::store::Identity;
use super::store::LOG;
use super::store::META;
use super::store::PIECES;
use super::store::SnapshotPlace;
use super::store::Tail;
use super::store::die;
use super::store::lock;
use super::store::piece_keys;
use super::types::Entry;
use super::types::Types;
use crate::simulation::Disk;

/// Writes in one transaction: keeps the wait of the first one short.
const BATCH_JOBS_MAX: usize = 256;

/// A write.
pub(crate) enum Job {
    /// Add entries. `truncations` tells which log they belong to, see [`LogCache`].
    Append { entries: Vec<Entry>, truncations: u64, done: IOFlushed<Types> },
    /// Cut the log: entry `from` and all after it go.
    Truncate { from: u64 },
    /// Drop entries up to this one.
    Purge { upto: Position },
    /// Keep a vote.
    Vote { vote: Ballot, reply: oneshot::Sender<()> },
    /// A piece of a snapshot that is not in use yet. The first one clears its slot.
    Piece { slot: u32, number: u32, content: Vec<u8>, reply: oneshot::Sender<()> },
    /// The snapshot of `place` is whole: it replaces the other one.
    Snapshot { place: SnapshotPlace, events: Vec<StoredEvent>, reply: oneshot::Sender<()> },
    /// Write what waits in the tail.
    Flush,
    /// The node is a member: it does not wait for a join any more.
    Joined,
    /// The quorum is forced: a vote and entries, in one step.
    Force { vote: Ballot, entries: Vec<Entry>, reply: oneshot::Sender<()> },
    /// Forget everything, for another node.
    Empty { node: NodeId, reply: oneshot::Sender<(Identity, u64)> },
    /// Write what waits, let the file go, end the thread.
    Stop { reply: oneshot::Sender<()> },
}

impl Job {
    /// The number after the last entry that it adds.
    fn end(&self) -> Option<u64> {
        match self {
            Self::Append { entries, .. } => entries.last().map(|entry| entry.index() + 1),
            _ => None,
        }
    }
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Append { .. } => "append",
            Self::Truncate { .. } => "truncate",
            Self::Purge { .. } => "purge",
            Self::Vote { .. } => "vote",
            Self::Piece { .. } => "piece",
            Self::Snapshot { .. } => "snapshot",
            Self::Flush => "flush",
            Self::Joined => "joined",
            Self::Force { .. } => "force",
            Self::Empty { .. } => "empty",
            Self::Stop { .. } => "stop",
        })
    }
}

/// What is owed for a write once it is on disk.
enum Owed {
    Flushed(IOFlushed<Types>),
    Reply(oneshot::Sender<()>),
    Emptied(oneshot::Sender<(Identity, u64)>, Identity, u64),
}

/// A transaction under way.
struct Batch<'a> {
    write: &'a WriteTransaction,
    owed: Vec<Owed>,
    /// Entries below this are on disk after the commit, in the log of that many truncations.
    durable: Option<(u64, u64)>,
    emptied: bool,
}

/// Starts the thread.
pub(crate) fn spawn(files: Arc<Files>, inbox: mpsc::Receiver<Job>) -> std::io::Result<()> {
    std::thread::Builder::new().name("raft-log".to_owned()).spawn(move || run(&files, inbox))?;
    Ok(())
}

fn run(files: &Files, mut inbox: mpsc::Receiver<Job>) {
    let mut jobs = Vec::with_capacity(BATCH_JOBS_MAX);
    let mut stop = None;
    while stop.is_none() && inbox.blocking_recv_many(&mut jobs, BATCH_JOBS_MAX) > 0 {
        match batch(files, &mut jobs) {
            Ok(asked) => stop = asked,
            Err(error) => die(&error, "a write of the log"),
        }
    }
    end(files, inbox, stop);
}

/// The same as a task of a simulated host. A disk that fails ends a simulated process, too: it is
/// cut off, and nothing that it says any more is heard.
pub(crate) async fn run_simulated(files: Arc<Files>, mut inbox: mpsc::Receiver<Job>, disk: Disk) {
    let mut jobs = Vec::with_capacity(BATCH_JOBS_MAX);
    let mut stop = None;
    while stop.is_none() && inbox.recv_many(&mut jobs, BATCH_JOBS_MAX).await > 0 {
        tokio::time::sleep(disk.delay()).await;
        match batch(&files, &mut jobs) {
            Ok(asked) => stop = asked,
            Err(_) => std::future::pending().await,
        }
    }
    end(&files, inbox, stop);
}

/// Carries out what waits, up to a wish to stop, which it returns.
fn batch(files: &Files, jobs: &mut Vec<Job>) -> Result<Option<oneshot::Sender<()>>, redb::Error> {
    let mut stop = None;
    if let Some(at) = jobs.iter().position(|job| matches!(job, Job::Stop { .. })) {
        // What comes after it is not written, and its senders see that nobody answers.
        jobs.truncate(at + 1);
        stop = jobs.pop();
    }
    carry_out(files, jobs)?;
    jobs.clear();
    Ok(match stop {
        Some(Job::Stop { reply }) => Some(reply),
        _ => None,
    })
}

/// Lets the file go.
fn end(files: &Files, mut inbox: mpsc::Receiver<Job>, stop: Option<oneshot::Sender<()>>) {
    inbox.close();
    drop(files.database.write().unwrap_or_else(PoisonError::into_inner).take());
    if let Some(reply) = stop {
        let _ = reply.send(());
    }
}

/// Counts an opening of the store.
pub(crate) fn count_boot(files: &Files) -> Result<u64, redb::Error> {
    commit(files, |write| {
        let mut meta = write.open_table(META)?;
        let boots = number(&meta, "boots")? + 1;
        meta.insert("boots", boots.to_le_bytes().as_slice())?;
        Ok(boots)
    })
}

fn carry_out(files: &Files, jobs: &mut Vec<Job>) -> Result<(), redb::Error> {
    let appended = jobs.iter().filter_map(Job::end).max();
    let on_disk = lock(&files.cache).durable().max(appended.unwrap_or(0));
    let tail = take_tail(files, on_disk);
    let written = tail.events.back().map_or(0, |event| event.seq);
    if jobs.iter().all(|job| matches!(job, Job::Flush)) && written == 0 && tail.committed.is_none()
    {
        return Ok(());
    }
    let (owed, durable, emptied) = commit(files, |write| {
        let mut batch = Batch { write, owed: Vec::new(), durable: None, emptied: false };
        for job in jobs.drain(..) {
            batch.job(job)?;
        }
        let durable = batch.durable;
        if !batch.emptied {
            batch.tail(&tail)?;
        }
        Ok((batch.owed, durable, batch.emptied))
    })?;
    if let Some((next, truncations)) = durable {
        lock(&files.cache).set_durable(next, truncations);
    }
    {
        let mut tail = lock(&files.tail);
        if emptied {
            *tail = Tail::default();
            *lock(&files.cache) = LogCache::default();
        } else {
            // By number: a snapshot may have taken the place of some meanwhile.
            while tail.events.front().is_some_and(|event| event.seq <= written) {
                tail.events.pop_front();
            }
        }
    }
    for owed in owed {
        match owed {
            Owed::Flushed(done) => done.io_completed(Ok(())),
            // Whoever has gone does not need the answer.
            Owed::Reply(reply) => drop(reply.send(())),
            Owed::Emptied(reply, identity, boot) => drop(reply.send((identity, boot))),
        }
    }
    Ok(())
}

/// What waits in the tail. A committed position goes to disk only when its entry is there: a leader
/// may learn of a commit before its own write returns.
fn take_tail(files: &Files, on_disk: u64) -> Tail {
    let mut tail = lock(&files.tail);
    let ready = tail.committed_changed && tail.committed.is_some_and(|at| at.index < on_disk);
    if ready {
        tail.committed_changed = false;
    }
    let committed = if ready { tail.committed } else { None };
    Tail { events: tail.events.clone(), committed, committed_changed: false }
}

/// One transaction: durable, and noted in the mark, when this returns.
fn commit<T>(
    files: &Files,
    change: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>,
) -> Result<T, redb::Error> {
    let database = files.database.read().unwrap_or_else(PoisonError::into_inner);
    let database = database.as_ref().expect("the file is open while its thread runs");
    let write = database.begin_write()?;
    let value = change(&write)?;
    let commits = {
        let mut meta = write.open_table(META)?;
        let commits = number(&meta, "commits")? + 1;
        meta.insert("commits", commits.to_le_bytes().as_slice())?;
        commits
    };
    write.commit()?;
    files.mark.set(commits)?;
    Ok(value)
}

fn number(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
) -> Result<u64, redb::Error> {
    let value = meta.get(key)?;
    let bytes = value.and_then(|value| <[u8; 8]>::try_from(value.value()).ok());
    Ok(u64::from_le_bytes(bytes.expect("opening has checked it")))
}

impl Batch<'_> {
    fn job(&mut self, job: Job) -> Result<(), redb::Error> {
        match job {
            Job::Append { entries, truncations, done } => {
                if let Some(last) = entries.last() {
                    self.durable = Some((last.index() + 1, truncations));
                }
                self.entries(&entries)?;
                self.owed.push(Owed::Flushed(done));
            }
            Job::Truncate { from } => {
                self.write.open_table(LOG)?.retain_in(from.., |_, _| false)?;
                self.durable = None;
            }
            Job::Purge { upto } => {
                self.write.open_table(LOG)?.retain_in(..=upto.index, |_, _| false)?;
                self.meta("purged", &upto)?;
            }
            Job::Vote { vote, reply } => {
                self.meta("vote", &vote)?;
                self.owed.push(Owed::Reply(reply));
            }
            Job::Piece { slot, number, content, reply } => {
                self.piece(slot, number, &content)?;
                self.owed.push(Owed::Reply(reply));
            }
            Job::Snapshot { place, events, reply } => {
                self.snapshot(&place, &events)?;
                self.owed.push(Owed::Reply(reply));
            }
            Job::Force { vote, entries, reply } => {
                self.meta("vote", &vote)?;
                self.entries(&entries)?;
                self.owed.push(Owed::Reply(reply));
            }
            Job::Empty { node, reply } => {
                let (identity, boot) = self.empty(node)?;
                self.owed.push(Owed::Emptied(reply, identity, boot));
                self.emptied = true;
            }
            Job::Joined => {
                let identity = self.identity()?;
                self.meta("identity", &Identity { joining: false, ..identity })?;
            }
            Job::Flush | Job::Stop { .. } => {}
        }
        Ok(())
    }

    fn entries(&self, entries: &[Entry]) -> Result<(), redb::Error> {
        let mut log = self.write.open_table(LOG)?;
        for entry in entries {
            let index = entry.index();
            let record = encode(&format!("log/{index}"), &LogEntry::of(entry));
            log.insert(index, record.as_slice())?;
        }
        Ok(())
    }

    fn meta(&self, key: &str, value: &impl serde::Serialize) -> Result<(), redb::Error> {
        let record = encode(&format!("meta/{key}"), value);
        self.write.open_table(META)?.insert(key, record.as_slice())?;
        Ok(())
    }

    fn identity(&self) -> Result<Identity, redb::Error> {
        let meta = self.write.open_table(META)?;
        let record = meta.get("identity")?.map(|value| value.value().to_vec());
        Ok(record
            .and_then(|record| decode("meta/identity", &record).ok())
            .expect("opening has checked it"))
    }

    fn piece(&self, slot: u32, number: u32, content: &[u8]) -> Result<(), redb::Error> {
        let mut pieces = self.write.open_table(PIECES)?;
        if number == 0 {
            // Left by one that was never finished.
            pieces.retain_in(piece_keys(slot), |_, _| false)?;
        }
        let key = (u64::from(slot) << 32) | u64::from(number);
        pieces.insert(key, seal(&format!("pieces/{key}"), content).as_slice())?;
        Ok(())
    }

    fn snapshot(&self, place: &SnapshotPlace, events: &[StoredEvent]) -> Result<(), redb::Error> {
        self.meta("snapshot", place)?;
        self.write.open_table(PIECES)?.retain_in(piece_keys(1 - place.slot), |_, _| false)?;
        self.events(events)?;
        let mut table = self.write.open_table(EVENTS)?;
        let last = table.last()?.map_or(0, |(key, _)| key.value());
        table.retain_in(..last.saturating_sub(EVENTS_KEPT - 1), |_, _| false)?;
        Ok(())
    }

    fn events<'e>(
        &self,
        events: impl IntoIterator<Item = &'e StoredEvent>,
    ) -> Result<(), redb::Error> {
        let mut table = self.write.open_table(EVENTS)?;
        for StoredEvent { seq, event } in events {
            table.insert(seq, encode(&format!("events/{seq}"), event).as_slice())?;
        }
        Ok(())
    }

    fn tail(&self, tail: &Tail) -> Result<(), redb::Error> {
        if let Some(committed) = &tail.committed {
            self.meta("committed", committed)?;
        }
        if tail.events.is_empty() { Ok(()) } else { self.events(&tail.events) }
    }

    fn empty(&self, node: NodeId) -> Result<(Identity, u64), redb::Error> {
        self.write.open_table(LOG)?.retain(|_, _| false)?;
        self.write.open_table(PIECES)?.retain(|_, _| false)?;
        self.write.open_table(EVENTS)?.retain(|_, _| false)?;
        let identity = self.identity()?;
        let mut meta = self.write.open_table(META)?;
        let boots = number(&meta, "boots")? + 1;
        for key in ["vote", "purged", "committed", "snapshot"] {
            meta.remove(key)?;
        }
        meta.insert("boots", boots.to_le_bytes().as_slice())?;
        let identity = Identity { node, joining: true, ..identity };
        meta.insert("identity", encode("meta/identity", &identity).as_slice())?;
        Ok((identity, boots))
    }
}
