//! The machine engine: what runs one virtual machine on this host.
//!
//! ```text
//!   lifecycle driver --- Engine::launch(plan) ---> Machine (handle) + events (bounded)
//!                    --- Engine::adopt(vm)   --->  the same, for a machine that was already there
//!                    --- Engine::reap(vm)    --->  nothing of that machine is left on this host
//! ```
//!
//! Two engines stand behind the trait: `qemu`, one jailed QEMU process for each VM, and
//! `fake`, machines in memory with faults on request. Both pass the suite in `conformance`.
//!
//! Rules that callers may build on:
//! - `launch` returns a machine whose processors do not run yet; [`Machine::cont`] starts them.
//! - Every call ends within a stated time, with a typed error if it must.
//! - Guest-acknowledged actions (removal of a device, power button, memory target) are *requests*:
//!   the call returns once the request stands, and an event or the next [`Machine::inventory`]
//!   tells the outcome. The engine has no deadlines for guests; the caller has.
//! - The end of a machine is told exactly once, by [`MachineEvent::Exited`], which is never lost.
//!   Other events may be lost when the receiver is slow; [`MachineEvent::Lagged`] then tells the
//!   caller to look again by itself. Reading state is always right, events only say when to look.
//! - Dropping a [`Machine`] and its events leaves the machine running, for a later `adopt`.
//! - Nothing a guest does makes the engine panic, hang or grow without limit.

mod error;
mod event;
pub mod fake;
mod layout;
mod migrate;
mod mirror;
mod plan;
pub mod qemu;
mod sending;
mod state;

use std::collections::BTreeMap;
use std::fs::File;
use std::time::Duration;

use async_trait::async_trait;
use model::Bytes;
use model::DiskId;
use model::NicId;
use model::VmId;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

pub use error::EngineError;
pub use error::ErrorClass;
pub use event::ExitInfo;
pub use event::MachineEvent;
pub use event::Origin;
pub use layout::Layout;
pub use migrate::MigratePhase;
pub use migrate::MigrateProgress;
pub use migrate::MigrateTuning;
pub use migrate::Outgoing;
pub use migrate::Switch;
pub use mirror::Extent;
pub use mirror::ImageSlot;
pub use mirror::MirrorPhase;
pub use mirror::MirrorPlan;
pub use mirror::MirrorProgress;
pub use plan::AccelChoice;
pub use plan::BalloonPlan;
pub use plan::ClockPolicy;
pub use plan::CpuLimits;
pub use plan::CpuPlan;
pub use plan::DiskBus;
pub use plan::DiskKind;
pub use plan::DiskPlan;
pub use plan::FirmwarePlan;
pub use plan::ImageFile;
pub use plan::ImageFormat;
pub use plan::IsolationPlan;
pub use plan::LaunchPlan;
pub use plan::MemoryPlan;
pub use plan::NicModel;
pub use plan::NicPlan;
pub use plan::Profile;
pub use plan::RestorePlan;
pub use sending::Sending;
pub use state::Ability;
pub use state::Accel;
pub use state::Adopted;
pub use state::BalloonStats;
pub use state::DeviceState;
pub use state::GoneReason;
pub use state::Inventory;
pub use state::MemoryState;
pub use state::RunInfo;
pub use state::RunState;
pub use state::SavePhase;
pub use state::SaveProgress;
pub use state::Stray;
pub use state::VcpuState;

/// A running machine as its owner gets it from the engine.
pub struct Launched {
    /// The handle; cloneable, shared by whoever may act on the machine.
    pub machine: std::sync::Arc<dyn Machine>,
    /// What happens to the machine. Bounded; see [`MachineEvent::Lagged`].
    pub events: mpsc::Receiver<MachineEvent>,
    /// Facts about this run.
    pub run: RunInfo,
}

impl std::fmt::Debug for Launched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Launched").field("run", &self.run).finish_non_exhaustive()
    }
}

