//! Bytes of a file over its blocks: any offset and any length.
//!
//! The lease protocol knows blocks of 4096 bytes and nothing else. Here are the ends that do not fill
//! one, and the length of the file in bytes:
//!
//! - whole blocks are written beside each other; a write with an end within a block is alone with
//!   its file, reads that block, changes it and writes it whole;
//! - a file is as long as its writer says. The coordinator is told before a write that makes it longer
//!   is answered, so every node sees it; it stands on the LUN with the next fsync;
//! - bytes of the last block behind the end are zeroes, always.
//!
//! `now` has the short way, for whole blocks of a file that is open and does not grow.

mod now;

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use tokio::sync::RwLock;
use tokio::time::Instant;

pub(super) use self::now::Doing;
use crate::lease::Access;
use crate::lease::BLOCK_BYTES;
use crate::lease::FileId;
use crate::lease::IoError;
use crate::lease::IoMode;
use crate::lease::Payload;
use crate::lease::Refusal;
use crate::lease::Span;
use crate::provider::call::Call;
use crate::provider::call::Reply;
use crate::provider::call::Time;
use crate::provider::client::Client;
use crate::provider::client::errno_of;
use crate::provider::client::errno_of_refusal;
use crate::provider::held::Held;

/// The longest file: half of what Linux can address, as the lease protocol has it.
const LENGTH_MAX: u64 = 1 << 62;

/// How long it takes until one is asked again who was told to come again.
const AGAIN: Duration = Duration::from_millis(20);

/// How long an open for writing waits for another node that is just closing the file.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a write waits for the right to write where the file is open for that already. Whoever had
/// it before, on a node that is lost, has to be fenced first.
const WRITE_PATIENCE: Duration = Duration::from_secs(30);

/// How long a reader believes a length: another node may have cut the file.
const BELIEVE: Duration = Duration::from_secs(1);

/// The longest wait for nodes that may claim a file; the grace of a new coordinator is shorter.
const GRACE_PATIENCE: Duration = Duration::from_secs(60);

