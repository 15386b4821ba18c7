//! Volumes on LUNs, on this node: which LUNs it sees, and the file system of those that it coordinates.
//!
//! ```text
//!   find (sysfs, folders) -> probe (what stands on it) -> tell --NodeLunsSet--> the state of all
//!                                                                                    |
//!   keeper: one pass for each volume, level-triggered                                v
//!     coordinator here    Preparing: reserve -> probe again -> mkfs where it is new
//!                         coordinate in its epoch -> VolumePrepared
//!     not any more        resign -> VolumeGiveBack
//!     nobody's, or of a fenced node: placement says who claims it      -> VolumeClaim
//!     in use              every node shows the files, told who coordinates them
//!   away: machines leave, live, when this node has lost its own path
//!   rights: who writes a machine's images at a live migration, by orders to the volume process
//!   plane: what a pass does to the host, most of it by orders to the volume process (`dataplane`)
//! ```
//!
//! Order of safety: the state gives an epoch to one node; its volume process registers the epoch's key,
//! looks for a later one, takes all others away, and only then reads the file system that it mounts
//! (decisions 0019, 0021, 0025). What is not empty is never formatted, and what is not the volume's own is
//! never mounted.
//!
//! **A LUN is let go only after all have**: before a node's process may write to a LUN under leases, the
//! state says so (`LunSeen::attached`), and a volume is taken off its LUN only when no other node's record
//! says it any more. So nothing of it is on the way when the LUN is open to everybody.
//!
//! Trust boundaries: what devices answer, what `blkid` prints, the mount table, the file that names a LUN,
//! the socket that takes reservations, the volume process. All are bounded and typed, and each program has
//! a deadline.

mod away;
mod check;
mod find;
mod keeper;
mod plane;
mod probe;
mod process;
mod programs;
mod reserve;
mod rights;
mod tell;
mod view;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use model::LunId;
use model::LunSeen;
use model::NodeRecord;
use model::UnixMillis;
use model::VolumeId;
use tokio::sync::Notify;

pub(crate) use away::Away;
pub(crate) use check::check;
pub(crate) use keeper::Keeper;
pub(crate) use plane::Plane;
use plane::PlaneError;
pub(crate) use plane::device_of;
pub(crate) use plane::port_of;
pub(crate) use process::VolumeProcess;
pub(crate) use reserve::SocketFence;
pub(crate) use rights::LunRights;
pub(crate) use view::Answers;
pub(crate) use view::coordination_view;
pub(crate) use view::gather;

use crate::app::now;
use crate::dataplane::words::Told;

/// What is known here of volumes on LUNs, and the way to hurry.
#[derive(Clone, Default)]
pub(crate) struct Luns {
    folders: Arc<[PathBuf]>,
    shown: Arc<Mutex<BTreeMap<VolumeId, Trouble>>>,
    /// LUNs that this node's process may write to, or surely does not any more.
    attached: Arc<Mutex<BTreeMap<LunId, bool>>>,
    hurry: Arc<Notify>,
    /// Held from a look until the state has it: an older look must not come after a newer one.
    telling: Arc<tokio::sync::Mutex<()>>,
    process: Option<VolumeProcess>,
}

/// Why the last pass did not bring a volume where it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// In words.
    pub(crate) why: String,
    /// Since when it is so.
    pub(crate) since: UnixMillis,
}

impl Luns {
    pub(crate) fn new(folders: &[PathBuf], process: VolumeProcess) -> Self {
        Self { folders: folders.into(), process: Some(process), ..Self::default() }
    }

    /// How each volume is in this node's volume process; nothing where that does not say.
    pub(crate) async fn told(&self) -> Vec<Told> {
        let Some(process) = &self.process else { return Vec::new() };
        match process.look().await {
            Ok(told) => told,
            Err(error) => {
                tracing::warn!(error, "how volumes are is not known");
                Vec::new()
            }
        }
    }

    /// All LUNs that this node sees, read now. Blocks for as long as devices take, with a limit.
    pub(crate) fn look(&self) -> BTreeMap<LunId, LunSeen> {
        find::find(&self.folders)
    }

    /// The same as the node's record is to have it: of a LUN that nothing is known of since the start of
    /// this daemon, what the state says goes on to hold.
    pub(crate) fn look_for(&self, node: &NodeRecord) -> BTreeMap<LunId, LunSeen> {
        let mut found = self.look();
        let known = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        for (lun, seen) in &mut found {
            let before = node.luns.get(lun).is_some_and(|it| it.attached);
            seen.attached = known.get(lun).copied().unwrap_or(before);
        }
        found
    }

    /// To be held from a look until the state has it.
    pub(crate) async fn telling(&self) -> tokio::sync::OwnedMutexGuard<()> {
        self.telling.clone().lock_owned().await
    }

    /// The process may write to a LUN from when the state says so, or does not any more.
    fn set_attached(&self, lun: &LunId, attached: bool) {
        let mut known = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        if known.insert(lun.clone(), attached) != Some(attached) {
            self.hurry();
        }
    }

    /// Why a volume is not where it should be on this node.
    pub(crate) fn trouble(&self, volume: VolumeId) -> Option<Trouble> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).get(&volume).cloned()
    }

    /// Has the keeper look at once.
    pub(crate) fn hurry(&self) {
        self.hurry.notify_one();
    }

    fn show(&self, volume: VolumeId, outcome: Result<(), String>) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(()) => drop(shown.remove(&volume)),
            Err(why) if shown.get(&volume).is_some_and(|known| known.why == why) => {}
            Err(why) => {
                tracing::warn!(%volume, why, "a volume is not where it should be");
                shown.insert(volume, Trouble { why, since: now() });
            }
        }
    }
}
