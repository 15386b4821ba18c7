//! Requests and views of the API. Views are what the outside may see of records and observations.

use std::collections::BTreeMap;

pub use model::Accelerator;
use model::Bytes;
use model::CloudInit;
use model::CpuCompat;
use model::CpuSpec;
use model::CrashPolicy;
use model::DeviceProfile;
use model::DiskFormat;
use model::DiskId;
use model::Event;
use model::Exit;
use model::Firmware;
use model::Generation;
use model::GuestCpu;
use model::ImageFormat;
use model::ImageId;
use model::ImagePlace;
use model::ImageSource;
use model::ImageState;
use model::MacAddr;
use model::MemorySpec;
use model::Name;
use model::NetworkId;
use model::NetworkKind;
use model::NicId;
use model::NodeId;
use model::NodeMode;
use model::OpId;
use model::OpState;
use model::Pinned;
use model::Power;
use model::Revision;
use model::Role;
use model::SavedState;
use model::Services;
use model::TokenId;
use model::UnixMillis;
use model::Verb;
use model::VmId;
use model::VolumeId;
use model::VolumeKind;
use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

use crate::volume::CoordinationView;
use crate::volume::VolumeSource;

use crate::session::OwnSessionView;

/// Version of the program and of the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VersionView {
    /// Version of the program.
    pub version: String,
    /// Version of the API.
    pub api: String,
}

/// Who is asking.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WhoAmIView {
    /// Name as it stands in events.
    pub actor: String,
    /// What may be done.
    pub role: Role,
    /// The browser's session, where it is one that asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<OwnSessionView>,
}

/// What is seen of a VM now: the settled power state and what is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Its disks are being made.
    Creating,
    /// No process.
    Off,
    /// Its process starts, or its memory is read back.
    Starting,
    /// The guest runs.
    Running,
    /// The guest's processors stand.
    Paused,
    /// Its memory is being written to disk.
    Saving,
    /// It runs, and its memory is being sent to another node.
    Migrating,
    /// Its memory is on disk.
    Saved,
    /// The guest shuts down, or the process is being ended.
    Stopping,
    /// The process is there and does not answer.
    Hung,
    /// It should run and does not: the reason stands in `note`.
    Failed,
    /// It is in the recycle bin.
    Deleted,
}

/// Whether the guest answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Heartbeat {
    /// It answers.
    Ok,
    /// It did answer, and has missed some beats.
    NoContact,
    /// It did answer, and has been silent for long.
    Lost,
    /// It has not answered since it was started: most likely it has no agent.
    #[default]
    NotInstalled,
    /// The service is off, or the VM does not run.
    Off,
}

/// One line of the list of VMs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmSummary {
    /// Its id.
    pub id: VmId,
    /// Its name.
    pub name: Name,
    /// What is seen of it now.
    pub phase: Phase,
    /// Whether the guest answers.
    pub heartbeat: Heartbeat,
    /// Processors.
    pub cpus: u32,
    /// Memory.
    pub memory: Bytes,
    /// Processor time used lately, in percent of one host processor.
    pub cpu_percent: u32,
    /// Addresses, those of NAT networks first.
    pub addresses: Vec<String>,
    /// Name of the node it is on.
    pub node: String,
    /// Tags.
    pub tags: Vec<Name>,
    /// What is being done to it.
    pub busy: Option<Verb>,
}

