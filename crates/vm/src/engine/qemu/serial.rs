//! The serial console: one connection to QEMU, any number of viewers, the last bytes kept.
//!
//! The guest never waits for a viewer, and a viewer needs no memory of its own: it reads the kept
//! bytes at its own pace. One that falls behind by more than is kept is told how much it has
//! missed. While no daemon runs, QEMU throws the output away.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::unix::ReadHalf;
use tokio::net::unix::WriteHalf;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// Output that is kept: some hundred lines, for each machine on the host.
const KEPT: usize = 64 * 1024;

/// Viewers of one console.
const VIEWERS_MAX: usize = 16;

/// A viewer that takes nothing for so long, though there is something, gives its place up.
const STALL_MAX: Duration = Duration::from_mins(10);

/// Input from viewers on its way to the guest.
const INPUT_QUEUE: usize = 32;

/// How much is moved at a time.
const CHUNK: usize = 4096;

/// The console of one machine.
#[derive(Clone)]
pub(super) struct Serial {
    state: Arc<Mutex<State>>,
    /// All bytes that were printed so far; who waits for more, waits here.
    printed: Arc<watch::Sender<u64>>,
}

#[derive(Default)]
struct State {
    kept: VecDeque<u8>,
    /// Bytes printed in all: the position behind the last kept one.
    end: u64,
    viewers: usize,
    closed: bool,
    input: Option<mpsc::Sender<Vec<u8>>>,
    tasks: Vec<AbortHandle>,
}

/// What a viewer gets next.
enum Next {
    Bytes(Vec<u8>),
    /// It was too slow: so many bytes are kept no more.
    Missed(u64),
    Wait,
    End,
}

/// A place among the viewers; given back when dropped.
struct Place(Serial);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.lock().viewers -= 1;
    }
}

impl Serial {
    /// Serves a console over its connection to QEMU until that ends.
    pub(super) fn start(stream: UnixStream) -> Self {
        let (state, printed) = (Arc::default(), Arc::new(watch::Sender::new(0)));
        let serial = Self { state, printed };
        let (tx, rx) = mpsc::channel(INPUT_QUEUE);
        serial.lock().input = Some(tx);
        let (read, write) = stream.into_split();
        let typing = tokio::spawn(type_in(rx, write)).abort_handle();
        let following = tokio::spawn(serial.clone().follow(read)).abort_handle();
        serial.lock().tasks = vec![typing, following];
        serial
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kept output.
    pub(super) fn tail(&self) -> Vec<u8> {
        self.lock().kept.iter().copied().collect()
    }

    /// A new viewer.
    pub(super) fn view(&self) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut state = self.lock();
        if state.viewers >= VIEWERS_MAX {
            return Err(io::Error::other("too many viewers of this console"));
        }
        state.viewers += 1;
        let place = Place(self.clone());
        let (from, input) = (state.end - state.kept.len() as u64, state.input.clone());
        drop(state);
        tokio::spawn(async move {
            let mut stream = theirs;
            let (read, write) = stream.split();
            tokio::select! {
                () = place.0.show(write, from) => {}
                () = listen(read, input) => {}
            }
        });
        Ok(ours)
    }

