//! One fake machine: what its process would hold, and the handle on it.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use async_trait::async_trait;
use model::Bytes;
use model::DiskId;
use model::NicId;
use serde::Deserialize;
use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::FakeHost;
use super::Fault;
use super::agent;
use super::lock;
use super::migrate;
use super::migrate::Migration;
use super::mirror;
use super::mirror::Mirror;
use super::wire;
use crate::engine::BalloonPlan;
use crate::engine::BalloonStats;
use crate::engine::CpuLimits;
use crate::engine::DeviceState;
use crate::engine::DiskBus;
use crate::engine::DiskPlan;
use crate::engine::EngineError;
use crate::engine::ExitInfo;
use crate::engine::Extent;
use crate::engine::FirmwarePlan;
use crate::engine::ImageSlot;
use crate::engine::Inventory;
use crate::engine::LaunchPlan;
use crate::engine::Layout;
use crate::engine::Machine;
use crate::engine::MachineEvent;
use crate::engine::MemoryState;
use crate::engine::MigratePhase;
use crate::engine::MigrateProgress;
use crate::engine::MigrateTuning;
use crate::engine::MirrorPlan;
use crate::engine::MirrorProgress;
use crate::engine::NicPlan;
use crate::engine::Origin;
use crate::engine::Outgoing;
use crate::engine::Profile;
use crate::engine::RunInfo;
use crate::engine::RunState;
use crate::engine::SavePhase;
use crate::engine::SaveProgress;
use crate::engine::Sending;
use crate::engine::Switch;
use crate::engine::VcpuState;
use crate::engine::event::EventSink;
use crate::engine::layout::Ports;

/// Serial output that is kept.
const SERIAL_KEPT: usize = 64 * 1024;

/// A picture of one black pixel.
const PNG: [u8; 67] = [
    0x89, b'P', b'N', b'G', 0x0d, 0x0a, 0x1a, 0x0a, 0, 0, 0, 0x0d, b'I', b'H', b'D', b'R', 0, 0, 0,
    1, 0, 0, 0, 1, 8, 0, 0, 0, 0, 0x3a, 0x7e, 0x9b, 0x55, 0, 0, 0, 0x0a, b'I', b'D', b'A', b'T',
    0x78, 0x9c, 0x63, 0x60, 0, 0, 0, 2, 0, 1, 0x48, 0xaf, 0xa4, 0x71, 0, 0, 0, 0, b'I', b'E', b'N',
    b'D', 0xae, 0x42, 0x60, 0x82,
];

/// What the fake writes for a saved state.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedDoc {
    pub(super) layout: Layout,
    present: Bytes,
    vcpus: u32,
}

impl SavedDoc {
    pub(super) fn of(vm: &FakeVm) -> Self {
        Self { layout: vm.layout.clone(), present: vm.memory.present, vcpus: vm.vcpus.plugged }
    }
}

/// The "process" of a machine.
pub(super) struct FakeVm {
    pub(super) run: RunInfo,
    pub(super) exit: Option<ExitInfo>,
    profile: Profile,
    pub(super) state: RunState,
    pub(super) migration: Migration,
    loaded_at: Option<tokio::time::Instant>,
    /// Whether its disks are its own: not before a migrated machine goes on.
    holds_disks: bool,
    layout: Layout,
    ports: Ports,
    disks: BTreeMap<DiskId, FakeDisk>,
    firmware: Option<PathBuf>,
    pub(super) mirrors: BTreeMap<ImageSlot, Mirror>,
    /// Where copies of disks to another machine go out.
    pub(super) disks_way: Option<mpsc::Sender<Sending>>,
    /// Disks that another machine writes to.
    pub(super) receiving: BTreeSet<ImageSlot>,
    /// Files of those, held open as by a process: whoever renames them changes nothing.
    pub(super) received: BTreeMap<ImageSlot, std::fs::File>,
    nics: BTreeMap<NicId, FakeNic>,
    vcpus: VcpuState,
    cpu_limits: CpuLimits,
    memory: MemoryState,
    balloon: Option<Bytes>,
    /// Memory that the guest says is free; none where it says nothing.
    free: Option<Bytes>,
    /// Memory that the balloon has taken, which is empty since.
    pub(super) emptied: Bytes,
    save: SaveProgress,
    serial: VecDeque<u8>,
    viewers: Vec<std::os::unix::net::UnixStream>,
    disk_requests: u64,
    events: Option<EventSink>,
}

