//! What the coordinator is asked, and what its answers mean.

use super::Client;
use super::ClientEffect;
use super::IoError;
use super::Mode;
use super::io::Stage;
use super::machine::HandleStage;
use super::machine::Key;
use super::machine::Link;
use super::unflushed::Turn;
use crate::lease::Access;
use crate::lease::Answer;
use crate::lease::Ask;
use crate::lease::Extent;
use crate::lease::FileId;
use crate::lease::LiveLease;
use crate::lease::Refusal;
use crate::lease::SessionId;
use crate::lease::ToCoordinator;

/// A request without an answer.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) ask: Ask,
    pub(super) whom: For,
}

/// Whom the answer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    Session,
    /// Opening, claiming or closing of a handle.
    Handle(u64),
    /// Leases for a handle.
    Leases(u64),
    Io(Turn),
}

impl Client {
    /// Asks, if there is room.
    pub(super) fn ask(&mut self, ask: Ask, whom: For) -> bool {
        let Link::Welcomed { session, .. } = self.link else { return false };
        let oldest = self.asks.keys().next().copied().unwrap_or(self.next_ask);
        // The coordinator keeps answers from the oldest open request on, so the window counts.
        if self.next_ask - oldest >= self.limits.asks_max as u64 {
            return false;
        }
        let number = self.next_ask;
        self.next_ask += 1;
        self.asks.insert(number, Asked { ask: ask.clone(), whom });
        let done = self.done();
        self.send(ToCoordinator::Ask { session, number, done, ask });
        true
    }

    /// All below this have been answered.
    pub(super) fn done(&self) -> u64 {
        self.asks.keys().next().copied().unwrap_or(self.next_ask)
    }

    /// Opens and claims what is not open in this session yet.
    pub(super) fn ask_for_files(&mut self) {
        let Link::Welcomed { claimed, .. } = self.link else { return };
        let unasked = |it: &super::machine::Handle| match it.stage {
            HandleStage::Opening { asked } | HandleStage::Claiming { asked, .. } => !asked,
            _ => false,
        };
        // Nearly always: this is looked at with each request.
        if claimed && !self.handles.values().any(unasked) {
            return;
        }
        let handles: Vec<u64> = self.handles.keys().copied().collect();
        for id in handles {
            let Some(handle) = self.handles.get(&id).copied() else { continue };
            let (file, access) = (handle.file, handle.access);
            let (ask, next) = match handle.stage {
                // What this node is just closing it closes first: the coordinator ends the writer of a
                // file, whichever open of the node it was.
                HandleStage::Opening { asked: false } if self.is_closing_writer(file) => {
                    continue;
                }
                HandleStage::Opening { asked: false } => {
                    (Ask::Open { file, access }, HandleStage::Opening { asked: true })
                }
                HandleStage::Claiming { open, asked: false } => {
                    let next = HandleStage::Claiming { open, asked: true };
                    (Ask::Claim { file, open, access }, next)
                }
                _ => continue,
            };
            if self.ask(ask, For::Handle(id))
                && let Some(handle) = self.handles.get_mut(&id)
            {
                handle.stage = next;
            }
        }
        let mut stages = self.handles.values().map(|handle| handle.stage);
        let claiming = stages.any(|stage| matches!(stage, HandleStage::Claiming { .. }));
        if !claimed
            && !claiming
            && self.ask(Ask::Claimed, For::Session)
            && let Link::Welcomed { claimed, .. } = &mut self.link
        {
            *claimed = true;
        }
    }

    /// Closes handles that nobody uses any more.
    pub(super) fn close_files(&mut self) {
        let closing = self.handles.iter().filter(|(_, handle)| handle.closing);
        let closing: Vec<u64> = closing.map(|(id, _)| *id).collect();
        for id in closing {
            let busy = self.requests.values().any(|request| request.what.handle == id)
                || self.asks.values().any(|asked| asked.whom == For::Leases(id));
            let Some(handle) = self.handles.get(&id).copied().filter(|_| !busy) else { continue };
            match handle.stage {
                HandleStage::Open(_) if self.must_flush_before_close(id) => {
                    self.flush_by_itself(id);
                }
                HandleStage::Open(open) => {
                    let others = |it: (&u64, &super::machine::Handle)| {
                        *it.0 != id && it.1.file == handle.file
                    };
                    if !self.handles.iter().any(others)
                        && let Some(table) = self.leases.remove(&handle.file)
                    {
                        self.give_back(handle.file, &table);
                    }
                    if self.ask(Ask::Close { open }, For::Handle(id))
                        && let Some(handle) = self.handles.get_mut(&id)
                    {
                        handle.stage = HandleStage::Closing(open);
                    }
                }
                HandleStage::Taken => {
                    self.handles.remove(&id);
                }
                _ => {}
            }
        }
    }

