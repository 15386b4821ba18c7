//! Reads, writes and flushes of programs.
//!
//! Whoever took such a request from the kernel does it: begins it, asks the LUN, answers. That is one
//! change of thread for a program, there and back, and no copy but the one that a write is kept by. While
//! all threads but one wait for a LUN, the last one gives what it takes to the LUN's own thread, which
//! answers: so there is always one that takes requests, and as many are on the way as programs have.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use fuser::ReplyData;
use fuser::ReplyEmpty;
use fuser::ReplyWrite;
use tokio::sync::OwnedSemaphorePermit;

use super::Front;
use super::Result;
use super::THREADS;
use crate::block::Buffer;
use crate::provider::bytes::Doing;
use crate::provider::bytes::OpenFile;
use crate::provider::core::Begun;
use crate::provider::core::Command;
use crate::provider::core::Ended;
use crate::provider::kernel::errno;

thread_local! {
    /// What this thread reads into; as long as its longest read so far, at most what the kernel asks for.
    static ROOM: RefCell<Buffer> = RefCell::new(Buffer::empty());
}

/// Threads that may wait for a LUN at a time: all but one.
#[derive(Debug, Default)]
pub(super) struct Turns(AtomicUsize);

/// A thread's leave to wait.
struct Turn<'a>(&'a Turns);

impl Turns {
    fn take(&self) -> Option<Turn<'_>> {
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        let turn = Turn(self);
        (before < THREADS - 1).then_some(turn)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whom to answer, and with what.
enum Reply {
    Data(ReplyData),
    Written(ReplyWrite, usize),
    Flushed(ReplyEmpty),
}

impl Reply {
    /// With the bytes that were wanted of a read, or how it failed.
    fn give(self, result: Result<&[u8]>) {
        match (self, result) {
            (Self::Data(reply), Ok(bytes)) => reply.data(bytes),
            (Self::Written(reply, bytes), Ok(_)) => {
                reply.written(u32::try_from(bytes).unwrap_or(0))
            }
            (Self::Flushed(reply), Ok(_)) => reply.ok(),
            (Self::Data(reply), Err(number)) => reply.error(errno(number)),
            (Self::Written(reply, _), Err(number)) => reply.error(errno(number)),
            (Self::Flushed(reply), Err(number)) => reply.error(errno(number)),
        }
    }
}

impl Front {
    pub(super) fn read_data(&self, file: Arc<OpenFile>, offset: u64, size: u32, reply: ReplyData) {
        match file.begin_read(offset, size.into()) {
            Some((_, None)) => reply.data(&[]),
            Some((doing, Some(begun))) => self.go_on(doing, begun, Reply::Data(reply)),
            None => self.run(async move {
                match file.read(offset, size.into()).await {
                    Ok(data) => reply.data(&data),
                    Err(number) => reply.error(errno(number)),
                }
            }),
        }
    }

    pub(super) fn write_data(
        &self,
        file: Arc<OpenFile>,
        offset: u64,
        data: &[u8],
        reply: ReplyWrite,
    ) {
        let length = data.len();
        if let Some((doing, begun)) = file.begin_write(offset, data) {
            return self.go_on(doing, begun, Reply::Written(reply, length));
        }
        let data = data.to_vec();
        self.run(async move {
            match file.write(offset, &data).await {
                Ok(()) => reply.written(u32::try_from(length).unwrap_or(0)),
                Err(number) => reply.error(errno(number)),
            }
        });
    }

    pub(super) fn flush_data(&self, file: Arc<OpenFile>, reply: ReplyEmpty) {
        match file.begin_flush() {
            Some((doing, begun)) => self.go_on(doing, begun, Reply::Flushed(reply)),
            None => self.run(async move {
                match file.sync().await {
                    Ok(()) => reply.ok(),
                    Err(number) => reply.error(errno(number)),
                }
            }),
        }
    }

    fn go_on(&self, doing: Doing, begun: Begun, reply: Reply) {
        let command = match begun {
            Begun::Direct(command) => command,
            Begun::Waiting(told) => {
                return self.run(in_the_end(doing, reply, Ended::Waiting(told)));
            }
        };
        match self.turns.take() {
            Some(turn) => self.now(doing, command, reply, turn),
            None => self.later(doing, command, reply),
        }
    }

    /// On this thread.
    fn now(&self, doing: Doing, command: Command, reply: Reply, turn: Turn<'_>) {
        ROOM.with_borrow_mut(|room| {
            if matches!(reply, Reply::Data(_)) && room.len() < doing.bytes() {
                *room = Buffer::zeroed(doing.bytes());
            }
            let ended = command.now(room);
            drop(turn);
            let Some((doing, reply, ended)) = at_once(doing, reply, ended, room) else { return };
            self.run(in_the_end(doing, reply, ended));
        });
    }

    /// On the LUN's thread.
    fn later(&self, doing: Doing, command: Command, reply: Reply) {
        let Some(permit) = self.permit() else { return };
        let runtime = self.runtime.clone();
        command.later(move |ended, blocks| {
            let permit: OwnedSemaphorePermit = permit;
            let Some((doing, reply, ended)) = at_once(doing, reply, ended, &blocks) else { return };
            // Here nothing may wait.
            runtime.spawn(async move {
                in_the_end(doing, reply, ended).await;
                drop(permit);
            });
        });
    }
}

/// Answers what has ended and needs nothing more; gives back all else.
fn at_once(
    doing: Doing,
    reply: Reply,
    ended: Ended,
    blocks: &[u8],
) -> Option<(Doing, Reply, Ended)> {
    match ended {
        Ended::Done(Ok(_)) if !doing.grows() => {
            let part = doing.part(blocks);
            // Before the answer: whoever has it may close the file, which then is to be forgotten.
            drop(doing);
            reply.give(part);
            None
        }
        ended => Some((doing, reply, ended)),
    }
}

async fn in_the_end(doing: Doing, reply: Reply, ended: Ended) {
    let blocks = match ended {
        Ended::Waiting(told) => doing.wait(told).await,
        Ended::Done(result) => doing.settled(result).await,
    };
    let blocks = match blocks {
        Ok(blocks) => doing.grown().await.map(|()| blocks),
        Err(number) => Err(number),
    };
    let part = blocks.as_deref().map_err(|number| *number).and_then(|blocks| doing.part(blocks));
    drop(doing);
    reply.give(part);
}
