//! What the witness remembers, and the rules by which it answers (pure).
//!
//! ```text
//!   bytes  = "MUSTWITN" | version (1) | CRC-32C of the content (4, little endian) | content (JSON)
//!   log    = ... what all have or nobody needs, not kept ... | base | entries, oldest first
//! ```
//!
//! | version | change |
//! | --- | --- |
//! | 1 | first |
//!
//! [`answer`] is what a follower of openraft does with the same request: the newest vote wins, a
//! vote is given to a log that is at least as long as its own, entries follow an entry that it has,
//! and entries that contradict a leader's are dropped. It never leads by itself and applies nothing,
//! so that a snapshot is only a position to it.
//!
//! A lost byte of the log is a lost vote: whatever is not exactly a record of this form is an error
//! with a name, never an empty record.

use model::ClusterId;
use model::NodeId;
use serde::Deserialize;
use serde::Serialize;
use uuid::Uuid;

use crate::raft::Ballot;
use crate::raft::LogEntry;
use crate::raft::Position;
use crate::raft::SnapshotHead;
use crate::raft::wire::AppendReply;
use crate::raft::wire::AppendRequest;
use crate::raft::wire::SnapshotReply;
use crate::raft::wire::VoteReply;
use crate::raft::wire::VoteRequest;

const MAGIC: &[u8; 8] = b"MUSTWITN";
const VERSION: u8 = 1;
const HEAD_BYTES: usize = MAGIC.len() + 1 + 4;

/// The largest record. It holds what is decided between the loss of a node and its confirmation,
/// some seconds; a single change is at most 1 MiB.
pub const RECORD_BYTES_MAX: usize = 16 << 20;

/// Beyond this the oldest entries that are committed are no longer kept, whoever lacks them: a
/// record is written whole each time.
const KEPT_BYTES_MAX: usize = 4 << 20;

/// The witness's memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// The witness's id among the members. A witness that is set anew has a new one, so that a
    /// record that was lost can never be taken for an empty one.
    pub witness: NodeId,
    /// Grows by one with each write.
    pub counter: u64,
    /// Fresh in each write, so that no two records are alike and a writer finds its own again.
    pub nonce: Uuid,
    /// Who wrote it last.
    pub writer: Option<NodeId>,
    /// Whether the writer's leadership hangs on the witness: it writes again and again then, and
    /// another one waits until it has not done so for a whole lease.
    pub held: bool,
    /// The vote.
    pub ballot: Option<Ballot>,
    /// How far the log is known to be committed.
    pub committed: Option<Position>,
    /// The last entry that is not kept. Those up to it are committed.
    pub base: Option<Position>,
    /// The entries after it.
    pub entries: Vec<LogEntry>,
}

/// What is asked of the witness.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// For its vote.
    Vote(VoteRequest),
    /// To keep entries, or to agree that the asker leads.
    Append(AppendRequest),
    /// To follow from here; the content is not wanted.
    Snapshot {
        /// The leader's vote.
        ballot: Ballot,
        /// The snapshot.
        head: SnapshotHead,
    },
}

/// Its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// To [`Request::Vote`].
    Vote(VoteReply),
    /// To [`Request::Append`].
    Append(AppendReply),
    /// To [`Request::Snapshot`].
    Snapshot(SnapshotReply),
}

/// What is wrong with the bytes of a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// They are not a record.
    #[error("it is not the record of a witness")]
    Foreign,
    /// They are of a later version.
    #[error("its version {0} is not known to this version of Muster")]
    Version(u8),
    /// They have changed.
    #[error("its checksum does not hold")]
    Checksum,
    /// They do not say what a record says.
    #[error("its content cannot be read: {0}")]
    Content(String),
    /// They say what cannot be.
    #[error("it contradicts itself")]
    Contradiction,
    /// They are too many.
    #[error("it is larger than {RECORD_BYTES_MAX} bytes")]
    Large,
}

/// The order of votes: later terms win, a leader wins over a candidate.
pub fn rank(ballot: &Ballot) -> (u64, NodeId, bool) {
    (ballot.term, ballot.node, ballot.committed)
}

