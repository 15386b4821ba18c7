//! A node's own path to the LUN: its device, its reservation key, and the gate before both.
//!
//! Client and coordinator of a node share one path, and so one key at the LUN. Where the coordinator
//! is, its key is the one that stands there; the client beside it goes through the **gate** instead:
//! each of its commands is let through under one session's key or not at all, and fencing that key
//! means to shut the gate and wait until what went through has come back. On every other node the
//! gate stands before the LUN's own fence and is what "drained" is read from.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use tokio::sync::Notify;

use crate::block::BlockIo;
use crate::block::PlainIo;
use crate::block::RingIo;
use crate::lease::Epoch;
use crate::lease::RegisterOutcome;
use crate::lease::ReservationKey;

/// What a node can do about reservations of a LUN, over its own path. Each call waits for the LUN.
///
/// The reservation is "exclusive access, all registrants", and outlives loss of power. What an
/// implementation promises is in `tests/provider/fence.rs`, the suite that each has to pass.
pub trait Fence: Send + Sync {
    /// Registers a key for this path in place of any other, and sees that the LUN is reserved.
    ///
    /// # Errors
    ///
    /// The system's; then it is not known which key the path has.
    fn register(&self, key: ReservationKey) -> io::Result<()>;

    /// Takes this path's key back; the LUN stays reserved. That there is none is no error.
    ///
    /// # Errors
    ///
    /// The system's.
    fn unregister(&self) -> io::Result<()>;

    /// All keys of all paths.
    ///
    /// # Errors
    ///
    /// The system's.
    fn keys(&self) -> io::Result<Vec<ReservationKey>>;

    /// The key of this path.
    ///
    /// # Errors
    ///
    /// The system's.
    fn own(&self) -> io::Result<Option<ReservationKey>>;

    /// Takes a key from whoever has it and aborts the commands sent under it: when this returns, none
    /// of them lands any more. That nobody has it is no error. May be this path's own key.
    ///
    /// # Errors
    ///
    /// The system's; also where this path has no key.
    fn preempt(&self, key: ReservationKey) -> io::Result<()>;

    /// How often this path was told that the LUN may have lost its volatile cache: power on, reset, a
    /// controller that was replaced. Only grows, has grown before the answer of any command that was
    /// done after the loss, and is asked after each command, so it must cost no more than a look at
    /// memory. One that counts too often costs a pause each time; one that counts too seldom, writes
    /// (decision 0026). A LUN whose cache survives (or that has none) never needs to count.
    fn losses(&self) -> u64 {
        0
    }
}

/// A node's path. Made once for each volume and node; cheap to clone.
#[derive(Clone)]
pub struct LunPath {
    inner: Arc<Inner>,
}

struct Inner {
    device: PathBuf,
    fence: Box<dyn Fence>,
    gate: Mutex<Gate>,
    empty: Notify,
    /// Held while a key is registered: a takeover on this node waits for it, and is waited for.
    registering: Mutex<()>,
}

#[derive(Default)]
struct Gate {
    /// Commands under this key are let through.
    open: Option<ReservationKey>,
    /// Commands that are on the way.
    inside: usize,
    /// The reign of a coordinator on this node, from its takeover until all of it is unmounted.
    reign: Option<Epoch>,
}

/// Leave to have one command on the way.
pub(super) struct Pass {
    path: LunPath,
}

impl Pass {
    /// See [`Fence::losses`].
    pub(super) fn losses(&self) -> u64 {
        self.path.fence().losses()
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut gate = self.path.gate();
        gate.inside -= 1;
        if gate.inside == 0 {
            self.path.inner.empty.notify_waiters();
        }
    }
}

impl LunPath {
    /// A path by this device.
    pub fn new(device: &Path, fence: impl Fence + 'static) -> Self {
        Self {
            inner: Arc::new(Inner {
                device: device.to_owned(),
                fence: Box::new(fence),
                gate: Mutex::default(),
                empty: Notify::new(),
                registering: Mutex::default(),
            }),
        }
    }

    /// The device.
    pub fn device(&self) -> &Path {
        &self.inner.device
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        // Only plain data, changed in one go.
        self.inner.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a command through, if its key is the one that may.
    pub(super) fn enter(&self, key: ReservationKey) -> Option<Pass> {
        let mut gate = self.gate();
        if gate.open != Some(key) {
            return None;
        }
        gate.inside += 1;
        Some(Pass { path: self.clone() })
    }

    /// Shuts the gate, for one key or for all, and waits until what went through has come back.
    pub(super) async fn shut(&self, key: Option<ReservationKey>) {
        loop {
            let empty = self.inner.empty.notified();
            tokio::pin!(empty);
            // Before the look, so that what happens between look and wait is not missed.
            empty.as_mut().enable();
            {
                let mut gate = self.gate();
                if key.is_some() && gate.open.is_some() && gate.open != key {
                    return;
                }
                gate.open = None;
                if gate.inside == 0 {
                    return;
                }
            }
            empty.await;
        }
    }

    /// From here on a coordinator has this path, or has it no more. Waits for a key that is being
    /// registered.
    pub(super) fn set_reign(&self, reign: Option<Epoch>) {
        let _alone = self.inner.registering.lock().unwrap_or_else(PoisonError::into_inner);
        self.gate().reign = reign;
    }

    /// Whether nobody on this node has the device mounted, in any name space. A mount of a process
    /// that is gone would go on to write under whatever key this path gets.
    pub(super) fn is_free(&self) -> io::Result<bool> {
        let mut options = OpenOptions::new();
        // Of a block device this claims it alone, as a mount does.
        match options.read(true).custom_flags(libc::O_EXCL | libc::O_CLOEXEC).open(self.device()) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) fn fence(&self) -> &dyn Fence {
        &*self.inner.fence
    }

    /// Registers a session's key, opens the device anew and the gate with it. Nothing is on the way.
    ///
    /// The device is opened each time: a flush that failed is final for the handle that saw it.
    pub(super) fn register(
        &self,
        key: ReservationKey,
    ) -> (RegisterOutcome, Option<Arc<dyn BlockIo>>) {
        let _alone = self.inner.registering.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!(self.gate().inside, 0, "a key is registered while commands are on the way");
        let reign = self.gate().reign;
        // A mount of another reign is still here, or a takeover has begun: not now.
        if reign.is_some_and(|reign| reign != key.epoch()) {
            return (RegisterOutcome::Failed, None);
        }
        if reign.is_none() && !self.is_free().unwrap_or(false) {
            return (RegisterOutcome::Failed, None);
        }
        let Ok(device) = open(self.device()) else { return (RegisterOutcome::Failed, None) };
        if reign.is_none() {
            let fence = self.fence();
            if fence.register(key).is_err() {
                return (RegisterOutcome::Failed, None);
            }
            // Register first, look then: see the head of `lease`.
            match fence.keys() {
                Ok(keys) if keys.iter().any(|it| it.epoch() > key.epoch()) => {
                    let _ = fence.unregister();
                    return (RegisterOutcome::Superseded, None);
                }
                Ok(keys) if keys.contains(&key) => {}
                Ok(_) | Err(_) => return (RegisterOutcome::Failed, None),
            }
        }
        self.gate().open = Some(key);
        (RegisterOutcome::Registered, Some(device))
    }
}

fn open(device: &Path) -> io::Result<Arc<dyn BlockIo>> {
    match RingIo::open(device) {
        Ok(ring) => Ok(Arc::new(ring)),
        // Where io_uring is forbidden.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) => {
            Ok(Arc::new(PlainIo::open(device)?))
        }
        Err(error) => Err(error),
    }
}
