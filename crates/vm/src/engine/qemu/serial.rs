//! The serial console: one connection to QEMU, any number of viewers, the last bytes kept.
//!
//! The guest never waits for a viewer: who does not read is cut off. While no daemon runs, QEMU
//! throws the output away.

use std::collections::VecDeque;
use std::io;
use std::io::Write;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// Output that is kept: some hundred lines, for each machine on the host.
const KEPT: usize = 64 * 1024;

/// Viewers of one console.
const VIEWERS_MAX: usize = 16;

/// Input from viewers on its way to the guest.
const INPUT_QUEUE: usize = 32;

/// How much is moved at a time.
const CHUNK: usize = 4096;

/// The console of one machine.
#[derive(Clone, Default)]
pub(super) struct Serial {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    kept: VecDeque<u8>,
    viewers: Vec<std::os::unix::net::UnixStream>,
    input: Option<mpsc::Sender<Vec<u8>>>,
    tasks: Vec<AbortHandle>,
}

impl Serial {
    /// Serves a console over its connection to QEMU until that ends.
    pub(super) fn start(stream: UnixStream) -> Self {
        let serial = Self::default();
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
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        let ours = UnixStream::from_std(ours)?;
        // Not split: the drop of a half would end its direction for the other copy, too.
        let read = UnixStream::from_std(theirs.try_clone()?)?;
        let mut state = self.lock();
        if state.viewers.len() >= VIEWERS_MAX {
            return Err(io::Error::other("too many viewers of this console"));
        }
        let (head, tail) = state.kept.as_slices();
        if pass(&theirs, head) && pass(&theirs, tail) {
            state.viewers.push(theirs);
        }
        let input = state.input.clone();
        drop(state);
        if let Some(input) = input {
            tokio::spawn(listen(read, input));
        }
        Ok(ours)
    }

    /// Lets all viewers and the connection to QEMU go.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        for viewer in state.viewers.drain(..) {
            let _ = viewer.shutdown(Shutdown::Both);
        }
        state.input = None;
        for task in state.tasks.drain(..) {
            task.abort();
        }
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
        state.viewers.retain(|viewer| pass(viewer, bytes));
    }
}

/// Writes without waiting; false for a viewer that is gone or does not read.
fn pass(mut viewer: &std::os::unix::net::UnixStream, bytes: &[u8]) -> bool {
    let passed = viewer.write_all(bytes).is_ok();
    if !passed {
        let _ = viewer.shutdown(Shutdown::Both);
    }
    passed
}

async fn listen(read: UnixStream, input: mpsc::Sender<Vec<u8>>) {
    let mut chunk = [0; CHUNK];
    while read.readable().await.is_ok() {
        match read.try_read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => {
                if input.send(chunk[..count].to_vec()).await.is_err() {
                    break;
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
