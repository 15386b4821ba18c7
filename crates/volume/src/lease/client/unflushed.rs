//! Writes that have ended and that no flush has covered yet: what a LUN may still lose.
//!
//! ```text
//!   write ends --> kept --- a flush that began later ends well ---> forgotten
//!                   |  ^
//!     reset: doubt  |  | written again, under the next session
//!                   v  |
//!                  again     every flush, and every request on these blocks, waits for it
//! ```
//!
//! A lost path and a LUN that lost its volatile cache with the path look the same from here. So
//! what is not flushed is kept, and after any doubt it is written again before a flush is answered
//! (decision 0026). Writes are kept in memory only, at most `Limits::unflushed_blocks_max` blocks:
//! at half of it the client flushes by itself, at all of it writes wait for that.

use std::collections::BTreeMap;

use super::Client;
use super::Io;
use super::IoError;
use super::IoResult;
use super::Mode;
use super::io::Request;
use super::io::Stage;
use super::io::part_of;
use super::machine::HandleStage;
use crate::lease::Access;
use crate::lease::FileId;
use crate::lease::Payload;
use crate::lease::Refusal;
use crate::lease::Span;

/// Writes that are repeated at a time; more would only wait for each other.
const AGAIN_MAX: usize = 32;

/// Neighbours that are repeated as one write: 1 MiB, as large as a guest's own.
const JOINED_BLOCKS_MAX: u64 = 256;

/// Names a request: what is repeated, and what the client wants for itself, goes before what guests
/// have asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Turn {
    Own(u64),
    Guest(u64),
}

/// The newest bytes of some blocks.
#[derive(Debug, Clone)]
struct Piece {
    span: Span,
    data: Payload,
    /// Counts the writes that have ended.
    number: u64,
    way: Way,
}

/// How bytes came to the LUN. Each way may have a cache of its own on its way, whose loss is told on
/// that way only, so a flush counts for what came by the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Direct,
    Coordinator,
}

/// Blocks of files with their newest bytes; no two pieces overlap.
#[derive(Debug, Clone, Default)]
pub(super) struct Pieces {
    files: BTreeMap<FileId, BTreeMap<u64, Piece>>,
    blocks: u64,
}

impl Pieces {
    fn overlapping(&self, file: FileId, span: Span) -> Vec<u64> {
        let Some(pieces) = self.files.get(&file) else { return Vec::new() };
        let before = pieces.range(..span.end()).rev();
        // They do not overlap each other, so the first that ends before the range is the last to see.
        let inside = before.take_while(|(_, piece)| piece.span.end() > span.start);
        inside.filter(|(_, piece)| piece.span.overlaps(span)).map(|(start, _)| *start).collect()
    }

    fn put(&mut self, file: FileId, piece: Piece) {
        self.cut(file, piece.span);
        self.blocks += piece.span.count;
        self.files.entry(file).or_default().insert(piece.span.start, piece);
    }

    /// These blocks have other bytes now, or none.
    fn cut(&mut self, file: FileId, span: Span) {
        for start in self.overlapping(file, span) {
            let Some(piece) = self.files.get_mut(&file).and_then(|it| it.remove(&start)) else {
                continue;
            };
            let whole = piece.span;
            self.blocks -= whole.count;
            let before = Span::new(whole.start, span.start.saturating_sub(whole.start));
            let after_start = span.end().min(whole.end());
            let after = Span::new(after_start, whole.end() - after_start);
            for part in [before, after].into_iter().filter(|part| !part.is_empty()) {
                let at = part.start - whole.start;
                let data = part_of(&piece.data, whole.count, at, part.count);
                let rest = Piece { span: part, data, ..piece };
                self.blocks += part.count;
                self.files.entry(file).or_default().insert(part.start, rest);
            }
        }
        self.files.retain(|_, pieces| !pieces.is_empty());
    }

    /// What had ended by then is on the medium.
    fn flushed(&mut self, upto: u64, way: Way) {
        let blocks = &mut self.blocks;
        self.files.retain(|_, pieces| {
            pieces.retain(|_, piece| {
                let keep = piece.number > upto || piece.way != way;
                if !keep {
                    *blocks -= piece.span.count;
                }
                keep
            });
            !pieces.is_empty()
        });
    }

    fn forget(&mut self, file: FileId) {
        self.cut(file, Span::from(0));
    }

    pub(super) fn touches(&self, file: FileId, span: Span) -> bool {
        !self.overlapping(file, span).is_empty()
    }

    fn has_of(&self, way: Way) -> bool {
        self.files.values().flat_map(BTreeMap::values).any(|piece| piece.way == way)
    }

    fn has(&self, file: FileId) -> bool {
        self.files.contains_key(&file)
    }

