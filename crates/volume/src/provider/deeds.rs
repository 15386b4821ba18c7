//! What the lease protocol has the file system do. Each deed is durable when it is done, as
//! [`Deed`] says; a deed whose effect is not known ends the reign (`Err`).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::FallocateFlags;

use super::store::Record;
use super::store::Store;
use super::store::read_to_end;
use super::store::to_error;
use crate::block::Buffer;
use crate::extent::PrepareError;
use crate::extent::leasable;
use crate::extent::prepare;
use crate::lease::BLOCK_BYTES;
use crate::lease::Deed;
use crate::lease::DeedOutcome;
use crate::lease::Extent;
use crate::lease::FileId;
use crate::lease::OpenId;
use crate::lease::Payload;
use crate::lease::Span;

/// Does it, and waits for the LUN.
pub(super) fn perform(store: &Store, deed: Deed) -> io::Result<DeedOutcome> {
    match done(store, deed) {
        Ok(outcome) => Ok(outcome),
        Err(error) => match error.raw_os_error() {
            Some(libc::ESTALE | libc::ENOENT) => Ok(DeedOutcome::NoSuchFile),
            Some(libc::ENOSPC | libc::EDQUOT) => Ok(DeedOutcome::Full),
            // Refused before anything was done.
            Some(libc::EINVAL | libc::EOPNOTSUPP | libc::EFBIG | libc::EPERM | libc::EMFILE) => {
                Ok(DeedOutcome::Failed(error.to_string()))
            }
            _ => Err(error),
        },
    }
}

fn done(store: &Store, deed: Deed) -> io::Result<DeedOutcome> {
    match deed {
        Deed::Inspect { file } => {
            let open = store.file(file)?;
            let length = store.length(file, open.metadata()?.len(), &*open)?;
            let writer = Store::record(&*open)?.and_then(|record| record.writer);
            Ok(DeedOutcome::File { blocks: length.div_ceil(BLOCK_BYTES), writer })
        }
        Deed::SetWriter { file, writer: Some(writer) } => begin_writing(store, file, writer),
        Deed::SetWriter { file, writer: None } => end_writing(store, file),
        Deed::Prepare { file, span, ahead } => {
            let extents = prepare_ahead(store, file, span, ahead)?;
            Ok(DeedOutcome::Extents(extents))
        }
        Deed::Map { file, span } => {
            let open = store.file(file)?;
            // Readers get nothing behind the end: it is cut when the writer has ended.
            let length = store.length(file, open.metadata()?.len(), &*open)?;
            let inside = span.intersection(Span::new(0, length.div_ceil(BLOCK_BYTES)));
            let none = inside.is_empty();
            Ok(DeedOutcome::Extents(if none { Vec::new() } else { leasable(&open, inside)? }))
        }
        Deed::Read { file, span } => Ok(DeedOutcome::Data(read(&*store.file(file)?, span)?)),
        Deed::Write { file, span, data } => {
            if !store.is_settled(file, span) {
                prepare_ahead(store, file, span, span)?;
            }
            let place = span.start * BLOCK_BYTES;
            let open = store.file(file)?;
            match data.blocks() {
                Some(blocks) => open.write_all_at(blocks, place)?,
                None => open.write_all_at(&Buffer::from(&data[..]), place)?,
            }
            Ok(DeedOutcome::Done)
        }
        Deed::Flush => {
            store.flush_lun()?;
            Ok(DeedOutcome::Done)
        }
        Deed::Truncate { file, blocks } => {
            let open = store.file(file)?;
            store.unsettle(file, Span::from(blocks));
            let size = blocks.saturating_mul(BLOCK_BYTES);
            open.set_len(size)?;
            if let Some(length) = store.written_length(file).filter(|length| *length > size) {
                store.set_length(file, Some(length.min(size)));
            }
            open.sync_all()?;
            Ok(DeedOutcome::Done)
        }
        Deed::Punch { file, span } => {
            let open = store.file(file)?;
            store.unsettle(file, span);
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let (start, length) = (span.start * BLOCK_BYTES, span.count * BLOCK_BYTES);
            rustix::fs::fallocate(&*open, flags, start, length).map_err(to_error)?;
            open.sync_all()?;
            Ok(DeedOutcome::Done)
        }
        // Names are taken away by calls, and nothing here makes files that share blocks.
        Deed::Clone { .. } | Deed::Delete { .. } => {
            Ok(DeedOutcome::Failed("a deed that no client of this version asks for".to_owned()))
        }
    }
}

