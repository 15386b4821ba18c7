//! The session of a client: hello, welcome, key, reset.

use std::collections::BTreeMap;
use std::time::Duration;

use model::NodeId;

use super::ClientEffect;
use super::ClientInput;
use super::Part;
use super::RegisterOutcome;
use super::asks::Asked;
use super::io::Request;
use super::io::Stage;
use super::unflushed::Turn;
use super::unflushed::Unflushed;
use crate::lease::Access;
use crate::lease::Epoch;
use crate::lease::FileId;
use crate::lease::Limits;
use crate::lease::OpenId;
use crate::lease::Refusal;
use crate::lease::SessionId;
use crate::lease::Span;
use crate::lease::ToClient;
use crate::lease::ToCoordinator;
use crate::lease::table::Table;

/// The client of one volume on one node.
#[derive(Debug, Clone)]
pub struct Client {
    pub(super) node: NodeId,
    pub(super) limits: Limits,
    view: Option<(Epoch, NodeId)>,
    pub(super) link: Link,
    nonce: u64,
    /// Whether there is a path of its own.
    path: bool,
    pub(super) handles: BTreeMap<u64, Handle>,
    pub(super) leases: BTreeMap<FileId, Table>,
    /// Grants up to this number came too late: they were recalled before they arrived.
    recalled: BTreeMap<FileId, u64>,
    /// Recalls that wait for I/O to end.
    releasing: Vec<(FileId, u64, Span)>,
    pub(super) asks: BTreeMap<u64, Asked>,
    pub(super) next_ask: u64,
    pub(super) requests: BTreeMap<Turn, Request>,
    pub(super) unflushed: Unflushed,
    /// Numbers what the client asks for itself.
    pub(super) next_own: u64,
    /// Commands at the LUN that have not ended, of this session and of those before.
    pub(super) on_the_way: BTreeMap<Part, Option<Turn>>,
    pub(super) next_part: Part,
    next_send: Duration,
    pub(super) effects: Vec<ClientEffect>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    Lost,
    Greeting,
    Welcomed { session: SessionId, key: Key, claimed: bool },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    None,
    Registering,
    Registered,
    /// A higher epoch is there; not to be tried again in this session.
    Refused,
    /// To be tried again soon.
    Failed,
}

/// An open file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Handle {
    pub(super) file: FileId,
    pub(super) access: Access,
    pub(super) stage: HandleStage,
    pub(super) closing: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HandleStage {
    /// Is to be asked for, or has been.
    Opening {
        asked: bool,
    },
    /// Was open in a session before.
    Claiming {
        open: OpenId,
        asked: bool,
    },
    Open(OpenId),
    /// Is somebody else's now; all I/O fails.
    Taken,
    /// Has been asked to close.
    Closing(OpenId),
}

impl Client {
    /// A client without a coordinator. `nonce` is greater than that of any hello that this node has
    /// ever sent (boot counter above, count below). Nothing of a client before is on the way.
    pub fn new(node: NodeId, limits: Limits, nonce: u64) -> Self {
        Self {
            node,
            limits,
            view: None,
            link: Link::Lost,
            nonce,
            path: false,
            handles: BTreeMap::new(),
            leases: BTreeMap::new(),
            recalled: BTreeMap::new(),
            releasing: Vec::new(),
            asks: BTreeMap::new(),
            next_ask: 1,
            requests: BTreeMap::new(),
            unflushed: Unflushed::default(),
            next_own: 1,
            on_the_way: BTreeMap::new(),
            next_part: 1,
            next_send: Duration::ZERO,
            effects: Vec::new(),
        }
    }

    /// Whether I/O goes to the LUN itself, where leases are there.
    pub fn is_direct(&self) -> bool {
        self.path && matches!(self.link, Link::Welcomed { key: Key::Registered, .. })
    }

    /// Whether files are being closed, of which the coordinator has not answered yet.
    pub fn is_closing(&self) -> bool {
        self.handles.values().any(|handle| handle.closing)
    }