/// A VM with everything that is known of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmView {
    /// Its id.
    pub id: VmId,
    /// Its name.
    pub name: Name,
    /// What is seen of it now.
    pub phase: Phase,
    /// The settled power state.
    pub power: Power,
    /// Why it is in this phase, where that needs words.
    pub note: Option<String>,
    /// Name of the node it is on.
    pub node: String,
    /// The volume its directory lies on; none is its node's own disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<Name>,
    /// What was fixed at its creation.
    pub pinned: Pinned,
    /// What its processors have since its last cold start, where its node has said what it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<GuestCpu>,
    /// The present or last run.
    pub generation: Generation,
    /// Revision of the configuration, for changes that must not overwrite another one.
    pub revision: Revision,
    /// Processors.
    pub cpus: CpuSpec,
    /// Memory.
    pub memory: MemorySpec,
    /// Firmware.
    pub firmware: Firmware,
    /// Device family.
    pub profile: DeviceProfile,
    /// Disks.
    pub disks: Vec<DiskView>,
    /// Network adapters.
    pub nics: Vec<NicView>,
    /// Integration services.
    pub services: Services,
    /// What happens after a crash.
    pub on_crash: CrashPolicy,
    /// Description.
    pub description: String,
    /// Tags.
    pub tags: Vec<Name>,
    /// Keys for the guest.
    pub keys: BTreeMap<String, String>,
    /// First-boot configuration, with secrets left out.
    pub cloud_init: Option<CloudInit>,
    /// Its memory on disk.
    pub saved: Option<SavedState>,
    /// The operation under way.
    pub op: Option<OpView>,
    /// How the last run ended.
    pub last_exit: Option<Exit>,
    /// The last run in which its guest's agent has answered, where other VMs are started after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered: Option<Generation>,
    /// When it was created.
    pub created: UnixMillis,
    /// When it was put in the recycle bin.
    pub deleted: Option<UnixMillis>,
    /// The present run, while there is one.
    pub run: Option<RunView>,
    /// The guest, as far as it tells.
    pub guest: GuestView,
}

/// The present run of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RunView {
    /// Process id on the node.
    pub pid: u32,
    /// When the process began.
    pub started: UnixMillis,
    /// What carries the processors out.
    pub accelerator: Accelerator,
    /// Why it is that one.
    pub accelerator_reason: String,
    /// Version of QEMU.
    pub qemu: String,
    /// Processors that the guest has now.
    pub cpus: u32,
    /// Memory that the guest has now, less what the balloon holds.
    pub memory: Bytes,
    /// Processor time used lately, in percent of one host processor.
    pub cpu_percent: u32,
    /// Memory that the process takes on the host.
    pub resident: Bytes,
    /// Limits that this host cannot enforce.
    pub missing_limits: Vec<String>,
}

/// A disk of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskView {
    /// Its id.
    pub id: DiskId,
    /// Its name within the VM.
    pub name: Name,
    /// Its size.
    pub size: Bytes,
    /// What its file takes on disk.
    pub allocated: Option<Bytes>,
    /// Name of the image that it is a thin copy of.
    pub image: Option<String>,
    /// Format of its file.
    pub format: DiskFormat,
    /// The guest cannot write to it.
    pub read_only: bool,
}

/// A network adapter of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NicView {
    /// Its id.
    pub id: NicId,
    /// Its name within the VM.
    pub name: Name,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its network.
    pub network: Name,
    /// The address that DHCP gives it.
    pub reserved_address: Option<String>,
    /// Addresses seen: from the agent, else from the network.
    pub addresses: Vec<String>,
    /// Whether the cable is in.
    pub link_up: bool,
}

/// What the guest tells of itself through its agent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct GuestView {
    /// Whether it answers.
    pub heartbeat: Heartbeat,
    /// Version of its agent.
    pub agent: Option<String>,
    /// Its host name.
    pub hostname: Option<String>,
    /// Its operating system, such as `Debian GNU/Linux 12 (bookworm)`.
    pub os: Option<String>,
    /// Its kernel.
    pub kernel: Option<String>,
    /// Its time zone.
    pub timezone: Option<String>,
    /// Users that are signed in.
    pub users: Vec<String>,
    /// File systems.
    pub filesystems: Vec<FilesystemView>,
    /// Whether its file systems are frozen.
    pub frozen: bool,
    /// Processors that its kernel uses.
    pub cpus_online: Option<u64>,
    /// Processors that it has and does not use.
    pub cpus_offline: Option<u64>,
    /// Memory that its kernel uses, in whole blocks of (mostly) 128 MiB.
    pub memory_online: Option<Bytes>,
    /// Memory that it has and does not use, in whole blocks.
    pub memory_offline: Option<Bytes>,
}

/// A file system in a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FilesystemView {
    /// Where it is mounted.
    pub mountpoint: String,
    /// Its type.
    pub kind: String,
    /// Its size.
    pub total: Option<Bytes>,
    /// What is used of it.
    pub used: Option<Bytes>,
}