impl Record {
    /// The record of a witness that has seen nothing.
    pub fn new(cluster: ClusterId, witness: NodeId, nonce: Uuid) -> Self {
        Self {
            cluster,
            witness,
            counter: 1,
            nonce,
            writer: None,
            held: false,
            ballot: None,
            committed: None,
            base: None,
            entries: Vec::new(),
        }
    }

    /// The last entry that the witness has.
    pub fn last(&self) -> Option<Position> {
        self.entries.last().map(|entry| entry.at).or(self.base)
    }

    /// Its bytes.
    ///
    /// # Errors
    /// [`RecordError::Large`].
    pub fn write(&self) -> Result<Vec<u8>, RecordError> {
        let content =
            serde_json::to_vec(self).map_err(|error| RecordError::Content(error.to_string()))?;
        if content.len() + HEAD_BYTES > RECORD_BYTES_MAX {
            return Err(RecordError::Large);
        }
        let mut bytes = Vec::with_capacity(content.len() + HEAD_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.push(VERSION);
        bytes.extend_from_slice(&crc32c::crc32c(&content).to_le_bytes());
        bytes.extend_from_slice(&content);
        Ok(bytes)
    }

    /// The record in these bytes.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn read(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() > RECORD_BYTES_MAX {
            return Err(RecordError::Large);
        }
        let (head, content) = bytes.split_at_checked(HEAD_BYTES).ok_or(RecordError::Foreign)?;
        if !head.starts_with(MAGIC) {
            return Err(RecordError::Foreign);
        }
        if head[MAGIC.len()] != VERSION {
            return Err(RecordError::Version(head[MAGIC.len()]));
        }
        if head[MAGIC.len() + 1..] != crc32c::crc32c(content).to_le_bytes() {
            return Err(RecordError::Checksum);
        }
        let record: Self = serde_json::from_slice(content)
            .map_err(|error| RecordError::Content(error.to_string()))?;
        if !record.is_consistent() {
            return Err(RecordError::Contradiction);
        }
        Ok(record)
    }

    fn is_consistent(&self) -> bool {
        let first = self.base.map_or(0, |base| base.index.saturating_add(1));
        let mut expected = first..;
        let in_row = self.entries.iter().all(|entry| expected.next() == Some(entry.at.index));
        let terms = self.entries.iter().map(|entry| entry.at).is_sorted();
        let begins = self.entries.first().is_none_or(|first| self.base < Some(first.at));
        in_row && terms && begins && self.counter > 0 && self.base <= self.committed
    }

    /// Whether the log has this entry. Entries that are not kept are committed: nobody contradicts
    /// them.
    fn has(&self, at: Position) -> bool {
        if self.committed.is_some_and(|committed| at.index <= committed.index) {
            return true;
        }
        self.place(at.index).is_some_and(|place| self.entries[place].at == at)
    }

    /// Where the entry of that number is kept.
    fn place(&self, index: u64) -> Option<usize> {
        let first = self.entries.first()?.at.index;
        let place = usize::try_from(index.checked_sub(first)?).ok()?;
        (place < self.entries.len()).then_some(place)
    }

    /// Drops the entries from that number on.
    fn truncate(&mut self, index: u64) {
        if let Some(place) = self.place(index) {
            self.entries.truncate(place);
        }
    }

    /// Takes a vote that is at least as new as its own.
    fn follow(&mut self, ballot: &Ballot) -> bool {
        if self.ballot.is_some_and(|own| rank(&own) > rank(ballot)) {
            return false;
        }
        self.ballot = Some(*ballot);
        true
    }

    fn vote(&mut self, request: &VoteRequest) -> VoteReply {
        let last = self.last();
        let newest = self.ballot.is_none_or(|own| rank(&own) <= rank(&request.ballot));
        let granted = newest && request.last >= last;
        if granted && !request.pre_vote {
            self.ballot = Some(request.ballot);
        }
        let none = Ballot { term: 0, node: NodeId::new(Uuid::nil()), committed: false };
        VoteReply { ballot: self.ballot.unwrap_or(none), granted, last }
    }

    fn append(&mut self, request: &AppendRequest) -> AppendReply {
        if !self.follow(&request.ballot) {
            return AppendReply::HigherVote(self.ballot.unwrap_or(request.ballot));
        }
        if let Some(previous) = request.previous
            && !self.has(previous)
        {
            self.truncate(previous.index);
            return AppendReply::Conflict;
        }
        for entry in &request.entries {
            if self.has(entry.at) {
                continue;
            }
            self.truncate(entry.at.index);
            self.entries.push(entry.clone());
        }
        let reached = request.entries.last().map(|entry| entry.at).or(request.previous);
        self.commit(request.committed.min(reached));
        AppendReply::Success
    }

    fn commit(&mut self, at: Option<Position>) {
        self.committed = self.committed.max(at);
    }

    fn snapshot(&mut self, ballot: &Ballot, head: &SnapshotHead) -> SnapshotReply {
        if !self.follow(ballot) {
            return SnapshotReply::Done(self.ballot.unwrap_or(*ballot));
        }
        if head.last > self.committed
            && let Some(last) = head.last
        {
            match self.place(last.index).filter(|place| self.entries[*place].at == last) {
                Some(place) => drop(self.entries.drain(..=place)),
                None => self.entries.clear(),
            }
            self.base = Some(last);
            self.commit(Some(last));
        }
        SnapshotReply::Done(self.ballot.unwrap_or(*ballot))
    }

    /// Forgets entries that are committed and that every other voter has (numbers below `floor`),
    /// and of the rest what makes the record too large.
    pub fn trim(&mut self, floor: u64) {
        let committed = self.committed.map_or(0, |at| at.index + 1);
        let mut bytes: usize = self.entries.iter().map(size).sum();
        let mut gone = 0;
        for entry in &self.entries {
            let wanted = entry.at.index >= floor && bytes <= KEPT_BYTES_MAX;
            if entry.at.index >= committed || wanted {
                break;
            }
            bytes -= size(entry);
            gone += 1;
        }
        if let Some(last) = self.entries.drain(..gone).next_back() {
            self.base = Some(last.at);
        }
    }

    /// Whether another record promises the same to the cluster: vote and log. What differs
    /// besides can wait.
    pub fn promises_as(&self, other: &Self) -> bool {
        self.ballot == other.ballot && self.last() == other.last() && {
            let from = self.base.max(other.base);
            let above = |record: &Self| {
                let above = record.entries.iter().map(|entry| entry.at);
                above.filter(|at| Some(*at) > from).collect::<Vec<_>>()
            };
            above(self) == above(other)
        }
    }
}

