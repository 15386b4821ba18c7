//! Guests: who opens files, reads and writes them, and what they are told.

use volume::lease::Access;
use volume::lease::ClientInput;
use volume::lease::FileId;
use volume::lease::Io;
use volume::lease::IoError;
use volume::lease::IoMode;
use volume::lease::IoResult;
use volume::lease::Refusal;
use volume::lease::Span;

use crate::host::pack;
use crate::host::unpack;
use crate::world::Event;
use crate::world::World;

/// Blocks of the longest file.
const LONGEST: u64 = 32;

/// Files there may be.
const FILES: usize = 5;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Guest {
    pub(crate) file: FileId,
    access: Access,
    open: bool,
    closing: bool,
}

/// A request that has not ended.
#[derive(Debug, Clone)]
pub(crate) struct Pending {
    handle: u64,
    pub(crate) file: FileId,
    pub(crate) span: Span,
    kind: Kind,
    pub(crate) begun: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Read,
    Flush,
    /// Values, block by block; of a truncate and a punch they are zeroes.
    Write(Vec<u64>),
    Cut,
    Clone(FileId),
    Delete,
}

impl World {
    pub(crate) fn guest(&mut self, node: usize) {
        let delay = self.rng.between(4, 30);
        self.at(delay, Event::Guest(node));
        if !self.nodes[node].up {
            return;
        }
        if self.nodes[node].guests.len() < 2 && self.rng.permille(150) {
            return self.start_guest(node);
        }
        let handles: Vec<u64> = self.nodes[node].guests.keys().copied().collect();
        let Some(handle) = self.rng.pick(&handles) else { return };
        let guest = self.nodes[node].guests[&handle];
        let busy = self.nodes[node].ios.values().filter(|io| io.handle == handle).count();
        if !guest.open || guest.closing || busy >= 4 {
            return;
        }
        self.act(node, handle, guest);
    }

    fn start_guest(&mut self, node: usize) {
        let Some(file) = self.rng.pick(&self.files.clone()) else { return };
        let access = if self.rng.permille(650) { Access::Write } else { Access::Read };
        self.counter += 1;
        let handle = self.counter;
        let guest = Guest { file, access, open: false, closing: false };
        self.nodes[node].guests.insert(handle, guest);
        self.serve(node, ClientInput::Open { handle, file, access });
    }

    pub(crate) fn opened(&mut self, node: usize, handle: u64, result: &Result<u64, Refusal>) {
        self.say(&|| format!("n{node} opened {handle} {result:?}"));
        match result {
            Ok(_) => {
                if let Some(guest) = self.nodes[node].guests.get_mut(&handle) {
                    guest.open = true;
                }
            }
            Err(refusal) => {
                let guest = self.nodes[node].guests.remove(&handle);
                if let (Some(guest), Refusal::NoSuchFile) = (guest, refusal) {
                    self.gone(guest.file);
                }
            }
        }
    }

    fn gone(&mut self, file: FileId) {
        if self.files.contains(&file) && !self.doomed.contains(&file) {
            return self.fail(format!("{file:?} does not exist, and nobody has deleted it"));
        }
        self.files.retain(|it| *it != file);
    }

    fn act(&mut self, node: usize, handle: u64, guest: Guest) {
        let start = self.rng.below(LONGEST - 4);
        let span = Span::new(start, self.rng.between(1, 4));
        let writes = guest.access == Access::Write;
        let dice = self.rng.below(1_000);
        let (kind, mode, span) = match dice {
            0..450 if writes => {
                let values: Vec<u64> =
                    (0..span.count).map(|it| (self.counter << 8) | (it + 1)).collect();
                self.counter += 1;
                let mode = IoMode::Write(pack(&values));
                (Kind::Write(values), mode, span)
            }
            450..520 => (Kind::Flush, IoMode::Flush, Span::new(0, 0)),
            520..545 if writes => (Kind::Cut, IoMode::Punch, span),
            545..570 if writes => {
                let start = self.rng.below(LONGEST);
                (Kind::Cut, IoMode::Truncate, Span::new(start, LONGEST - start))
            }
            570..580 if writes && self.files.len() < FILES => {
                self.counter += 1;
                let to = FileId(self.counter);
                (Kind::Clone(to), IoMode::CloneTo(to), Span::new(0, 0))
            }
            580..583 if writes && self.files.len() > 2 => {
                self.doomed.push(guest.file);
                (Kind::Delete, IoMode::Delete, Span::new(0, 0))
            }
            583..595 => {
                if let Some(guest) = self.nodes[node].guests.get_mut(&handle) {
                    guest.closing = true;
                }
                self.serve(node, ClientInput::Close { handle });
                self.retire(node, handle);
                return;
            }
            _ => (Kind::Read, IoMode::Read, span),
        };
        self.counter += 1;
        let io = self.counter;
        match &kind {
            Kind::Read => self.oracle.begin_read(io, guest.file, span),
            Kind::Write(values) => {
                for (at, value) in (span.start..span.end()).zip(values) {
                    self.oracle.begin_write(node, guest.file, at, *value, self.now);
                }
            }
            Kind::Cut => {
                for at in span.start..span.end() {
                    self.oracle.begin_write(node, guest.file, at, 0, self.now);
                }
            }
            Kind::Delete => self.nodes[node].guests.values_mut().for_each(|it| {
                it.closing |= it.file == guest.file;
            }),
            Kind::Flush | Kind::Clone(_) => {}
        }
        let file = guest.file;
        let pending = Pending { handle, file, span, kind, begun: self.now };
        self.say(&|| format!("n{node} submits {io} {pending:?}"));
        self.nodes[node].ios.insert(io, pending);
        self.serve(node, ClientInput::Submit { io, what: Io { handle, span, mode } });
        // As a file that grows does: also where that is nonsense.
        if io.is_multiple_of(5) {
            self.serve(node, ClientInput::Ahead { handle, block: span.end() });
        }
    }