struct FakeDisk {
    image: Option<PathBuf>,
    read_only: bool,
    unplugging: bool,
    fixed: bool,
}

struct FakeNic {
    link_up: bool,
    unplugging: bool,
    _tap: std::os::fd::OwnedFd,
}

pub(super) fn hung(command: &str) -> EngineError {
    EngineError::Hung { command: command.to_owned(), limit: Duration::from_secs(10) }
}

fn unsupported(what: &str, why: &str) -> EngineError {
    EngineError::Unsupported { what: what.to_owned(), why: why.to_owned() }
}

impl FakeVm {
    pub(super) fn new(
        run: RunInfo,
        plan: LaunchPlan,
        saved: Option<SavedDoc>,
    ) -> Result<Self, EngineError> {
        let LaunchPlan { profile, firmware, disks, nics, layout, memory, cpus, balloon, .. } = plan;
        let cpu_limits = plan.isolation.cpu();
        let incoming = run.arrival.is_some();
        let ports = Ports::place(&layout, profile, &disks, &nics, saved.is_some() || incoming)?;
        let block = match profile {
            Profile::Virtio if memory.max > memory.size => Bytes::mib(2),
            Profile::Virtio | Profile::Legacy => Bytes::ZERO,
        };
        let present = saved.as_ref().map_or(memory.size, |saved| saved.present);
        let plugged = saved.as_ref().map_or(cpus.count, |saved| saved.vcpus);
        let mut vm = Self {
            run,
            exit: None,
            profile,
            state: if incoming { RunState::Incoming } else { RunState::Prelaunch },
            migration: Migration::default(),
            loaded_at: None,
            holds_disks: !incoming,
            layout: ports.layout((memory.size, memory.max), (plugged, cpus.max)),
            ports,
            disks: BTreeMap::new(),
            firmware: match firmware {
                FirmwarePlan::Uefi { vars } => Some(vars),
                FirmwarePlan::Bios => None,
            },
            mirrors: BTreeMap::new(),
            disks_way: None,
            receiving: BTreeSet::new(),
            received: BTreeMap::new(),
            nics: BTreeMap::new(),
            vcpus: VcpuState { plugged, max: cpus.max },
            cpu_limits,
            memory: MemoryState {
                boot: memory.size,
                requested: present,
                present,
                max: memory.max,
                block,
            },
            balloon: (profile == Profile::Virtio && balloon == BalloonPlan::Present)
                .then_some(present),
            free: None,
            emptied: Bytes::ZERO,
            save: SaveProgress { phase: SavePhase::Idle, done: Bytes::ZERO, total: Bytes::ZERO },
            serial: VecDeque::new(),
            viewers: Vec::new(),
            disk_requests: 0,
            events: None,
        };
        for disk in disks {
            vm.insert_disk(disk);
        }
        for nic in nics {
            vm.insert_nic(nic);
        }
        Ok(vm)
    }

    pub(super) fn subscribe(&mut self) -> mpsc::Receiver<MachineEvent> {
        let (sink, rx) = EventSink::new();
        self.events = Some(sink);
        rx
    }

    pub(super) fn emit(&self, event: MachineEvent) {
        if let (None, Some(sink)) = (&self.exit, &self.events) {
            sink.emit(event);
        }
    }

    pub(super) fn exit(&mut self, info: ExitInfo) {
        if self.exit.is_none() {
            self.emit(MachineEvent::Exited(info.clone()));
            self.exit = Some(info);
            self.disks.clear();
            self.mirrors.clear();
            self.receiving.clear();
            self.received.clear();
            self.disks_way = None;
            self.nics.clear();
            self.viewers.clear();
        }
    }

    pub(super) fn work(&mut self) {
        self.disk_requests += 1;
    }

    pub(super) fn shut_down(&mut self, origin: Origin) {
        if self.exit.is_none() && self.state != RunState::ShutDown {
            self.state = RunState::ShutDown;
            self.emit(MachineEvent::ShutDown(origin));
            self.emit(MachineEvent::Stopped);
        }
    }

    pub(super) fn print(&mut self, bytes: &[u8]) {
        self.serial.extend(bytes);
        let extra = self.serial.len().saturating_sub(SERIAL_KEPT);
        self.serial.drain(..extra);
        self.viewers.retain_mut(|viewer| viewer.write_all(bytes).is_ok());
    }

