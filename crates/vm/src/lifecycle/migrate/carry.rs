//! Carries the engine's connections to the other node, byte for byte.

use std::io;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use model::NodeId;
use model::OpId;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Lane;
use super::Mover;
use super::Shared;
use super::Wire;
use super::pace::Pace;
use crate::engine::Sending;

/// Bytes that are on the way at once, in each direction of a connection: a page run of QEMU's, and
/// the few bytes that come back.
const FORTH: usize = 128 * 1024;
const BACK: usize = 8 * 1024;

/// How long the other side may say nothing about a request of a disk: longer than storage that is fit
/// for it takes for a flush, and as long as a guest bears a disk that stands still.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// The carriers of one migration; all connections end with it.
pub(super) struct Carriers {
    _task: JoinSet<()>,
    problem: Shared<Option<String>>,
}

impl Carriers {
    /// Carries every connection that the engine opens.
    pub(super) fn start(
        mover: Arc<dyn Mover>,
        to: NodeId,
        (op, lane): (OpId, Lane),
        mut connections: mpsc::Receiver<Sending>,
        pace: Arc<Pace>,
    ) -> Self {
        let problem: Shared<Option<String>> = Arc::default();
        let note = problem.clone();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut all = JoinSet::new();
            while let Some(stream) = connections.recv().await {
                let (mover, note, pace) = (mover.clone(), note.clone(), pace.clone());
                all.spawn(async move {
                    if let Err(error) = carry(&*mover, to, (op, lane), stream, &pace).await {
                        tracing::info!(%op, error, "a connection of a migration has ended");
                        let mut note = note.lock().unwrap_or_else(PoisonError::into_inner);
                        note.get_or_insert(error);
                    }
                });
            }
            while all.join_next().await.is_some() {}
        });
        Self { _task: task, problem }
    }

    /// What went wrong first, if something did.
    pub(super) fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn carry(
    mover: &dyn Mover,
    to: NodeId,
    (op, lane): (OpId, Lane),
    mut ours: Sending,
    pace: &Pace,
) -> Result<(), String> {
    // When it fails, the engine sees the end of its connection, and the guest goes on.
    let mut theirs = mover.connect(to, op, lane).await?;
    let copied = match lane {
        Lane::Memory if pace.is_limited() => carry_paced(ours, theirs, pace).await,
        Lane::Memory => {
            tokio::io::copy_bidirectional_with_sizes(&mut ours, &mut theirs, FORTH, BACK)
                .await
                .map(drop)
        }
        // No engine sends files.
        Lane::Disks | Lane::Files => carry_answered(ours, theirs, pace).await,
    };
    copied.map_err(|error| format!("the connection broke: {error}"))
}

/// When what was sent last, and what came back last, went through.
struct Heard {
    begun: Instant,
    sent_ms: AtomicU64,
    answered_ms: AtomicU64,
}

impl Heard {
    fn now(&self) -> u64 {
        super::millis(self.begun.elapsed())
    }

    /// Ends when the other side has been silent for too long about something that was sent.
    async fn silence(&self) -> io::Error {
        let mut open_since = None;
        loop {
            tokio::time::sleep(SILENCE_MAX / 10).await;
            let sent = self.sent_ms.load(Ordering::Relaxed);
            let answered = self.answered_ms.load(Ordering::Relaxed);
            if sent <= answered {
                open_since = None;
                continue;
            }
            let since = (*open_since.get_or_insert(sent)).max(answered);
            if self.now().saturating_sub(since) > super::millis(SILENCE_MAX) {
                return io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the other node takes nothing any more",
                );
            }
        }
    }
}

/// Carries a connection on which each request is answered. A target that stands still must not let
/// the guest stand still: its writes wait for both disks in the end, and come back when this ends.
async fn carry_answered(ours: Sending, theirs: Box<dyn Wire>, pace: &Pace) -> io::Result<()> {
    let (mut from_us, mut to_us) = tokio::io::split(ours);
    let (mut from_them, mut to_them) = tokio::io::split(theirs);
    let free = Pace::new(None);
    let heard = Heard {
        begun: Instant::now(),
        // The first word is the other side's.
        sent_ms: AtomicU64::new(1),
        answered_ms: AtomicU64::new(0),
    };
    let forth = pump(&mut from_us, &mut to_them, FORTH, pace, |done| {
        // A write that is not taken counts from its begin.
        if !done {
            heard.sent_ms.store(heard.now().max(1), Ordering::Relaxed);
        }
    });
    let back = pump(&mut from_them, &mut to_us, BACK, &free, |done| {
        if done {
            heard.answered_ms.store(heard.now().max(1), Ordering::Relaxed);
        }
    });
    tokio::select! {
        // Either end closes both.
        ended = forth => ended,
        ended = back => ended,
        error = heard.silence() => Err(error),
    }
}

/// Carries a connection no quicker than is allowed. Each direction ends by itself.
async fn carry_paced(ours: Sending, theirs: Box<dyn Wire>, pace: &Pace) -> io::Result<()> {
    let (mut from_us, mut to_us) = tokio::io::split(ours);
    let (mut from_them, mut to_them) = tokio::io::split(theirs);
    let free = Pace::new(None);
    let forth = pump(&mut from_us, &mut to_them, FORTH, pace, |_| ());
    let back = pump(&mut from_them, &mut to_us, BACK, &free, |_| ());
    tokio::try_join!(forth, back).map(drop)
}

/// Copies until the end, and tells before and after each piece is written.
async fn pump(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    size: usize,
    pace: &Pace,
    tell: impl Fn(bool),
) -> io::Result<()> {
    let mut buffer = vec![0; size];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        pace.take(read).await;
        tell(false);
        to.write_all(&buffer[..read]).await?;
        to.flush().await?;
        tell(true);
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;

    /// A target that takes what comes, and answers as often as it is told to.
    async fn answers(mut far: tokio::io::DuplexStream, times: usize) {
        let mut byte = [0];
        for _ in 0..times {
            if far.read_exact(&mut byte).await.is_err() || far.write_all(&byte).await.is_err() {
                return;
            }
        }
        std::future::pending::<()>().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_that_stands_still_is_let_go_and_an_idle_one_is_not() {
        let (near, far) = tokio::io::duplex(64);
        let (mut engine, ours) = UnixStream::pair().unwrap();
        let target = tokio::spawn(answers(far, 2));
        let carrier = tokio::spawn(async move {
            carry_answered(ours.into(), Box::new(near), &Pace::new(None)).await
        });
        let mut byte = [0];
        for _ in 0..2 {
            engine.write_all(&[7]).await.unwrap();
            engine.read_exact(&mut byte).await.unwrap();
            // Nothing is asked for: silence means nothing.
            tokio::time::sleep(SILENCE_MAX * 3).await;
            assert!(!carrier.is_finished());
        }
        engine.write_all(&[7]).await.unwrap();
        let asked = Instant::now();
        let ended = carrier.await.unwrap();
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(asked.elapsed() < SILENCE_MAX * 2, "{:?}", asked.elapsed());
        assert_eq!(engine.read(&mut byte).await.unwrap(), 0, "the engine sees the end");
        target.abort();
    }
}
