//! One virtual machine on this node: from what the state says it shall be to what it is.
//!
//! ```text
//!            watch<Wanted>                           Engine, Ports, files
//!   state ------------------> driver (one task) ------------------------> QEMU, taps, disks
//!     ^                          |    |
//!     |  Ledger::finish, exited  |    | watch<Status>
//!     +--------------------------+    +---------------> API, events, metrics
//! ```
//!
//! The driver is the only one that touches the machine. It does one of three things at a time:
//!
//! 1. *Perform* the operation under way ([`ops`]): each ends in exactly one [`OpOutcome`], also
//!    when it is cancelled, runs out of time or loses the machine in the middle. Every operation
//!    can be performed again from any point at which the daemon may have died: it looks first and
//!    does only what is missing.
//! 2. *Settle* ([`machine::settle`], pure): without an operation, bring the machine to the settled
//!    power state: start it again after a crash, end one that should not be.
//! 3. *Wait* for a change of the state or an event of the machine.
//!
//! A driver that begins with a daemon may know less than the machine that it finds: the record on this
//! host's disk is as old as the host's last word with the others. Until its state is surely the newest
//! ([`Freshness`]) it looks and shows, and ends, starts and changes nothing; the lease ends what has no
//! right to run meanwhile (decision 0032).
//!
//! Who may do what: only the driver changes the machine; only [`status::Publisher`] shows it; only
//! the ledger changes the state. Dropping the driver leaves the machine running, and the next one
//! adopts it (DESIGN.md section 2: the control plane may die at any time and no guest notices).
//!
//! Trust boundary: events and the agent carry what a guest says. They decide nothing beyond their
//! own VM.

mod devices;
mod driver;
mod files;
mod hung;
pub mod machine;
mod migrate;
mod online;
mod ops;
mod plan;
mod power;
mod register;
mod rights;
mod services;
mod status;
mod storage;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use model::Exit;
use model::Generation;
use model::ImageId;
use model::NicId;
use model::NicSpec;
use model::OpId;
use model::OpOutcome;
use model::OpRecord;
use model::Severity;
use model::UnixMillis;
use model::VmId;
use model::VmPlace;
use model::VmRecord;
use serde::Deserialize;
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::engine::Engine;
use crate::guest::GuestServices;
use crate::image::DiskTool;

pub use files::VmFiles;
pub use machine::Actual;
pub use machine::Settle;
pub use machine::settle;
pub use migrate::AfterHandover;
pub use migrate::Arrivals;
pub use migrate::Handover;
pub use migrate::HandoverNote;
pub use migrate::Handovers;
pub use migrate::KeptOut;
pub use migrate::Lane;
pub use migrate::Mover;
pub use migrate::Nowhere;
pub use migrate::Offer;
pub use migrate::OfferedFiles;
pub use migrate::Prepared;
pub use migrate::Ready;
pub use migrate::Wire;
pub use migrate::arrival::abandon as abandon_arrival;
pub use migrate::arrival::prepare as prepare_arrival;
pub use migrate::arrival::rehearse as rehearse_arrival;
pub use migrate::arrival::settle as settle_arrival;
pub use migrate::outlook;
pub use migrate::receive_files;
pub use register::Found;
pub use register::NotFound;
pub use register::look;
pub use rights::Everybody;
pub use rights::Images;
pub use rights::WriteRights;
pub use status::Phase;
pub use status::RunStatus;
pub use status::Status;
pub use storage::in_place;
pub use storage::remove_copy;
pub use storage::room_for_files;
pub use storage::room_for_move;
pub use storage::taken_by;

/// What the state wants of a VM: its record and the operation under way.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The record.
    pub record: Arc<VmRecord>,
    /// The first operation of [`VmRecord::ops`].
    pub op: Option<Arc<OpRecord>>,
    /// Whether anything may be done by it.
    pub freshness: Freshness,
}

/// How new the state is by which something is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// It is what this host had on its disk: others may have decided more since. A machine of another
    /// run may be of a newer one, and an operation under way may be over since long.
    MayBeOld,
    /// It has all that was decided before this daemon began.
    Newest,
}

/// Where a driver reports. Implemented by the daemon over the replicated state.
#[async_trait]
pub trait Ledger: Send + Sync + 'static {
    /// An operation has ended. When this returns, the state has taken it in durably.
    ///
    /// # Errors
    /// [`LedgerError`]; the state is as it was.
    async fn finish(&self, op: OpId, outcome: OpOutcome) -> Result<(), LedgerError>;

    /// The guest stands for good and the target of its migration has everything: gives the VM to it.
    async fn hand_over(&self, note: HandoverNote) -> Handover;

    /// The VM's copy in the place that a move of its storage goes to is whole, and its guest stands:
    /// makes that place the VM's. Said again, it changes nothing.
    async fn storage_moved(&self, op: OpId, generation: Generation) -> Handover;

    /// Nothing of the VM is left in a place that is not its own.
    ///
    /// # Errors
    /// [`LedgerError`]; the state is as it was.
    async fn copy_gone(&self, vm: VmId, place: VmPlace) -> Result<(), LedgerError>;

    /// A run has ended without an operation that asked for it. Durable as [`Ledger::finish`].
    ///
    /// # Errors
    /// [`LedgerError`]; the state is as it was.
    async fn exited(&self, vm: VmId, run: Generation, exit: Exit) -> Result<(), LedgerError>;

    /// How far an operation is: an observation.
    fn progress(&self, op: OpId, progress: Progress);

    /// Something that people should know: an observation.
    fn note(&self, vm: VmId, severity: Severity, text: String);

    /// The time now.
    fn now(&self) -> UnixMillis;
}