    pub(super) const fn blocks(&self) -> u64 {
        self.blocks
    }

    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Takes the first piece of a file, with its neighbours as far as they make one write.
    fn take_first(&mut self, file: FileId) -> Option<(Span, Payload)> {
        let pieces = self.files.get_mut(&file)?;
        let (_, first) = pieces.pop_first()?;
        let (mut span, mut data) = (first.span, first.data);
        let mut joined: Option<Vec<u8>> = None;
        while let Some(next) = pieces.first_entry() {
            let next = next.get();
            let fits = next.span.start == span.end()
                && span.count + next.span.count <= JOINED_BLOCKS_MAX
                && next.data.len() as u64 * span.count
                    == data_length(&joined, &data) * next.span.count;
            if !fits {
                break;
            }
            let all = joined.get_or_insert_with(|| data.to_vec());
            all.extend_from_slice(&next.data);
            span.count += next.span.count;
            pieces.pop_first();
        }
        if let Some(all) = joined {
            data = all.into();
        }
        if pieces.is_empty() {
            self.files.remove(&file);
        }
        self.blocks -= span.count;
        Some((span, data))
    }
}

fn data_length(joined: &Option<Vec<u8>>, first: &Payload) -> u64 {
    joined.as_ref().map_or(first.len(), Vec::len) as u64
}

/// All of a client.
#[derive(Debug, Clone, Default)]
pub(super) struct Unflushed {
    /// Have ended in this session.
    kept: Pieces,
    /// Are to be written again before anything is flushed.
    pub(super) again: Pieces,
    /// Writes that have ended.
    ended: u64,
    /// Files of which something could not be written again; the next flush says so.
    lost: BTreeMap<FileId, Refusal>,
}

impl Client {
    /// What a flush that begins now makes durable.
    pub(super) const fn covered_by_flush(&self) -> u64 {
        self.unflushed.ended
    }

    /// Whether a flush has to go through the coordinator first, for what went through it.
    pub(super) fn flushes_there_first(&self) -> bool {
        self.unflushed.kept.has_of(Way::Coordinator)
    }

    /// The first half of such a flush has ended.
    pub(super) fn flushed_there(&mut self, covers: u64) {
        self.unflushed.kept.flushed(covers, Way::Coordinator);
    }

    /// Writes that no flush has covered, in blocks. Bounded; what is gone with a crash of this node.
    pub const fn unflushed_blocks(&self) -> u64 {
        self.unflushed.kept.blocks() + self.unflushed.again.blocks()
    }

    /// After a reset nobody knows whether the LUN still has what it had not flushed.
    pub(super) fn doubt(&mut self) {
        for (file, pieces) in std::mem::take(&mut self.unflushed.kept).files {
            for piece in pieces.into_values() {
                self.unflushed.again.put(file, piece);
            }
        }
    }

    /// A file is somebody else's now, or gone: what this node wrote there is not its own to repeat.
    pub(super) fn forget_unflushed(&mut self, file: FileId) {
        self.unflushed.kept.forget(file);
        self.unflushed.again.forget(file);
        self.unflushed.lost.remove(&file);
    }

    /// Whether a write handle has to wait with its end: what it wrote is flushed first, since nobody
    /// could repeat it afterwards.
    pub(super) fn must_flush_before_close(&self, id: u64) -> bool {
        let Some(handle) = self.handles.get(&id) else { return false };
        let file = handle.file;
        let writes = |it: &super::machine::Handle| it.file == file && it.access == Access::Write;
        let others =
            self.handles.iter().any(|(other, it)| *other != id && writes(it) && !it.closing);
        handle.access == Access::Write
            && !others
            && (self.unflushed.kept.has(file) || self.unflushed.again.has(file))
    }

    /// A flush of the client's own, if there is none.
    pub(super) fn flush_by_itself(&mut self, handle: u64) {
        let flushing = |(turn, request): (&Turn, &Request)| {
            matches!(turn, Turn::Own(_)) && request.what.mode == Mode::Flush
        };
        if !self.requests.iter().any(flushing) {
            self.own(Io { handle, span: Span::new(0, 0), mode: Mode::Flush });
        }
    }

    fn own(&mut self, what: Io) {
        let turn = Turn::Own(self.next_own);
        self.next_own += 1;
        let request = Request {
            what,
            stage: Stage::Waiting,
            redirected: false,
            held: false,
            covers: 0,
            half: false,
        };
        self.requests.insert(turn, request);
    }

    /// The handle by which this node writes a file.
    fn writer(&self, file: FileId) -> Option<u64> {
        let writes = |it: &super::machine::Handle| {
            it.file == file
                && it.access == Access::Write
                && !matches!(it.stage, HandleStage::Taken | HandleStage::Closing(_))
        };
        self.handles.iter().find(|(_, it)| writes(it)).map(|(id, _)| *id)
    }

