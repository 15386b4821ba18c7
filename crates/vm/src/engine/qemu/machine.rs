//! The handle on one running QEMU, and the task that watches it.
//!
//! The watcher owns the process's end and QEMU's events; the handle's methods run commands. Both
//! share plain data (the record with the ports) under a lock that is held for no longer than it
//! takes to read or change it. Dropping the handle ends the watcher and leaves QEMU running.

use std::collections::BTreeSet;
use std::io;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::Weak;
use std::time::Duration;

use model::Bytes;
use model::DiskId;
use model::NicId;
use serde_json::Value;
use serde_json::json;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::args;
use super::cgroup::Cgroups;
use super::image;
use super::mirror;
use super::process::Process;
use super::process::Watched;
use super::qmp::Qmp;
use super::qmp::QmpError;
use super::qmp::QmpEvent;
use super::record::Record;
use super::record::RunDir;
use super::serial::Serial;
use crate::engine::EngineError;
use crate::engine::MachineEvent;
use crate::engine::Origin;
use crate::engine::event::EventSink;
use crate::engine::layout::Place;
use crate::engine::layout::Ports;
use crate::engine::sending::Cut;

/// Pause between two pings.
const PING_EVERY: Duration = Duration::from_secs(10);

/// A process that closes its control socket is on its way out; it gets this long.
pub(super) const LAST_BREATH: Duration = Duration::from_secs(3);

/// How long a machine may take to end by itself when told to.
const QUIT_LIMIT: Duration = Duration::from_secs(5);

/// How long the kernel may take to remove a killed machine.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// How much of QEMU's last words is told.
const STDERR_MAX: usize = 4096;

/// ACPI's words (_OST) for an answer to an eject request, and for its outcomes.
const OST_EJECT: u64 = 3;
const OST_DONE: u64 = 0;
const OST_IN_PROGRESS: u64 = 0x84;

/// Set of descriptors used for saving and restoring.
pub(super) const FDSET_STATE: i32 = 900;

/// What handle and watcher share.
pub(super) struct Shared {
    pub(super) qmp: Qmp,
    pub(super) dir: RunDir,
    pub(super) cgroups: Cgroups,
    pub(super) process: Process,
    pub(super) serial: Serial,
    pub(super) events: EventSink,
    pub(super) output: std::fs::File,
    pub(super) ping_limit: Duration,
    pub(super) inner: Mutex<Inner>,
}

/// Plain data of a machine.
pub(super) struct Inner {
    pub(super) record: Record,
    pub(super) ports: Ports,
    pub(super) cpus: (u32, u32),
    pub(super) going_disks: BTreeSet<DiskId>,
    pub(super) going_nics: BTreeSet<NicId>,
    pub(super) save: Save,
    /// Whether a live migration was begun, by this or an earlier daemon.
    pub(super) migrating: bool,
    /// Its connections, while there are some.
    pub(super) cut: Weak<Cut>,
    /// Where its copies of disks go out to, in its jail.
    pub(super) disks_way: Option<String>,
    /// When the state of another machine was all there.
    pub(super) loaded_at: Option<tokio::time::Instant>,
    pub(super) agent: Option<std::os::unix::net::UnixStream>,
}

/// Where a save is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Save {
    Idle,
    Running,
    Done,
    Cancelled,
    Failed(String),
}

/// The handle; the watcher ends with it.
pub(super) struct QemuMachine {
    pub(super) shared: Arc<Shared>,
    watcher: tokio::task::AbortHandle,
    watched: Option<Watched>,
}

impl Drop for QemuMachine {
    fn drop(&mut self) {
        self.watcher.abort();
        // If the process has ended and the watcher did not come to it any more.
        drop(self.watched.take());
        self.shared.process.collect();
        self.shared.serial.close();
    }
}

impl QemuMachine {
    /// Starts to watch a machine.
    pub(super) fn watch(shared: Arc<Shared>, events: mpsc::Receiver<QmpEvent>) -> Self {
        let watched = Some(Watched::new(shared.lock().record.run.pid));
        let watcher = tokio::spawn(watch(Arc::clone(&shared), events)).abort_handle();
        Self { shared, watcher, watched }
    }
}