    pub(super) fn writers(&self) -> Vec<PathBuf> {
        if !self.holds_disks {
            return Vec::new();
        }
        let writable = self.disks.iter().filter(|(_, disk)| !disk.read_only);
        writable.filter_map(|(id, _)| self.image(ImageSlot::Disk(*id))).collect()
    }

    /// The top file of something.
    pub(super) fn image(&self, slot: ImageSlot) -> Option<PathBuf> {
        if let Some(file) = self.received.get(&slot) {
            let opened = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
            return std::fs::read_link(opened).ok();
        }
        match slot {
            ImageSlot::Disk(disk) => self.disks.get(&disk)?.image.clone(),
            ImageSlot::Firmware => self.firmware.clone(),
        }
    }

    pub(super) fn set_image(&mut self, slot: ImageSlot, path: PathBuf) {
        self.received.remove(&slot);
        match slot {
            ImageSlot::Disk(disk) => {
                if let Some(disk) = self.disks.get_mut(&disk) {
                    disk.image = Some(path);
                }
            }
            ImageSlot::Firmware => self.firmware = Some(path),
        }
    }

    pub(super) fn present(&self) -> Bytes {
        self.memory.present
    }

    /// Takes over what another machine was. False if it was built in another way.
    pub(super) fn load(&mut self, doc: &SavedDoc) -> bool {
        let alike = doc.layout.disks == self.layout.disks && doc.layout.nics == self.layout.nics;
        if alike && self.exit.is_none() && self.state == RunState::Incoming {
            self.vcpus.plugged = doc.vcpus;
            self.memory.present = doc.present;
            self.state = RunState::Paused;
            self.loaded_at = Some(tokio::time::Instant::now());
            return true;
        }
        false
    }

    /// The guest has freed memory.
    pub(super) fn free(&mut self, free: Bytes) {
        (self.free, self.emptied) = (Some(free), Bytes::ZERO);
    }

    /// What the balloon leaves to the guest.
    pub(super) fn left(&self) -> Option<Bytes> {
        self.balloon
    }

    fn insert_disk(&mut self, disk: DiskPlan) {
        let image = disk.chain.into_iter().next().map(|file| file.path);
        let fixed = disk.bus == DiskBus::Ide;
        let fake = FakeDisk { image, read_only: disk.read_only, unplugging: false, fixed };
        self.disks.insert(disk.id, fake);
    }

    fn insert_nic(&mut self, nic: NicPlan) {
        let fake = FakeNic { link_up: nic.link_up, unplugging: false, _tap: nic.tap };
        self.nics.insert(nic.id, fake);
    }

    fn refresh_layout(&mut self) {
        let memory = (self.memory.boot, self.memory.max);
        self.layout = self.ports.layout(memory, (self.vcpus.plugged, self.vcpus.max));
    }
}

/// Handle on a fake machine.
pub(super) struct FakeMachine {
    host: FakeHost,
    vm: Arc<Mutex<FakeVm>>,
}

impl FakeMachine {
    pub(super) fn new(host: FakeHost, vm: Arc<Mutex<FakeVm>>) -> Self {
        Self { host, vm }
    }

    /// Runs `act` on the machine if its process lives and answers.
    fn with<T>(
        &self,
        command: &str,
        act: impl FnOnce(&mut FakeVm) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let id = lock(&self.vm).run.vm;
        let hangs = self.host.has_fault(id, &Fault::Hang);
        let garbage = self.host.has_fault(id, &Fault::Garbage);
        let mut vm = lock(&self.vm);
        if vm.exit.is_some() {
            return Err(EngineError::Exited);
        }
        if hangs {
            return Err(hung(command));
        }
        if garbage {
            return Err(EngineError::Garbage("expected value at line 1 column 1".to_owned()));
        }
        act(&mut vm)
    }

    fn fault(&self, fault: &Fault) -> bool {
        let id = lock(&self.vm).run.vm;
        self.host.has_fault(id, fault)
    }

