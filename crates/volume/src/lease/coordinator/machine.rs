//! Sessions: who may speak, what is answered once, and when a key is fenced.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use model::NodeId;

use super::CoordinatorEffect;
use super::CoordinatorInput;
use super::files::File;
use crate::lease::Access;
use crate::lease::Answer;
use crate::lease::Ask;
use crate::lease::Epoch;
use crate::lease::FileId;
use crate::lease::Limits;
use crate::lease::LiveLease;
use crate::lease::OpenId;
use crate::lease::Refusal;
use crate::lease::ReservationKey;
use crate::lease::SessionId;
use crate::lease::Span;
use crate::lease::ToClient;
use crate::lease::ToCoordinator;

/// The coordinator of one epoch; made when its file system is mounted.
#[derive(Debug, Clone)]
pub struct Coordinator {
    pub(super) epoch: Epoch,
    pub(super) limits: Limits,
    /// Nodes that may have files open from the epoch before and have not been heard yet.
    pub(super) unheard: BTreeSet<NodeId>,
    pub(super) grace_end: Duration,
    pub(super) next_session: u32,
    pub(super) next_open: u64,
    pub(super) next_deed: u64,
    pub(super) sessions: BTreeMap<NodeId, Session>,
    pub(super) files: BTreeMap<FileId, File>,
    pub(super) opens: BTreeMap<OpenId, Open>,
    pub(super) effects: Vec<CoordinatorEffect>,
}

/// A node's stay.
#[derive(Debug, Clone)]
pub(super) struct Session {
    pub(super) id: SessionId,
    /// The hello that began it.
    nonce: u64,
    pub(super) stage: Stage,
    heard: Duration,
    /// Said that it has claimed all it had.
    pub(super) claimed: bool,
    /// Requests below this have been answered and the client knows it.
    low: u64,
    /// Requests from there on: without an answer while they are in work.
    answers: BTreeMap<u64, Option<Answer>>,
    pub(super) next_lease: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Welcomed,
    Ready,
    Ending {
        /// Its key is gone.
        fenced: bool,
        /// The hello that waits for the end.
        successor: Option<u64>,
    },
}

/// An open file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Open {
    pub(super) file: FileId,
    pub(super) node: NodeId,
    pub(super) session: SessionId,
    pub(super) access: Access,
}

impl Coordinator {
    /// Begins to serve at `now` (a clock of this host that never goes back). `members` are the nodes
    /// that may have files open; until `grace` is over, those of the ones not heard are kept.
    pub fn new(epoch: Epoch, limits: Limits, members: BTreeSet<NodeId>, now: Duration) -> Self {
        Self {
            epoch,
            grace_end: now + limits.grace,
            limits,
            unheard: members,
            next_session: 1,
            next_open: 1,
            next_deed: 1,
            sessions: BTreeMap::new(),
            files: BTreeMap::new(),
            opens: BTreeMap::new(),
            effects: Vec::new(),
        }
    }

    /// The reign.
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// All leases that may be in use, by file.
    pub fn leases(&self) -> impl Iterator<Item = (FileId, &LiveLease)> {
        let files = self.files.iter();
        files.flat_map(|(id, file)| file.leases.all().iter().map(|lease| (*id, lease)))
    }

    /// Whether a file is open, leased, or being worked on. What is not may be let go of.
    pub fn is_used(&self, file: FileId) -> bool {
        self.files.contains_key(&file) || self.opens.values().any(|open| open.file == file)
    }

    /// One step at `now`, which never goes back.
    pub fn step(&mut self, now: Duration, input: CoordinatorInput) -> Vec<CoordinatorEffect> {
        match input {
            CoordinatorInput::Message { from, message } => self.message(now, from, message),
            CoordinatorInput::Fenced(key) => self.fenced(now, key),
            CoordinatorInput::Did { id, outcome } => self.did(now, id, outcome),
            CoordinatorInput::Tick => self.tick(now),
        }
        std::mem::take(&mut self.effects)
    }

