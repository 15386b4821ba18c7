//! Live migration of one VM (FEATURES.md D1).
//!
//! ```text
//!   source (its driver, the operation's performer)              target
//!     prepare ------------ Mover::prepare(offer) ------------->  arrival::prepare: a machine that waits
//!     engine sends ------- Mover::connect, byte for byte ----->  its connections
//!     passes, ladder ...                                         loads
//!     guest stands, target has everything
//!     hand over: one command in the replicated state
//!     driver ends its machine                                    driver finds itself the owner: the
//!                                                                machine that arrived goes on
//! ```
//!
//! Who runs the guest is decided by the state alone. Until the handover the VM is the source's, and
//! whatever happens before it, at either end or between them, leaves the guest running there. After
//! it the VM is the target's; if its machine is lost, that is a crash like any other. The source
//! proposes the handover only when its engine says that the target has everything and its own guest
//! stands for good, and does not let the guest go on before it knows that no handover can happen any
//! more: either none was sent, or the end of the operation is in the state.
//!
//! A VM may take its files along (shared-nothing migration, [`along`], [`landing`]):
//!
//! ```text
//!   source                                                      target
//!     prepare, with what its disks are like ----------------->   blank disks in a directory that is not
//!                                                                the VM's yet; served to the source
//!     copies of disks, until each write goes to both ----------> written there
//!     rehearse ----------------------------------------------->  flushed once: the forecast of the pause
//!     passes over the memory; the guest stands
//!     copies held: flushed there; closed
//!     settle ------------------------------------------------>   served no more; durable; has its name
//!     the rest of the memory, hand over: owner and place by one command
//!                                                                the machine goes on with these disks
//!                                                                operation ends; the old files go
//! ```
//!
//! The source's disks have every write of its guest until the handover, so whatever fails before it
//! leaves the guest with them. After it they are a copy that nobody opens any more.
//!
//! A VM without a process (off, or saved) takes its files along in the same order, as they are ([`still`],
//! [`parcel`]): a directory that is not the VM's yet, every file, flushed and compared, the VM's name,
//! then the handover. The source changes nothing of them from the begin of the operation on. A daemon that
//! dies leaves either half a directory, which is made anew, or a whole one with the VM's name, of which
//! an earlier source may have sent the handover: that one stays, and the handover is proposed again.
//!
//! Trust boundary: the stream is made by the source's engine process, which a guest may have taken
//! over; it goes into the target's engine process for the same guest, in the same kind of jail, and
//! nowhere else.

mod along;
pub(crate) mod arrival;
mod carry;
mod forecast;
mod handover;
mod ladder;
mod landing;
mod pace;
mod parcel;
mod source;
mod squeeze;
mod still;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use model::Bytes;
use model::DiskId;
use model::Generation;
use model::NodeId;
use model::OpFailure;
use model::OpId;
use model::StorageTarget;
use model::VmId;
use serde::Deserialize;
use serde::Serialize;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;

use crate::engine::Layout;

pub use arrival::Arrivals;
pub use arrival::KeptOut;
pub use arrival::Prepared;
pub use handover::AfterHandover;
pub use handover::Handover;
pub use handover::HandoverNote;
pub use handover::Handovers;
pub use source::outlook;
pub(crate) use squeeze::let_go;
pub use still::receive_files;

/// What the target must know of the machine, beside the VM's record: it is built alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The migration.
    pub op: OpId,
    /// The VM.
    pub vm: VmId,
    /// The run at the source.
    pub generation: Generation,
    /// Addresses of its devices.
    pub layout: Layout,
    /// Processors that the guest has.
    pub cpus: u32,
    /// Memory that it had at its start.
    pub boot_memory: Bytes,
    /// Its files, where they come with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<OfferedFiles>,
    /// Whether it has no process: then no machine waits, and its files come as they are.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub still: bool,
}

/// The files of a VM that come with it. What is in its disks comes later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferedFiles {
    /// Where to.
    pub target: StorageTarget,
    /// Its disks, with the size that the guest sees.
    pub disks: BTreeMap<DiskId, Bytes>,
    /// Size of the variables of its firmware, if it has such.
    pub firmware: Option<Bytes>,
    /// What the guest sees as VM generation id.
    pub generation_id: uuid::Uuid,
    /// The cloud-init disc that its guest has, in Base64.
    pub seed: Option<String>,
    /// Room that all of it takes.
    pub needed: Bytes,
}

/// What a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Memory and device state.
    Memory,
    /// Disks.
    Disks,
    /// Files of a machine without a process.
    Files,
}

/// What the target says when its machine waits.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ready {
    /// What the way to it carries, in bytes per second, where that was measured.
    #[serde(default)]
    pub bandwidth: Option<Bytes>,
    /// That it is not the way that it should be, in words.
    #[serde(default)]
    pub fallback: Option<String>,
    /// That all files of a machine without a process are there, durable and under its name, by an
    /// earlier attempt of this very migration: nothing is to be sent.
    #[serde(default)]
    pub whole: bool,
}

/// A connection to another node: bytes both ways, as they are.
pub trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// The way to other nodes. Implemented by the daemon.
#[async_trait]
pub trait Mover: Send + Sync + 'static {
    /// Lets a node make a machine that waits for the guest.
    ///
    /// # Errors
    /// Why it cannot; nothing of it is left there.
    async fn prepare(&self, to: NodeId, offer: Offer) -> Result<Ready, OpFailure>;

    /// A connection to the machine that waits there.
    ///
    /// # Errors
    /// A sentence.
    async fn connect(&self, to: NodeId, op: OpId, lane: Lane) -> Result<Box<dyn Wire>, String>;

    /// Makes what has come of the VM's disks durable, while its guest still works: the same will be
    /// done when it stands, and is quick then. Nothing depends on it.
    ///
    /// # Errors
    /// Why it cannot.
    async fn rehearse(&self, to: NodeId, op: OpId) -> Result<(), OpFailure>;

    /// All of the VM's disks are there, flushed: lets nothing more come, and makes its directory
    /// durable under its name.
    ///
    /// # Errors
    /// Why it cannot.
    async fn settle(&self, to: NodeId, op: OpId) -> Result<(), OpFailure>;

    /// The machine that waits there is not needed. It is not found out whether that was heard: the
    /// node sees the end of the operation in the state, too.
    async fn abandon(&self, to: NodeId, op: OpId);
}

/// A host that reaches no other one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nowhere;

fn no_way() -> OpFailure {
    OpFailure {
        code: "no_way".to_owned(),
        message: "this host reaches no other one".to_owned(),
        hint: "see the cluster: muster cluster status".to_owned(),
    }
}

#[async_trait]
impl Mover for Nowhere {
    async fn prepare(&self, _: NodeId, _: Offer) -> Result<Ready, OpFailure> {
        Err(no_way())
    }

    async fn connect(&self, _: NodeId, _: OpId, _: Lane) -> Result<Box<dyn Wire>, String> {
        Err(no_way().message)
    }

    async fn rehearse(&self, _: NodeId, _: OpId) -> Result<(), OpFailure> {
        Err(no_way())
    }

    async fn settle(&self, _: NodeId, _: OpId) -> Result<(), OpFailure> {
        Err(no_way())
    }

    async fn abandon(&self, _: NodeId, _: OpId) {}
}

/// Until a handover of which nothing is known is proposed again.
const HANDOVER_AGAIN: Duration = Duration::from_millis(20);

/// Milliseconds, for records.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What is shared by the connections of one migration.
type Shared<T> = Arc<std::sync::Mutex<T>>;
