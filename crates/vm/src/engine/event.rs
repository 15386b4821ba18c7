//! What happens to a machine by itself.

use std::sync::Mutex;
use std::sync::PoisonError;

use model::Bytes;
use model::DiskId;
use model::NicId;
use tokio::sync::mpsc;

/// Who caused a shutdown or reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The guest did it.
    Guest,
    /// We, or somebody on the host, did it.
    Host,
}

/// How the machine's process ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExitInfo {
    /// Exit code, where known.
    pub code: Option<i32>,
    /// Signal that ended it, where known.
    pub signal: Option<i32>,
    /// The last lines the process wrote to standard error, at most 4 KiB.
    pub stderr: String,
}

/// Something that happened to a machine. Events say when to look; state is read by
/// [`super::Machine::query_status`] and [`super::Machine::inventory`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum MachineEvent {
    /// The processors run again.
    Resumed,
    /// The processors stand still.
    Stopped,
    /// The guest went through a reset.
    Reset(Origin),
    /// The guest has shut down. The process is still there, with its processors stopped and its
    /// disks open; [`super::Machine::kill`] ends it.
    ShutDown(Origin),
    /// The power button was pressed (by us).
    PowerButton,
    /// The guest's kernel has reported a panic.
    Panicked,
    /// The guest has let a disk go; its image is closed.
    DiskUnplugged(DiskId),
    /// The guest refuses to let a disk go.
    DiskUnplugRefused(DiskId),
    /// The guest has let an adapter go.
    NicUnplugged(NicId),
    /// The guest refuses to let an adapter go.
    NicUnplugRefused(NicId),
    /// The number of plugged processors has changed.
    VcpusChanged(u32),
    /// The guest refuses to let a processor go.
    VcpuUnplugRefused,
    /// The guest's present memory has changed to this size (boot memory included).
    MemoryChanged(Bytes),
    /// The guest's balloon has changed: this much memory is left to it.
    BalloonChanged(Bytes),
    /// A disk could not be read or written. `stopped` tells whether the processors were stopped
    /// for it (which they are when the host's space is used up).
    DiskError {
        /// Which disk, where known.
        disk: Option<DiskId>,
        /// Whether it was a write.
        write: bool,
        /// Whether the host's storage was full.
        no_space: bool,
        /// Whether the machine was stopped.
        stopped: bool,
        /// QEMU's words.
        reason: String,
    },
    /// A program in the guest has opened (`true`) or closed the guest agent's port.
    AgentPort(bool),
    /// A save has ended: `Ok` or the reason why not.
    SaveEnded(Result<(), String>),
    /// A live migration has come further: look at [`super::Machine::migrate_progress`].
    MigrationMoved,
    /// A copy of a disk has come further: look at [`super::Machine::mirrors`].
    MirrorMoved,
    /// The process has not answered a ping within the limit.
    Hung,
    /// The process answers again after [`MachineEvent::Hung`].
    Responsive,
    /// So many events were dropped because the receiver was slow: look at everything again.
    Lagged(u64),
    /// The process is gone. The last event, exactly once, never dropped.
    Exited(ExitInfo),
}

/// Events that may wait for a slow receiver. A guest can make events at will, so the queue is
/// short; what does not fit is counted and told by [`MachineEvent::Lagged`].
const EVENTS_MAX: usize = 64;

/// Sending side of a machine's events: never waits, never loses the last one.
pub(super) struct EventSink {
    tx: mpsc::Sender<MachineEvent>,
    /// Dropped since the last `Lagged`, and whether `Exited` has been sent.
    state: Mutex<(u64, bool)>,
}

impl EventSink {
    /// A sink and the receiver for the machine's owner.
    pub(super) fn new() -> (Self, mpsc::Receiver<MachineEvent>) {
        // One place more than ordinary events may fill is kept for `Exited`.
        let (tx, rx) = mpsc::channel(EVENTS_MAX + 1);
        (Self { tx, state: Mutex::new((0, false)) }, rx)
    }

    /// Sends an event, or counts it as dropped. Nothing follows `Exited`.
    pub(super) fn emit(&self, event: MachineEvent) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.1 {
            return;
        }
        if matches!(event, MachineEvent::Exited(_)) {
            state.1 = true;
            // The kept place: fails only if the receiver is gone, and then nobody wants it.
            let _ = self.tx.try_send(event);
            return;
        }
        let wanted = if state.0 > 0 { 2 } else { 1 };
        if self.tx.capacity() <= wanted {
            state.0 += 1;
            return;
        }
        if state.0 > 0 {
            let _ = self.tx.try_send(MachineEvent::Lagged(state.0));
            state.0 = 0;
        }
        let _ = self.tx.try_send(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_flood_of_events_loses_the_middle_and_never_the_end() {
        let (sink, mut rx) = EventSink::new();
        for _ in 0..1000 {
            sink.emit(MachineEvent::Reset(Origin::Guest));
        }
        for _ in 0..10 {
            assert_eq!(rx.recv().await, Some(MachineEvent::Reset(Origin::Guest)));
        }
        sink.emit(MachineEvent::Panicked);
        for _ in 0..1000 {
            sink.emit(MachineEvent::Reset(Origin::Guest));
        }
        sink.emit(MachineEvent::Exited(ExitInfo::default()));
        sink.emit(MachineEvent::Panicked);
        drop(sink);
        let mut rest = Vec::new();
        while let Some(event) = rx.recv().await {
            rest.push(event);
        }
        assert_eq!(rest.last(), Some(&MachineEvent::Exited(ExitInfo::default())));
        assert!(rest.contains(&MachineEvent::Lagged(936)), "{rest:?}");
        assert!(rest.len() <= EVENTS_MAX + 1);
    }
}