    /// Begins to write again, and to flush before too much is kept.
    pub(super) fn keep_up(&mut self) {
        while !self.unflushed.again.is_empty() {
            let own = self.requests.keys().filter(|turn| matches!(turn, Turn::Own(_))).count();
            let Some(file) = self.unflushed.again.files.keys().next().copied() else { break };
            let Some(handle) = self.writer(file) else {
                self.forget_unflushed(file);
                continue;
            };
            if own >= AGAIN_MAX {
                break;
            }
            if let Some((span, data)) = self.unflushed.again.take_first(file) {
                self.own(Io { handle, span, mode: Mode::Write(data) });
            }
        }
        if self.unflushed.kept.blocks() > self.limits.unflushed_blocks_max / 2
            && let Some(file) = self.unflushed.kept.files.keys().next().copied()
        {
            match self.writer(file) {
                Some(handle) => self.flush_by_itself(handle),
                None => self.forget_unflushed(file),
            }
        }
    }

    /// Whether there is no room to keep another write.
    pub(super) fn is_full_of_unflushed(&self) -> bool {
        self.unflushed.kept.blocks() >= self.limits.unflushed_blocks_max
    }

    /// Whether something is yet to be written again.
    pub(super) fn writes_again(&self) -> bool {
        let again = |(turn, request): (&Turn, &Request)| {
            matches!(turn, Turn::Own(_)) && matches!(request.what.mode, Mode::Write(_))
        };
        // Own turns come first.
        !self.unflushed.again.is_empty() || self.requests.range(..Turn::Guest(0)).any(again)
    }

    /// Notes what the end of a request means for what is kept; what its asker is told.
    pub(super) fn note_end(&mut self, request: &Request, result: IoResult) -> IoResult {
        let Some(file) = self.handles.get(&request.what.handle).map(|handle| handle.file) else {
            return result;
        };
        let span = request.what.span;
        let way = match request.stage {
            Stage::Direct { .. } => Way::Direct,
            Stage::Asked | Stage::Waiting => Way::Coordinator,
        };
        match (&request.what.mode, &result) {
            (Mode::Write(data), Ok(_)) => {
                self.unflushed.ended += 1;
                let piece = Piece { span, data: data.clone(), number: self.unflushed.ended, way };
                self.unflushed.kept.put(file, piece);
            }
            (Mode::Punch, Ok(_)) => self.unflushed.kept.cut(file, span),
            (Mode::Truncate, Ok(_)) => self.unflushed.kept.cut(file, Span::from(span.start)),
            (Mode::Flush, Ok(_)) => {
                self.unflushed.kept.flushed(request.covers, way);
                if let Some(refusal) = self.unflushed.lost.remove(&file) {
                    return Err(IoError::Refused(refusal));
                }
            }
            (Mode::Delete, Ok(_)) => self.forget_unflushed(file),
            _ => {}
        }
        result
    }

    /// A request of the client's own has failed for good.
    pub(super) fn own_failed(&mut self, request: &Request, error: IoError) {
        let Some(file) = self.handles.get(&request.what.handle).map(|handle| handle.file) else {
            return;
        };
        match error {
            IoError::NotOpen
            | IoError::Refused(Refusal::Taken | Refusal::NoSuchFile | Refusal::NotOpen) => {
                self.forget_unflushed(file);
            }
            IoError::Refused(refusal) => drop(self.unflushed.lost.insert(file, refusal)),
            // Said only to those who ask wrongly.
            IoError::Limit | IoError::Invalid => {
                panic!("a request of the client's own is refused: {error}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileId = FileId(1);

    fn piece(start: u64, data: &[u8], number: u64) -> Piece {
        Piece {
            span: Span::new(start, data.len() as u64),
            data: data.into(),
            number,
            way: Way::Direct,
        }
    }

    fn all(pieces: &mut Pieces) -> Vec<(u64, Vec<u8>)> {
        let mut found = Vec::new();
        while let Some((span, data)) = pieces.take_first(FILE) {
            found.push((span.start, data.to_vec()));
        }
        found
    }

    #[test]
    fn the_newest_bytes_of_each_block_are_kept_and_neighbours_joined() {
        let mut pieces = Pieces::default();
        pieces.put(FILE, piece(10, b"aaaaaa", 1));
        pieces.put(FILE, piece(12, b"bb", 2));
        pieces.put(FILE, piece(20, b"c", 3));
        assert_eq!(pieces.blocks(), 7);
        assert!(pieces.touches(FILE, Span::new(15, 1)) && !pieces.touches(FILE, Span::new(16, 4)));
        assert!(!pieces.touches(FileId(2), Span::from(0)));
        let mut copy = pieces.clone();
        assert_eq!(all(&mut copy), [(10, b"aabbaa".to_vec()), (20, b"c".to_vec())]);
        assert!(copy.is_empty() && copy.blocks() == 0);
        pieces.flushed(9, Way::Coordinator);
        assert_eq!(pieces.blocks(), 7);
        pieces.flushed(1, Way::Direct);
        assert_eq!(pieces.blocks(), 3);
        pieces.cut(FILE, Span::from(13));
        assert_eq!(all(&mut pieces), [(12, b"b".to_vec())]);
    }
}