/// A file that this node has open, once, however often its programs have.
pub(in crate::provider) struct OpenFile {
    client: Client,
    id: FileId,
    held: Arc<Held>,
    known: Mutex<Known>,
    /// Taken to write alone; shared by all that touch whole blocks.
    alone: Arc<RwLock<()>>,
    handles: tokio::sync::Mutex<Handles>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Known {
    length: u64,
    /// As it is on the LUN.
    durable: u64,
    modified: Option<SystemTime>,
    /// The coordinator has been told of `modified`.
    told: bool,
    writes: bool,
    /// Something was written since it was opened for writing.
    touched: bool,
    /// When the coordinator said how long it is.
    checked: Option<Instant>,
    read: Option<u64>,
    write: Option<u64>,
}

/// How often it is open.
#[derive(Debug, Default)]
struct Handles {
    readers: usize,
    writers: usize,
}

/// An error number of Linux.
pub(in crate::provider) type Result<T> = std::result::Result<T, i32>;

fn blocks_of(length: u64) -> u64 {
    length.div_ceil(BLOCK_BYTES)
}

fn time_of(time: SystemTime) -> Time {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Time(i64::try_from(since.as_secs()).unwrap_or(0), since.subsec_nanos())
}

fn small(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

impl OpenFile {
    fn new(client: Client, id: FileId, held: Arc<Held>) -> Self {
        Self {
            client,
            id,
            held,
            known: Mutex::default(),
            alone: Arc::default(),
            handles: tokio::sync::Mutex::default(),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Plain data, changed in one go.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this node knows better than the coordinator, if it writes the file: length, last write.
    pub(in crate::provider) fn written(&self) -> Option<(u64, Option<Time>)> {
        let known = *self.known();
        known.writes.then(|| (known.length, known.modified.map(time_of)))
    }

    /// Somebody has set when it was written last.
    pub(in crate::provider) fn set_modified(&self) {
        let mut known = self.known();
        known.modified = None;
        known.told = true;
    }

    // ---- opening and closing

    /// Opens it once more. Where it is held, an open for writing succeeds without the right to write; the
    /// first write after that takes it.
    pub(in crate::provider) async fn open(&self, access: Access) -> Result<()> {
        let mut handles = self.handles.lock().await;
        match access {
            Access::Read => {
                self.read_too().await?;
                handles.readers += 1;
            }
            Access::Write => {
                if self.held.opened(self.id) {
                    self.read_too().await?;
                } else if self.known().write.is_none() {
                    self.take_right(PATIENCE).await?;
                }
                handles.writers += 1;
            }
        }
        Ok(())
    }

    /// Becomes the file's writer, on behalf of those who have it open for that.
    async fn take_right(&self, patience: Duration) -> Result<()> {
        assert!(!self.held.has(self.id), "a file that is held is not written");
        let handle = self.open_at_coordinator(Access::Write, patience).await?;
        // From here on nobody else changes its length. Before that is known here nobody writes: a write
        // beside this one would go by the length of before, and cut what another node has added.
        if let Err(error) = self.refresh().await {
            self.client.close(handle).await;
            return Err(error);
        }
        let mut known = self.known();
        known.write = Some(handle);
        known.writes = true;
        known.touched = false;
        known.modified = None;
        Ok(())
    }

    async fn read_too(&self) -> Result<()> {
        if self.known().read.is_none() {
            let handle = self.open_at_coordinator(Access::Read, PATIENCE).await?;
            self.known().read = Some(handle);
            if !self.known().writes {
                self.refresh().await?;
            }
        }
        Ok(())
    }

    /// Sees that this node is the writer before it writes.
    async fn become_writer(&self) -> Result<()> {
        if self.known().write.is_some() {
            return Ok(());
        }
        let handles = self.handles.lock().await;
        if handles.writers == 0 {
            return Err(libc::EBADF);
        }
        if self.held.has(self.id) {
            tracing::warn!(file = self.id.0, "a write to a file that is held back is refused");
            return Err(libc::EBUSY);
        }
        if self.known().write.is_none() {
            self.take_right(WRITE_PATIENCE).await?;
        }
        Ok(())
    }

    /// Holds it (see [`Held`]): makes durable what was written and lets another node be the writer. What is
    /// open here stays so.
    pub(in crate::provider) async fn hold(&self) -> Result<()> {
        let handles = self.handles.lock().await;
        // First that: nobody takes the right anew.
        self.held.add(self.id, handles.writers > 0);
        if self.known().write.is_none() {
            return Ok(());
        }
        let mut kept = self.sync().await;
        if kept.is_ok() && handles.readers + handles.writers > 0 {
            kept = self.read_too().await;
        }
        if kept.is_err() {
            // The right is still here, and with it who may use it.
            self.held.remove(self.id);
            return kept;
        }
        self.end_writing().await;
        self.client.closed().await;
        Ok(())
    }

    async fn open_at_coordinator(&self, access: Access, busy: Duration) -> Result<u64> {
        let begun = Instant::now();
        loop {
            let refusal = match self.client.open(self.id, access).await {
                Ok(handle) => return Ok(handle),
                Err(refusal) => refusal,
            };
            let patience = match refusal {
                Refusal::Busy { .. } => busy,
                Refusal::Grace => GRACE_PATIENCE,
                _ => return Err(errno_of_refusal(&refusal)),
            };
            if begun.elapsed() >= patience {
                tracing::info!(file = self.id.0, %refusal, "a file is not opened");
                return Err(errno_of_refusal(&refusal));
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn refresh(&self) -> Result<()> {
        match self.client.call(Call::Attributes { file: self.id }).await {
            Reply::Attributes(found) => {
                let mut known = self.known();
                known.length = found.length;
                known.durable = found.length;
                known.checked = Some(Instant::now());
                Ok(())
            }
            Reply::Failed(number) => Err(number),
            _ => Err(libc::EPROTO),
        }
    }

    /// Closes it once; says whether nobody has it open any more.
    pub(in crate::provider) async fn close(&self, access: Access) -> bool {
        let mut handles = self.handles.lock().await;
        match access {
            Access::Read => handles.readers -= 1,
            Access::Write => handles.writers -= 1,
        }
        if handles.writers == 0 {
            self.end_writing().await;
            if access == Access::Write {
                self.held.closed(self.id);
            }
        }
        // A writer without the right to write reads, too.
        if handles.readers + handles.writers == 0 {
            let read = self.known().read.take();
            if let Some(handle) = read {
                self.client.close(handle).await;
            }
        }
        handles.readers == 0 && handles.writers == 0
    }

    /// Gives back what was written ahead, tells the length, and closes. An error is logged only: the
    /// file is longer than it must be then, and the next writer cuts it.
    async fn end_writing(&self) {
        let _alone = self.alone.write().await;
        let known = *self.known();
        if let Some(handle) = known.write {
            if known.touched {
                let _ = self.tell_length(false).await;
                let end = Span::new(blocks_of(known.length), 0);
                if let Err(error) = self.client.io(handle, end, IoMode::Truncate).await {
                    tracing::warn!(file = self.id.0, %error, "what was written ahead stays");
                }
            }
            self.client.close(handle).await;
            self.client.written(self.id).await;
        }
        let mut known = self.known();
        known.write = None;
        known.writes = false;
        known.touched = false;
    }

    /// A handle for reading, whichever there is.
    fn handle(&self, access: Access) -> Result<u64> {
        let known = self.known();
        let handle = match access {
            Access::Read => known.write.or(known.read),
            Access::Write => known.write,
        };
        handle.ok_or(libc::EBADF)
    }

    // ---- blocks

    async fn io(&self, access: Access, span: Span, mode: IoMode) -> Result<Payload> {
        loop {
            let handle = self.handle(access)?;
            match self.client.io(handle, span, mode.clone()).await {
                Ok(data) => return Ok(data),
                // Too much at a time: a pause, not an error.
                Err(IoError::Limit | IoError::Refused(Refusal::Limit)) => {
                    tokio::time::sleep(AGAIN).await;
                }
                Err(error) => return Err(errno_of(&error)),
            }
        }
    }

    /// Bytes from there on; fewer where the file ends.
    pub(in crate::provider) async fn read(&self, offset: u64, count: u64) -> Result<Vec<u8>> {
        let _beside = self.alone.read().await;
        let known = *self.known();
        let old = known.checked.is_none_or(|at| at.elapsed() > BELIEVE);
        if !known.writes && (old || offset.saturating_add(count) > known.length) {
            self.refresh().await?;
        }
        let end = offset.saturating_add(count).min(self.known().length);
        if offset >= end {
            return Ok(Vec::new());
        }
        self.read_inside(offset, end).await
    }

    async fn read_inside(&self, offset: u64, end: u64) -> Result<Vec<u8>> {
        let first = offset / BLOCK_BYTES;
        let span = Span::new(first, blocks_of(end) - first);
        let data = self.io(Access::Read, span, IoMode::Read).await?;
        let from = small(offset - first * BLOCK_BYTES);
        let upto = from + small(end - offset);
        data.get(from..upto).map(<[u8]>::to_vec).ok_or(libc::EIO)
    }

    /// Writes all of it.
    pub(in crate::provider) async fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let end = offset.checked_add(data.len() as u64).filter(|end| *end <= LENGTH_MAX);
        let end = end.ok_or(libc::EFBIG)?;
        if data.is_empty() {
            return Ok(());
        }
        self.become_writer().await?;
        if offset.is_multiple_of(BLOCK_BYTES) && end.is_multiple_of(BLOCK_BYTES) {
            let _beside = self.alone.read().await;
            self.put(offset / BLOCK_BYTES, data.into()).await?;
            return self.grown(end).await;
        }
        let _alone = self.alone.write().await;
        self.write_alone(offset, data).await?;
        self.grown(end).await
    }

    async fn put(&self, block: u64, data: Payload) -> Result<()> {
        {
            let mut known = self.known();
            known.touched = true;
            known.modified = Some(SystemTime::now());
            known.told = false;
        }
        let span = Span::new(block, data.len() as u64 / BLOCK_BYTES);
        self.io(Access::Write, span, IoMode::Write(data)).await.map(|_| ())
    }

    /// With the blocks at both ends read first, as far as the file has them.
    async fn write_alone(&self, offset: u64, data: &[u8]) -> Result<()> {
        let end = offset + data.len() as u64;
        let (first, last) = (offset / BLOCK_BYTES, (end - 1) / BLOCK_BYTES);
        let mut whole = vec![0; small((last - first + 1) * BLOCK_BYTES)];
        let known = blocks_of(self.known().length);
        let start = first * BLOCK_BYTES;
        if offset != start && first < known {
            let old = self.io(Access::Read, Span::new(first, 1), IoMode::Read).await?;
            whole.get_mut(..old.len()).ok_or(libc::EIO)?.copy_from_slice(&old);
        }
        if !end.is_multiple_of(BLOCK_BYTES) && last < known && (last != first || offset == start) {
            let old = self.io(Access::Read, Span::new(last, 1), IoMode::Read).await?;
            let at = whole.len() - 4096;
            whole
                .get_mut(at..)
                .filter(|it| it.len() == old.len())
                .ok_or(libc::EIO)?
                .copy_from_slice(&old);
        }
        let at = small(offset - start);
        whole[at..at + data.len()].copy_from_slice(data);
        self.put(first, whole.into()).await
    }

    async fn grown(&self, end: u64) -> Result<()> {
        {
            let mut known = self.known();
            if end <= known.length {
                return Ok(());
            }
            known.length = end;
        }
        self.tell_length(false).await
    }

    async fn tell_length(&self, durable: bool) -> Result<()> {
        let known = *self.known();
        let (file, length, modified) = (self.id, known.length, known.modified.map(time_of));
        match self.client.call(Call::Length { file, length, modified, durable }).await {
            Reply::Done => {
                let mut now = self.known();
                now.told |= now.modified == known.modified;
                if durable {
                    now.durable = length;
                }
                Ok(())
            }
            Reply::Failed(number) => Err(number),
            _ => Err(libc::EPROTO),
        }
    }

    /// Makes durable what has been answered, with the length.
    pub(in crate::provider) async fn sync(&self) -> Result<()> {
        let known = *self.known();
        let access = if known.writes { Access::Write } else { Access::Read };
        self.io(access, Span::new(0, 0), IoMode::Flush).await?;
        if known.writes && known.length != known.durable {
            self.tell_length(true).await?;
        }
        Ok(())
    }

    /// At each close of a descriptor: what others see of it is right.
    pub(in crate::provider) async fn tell(&self) -> Result<()> {
        let known = *self.known();
        if known.writes && known.modified.is_some() && !known.told {
            self.tell_length(false).await?;
        }
        Ok(())
    }

    /// Cuts the file, or makes it longer by a hole.
    pub(in crate::provider) async fn truncate(&self, length: u64) -> Result<()> {
        if length > LENGTH_MAX {
            return Err(libc::EFBIG);
        }
        self.become_writer().await?;
        let _alone = self.alone.write().await;
        let old = self.known().length;
        let cut = Span::new(blocks_of(length), 0);
        self.io(Access::Write, cut, IoMode::Truncate).await?;
        let tail = length % BLOCK_BYTES;
        if length < old && tail != 0 {
            // What is behind the end is zeroes, now and when the file grows again.
            let block = length / BLOCK_BYTES;
            let bytes = self.io(Access::Read, Span::new(block, 1), IoMode::Read).await?;
            let mut bytes = bytes.to_vec();
            if bytes.iter().skip(small(tail)).any(|byte| *byte != 0) {
                bytes[small(tail)..].fill(0);
                self.put(block, bytes.into()).await?;
            }
        }
        {
            let mut known = self.known();
            known.length = length;
            known.touched = true;
            known.modified = Some(SystemTime::now());
            known.told = false;
        }
        self.tell_length(true).await
    }

    /// Makes bytes zeroes and frees whole blocks of them; the length stays.
    pub(in crate::provider) async fn punch(&self, offset: u64, count: u64) -> Result<()> {
        self.become_writer().await?;
        let _alone = self.alone.write().await;
        let end = offset.checked_add(count).ok_or(libc::EFBIG)?.min(self.known().length);
        if offset >= end {
            return Ok(());
        }
        let whole_end = if end == self.known().length { blocks_of(end) } else { end / BLOCK_BYTES };
        let (from, upto) = (blocks_of(offset), whole_end);
        if from >= upto {
            return self.write_alone(offset, &vec![0; small(end - offset)]).await;
        }
        if offset < from * BLOCK_BYTES {
            let zeroes = vec![0; small(from * BLOCK_BYTES - offset)];
            self.write_alone(offset, &zeroes).await?;
        }
        if end > upto * BLOCK_BYTES {
            let zeroes = vec![0; small(end - upto * BLOCK_BYTES)];
            self.write_alone(upto * BLOCK_BYTES, &zeroes).await?;
        }
        self.known().touched = true;
        self.io(Access::Write, Span::new(from, upto - from), IoMode::Punch).await.map(|_| ())
    }

    /// Has space for bytes; with `longer` the file reaches to their end.
    pub(in crate::provider) async fn allocate(
        &self,
        offset: u64,
        count: u64,
        longer: bool,
    ) -> Result<()> {
        let end = offset.checked_add(count).filter(|end| *end <= LENGTH_MAX).ok_or(libc::EFBIG)?;
        self.become_writer().await?;
        if longer && end > self.known().length {
            self.truncate(end).await?;
        }
        let _beside = self.alone.read().await;
        self.handle(Access::Write)?;
        let inside = end.min(blocks_of(self.known().length) * BLOCK_BYTES);
        if offset >= inside {
            // Space behind the end would be cut when the file is closed.
            return Ok(());
        }
        let call = Call::Allocate { file: self.id, offset, length: inside - offset };
        match self.client.call(call).await {
            Reply::Failed(number) => Err(number),
            _ => Ok(()),
        }
    }

    /// Where data, or a hole, begins.
    pub(in crate::provider) async fn seek(&self, offset: u64, hole: bool) -> Result<u64> {
        match self.client.call(Call::Seek { file: self.id, offset, hole }).await {
            Reply::Place(place) => Ok(place),
            Reply::Failed(number) => Err(number),
            _ => Err(libc::EPROTO),
        }
    }
}

/// The files that a node has open.
pub(in crate::provider) struct OpenFiles {
    held: Arc<Held>,
    files: Mutex<std::collections::HashMap<FileId, Arc<OpenFile>>>,
}

impl OpenFiles {
    pub(in crate::provider) fn new(held: Arc<Held>) -> Self {
        Self { held, files: Mutex::default() }
    }

    fn files(&self) -> MutexGuard<'_, std::collections::HashMap<FileId, Arc<OpenFile>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file, whether it is open or about to be.
    pub(in crate::provider) fn of(&self, client: &Client, id: FileId) -> Arc<OpenFile> {
        let new = || Arc::new(OpenFile::new(client.clone(), id, self.held.clone()));
        self.files().entry(id).or_insert_with(new).clone()
    }

    pub(in crate::provider) fn find(&self, id: FileId) -> Option<Arc<OpenFile>> {
        self.files().get(&id).cloned()
    }

    /// Drops one that nobody has opened.
    pub(in crate::provider) async fn forget_unopened(&self, id: FileId) {
        let Some(file) = self.find(id) else { return };
        let unopened = {
            let handles = file.handles.lock().await;
            handles.readers + handles.writers == 0
        };
        drop(file);
        if unopened {
            self.forget(id);
        }
    }

    /// Drops it, if nobody else has it in the hand.
    pub(in crate::provider) fn forget(&self, id: FileId) {
        let mut files = self.files();
        if files.get(&id).is_some_and(|file| Arc::strong_count(file) <= 1) {
            files.remove(&id);
        }
    }
}
