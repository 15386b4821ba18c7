//! The requests of guests: which way each goes, and what has to wait.

use super::Client;
use super::ClientEffect;
use super::DeviceDeed;
use super::Io;
use super::IoError;
use super::IoResult;
use super::Mode;
use super::Part;
use super::asks::For;
use super::machine::Handle;
use super::machine::HandleStage;
use super::machine::Link;
use super::unflushed::Turn;
use crate::lease::Access;
use crate::lease::Ask;
use crate::lease::Extent;
use crate::lease::OpenId;
use crate::lease::Payload;
use crate::lease::Span;

#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) what: Io,
    pub(super) stage: Stage,
    /// Leases were asked for in vain; it goes through the coordinator.
    pub(super) redirected: bool,
    /// Was refused for want of room; goes on with the next tick.
    pub(super) held: bool,
    /// Of a flush: writes up to this number had ended when it was begun.
    pub(super) covers: u64,
    /// Of a flush: what went through the coordinator is flushed, what went directly is not yet.
    pub(super) half: bool,
}

#[derive(Debug, Clone)]
pub(super) enum Stage {
    Waiting,
    /// Commands at the LUN: where in the request each begins, and what it has read.
    Direct {
        left: Vec<(Part, u64)>,
        read: Vec<(u64, Payload)>,
        /// The oldest lease in use.
        oldest: u64,
    },
    /// With the coordinator.
    Asked,
}

impl Request {
    /// What it has done so far is not known; it is done again from the start.
    pub(super) fn begin_again(&mut self) {
        self.stage = Stage::Waiting;
        self.redirected = false;
        self.held = false;
        self.half = false;
    }

    /// What a lease must be for.
    pub(super) fn access(&self) -> Access {
        match self.what.mode {
            Mode::Write(_) => Access::Write,
            _ => Access::Read,
        }
    }

    /// Blocks whose order matters.
    fn changes(&self) -> Option<Span> {
        match self.what.mode {
            Mode::Write(_) | Mode::Punch => Some(self.what.span),
            Mode::Truncate => Some(Span::from(self.what.span.start)),
            // What is cloned or deleted, and what is written at the same time, would be a guess.
            Mode::CloneTo(_) | Mode::Delete => Some(Span::from(0)),
            Mode::Read | Mode::Flush => None,
        }
    }
}

impl Client {
    pub(super) fn submit(&mut self, io: u64, what: Io) {
        let valid = match &what.mode {
            Mode::Read | Mode::Punch => !what.span.is_empty(),
            Mode::Write(data) => {
                let length = data.len() as u64;
                !what.span.is_empty() && length > 0 && length.is_multiple_of(what.span.count)
            }
            Mode::Flush | Mode::Truncate | Mode::CloneTo(_) | Mode::Delete => true,
        };
        let refused = if !valid || self.requests.contains_key(&Turn::Guest(io)) {
            Some(IoError::Invalid)
        } else if self.guests_requests() >= self.limits.ios_max {
            Some(IoError::Limit)
        } else if self.handles.get(&what.handle).is_none_or(|handle| handle.closing) {
            Some(IoError::NotOpen)
        } else {
            None
        };
        match refused {
            Some(error) => self.effects.push(ClientEffect::Complete { io, result: Err(error) }),
            None => {
                let stage = Stage::Waiting;
                let request =
                    Request { what, stage, redirected: false, held: false, covers: 0, half: false };
                self.requests.insert(Turn::Guest(io), request);
            }
        }
    }

    fn guests_requests(&self) -> usize {
        // Own ones are few.
        self.requests.len() - self.requests.range(..Turn::Guest(0)).count()
    }

    pub(super) fn complete(&mut self, turn: Turn, result: IoResult) {
        let Some(request) = self.requests.remove(&turn) else { return };
        let result = self.note_end(&request, result);
        match (turn, result) {
            (Turn::Guest(io), result) => self.effects.push(ClientEffect::Complete { io, result }),
            (Turn::Own(_), Err(error)) => self.own_failed(&request, error),
            (Turn::Own(_), Ok(_)) => {}
        }
    }

