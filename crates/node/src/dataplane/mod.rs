//! `muster volume` processes: the data plane of this node's shared volumes, in a process of its own that
//! outlives the daemon. Machines have their disks through it, so it goes on when the daemon dies.
//!
//! ```text
//!   daemon (luns::plane) --- control socket: `words` ---> control
//!                                                           |
//!                                                        Hosted, one for each volume
//!   programs, QEMU -- /muster/volumes/NAME (FUSE) -- Client ---.   |
//!                                                              |  Coordinator -- <run>/volumes/<id> (ext4, XFS)
//!   other nodes' processes <-- streams: TLS, `volume:<id>` ----'---'
//! ```
//!
//! | whose | what |
//! | --- | --- |
//! | the daemon says | who the members are; which volumes this node reaches, by which device; who coordinates them in which epoch; when this node does |
//! | it is told | how this node reaches each volume, and what its coordinator is about |
//! | kept on the disk (`kept`) | the last epoch of each volume that this node has begun to coordinate, and a count of lives |
//!
//! **An epoch is begun once** (invariant 34): only by an order of the daemon, which has it from the
//! replicated state, and never again on this node, whatever dies in between. Who finds its epoch begun
//! gives the volume back and claims it anew.
//!
//! Trust boundaries: the control socket (root's own; frames bounded and typed), the port for other nodes
//! (crate `peer`: members only), what devices answer (crate `volume`).

mod control;
mod fence;
mod hosted;
mod kept;
mod leftovers;
mod streams;
pub(crate) mod words;

use std::ffi::OsStr;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use model::NodeId;
use nix::fcntl::Flock;
use nix::fcntl::FlockArg;
use serde::Deserialize;
use serde::Serialize;

pub(crate) use fence::LocalFence;
pub(crate) use kept::has_begun;
pub(crate) use leftovers::is_mounted;
pub(crate) use leftovers::mounted_here;

/// The hidden verb that the daemon starts this program under.
pub const VERB: &str = "serve-volumes";

/// What the daemon starts the process with, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// The daemon's data directory.
    pub(crate) data_dir: PathBuf,
    /// Its run directory, absolute.
    pub(crate) run_dir: PathBuf,
    /// Where processes of other nodes are waited for.
    pub(crate) listen: std::net::SocketAddr,
    /// Which node this is.
    pub(crate) node: NodeId,
    /// The control group that it lives in.
    pub(crate) group: PathBuf,
}

impl Settings {
    /// The control socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.run_dir.join("volumes.sock")
    }

    /// Where a volume's file system is mounted for its coordinator alone.
    pub(crate) fn inner(&self, volume: model::VolumeId) -> PathBuf {
        self.run_dir.join("volumes").join(volume.to_string())
    }
}

/// Runs the process until it is told to end.
///
/// # Errors
/// Why it could not start.
pub fn run(settings: &OsStr) -> anyhow::Result<()> {
    crate::log_to_stderr();
    let settings = settings.to_str().context("the settings are no text")?;
    let settings: Settings = serde_json::from_str(settings).context("the settings")?;
    // First of all: whoever ends the daemon's group must not end this one.
    enter(&settings.group).context("its control group")?;
    // The leader of a group already: started by hand, and as good.
    let _ = rustix::process::setsid();
    let path = settings.run_dir.join("volumes.lock");
    let file = std::fs::File::create(&path).with_context(|| path.display().to_string())?;
    let Ok(_lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
        anyhow::bail!("another one serves the volumes of this node already");
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(control::serve(Arc::new(settings)));
    runtime.shutdown_background();
    result
}

fn enter(group: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(group)?;
    std::fs::write(group.join("cgroup.procs"), "0")
}
