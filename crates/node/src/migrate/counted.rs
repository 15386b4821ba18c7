//! A connection whose bytes are counted on their way out.

use std::io;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;

/// A stream, and the sum of what it and others took.
pub(super) struct Counted<S> {
    pub(super) stream: S,
    pub(super) carried: Arc<AtomicU64>,
}

impl<S> Counted<S> {
    fn count(&self, taken: io::Result<usize>) -> Poll<io::Result<usize>> {
        if let Ok(bytes) = taken {
            self.carried.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        Poll::Ready(taken)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let taken = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes));
        self.count(taken)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let taken = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, slices));
        self.count(taken)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn what_goes_out_is_counted_and_what_comes_back_is_not() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let carried = Arc::new(AtomicU64::new(5));
        let mut counted = Counted { stream: ours, carried: carried.clone() };
        counted.write_all(b"memory").await.unwrap();
        theirs.write_all(b"answer").await.unwrap();
        let mut answer = [0; 6];
        counted.read_exact(&mut answer).await.unwrap();
        theirs.read_exact(&mut [0; 6]).await.unwrap();
        assert_eq!((&answer, carried.load(Ordering::Relaxed)), (b"answer", 11));
    }
}
