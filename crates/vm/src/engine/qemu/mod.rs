//! The QEMU engine: one jailed `qemu-system-x86_64` for each machine, spoken to over QMP.
//!
//! ```text
//!   launch:  leftovers reaped -> images, sockets opened -> record "starting" -> control group
//!            -> jail::spawn -> record with process id -> QMP -> cables, saved state -> handle
//!   adopt:   record -> same boot? -> same process (id and start time, held by a pidfd)? -> QMP
//!            -> devices that were half attached are taken down -> handle
//!   reap:    control group killed -> run directory removed
//! ```
//!
//! Trust boundaries: QEMU's answers and output (see [`qmp`]), image files (QEMU reads them in the
//! jail; we only open them), the serial console and the agent's port (bytes for others).

mod ability;
mod args;
mod cgroup;
mod cpus;
mod image;
pub mod jail;
mod jit;
mod launch;
mod machine;
mod migrate;
mod mirror;
mod nbd;
mod process;
mod qmp;
mod record;
mod serial;
mod verbs;

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use model::VmId;
use serde_json::Value;
use serde_json::json;
use tokio::sync::OnceCell;

use super::Ability;
use super::Adopted;
use super::Engine;
use super::EngineError;
use super::ExitInfo;
use super::GoneReason;
use super::LaunchPlan;
use super::Launched;
use super::Stray;
use super::event::EventSink;
use super::layout::Ports;
use cgroup::Cgroups;
use machine::Inner;
use machine::LAST_BREATH;
use machine::QemuMachine;
use machine::Save;
use machine::Shared;
use process::Process;
use qmp::Qmp;
use record::Record;
use record::RunDir;
use serial::Serial;

/// First uid of machines when none is configured: far above people and services, below 2^31.
pub const UID_BASE: u32 = 2_000_000_000;

/// How long a new QEMU may take until it speaks; on a busy host that starts fifty, seconds.
const GREETING_LIMIT: Duration = Duration::from_secs(60);

/// How long an adopted QEMU may take until it speaks.
const ADOPT_LIMIT: Duration = Duration::from_secs(5);

/// How long a ping may stay unanswered.
const PING_LIMIT: Duration = Duration::from_secs(5);

/// How long the kernel may take to remove a killed process.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// Configuration of the engine.
#[derive(Debug, Clone)]
pub struct QemuConfig {
    /// Directory for run directories; on a file system in memory. Absolute.
    pub run_dir: PathBuf,
    /// Short word that tells this instance from others on the same host.
    pub tag: String,
    /// The emulator.
    pub program: PathBuf,
    /// What starts it in its jail.
    pub launcher: jail::Launcher,
    /// First uid of machines; [`super::IsolationPlan::slot`] is added.
    pub uid_base: u32,
    /// Control group below which ours is made, one that was delegated to us; where relative, a path
    /// from the v2 mount. The top of the mount by default.
    pub cgroup_parent: Option<PathBuf>,
    /// How long a ping may stay unanswered before [`super::MachineEvent::Hung`].
    pub ping_limit: Duration,
    /// What guests get at most.
    pub offer: Offer,
}

/// What guests on a host get at most: less than it could give, so that they can go to others.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Offer {
    /// A model of QEMU's, such as `Haswell-v4`; `max` is everything. By default everything under KVM
    /// and the least model under emulation, where more features cost speed instead of gaining it.
    pub cpu: Option<String>,
    /// The newest version of machine types; by default the newest that QEMU knows.
    pub machine: Option<(u32, u32)>,
}

impl QemuConfig {
    /// The usual configuration.
    pub fn new(run_dir: PathBuf, tag: &str, launcher: jail::Launcher) -> Self {
        Self {
            run_dir,
            tag: tag.to_owned(),
            program: "/usr/bin/qemu-system-x86_64".into(),
            launcher,
            uid_base: UID_BASE,
            cgroup_parent: None,
            ping_limit: PING_LIMIT,
            offer: Offer::default(),
        }
    }
}

/// Engine that runs machines in QEMU processes of this host.
pub struct QemuEngine {
    config: QemuConfig,
    cgroups: Cgroups,
    ability: OnceCell<Ability>,
}

/// The control group above the groups of all machines of the instance `tag`, below `parent` or at
/// the top of the v2 mount: what stops there stops all of them. It need not be there.
///
/// # Errors
/// [`EngineError::Missing`] without a cgroup v2 mount.
pub fn machines_group(parent: Option<&Path>, tag: &str) -> Result<PathBuf, EngineError> {
    Ok(Cgroups::locate(parent, tag)?.base().to_owned())
}