/// Makes, finds and removes machines on this host.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// What this host can run, and how: measured once for each boot of the host, then remembered.
    ///
    /// # Errors
    /// [`EngineError::Missing`] or [`EngineError::TooOld`] where no usable QEMU is installed.
    async fn ability(&self) -> Result<Ability, EngineError>;

    /// Starts a machine. Its processors stand still until [`Machine::cont`]. With
    /// [`LaunchPlan::restore`] the saved state has been read when this returns.
    ///
    /// # Errors
    /// On any error nothing of the machine is left running; [`Engine::reap`] is still harmless.
    async fn launch(&self, plan: LaunchPlan) -> Result<Launched, EngineError>;

    /// Finds a machine that an earlier process of ours has launched.
    ///
    /// # Errors
    /// Only where the answer is unknown (the process lives and cannot be spoken to, for example
    /// [`EngineError::Hung`]); a machine that is not there is [`Adopted::Gone`].
    async fn adopt(&self, vm: VmId) -> Result<Adopted, EngineError>;

    /// Every machine of this instance that has left a trace on this host (process, control group
    /// or run directory), running or not. The caller knows which of them it wants.
    ///
    /// # Errors
    /// [`EngineError::Io`] where the run directory or control groups cannot be read.
    async fn strays(&self) -> Result<Vec<Stray>, EngineError>;

    /// Kills everything of that machine and removes its traces; returns when they are gone.
    /// Idempotent: fine for a machine that never was. Disks are not touched.
    ///
    /// # Errors
    /// [`EngineError::Undead`] where a process does not go within the limit.
    async fn reap(&self, vm: VmId) -> Result<(), EngineError>;
}

/// One machine that runs, or has run until a moment ago.
///
/// After the end of the machine every method answers [`EngineError::Exited`].
#[async_trait]
pub trait Machine: Send + Sync {
    /// Whether the processors run, and if not why.
    async fn query_status(&self) -> Result<RunState, EngineError>;

    /// Lets the processors run: after launch, pause, restore, a failed save, or a migration that has
    /// arrived (or, at its source, that has arrived and was not wanted).
    ///
    /// # Errors
    /// Of a machine that has not got all of a migration's state: [`EngineError::Command`].
    async fn cont(&self) -> Result<(), EngineError>;

    /// Stops the processors; memory is kept.
    async fn pause(&self) -> Result<(), EngineError>;

    /// Presses the power button (ACPI). The guest may ignore it.
    async fn powerdown(&self) -> Result<(), EngineError>;

    /// Presses the reset button. What the guest has not written is lost.
    async fn reset(&self) -> Result<(), EngineError>;

    /// Sends a non-maskable interrupt, which makes most guests dump or panic.
    async fn inject_nmi(&self) -> Result<(), EngineError>;

    /// Cuts the power: asks the engine to end, kills it where it does not. Returns when the
    /// process is gone; [`MachineEvent::Exited`] follows.
    async fn kill(&self) -> Result<(), EngineError>;

    /// Facts about this run, as they are now.
    fn run(&self) -> RunInfo;

    /// Where devices are attached; to be stored with the machine's configuration and given back in
    /// [`LaunchPlan::layout`], so that devices keep their addresses (a guest names its adapters by
    /// them). Must be stored *with the saved state* for a restore.
    fn layout(&self) -> Layout;

    /// What is attached now: the truth to compare a configuration with.
    async fn inventory(&self) -> Result<Inventory, EngineError>;

    /// Stops the processors and begins to write memory and device state into `dst` (opened for
    /// reading and writing, empty, seekable). Outcome by [`MachineEvent::SaveEnded`] and
    /// [`Machine::save_progress`]. After success the machine stays stopped: make the file durable,
    /// then [`Machine::kill`]. After failure or cancel it is stopped too, and `cont` lets it go on.
    async fn save(&self, dst: File) -> Result<(), EngineError>;

    /// How far a save has come.
    async fn save_progress(&self) -> Result<SaveProgress, EngineError>;

    /// Gives a save up. Idempotent.
    async fn save_cancel(&self) -> Result<(), EngineError>;

    /// What keeps the machine from being migrated, in the engine's words; empty is nothing.
    async fn migrate_blockers(&self) -> Result<Vec<String>, EngineError>;

    /// Memory that the guest changes within `window` (50 ms to one minute), in bytes per second, each
    /// page counted once. Takes as long.
    async fn dirty_rate(&self, window: Duration) -> Result<Bytes, EngineError>;