    fn message(&mut self, now: Duration, from: NodeId, message: ToCoordinator) {
        let session = match &message {
            ToCoordinator::Hello { node, nonce } => {
                // A node speaks for itself only.
                if *node == from {
                    self.hello(now, from, *nonce);
                }
                return;
            }
            ToCoordinator::Registered { session }
            | ToCoordinator::Ask { session, .. }
            | ToCoordinator::Released { session, .. }
            | ToCoordinator::Ping { session } => *session,
        };
        match self.sessions.get_mut(&from) {
            Some(live) if live.id == session => {
                if matches!(live.stage, Stage::Ending { .. }) {
                    return;
                }
                live.heard = now;
            }
            _ => return self.send(from, ToClient::Gone { session }),
        }
        match message {
            ToCoordinator::Hello { .. } => {}
            ToCoordinator::Ping { .. } => self.send(from, ToClient::Pong { session }),
            ToCoordinator::Registered { .. } => {
                if let Some(live) = self.sessions.get_mut(&from) {
                    live.stage = Stage::Ready;
                }
                self.send(from, ToClient::Pong { session });
            }
            ToCoordinator::Released { file, upto, span, .. } => {
                if let Some(file) = self.files.get_mut(&file) {
                    file.leases.release(session, upto, span);
                }
                self.advance(now, file);
            }
            ToCoordinator::Ask { number, done, ask, .. } => {
                self.ask(now, from, session, number, done, ask);
            }
        }
    }

    fn hello(&mut self, now: Duration, node: NodeId, nonce: u64) {
        let Some(live) = self.sessions.get_mut(&node) else {
            return self.welcome(now, node, nonce);
        };
        if let Stage::Ending { successor, .. } = &mut live.stage {
            *successor = Some(successor.unwrap_or(0).max(nonce)).filter(|it| *it > live.nonce);
        } else if nonce == live.nonce {
            let message = ToClient::Welcome { nonce, session: live.id };
            live.heard = now;
            self.send(node, message);
        } else if nonce > live.nonce {
            // The client has given the old session up; its key must be gone before the new one.
            self.end(now, node, Some(nonce));
        }
    }

    fn welcome(&mut self, now: Duration, node: NodeId, nonce: u64) {
        let id = SessionId { epoch: self.epoch, number: self.next_session };
        assert!(
            self.next_session < u32::MAX,
            "a coordinator has given out all its session numbers"
        );
        self.next_session += 1;
        self.unheard.remove(&node);
        let session = Session {
            id,
            nonce,
            stage: Stage::Welcomed,
            heard: now,
            claimed: false,
            low: 0,
            answers: BTreeMap::new(),
            next_lease: 1,
        };
        self.sessions.insert(node, session);
        self.send(node, ToClient::Welcome { nonce, session: id });
    }

    /// Ends a session: from now on nothing of it is answered or begun, and its key is fenced.
    fn end(&mut self, now: Duration, node: NodeId, successor: Option<u64>) {
        let Some(live) = self.sessions.get_mut(&node) else { return };
        live.stage = Stage::Ending { fenced: false, successor };
        let id = live.id;
        self.effects.push(CoordinatorEffect::Fence(id.key()));
        self.forget_waiting(id);
        let files: Vec<FileId> = self.files.keys().copied().collect();
        for file in files {
            self.advance(now, file);
        }
    }

    fn fenced(&mut self, now: Duration, key: ReservationKey) {
        let Some((node, live)) = self.sessions.iter_mut().find(|(_, live)| live.id.key() == key)
        else {
            return;
        };
        let (node, id) = (*node, live.id);
        // Leases end by this proof and by nothing else.
        let Stage::Ending { fenced, .. } = &mut live.stage else { return };
        *fenced = true;
        let held: Vec<FileId> = self.files.keys().copied().collect();
        for file in held {
            if let Some(file) = self.files.get_mut(&file) {
                file.leases.drop_session(id);
            }
            self.advance(now, file);
        }
        self.bury(now, node);
    }

    /// Removes a session that is fenced and for which nothing is in work any more.
    pub(super) fn bury(&mut self, now: Duration, node: NodeId) {
        let Some(live) = self.sessions.get(&node) else { return };
        let Stage::Ending { fenced: true, successor } = live.stage else { return };
        let id = live.id;
        if self.files.values().any(|file| file.works_for(id)) {
            return;
        }
        self.opens.retain(|_, open| open.session != id);
        self.sessions.remove(&node);
        if let Some(nonce) = successor {
            self.welcome(now, node, nonce);
        }
    }

