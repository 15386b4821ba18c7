//! What guests may see: for each block of each file the values that a read may return.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use volume::lease::FileId;
use volume::lease::Span;

#[derive(Debug, Clone)]
struct Block {
    /// What may be there.
    allowed: BTreeSet<u64>,
    /// Of those, writes that have not ended and whose guest lives, with its node and when
    /// it was begun.
    live: Vec<(usize, u64, u64)>,
    /// What the medium may have, oldest first: what the last flush covers, and what came since. With
    /// when, and whether it is known to have come.
    unflushed: Vec<(u64, u64, bool)>,
    /// By which handle the last write that has ended came.
    writer: Option<u64>,
    /// The LUN may have lost what was not flushed: the writer's next flush puts it right.
    doubt: bool,
}

impl Default for Block {
    fn default() -> Self {
        Self {
            allowed: [0].into(),
            live: Vec::new(),
            unflushed: vec![(0, 0, true)],
            writer: None,
            doubt: false,
        }
    }
}

impl Block {
    /// One write of that value has ended; there may be another one. When it was begun, if it was
    /// still open: one of a node that was fenced is over when the next writer's first has ended.
    fn end(&mut self, node: usize, value: u64) -> Option<u64> {
        let place = self.live.iter().position(|(by, it, _)| (*by, *it) == (node, value));
        place.map(|place| self.live.swap_remove(place).2)
    }
}

/// A read that has not ended, and what it may return.
#[derive(Debug, Clone)]
struct Reading {
    file: FileId,
    span: Span,
    acceptable: Vec<BTreeSet<u64>>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Oracle {
    blocks: BTreeMap<(FileId, u64), Block>,
    readings: BTreeMap<u64, Reading>,
    /// When the LUN last lost its cache.
    lost: u64,
}

impl Oracle {
    fn note(&mut self, file: FileId, at: u64, value: u64) {
        for reading in self.readings.values_mut() {
            if reading.file == file && reading.span.contains(at) {
                let place = usize::try_from(at - reading.span.start).unwrap_or(0);
                reading.acceptable[place].insert(value);
            }
        }
    }

    pub(crate) fn begin_write(&mut self, node: usize, file: FileId, at: u64, value: u64, now: u64) {
        let block = self.blocks.entry((file, at)).or_default();
        block.allowed.insert(value);
        block.live.push((node, value, now));
        self.note(file, at, value);
    }

    /// A write has ended well: it is there, and nothing older may come any more, nor anything of
    /// another node.
    pub(crate) fn end_write(
        &mut self,
        (node, handle): (usize, u64),
        file: FileId,
        at: u64,
        value: u64,
        now: u64,
    ) {
        let block = self.blocks.entry((file, at)).or_default();
        let Some(begun) = block.end(node, value) else { return };
        let over = |(by, _, since): &(usize, u64, u64)| *by != node && *since < begun;
        let (over, live): (Vec<_>, Vec<_>) = block.live.drain(..).partition(over);
        block.live = live;
        block.unflushed.extend(over.iter().map(|(_, value, _)| (now, *value, false)));
        block.allowed = block.live.iter().map(|(_, value, _)| *value).collect();
        block.allowed.insert(value);
        block.unflushed.push((now, value, true));
        block.writer = Some(handle);
        // What the coordinator answered just before the loss is heard after it.
        block.doubt = begun <= self.lost;
        if block.doubt {
            block.allowed.extend(block.unflushed.iter().map(|(_, value, _)| *value));
        }
    }

    /// Nobody waits for a write any more: it may come or not, until the next one has ended.
    pub(crate) fn abandon(&mut self, node: usize, file: FileId, at: u64, value: u64, now: u64) {
        let block = self.blocks.entry((file, at)).or_default();
        if block.end(node, value).is_some() {
            block.unflushed.push((now, value, false));
        }
    }

    /// Blocks that are changed with the file's map are durable at once.
    pub(crate) fn settle(&mut self, file: FileId, at: u64) {
        let block = self.blocks.entry((file, at)).or_default();
        let last = block.unflushed.iter().rposition(|(_, value, came)| *came && *value == 0);
        block.unflushed.drain(..last.unwrap_or(0));
    }

