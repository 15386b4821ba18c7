//! The lab's SAN: LUNs that each node has paths of its own to, in a process of its own.
//!
//! ```text
//!   DIR/san/lun0/medium.img   the medium, sparse: what was flushed
//!   DIR/san/lun0/keys.json    the reservation, as of the last change: it outlives power
//!   DIR/san/lun0/paths        a FUSE file system that only the SAN's own namespace has
//!   DIR/san.sock              orders of the lab: one line of JSON each way
//!
//!   muster lab san-server --- FUSE file <tag>-lun0-path-0.3 <-- /dev/loopN <-- /muster/san/lun0 of n1
//!                                             |      |
//!                                          path of n1, fourth life of n1
//! ```
//!
//! A node finds in `/muster/san` for each LUN: `lun0` (the block device of its own path), `lun0.wwid` (which
//! LUN it says that it is) and `lun0.sock` (its reservation commands; see `words`). A loss of power of a node
//! ends the life of its path *first*: nothing that is on its way, and nothing that an old mount of it
//! still holds, ever reaches the medium. A loop device lives as long as its path's life and no shorter:
//! a node names it by its number, and a number that the kernel may give away is another lab's device, or
//! yours. When the SAN's process is killed, its cache is lost, as by a loss of its power, and all paths
//! fail: those of nodes that run stay dead, also after `lab san restart`, until their next power-on.

mod orders;
mod server;
mod words;

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

pub use server::serve;
pub use words::CacheFate;
pub use words::LunStatus;
pub use words::PathStatus;
pub use words::SanStatus;

use crate::error::LabError;
use crate::layout::Lab;
use crate::names::NodeName;
use crate::programs::program;
use crate::programs::run;
use crate::state::LabState;

/// What a LUN is called, also in a node, in the folder of its SAN.
pub(crate) fn lun_name(number: usize) -> String {
    format!("lun{number}")
}

/// Where a node finds it.
pub(crate) const NODE_DIR: &str = "muster/san";

/// How long the kernel may take to let go of loop devices.
const LOOP_LIMIT: Duration = Duration::from_secs(10);

/// How long the SAN may take to start.
const START_LIMIT: Duration = Duration::from_secs(10);

/// Pause between two looks.
const POLL: Duration = Duration::from_millis(20);

impl Lab {
    /// Where the SAN keeps its own.
    pub(crate) fn san_dir(&self) -> PathBuf {
        self.path("san")
    }

    /// Where the SAN takes orders.
    pub(crate) fn san_socket(&self) -> PathBuf {
        self.path("san.sock")
    }

    /// What a node finds in `/muster/san`.
    pub(crate) fn node_san(&self, node: NodeName) -> PathBuf {
        self.node_dir(node).join("san")
    }

    /// Says which devices are a node's paths, a line for each LUN, to whoever puts its root together.
    pub(crate) fn node_san_device(&self, node: NodeName) -> PathBuf {
        self.node_dir(node).join("san.device")
    }

    /// What the loop devices of this lab are known by.
    pub(crate) fn loop_prefix(&self) -> String {
        format!("muster-lab-{}-", self.tag())
    }

    /// Starts the SAN and waits until it answers.
    pub(crate) fn start_san(&self, state: &LabState) -> Result<(), LabError> {
        if state.san.is_none() {
            return Ok(());
        }
        let _ = fs::remove_file(self.san_socket());
        let group = self.group()?.child("san");
        // Also the group: in one that was killed once no process starts.
        group.remove()?;
        group.make()?;
        let join = r#"echo 0 > "$0/cgroup.procs" && exec "$@""#;
        let mut args = vec!["-c".to_owned(), join.to_owned()];
        args.push(group.dir().display().to_string());
        args.extend(["unshare", "--mount", "--propagation", "private", "--"].map(str::to_owned));
        args.extend(["setsid", "--fork"].map(str::to_owned));
        args.push(state.exe.display().to_string());
        args.extend(["lab", "--dir"].map(str::to_owned));
        args.push(self.dir().display().to_string());
        args.push("san-server".to_owned());
        self.detached(&mut program("sh", &args), &self.path("san.log"))?;
        let started = Instant::now();
        while self.san_status().is_err() {
            if !group.populated() || started.elapsed() > START_LIMIT {
                let said = fs::read_to_string(self.path("san.log")).unwrap_or_default();
                return Err(LabError::failed(
                    format!("the SAN does not start: {}", said.trim()),
                    "it needs /dev/fuse and loop devices: modprobe fuse loop",
                ));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Gives a node its paths, and writes down what its root shows of it.
    pub(crate) fn plug_san(&self, state: &LabState, node: NodeName) -> Result<(), LabError> {
        if state.san.is_none() {
            return Ok(());
        }
        let dir = self.node_san(node);
        fs::create_dir_all(&dir).map_err(LabError::io("make", &dir))?;
        let devices = self.san_attach(node)?;
        let write =
            |path: &Path, text: &str| fs::write(path, text).map_err(LabError::io("write", path));
        for lun in (0..devices.len()).map(lun_name) {
            write(&dir.join(&lun), "")?;
            let wwid = format!("muster-lab-{}-{lun}\n", self.tag());
            write(&dir.join(format!("{lun}.wwid")), &wwid)?;
        }
        write(&self.node_san_device(node), &devices.join("\n"))
    }

    /// Ends the life of a node's paths. Fine where there is no SAN, or where it is dead itself.
    pub(crate) fn unplug_san(&self, node: NodeName) -> Result<(), LabError> {
        if self.san_socket().exists() && self.san_status().is_ok() {
            self.san_detach(node)?;
        }
        Ok(())
    }

    /// Starts the SAN again after its process was killed. Nodes that ran meanwhile keep a dead path
    /// until their next power-on.
    ///
    /// # Errors
    /// The lab has none; it runs.
    pub fn restart_san(&self) -> Result<(), LabError> {
        let _lock = self.lock()?;
        let state = self.up_state()?;
        if state.san.is_none() {
            return Err(no_san());
        }
        if self.san_status().is_ok() {
            return Err(LabError::conflict("the SAN runs", "see it: muster lab san show"));
        }
        self.start_san(&state)
    }

    /// Lets go of all loop devices of this lab, and waits until the kernel has.
    pub(crate) fn sweep_loops(&self) -> Result<(), LabError> {
        let started = Instant::now();
        // Each once: one that is in use goes with its last user, and its number may then be another's.
        for device in Self::loops(&self.loop_prefix()) {
            let _ = run("losetup", ["--detach", &device]);
        }
        while let Some(device) = Self::loops(&self.loop_prefix()).first() {
            if started.elapsed() > LOOP_LIMIT {
                return Err(LabError::failed(
                    format!("{device} is still in use"),
                    "see who has it mounted: grep loop /proc/*/mountinfo; then try again",
                ));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Loop devices over files whose names begin so.
    fn loops(prefix: &str) -> Vec<String> {
        let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
        let ours = entries.filter(|entry| {
            let file = fs::read_to_string(entry.path().join("loop/backing_file"));
            let file = file.unwrap_or_default();
            file.trim().rsplit('/').next().is_some_and(|name| name.starts_with(prefix))
        });
        ours.map(|entry| format!("/dev/{}", entry.file_name().to_string_lossy())).collect()
    }
}

pub(crate) fn no_san() -> LabError {
    LabError::conflict("the lab has no SAN", "make it with one: muster lab up --san 8G")
}