impl QemuEngine {
    /// An engine; starts nothing yet.
    ///
    /// # Errors
    /// [`EngineError::NotRoot`]; [`EngineError::Missing`] without a cgroup v2 mount or without the
    /// configured control group.
    pub fn new(config: QemuConfig) -> Result<Self, EngineError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(EngineError::NotRoot);
        }
        let cgroups = Cgroups::find(config.cgroup_parent.as_deref(), &config.tag)?;
        Ok(Self { config, cgroups, ability: OnceCell::new() })
    }

    fn dir(&self, vm: VmId) -> RunDir {
        RunDir::of(&self.config.run_dir, vm)
    }

    /// Connects to a QEMU that runs and makes the handle on it.
    async fn attach(
        &self,
        dir: RunDir,
        record: Record,
        process: Process,
        output: std::fs::File,
        limit: Duration,
    ) -> Result<Attached, EngineError> {
        let hung = |command: &str| EngineError::Hung { command: command.to_owned(), limit };
        let connect = async {
            let stream = dir.connect("qmp").await.map_err(EngineError::io("connect to QEMU"))?;
            match Qmp::start(stream, limit).await {
                Ok(started) => Ok(started),
                Err(qmp::QmpError::Garbage(what)) => Err(EngineError::Garbage(what)),
                Err(error) => {
                    if error == qmp::QmpError::Closed {
                        // On its way out, most likely: its end says more.
                        tokio::time::sleep(LAST_BREATH).await;
                    }
                    Err(hung("greeting"))
                }
            }
        };
        let connected = tokio::select! {
            biased;
            () = process.wait() => Err(EngineError::Exited),
            connected = connect => connected,
        };
        let (qmp, qmp_events) = connected?;
        let serial = dir.connect("serial").await.map_err(EngineError::io("connect to QEMU"))?;
        let (sink, events) = EventSink::new();
        let ports = Ports::of_running(&record.layout, record.profile());
        let cpus = record.layout.cpus.unwrap_or((1, 1));
        let shared = Arc::new(Shared {
            qmp,
            dir,
            cgroups: self.cgroups.clone(),
            process,
            serial: Serial::start(serial),
            events: sink,
            output,
            ping_limit: self.config.ping_limit,
            inner: Mutex::new(Inner {
                record,
                ports,
                cpus,
                going_disks: std::collections::BTreeSet::new(),
                going_nics: std::collections::BTreeSet::new(),
                save: Save::Idle,
                migrating: false,
                cut: std::sync::Weak::new(),
                disks_way: None,
                loaded_at: None,
                agent: None,
            }),
        });
        Ok((shared, qmp_events, events))
    }

    fn launched(
        shared: Arc<Shared>,
        qmp_events: tokio::sync::mpsc::Receiver<qmp::QmpEvent>,
        events: Events,
    ) -> Launched {
        let run = shared.lock().record.run.clone();
        let machine = Arc::new(QemuMachine::watch(shared, qmp_events));
        Launched { machine, events, run }
    }
}

/// A machine that was connected to: what is shared, QEMU's events, the owner's events.
type Attached = (Arc<Shared>, tokio::sync::mpsc::Receiver<qmp::QmpEvent>, Events);

type Events = tokio::sync::mpsc::Receiver<super::MachineEvent>;

#[async_trait]
impl Engine for QemuEngine {
    async fn ability(&self) -> Result<Ability, EngineError> {
        let missing = self.cgroups.missing();
        let find = || ability::find(&self.config, missing);
        self.ability.get_or_try_init(find).await.cloned()
    }

    async fn launch(&self, plan: LaunchPlan) -> Result<Launched, EngineError> {
        let vm = plan.vm;
        if self.alive(vm) {
            return Err(EngineError::AlreadyRunning(vm));
        }
        self.reap(vm).await?;
        let result = self.start(plan).await;
        if result.is_err()
            && let Err(error) = self.reap(vm).await
        {
            tracing::warn!(%vm, %error, "a start that failed has left something");
        }
        result
    }

    async fn adopt(&self, vm: VmId) -> Result<Adopted, EngineError> {
        let dir = self.dir(vm);
        let Some(record) = dir.read() else {
            let gone = match dir.exists() || self.cgroups.of(vm).exists() {
                true => GoneReason::LaunchInterrupted,
                false => GoneReason::NoTrace,
            };
            return Ok(Adopted::Gone(gone));
        };
        let boot_id = process::boot_id().map_err(EngineError::io("read the boot id"))?;
        if record.boot_id != boot_id {
            return Ok(Adopted::Gone(GoneReason::HostRebooted));
        }
        let Some(ticks) = record.ticks else {
            return Ok(Adopted::Gone(GoneReason::LaunchInterrupted));
        };
        let process = Process::open(record.run.pid, ticks).map_err(EngineError::io("open QEMU"))?;
        let output = dir.open_output().map_err(EngineError::io("open QEMU's output"))?;
        let Some(process) = process else {
            let stderr = machine::last_words(&output);
            return Ok(Adopted::Gone(GoneReason::Ended(ExitInfo {
                stderr,
                ..ExitInfo::default()
            })));
        };
        let attached = self.attach(dir, record, process, output, ADOPT_LIMIT).await;
        match attached {
            Ok((shared, qmp_events, events)) => {
                prune(&shared).await?;
                Ok(Adopted::Running(Self::launched(shared, qmp_events, events)))
            }
            Err(EngineError::Exited) => Ok(Adopted::Gone(GoneReason::Ended(ExitInfo::default()))),
            Err(error) => Err(error),
        }
    }

