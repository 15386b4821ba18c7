//! Connections of a migration that an engine opened, and how they are brought to an end.
//!
//! QEMU sends memory on several connections: a first one, which leads, and channels beside it. When two of
//! them break at once, its thread that leads can wait for ever for one that has gone (`multifd_send_thread`
//! of 10.0: one that sees that *another* has failed ends without a word to `multifd_send_sync_main`). The
//! guest goes on then, but can neither be migrated nor saved until it is off. So we never break a channel:
//!
//! ```text
//!   a connection is lost, or the migration is given up
//!     -> the first connection is shut: what leads fails, and ends the channels in its own order
//!     -> what still comes on the channels is read to nowhere until QEMU closes them
//! ```
//!
//! Nothing is lost by that: without the first connection the target never has everything.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream as StdStream;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::net::UnixStream;

/// How long an engine may take to close what it has no use for any more.
const DRAIN_MAX: Duration = Duration::from_secs(60);

/// One connection that an engine opened, to be carried to the target. One that is dropped before the engine
/// has closed it ends its migration, which fails, or its copies.
#[derive(Debug)]
pub struct Sending {
    stream: UnixStream,
    /// None: nothing depends on it.
    cut: Option<Arc<Cut>>,
    /// The engine has closed it.
    closed: bool,
}

/// All connections of one migration, for its end.
#[derive(Debug, Default)]
pub(super) struct Cut {
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    ended: bool,
    /// In their order: the first one leads.
    streams: Vec<StdStream>,
}

impl From<UnixStream> for Sending {
    /// A connection on which no other one depends.
    fn from(stream: UnixStream) -> Self {
        Self { stream, cut: None, closed: false }
    }
}

impl Sending {
    /// One of several, of which the first one leads.
    ///
    /// # Errors
    ///
    /// There is no room for one more file.
    pub(super) fn of(stream: UnixStream, cut: &Arc<Cut>) -> io::Result<Self> {
        cut.hold(&stream)?;
        Ok(Self { stream, cut: Some(cut.clone()), closed: false })
    }
}

impl Cut {
    fn hold(&self, stream: &UnixStream) -> io::Result<()> {
        let fd = std::os::fd::AsFd::as_fd(stream).try_clone_to_owned()?;
        let stream = StdStream::from(fd);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match held.ended {
            // QEMU had opened it before it knew.
            true => drain(stream),
            false => held.streams.push(stream),
        }
        Ok(())
    }

    /// Ends the migration, if it has not ended. To be called on a thread of the runtime.
    pub(super) fn end(&self) {
        let streams = {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            held.ended = true;
            std::mem::take(&mut held.streams)
        };
        let mut streams = streams.into_iter();
        if let Some(first) = streams.next() {
            // It has closed it itself: fine.
            let _ = first.shutdown(Shutdown::Both);
        }
        streams.for_each(drain);
    }
}

/// Reads what comes until the engine closes it.
fn drain(stream: StdStream) {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else {
        // The daemon ends, and all of its connections with it.
        return;
    };
    runtime.spawn(async move {
        // Its flags are those of the one that it was copied from: it does not block.
        let Ok(mut stream) = UnixStream::from_std(stream) else { return };
        let mut nowhere = vec![0; 64 * 1024];
        let all = async { while stream.read(&mut nowhere).await.is_ok_and(|read| read > 0) {} };
        if tokio::time::timeout(DRAIN_MAX, all).await.is_err() {
            tracing::warn!("a channel of a migration that has ended is still open");
        }
    });
}

impl Drop for Sending {
    fn drop(&mut self) {
        if let (false, Some(cut)) = (self.closed, &self.cut) {
            cut.end();
        }
    }
}

impl AsyncRead for Sending {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (before, room) = (buffer.filled().len(), buffer.remaining());
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let Poll::Ready(Ok(())) = read
            && room > 0
            && buffer.filled().len() == before
        {
            self.closed = true;
        }
        read
    }
}

impl AsyncWrite for Sending {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// Far more than a socket takes that nobody reads from.
    const MUCH: usize = 8 << 20;

    async fn two() -> (Arc<Cut>, [UnixStream; 2], [Sending; 2]) {
        let cut = Arc::<Cut>::default();
        let (first, ours) = UnixStream::pair().unwrap();
        let (channel, beside) = UnixStream::pair().unwrap();
        let ours = [ours, beside].map(|stream| Sending::of(stream, &cut).unwrap());
        (cut, [first, channel], ours)
    }

    #[tokio::test]
    async fn a_lost_channel_fails_what_leads_and_no_channel() {
        let (_, [mut first, mut channel], [ours, beside]) = two().await;
        drop(beside);
        assert_eq!(first.read(&mut [0]).await.unwrap(), 0, "what leads sees the end");
        first.write_all(&[1]).await.unwrap_err();
        channel.write_all(&vec![1; MUCH]).await.unwrap();
        drop(ours);
        channel.write_all(&vec![1; MUCH]).await.unwrap();
    }

    #[tokio::test]
    async fn one_that_is_given_up_waits_for_nobody_and_takes_who_comes_late() {
        let (cut, [mut first, mut channel], ours) = two().await;
        cut.end();
        assert_eq!(first.read(&mut [0]).await.unwrap(), 0);
        channel.write_all(&vec![1; MUCH]).await.unwrap();
        let (mut late, stream) = UnixStream::pair().unwrap();
        let stream = Sending::of(stream, &cut).unwrap();
        late.write_all(&vec![1; MUCH]).await.unwrap();
        drop((ours, stream));
    }

    #[tokio::test]
    async fn what_the_engine_closes_ends_nothing_else() {
        let (_, [mut first, channel], [_ours, mut beside]) = two().await;
        drop(channel);
        assert_eq!(beside.read(&mut [0]).await.unwrap(), 0);
        drop(beside);
        first.write_all(&[1]).await.unwrap();
    }
}