    /// Begins to send memory and device state of a running guest to a machine that waits (see
    /// [`Outgoing`]). [`MachineEvent::MigrationMoved`] and [`Machine::migrate_progress`] tell how it
    /// goes. When nobody carries its connections any more, it fails and the guest goes on.
    async fn migrate(&self, tuning: MigrateTuning, switch: Switch)
    -> Result<Outgoing, EngineError>;

    /// Lets a migration go on that is [`MigratePhase::Waiting`].
    ///
    /// # Errors
    /// [`EngineError::Command`] where it is not.
    async fn migrate_switch(&self) -> Result<(), EngineError>;

    /// Changes a migration under way.
    async fn migrate_tune(&self, tuning: MigrateTuning) -> Result<(), EngineError>;

    /// How far a migration is.
    async fn migrate_progress(&self) -> Result<MigrateProgress, EngineError>;

    /// Gives a migration up. Idempotent; without effect once it is done.
    async fn migrate_cancel(&self) -> Result<(), EngineError>;

    /// Lets a machine that was launched with [`RestorePlan::Stream`] wait for its connections.
    async fn incoming(&self) -> Result<(), EngineError>;

    /// The machine's end for one connection of the source.
    async fn incoming_connect(&self) -> Result<UnixStream, EngineError>;

    /// Lets a machine that waits for a migration take its disks, too, by
    /// [`Machine::receive_connect`]: its files are there, writable, as large as the source's.
    async fn receive(&self, slots: &[ImageSlot]) -> Result<(), EngineError>;

    /// The machine's end for one connection that [`Machine::send_way`] of the source gave.
    async fn receive_connect(&self) -> Result<UnixStream, EngineError>;

    /// Nothing more comes: what was flushed is in the files, and nobody but the guest writes to them
    /// from here on. Idempotent.
    async fn receive_end(&self) -> Result<(), EngineError>;

    /// When it had all of a migration's state; none if it has not, or if an earlier process of ours
    /// has seen that.
    fn loaded_at(&self) -> Option<tokio::time::Instant>;

    /// Tells switches and neighbours where the adapters are now. Repeated by itself for a second.
    async fn announce(&self) -> Result<(), EngineError>;

    /// Attaches a disk. Returns when the guest can see it.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] for profiles without hot-plug, [`EngineError::NoSlot`] when
    /// all places are taken, [`EngineError::AlreadyPlugged`], [`EngineError::DiskBusy`].
    async fn plug_disk(&self, disk: DiskPlan) -> Result<(), EngineError>;

    /// Asks the guest to let a disk go; [`MachineEvent::DiskUnplugged`] follows if it does, and
    /// only then may the image be used by others. Repeating the request is fine.
    async fn unplug_disk(&self, disk: DiskId) -> Result<(), EngineError>;

    /// Makes a disk larger and tells the guest. `size` is in bytes, a multiple of 512, and not
    /// smaller than now.
    async fn resize_disk(&self, disk: DiskId, size: Bytes) -> Result<(), EngineError>;

    /// Begins to copy a disk, or the firmware's variables, to other files while the guest works with
    /// them (see [`MirrorPhase`]). [`MachineEvent::MirrorMoved`] and [`Machine::mirrors`] tell how it
    /// goes.
    ///
    /// # Errors
    /// [`EngineError::NotPlugged`], [`EngineError::Image`], [`EngineError::DiskBusy`]; nothing is
    /// left of it then.
    async fn mirror(&self, plan: MirrorPlan) -> Result<(), EngineError>;

    /// Opens a way out for `count` copies of disks to the machine that waits for this one's migration.
    /// The connections must be carried while [`Machine::send_disk`] is called.
    async fn send_way(&self, count: usize) -> Result<Outgoing, EngineError>;

    /// Begins to copy a disk, or the firmware's variables, over the way out to the machine that waits.
    /// As [`Machine::mirror`], but there is no pivot: it ends by [`Machine::mirror_cancel`].
    ///
    /// # Errors
    /// As [`Machine::mirror`]; [`EngineError::Command`] without a way out.
    async fn send_disk(&self, slot: ImageSlot, extent: Extent) -> Result<(), EngineError>;