async fn watch(shared: Arc<Shared>, mut events: mpsc::Receiver<QmpEvent>) {
    let mut open = true;
    let mut hung = false;
    let mut ping = tokio::time::interval(PING_EVERY);
    ping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ping.tick().await;
    loop {
        tokio::select! {
            biased;
            event = events.recv(), if open => match event {
                Some(event) => shared.happened(event).await,
                None => open = false,
            },
            () = shared.process.wait() => break,
            _ = ping.tick() => {
                let limit = shared.ping_limit;
                let pong = shared.qmp.run_within("query-status", json!({}), Vec::new(), limit);
                // Waited for beside the process's end, which is told at once.
                let answered = tokio::select! {
                    pong = pong => !matches!(pong, Err(QmpError::Timeout { .. } | QmpError::Closed | QmpError::Garbage(_))),
                    () = shared.process.wait() => break,
                };
                match (hung, answered) {
                    (false, false) => shared.events.emit(MachineEvent::Hung),
                    (true, true) => shared.events.emit(MachineEvent::Responsive),
                    _ => {}
                }
                hung = !answered;
            }
        }
    }
    let mut exit = shared.process.collect();
    exit.stderr = last_words(&shared.output);
    tracing::info!(vm = %shared.lock().record.run.vm, ?exit, "machine process has ended");
    shared.events.emit(MachineEvent::Exited(exit));
}

/// What a process has written to its output and nobody has read yet: the end of it.
pub(super) fn last_words(mut output: &std::fs::File) -> String {
    let mut words = Vec::new();
    let mut chunk = [0; STDERR_MAX];
    while let Ok(count) = output.read(&mut chunk) {
        if count == 0 {
            break;
        }
        words.extend_from_slice(&chunk[..count]);
        let extra = words.len().saturating_sub(STDERR_MAX);
        words.drain(..extra);
    }
    String::from_utf8_lossy(&words).trim().to_owned()
}

