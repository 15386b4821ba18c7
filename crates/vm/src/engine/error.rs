//! What can go wrong with a machine, in the three classes of the house: refused, failed, fatal.

use std::io;
use std::time::Duration;

use model::Bytes;
use model::VmId;

/// How a caller treats an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// The request cannot be met as it stands; nothing has changed; asking again changes nothing.
    Refused,
    /// It did not work this time; it may be tried again.
    Failed,
    /// The machine (or its state on this host) is lost for this owner.
    Fatal,
}

/// An error of the machine engine. `Display` states facts and, where there is one, the next step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A program or file that every machine needs is not there.
    #[error("{what} is not installed; {advice}")]
    Missing {
        /// Program or file.
        what: String,
        /// What to type.
        advice: String,
    },
    /// QEMU is older than we can trust with guests.
    #[error(
        "QEMU {found} is too old, {needed} or newer is needed (older ones corrupt guests in live \
         migration); install qemu-system-x86 from bookworm-backports or use Debian 13"
    )]
    TooOld {
        /// Version found.
        found: String,
        /// Lowest version we run.
        needed: String,
    },
    /// The engine builds jails, which takes root.
    #[error("virtual machines are started in a jail, which needs root; run the daemon as root")]
    NotRoot,
    /// The plan or request asks for something this machine or host cannot do.
    #[error("{what} is not possible here: {why}")]
    Unsupported {
        /// What was asked.
        what: String,
        /// Why not, and what would help.
        why: String,
    },
    /// All places for a hot-plugged device are taken.
    #[error("no free slot for another device; remove one, or shut the machine down first")]
    NoSlot,
    /// A number outside of what the machine can have.
    #[error("{what} of {asked} is out of range: {low} to {high}")]
    OutOfRange {
        /// What was to be set.
        what: &'static str,
        /// What was asked.
        asked: u64,
        /// Smallest possible.
        low: u64,
        /// Largest possible.
        high: u64,
    },
    /// A device of that id is attached already.
    #[error("{0} is already attached")]
    AlreadyPlugged(String),
    /// No device of that id is attached.
    #[error("{0} is not attached")]
    NotPlugged(String),
    /// The same machine runs already on this host.
    #[error("machine {0} runs already; stop it first")]
    AlreadyRunning(VmId),
    /// Another process writes to, or forbids writing to, a disk image.
    #[error("disk image {path} is in use by another process")]
    DiskBusy {
        /// The image.
        path: String,
    },
    /// A disk image cannot be used.
    #[error("disk image {path}: {why}")]
    Image {
        /// The image.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The machine could not be started.
    #[error("the machine did not start ({step}): {why}")]
    Launch {
        /// Which step of the start failed.
        step: &'static str,
        /// What the step said, with the last lines of the process.
        why: String,
    },
    /// A saved state cannot be read back.
    #[error("the saved state cannot be restored: {0}")]
    Restore(String),
    /// QEMU has answered a command with an error.
    #[error("QEMU refuses {command}: {why}")]
    Command {
        /// The command.
        command: String,
        /// QEMU's words.
        why: String,
    },
    /// QEMU has sent something that is not QMP.
    #[error("QEMU speaks nonsense on its control socket: {0}")]
    Garbage(String),
    /// The process lives and does not answer.
    #[error("the machine process does not answer ({command}, {}s)", limit.as_secs())]
    Hung {
        /// The command that found no answer.
        command: String,
        /// How long we waited.
        limit: Duration,
    },
    /// The machine is not running any more.
    #[error("the machine has ended")]
    Exited,
    /// A process of the machine is still there after it was killed.
    #[error("processes of machine {vm} do not go away: {what}")]
    Undead {
        /// The machine.
        vm: VmId,
        /// Which processes.
        what: String,
    },
    /// More memory is wanted than the host has.
    #[error("{wanted} of memory is more than this host has ({host}); make the machine smaller")]
    HostMemory {
        /// Wanted.
        wanted: Bytes,
        /// What the host has.
        host: Bytes,
    },
    /// This node must not start machines now: in a cluster, only a live lease allows it.
    #[error("this node must not start machines now: {why}")]
    NoLease {
        /// Why, and what to do.
        why: String,
    },
    /// The operating system refuses.
    #[error("{what}")]
    Io {
        /// What we were doing.
        what: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl EngineError {
    /// How to treat this error.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Missing { .. }
            | Self::TooOld { .. }
            | Self::NotRoot
            | Self::Unsupported { .. }
            | Self::NoSlot
            | Self::OutOfRange { .. }
            | Self::AlreadyPlugged(_)
            | Self::NotPlugged(_)
            | Self::AlreadyRunning(_)
            | Self::HostMemory { .. } => ErrorClass::Refused,
            Self::DiskBusy { .. }
            | Self::Image { .. }
            | Self::Launch { .. }
            | Self::Restore(_)
            | Self::Command { .. }
            | Self::Hung { .. }
            | Self::Undead { .. }
            | Self::NoLease { .. }
            | Self::Io { .. } => ErrorClass::Failed,
            Self::Garbage(_) | Self::Exited => ErrorClass::Fatal,
        }
    }

    /// Wraps a system error with what we were doing.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
