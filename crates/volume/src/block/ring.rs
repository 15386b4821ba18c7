//! Many requests at a time, through io_uring: one ring and one thread for each LUN.
//!
//! The thread owns the ring, the device and every buffer that the kernel has. It sleeps in the ring;
//! an event descriptor, of which the ring always has a read on the way, wakes it for new requests.

#![allow(unsafe_code, reason = "the kernel is given addresses; the slots below keep them alive")]

use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::SyncSender;
use std::sync::mpsc::TryRecvError;
use std::sync::mpsc::TrySendError;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;

use io_uring::IoUring;
use io_uring::opcode;
use io_uring::squeue::Entry;
use io_uring::types::Fd;
use io_uring::types::FsyncFlags;
use nix::sys::eventfd::EfdFlags;
use nix::sys::eventfd::EventFd;

use super::BlockError;
use super::BlockIo;
use super::Buffer;
use super::Busy;
use super::DEPTH_MAX;
use super::Deed;
use super::Opened;
use super::Outcome;
use super::QUEUE_MAX;
use super::Request;

/// Marks the completion of the read that wakes the thread.
const WAKE: u64 = u64::MAX;

/// The implementation on io_uring.
#[derive(Debug)]
pub struct RingIo {
    device: Arc<Opened>,
    queue: Option<SyncSender<Request>>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl RingIo {
    /// Opens a block device, or a file that stands for one.
    ///
    /// # Errors
    ///
    /// The system's, also where the file is neither, or io_uring is forbidden.
    pub fn open(path: &Path) -> io::Result<Self> {
        let device = Arc::new(super::open(path)?);
        let entries = u32::try_from(DEPTH_MAX * 2).unwrap_or(256);
        let ring = IoUring::new(entries)?;
        let flags = EfdFlags::EFD_CLOEXEC;
        let wake = Arc::new(EventFd::from_value_and_flags(0, flags)?);
        let (queue, requests) = sync_channel(QUEUE_MAX);
        let mut worker = Worker {
            ring,
            device: device.clone(),
            wake: wake.clone(),
            woken: Box::new([0; 8]),
            listening: false,
            slots: (0..DEPTH_MAX).map(|_| None).collect(),
            free: (0..DEPTH_MAX).rev().collect(),
        };
        let builder = std::thread::Builder::new().name("block-ring".to_owned());
        let thread = builder.spawn(move || worker.serve(&requests))?;
        Ok(Self { device, queue: Some(queue), wake, thread: Some(thread) })
    }
}

impl BlockIo for RingIo {
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
        })?;
        // Fails only if the counter were full, and then the thread is awake anyway.
        let _ = self.wake.write(1);
        Ok(())
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

impl Drop for RingIo {
    fn drop(&mut self) {
        self.queue = None;
        let _ = self.wake.write(1);
        if let Some(thread) = self.thread.take() {
            // It has panicked only if a `done` did, and that has been reported.
            let _ = thread.join();
        }
    }
}

/// Writes what is left of some bytes.
fn write(fd: Fd, offset: u64, data: &[u8], so_far: usize) -> Entry {
    let rest = &data[so_far..];
    let length = u32::try_from(rest.len()).unwrap_or(u32::MAX);
    opcode::Write::new(fd, rest.as_ptr(), length).offset(offset + so_far as u64).build()
}

/// A request that the kernel has.
struct Slot {
    deed: Deed,
    done: Box<dyn FnOnce(Outcome) + Send>,
    /// What a read fills; of a write the bytes are in the deed.
    read: Buffer,
    /// Bytes that are done.
    so_far: usize,
}

struct Worker {
    ring: IoUring,
    device: Arc<Opened>,
    wake: Arc<EventFd>,
    /// Where the event's counter is read to; in a box, so that it stays where it is.
    woken: Box<[u8; 8]>,
    listening: bool,
    /// A slot is emptied only when the kernel has answered, so its buffer outlives the request.
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
}