    /// Forgets a guest that has closed and has nothing on the way.
    fn retire(&mut self, node: usize, handle: u64) {
        let host = &mut self.nodes[node];
        let closing = host.guests.get(&handle).is_some_and(|guest| guest.closing);
        if closing && !host.ios.values().any(|io| io.handle == handle) {
            host.guests.remove(&handle);
        }
    }

    pub(crate) fn completed(&mut self, node: usize, io: u64, result: IoResult) {
        let Some(pending) = self.nodes[node].ios.remove(&io) else {
            return self.fail(format!("n{node} ends request {io}, which nobody waits for"));
        };
        self.say(&|| format!("n{node} ends {io} {result:?}"));
        let (file, span) = (pending.file, pending.span);
        match (result, &pending.kind) {
            (Ok(data), Kind::Read) => {
                self.tally.reads += 1;
                if let Err(problem) = self.oracle.end_read(io, &unpack(&data)) {
                    self.fail(format!("n{node}: {problem}"));
                }
            }
            (Ok(_), Kind::Write(values)) => {
                self.tally.writes += 1;
                for (at, value) in (span.start..span.end()).zip(values) {
                    self.oracle.end_write((node, pending.handle), file, at, *value, self.now);
                }
            }
            (Ok(_), Kind::Cut) => {
                for at in span.start..span.end() {
                    self.oracle.end_write((node, pending.handle), file, at, 0, self.now);
                    self.oracle.settle(file, at);
                }
            }
            (Ok(_), Kind::Flush) => self.oracle.flushed(pending.handle, file, pending.begun),
            (Ok(_), Kind::Clone(to)) => {
                self.oracle.cloned(file, *to);
                self.files.push(*to);
            }
            (Ok(_), Kind::Delete) => self.files.retain(|it| *it != file),
            (Err(error), _) => {
                self.abandon(node, io, &pending);
                self.failed(node, &pending, &error);
            }
        }
        self.retire(node, pending.handle);
    }

    fn failed(&mut self, node: usize, pending: &Pending, error: &IoError) {
        let host = &mut self.nodes[node];
        match error {
            IoError::Refused(Refusal::Full) => self.tally.full += 1,
            IoError::Refused(Refusal::Taken) => {
                self.tally.taken += 1;
                if let Some(guest) = host.guests.get_mut(&pending.handle)
                    && !guest.closing
                {
                    guest.closing = true;
                    self.serve(node, ClientInput::Close { handle: pending.handle });
                }
            }
            IoError::Refused(Refusal::NoSuchFile) => {
                if let Some(guest) = host.guests.get_mut(&pending.handle)
                    && !guest.closing
                {
                    guest.closing = true;
                    self.serve(node, ClientInput::Close { handle: pending.handle });
                }
                self.gone(pending.file);
            }
            IoError::Refused(Refusal::Busy { .. }) if pending.kind == Kind::Delete => {}
            error => self.fail(format!("n{node}: a guest is told {error:?} for {pending:?}")),
        }
    }

    fn abandon(&mut self, node: usize, io: u64, pending: &Pending) {
        match &pending.kind {
            Kind::Write(values) => {
                for (at, value) in (pending.span.start..pending.span.end()).zip(values) {
                    self.oracle.abandon(node, pending.file, at, *value, self.now);
                }
            }
            Kind::Cut => {
                for at in pending.span.start..pending.span.end() {
                    self.oracle.abandon(node, pending.file, at, 0, self.now);
                }
            }
            Kind::Read => self.oracle.forget_read(io),
            Kind::Flush | Kind::Clone(_) | Kind::Delete => {}
        }
    }

    /// All guests of a node are gone, and nobody waits for their requests.
    pub(crate) fn end_guests(&mut self, node: usize) {
        self.nodes[node].guests.clear();
        for (io, pending) in std::mem::take(&mut self.nodes[node].ios) {
            self.abandon(node, io, &pending);
        }
    }
}