    fn ask(
        &mut self,
        now: Duration,
        from: NodeId,
        session: SessionId,
        number: u64,
        done: u64,
        ask: Ask,
    ) {
        let asks_max = self.limits.asks_max;
        let Some(live) = self.sessions.get_mut(&from) else { return };
        if done > live.low {
            live.low = done;
            // What is in work still counts, whatever the client says of it.
            live.answers.retain(|number, answer| *number >= done || answer.is_none());
        }
        if number < live.low {
            return;
        }
        match live.answers.get(&number) {
            Some(Some(answer)) => {
                let message = ToClient::Answer { session, number, answer: answer.clone() };
                return self.send(from, message);
            }
            Some(None) => return,
            // Not even refused, since a refusal would have to be kept: the client keeps to the limit.
            None if live.answers.len() >= asks_max => return,
            None => live.answers.insert(number, None),
        };
        if ask == Ask::Claimed {
            live.claimed = true;
            return self.answer(from, session, number, Answer::Done);
        }
        if let Err(refusal) = self.queue(now, from, session, number, ask) {
            self.answer(from, session, number, Answer::Refused(refusal));
        }
    }

    /// The open file of that session.
    pub(super) fn opened(&self, open: OpenId, session: SessionId) -> Result<Open, Refusal> {
        let found = self.opens.get(&open).filter(|open| open.session == session);
        found.copied().ok_or(Refusal::NotOpen)
    }

    /// Answers once, and keeps the answer for as long as the client may ask again.
    pub(super) fn answer(&mut self, node: NodeId, session: SessionId, number: u64, answer: Answer) {
        let Some(live) = self.sessions.get_mut(&node) else { return };
        if live.id != session || matches!(live.stage, Stage::Ending { .. }) {
            return;
        }
        if let Some(slot) = live.answers.get_mut(&number) {
            assert!(slot.is_none(), "request {number} of {node} is answered a second time");
            *slot = Some(answer.clone());
        }
        if number < live.low {
            live.answers.remove(&number);
        }
        self.send(node, ToClient::Answer { session, number, answer });
    }

    fn tick(&mut self, now: Duration) {
        let silence = self.limits.silence;
        let mut ends: Vec<NodeId> = Vec::new();
        for (node, live) in &self.sessions {
            let silent = now.saturating_sub(live.heard) > silence;
            if silent && !matches!(live.stage, Stage::Ending { .. }) {
                ends.push(*node);
            }
        }
        for recall in self.files.values().flat_map(|file| file.recalls.values()) {
            if now >= recall.deadline {
                ends.push(recall.node);
            }
        }
        for node in ends {
            let live = self.sessions.get(&node);
            if live.is_some_and(|live| !matches!(live.stage, Stage::Ending { .. })) {
                self.end(now, node, None);
            }
        }
        let files: Vec<FileId> = self.files.keys().copied().collect();
        for file in files {
            self.repeat_recalls(file);
        }
    }

    fn repeat_recalls(&mut self, id: FileId) {
        let Some(file) = self.files.get(&id) else { return };
        let recalls: Vec<_> = file.recalls.iter().map(|(session, it)| (*session, *it)).collect();
        for (session, recall) in recalls {
            let (upto, span) = (recall.upto, recall.span);
            self.send(recall.node, ToClient::Recall { session, file: id, upto, span });
        }
    }

    pub(super) fn send(&mut self, to: NodeId, message: ToClient) {
        self.effects.push(CoordinatorEffect::Send { to, message });
    }

    /// Whether a node may yet claim files that it wrote.
    pub(super) fn may_claim(&self, now: Duration, node: NodeId) -> bool {
        match self.sessions.get(&node) {
            Some(live) => match live.stage {
                Stage::Ending { successor, .. } => successor.is_some(),
                Stage::Welcomed | Stage::Ready => !live.claimed,
            },
            None => now < self.grace_end && self.unheard.contains(&node),
        }
    }
}

/// Leases that are wanted back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recall {
    pub(super) node: NodeId,
    pub(super) upto: u64,
    pub(super) span: Span,
    pub(super) deadline: Duration,
}
