//! What happens to a machine by itself.

use model::Bytes;
use model::DiskId;
use model::NicId;

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
    /// The process has not answered a ping within the limit.
    Hung,
    /// The process answers again after [`MachineEvent::Hung`].
    Responsive,
    /// So many events were dropped because the receiver was slow: look at everything again.
    Lagged(u64),
    /// The process is gone. The last event, exactly once, never dropped.
    Exited(ExitInfo),
}