/// Roughly how many bytes an entry takes.
fn size(entry: &LogEntry) -> usize {
    match &entry.what {
        crate::raft::LogEntryKind::Proposal(envelope) => envelope.bytes() + 128,
        _ => 1_024,
    }
}

/// What the witness does with a request: its memory afterwards, and its answer, which counts only
/// if that memory was stored.
///
/// # Errors
/// The request is none that a follower could get; nothing is to be stored.
pub fn answer(record: &Record, request: &Request) -> Result<(Record, Reply), &'static str> {
    let mut next = record.clone();
    let reply = match request {
        Request::Vote(request) => Reply::Vote(next.vote(request)),
        Request::Append(request) => {
            let mut expected = request.previous.map_or(0, |at| at.index.saturating_add(1))..;
            if !request.entries.iter().all(|entry| expected.next() == Some(entry.at.index)) {
                return Err("the entries do not follow each other");
            }
            let positions =
                request.previous.into_iter().chain(request.entries.iter().map(|e| e.at));
            if !positions.is_sorted() {
                return Err("the entries are of a later term than those after them");
            }
            Reply::Append(next.append(request))
        }
        Request::Snapshot { ballot, head } => Reply::Snapshot(next.snapshot(ballot, head)),
    };
    Ok((next, reply))
}
