//! Each proposal is carried out once, however often it is sent.
//!
//! ```text
//!   ticket = node, boot, number, floor
//!   session of a node = its boot, its floor, the numbers from the floor on that were carried out
//! ```
//!
//! A node numbers its proposals. When the answer to one is lost, it sends the same ticket again,
//! perhaps to another leader, and both may end up in the log. The state machine carries out the
//! first and passes over the second: its number is in the session. The floor keeps sessions small:
//! nobody waits for a number below it any more, so it is passed over, too, should it turn up late.
//! A session is part of the replicated state, so each node passes over the same entries.
//!
//! A session ends when its node is no member any more, or is opened again (`boot`).

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use model::NodeId;
use serde::Deserialize;
use serde::Serialize;

use super::types::Ticket;

/// The most numbers above a floor: more proposals than a node has under way at once
/// ([`super::replica`] has fewer).
pub(crate) const OPEN_TICKETS_MAX: usize = 4_096;

/// What was carried out for whom.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Sessions {
    nodes: BTreeMap<NodeId, Session>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Session {
    boot: u64,
    floor: u64,
    done: BTreeSet<u64>,
}

/// What to do with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admit {
    /// Carry it out.
    First,
    /// Pass over it: it was carried out, or nobody waits for it any more.
    Repeated,
}

impl Sessions {
    /// Notes that a ticket is being carried out, if it has not been yet.
    pub(crate) fn admit(&mut self, ticket: &Ticket) -> Admit {
        let session = self.nodes.entry(ticket.node).or_default();
        if ticket.boot < session.boot {
            return Admit::Repeated;
        }
        if ticket.boot > session.boot {
            *session = Session { boot: ticket.boot, ..Session::default() };
        }
        if ticket.floor > session.floor {
            session.floor = ticket.floor;
            session.done = session.done.split_off(&ticket.floor);
        }
        if ticket.number < session.floor || !session.done.insert(ticket.number) {
            return Admit::Repeated;
        }
        // A peer that never raises its floor does not fill our memory.
        while session.done.len() > OPEN_TICKETS_MAX {
            if let Some(lowest) = session.done.pop_first() {
                session.floor = lowest + 1;
            }
        }
        Admit::First
    }

    /// Whether a ticket of this node can still be carried out, or has been.
    pub(crate) fn has_done(&self, node: NodeId, boot: u64, number: u64) -> bool {
        self.nodes.get(&node).is_some_and(|session| {
            session.boot == boot && (number < session.floor || session.done.contains(&number))
        })
    }

    /// Ends the sessions of those that are no members.
    pub(crate) fn keep_only(&mut self, members: &BTreeSet<NodeId>) {
        self.nodes.retain(|node, _| members.contains(node));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket(boot: u64, number: u64, floor: u64) -> Ticket {
        let node = NodeId::new(uuid::Uuid::from_u128(1));
        Ticket { node, boot, number, floor }
    }

    #[test]
    fn a_ticket_is_carried_out_once() {
        let mut sessions = Sessions::default();
        assert_eq!(sessions.admit(&ticket(1, 1, 1)), Admit::First);
        assert_eq!(sessions.admit(&ticket(1, 3, 1)), Admit::First);
        assert_eq!(sessions.admit(&ticket(1, 1, 1)), Admit::Repeated);
        assert_eq!(sessions.admit(&ticket(1, 2, 1)), Admit::First);
        assert_eq!(sessions.admit(&ticket(1, 5, 4)), Admit::First);
        assert_eq!(sessions.admit(&ticket(1, 3, 1)), Admit::Repeated, "below the floor");
        assert_eq!(sessions.admit(&ticket(1, 4, 1)), Admit::First, "the floor itself is open");
        assert_eq!(sessions.admit(&ticket(1, 4, 4)), Admit::Repeated);
    }

    #[test]
    fn tickets_of_an_earlier_run_are_void() {
        let mut sessions = Sessions::default();
        assert_eq!(sessions.admit(&ticket(1, 7, 1)), Admit::First);
        assert_eq!(sessions.admit(&ticket(2, 1, 1)), Admit::First);
        assert_eq!(sessions.admit(&ticket(1, 8, 1)), Admit::Repeated);
        assert_eq!(sessions.admit(&ticket(2, 7, 1)), Admit::First, "numbers begin anew");
    }

    #[test]
    fn a_session_does_not_grow_without_end() {
        let mut sessions = Sessions::default();
        for number in 1..=20_000 {
            assert_eq!(sessions.admit(&ticket(1, number, 1)), Admit::First);
        }
        let session = sessions.nodes.values().next().unwrap();
        assert_eq!(session.done.len(), OPEN_TICKETS_MAX);
        assert_eq!(sessions.admit(&ticket(1, 5, 1)), Admit::Repeated);
        sessions.keep_only(&BTreeSet::new());
        assert!(sessions.nodes.is_empty());
    }
}
