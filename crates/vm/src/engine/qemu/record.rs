//! The run directory of a machine, and the record in it.
//!
//! ```text
//!   <run>/vms/<id>/        0700
//!     record.json          what was started; "starting" until the process id is known
//!     qmp agent serial     listening sockets, made by us, handed to QEMU as descriptors
//!     output               FIFO: QEMU's standard output and error (64 KiB at most, by nature)
//! ```
//!
//! The record is written before the process is started and again after, each time to a new file
//! that is renamed over the old one: a reader sees one or the other. It lives in memory (tmpfs),
//! as the process does, so nothing needs to be durable.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;

use model::DiskId;
use model::NicId;
use model::VmId;
use serde::Deserialize;
use serde::Serialize;

use crate::engine::CpuLimits;
use crate::engine::EngineError;
use crate::engine::Layout;
use crate::engine::MemoryPlan;
use crate::engine::Profile;
use crate::engine::RunInfo;

/// Version of the record's format. 1: the first.
const VERSION: u32 = 1;

/// What is written about a machine that was started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    version: u32,
    /// Boot of the host in which it was started.
    pub(super) boot_id: String,
    /// Start time of the process, in clock ticks; `None` while it is being started.
    pub(super) ticks: Option<u64>,
    /// Facts about the run; the process id is 0 while it is being started.
    pub(super) run: RunInfo,
    /// Profile.
    pub(super) legacy: bool,
    /// Addresses of devices.
    pub(super) layout: Layout,
    /// Memory at boot and at most.
    pub(super) memory: (u64, u64),
    /// Whether there is a balloon.
    pub(super) balloon: bool,
    /// Length of each disk's image chain, to take its nodes down again.
    pub(super) chains: BTreeMap<DiskId, usize>,
    /// How often the images of each place have moved to other files, where they have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) sides: BTreeMap<String, u32>,
    /// The top file that the images of a place were copied to last.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) targets: BTreeMap<String, PathBuf>,
    /// Most processors that were plugged at one time in this process.
    #[serde(default)]
    pub(super) cpus_peak: u32,
    /// Share and cap of processor time, as they were asked for last.
    #[serde(default)]
    pub(super) cpu_limits: CpuLimits,
    /// Cables.
    pub(super) links: BTreeMap<NicId, bool>,
}

impl Record {
    pub(super) fn new(run: RunInfo, boot_id: String, profile: Profile, plan: MemoryPlan) -> Self {
        Self {
            version: VERSION,
            boot_id,
            ticks: None,
            run,
            legacy: profile == Profile::Legacy,
            layout: Layout::default(),
            memory: (plan.size.get(), plan.max.get()),
            balloon: false,
            chains: BTreeMap::new(),
            sides: BTreeMap::new(),
            targets: BTreeMap::new(),
            cpus_peak: 0,
            cpu_limits: CpuLimits::default(),
            links: BTreeMap::new(),
        }
    }

    /// Which of a place's sides is the machine's.
    pub(super) fn side(&self, place: &str) -> u32 {
        self.sides.get(place).copied().unwrap_or_default()
    }

    pub(super) fn profile(&self) -> Profile {
        if self.legacy { Profile::Legacy } else { Profile::Virtio }
    }
}

/// The run directory of one machine.
#[derive(Debug, Clone)]
pub(super) struct RunDir {
    path: PathBuf,
}

impl RunDir {
    pub(super) fn of(base: &Path, vm: VmId) -> Self {
        Self { path: base.join("vms").join(vm.to_string()) }
    }

    /// Machines that have a run directory.
    pub(super) fn machines(base: &Path) -> io::Result<Vec<VmId>> {
        let entries = match fs::read_dir(base.join("vms")) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let id = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
        Ok(entries.filter_map(id).collect())
    }

    pub(super) fn exists(&self) -> bool {
        self.path.exists()
    }

    pub(super) fn make(&self) -> Result<(), EngineError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.path)
            .map_err(EngineError::io(format!("make {}", self.path.display())))
    }

    pub(super) fn remove(&self) -> Result<(), EngineError> {
        match fs::remove_dir_all(&self.path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(EngineError::io(format!("remove {}", self.path.display()))(error)),
        }
    }

    /// Replaces the record.
    pub(super) fn write(&self, record: &Record) -> Result<(), EngineError> {
        let work = || -> io::Result<()> {
            let text = serde_json::to_vec(record)?;
            let new = self.path.join("record.new");
            fs::write(&new, text)?;
            fs::rename(new, self.path.join("record.json"))
        };
        work().map_err(EngineError::io(format!("write the record in {}", self.path.display())))
    }

    /// The record, or `None` where there is none that can be read (also: of another version).
    pub(super) fn read(&self) -> Option<Record> {
        let text = fs::read(self.path.join("record.json")).ok()?;
        let record: Record = serde_json::from_slice(&text).ok()?;
        (record.version == VERSION).then_some(record)
    }

    /// A listening socket of that name. Names in the run directory may be longer than a socket
    /// address: it is reached through its directory's descriptor.
    pub(super) fn listen(&self, name: &str) -> Result<OwnedFd, EngineError> {
        let work = || -> io::Result<OwnedFd> {
            let _ = fs::remove_file(self.path.join(name));
            let dir = fs::File::open(&self.path)?;
            let path = format!("/proc/self/fd/{}/{name}", dir.as_raw_fd());
            Ok(std::os::unix::net::UnixListener::bind(path)?.into())
        };
        work().map_err(EngineError::io(format!("make socket {name} in {}", self.path.display())))
    }

    /// Connects to the socket of that name.
    pub(super) async fn connect(&self, name: &str) -> io::Result<tokio::net::UnixStream> {
        let dir = fs::File::open(&self.path)?;
        let path = format!("/proc/self/fd/{}/{name}", dir.as_raw_fd());
        tokio::net::UnixStream::connect(path).await
    }

    /// Both ends of QEMU's output: ours, and the one to hand over. Neither ever blocks.
    pub(super) fn output(&self) -> Result<(fs::File, OwnedFd), EngineError> {
        let path = self.path.join("output");
        let work = || -> io::Result<(fs::File, OwnedFd)> {
            let _ = fs::remove_file(&path);
            nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600))?;
            Ok((self.open_output()?, self.open_output()?.into()))
        };
        work().map_err(EngineError::io(format!("make {}", path.display())))
    }

    /// Our end of QEMU's output, for a machine that runs already.
    pub(super) fn open_output(&self) -> io::Result<fs::File> {
        // Opened for both directions: no wait for a peer, and no end when the peer goes.
        fs::File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(self.path.join("output"))
    }
}