    /// Lets the connection to QEMU go, and the viewers when they have seen the last bytes.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.input = None;
        for task in state.tasks.drain(..) {
            task.abort();
        }
        drop(state);
        self.printed.send_modify(|_| {});
    }

    async fn follow(self, read: OwnedReadHalf) {
        let mut chunk = [0; CHUNK];
        while read.readable().await.is_ok() {
            match read.try_read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => self.print(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
        self.close();
    }

    fn print(&self, bytes: &[u8]) {
        let mut state = self.lock();
        state.kept.extend(bytes);
        let extra = state.kept.len().saturating_sub(KEPT);
        state.kept.drain(..extra);
        state.end += bytes.len() as u64;
        let end = state.end;
        drop(state);
        self.printed.send_replace(end);
    }

    /// What stands at position `at`.
    fn next(&self, at: u64) -> Next {
        let state = self.lock();
        let first = state.end - state.kept.len() as u64;
        if at < first {
            return Next::Missed(first - at);
        }
        if at == state.end {
            return if state.closed { Next::End } else { Next::Wait };
        }
        // Less than `KEPT`.
        let skip = (at - first) as usize;
        Next::Bytes(state.kept.iter().skip(skip).take(CHUNK).copied().collect())
    }

    /// Prints everything from position `at` on for a viewer, until it is gone or the console ends.
    async fn show(&self, mut viewer: WriteHalf<'_>, mut at: u64) {
        let mut printed = self.printed.subscribe();
        loop {
            let bytes = match self.next(at) {
                Next::Bytes(bytes) => {
                    at += bytes.len() as u64;
                    bytes
                }
                Next::Missed(count) => {
                    at += count;
                    format!("\r\n[muster: {count} bytes of output were not shown]\r\n").into_bytes()
                }
                Next::Wait if printed.changed().await.is_ok() => continue,
                Next::Wait | Next::End => break,
            };
            if !matches!(timeout(STALL_MAX, viewer.write_all(&bytes)).await, Ok(Ok(()))) {
                break;
            }
        }
    }
}

/// Takes what a viewer types, until it hangs up.
async fn listen(read: ReadHalf<'_>, input: Option<mpsc::Sender<Vec<u8>>>) {
    let mut chunk = [0; CHUNK];
    while read.readable().await.is_ok() {
        match read.try_read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => {
                // A console that has ended still shows its last bytes.
                if let Some(input) = &input {
                    let _ = input.send(chunk[..count].to_vec()).await;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
}

async fn type_in(mut input: mpsc::Receiver<Vec<u8>>, mut write: OwnedWriteHalf) {
    while let Some(bytes) = input.recv().await {
        if write.write_all(&bytes).await.is_err() {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    fn console() -> (Serial, UnixStream) {
        let (ours, guest) = UnixStream::pair().unwrap();
        (Serial::start(ours), guest)
    }

    async fn read(viewer: &mut UnixStream, count: usize) -> Vec<u8> {
        let mut seen = vec![0; count];
        viewer.read_exact(&mut seen).await.unwrap();
        seen
    }

    /// Waits until everything that was printed has arrived.
    async fn printed(serial: &Serial, end: u64) {
        serial.printed.subscribe().wait_for(|printed| *printed >= end).await.unwrap();
    }

    #[tokio::test]
    async fn single_bytes_reach_a_viewer_that_pauses() {
        let (serial, mut guest) = console();
        let mut viewer = serial.view().unwrap();
        // One at a time, as a guest's port sends them: a socket takes far fewer small messages than
        // it takes bytes.
        for n in 0..20_000_u64 {
            guest.write_all(&[b'a' + (n % 26) as u8]).await.unwrap();
            printed(&serial, n + 1).await;
        }
        let seen = read(&mut viewer, 20_000).await;
        assert!(seen.iter().enumerate().all(|(n, byte)| *byte == b'a' + (n % 26) as u8));
    }

    #[tokio::test]
    async fn who_is_much_too_slow_is_told_what_it_missed() {
        let (serial, mut guest) = console();
        let mut viewer = serial.view().unwrap();
        let all = 1_000_000_usize;
        guest.write_all(&vec![b'x'; all]).await.unwrap();
        printed(&serial, all as u64).await;
        drop(guest);
        let mut seen = String::new();
        viewer.read_to_string(&mut seen).await.unwrap();
        let missed: usize = seen
            .split("[muster: ")
            .skip(1)
            .map(|rest| rest.split(' ').next().unwrap().parse::<usize>().unwrap())
            .sum();
        assert!(missed > 0);
        assert_eq!(seen.matches('x').count() + missed, all);
    }

    #[tokio::test]
    async fn a_place_is_free_again_when_a_viewer_hangs_up() {
        let (serial, mut guest) = console();
        let mut viewers: Vec<_> = (0..VIEWERS_MAX).map(|_| serial.view().unwrap()).collect();
        assert!(serial.view().is_err());
        // Full, and nobody reads.
        guest.write_all(&vec![b'x'; 1_000_000]).await.unwrap();
        viewers.pop();
        while serial.lock().viewers == VIEWERS_MAX {
            tokio::task::yield_now().await;
        }
        assert!(serial.view().is_ok());
    }

    #[tokio::test]
    async fn the_last_words_and_what_is_typed_pass() {
        let (serial, mut guest) = console();
        let mut viewer = serial.view().unwrap();
        viewer.write_all(b"poweroff\n").await.unwrap();
        assert_eq!(read(&mut guest, 9).await, b"poweroff\n");
        guest.write_all(b"bye").await.unwrap();
        drop(guest);
        let mut seen = String::new();
        viewer.read_to_string(&mut seen).await.unwrap();
        assert_eq!((seen.as_str(), serial.tail().as_slice()), ("bye", b"bye".as_slice()));
    }
}
