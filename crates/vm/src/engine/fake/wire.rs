//! Copies of a fake machine's disks to another one: each write is a frame, and a byte comes back when it
//! is in the other's file. The guest does not wait for that byte; whoever holds the copy does.
//!
//! ```text
//!   connection   the disk's slot, as JSON, and a line's end
//!   frame        offset u64, length u32, bytes
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::Mutex;

use tokio::io::AsyncBufReadExt;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::io::BufReader;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::lock;
use super::machine::FakeVm;
use crate::engine::EngineError;
use crate::engine::ImageSlot;

/// Writes that are on their way at once.
const FRAMES_MAX: usize = 4096;

/// Largest frame.
const FRAME_MAX: usize = 1 << 20;

/// Longest line that names a disk.
const NAME_MAX: u64 = 1024;

/// One write.
struct Frame {
    at: u64,
    bytes: Vec<u8>,
}

/// How a copy gets on.
#[derive(Debug, Default)]
struct Standing {
    /// Writes that have not been answered.
    open: usize,
    broken: Option<String>,
}

/// The source's end of one disk's connection.
#[derive(Debug)]
pub(super) struct Sender {
    frames: mpsc::Sender<Frame>,
    standing: Arc<Mutex<Standing>>,
}

impl Sender {
    /// Opens a connection over the way out.
    pub(super) fn open(vm: &FakeVm, slot: ImageSlot) -> Result<Self, EngineError> {
        let refuse = |why: &str| {
            let command = "blockdev-add".to_owned();
            EngineError::Command { command, why: why.to_owned() }
        };
        let (ours, theirs) = UnixStream::pair().map_err(EngineError::io("make a socket"))?;
        let way = vm.disks_way.as_ref().ok_or_else(|| refuse("there is no way out"))?;
        way.try_send(theirs.into()).map_err(|error| refuse(&error.to_string()))?;
        let (frames, out) = mpsc::channel(FRAMES_MAX);
        let standing: Arc<Mutex<Standing>> = Arc::default();
        let seen = standing.clone();
        tokio::spawn(async move {
            if let Err(error) = carry(slot, ours, out, &seen).await {
                lock(&seen).broken.get_or_insert(error.to_string());
            }
        });
        Ok(Self { frames, standing })
    }

    /// Sends a write. What does not get through is seen by [`Self::broken`].
    pub(super) fn write(&self, at: u64, bytes: &[u8]) {
        let mut standing = lock(&self.standing);
        match self.frames.try_send(Frame { at, bytes: bytes.to_vec() }) {
            Ok(()) => standing.open += 1,
            Err(error) => {
                standing.broken.get_or_insert(error.to_string());
            }
        }
    }

    /// Whether the other side has everything.
    pub(super) fn has_all(&self) -> bool {
        let standing = lock(&self.standing);
        standing.open == 0 && standing.broken.is_none()
    }

    /// Why nothing gets through any more.
    pub(super) fn broken(&self) -> Option<String> {
        lock(&self.standing).broken.clone()
    }
}

async fn carry(
    slot: ImageSlot,
    stream: UnixStream,
    mut frames: mpsc::Receiver<Frame>,
    standing: &Mutex<Standing>,
) -> io::Result<()> {
    let name = serde_json::to_string(&slot)?;
    let (mut answers, mut stream) = stream.into_split();
    stream.write_all(format!("{name}\n").as_bytes()).await?;
    let mut byte = [0];
    loop {
        let frame = tokio::select! {
            frame = frames.recv() => frame,
            // Nothing is to come without a frame: this is its end.
            _ = answers.read(&mut byte) => return Err(io::ErrorKind::ConnectionReset.into()),
        };
        let Some(frame) = frame else { return Ok(()) };
        let length = u32::try_from(frame.bytes.len()).map_err(io::Error::other)?;
        stream.write_u64(frame.at).await?;
        stream.write_u32(length).await?;
        stream.write_all(&frame.bytes).await?;
        answers.read_u8().await?;
        lock(standing).open -= 1;
    }
}

/// Lets other machines write to disks of one that waits.
pub(super) fn receive(vm: &mut FakeVm, slots: &[ImageSlot]) -> Result<(), EngineError> {
    for slot in slots {
        let path = vm.image(*slot);
        let path = path.ok_or_else(|| EngineError::NotPlugged(format!("{slot:?}")))?;
        let file =
            File::options().write(true).open(path).map_err(EngineError::io("open a disk"))?;
        vm.received.insert(*slot, file);
    }
    vm.receiving = slots.iter().copied().collect();
    Ok(())
}

/// Takes one connection in.
pub(super) fn connect(shared: &Arc<Mutex<FakeVm>>, vm: &FakeVm) -> Result<UnixStream, EngineError> {
    if vm.receiving.is_empty() {
        let source = io::Error::from(io::ErrorKind::ConnectionRefused);
        return Err(EngineError::io("connect to the machine that waits")(source));
    }
    let (ours, theirs) = UnixStream::pair().map_err(EngineError::io("make a socket"))?;
    let shared = shared.clone();
    tokio::spawn(async move {
        // The source sees the end of its connection.
        let _ = take(&shared, ours).await;
    });
    Ok(theirs)
}

async fn take(shared: &Mutex<FakeVm>, stream: UnixStream) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    (&mut stream).take(NAME_MAX).read_line(&mut line).await?;
    let slot: ImageSlot = serde_json::from_str(&line)?;
    let path = lock(shared).image(slot).ok_or(io::ErrorKind::NotFound)?;
    let file = File::options().write(true).open(path)?;
    loop {
        let at = stream.read_u64().await?;
        let length = usize::try_from(stream.read_u32().await?).map_err(io::Error::other)?;
        if length > FRAME_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut bytes = vec![0; length];
        stream.read_exact(&mut bytes).await?;
        {
            let vm = lock(shared);
            if vm.exit.is_some() || !vm.receiving.contains(&slot) {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            file.write_all_at(&bytes, at)?;
        }
        stream.get_mut().write_u8(1).await?;
    }
}