/// Which VMs to list.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct VmListQuery {
    /// Those in the recycle bin instead of the others.
    #[serde(default)]
    pub deleted: bool,
    /// Only those with this tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
}

/// A VM to create. What is left out is chosen as most users would.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmCreateBody {
    /// Its name.
    pub name: Name,
    /// Processors; 1 if left out.
    #[serde(default)]
    pub cpus: Option<u32>,
    /// Most processors that it may get while it runs; the number of processors if left out.
    #[serde(default)]
    pub cpus_max: Option<u32>,
    /// What processors have when the VM is switched on.
    #[serde(default)]
    pub cpu_compat: CpuCompat,
    /// Memory; 1 GiB if left out.
    #[serde(default)]
    pub memory: Option<Bytes>,
    /// Most memory that it may get while it runs; the memory if left out.
    #[serde(default)]
    pub memory_max: Option<Bytes>,
    /// Firmware.
    #[serde(default)]
    pub firmware: Firmware,
    /// Device family.
    #[serde(default)]
    pub profile: DeviceProfile,
    /// Disks, the first one to boot from.
    #[serde(default)]
    pub disks: Vec<DiskAddBody>,
    /// Network adapters; none if left out.
    #[serde(default)]
    pub nics: Vec<NicAddBody>,
    /// Integration services.
    #[serde(default)]
    pub services: Services,
    /// First-boot configuration.
    #[serde(default)]
    pub cloud_init: Option<CloudInit>,
    /// What to do after a crash.
    #[serde(default)]
    pub on_crash: CrashPolicy,
    /// Description.
    #[serde(default)]
    pub description: String,
    /// Tags.
    #[serde(default)]
    pub tags: Vec<Name>,
    /// Keys for the guest.
    #[serde(default)]
    pub keys: BTreeMap<String, String>,
    /// Name or id of the volume that its files shall lie on; this node's own disks if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// What to do when its node is lost.
    #[serde(default, skip_serializing_if = "model::HaSpec::is_default")]
    pub ha: model::HaSpec,
}

/// What a guest is told at its first boot: the files of its disc of first-boot configuration (NoCloud).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct FirstBootView {
    /// The files, by name; none where the machine gets no such disc. Ids and hardware addresses in them
    /// are examples: they are drawn when a machine is created.
    pub files: Vec<FirstBootFileView>,
}

/// A file of the first-boot configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FirstBootFileView {
    /// Its name: `user-data`, `meta-data` or `network-config`.
    pub name: String,
    /// What is in it.
    pub text: String,
}

/// A disk to add.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskAddBody {
    /// Its name; `disk0`, `disk1`... if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// Its size; the image's size if left out, and needed without an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Bytes>,
    /// Name or id of the image that it is a thin copy of; blank if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Format of its file.
    #[serde(default)]
    pub format: DiskFormat,
    /// The guest cannot write to it.
    #[serde(default)]
    pub read_only: bool,
}

/// A disk's new size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskResizeBody {
    /// More than it has.
    pub size: Bytes,
}

/// A network adapter to add.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NicAddBody {
    /// Its name; `net0`, `net1`... if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// Network to plug it into; `nat` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Name>,
    /// Its Ethernet address; a random one if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// Its address on a NAT network; the first free one if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<std::net::Ipv4Addr>,
}

/// How to delete a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct VmDeleteQuery {
    /// Remove it from the recycle bin, with its disks, for good.
    #[serde(default)]
    pub purge: bool,
}

/// A VM to take in again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmRegisterBody {
    /// Its directory on the node: one in the node's directory of VMs, with its `vm.json` in it.
    pub dir: String,
    /// A new name, where the old one is in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
}

/// How to take a VM out of the recycle bin.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UndeleteBody {
    /// A new name, where the old one is in use.
    #[serde(default)]
    pub name: Option<Name>,
}

/// How to shut a guest down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ShutdownBody {
    /// How long the guest may take, in seconds, 1 to 3600.
    pub patience_s: u64,
    /// Turn it off when its time is over; otherwise the operation fails and it goes on.
    pub then_off: bool,
}

