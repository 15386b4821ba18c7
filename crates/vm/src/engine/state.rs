//! What an engine tells about hosts and machines.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use model::Bytes;
use model::DiskId;
use model::Generation;
use model::NicId;
use model::OpId;
use model::VmId;
use serde::Deserialize;
use serde::Serialize;

use super::CpuLimits;
use super::EngineError;
use super::ExitInfo;
use super::Launched;

/// What this host can run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ability {
    /// Engine and version, such as `QEMU 10.0.2`.
    pub engine: String,
    /// What machines run on when left to us.
    pub accel: Accel,
    /// Why that one, in words.
    pub accel_reason: String,
    /// Newest versioned machine type for the virtio profile.
    pub machine_virtio: String,
    /// Newest versioned machine type for the legacy profile.
    pub machine_legacy: String,
    /// CPU model to pin new VMs to.
    pub cpu_model: String,
    /// What guests can have beyond that model; none where it is not known for sure.
    pub cpu_features: Option<BTreeSet<String>>,
    /// Whether UEFI firmware is installed.
    pub uefi: bool,
    /// Limits that this host cannot enforce, each with its reason; empty on a full host.
    pub missing_limits: Vec<String>,
}

/// What runs a guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accel {
    /// The processor, by KVM.
    Kvm,
    /// Emulation.
    Tcg,
}

/// Facts about one run of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunInfo {
    /// The machine.
    pub vm: VmId,
    /// Process id on the host.
    pub pid: u32,
    /// The right to run under which it was started.
    pub generation: Generation,
    /// What runs it.
    pub accel: Accel,
    /// When it was started, in milliseconds since 1970.
    pub started_ms: u64,
    /// User id of the process.
    pub uid: u32,
    /// Limits that are not enforced for it, each with its reason.
    pub missing_limits: Vec<String>,
    /// The migration that it was made for, if it was made for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arrival: Option<OpId>,
}

/// Answer to [`super::Engine::adopt`].
#[derive(Debug)]
pub enum Adopted {
    /// The machine runs, and is ours again.
    Running(Launched),
    /// It does not run. Traces may be left for [`super::Engine::reap`].
    Gone(GoneReason),
}

/// Why a machine that was expected does not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GoneReason {
    /// There is no trace of it.
    NoTrace,
    /// The host has booted since.
    HostRebooted,
    /// We died while starting it; its processors never ran.
    LaunchInterrupted,
    /// Its process has ended.
    Ended(ExitInfo),
}

/// Something of a machine on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stray {
    /// The machine.
    pub vm: VmId,
    /// Whether a process lives.
    pub alive: bool,
    /// The generation it was started under, where its record can be read.
    pub generation: Option<Generation>,
    /// What was found, in words.
    pub traces: Vec<String>,
}

/// Whether the processors run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// They run.
    Running,
    /// Launched or restored, never run yet in this process.
    Prelaunch,
    /// It waits for the state of another machine and has not got all of it.
    Incoming,
    /// Stopped by us.
    Paused,
    /// The guest has shut down.
    ShutDown,
    /// State is being written to, or has been written to, a file.
    Saved,
    /// Stopped because of a disk error.
    IoError,
    /// The guest's kernel has panicked.
    Panicked,
    /// QEMU has given the guest up.
    InternalError,
}

/// What is attached.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inventory {
    /// Disks.
    pub disks: BTreeMap<DiskId, DeviceState>,
    /// Adapters.
    pub nics: BTreeMap<NicId, DeviceState>,
    /// Processors.
    pub vcpus: VcpuState,
    /// Share and cap of processor time, as they were asked for last.
    pub cpu_limits: CpuLimits,
}

/// Where an attached device is between coming and going.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceState {
    /// Attached.
    Plugged,
    /// The guest has been asked to let it go.
    Unplugging,
}

/// Processors of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VcpuState {
    /// Plugged.
    pub plugged: u32,
    /// Most possible.
    pub max: u32,
}

/// Memory of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryState {
    /// Present from boot; the least the machine can have.
    pub boot: Bytes,
    /// Asked for in all.
    pub requested: Bytes,
    /// Present in all; follows `requested` as the guest acts.
    pub present: Bytes,
    /// Most possible.
    pub max: Bytes,
    /// Step in which memory comes and goes; zero where it does not.
    pub block: Bytes,
}

/// What the balloon driver reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BalloonStats {
    /// Memory left to the guest by the balloon.
    pub actual: Bytes,
    /// Free memory in the guest.
    pub free: Option<Bytes>,
    /// Memory the guest could use without swapping.
    pub available: Option<Bytes>,
    /// All memory the guest sees.
    pub total: Option<Bytes>,
    /// When the guest last reported, in seconds since 1970.
    pub updated_s: Option<u64>,
}

/// How far a save has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaveProgress {
    /// What it is doing.
    pub phase: SavePhase,
    /// Written so far.
    pub done: Bytes,
    /// To be written in all, as known now.
    pub total: Bytes,
}

/// Phase of a save.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SavePhase {
    /// None was begun.
    Idle,
    /// Being written.
    Running,
    /// All written; the file is not durable yet.
    Done,
    /// Given up on request.
    Cancelled,
    /// Failed, with the reason.
    Failed(String),
}

impl MemoryState {
    /// Checks and rounds a wanted size.
    pub(super) fn check_target(&self, target: Bytes) -> Result<Bytes, EngineError> {
        if self.block == Bytes::ZERO {
            return Err(EngineError::Unsupported {
                what: "a change of memory".to_owned(),
                why: "the machine was started without room for it; stop it, raise its maximum"
                    .to_owned(),
            });
        }
        if target < self.boot || target > self.max {
            return Err(EngineError::OutOfRange {
                what: "memory (MiB)",
                asked: target.as_mib(),
                low: self.boot.as_mib(),
                high: self.max.as_mib(),
            });
        }
        let plugged = target.saturating_sub(self.boot).get();
        let rounded = plugged - plugged % self.block.get();
        Ok(Bytes::new(self.boot.get() + rounded))
    }
}

impl VcpuState {
    /// Checks a wanted number of processors.
    pub(super) fn check_count(&self, count: u32) -> Result<(), EngineError> {
        if (1..=self.max).contains(&count) {
            return Ok(());
        }
        Err(EngineError::OutOfRange {
            what: "processors",
            asked: u64::from(count),
            low: 1,
            high: u64::from(self.max),
        })
    }
}