/// Why the state did not take a report in.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// It refuses it, and will again.
    #[error("the state refuses the report: {0}")]
    Refused(#[from] model::Refused),
    /// It cannot be reached; the report may be repeated.
    #[error("the state cannot be reached: {0}")]
    Unavailable(String),
}

/// How far an operation is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// The step, in words.
    pub step: String,
    /// How much of it is done, in the step's own unit.
    pub done: u64,
    /// How much there is; 0 where that is not known.
    pub total: u64,
}

/// Network ports of VMs on this host. Implemented by the daemon over the switch.
#[async_trait]
pub trait Ports: Send + Sync + 'static {
    /// Makes the port of an adapter and opens it. Its rules are in force when this returns.
    ///
    /// # Errors
    /// A sentence with a next step.
    async fn open(&self, vm: VmId, nic: &NicSpec) -> Result<OwnedFd, String>;

    /// The adapter's port is no longer needed. Idempotent.
    async fn close(&self, nic: NicId);

    /// Brings all ports to what the state says now.
    async fn refresh(&self);
}

/// Tells whether the volume of a VM is there; if not, a sentence with a next step.
pub type VolumeReady = Box<dyn Fn(&VmRecord) -> Result<(), String> + Send + Sync>;

/// What drivers of one host share.
pub struct Host {
    /// The machine engine.
    pub engine: Arc<dyn Engine>,
    /// Where to report.
    pub ledger: Arc<dyn Ledger>,
    /// Network ports.
    pub ports: Arc<dyn Ports>,
    /// Makes and grows disk files.
    pub disks: DiskTool,
    /// The directory in which a VM's own directory lies: this node's, or one on a shared volume.
    pub vms_dir: Box<dyn Fn(&VmRecord) -> PathBuf + Send + Sync>,
    /// Whether the volume of a VM is there and is the right one; if not, a sentence with a next
    /// step. Nothing of a VM is touched without it: a volume that is not mounted is an empty
    /// directory, and a VM must not be made anew in there.
    pub volume_ready: VolumeReady,
    /// The file of an image.
    pub image_path: Box<dyn Fn(ImageId) -> PathBuf + Send + Sync>,
    /// The right to write images, where a volume gives it to one node at a time.
    pub rights: Arc<dyn WriteRights>,
    /// The way to other hosts.
    pub mover: Arc<dyn Mover>,
    /// Machines that wait for guests of other hosts.
    pub arrivals: Arc<Arrivals>,
    /// Facts about this host that guests may read.
    pub host_name: String,
}

/// A driver's outside: what is wanted goes in, what is seen comes out.
pub struct VmHandle {
    wanted: watch::Sender<Option<Wanted>>,
    status: watch::Receiver<Status>,
    consoles: watch::Receiver<Option<Arc<dyn crate::engine::Machine>>>,
    services: watch::Receiver<Option<GuestServices>>,
    task: JoinHandle<()>,
}

impl VmHandle {
    /// Starts a driver. It adopts the machine if there is one.
    pub fn spawn(host: Arc<Host>, wanted: Wanted) -> Self {
        let vm = wanted.record.id;
        let (wanted, wanted_out) = watch::channel(Some(wanted));
        let (publisher, status) = status::Publisher::new();
        let (consoles_in, consoles) = watch::channel(None);
        let (services_in, services) = watch::channel(None);
        let parts = driver::Parts {
            host,
            vm,
            wanted: wanted_out,
            publisher,
            consoles: consoles_in,
            services: services_in,
        };
        let task = tokio::spawn(driver::Driver::new(parts).run());
        Self { wanted, status, consoles, services, task }
    }

    /// Says what the state wants now; `None` when the VM is gone from it.
    pub fn want(&self, wanted: Option<Wanted>) {
        self.wanted.send_replace(wanted);
    }

    /// What is seen of the VM now.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Follows what is seen of the VM.
    pub fn watch_status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Whether nothing is done for the VM any more.
    pub fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// The machine, for consoles and screenshots, while it runs.
    pub fn machine(&self) -> Option<Arc<dyn crate::engine::Machine>> {
        self.consoles.borrow().clone()
    }

    /// The guest's services, while the machine runs.
    pub fn guest(&self) -> Option<GuestServices> {
        self.services.borrow().clone()
    }
}

impl Drop for VmHandle {
    fn drop(&mut self) {
        // A daemon that ends leaves its machines running; only the tasks go.
        if self.wanted.borrow().is_some() {
            self.task.abort();
        }
    }
}