impl Inner {
    /// Key of the nodes that a place has now.
    pub(super) fn image_key(&self, place: Place) -> String {
        let place = args::place_key(place);
        mirror::key_of(&place, self.record.side(&place))
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a command; failures of the connection become what they mean for the machine.
    pub(super) async fn run(&self, command: &str, arguments: Value) -> Result<Value, EngineError> {
        let result = self.qmp.run(command, arguments).await;
        self.meaning(command, result).await
    }

    pub(super) async fn run_with_fd(
        &self,
        command: &str,
        arguments: Value,
        fd: OwnedFd,
    ) -> Result<Value, EngineError> {
        let result = self.qmp.run_with_fds(command, arguments, vec![fd]).await;
        self.meaning(command, result).await
    }

    async fn meaning(
        &self,
        command: &str,
        result: Result<Value, QmpError>,
    ) -> Result<Value, EngineError> {
        let error = match result {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        match error {
            QmpError::Refused { command, desc, .. } => {
                Err(EngineError::Command { command, why: desc })
            }
            QmpError::Garbage(what) if !self.process.ended() => Err(EngineError::Garbage(what)),
            QmpError::Closed | QmpError::Timeout { .. } | QmpError::Garbage(_) => {
                let closed = !matches!(error, QmpError::Timeout { .. });
                if closed {
                    let _ = tokio::time::timeout(LAST_BREATH, self.process.wait()).await;
                }
                if self.process.ended() {
                    return Err(EngineError::Exited);
                }
                let limit = match error {
                    QmpError::Timeout { limit, .. } => limit,
                    _ => LAST_BREATH,
                };
                Err(EngineError::Hung { command: command.to_owned(), limit })
            }
        }
    }

    /// Stores the record after a change of the ports.
    pub(super) fn store(&self) -> Result<(), EngineError> {
        let record = {
            let mut inner = self.lock();
            let (boot, most) = inner.record.memory;
            let memory = (Bytes::new(boot), Bytes::new(most));
            inner.record.layout = inner.ports.layout(memory, inner.cpus);
            inner.record.clone()
        };
        self.dir.write(&record)
    }

    /// Takes one event of QEMU's apart.
    async fn happened(&self, event: QmpEvent) {
        if event.lost_before > 0 {
            self.events.emit(MachineEvent::Lagged(event.lost_before));
        }
        let data = &event.data;
        let text = |name: &str| data[name].as_str().unwrap_or_default();
        let origin = match data["guest"].as_bool() {
            Some(true) => Origin::Guest,
            _ => Origin::Host,
        };
        let told = match event.name.as_str() {
            "RESUME" => MachineEvent::Resumed,
            "STOP" => MachineEvent::Stopped,
            "RESET" => MachineEvent::Reset(origin),
            "SHUTDOWN" => MachineEvent::ShutDown(origin),
            "POWERDOWN" => MachineEvent::PowerButton,
            "GUEST_PANICKED" => MachineEvent::Panicked,
            "DEVICE_DELETED" => return self.device_gone(text("device")).await,
            "DEVICE_UNPLUG_GUEST_ERROR" => return self.device_stays(text("device")),
            "ACPI_DEVICE_OST" => return self.processor_answer(&data["info"]).await,
            "MEMORY_DEVICE_SIZE_CHANGE" => {
                let boot = self.lock().record.memory.0;
                let size = data["size"].as_u64().unwrap_or_default();
                MachineEvent::MemoryChanged(Bytes::new(boot.saturating_add(size)))
            }
            "BALLOON_CHANGE" => {
                let actual = data["actual"].as_u64().unwrap_or_default();
                MachineEvent::BalloonChanged(Bytes::new(actual))
            }
            "BLOCK_IO_ERROR" => MachineEvent::DiskError {
                disk: self.disk_of_node(text("node-name")),
                write: text("operation") == "write",
                no_space: data["nospace"] == true,
                stopped: text("action") == "stop",
                reason: text("reason").to_owned(),
            },
            "VSERPORT_CHANGE" if text("id") == "agent0" => {
                MachineEvent::AgentPort(data["open"] == true)
            }
            "BLOCK_JOB_READY"
            | "BLOCK_JOB_PENDING"
            | "BLOCK_JOB_COMPLETED"
            | "BLOCK_JOB_CANCELLED" => MachineEvent::MirrorMoved,
            "MIGRATION" | "MIGRATION_PASS" if self.lock().migrating => MachineEvent::MigrationMoved,
            "MIGRATION" => {
                if text("status") == "completed" {
                    self.note_loaded();
                }
                return self.save_moved(text("status")).await;
            }
            _ => return,
        };
        self.events.emit(told);
    }

    /// A migration that ends while none was begun here is one that has come.
    fn note_loaded(&self) {
        let mut inner = self.lock();
        if inner.record.run.arrival.is_some() && inner.save == Save::Idle {
            inner.loaded_at.get_or_insert_with(tokio::time::Instant::now);
        }
    }

    fn disk_of_node(&self, node: &str) -> Option<DiskId> {
        let inner = self.lock();
        let mut disks = inner.record.chains.keys();
        disks
            .find(|disk| {
                let place = inner.ports.disk(**disk);
                place.is_some_and(|place| image::top_node(&inner.image_key(place)) == node)
            })
            .copied()
    }

    async fn device_gone(&self, device: &str) {
        if let Some(disk) = device.strip_prefix("disk-").and_then(|id| id.parse().ok()) {
            if self.drop_disk(disk).await {
                self.events.emit(MachineEvent::DiskUnplugged(disk));
            }
        } else if let Some(nic) = device.strip_prefix("nic-").and_then(|id| id.parse().ok()) {
            if self.drop_nic(nic).await {
                self.events.emit(MachineEvent::NicUnplugged(nic));
            }
        } else if device.starts_with("cpu-") {
            self.count_processors().await;
        }
    }

    /// The guest's answer to a request to give a processor back. QEMU's own event does not come
    /// for processors of the emulator.
    async fn processor_answer(&self, info: &Value) {
        if info["slot-type"] != "CPU" || info["source"] != OST_EJECT {
            return;
        }
        match info["status"].as_u64() {
            Some(OST_DONE) => self.count_processors().await,
            Some(OST_IN_PROGRESS) => {}
            _ => self.events.emit(MachineEvent::VcpuUnplugRefused),
        }
    }

    /// Counts the plugged processors anew and tells if they have changed.
    pub(super) async fn count_processors(&self) {
        let Ok(cpus) = self.qmp.run("query-hotpluggable-cpus", json!({})).await else { return };
        let here = |cpu: &&Value| cpu.get("qom-path").is_some();
        let plugged = cpus.as_array().map_or(0, |all| all.iter().filter(here).count());
        let Ok(plugged) = u32::try_from(plugged) else { return };
        {
            let mut inner = self.lock();
            if inner.cpus.0 == plugged {
                return;
            }
            inner.cpus.0 = plugged;
        }
        if let Err(error) = self.store() {
            tracing::warn!(%error, "the run record was not updated");
        }
        self.events.emit(MachineEvent::VcpusChanged(plugged));
    }

    fn device_stays(&self, device: &str) {
        if let Some(disk) = device.strip_prefix("disk-").and_then(|id| id.parse().ok()) {
            self.lock().going_disks.remove(&disk);
            self.events.emit(MachineEvent::DiskUnplugRefused(disk));
        } else if let Some(nic) = device.strip_prefix("nic-").and_then(|id| id.parse().ok()) {
            self.lock().going_nics.remove(&nic);
            self.events.emit(MachineEvent::NicUnplugRefused(nic));
        } else if device.starts_with("cpu-") {
            self.events.emit(MachineEvent::VcpuUnplugRefused);
        }
    }

    /// Closes what is behind a disk whose device is gone; false for a disk we do not know.
    pub(super) async fn drop_disk(&self, disk: DiskId) -> bool {
        let (place, key, files) = {
            let inner = self.lock();
            let files = inner.record.chains.get(&disk).copied().unwrap_or(1);
            let Some(place) = inner.ports.disk(disk) else { return false };
            (place, inner.image_key(place), files)
        };
        self.close_images(&key, files).await;
        {
            let mut inner = self.lock();
            inner.record.sides.remove(&args::place_key(place));
            inner.ports.remove_disk(disk);
            inner.record.chains.remove(&disk);
            inner.going_disks.remove(&disk);
        }
        if let Err(error) = self.store() {
            tracing::warn!(%error, "the run record was not updated");
        }
        true
    }

    /// Takes the nodes and descriptors of images down.
    pub(super) async fn close_images(&self, key: &str, files: usize) {
        for node in image::nodes(key, files) {
            // Not there after an attempt that failed half-way: fine.
            let _ = self.qmp.run("blockdev-del", json!({ "node-name": node })).await;
        }
        let sets = self.qmp.run("query-fdsets", json!({})).await.unwrap_or_default();
        for set in sets.as_array().into_iter().flatten() {
            let ours = set["fds"].as_array().into_iter().flatten().any(|fd| fd["opaque"] == key);
            if ours {
                let id = json!({ "fdset-id": set["fdset-id"] });
                let _ = self.qmp.run("remove-fd", id).await;
            }
        }
    }

    pub(super) async fn drop_nic(&self, nic: NicId) -> bool {
        let Some(port) = self.lock().ports.nic(nic) else { return false };
        let _ = self.qmp.run("netdev_del", json!({ "id": args::netdev(port) })).await;
        {
            let mut inner = self.lock();
            inner.ports.remove_nic(nic);
            inner.going_nics.remove(&nic);
            inner.record.links.remove(&nic);
        }
        if let Err(error) = self.store() {
            tracing::warn!(%error, "the run record was not updated");
        }
        true
    }

    /// Follows a save to its end.
    async fn save_moved(&self, status: &str) {
        if self.lock().save != Save::Running {
            return;
        }
        let save = match status {
            "completed" => Save::Done,
            "cancelled" => Save::Cancelled,
            "failed" => {
                let info = self.qmp.run("query-migrate", json!({})).await.unwrap_or_default();
                let why = info["error-desc"].as_str().unwrap_or("QEMU gives no reason");
                Save::Failed(why.to_owned())
            }
            _ => return,
        };
        self.lock().save = save.clone();
        let _ = self.qmp.run("remove-fd", json!({ "fdset-id": FDSET_STATE })).await;
        let told = match save {
            Save::Done => Ok(()),
            Save::Failed(why) => Err(why),
            Save::Cancelled | Save::Idle | Save::Running => Err("cancelled".to_owned()),
        };
        self.events.emit(MachineEvent::SaveEnded(told));
    }

    /// Ends the process, politely first.
    pub(super) async fn end(&self) -> Result<(), EngineError> {
        if !self.process.ended() {
            let polite = async {
                let _ = self.qmp.run_within("quit", json!({}), Vec::new(), QUIT_LIMIT).await;
                self.process.wait().await;
            };
            if tokio::time::timeout(QUIT_LIMIT, polite).await.is_err() {
                self.process.kill();
            }
        }
        match tokio::time::timeout(KILL_LIMIT, self.process.wait()).await {
            Ok(()) => Ok(()),
            Err(_) => {
                let run = self.lock().record.run.clone();
                Err(EngineError::Undead { vm: run.vm, what: format!("process {}", run.pid) })
            }
        }
    }

    /// Connects to the agent's port, taking it from whoever has it.
    pub(super) async fn agent(&self) -> Result<UnixStream, EngineError> {
        if self.process.ended() {
            return Err(EngineError::Exited);
        }
        if let Some(old) = self.lock().agent.take() {
            let _ = old.shutdown(std::net::Shutdown::Both);
        }
        let work = async {
            let stream = self.dir.connect("agent").await?;
            let stream = stream.into_std()?;
            let kept = stream.try_clone()?;
            Ok::<_, io::Error>((UnixStream::from_std(stream)?, kept))
        };
        let (stream, kept) = work.await.map_err(EngineError::io("connect to the agent's port"))?;
        self.lock().agent = Some(kept);
        Ok(stream)
    }
}