impl Worker {
    fn serve(&mut self, requests: &Receiver<Request>) {
        let mut closed = false;
        loop {
            while !self.free.is_empty() && !closed {
                match requests.try_recv() {
                    Ok(request) => self.begin(request),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => closed = true,
                }
            }
            let idle = self.free.len() == DEPTH_MAX;
            if closed && idle {
                return;
            }
            if !self.listening && !closed {
                self.listen();
            }
            if let Err(error) = self.ring.submit_and_wait(1)
                && error.raw_os_error() != Some(libc::EINTR)
                && error.raw_os_error() != Some(libc::EBUSY)
                && error.raw_os_error() != Some(libc::EAGAIN)
            {
                // The kernel still has the buffers: going on without an answer would free them.
                tracing::error!(%error, "io_uring does not work any more");
                std::process::abort();
            }
            let completed: Vec<(u64, i32)> =
                self.ring.completion().map(|entry| (entry.user_data(), entry.result())).collect();
            for (name, result) in completed {
                match usize::try_from(name) {
                    Ok(slot) if name != WAKE => self.completed(slot, result),
                    _ => self.listening = false,
                }
            }
        }
    }

    fn begin(&mut self, request: Request) {
        let Request { deed, done } = request;
        if let Err(error) = self.device.check(&deed) {
            return done(Err(error));
        }
        let read = match &deed {
            Deed::Read { length, .. } => Buffer::zeroed(usize::try_from(*length).unwrap_or(0)),
            _ => Buffer::empty(),
        };
        let Some(place) = self.free.pop() else { return done(Err(BlockError::Short)) };
        self.slots[place] = Some(Slot { deed, done, read, so_far: 0 });
        self.go_on(place);
    }

    /// Gives the kernel what is left of a request.
    fn go_on(&mut self, place: usize) {
        let fd = Fd(self.device.file.as_raw_fd());
        let Some(slot) = &mut self.slots[place] else { return };
        let so_far = slot.so_far;
        let entry = match &slot.deed {
            Deed::Read { offset, .. } => {
                let rest = &mut slot.read[so_far..];
                let length = u32::try_from(rest.len()).unwrap_or(u32::MAX);
                let read = opcode::Read::new(fd, rest.as_mut_ptr(), length);
                read.offset(*offset + so_far as u64).build()
            }
            Deed::Write { offset, data } => write(fd, *offset, data, so_far),
            Deed::WriteShared { offset, data } => write(fd, *offset, data, so_far),
            Deed::Flush => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
            Deed::Discard { offset, length } => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                opcode::Fallocate::new(fd, *length).offset(*offset).mode(mode).build()
            }
        };
        self.push(&entry.user_data(place as u64));
    }

    fn listen(&mut self) {
        let fd = Fd(self.wake.as_fd().as_raw_fd());
        let entry = opcode::Read::new(fd, self.woken.as_mut_ptr(), 8).build().user_data(WAKE);
        self.push(&entry);
        self.listening = true;
    }

    fn push(&mut self, entry: &Entry) {
        // SAFETY: what the entry points to is in a slot that is emptied only by its completion, or in
        // `woken`; both stay where they are until the ring is dropped, after the last completion.
        let pushed = unsafe { self.ring.submission().push(entry) };
        // There are twice as many entries as slots, and all are submitted before the next turn.
        assert!(pushed.is_ok(), "the ring has no room for what its slots hold");
    }

    fn completed(&mut self, place: usize, result: i32) {
        let Some(slot) = self.slots.get_mut(place).and_then(Option::as_mut) else { return };
        let wanted = match &slot.deed {
            Deed::Read { .. } => slot.read.len(),
            Deed::Write { data, .. } => data.len(),
            Deed::WriteShared { data, .. } => data.len(),
            Deed::Flush | Deed::Discard { .. } => 0,
        };
        let outcome = match usize::try_from(result) {
            Err(_) if result == -libc::EINTR || result == -libc::EAGAIN => {
                return self.go_on(place);
            }
            Err(_) => Err(BlockError::Device { errno: -result }),
            Ok(0) if slot.so_far < wanted => Err(BlockError::Short),
            Ok(bytes) => {
                slot.so_far += bytes;
                if slot.so_far < wanted {
                    return self.go_on(place);
                }
                Ok(())
            }
        };
        let Some(slot) = self.slots[place].take() else { return };
        self.free.push(place);
        if matches!(slot.deed, Deed::Flush) && outcome.is_err() {
            self.device.flush_lost.store(true, Ordering::SeqCst);
        }
        (slot.done)(outcome.map(|()| slot.read));
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // A `done` has panicked while the kernel has buffers: they must not be freed.
        if self.slots.iter().any(Option::is_some) {
            std::process::abort();
        }
    }
}