    async fn strays(&self) -> Result<Vec<Stray>, EngineError> {
        let dirs = RunDir::machines(&self.config.run_dir)
            .map_err(EngineError::io("read the run directory"))?;
        let groups = self.cgroups.machines().map_err(EngineError::io("read the control groups"))?;
        let all: std::collections::BTreeSet<VmId> = dirs.iter().chain(&groups).copied().collect();
        let stray = |vm: &VmId| {
            let mut traces = Vec::new();
            if dirs.contains(vm) {
                traces.push("run directory".to_owned());
            }
            if groups.contains(vm) {
                traces.push("control group".to_owned());
            }
            let record = self.dir(*vm).read();
            let alive = self.alive(*vm);
            if let Some(record) = record.as_ref().filter(|_| alive) {
                traces.push(format!("process {}", record.run.pid));
            }
            let generation = record.map(|record| record.run.generation);
            Stray { vm: *vm, alive, generation, traces }
        };
        Ok(all.iter().map(stray).collect())
    }

    async fn reap(&self, vm: VmId) -> Result<(), EngineError> {
        let dir = self.dir(vm);
        let record = dir.read();
        self.cgroups.kill(vm).await?;
        if let Some(record) = record.filter(|record| record.ticks.is_some())
            && process::boot_id().is_ok_and(|boot| boot == record.boot_id)
        {
            let ticks = record.ticks.unwrap_or_default();
            if let Ok(Some(process)) = Process::open(record.run.pid, ticks) {
                // Outside of its group, which we never see; killed all the same.
                process.kill();
                let _ = tokio::time::timeout(KILL_LIMIT, process.wait()).await;
            }
            process::collect_unwatched(record.run.pid);
        }
        dir.remove()?;
        self.cgroups.tidy();
        Ok(())
    }
}

impl QemuEngine {
    /// Whether a process of that machine lives.
    fn alive(&self, vm: VmId) -> bool {
        if self.cgroups.populated(vm) {
            return true;
        }
        let Some(record) = self.dir(vm).read() else { return false };
        let same_boot = process::boot_id().is_ok_and(|boot| boot == record.boot_id);
        same_boot && record.ticks.is_some() && process::start_ticks(record.run.pid) == record.ticks
    }
}

/// After adoption: takes down what was attached or removed only half when the last daemon died.
async fn prune(shared: &Shared) -> Result<(), EngineError> {
    let arguments = json!({ "path": "/machine/peripheral" });
    let devices = shared.run("qom-list", arguments).await?;
    let names: Vec<&str> = devices
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|device| device["name"].as_str())
        .collect();
    let (disks, nics): (Vec<_>, Vec<_>) = {
        let inner = shared.lock();
        let layout = &inner.record.layout;
        let gone_disk = |id: &&model::DiskId| !names.contains(&args::disk_device(**id).as_str());
        let gone_nic = |id: &&model::NicId| !names.contains(&args::nic_device(**id).as_str());
        (
            layout.disks.keys().filter(gone_disk).copied().collect(),
            layout.nics.keys().filter(gone_nic).copied().collect(),
        )
    };
    mirror::prune(shared).await?;
    for disk in disks {
        shared.drop_disk(disk).await;
    }
    for nic in nics {
        shared.drop_nic(nic).await;
    }
    let cpus = shared.run("query-hotpluggable-cpus", json!({})).await?;
    let here = |cpu: &&Value| cpu.get("qom-path").is_some();
    let plugged = cpus.as_array().map_or(1, |all| all.iter().filter(here).count());
    shared.lock().cpus.0 = u32::try_from(plugged).unwrap_or(1);
    let status = shared.run("query-migrate", json!({})).await?;
    // A migration's connections have ended with the daemon that carried them, and so will it.
    let capabilities = shared.run("query-migrate-capabilities", json!({})).await?;
    let to_file = |one: &Value| one["capability"] == "mapped-ram" && one["state"] == true;
    if !capabilities.as_array().is_some_and(|all| all.iter().any(to_file)) {
        shared.lock().migrating = status["status"].is_string();
        return shared.store();
    }
    shared.lock().save = match status["status"].as_str() {
        Some("setup" | "active" | "device" | "cancelling") => Save::Running,
        Some("completed") if status["ram"].is_object() => Save::Done,
        Some("failed") => Save::Failed("it failed while no daemon watched".to_owned()),
        _ => Save::Idle,
    };
    shared.store()
}
