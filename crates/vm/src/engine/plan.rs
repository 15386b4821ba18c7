//! What a machine is to be made of: everything the engine needs, decided by the caller.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use model::Bytes;
use model::DiskId;
use model::Generation;
use model::MacAddr;
use model::NicId;
use model::OpId;
use model::VmId;
use uuid::Uuid;

use super::Layout;

/// A machine to be launched. File descriptors in it are handed to the machine's process.
#[derive(Debug)]
pub struct LaunchPlan {
    /// The machine.
    pub vm: VmId,
    /// Its name, for process lists and logs.
    pub name: String,
    /// The right to run under which it is started.
    pub generation: Generation,
    /// Versioned machine type such as `pc-q35-10.0`, pinned when the VM was made (one of
    /// [`super::Ability::machine_virtio`], [`super::Ability::machine_legacy`]).
    pub machine: String,
    /// CPU model, pinned when the VM was made (see [`super::Ability::cpu_model`]).
    pub cpu_model: String,
    /// Which accelerator to use.
    pub accel: AccelChoice,
    /// Kind of devices.
    pub profile: Profile,
    /// Firmware.
    pub firmware: FirmwarePlan,
    /// Processors.
    pub cpus: CpuPlan,
    /// Memory.
    pub memory: MemoryPlan,
    /// Memory balloon; ignored by the legacy profile.
    pub balloon: BalloonPlan,
    /// Disks, in boot order.
    pub disks: Vec<DiskPlan>,
    /// Network adapters.
    pub nics: Vec<NicPlan>,
    /// Where devices were attached in the last run; [`Layout::default`] for a new VM.
    pub layout: Layout,
    /// Saved state to continue from.
    pub restore: Option<RestorePlan>,
    /// Limits of the process.
    pub isolation: IsolationPlan,
    /// VM generation id shown to the guest: a new one after every roll back in time.
    pub vmgenid: Uuid,
    /// The guest's hardware clock.
    pub clock: ClockPolicy,
}

/// How an accelerator is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AccelChoice {
    /// What [`super::Ability`] has found.
    #[default]
    Auto,
    /// Emulation, everywhere.
    Tcg,
    /// Hardware; refused where the probe has not passed.
    Kvm,
}

/// Kind of devices a guest is offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Paravirtual devices on PCI Express, hot-plug of everything.
    Virtio,
    /// Devices of 1996 for guests without drivers: IDE, e1000, PS/2, VGA; at most 4 disks, no
    /// hot-plug of devices or memory.
    Legacy,
}

/// What the machine boots by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirmwarePlan {
    /// SeaBIOS.
    Bios,
    /// OVMF. The file with the VM's own variables is made from the template if it is not there.
    Uefi {
        /// Path of the variables file.
        vars: PathBuf,
    },
}

/// Processors of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuPlan {
    /// Plugged at start; 1 or more.
    pub count: u32,
    /// Most that can be plugged while it runs; not below `count`.
    pub max: u32,
}

/// Memory of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// At start. A multiple of 1 MiB.
    pub size: Bytes,
    /// Most that can be plugged while it runs; not below `size`; a multiple of 2 MiB above it.
    pub max: Bytes,
}

/// The memory balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BalloonPlan {
    /// No balloon device.
    Absent,
    /// A balloon that also reports free pages, so that the host gets unused memory back.
    #[default]
    Present,
}

/// A disk to be attached.
#[derive(Debug)]
pub struct DiskPlan {
    /// Its id; the guest sees the first 20 hex digits as serial number.
    pub id: DiskId,
    /// Disk or CD.
    pub kind: DiskKind,
    /// How it is attached. The legacy profile takes [`DiskBus::Ide`] only.
    pub bus: DiskBus,
    /// The chain of image files, the top one first, each one's backing file next. Never guessed:
    /// what a file's own header says about backing files is not followed.
    pub chain: Vec<ImageFile>,
    /// Whether the guest may not write.
    pub read_only: bool,
    /// Place in the boot order, 1 first; `None` to leave it out.
    pub boot_index: Option<u32>,
}

/// One image file of a disk's chain. Opened and locked by the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFile {
    /// Where it is.
    pub path: PathBuf,
    /// What it is.
    pub format: ImageFormat,
}

/// Format of an image file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageFormat {
    /// Plain bytes.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

/// What the guest takes a disk for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskKind {
    /// A disk.
    Disk,
    /// A CD drive with a disc in it; always read-only.
    Cdrom,
}

/// How a disk is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskBus {
    /// virtio-blk on its own PCI Express port; hot-plug. A CD is a read-only disk to the guest.
    Virtio,
    /// IDE (legacy profile) or SATA (virtio profile); no hot-plug.
    Ide,
}

/// A network adapter to be attached.
#[derive(Debug)]
pub struct NicPlan {
    /// Its id.
    pub id: NicId,
    /// Its address.
    pub mac: MacAddr,
    /// What the guest sees.
    pub model: NicModel,
    /// The TAP device's queue, opened with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`.
    pub tap: OwnedFd,
    /// Whether the cable is plugged.
    pub link_up: bool,
}

/// Model of a network adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NicModel {
    /// virtio-net.
    Virtio,
    /// Intel 82540EM.
    E1000,
}

/// Where the state comes from that a machine continues from. The plan's layout must be the one of
/// the machine that the state is of.
#[derive(Debug)]
pub enum RestorePlan {
    /// A file that [`super::Machine::save`] has written, opened for reading. It has been read when
    /// the machine is launched.
    File(File),
    /// A migration of that operation. The machine waits for it from [`super::Machine::incoming`] on,
    /// and does not touch its disks before [`super::Machine::cont`].
    Stream(OpId),
}

/// Limits of the machine's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IsolationPlan {
    /// Number of the VM's own user on this host; unique among machines that run. The uid is the
    /// configured base plus this.
    pub slot: u32,
    /// Share of processor time against other VMs, 1 to 10,000; 100 is the default.
    pub cpu_weight: u32,
    /// Most processor time, in hundredths of one processor (150 is one and a half).
    pub cpu_cap_percent: Option<u32>,
    /// Most host memory the process may use, overhead included; by default the guest's maximum
    /// plus what the engine needs itself.
    pub memory_limit: Option<Bytes>,
}

/// Processor time of a machine's process against the others on its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CpuLimits {
    /// Share of processor time against other VMs, 1 to 10,000; 100 is the default.
    pub weight: u32,
    /// Most processor time, in hundredths of one processor (150 is one and a half).
    pub cap_percent: Option<u32>,
}

impl Default for CpuLimits {
    fn default() -> Self {
        Self { weight: 100, cap_percent: None }
    }
}

impl IsolationPlan {
    /// The part that can change while the machine runs.
    pub fn cpu(&self) -> CpuLimits {
        CpuLimits { weight: self.cpu_weight, cap_percent: self.cpu_cap_percent }
    }
}

impl Default for IsolationPlan {
    fn default() -> Self {
        Self { slot: 0, cpu_weight: 100, cpu_cap_percent: None, memory_limit: None }
    }
}

/// The guest's hardware clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClockPolicy {
    /// Coordinated universal time, the choice of every Unix.
    #[default]
    Utc,
    /// The host's local time, as Windows expects it.
    LocalTime,
}
