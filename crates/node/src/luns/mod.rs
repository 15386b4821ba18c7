//! Volumes on LUNs, on this node: which LUNs it sees, and the file system of those that it coordinates.
//!
//! ```text
//!   find (sysfs, folders) -> probe (what stands on it) -> tell --NodeLunsSet--> the state of all
//!                                                                                    |
//!   keeper: one pass for each volume, level-triggered                                v
//!     coordinator here    reserve -> probe again -> mkfs where it is new -> mount -> VolumePrepared
//!     not any more        unmount -> VolumeGiveBack                (plane: what a pass does to the host)
//!     nobody's, or of a fenced node: placement says who claims it      -> VolumeClaim
//! ```
//!
//! Order of safety: the state gives an epoch to one node; that node registers the epoch's key, looks for
//! a later one, takes all others away, and only then reads the file system that it mounts (decisions 0019,
//! 0021). What is not empty is never formatted, and what is not the volume's own is never mounted.
//!
//! Until the data plane of crate `volume` is joined, only the coordinator reaches the files; machines on
//! such a volume run there.
//!
//! Trust boundaries: what devices answer, what `blkid` prints, the mount table, the file that names a LUN,
//! the socket that takes reservations. All are bounded and typed, and each program has a deadline.

mod check;
mod find;
mod keeper;
mod plane;
mod probe;
mod programs;
mod reserve;
mod tell;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use model::LunId;
use model::LunSeen;
use model::UnixMillis;
use model::VolumeId;
use tokio::sync::Notify;

pub(crate) use check::check;
pub(crate) use keeper::Keeper;
pub(crate) use plane::LocalMount;
use plane::PlaneError;
use plane::VolumePlane;
pub(crate) use plane::device_of;

use crate::app::now;

/// What is known here of volumes on LUNs, and the way to hurry.
#[derive(Clone, Default)]
pub(crate) struct Luns {
    folders: Arc<[PathBuf]>,
    shown: Arc<Mutex<BTreeMap<VolumeId, Trouble>>>,
    hurry: Arc<Notify>,
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
    pub(crate) fn new(folders: &[PathBuf]) -> Self {
        Self { folders: folders.into(), ..Self::default() }
    }

    /// All LUNs that this node sees, read now. Blocks for as long as devices take, with a limit.
    pub(crate) fn look(&self) -> BTreeMap<LunId, LunSeen> {
        find::find(&self.folders)
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
