//! The log as openraft wants it: what it appends is readable at once, and its callback is called
//! when it is on disk.

use std::fmt::Debug;
use std::io;
use std::ops::Bound;
use std::ops::Range;
use std::ops::RangeBounds;

use openraft::OptionalSend;
use openraft::RaftLogReader;
use openraft::storage::IOFlushed;
use openraft::storage::LogState;
use openraft::storage::RaftLogStorage;
use tokio::sync::oneshot;

use super::format::Ballot;
use super::format::Position;
use super::store::Store;
use super::store::lock;
use super::types::Entry;
use super::types::LogId;
use super::types::Types;
use super::types::Vote;
use super::writer::Job;

/// Entries in one answer to a follower that is far behind. Together with the longest proposal
/// ([`super::replica::PROPOSAL_BYTES_MAX`]) and `max_payload_entries` it bounds memory.
const ENTRIES_AT_ONCE_MAX: u64 = 1_024;

impl Store {
    pub(crate) async fn write(&self, job: Job) -> io::Result<()> {
        self.jobs.send(job).await.map_err(|_| closed())
    }

    /// Writes, and waits until it is on disk.
    pub(crate) async fn write_through(
        &self,
        job: impl FnOnce(oneshot::Sender<()>) -> Job,
    ) -> io::Result<()> {
        let (reply, done) = oneshot::channel();
        self.write(job(reply)).await?;
        done.await.map_err(|_| closed())
    }
}

fn closed() -> io::Error {
    io::Error::other("the store has been closed")
}

fn plain(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(at) => *at,
        Bound::Excluded(at) => at.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(at) => at.saturating_add(1),
        Bound::Excluded(at) => *at,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl RaftLogReader<Types> for Store {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let (file, entries) = lock(&self.files.cache).read(plain(&range));
        if file.is_empty() {
            return Ok(entries);
        }
        let wanted = file.end - file.start;
        let mut all = self.read_entries(file).map_err(io::Error::other)?;
        if all.len() as u64 != wanted {
            return Err(io::Error::other(format!("entries are missing in {range:?}")));
        }
        all.extend(entries);
        Ok(all)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.try_get_log_entries(start..end.min(start.saturating_add(ENTRIES_AT_ONCE_MAX))).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(lock(&self.files.cache).vote.map(Ballot::vote))
    }
}

impl RaftLogStorage<Types> for Store {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let cache = lock(&self.files.cache);
        Ok(LogState {
            last_purged_log_id: cache.purged.map(Position::log_id),
            last_log_id: cache.last.map(Position::log_id),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let vote = Ballot::of(*vote);
        self.write_through(|reply| Job::Vote { vote, reply }).await?;
        lock(&self.files.cache).vote = Some(vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let committed = committed.map(Position::of);
        lock(&self.files.cache).committed = committed;
        let mut tail = lock(&self.files.tail);
        tail.committed = committed;
        tail.committed_changed = true;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(lock(&self.files.cache).committed.map(Position::log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<_> = entries.into_iter().collect();
        let truncations = {
            let mut cache = lock(&self.files.cache);
            for entry in &entries {
                cache.append(entry.clone());
            }
            cache.truncations()
        };
        self.write(Job::Append { entries, truncations, done: callback }).await
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let from = last_log_id.map_or(0, |id| id.index + 1);
        let before = match last_log_id {
            None => None,
            Some(id) => {
                let last = lock(&self.files.cache).last;
                if last.is_none_or(|last| last.index <= id.index) {
                    return Ok(());
                }
                Some(Position::of(id))
            }
        };
        lock(&self.files.cache).truncate(before);
        self.write(Job::Truncate { from }).await
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        let upto = Position::of(log_id);
        lock(&self.files.cache).purge(upto);
        self.write(Job::Purge { upto }).await
    }
}