fn read(file: &File, span: Span) -> io::Result<Payload> {
    let length = usize::try_from(span.count * BLOCK_BYTES).unwrap_or(0);
    let mut buffer = Buffer::zeroed(length);
    let start = span.start * BLOCK_BYTES;
    read_to_end(file, &mut buffer, start)?;
    // Behind the file system's end the kernel may have left something in the last block.
    let size = file.metadata()?.len();
    let inside = usize::try_from(size.saturating_sub(start)).unwrap_or(length).min(length);
    buffer[inside..].fill(0);
    Ok(buffer.into())
}

/// Blocks that are prepared ahead of the first write anywhere: 64 KiB.
const AHEAD_MIN: u64 = 16;

/// Prepares what is wanted, and ahead of it as much as lies prepared before it: who writes from front to
/// back asks seldom, who writes here and there fills no holes, and a small file stays small.
fn prepare_ahead(store: &Store, id: FileId, span: Span, ahead: Span) -> io::Result<Vec<Extent>> {
    let open: Arc<File> = store.file(id)?;
    if let Some(run) = store.settled_around(id, span) {
        // Prepared already, and ahead: only where it lies is asked for.
        let end = run.end().min(ahead.end().max(span.end()));
        return leasable(&open, Span::new(span.start, end - span.start));
    }
    let more = store.settled_before(id, span.start).max(AHEAD_MIN);
    let end = span.end().saturating_add(more).min(ahead.end().max(span.end()));
    let wanted = Span::new(span.start, end - span.start);
    let extents = match prepare(&open, wanted) {
        Err(PrepareError::Full) if wanted != span => prepare(&open, span),
        other => other,
    };
    let extents = extents.map_err(|error| match error {
        PrepareError::Full => io::Error::from_raw_os_error(libc::ENOSPC),
        PrepareError::Range => io::Error::from_raw_os_error(libc::EFBIG),
        PrepareError::System(source) => source,
    })?;
    store.settle(id, &extents);
    Ok(extents)
}

/// The next writer is noted, with the length that the file has. What the last one left behind the
/// end is cut: nobody has a lease there, see `Map`, and its own ended with it.
fn begin_writing(
    store: &Store,
    id: FileId,
    writer: (model::NodeId, OpenId),
) -> io::Result<DeedOutcome> {
    let open = store.file(id)?;
    let size = open.metadata()?.len();
    let length = store.length(id, size, &*open)?;
    Store::set_record(&open, &Record { writer: Some(writer), length })?;
    let rounded = length.div_ceil(BLOCK_BYTES) * BLOCK_BYTES;
    if size > rounded {
        open.set_len(rounded)?;
        store.unsettle(id, Span::from(rounded / BLOCK_BYTES));
    }
    Store::round_up(&open)?;
    // A writer that died may have written behind the end, in the last block.
    if size > length && !length.is_multiple_of(BLOCK_BYTES) {
        open.sync_all()?;
        Store::forget_pages(&open)?;
        open.set_len(length)?;
        open.sync_all()?;
        Store::round_up(&open)?;
    }
    open.sync_all()?;
    store.set_length(id, Some(length));
    Ok(DeedOutcome::Done)
}

/// The file gets its true length, if its client has given back what was ahead of it.
fn end_writing(store: &Store, id: FileId) -> io::Result<DeedOutcome> {
    let open = store.file(id)?;
    let size = open.metadata()?.len();
    let length = store.length(id, size, &*open)?;
    if size > length.div_ceil(BLOCK_BYTES) * BLOCK_BYTES {
        Store::set_record(&open, &Record { writer: None, length })?;
        open.sync_all()?;
        store.set_length(id, None);
        return Ok(DeedOutcome::Done);
    }
    if size != length {
        Store::forget_pages(&open)?;
        open.set_len(length)?;
        store.unsettle(id, Span::from(length / BLOCK_BYTES));
    }
    Store::remove_record(&open)?;
    open.sync_all()?;
    store.set_length(id, None);
    Ok(DeedOutcome::Done)
}