/// What freezing or thawing did. A freeze ends by itself after ten seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FreezeView {
    /// How many file systems were frozen.
    pub filesystems: u32,
    /// Whether they are frozen now.
    pub frozen: bool,
    /// After thawing: how good a copy is that was made meanwhile.
    pub consistency: Option<ConsistencyView>,
}

/// How good a copy of a guest's disks is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConsistencyView {
    /// The file systems were at rest the whole time.
    Filesystem,
    /// They were not: it is as good as after a power cut.
    Crash,
}

/// The revision that a change was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct RevisionQuery {
    /// Refuse the change if the configuration is no longer this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_revision: Option<Revision>,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageView {
    /// Its id.
    pub id: ImageId,
    /// Its name.
    pub name: Name,
    /// Where it came from.
    pub source: ImageSource,
    /// The format it had there.
    pub format: ImageFormat,
    /// How far it is.
    #[serde(flatten)]
    pub state: ImageState,
    /// When the import began.
    pub created: UnixMillis,
    /// Names of the VMs that use it.
    pub used_by: Vec<Name>,
    /// Where its file lies.
    pub place: ImagePlace,
}

/// An image to import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageImportBody {
    /// Its name.
    pub name: Name,
    /// Where it is.
    pub source: ImageSource,
    /// Its format there; told by the file name's ending if left out.
    #[serde(default)]
    pub format: Option<ImageFormat>,
    /// Name or id of the volume it shall lie on; this node's own disks if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// The SHA-256 that the source must have, in hexadecimal.
    #[serde(default)]
    pub sha256: Option<String>,
}

/// An operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OpView {
    /// Its id.
    pub id: OpId,
    /// What it does.
    pub verb: Verb,
    /// What it does, in words: `start web-1`.
    pub title: String,
    /// Name of the VM or image.
    pub target: Name,
    /// The VM it is about.
    pub vm: Option<VmId>,
    /// The image it is about.
    pub image: Option<ImageId>,
    /// Who asked for it.
    pub actor: String,
    /// When it began.
    pub begun: UnixMillis,
    /// When it fails if it is not done.
    pub deadline: UnixMillis,
    /// How far it is.
    #[serde(flatten)]
    pub state: OpState,
    /// Of a live migration: what was expected, and what came true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<model::MigrateReport>,
    /// What it is doing now, while it runs.
    pub progress: Option<ProgressView>,
}

/// What an operation is doing now.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct ProgressView {
    /// The step, in words: `downloading`.
    pub step: String,
    /// How much of it is done, in the step's own unit (bytes for data).
    pub done: u64,
    /// How much there is to do; 0 where that is not known.
    pub total: u64,
}

/// Which operations to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct OpListQuery {
    /// Those that have ended, too.
    #[serde(default)]
    pub all: bool,
}

/// How long to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OpWaitQuery {
    /// Answer after this time with whatever is known, in milliseconds, at most 60000.
    #[serde(default = "default_wait_ms")]
    pub timeout_ms: u64,
}

impl Default for OpWaitQuery {
    fn default() -> Self {
        Self { timeout_ms: default_wait_ms() }
    }
}

const fn default_wait_ms() -> u64 {
    30_000
}

/// An event with its place in the node's list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventView {
    /// Grows by one with each event of this node; 0 for observations, which are not kept.
    pub seq: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// Which events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct EventQuery {
    /// Only those with a higher number. Left out: the last ones (list), or only new ones (stream).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// At most so many, 1 to 1000; 100 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeView {
    /// Its id.
    pub id: NodeId,
    /// Its host name.
    pub name: Name,
    /// Version of Muster.
    pub version: String,
    /// When its daemon started.
    pub started: UnixMillis,
    /// Host processors.
    pub cpus: u32,
    /// Host memory.
    pub memory: Bytes,
    /// Host memory that is free or can be freed at once.
    pub memory_available: Bytes,
    /// Memory promised to VMs that are running or paused.
    pub memory_promised: Bytes,
    /// Space for images and disks.
    pub storage: Bytes,
    /// Free space for images and disks.
    pub storage_available: Bytes,
    /// VMs with a process.
    pub vms_running: u32,
    /// Version of QEMU; absent where it cannot be used, and then `problems` says why.
    pub qemu: Option<String>,
    /// What carries the guests' processors out.
    pub accelerator: Accelerator,
    /// Why it is that one.
    pub accelerator_reason: String,
    /// Limits that this host cannot enforce.
    pub missing_limits: Vec<String>,
    /// Whether it takes machines, keeps those it has, or is being emptied.
    #[serde(default)]
    pub mode: NodeMode,
    /// Until when it gets VMs only where no other node can take them: it was lost too often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<UnixMillis>,
    /// How busy it is; absent while it does not answer, and in its first seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<NodeLoadView>,
    /// What is wrong, each with a next step.
    pub problems: Vec<String>,
    /// Fingerprint (SHA-256) of the certificate on the TLS port.
    pub tls_fingerprint: Option<String>,
    /// Address of the TLS port.
    pub tls_address: Option<String>,
    /// Background work and how its last pass went.
    pub reconcilers: Vec<ReconcilerView>,
}