    /// A flush has ended well. It covers what all have written, and what the LUN has lost since, if it
    /// came by this handle.
    pub(crate) fn flushed(&mut self, handle: u64, file: FileId, begun: u64) {
        for ((_, _), block) in self.blocks.range_mut((file, 0)..=(file, u64::MAX)) {
            if block.doubt && block.writer != Some(handle) {
                continue;
            }
            let last = block.unflushed.iter().rposition(|(when, _, came)| *came && *when <= begun);
            block.unflushed.drain(..last.unwrap_or(0));
            if block.doubt && last.is_some() {
                block.allowed = block.unflushed.iter().map(|(_, value, _)| *value).collect();
                block.allowed.extend(block.live.iter().map(|(_, value, _)| *value));
                block.doubt = block.unflushed.len() > 1;
            }
        }
    }

    /// The LUN has lost its cache, or a part of it, and the guests go on: until their writers have
    /// flushed, blocks may be what they were since the last flush.
    pub(crate) fn cache_loss(&mut self, now: u64) {
        self.lost = now;
        for ((file, at), block) in &mut self.blocks {
            let older: Vec<u64> = block.unflushed.iter().map(|(_, value, _)| *value).collect();
            block.allowed.extend(&older);
            block.doubt |= block.unflushed.len() > 1;
            for reading in self.readings.values_mut() {
                if reading.file == *file && reading.span.contains(*at) {
                    let place = usize::try_from(*at - reading.span.start).unwrap_or(0);
                    reading.acceptable[place].extend(&older);
                }
            }
        }
    }

    pub(crate) fn power_loss(&mut self) {
        for block in self.blocks.values_mut() {
            block.allowed.extend(block.unflushed.iter().map(|(_, value, _)| *value));
            // Any of them is what the medium has now, until the next write has ended.
            block.unflushed.iter_mut().skip(1).for_each(|(_, _, came)| *came = false);
        }
        self.readings.clear();
    }

    pub(crate) fn cloned(&mut self, from: FileId, to: FileId) {
        let source: Vec<(u64, Block)> = self
            .blocks
            .range((from, 0)..=(from, u64::MAX))
            .map(|((_, at), block)| (*at, block.clone()))
            .collect();
        for (at, mut block) in source {
            block.live.clear();
            // Nobody writes the copy again.
            block.writer = block.writer.filter(|_| !block.doubt);
            self.blocks.insert((to, at), block);
        }
    }

    pub(crate) fn begin_read(&mut self, io: u64, file: FileId, span: Span) {
        let allowed = |at| self.blocks.get(&(file, at)).cloned().unwrap_or_default().allowed;
        let acceptable = (span.start..span.end()).map(allowed).collect();
        self.readings.insert(io, Reading { file, span, acceptable });
    }

    pub(crate) fn forget_read(&mut self, io: u64) {
        self.readings.remove(&io);
    }

    /// Says what was read that could not be.
    pub(crate) fn end_read(&mut self, io: u64, values: &[u64]) -> Result<(), String> {
        let Some(reading) = self.readings.remove(&io) else { return Ok(()) };
        if values.len() != reading.acceptable.len() {
            return Err(format!("a read of {:?} returned {} blocks", reading.span, values.len()));
        }
        for (place, value) in values.iter().enumerate() {
            if !reading.acceptable[place].contains(value) {
                let at = reading.span.start + place as u64;
                return Err(format!(
                    "invariants 18, 21: block {at} of {:?} was read as {value:x}, and may be {:x?}",
                    reading.file, reading.acceptable[place]
                ));
            }
        }
        Ok(())
    }

    /// All blocks of a file that somebody wrote.
    pub(crate) fn file(&self, file: FileId) -> impl Iterator<Item = (u64, &BTreeSet<u64>)> {
        let blocks = self.blocks.range((file, 0)..=(file, u64::MAX));
        blocks.map(|((_, at), block)| (*at, &block.allowed))
    }
}