    /// Whether this node is just ending to write that file; until that is answered, a new coordinator
    /// has to be told how long the file is.
    pub fn is_closing_writer(&self, file: FileId) -> bool {
        let writes = |it: &Handle| it.file == file && it.access == Access::Write;
        self.handles.values().any(|handle| writes(handle) && handle.closing)
    }

    /// Whether nothing of it is on the way to the LUN.
    pub fn is_drained(&self) -> bool {
        self.on_the_way.is_empty()
    }

    /// For which request of a guest a command at the LUN is on the way.
    pub fn asker(&self, part: Part) -> Option<u64> {
        match self.on_the_way.get(&part) {
            Some(Some(Turn::Guest(io))) => Some(*io),
            _ => None,
        }
    }

    /// One step at `now`, a clock of this host that never goes back.
    pub fn step(&mut self, now: Duration, input: ClientInput) -> Vec<ClientEffect> {
        match input {
            ClientInput::View { epoch, coordinator } => {
                if self.view.is_none_or(|(known, _)| known < epoch) {
                    self.view = Some((epoch, coordinator));
                    self.reset();
                }
            }
            ClientInput::Message { from, message } => {
                if self.view.is_some_and(|(_, coordinator)| coordinator == from) {
                    self.message(message);
                }
            }
            ClientInput::Open { handle, file, access } => self.open(handle, file, access),
            ClientInput::Close { handle } => {
                if let Some(handle) = self.handles.get_mut(&handle) {
                    handle.closing = true;
                }
            }
            ClientInput::Submit { io, what } => self.submit(io, what),
            ClientInput::Ahead { handle, block } => self.ask_ahead(handle, block),
            ClientInput::Device { part, result } => self.device(part, result),
            ClientInput::Registered { key, outcome } => self.registered(key, outcome),
            ClientInput::Path(usable) => {
                if !usable && self.path {
                    self.path = false;
                    self.reset();
                }
                self.path = usable;
            }
            ClientInput::Tick => {}
        }
        self.close_files();
        self.release();
        self.register();
        self.ask_for_files();
        self.keep_up();
        self.dispatch();
        self.repeat(now);
        std::mem::take(&mut self.effects)
    }

    fn message(&mut self, message: ToClient) {
        let current = match self.link {
            Link::Welcomed { session, .. } => Some(session),
            Link::Lost | Link::Greeting => None,
        };
        match message {
            ToClient::Welcome { nonce, session } => {
                let ours = self.view.is_some_and(|(epoch, _)| epoch == session.epoch);
                if self.link == Link::Greeting && nonce == self.nonce && ours {
                    self.link = Link::Welcomed { session, key: Key::None, claimed: false };
                }
            }
            ToClient::Answer { session, number, answer } if current == Some(session) => {
                self.answered(session, number, answer);
            }
            ToClient::Recall { session, file, upto, span } if current == Some(session) => {
                let recalled = self.recalled.entry(file).or_default();
                *recalled = upto.max(*recalled);
                if let Some(table) = self.leases.get_mut(&file) {
                    table.release(session, upto, span);
                }
                if !self.releasing.contains(&(file, upto, span)) {
                    self.releasing.push((file, upto, span));
                }
            }
            ToClient::Gone { session } if current == Some(session) => self.reset(),
            _ => {}
        }
    }

    /// Whether a grant may be used: it was not recalled before it came.
    pub(super) fn is_timely(&self, file: FileId, number: u64) -> bool {
        self.recalled.get(&file).is_none_or(|upto| number > *upto)
    }

    /// Gives back all leases of a file; later ones have greater numbers and are not meant.
    pub(super) fn give_back(&mut self, file: FileId, table: &Table) {
        if let Some(upto) = table.all().iter().map(|lease| lease.number).max() {
            self.releasing.push((file, upto, Span::from(0)));
        }
    }

    /// Gives leases back whose I/O has ended.
    fn release(&mut self) {
        let Link::Welcomed { session, .. } = self.link else { return };
        let requests = &self.requests;
        let handles = &self.handles;
        let mut free = Vec::new();
        self.releasing.retain(|(file, upto, span)| {
            let used = requests.values().any(|request| {
                matches!(&request.stage, Stage::Direct { oldest, .. } if oldest <= upto)
                    && request.what.span.overlaps(*span)
                    && handles.get(&request.what.handle).is_some_and(|it| it.file == *file)
            });
            if !used {
                free.push((*file, *upto, *span));
            }
            used
        });
        for (file, upto, span) in free {
            self.send(ToCoordinator::Released { session, file, upto, span });
        }
    }