    /// Sends what can be sent.
    pub(super) fn dispatch(&mut self) {
        if !matches!(self.link, Link::Welcomed { .. }) {
            return;
        }
        let waiting: Vec<Turn> = self
            .requests
            .iter()
            .filter(|(_, request)| matches!(request.stage, Stage::Waiting) && !request.held)
            .map(|(io, _)| *io)
            .collect();
        for io in waiting {
            let Some(request) = self.requests.get(&io) else { continue };
            let Some(handle) = self.handles.get(&request.what.handle).copied() else {
                self.complete(io, Err(IoError::NotOpen));
                continue;
            };
            match handle.stage {
                HandleStage::Open(open) if !self.must_wait(io, &handle) => {
                    self.go(io, open, &handle)
                }
                HandleStage::Taken => {
                    self.complete(io, Err(IoError::Refused(crate::lease::Refusal::Taken)));
                }
                _ => {}
            }
        }
    }

    /// A block never has two changes on the way: one that is sent again could undo the other. And
    /// what is to be written again comes before all that could see that it is not there.
    fn must_wait(&self, io: Turn, handle: &Handle) -> bool {
        let Some(request) = self.requests.get(&io) else { return false };
        let guest = matches!(io, Turn::Guest(_));
        match request.what.mode {
            Mode::Flush => return self.writes_again(),
            Mode::Write(_) if guest && self.is_full_of_unflushed() => return true,
            _ => {}
        }
        let Some(span) = request.changes() else { return self.is_behind(request, handle) };
        if guest && self.unflushed.again.touches(handle.file, span) {
            return true;
        }
        self.requests.range(..io).any(|(_, other)| {
            other.changes().is_some_and(|it| it.overlaps(span))
                && self.handles.get(&other.what.handle).is_some_and(|it| it.file == handle.file)
        })
    }

    /// Whether a read is of blocks that are yet to be written again.
    fn is_behind(&self, read: &Request, handle: &Handle) -> bool {
        let span = read.what.span;
        self.unflushed.again.touches(handle.file, span)
            || self.requests.range(..Turn::Guest(0)).any(|(_, own)| {
                own.changes().is_some_and(|it| it.overlaps(span))
                    && self.handles.get(&own.what.handle).is_some_and(|it| it.file == handle.file)
            })
    }

    fn go(&mut self, io: Turn, open: OpenId, handle: &Handle) {
        let covers = self.covered_by_flush();
        if let Some(request) = self.requests.get_mut(&io) {
            request.covers = covers;
        }
        let Some(request) = self.requests.get(&io) else { return };
        let span = request.what.span;
        let direct = self.is_direct();
        let ask = match &request.what.mode {
            Mode::Flush if direct && (request.half || !self.flushes_there_first()) => {
                return self.command(io, vec![], Some(DeviceDeed::Flush), 0);
            }
            Mode::Flush => Ask::Flush { open },
            Mode::Punch => Ask::Punch { open, span },
            Mode::Truncate => Ask::Truncate { open, blocks: span.start },
            Mode::CloneTo(to) => Ask::Clone { open, to: *to },
            Mode::Delete => Ask::Delete { file: handle.file },
            Mode::Read | Mode::Write(_) if direct && !request.redirected => {
                return self.go_direct(io, open, handle);
            }
            Mode::Read => Ask::Read { open, span },
            Mode::Write(data) => Ask::Write { open, span, data: data.clone() },
        };
        if self.ask(ask, For::Io(io))
            && let Some(request) = self.requests.get_mut(&io)
        {
            request.stage = Stage::Asked;
        }
    }

    fn go_direct(&mut self, io: Turn, open: OpenId, handle: &Handle) {
        let Some(request) = self.requests.get(&io) else { return };
        let span = request.what.span;
        let access = request.access();
        if let Some((extents, oldest)) = self.covered(handle, span, access) {
            return self.command(io, extents, None, oldest);
        }
        // A writer takes leases that serve its reads, too, unless it would have to grow for them.
        self.ask_for_leases(request.what.handle, open, span, access);
    }

    /// One request for leases at a time for a handle; the others wait for what comes of it.
    fn ask_for_leases(&mut self, handle: u64, open: OpenId, span: Span, access: Access) {
        if !self.asks.values().any(|asked| asked.whom == For::Leases(handle)) {
            self.ask(Ask::Acquire { open, span, access }, For::Leases(handle));
        }
    }

    /// Leases for what will be written soon.
    pub(super) fn ask_ahead(&mut self, id: u64, block: u64) {
        let Some(handle) = self.handles.get(&id).filter(|it| !it.closing).copied() else { return };
        let span = Span::new(block, 1);
        let HandleStage::Open(open) = handle.stage else { return };
        if self.is_direct()
            && handle.access == Access::Write
            && !span.is_empty()
            && self.covered(&handle, span, Access::Write).is_none()
        {
            self.ask_for_leases(id, open, span, Access::Write);
        }
    }

