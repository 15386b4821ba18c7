//! The log as the running node sees it: positions, and the newest entries in memory.
//!
//! Entries are readable as soon as they are appended, before they are on disk, so all that are not
//! durable are in here; older ones make room when there are too many.

use std::collections::VecDeque;
use std::ops::Range;

use openraft::entry::RaftEntry;

use super::format::Ballot;
use super::format::Position;
use super::types::Entry;

/// Durable entries that stay in memory: what a follower that is a moment behind asks for.
const ENTRIES_MAX: usize = 4_096;

/// The log of a node.
#[derive(Debug, Default)]
pub(crate) struct LogCache {
    pub(crate) vote: Option<Ballot>,
    pub(crate) committed: Option<Position>,
    pub(crate) purged: Option<Position>,
    /// The last entry, or the last purged one when there is none.
    pub(crate) last: Option<Position>,
    window: VecDeque<Entry>,
    /// The number of the first entry that there is, or the one that comes.
    begin: u64,
    /// Entries below this number are on disk.
    durable: u64,
    /// How often the log's end was cut off: what was written before says nothing about what
    /// stands at the same place now.
    truncations: u64,
}

impl LogCache {
    /// Whether nothing was ever stored.
    pub(crate) fn is_empty(&self) -> bool {
        self.vote.is_none() && self.last.is_none() && self.purged.is_none()
    }

    /// The number of the first entry in memory; the log's end if there is none.
    fn first(&self) -> u64 {
        self.window.front().map_or_else(|| self.next(), Entry::index)
    }

    /// The number that the next entry gets.
    pub(crate) fn next(&self) -> u64 {
        self.last.map_or(0, |at| at.index + 1)
    }

    /// Entries below this number are on disk.
    pub(crate) fn durable(&self) -> u64 {
        self.durable
    }

    pub(crate) fn truncations(&self) -> u64 {
        self.truncations
    }

    pub(crate) fn append(&mut self, entry: Entry) {
        let at = Position::of(entry.log_id());
        // A hole would be filled by nobody: openraft looks at the last position only.
        assert!(
            self.last.is_none_or(|last| last.index + 1 == at.index),
            "entry {at:?} does not follow {:?}",
            self.last
        );
        if self.last.is_none() {
            self.begin = at.index;
        }
        self.last = Some(at);
        self.window.push_back(entry);
    }

    /// Notes that entries below `next` are on disk, if the log was not cut since `truncations`.
    pub(crate) fn set_durable(&mut self, next: u64, truncations: u64) {
        if truncations == self.truncations {
            self.durable = self.durable.max(next);
        }
        while self.window.len() > ENTRIES_MAX
            && self.window.front().is_some_and(|entry| entry.index() < self.durable)
        {
            self.window.pop_front();
        }
    }

    /// Cuts off what follows `last`; `None` cuts off everything that is not purged. `before` is the
    /// position that the log ends with then.
    pub(crate) fn truncate(&mut self, before: Option<Position>) {
        let next = before.map_or(0, |at| at.index + 1);
        while self.window.back().is_some_and(|entry| entry.index() >= next) {
            self.window.pop_back();
        }
        self.durable = self.durable.min(next);
        self.truncations += 1;
        self.last = before.or(self.purged);
    }

    /// Drops what is not after `upto`.
    pub(crate) fn purge(&mut self, upto: Position) {
        while self.window.front().is_some_and(|entry| entry.index() <= upto.index) {
            self.window.pop_front();
        }
        self.purged = self.purged.max(Some(upto));
        self.begin = self.begin.max(upto.index + 1);
        if self.last.is_none_or(|last| last.index <= upto.index) {
            self.last = Some(upto);
            self.durable = self.durable.max(upto.index + 1);
        }
    }

    /// Which part of a range must be read from the file, and the rest.
    pub(crate) fn read(&self, range: Range<u64>) -> (Range<u64>, Vec<Entry>) {
        let start = range.start.max(self.begin);
        let end = range.end.min(self.next()).max(start);
        let first = self.first().clamp(start, end);
        let skip = usize::try_from(first - self.first().min(first)).unwrap_or(usize::MAX);
        let count = usize::try_from(end - first).unwrap_or(usize::MAX);
        (start..first, self.window.iter().skip(skip).take(count).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use openraft::EntryPayload;
    use openraft::entry::RaftEntry;

    use super::*;
    use crate::raft::types::LeaderId;
    use crate::raft::types::LogId;
    use crate::raft::types::RaftId;

    fn entry(term: u64, index: u64) -> Entry {
        let leader_id = LeaderId { term, node_id: RaftId::from(1) };
        Entry::new(LogId { leader_id, index }, EntryPayload::Blank)
    }

    fn numbers(cache: &LogCache, range: Range<u64>) -> (Range<u64>, Vec<u64>) {
        let (file, entries) = cache.read(range);
        (file, entries.iter().map(Entry::index).collect())
    }

    #[test]
    fn what_is_not_durable_stays_in_memory() {
        let mut cache = LogCache::default();
        let many = ENTRIES_MAX as u64 + 10;
        for index in 0..many {
            cache.append(entry(1, index));
        }
        cache.set_durable(4, 0);
        assert_eq!(numbers(&cache, 0..6), (0..4, vec![4, 5]));
        cache.set_durable(many, 0);
        assert_eq!(numbers(&cache, 8..12), (8..10, vec![10, 11]));
        assert_eq!(numbers(&cache, 2..5), (2..5, vec![]));
        assert_eq!(numbers(&cache, many - 1..many + 9), (many - 1..many - 1, vec![many - 1]));
        assert_eq!(numbers(&cache, many..many + 9).1, [0; 0]);
    }

    #[test]
    fn a_late_word_of_the_disk_does_not_count_for_what_was_cut() {
        let mut cache = LogCache::default();
        (0..10).for_each(|index| cache.append(entry(1, index)));
        let before = cache.truncations();
        cache.truncate(Some(Position::of(entry(1, 4).log_id())));
        cache.append(entry(2, 5));
        cache.set_durable(10, before);
        assert_eq!(cache.durable, 0);
        assert_eq!(numbers(&cache, 0..20).1, [0, 1, 2, 3, 4, 5]);
        cache.purge(Position::of(entry(1, 3).log_id()));
        assert_eq!(numbers(&cache, 0..20), (4..4, vec![4, 5]));
        cache.purge(Position::of(entry(3, 30).log_id()));
        assert_eq!((cache.next(), numbers(&cache, 0..40).1), (31, vec![]));
    }

    #[test]
    #[should_panic(expected = "does not follow")]
    fn a_hole_is_never_stored() {
        let mut cache = LogCache::default();
        cache.append(entry(1, 3));
        cache.append(entry(1, 5));
    }
}
