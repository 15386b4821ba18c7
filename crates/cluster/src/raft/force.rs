//! Forcing the quorum: a node that is left makes itself and the others that are left the voters,
//! without a majority of those before.
//!
//! ```text
//!   log of the node:   ... | after | QuorumForced | members: those that are left |
//!                                    \_______ in a term above all of theirs _____/
//! ```
//!
//! Of the nodes that are left, the one with the newest log has all that any of them has applied: an
//! applied entry was on a majority, and each later leader had it. So it is safe for *them* to go on
//! from that log. What only the lost ones had is lost, which no rule can prevent; they are given up
//! in the same breath, since they may have applied what nobody here knows of (Ongaro, "Consensus",
//! section 4: a configuration is in force as soon as it is in the log; docs/decisions/0013).
//!
//! Both entries go to the disk in one step, before a replica runs on it: there are never the new
//! voters without the word that gives the others up. They are committed when the node is elected
//! among the new voters, by the ordinary rules.

use std::collections::BTreeSet;

use model::NodeId;
use model::Proposal;
use serde::Deserialize;
use serde::Serialize;

use super::format::Ballot;
use super::format::LogEntry;
use super::format::LogEntryKind;
use super::format::Members;
use super::format::Position;
use super::store::Loaded;
use super::store::Store;
use super::store::StoreError;
use super::store::lock;
use super::types::Envelope;
use super::types::Ticket;
use super::writer::Job;

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forcing {
    /// The last entry of this node's log then. If the log goes on or ends elsewhere by now, the
    /// cluster has gone on without being forced, or this was done already.
    pub after: Position,
    /// The highest term of the nodes that are left.
    pub term: u64,
    /// Those of them that vote from now on, this node among them.
    pub voters: BTreeSet<NodeId>,
    /// Those that only get the log.
    pub learners: BTreeSet<NodeId>,
    /// The word that gives the others up: [`model::Command::QuorumForced`].
    pub proposal: Proposal,
}

impl Store {
    /// The last entry of the log.
    pub fn last_entry(&self) -> Option<Position> {
        lock(&self.files.cache).last
    }

    /// Writes what was decided into the log, durably. No replica may run on it. Whether it was done:
    /// nothing is changed if the log does not end where it did.
    ///
    /// # Errors
    /// [`StoreError::Closed`], or [`StoreError::Damaged`] if the voters cannot be.
    pub async fn force(&self, loaded: &Loaded, forcing: Forcing) -> Result<bool, StoreError> {
        let Forcing { after, term, voters, learners, proposal } = forcing;
        let node = loaded.identity.node;
        if self.last_entry() != Some(after) || !voters.contains(&node) {
            return Ok(false);
        }
        let own = lock(&self.files.cache).vote.map_or(0, |vote| vote.term);
        let term = term.max(own).max(after.term) + 1;
        let at = |index| Position { term, leader: node, index };
        let nodes = voters.union(&learners).copied().collect();
        // The first ticket of this run of the daemon: its own numbers begin at 1.
        let ticket = Ticket { node, boot: loaded.boot, number: 0, floor: 0 };
        let word = Envelope { ticket, proposal };
        let members = Members { voters: vec![voters], nodes };
        let kinds = [LogEntryKind::Proposal(word.into()), LogEntryKind::Members(members)];
        let mut entries = Vec::with_capacity(kinds.len());
        for (index, what) in (after.index + 1..).zip(kinds) {
            let entry = LogEntry { at: at(index), what };
            entries.push(entry.into_raft().map_err(|error| StoreError::Damaged {
                path: self.files.path.clone(),
                place: format!("log/{index}"),
                problem: error.to_string(),
            })?);
        }
        // Not elected by anybody yet: this is only the vote that such entries ask for.
        let vote = Ballot { term, node, committed: false };
        let written = entries.clone();
        let done = self.write_through(|reply| Job::Force { vote, entries: written, reply }).await;
        done.map_err(|_| StoreError::Closed { path: self.files.path.clone() })?;
        let mut cache = lock(&self.files.cache);
        cache.vote = Some(vote);
        let truncations = cache.truncations();
        for entry in entries {
            cache.append(entry);
        }
        let next = cache.next();
        cache.set_durable(next, truncations);
        Ok(true)
    }
}
