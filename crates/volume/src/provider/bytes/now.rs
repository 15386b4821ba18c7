//! What can be done on the thread that has a program's request: whole blocks of a file whose length and
//! right to write are known, with nobody at work alone in it. All else is refused here (`None`), before
//! anything is begun, and goes the longer way.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::OwnedRwLockReadGuard;
use tokio::sync::oneshot;

use super::AGAIN;
use super::BELIEVE;
use super::LENGTH_MAX;
use super::OpenFile;
use super::Result;
use super::blocks_of;
use super::errno_of;
use super::small;
use crate::block::Payload;
use crate::lease::Access;
use crate::lease::BLOCK_BYTES;
use crate::lease::IoError;
use crate::lease::IoMode;
use crate::lease::IoResult;
use crate::lease::Refusal;
use crate::lease::Span;
use crate::provider::core::Begun;

/// A request that has begun. As long as this is there nobody is alone with the file.
pub(in crate::provider) struct Doing {
    file: Arc<OpenFile>,
    access: Access,
    span: Span,
    mode: IoMode,
    /// Of a read: which bytes of the blocks are wanted.
    part: (usize, usize),
    /// Of a write: how long the file has to be before it is answered.
    end: u64,
    _beside: OwnedRwLockReadGuard<()>,
}

impl OpenFile {
    /// Begins to read; fewer bytes where the file ends, and no request where there are none.
    pub(in crate::provider) fn begin_read(
        self: &Arc<Self>,
        offset: u64,
        count: u64,
    ) -> Option<(Doing, Option<Begun>)> {
        let beside = self.alone.clone().try_read_owned().ok()?;
        let known = *self.known();
        let old = known.checked.is_none_or(|at| at.elapsed() > BELIEVE);
        if !known.writes && (old || offset.saturating_add(count) > known.length) {
            return None;
        }
        let handle = known.write.or(known.read)?;
        let end = offset.saturating_add(count).min(known.length);
        let first = offset / BLOCK_BYTES;
        let empty = offset >= end;
        let blocks = if empty { 0 } else { blocks_of(end) - first };
        let (span, from) = (Span::new(first, blocks), small(offset - first * BLOCK_BYTES));
        let part = if empty { (0, 0) } else { (from, from + small(end - offset)) };
        let mode = IoMode::Read;
        let begun = (!empty).then(|| self.client.begin(handle, span, mode.clone()));
        let (file, end) = (self.clone(), 0);
        Some((Doing { file, access: Access::Read, span, mode, part, end, _beside: beside }, begun))
    }

    /// Begins to write whole blocks.
    pub(in crate::provider) fn begin_write(
        self: &Arc<Self>,
        offset: u64,
        data: &[u8],
    ) -> Option<(Doing, Begun)> {
        let end = offset.checked_add(data.len() as u64).filter(|end| *end <= LENGTH_MAX)?;
        let whole = offset.is_multiple_of(BLOCK_BYTES) && end.is_multiple_of(BLOCK_BYTES);
        if data.is_empty() || !whole {
            return None;
        }
        let beside = self.alone.clone().try_read_owned().ok()?;
        let (handle, grows) = {
            let mut known = self.known();
            let handle = known.write?;
            known.touched = true;
            known.modified = Some(SystemTime::now());
            known.told = false;
            (handle, end > known.length)
        };
        if grows {
            self.client.grows(handle, end / BLOCK_BYTES);
        }
        let span = Span::new(offset / BLOCK_BYTES, data.len() as u64 / BLOCK_BYTES);
        let mode = IoMode::Write(Payload::from(data));
        let begun = self.client.begin(handle, span, mode.clone());
        let (file, part) = (self.clone(), (0, 0));
        let doing = Doing { file, access: Access::Write, span, mode, part, end, _beside: beside };
        Some((doing, begun))
    }

    /// Begins a flush, where there is no length to make durable with it.
    pub(in crate::provider) fn begin_flush(self: &Arc<Self>) -> Option<(Doing, Begun)> {
        let beside = self.alone.clone().try_read_owned().ok()?;
        let known = *self.known();
        let access = if known.writes { Access::Write } else { Access::Read };
        if known.writes && known.length != known.durable {
            return None;
        }
        let handle = if known.writes { known.write? } else { known.write.or(known.read)? };
        let (span, mode) = (Span::new(0, 0), IoMode::Flush);
        let begun = self.client.begin(handle, span, mode.clone());
        let (file, part, end) = (self.clone(), (0, 0), 0);
        Some((Doing { file, access, span, mode, part, end, _beside: beside }, begun))
    }
}

impl Doing {
    /// The bytes that its blocks take: what a read needs room for.
    pub(in crate::provider) fn bytes(&self) -> usize {
        small(self.span.count * BLOCK_BYTES)
    }

    /// What was asked for, out of the blocks that were read.
    pub(in crate::provider) fn part<'a>(&self, blocks: &'a [u8]) -> Result<&'a [u8]> {
        blocks.get(self.part.0..self.part.1).ok_or(libc::EIO)
    }

    /// Waits for what comes of it.
    pub(in crate::provider) async fn wait(
        &self,
        told: oneshot::Receiver<IoResult>,
    ) -> Result<Payload> {
        match told.await {
            Ok(result) => self.settled(result).await,
            // Never while the client is there, and never answered wrongly.
            Err(_) => std::future::pending().await,
        }
    }

    /// What came of it; what was too much at a time is asked for once more, a little later.
    pub(in crate::provider) async fn settled(&self, result: IoResult) -> Result<Payload> {
        match result {
            Ok(data) => Ok(data),
            Err(IoError::Limit | IoError::Refused(Refusal::Limit)) => {
                tokio::time::sleep(AGAIN).await;
                self.file.io(self.access, self.span, self.mode.clone()).await
            }
            Err(error) => Err(errno_of(&error)),
        }
    }

    /// Whether the coordinator has to be told of its end before it is answered.
    pub(in crate::provider) fn grows(&self) -> bool {
        self.end > self.file.known().length
    }

    /// The file is as long now as what was written, and the coordinator knows.
    pub(in crate::provider) async fn grown(&self) -> Result<()> {
        self.file.grown(self.end).await
    }
}