    pub(super) fn answered(&mut self, session: SessionId, number: u64, answer: Answer) {
        let Some(asked) = self.asks.remove(&number) else { return };
        match asked.whom {
            For::Session => {}
            For::Handle(handle) => self.handle_answered(handle, answer),
            For::Leases(handle) => self.leases_answered(session, handle, &asked.ask, answer),
            For::Io(io) => self.io_answered(io, answer),
        }
    }

    fn handle_answered(&mut self, id: u64, answer: Answer) {
        let Some(handle) = self.handles.get_mut(&id) else { return };
        let was = handle.stage;
        match (was, answer) {
            (HandleStage::Opening { .. }, Answer::Opened { open, blocks }) => {
                handle.stage = HandleStage::Open(open);
                self.effects.push(ClientEffect::Opened { handle: id, result: Ok(blocks) });
            }
            (HandleStage::Claiming { .. }, Answer::Opened { open, .. }) => {
                handle.stage = HandleStage::Open(open);
            }
            (HandleStage::Opening { .. }, Answer::Refused(refusal)) => {
                self.handles.remove(&id);
                self.effects.push(ClientEffect::Opened { handle: id, result: Err(refusal) });
            }
            (HandleStage::Claiming { .. }, Answer::Refused(_)) => {
                handle.stage = HandleStage::Taken;
                let (file, access) = (handle.file, handle.access);
                if access == Access::Write {
                    self.forget_unflushed(file);
                }
            }
            (HandleStage::Closing(_), _) => {
                self.handles.remove(&id);
            }
            _ => {}
        }
    }

    fn leases_answered(&mut self, session: SessionId, id: u64, ask: &Ask, answer: Answer) {
        let Ask::Acquire { span, .. } = ask else { return };
        if let Answer::Granted { file, number, access, extents } = answer {
            self.take(session, file, number, access, &extents);
        }
        // Whoever asked for blocks that are not covered now goes through the coordinator.
        let Some(handle) = self.handles.get(&id).copied() else { return };
        let table = self.leases.get(&handle.file).cloned().unwrap_or_default();
        for request in self.requests.values_mut() {
            let wanted = request.what.span;
            if request.what.handle != id
                || !matches!(request.stage, Stage::Waiting)
                || !wanted.overlaps(*span)
            {
                continue;
            }
            let access = request.access();
            let mut at = wanted.start;
            while at < wanted.end() {
                let mut leases = table.all().iter();
                let covers = leases.find(|it| it.access >= access && it.extent.span.contains(at));
                match covers {
                    Some(lease) => at = lease.extent.span.end(),
                    None => break,
                }
            }
            request.redirected = at < wanted.end();
        }
    }

    fn take(
        &mut self,
        session: SessionId,
        file: FileId,
        number: u64,
        access: Access,
        extents: &[Extent],
    ) {
        let ready = matches!(self.link, Link::Welcomed { key: Key::Registered, .. });
        if !ready || !self.is_timely(file, number) {
            return;
        }
        let table = self.leases.entry(file).or_default();
        for extent in extents {
            let node = self.node;
            table.grant(LiveLease { node, session, number, access, extent: *extent });
        }
    }

    fn io_answered(&mut self, io: Turn, answer: Answer) {
        let direct = self.is_direct();
        let Some(request) = self.requests.get_mut(&io) else { return };
        match answer {
            Answer::Data(data) => self.complete(io, Ok(data)),
            Answer::Refused(Refusal::Limit) => {
                request.stage = Stage::Waiting;
                request.held = true;
            }
            // Sent again after it was done.
            Answer::Refused(Refusal::NoSuchFile) if request.what.mode == Mode::Delete => {
                self.complete(io, Ok([].into()));
            }
            Answer::Refused(refusal) => self.complete(io, Err(IoError::Refused(refusal))),
            Answer::Done if request.what.mode == Mode::Flush && direct => {
                request.stage = Stage::Waiting;
                request.half = true;
                let covers = request.covers;
                self.flushed_there(covers);
            }
            Answer::Done | Answer::Opened { .. } | Answer::Granted { .. } => {
                self.complete(io, Ok([].into()));
            }
        }
    }
}