    fn plug_fault(&self) -> Result<(), EngineError> {
        let id = lock(&self.vm).run.vm;
        let pick = |fault: &Fault| match fault {
            Fault::PlugFails(why) => Some(why.clone()),
            _ => None,
        };
        match self.host.find_fault(id, pick) {
            Some(why) => Err(EngineError::Command { command: "device_add".to_owned(), why }),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl Machine for FakeMachine {
    async fn query_status(&self) -> Result<RunState, EngineError> {
        self.with("query-status", |vm| Ok(vm.state))
    }

    async fn cont(&self) -> Result<(), EngineError> {
        let lost = |vm: &FakeVm| {
            vm.run.arrival.is_some() && self.host.has_fault(vm.run.vm, &Fault::ImagesLost)
        };
        self.with("cont", |vm| {
            if vm.state != RunState::Running && lost(vm) {
                let why = "its images cannot be opened".to_owned();
                return Err(EngineError::Command { command: "cont".to_owned(), why });
            }
            match vm.state {
                RunState::Running => {}
                RunState::ShutDown => {
                    let why = "the guest has shut down: reset it first".to_owned();
                    return Err(EngineError::Command { command: "cont".to_owned(), why });
                }
                RunState::Incoming => {
                    let why = "it has not got all of its state".to_owned();
                    return Err(EngineError::Command { command: "cont".to_owned(), why });
                }
                _ => {
                    vm.holds_disks = true;
                    vm.state = RunState::Running;
                    vm.emit(MachineEvent::Resumed);
                }
            }
            Ok(())
        })
    }

    async fn pause(&self) -> Result<(), EngineError> {
        self.with("stop", |vm| {
            if vm.state == RunState::Running {
                vm.state = RunState::Paused;
                vm.emit(MachineEvent::Stopped);
            }
            Ok(())
        })
    }

    async fn powerdown(&self) -> Result<(), EngineError> {
        let ignores = self.fault(&Fault::IgnoreShutdown);
        self.with("system_powerdown", |vm| {
            vm.emit(MachineEvent::PowerButton);
            if !ignores && vm.state == RunState::Running {
                vm.shut_down(Origin::Guest);
            }
            Ok(())
        })
    }

    async fn reset(&self) -> Result<(), EngineError> {
        self.with("system_reset", |vm| {
            if vm.state == RunState::ShutDown {
                vm.state = RunState::Paused;
            }
            vm.emit(MachineEvent::Reset(Origin::Host));
            Ok(())
        })
    }

    async fn inject_nmi(&self) -> Result<(), EngineError> {
        self.with("inject-nmi", |_| Ok(()))
    }

    async fn kill(&self) -> Result<(), EngineError> {
        lock(&self.vm).exit(ExitInfo { code: Some(0), ..ExitInfo::default() });
        Ok(())
    }

    fn run(&self) -> RunInfo {
        lock(&self.vm).run.clone()
    }

    fn layout(&self) -> Layout {
        lock(&self.vm).layout.clone()
    }

    async fn inventory(&self) -> Result<Inventory, EngineError> {
        let state = |unplugging: bool| match unplugging {
            true => DeviceState::Unplugging,
            false => DeviceState::Plugged,
        };
        self.with("query-pci", |vm| {
            Ok(Inventory {
                disks: vm.disks.iter().map(|(id, disk)| (*id, state(disk.unplugging))).collect(),
                nics: vm.nics.iter().map(|(id, nic)| (*id, state(nic.unplugging))).collect(),
                vcpus: vm.vcpus,
                cpu_limits: vm.cpu_limits,
            })
        })
    }

    async fn save(&self, mut dst: File) -> Result<(), EngineError> {
        let stalls = self.fault(&Fault::SaveStalls);
        let id = lock(&self.vm).run.vm;
        let fails = self.host.find_fault(id, |fault| match fault {
            Fault::SaveFails(why) => Some(why.clone()),
            _ => None,
        });
        self.with("migrate", |vm| {
            vm.state = RunState::Paused;
            vm.emit(MachineEvent::Stopped);
            vm.save.total = vm.memory.present;
            vm.save.done = Bytes::ZERO;
            if stalls {
                vm.save.phase = SavePhase::Running;
                return Ok(());
            }
            let doc = SavedDoc::of(vm);
            let written = match fails {
                Some(why) => Err(why),
                None => serde_json::to_vec(&doc)
                    .map_err(std::io::Error::from)
                    .and_then(|bytes| dst.write_all(&bytes))
                    .map_err(|error| error.to_string()),
            };
            match &written {
                Ok(()) => {
                    vm.state = RunState::Saved;
                    vm.save.done = vm.save.total;
                    vm.save.phase = SavePhase::Done;
                }
                Err(why) => vm.save.phase = SavePhase::Failed(why.clone()),
            }
            vm.emit(MachineEvent::SaveEnded(written));
            Ok(())
        })
    }

    async fn save_progress(&self) -> Result<SaveProgress, EngineError> {
        self.with("query-migrate", |vm| Ok(vm.save.clone()))
    }

    async fn save_cancel(&self) -> Result<(), EngineError> {
        self.with("migrate_cancel", |vm| {
            if vm.save.phase == SavePhase::Running {
                vm.save.phase = SavePhase::Cancelled;
                vm.emit(MachineEvent::SaveEnded(Err("cancelled".to_owned())));
            }
            Ok(())
        })
    }

    async fn migrate_blockers(&self) -> Result<Vec<String>, EngineError> {
        self.with("query-migrate", |_| Ok(Vec::new()))
    }

    async fn dirty_rate(&self, window: Duration) -> Result<Bytes, EngineError> {
        tokio::time::sleep(window).await;
        let dirties = self.fault(&Fault::MigrateDirties);
        self.with("calc-dirty-rate", |_| Ok(if dirties { Bytes::gib(2) } else { Bytes::ZERO }))
    }

    async fn migrate(
        &self,
        tuning: MigrateTuning,
        switch: Switch,
    ) -> Result<Outgoing, EngineError> {
        self.with("migrate", |vm| migrate::begin(&self.host, &self.vm, vm, (tuning, switch)))
    }

    async fn migrate_switch(&self) -> Result<(), EngineError> {
        self.with("migrate-continue", migrate::switch)
    }

    async fn migrate_tune(&self, tuning: MigrateTuning) -> Result<(), EngineError> {
        self.with("migrate-set-parameters", |vm| {
            vm.migration.tune(tuning);
            Ok(())
        })
    }

    async fn migrate_progress(&self) -> Result<MigrateProgress, EngineError> {
        self.with("query-migrate", |vm| Ok(vm.migration.progress()))
    }

    async fn migrate_cancel(&self) -> Result<(), EngineError> {
        self.with("migrate_cancel", |vm| {
            vm.end_migration(MigratePhase::Cancelled);
            Ok(())
        })
    }

    async fn incoming(&self) -> Result<(), EngineError> {
        self.with("migrate-incoming", |_| Ok(()))
    }

    async fn incoming_connect(&self) -> Result<UnixStream, EngineError> {
        self.with("connect", |vm| migrate::connect(&self.host, &self.vm, vm))
    }

    async fn receive(&self, slots: &[ImageSlot]) -> Result<(), EngineError> {
        self.with("nbd-server-start", |vm| wire::receive(vm, slots))
    }

    async fn receive_connect(&self) -> Result<UnixStream, EngineError> {
        self.with("connect", |vm| wire::connect(&self.vm, vm))
    }

    async fn receive_end(&self) -> Result<(), EngineError> {
        self.with("nbd-server-stop", |vm| {
            vm.receiving.clear();
            Ok(())
        })
    }

    fn loaded_at(&self) -> Option<tokio::time::Instant> {
        lock(&self.vm).loaded_at
    }

    async fn announce(&self) -> Result<(), EngineError> {
        self.with("announce-self", |_| Ok(()))
    }

    async fn plug_disk(&self, disk: DiskPlan) -> Result<(), EngineError> {
        let writers = self.host.writers();
        self.plug_fault()?;
        let host = self.host.clone();
        self.with("device_add", |vm| {
            if vm.profile == Profile::Legacy || disk.bus == DiskBus::Ide {
                return Err(unsupported("hot-plug of this disk", "IDE disks need a stop"));
            }
            if vm.disks.contains_key(&disk.id) {
                return Err(EngineError::AlreadyPlugged(format!("disk {}", disk.id)));
            }
            host.check_disk(&disk, &writers)?;
            vm.ports.add_disk(disk.id)?;
            vm.insert_disk(disk);
            vm.refresh_layout();
            Ok(())
        })
    }

    async fn unplug_disk(&self, disk: DiskId) -> Result<(), EngineError> {
        let (ignores, refuses) =
            (self.fault(&Fault::IgnoreUnplug), self.fault(&Fault::RefuseUnplug));
        self.with("device_del", |vm| {
            let Some(found) = vm.disks.get_mut(&disk) else {
                return Err(EngineError::NotPlugged(format!("disk {disk}")));
            };
            if found.fixed {
                return Err(unsupported("hot-unplug of this disk", "IDE disks need a stop"));
            }
            if refuses {
                vm.emit(MachineEvent::DiskUnplugRefused(disk));
            } else if ignores {
                found.unplugging = true;
            } else {
                vm.disks.remove(&disk);
                vm.ports.remove_disk(disk);
                vm.refresh_layout();
                vm.emit(MachineEvent::DiskUnplugged(disk));
            }
            Ok(())
        })
    }

    async fn resize_disk(&self, disk: DiskId, _size: Bytes) -> Result<(), EngineError> {
        self.with("block_resize", |vm| match vm.disks.contains_key(&disk) {
            true => Ok(()),
            false => Err(EngineError::NotPlugged(format!("disk {disk}"))),
        })
    }

    async fn mirror(&self, plan: MirrorPlan) -> Result<(), EngineError> {
        self.with("blockdev-mirror", |vm| mirror::begin(vm, &plan))
    }

    async fn send_way(&self, count: usize) -> Result<Outgoing, EngineError> {
        self.with("listen", |vm| {
            let (tell, connections) = mpsc::channel(count.max(1));
            vm.disks_way = Some(tell);
            Ok(Outgoing { connections })
        })
    }

    async fn send_disk(&self, slot: ImageSlot, _extent: Extent) -> Result<(), EngineError> {
        self.with("blockdev-mirror", |vm| mirror::begin_out(vm, slot))
    }

    async fn mirrors(&self) -> Result<BTreeMap<ImageSlot, MirrorProgress>, EngineError> {
        self.with("query-block-jobs", |vm| Ok(mirror::progress(&self.host, vm)))
    }

    async fn mirror_tighten(&self) -> Result<(), EngineError> {
        self.with("block-job-change", |vm| {
            mirror::tighten(vm);
            Ok(())
        })
    }

    async fn mirror_hold(&self) -> Result<(), EngineError> {
        self.with("job-complete", |vm| {
            mirror::hold(vm);
            Ok(())
        })
    }

    async fn mirror_pivot(&self) -> Result<(), EngineError> {
        self.with("job-finalize", |vm| mirror::pivot(&self.host, vm))
    }

    async fn mirror_cancel(&self) -> Result<(), EngineError> {
        self.with("job-cancel", |vm| {
            mirror::cancel(vm);
            Ok(())
        })
    }

    async fn plug_nic(&self, nic: NicPlan) -> Result<(), EngineError> {
        self.plug_fault()?;
        self.with("device_add", |vm| {
            if vm.profile == Profile::Legacy {
                return Err(unsupported("hot-plug of an adapter", "the legacy profile has none"));
            }
            if vm.nics.contains_key(&nic.id) {
                return Err(EngineError::AlreadyPlugged(format!("adapter {}", nic.id)));
            }
            vm.ports.add_nic(nic.id)?;
            vm.insert_nic(nic);
            vm.refresh_layout();
            Ok(())
        })
    }

    async fn unplug_nic(&self, nic: NicId) -> Result<(), EngineError> {
        let (ignores, refuses) =
            (self.fault(&Fault::IgnoreUnplug), self.fault(&Fault::RefuseUnplug));
        self.with("device_del", |vm| {
            let Some(found) = vm.nics.get_mut(&nic) else {
                return Err(EngineError::NotPlugged(format!("adapter {nic}")));
            };
            if vm.profile == Profile::Legacy {
                return Err(unsupported("hot-unplug of an adapter", "the legacy profile has none"));
            }
            if refuses {
                vm.emit(MachineEvent::NicUnplugRefused(nic));
            } else if ignores {
                found.unplugging = true;
            } else {
                vm.nics.remove(&nic);
                vm.ports.remove_nic(nic);
                vm.refresh_layout();
                vm.emit(MachineEvent::NicUnplugged(nic));
            }
            Ok(())
        })
    }

    async fn set_link(&self, nic: NicId, up: bool) -> Result<(), EngineError> {
        self.with("set_link", |vm| match vm.nics.get_mut(&nic) {
            Some(found) => {
                found.link_up = up;
                Ok(())
            }
            None => Err(EngineError::NotPlugged(format!("adapter {nic}"))),
        })
    }

    async fn set_memory(&self, target: Bytes) -> Result<(), EngineError> {
        let ignores = self.fault(&Fault::IgnoreMemory);
        self.with("qom-set", |vm| {
            let target = vm.memory.check_target(target)?;
            vm.memory.requested = target;
            if !ignores && vm.memory.present != target {
                vm.memory.present = target;
                vm.emit(MachineEvent::MemoryChanged(target));
            }
            Ok(())
        })
    }

    async fn memory_state(&self) -> Result<MemoryState, EngineError> {
        self.with("qom-get", |vm| Ok(vm.memory))
    }

    async fn set_vcpus(&self, count: u32) -> Result<(), EngineError> {
        let (ignores, refuses) =
            (self.fault(&Fault::IgnoreUnplug), self.fault(&Fault::RefuseUnplug));
        self.with("query-hotpluggable-cpus", |vm| {
            vm.vcpus.check_count(count)?;
            if count < vm.vcpus.plugged && refuses {
                vm.emit(MachineEvent::VcpuUnplugRefused);
                return Ok(());
            }
            if count < vm.vcpus.plugged && ignores {
                return Ok(());
            }
            if vm.vcpus.plugged != count {
                vm.vcpus.plugged = count;
                vm.refresh_layout();
                vm.emit(MachineEvent::VcpusChanged(count));
            }
            Ok(())
        })
    }

    async fn set_cpu_limits(&self, limits: CpuLimits) -> Result<Vec<String>, EngineError> {
        self.with("cgroup", |vm| {
            vm.cpu_limits = limits;
            Ok(Vec::new())
        })
    }

    async fn balloon(&self, target: Bytes) -> Result<(), EngineError> {
        self.with("balloon", |vm| {
            let present = vm.memory.present;
            let Some(balloon) = &mut vm.balloon else {
                return Err(unsupported("a balloon", "the machine has no balloon device"));
            };
            *balloon = target.min(present);
            let left = *balloon;
            vm.emptied = vm.emptied.max(present.saturating_sub(left));
            vm.emit(MachineEvent::BalloonChanged(left));
            Ok(())
        })
    }

    async fn balloon_stats(&self) -> Result<BalloonStats, EngineError> {
        self.with("query-balloon", |vm| match vm.balloon {
            Some(actual) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let updated_s = vm.free.map(|_| now.as_secs());
                Ok(BalloonStats { actual, free: vm.free, updated_s, ..BalloonStats::default() })
            }
            None => Err(unsupported("a balloon", "the machine has no balloon device")),
        })
    }

    async fn screenshot(&self) -> Result<Vec<u8>, EngineError> {
        self.with("screendump", |_| Ok(PNG.to_vec()))
    }

    async fn disk_requests(&self) -> Result<u64, EngineError> {
        self.with("query-blockstats", |vm| Ok(vm.disk_requests))
    }

    async fn vnc(&self) -> Result<UnixStream, EngineError> {
        let (ours, mut theirs) = UnixStream::pair().map_err(EngineError::io("make a socket"))?;
        self.with("add_client", |_| Ok(()))?;
        // Says who it is and waits for the viewer to go away.
        tokio::spawn(async move {
            if theirs.write_all(b"RFB 003.008\n").await.is_ok() {
                let _ = tokio::io::copy(&mut theirs, &mut tokio::io::sink()).await;
            }
        });
        Ok(ours)
    }

    async fn serial(&self) -> Result<UnixStream, EngineError> {
        let make = || -> std::io::Result<(UnixStream, std::os::unix::net::UnixStream)> {
            let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
            ours.set_nonblocking(true)?;
            theirs.set_nonblocking(true)?;
            Ok((UnixStream::from_std(ours)?, theirs))
        };
        self.with("serial", |vm| {
            let (ours, mut theirs) = make().map_err(EngineError::io("make a socket"))?;
            let (head, tail) = vm.serial.as_slices();
            let kept = theirs.write_all(head).and_then(|()| theirs.write_all(tail));
            if kept.is_ok() {
                vm.viewers.push(theirs);
            }
            Ok(ours)
        })
    }

    fn serial_tail(&self) -> Vec<u8> {
        lock(&self.vm).serial.iter().copied().collect()
    }

    async fn agent(&self) -> Result<UnixStream, EngineError> {
        let (ours, theirs) = UnixStream::pair().map_err(EngineError::io("make a socket"))?;
        let (host, id) = (self.host.clone(), lock(&self.vm).run.vm);
        self.with("agent", |_| Ok(()))?;
        tokio::spawn(async move {
            let silent = || host.has_fault(id, &Fault::AgentSilent);
            let _ = agent::answer(theirs, silent).await;
        });
        Ok(ours)
    }
}