    /// All copies under way, failed ones among them; those of which the new files are the machine's
    /// are over.
    async fn mirrors(&self) -> Result<BTreeMap<ImageSlot, MirrorProgress>, EngineError>;

    /// Makes the guest's writes wait for both files from now on. Idempotent.
    async fn mirror_tighten(&self) -> Result<(), EngineError>;

    /// Asks every copy that is in step to hold. Idempotent.
    async fn mirror_hold(&self) -> Result<(), EngineError>;

    /// Gives the machine the new files of all copies, for good, and closes the old ones. Can be done
    /// again from any point.
    ///
    /// # Errors
    /// [`EngineError::Command`] while one is not held; nothing is changed then. After any other error
    /// the machine may work with either.
    async fn mirror_pivot(&self) -> Result<(), EngineError>;

    /// Gives all copies up, held ones too; closes the new files. Idempotent.
    async fn mirror_cancel(&self) -> Result<(), EngineError>;

    /// Attaches a network adapter. Errors as for [`Machine::plug_disk`].
    async fn plug_nic(&self, nic: NicPlan) -> Result<(), EngineError>;

    /// Asks the guest to let an adapter go; [`MachineEvent::NicUnplugged`] follows if it does.
    async fn unplug_nic(&self, nic: NicId) -> Result<(), EngineError>;

    /// Plugs or pulls the cable of an adapter.
    async fn set_link(&self, nic: NicId, up: bool) -> Result<(), EngineError>;

    /// Asks for a memory size between the size at boot and the maximum of the plan; the guest
    /// gives and takes as it can. `target` is rounded down to [`MemoryState::block`].
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] where the plan had no room (`max` equal to `size`, or the
    /// legacy profile); [`EngineError::OutOfRange`].
    async fn set_memory(&self, target: Bytes) -> Result<(), EngineError>;

    /// Boot, requested and present memory.
    async fn memory_state(&self) -> Result<MemoryState, EngineError>;

    /// Asks for a number of processors between 1 and the plan's maximum. Additions are done when
    /// this returns (the guest may still have to bring them online); removals are requests to the
    /// guest, [`MachineEvent::VcpusChanged`] follows for each.
    ///
    /// # Errors
    /// [`EngineError::OutOfRange`]; [`EngineError::Unsupported`] under emulation for a processor
    /// that was taken away in this run: it comes back with a stop and start.
    async fn set_vcpus(&self, count: u32) -> Result<(), EngineError>;

    /// Sets share and cap of processor time; the guest is not asked and sees nothing. Returns what
    /// this host cannot enforce of them, in the words of [`RunInfo::missing_limits`]: empty when
    /// both hold. [`Inventory::cpu_limits`] tells what was asked for last.
    async fn set_cpu_limits(&self, limits: CpuLimits) -> Result<Vec<String>, EngineError>;

    /// Asks the guest to keep only `target` bytes of its present memory in use (balloon).
    async fn balloon(&self, target: Bytes) -> Result<(), EngineError>;

    /// What the guest's balloon driver reports; `None` fields where it reports nothing.
    async fn balloon_stats(&self) -> Result<BalloonStats, EngineError>;

    /// The picture on the screen, as a PNG file of at most 16 MiB.
    async fn screenshot(&self) -> Result<Vec<u8>, EngineError>;

    /// How many requests its disks have had in this run: it grows as long as the guest works with
    /// them.
    async fn disk_requests(&self) -> Result<u64, EngineError>;

    /// A new connection that speaks VNC (RFB) with the machine's screen. No password: whoever is
    /// given the stream has been let in by us.
    async fn vnc(&self) -> Result<UnixStream, EngineError>;

    /// A new view of the serial console: first the kept last lines, then everything live; input is
    /// typed into the console. The guest never waits: a viewer that is too slow misses output.
    async fn serial(&self) -> Result<UnixStream, EngineError>;

    /// The last bytes the guest has written to its serial console (at most 64 KiB). Works after
    /// the end of the machine, too.
    fn serial_tail(&self) -> Vec<u8>;

    /// A connection to the guest agent's port. One at a time: a second call takes the port over.
    /// What comes out of it is written by the guest: not to be trusted.
    async fn agent(&self) -> Result<UnixStream, EngineError>;
}
