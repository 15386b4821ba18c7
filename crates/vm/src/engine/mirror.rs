//! Words of a machine's disks that go to other files while the guest works with them.
//!
//! ```text
//!   mirror ----> Copying ----> InStep ----> Held ----> (the new files are the machine's)
//!                   |  mirror_tighten |  mirror_hold |  mirror_pivot
//!                   +-----------------+--------------+---- mirror_cancel: the old files stay
//! ```
//!
//! - `Copying`: what is there is copied, and what the guest writes meanwhile is copied again.
//!   [`super::Machine::mirror_tighten`] makes the guest's writes wait for both files from there on, so
//!   that any guest is caught up with.
//! - `InStep`: each write that was acknowledged is in both files.
//! - `Held`: both files are the same, flushed with success, and neither is written to any more: the
//!   guest's requests wait. This is the moment for the one decision, and nothing but
//!   [`super::Machine::mirror_pivot`] or [`super::Machine::mirror_cancel`] ends it.
//!
//! A machine keeps its copies when the engine's owner dies: the next one finds them by
//! [`super::Machine::mirrors`].
//!
//! A copy may also go to the machine that waits for a migration of this one, disk by disk:
//!
//! ```text
//!   source: send_way -> Outgoing               target: launched with RestorePlan::Stream, blank disks
//!             connections ---- (carried) ----> Machine::receive, Machine::receive_connect
//!   source: send_disk -> Copying .. Held       target: each acknowledged write is in its file
//!   source: mirror_cancel, once all are held   target: Machine::receive_end; then the memory's rest
//! ```
//!
//! `Held` says then that the target's files have all that the guest was ever acknowledged, flushed; the
//! source goes on with its own files whatever becomes of the copy.

use std::path::PathBuf;

use model::Bytes;
use model::DiskId;
use serde::Deserialize;
use serde::Serialize;

use super::ImageFile;

/// Something of a machine that lies in image files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageSlot {
    /// A disk, writable or not.
    Disk(DiskId),
    /// The variables of the UEFI firmware.
    Firmware,
}

/// What of a disk goes to another host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// All of it: the target has no image below its file.
    Whole,
    /// What lies in its own file: the target has the same image below.
    OwnFile,
}

/// What is to be copied where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorPlan {
    /// What.
    pub slot: ImageSlot,
    /// The new chain, as [`super::DiskPlan::chain`]. The top file is there, blank, as large to the
    /// guest as the old one, and has the same number of files below it: only the top is copied.
    pub chain: Vec<ImageFile>,
}

/// Where a copy is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MirrorPhase {
    /// Not all of it is there.
    Copying,
    /// Each acknowledged write is in both.
    InStep,
    /// Both are the same and durable, and the guest's requests wait.
    Held,
    /// It failed, with the reason; the machine works with the old file.
    Failed(String),
}

/// How far a copy is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorProgress {
    /// Where it is.
    pub phase: MirrorPhase,
    /// The top file that it is copied to, where that is known.
    pub target: Option<PathBuf>,
    /// Copied, what had to be copied again among it.
    pub done: Bytes,
    /// To be copied in all, as known now: it grows as the guest writes.
    pub total: Bytes,
}