    /// Registers the session's key as soon as nothing of before is on the way.
    fn register(&mut self) {
        let drained = self.is_drained();
        let Link::Welcomed { session, key, .. } = &mut self.link else { return };
        if *key == Key::None && self.path && drained {
            *key = Key::Registering;
            let key = session.key();
            self.effects.push(ClientEffect::Register(key));
        }
    }

    fn registered(&mut self, of: crate::lease::ReservationKey, outcome: RegisterOutcome) {
        let Link::Welcomed { session, key, .. } = &mut self.link else { return };
        if session.key() != of || *key != Key::Registering {
            return;
        }
        let session = *session;
        *key = match outcome {
            RegisterOutcome::Registered => Key::Registered,
            RegisterOutcome::Superseded => Key::Refused,
            RegisterOutcome::Failed => Key::Failed,
        };
        if *key == Key::Registered {
            self.send(ToCoordinator::Registered { session });
        }
    }

    /// Believes nothing any more, and asks for a new session.
    pub(super) fn reset(&mut self) {
        self.leases.clear();
        self.recalled.clear();
        self.releasing.clear();
        self.asks.clear();
        self.next_ask = 1;
        for request in self.requests.values_mut() {
            request.begin_again();
        }
        self.doubt();
        // They still are on the way, but nobody waits for what they say.
        self.on_the_way.values_mut().for_each(|request| *request = None);
        for handle in self.handles.values_mut() {
            handle.stage = match handle.stage {
                HandleStage::Opening { .. } => HandleStage::Opening { asked: false },
                // Of one that was being closed nobody knows whether it was: it is claimed, and closed
                // again, so that the next coordinator ends what the last one may have left.
                HandleStage::Open(open)
                | HandleStage::Closing(open)
                | HandleStage::Claiming { open, .. } => {
                    HandleStage::Claiming { open, asked: false }
                }
                HandleStage::Taken => HandleStage::Taken,
            };
        }
        self.link = Link::Lost;
        if self.view.is_some() {
            self.nonce += 1;
            self.link = Link::Greeting;
            self.send(ToCoordinator::Hello { node: self.node, nonce: self.nonce });
        }
    }

    /// Sends again what has no answer, and shows that this node is alive.
    fn repeat(&mut self, now: Duration) {
        if now < self.next_send {
            return;
        }
        self.next_send = now + self.limits.resend;
        match self.link {
            Link::Lost => {}
            Link::Greeting => {
                self.send(ToCoordinator::Hello { node: self.node, nonce: self.nonce });
            }
            Link::Welcomed { session, key, .. } => {
                self.send(match key {
                    // The first one may have been lost.
                    Key::Registered => ToCoordinator::Registered { session },
                    _ => ToCoordinator::Ping { session },
                });
                if let Link::Welcomed { key: key @ Key::Failed, .. } = &mut self.link {
                    *key = Key::None;
                }
                let asks: Vec<_> = self.asks.iter().map(|(n, it)| (*n, it.ask.clone())).collect();
                let done = self.done();
                for (number, ask) in asks {
                    self.send(ToCoordinator::Ask { session, number, done, ask });
                }
                self.requests.values_mut().for_each(|request| request.held = false);
            }
        }
    }

    pub(super) fn send(&mut self, message: ToCoordinator) {
        if let Some((_, coordinator)) = self.view {
            self.effects.push(ClientEffect::Send { to: coordinator, message });
        }
    }

    fn open(&mut self, handle: u64, file: FileId, access: Access) {
        if self.handles.len() >= self.limits.opens_max || self.handles.contains_key(&handle) {
            let result = Err(Refusal::Limit);
            self.effects.push(ClientEffect::Opened { handle, result });
            return;
        }
        let stage = HandleStage::Opening { asked: false };
        self.handles.insert(handle, Handle { file, access, stage, closing: false });
    }
}