/// How busy a node was in the last seconds, in whole percent, 0 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct NodeLoadView {
    /// Share of all its processors that was used, by whatever.
    pub cpu: u8,
    /// Share of time in which something had to wait for a processor; 0 where the kernel does not say.
    pub waits_for_cpu: u8,
    /// Share of time in which something had to wait for memory.
    pub waits_for_memory: u8,
    /// Share of time in which something had to wait for disks.
    pub waits_for_disks: u8,
}

/// Background work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReconcilerView {
    /// Its name.
    pub name: String,
    /// When it ran last.
    pub last_run: Option<UnixMillis>,
    /// What its last pass came to: `ok` or what went wrong.
    pub result: String,
}

/// A network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkView {
    /// Its id.
    pub id: NetworkId,
    /// Its name.
    pub name: Name,
    /// What it is made of.
    #[serde(flatten)]
    pub kind: NetworkKind,
    /// When it was made.
    pub created: UnixMillis,
    /// Adapters on it: VM and adapter name.
    pub adapters: Vec<String>,
    /// What is wrong with it on this node.
    pub problem: Option<String>,
}

/// A network to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkCreateBody {
    /// Its name.
    pub name: Name,
    /// What it is made of.
    #[serde(flatten)]
    pub kind: NetworkKind,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeView {
    /// Its id.
    pub id: VolumeId,
    /// Its name.
    pub name: Name,
    /// What it is made of.
    #[serde(flatten)]
    pub kind: VolumeKind,
    /// When it was made known.
    pub created: UnixMillis,
    /// Names of the VMs and images on it.
    pub used_by: Vec<String>,
    /// Its size, as this node sees it.
    pub size: Option<Bytes>,
    /// What is free on it, as this node sees it.
    pub free: Option<Bytes>,
    /// What is wrong with it on this node.
    pub problem: Option<String>,
    /// Who mounts it, of one on a LUN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coordination: Option<CoordinationView>,
}

/// A volume to make known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeCreateBody {
    /// Its name.
    pub name: Name,
    /// What it is made of.
    #[serde(flatten)]
    pub kind: VolumeSource,
}

/// An API token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenView {
    /// Its id.
    pub id: TokenId,
    /// Its name.
    pub name: Name,
    /// What its bearer may do.
    pub role: Role,
    /// When it was made.
    pub created: UnixMillis,
    /// When it ends by itself.
    pub expires: Option<UnixMillis>,
    /// SHA-256 of the public key of the certificate that signs in to the web console instead of a
    /// secret, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
}

/// A token to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenCreateBody {
    /// Its name.
    pub name: Name,
    /// What its bearer may do.
    pub role: Role,
    /// How long it is valid, in seconds; for ever if left out.
    #[serde(default)]
    pub valid_s: Option<u64>,
    /// A certificate (PEM) that a browser shows at signing in; there is no secret then. Whoever
    /// issued it: its key is what counts, until the certificate ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
}

/// A new token with its secret, which is shown this once and kept nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenSecretView {
    /// The token.
    #[serde(flatten)]
    pub token: TokenView,
    /// What its bearer shows: `Authorization: Bearer SECRET`. Empty where that is a certificate.
    pub secret: String,
}

impl OpView {
    /// Whether it has not ended.
    pub const fn is_running(&self) -> bool {
        matches!(self.state, OpState::Running { .. })
    }
}