    /// The run of blocks around this one that may be written directly now; none where it may not.
    pub fn leased_around(&self, id: u64, block: u64) -> Option<Span> {
        let handle = self.handles.get(&id)?;
        let table = self.leases.get(&handle.file)?;
        let runs = || table.all().iter().filter(|it| it.access == Access::Write);
        let runs = || runs().map(|lease| lease.extent.span);
        let mut found = runs().find(|run| run.contains(block))?;
        // Few: a file that grows lies in large pieces.
        while let Some(next) = runs().find(|run| run.start == found.end()) {
            found.count += next.count;
        }
        while let Some(before) = runs().find(|run| run.end() == found.start) {
            found = Span::new(before.start, before.count + found.count);
        }
        Some(found)
    }

    /// Where these blocks lie, if leases cover all of them, and the oldest of those leases.
    fn covered(&self, handle: &Handle, span: Span, access: Access) -> Option<(Vec<Extent>, u64)> {
        let table = self.leases.get(&handle.file)?;
        let mut extents = Vec::new();
        let mut oldest = u64::MAX;
        let mut at = span.start;
        while at < span.end() {
            let mut leases = table.all().iter();
            let lease = leases.find(|it| it.access >= access && it.extent.span.contains(at))?;
            let whole = lease.extent.span;
            let part = Span { start: at, count: span.end().min(whole.end()) - at };
            let device = lease.extent.device + (at - whole.start);
            extents.push(Extent { span: part, device });
            oldest = oldest.min(lease.number);
            at = part.end();
        }
        Some((extents, oldest))
    }

    /// Gives a request to the LUN.
    fn command(&mut self, io: Turn, extents: Vec<Extent>, flush: Option<DeviceDeed>, oldest: u64) {
        let Link::Welcomed { session, .. } = self.link else { return };
        let Some(request) = self.requests.get_mut(&io) else { return };
        let Some(file) = self.handles.get(&request.what.handle).map(|it| it.file) else { return };
        let first = request.what.span.start;
        let mut left = Vec::new();
        let mut deeds: Vec<(u64, DeviceDeed)> = flush.into_iter().map(|deed| (0, deed)).collect();
        for extent in extents {
            let at = extent.span.start - first;
            deeds.push((
                at,
                match &request.what.mode {
                    Mode::Write(data) => {
                        let bytes = part_of(data, request.what.span.count, at, extent.span.count);
                        DeviceDeed::Write(extent.on_device(), bytes)
                    }
                    _ => DeviceDeed::Read(extent.on_device()),
                },
            ));
        }
        for (at, deed) in deeds {
            let part = self.next_part;
            self.next_part += 1;
            left.push((part, at));
            self.on_the_way.insert(part, Some(io));
            let (at, key) = ((file, first + at), session.key());
            self.effects.push(ClientEffect::Device { part, at, key, deed });
        }
        // A flush uses no blocks, so no recall needs to wait for it.
        let oldest = if left.is_empty() || oldest == 0 { u64::MAX } else { oldest };
        request.stage = Stage::Direct { left, read: Vec::new(), oldest };
    }

    pub(super) fn device(&mut self, part: Part, result: Option<Payload>) {
        let Some(owner) = self.on_the_way.remove(&part) else { return };
        // Of a session before: it has only been waited for.
        let Some(io) = owner else { return };
        let Some(data) = result else {
            // It may have been done or not, or may yet be: only a fence settles that.
            return self.reset();
        };
        let Some(request) = self.requests.get_mut(&io) else { return };
        let Stage::Direct { left, read, .. } = &mut request.stage else { return };
        let Some(place) = left.iter().position(|(it, _)| *it == part) else { return };
        let (_, at) = left.swap_remove(place);
        read.push((at, data));
        if left.is_empty() {
            read.sort_by_key(|(at, _)| *at);
            let data = match &read[..] {
                // Nearly always, and up to a MiB: not copied.
                [(_, whole)] => whole.clone(),
                parts => {
                    let parts: Vec<&[u8]> = parts.iter().map(|(_, data)| &data[..]).collect();
                    parts.concat().into()
                }
            };
            self.complete(io, Ok(data));
        }
    }
}

/// The bytes of some blocks out of those of `whole` blocks.
pub(super) fn part_of(data: &Payload, whole: u64, at: u64, count: u64) -> Payload {
    let each = data.len() as u64 / whole;
    let place = |blocks: u64| usize::try_from(blocks * each).unwrap_or(usize::MAX);
    if at == 0 && count == whole {
        return data.clone();
    }
    data[place(at)..place(at + count)].into()
}
