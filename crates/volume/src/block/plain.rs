//! One request after the other, with pread and pwrite.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::SyncSender;
use std::sync::mpsc::TrySendError;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;

use nix::fcntl::FallocateFlags;
use nix::fcntl::fallocate;

use super::BlockError;
use super::BlockIo;
use super::Buffer;
use super::Busy;
use super::Deed;
use super::Opened;
use super::Outcome;
use super::QUEUE_MAX;
use super::Request;

/// The plain implementation.
#[derive(Debug)]
pub struct PlainIo {
    device: Arc<Opened>,
    queue: Option<SyncSender<Request>>,
    thread: Option<JoinHandle<()>>,
}

impl PlainIo {
    /// Opens a block device, or a file that stands for one.
    ///
    /// # Errors
    ///
    /// The system's, also where the file is neither.
    pub fn open(path: &Path) -> io::Result<Self> {
        let device = Arc::new(super::open(path)?);
        let (queue, requests) = sync_channel(QUEUE_MAX);
        let worker = device.clone();
        let builder = std::thread::Builder::new().name("block-plain".to_owned());
        let thread = builder.spawn(move || serve(&worker, &requests))?;
        Ok(Self { device, queue: Some(queue), thread: Some(thread) })
    }
}

impl BlockIo for PlainIo {
    fn size(&self) -> u64 {
        self.device.size
    }

    fn alignment(&self) -> u64 {
        self.device.alignment
    }

    fn submit(&self, request: Request) -> Result<(), Busy> {
        let Some(queue) = &self.queue else { return Err(Busy(request)) };
        queue.try_send(request).map_err(|error| match error {
            TrySendError::Full(request) | TrySendError::Disconnected(request) => Busy(request),
        })
    }

    fn read_now(&self, offset: u64, buffer: &mut [u8]) -> Result<(), BlockError> {
        self.device.read_now(offset, buffer)
    }

    fn write_now(&self, offset: u64, data: &[u8]) -> Result<(), BlockError> {
        self.device.write_now(offset, data)
    }

    fn flush_now(&self) -> Result<(), BlockError> {
        self.device.flush_now()
    }
}

impl Drop for PlainIo {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // It has panicked only if a `done` did, and that has been reported.
            let _ = thread.join();
        }
    }
}

fn serve(device: &Opened, requests: &Receiver<Request>) {
    while let Ok(Request { deed, done }) = requests.recv() {
        done(perform(device, &deed));
    }
}

fn perform(device: &Opened, deed: &Deed) -> Outcome {
    device.check(deed)?;
    match deed {
        Deed::Read { offset, length } => {
            let length = usize::try_from(*length).map_err(|_| BlockError::Short)?;
            let mut buffer = Buffer::zeroed(length);
            device.read_now(*offset, &mut buffer)?;
            return Ok(buffer);
        }
        Deed::Write { offset, data } => device.write_now(*offset, data)?,
        Deed::WriteShared { offset, data } => device.write_now(*offset, data)?,
        Deed::Flush => device.flush_now()?,
        Deed::Discard { offset, length } => {
            let place = (i64::try_from(*offset), i64::try_from(*length));
            let (Ok(offset), Ok(length)) = place else { return Err(BlockError::Short) };
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(&device.file, flags, offset, length)?;
        }
    }
    Ok(Buffer::empty())
}
