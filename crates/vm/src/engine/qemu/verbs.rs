//! The verbs of a machine, as QMP commands.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::io::Seek;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::time::Duration;

use async_trait::async_trait;
use model::Bytes;
use model::DiskId;
use model::NicId;
use serde_json::Value;
use serde_json::json;
use tokio::net::UnixStream;

use super::args;
use super::cgroup;
use super::image;
use super::jit;
use super::machine::FDSET_STATE;
use super::machine::QemuMachine;
use super::machine::Save;
use super::migrate;
use super::mirror;
use super::nbd;
use crate::engine::Accel;
use crate::engine::BalloonStats;
use crate::engine::CpuLimits;
use crate::engine::DeviceState;
use crate::engine::DiskBus;
use crate::engine::DiskPlan;
use crate::engine::EngineError;
use crate::engine::Extent;
use crate::engine::ImageSlot;
use crate::engine::Inventory;
use crate::engine::Layout;
use crate::engine::Machine;
use crate::engine::MemoryState;
use crate::engine::MigrateProgress;
use crate::engine::MigrateTuning;
use crate::engine::MirrorPlan;
use crate::engine::MirrorProgress;
use crate::engine::NicPlan;
use crate::engine::Outgoing;
use crate::engine::Profile;
use crate::engine::RunInfo;
use crate::engine::RunState;
use crate::engine::SavePhase;
use crate::engine::SaveProgress;
use crate::engine::Switch;
use crate::engine::VcpuState;
use crate::engine::layout::Place;

/// Streams a state is written in: what two processors can feed.
pub(super) const STATE_CHANNELS: u32 = 2;

/// Largest picture that is taken: 16 MiB of PNG.
const PNG_MAX: u64 = 16 << 20;

/// Set of descriptors used for pictures.
const FDSET_SCREEN: i32 = 901;

/// First set of descriptors for disks that are attached while the machine runs.
const FDSET_DISKS: i32 = 1000;

/// Sets kept for each port: longer than any image chain.
const FDSETS_OF_PORT: i32 = 100;

/// Seconds between two reports of the balloon's driver.
const BALLOON_EVERY: u32 = 5;

fn unsupported(what: &str, why: &str) -> EngineError {
    EngineError::Unsupported { what: what.to_owned(), why: why.to_owned() }
}

/// What is the matter, unless QEMU only says that it is at it already.
fn unless_pending(result: Result<Value, EngineError>) -> Result<(), EngineError> {
    match result {
        Err(EngineError::Command { why, .. }) if why.contains("already in the process") => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Ok(()),
    }
}

/// The same file, opened anew in another mode: QEMU takes a descriptor only if its mode fits.
fn reopen(file: &File, write: bool) -> Result<OwnedFd, EngineError> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let opened = File::options().read(!write).write(write).open(path);
    Ok(opened.map_err(EngineError::io("reopen a file"))?.into())
}

impl QemuMachine {
    fn profile(&self) -> Profile {
        self.shared.lock().record.profile()
    }

    /// Refuses what needs hot-plug where there is none.
    fn hot(&self, what: &str) -> Result<(), EngineError> {
        match self.profile() {
            Profile::Virtio => Ok(()),
            Profile::Legacy => Err(unsupported(what, "the legacy profile needs a stop for it")),
        }
    }

    async fn attach_disk(&self, disk: &DiskPlan, port: u8) -> Result<(), EngineError> {
        let (key, place) = (args::place_key(Place::Port(port)), Place::Port(port));
        let images = image::open_chain(disk)?;
        let files = images.len();
        let mut nodes = Vec::new();
        for (at, image) in images.into_iter().enumerate() {
            let step = i32::try_from(at).unwrap_or(FDSETS_OF_PORT);
            let set = FDSET_DISKS + i32::from(port) * FDSETS_OF_PORT + step;
            nodes.push((at, image.blockdevs(&key, at, at + 1 == files, set)));
            let arguments = json!({ "fdset-id": set, "opaque": key });
            self.shared.run_with_fd("add-fd", arguments, image.fd).await?;
        }
        for (at, pair) in nodes.into_iter().rev() {
            for node in pair {
                let added = self.shared.run("blockdev-add", node).await;
                added.map_err(|error| match error {
                    EngineError::Command { why, .. } => image::explain(&disk.chain[at].path, &why),
                    other => other,
                })?;
            }
        }
        let cpus_max = self.shared.lock().cpus.1;
        let device = args::disk_json(disk, place, false, cpus_max)?;
        // The lock for writing is taken only when the device takes the image.
        match self.shared.run("device_add", device).await {
            Err(EngineError::Command { why, .. }) if why.contains("lock") => {
                Err(image::explain(&disk.chain[0].path, &why))
            }
            other => other.map(drop),
        }
    }

    async fn attach_nic(&self, nic: NicPlan, port: u8) -> Result<(), EngineError> {
        let name = args::netdev(port);
        self.shared.run_with_fd("getfd", json!({ "fdname": name }), nic.tap).await?;
        let netdev = json!({ "type": "tap", "id": name, "fd": name });
        self.shared.run("netdev_add", netdev).await?;
        let device = args::nic_json(nic.id, nic.mac, nic.model, port, false);
        self.shared.run("device_add", device).await?;
        if !nic.link_up {
            self.set_link(nic.id, false).await?;
        }
        Ok(())
    }

    /// Notes that processor `number` is plugged for the first time. QEMU's emulator does not survive
    /// the return of one: it can no longer save its state, and aborts when its translators, one
    /// for each processor ever plugged, are used up.
    fn first_time(&self, number: u32) -> Result<(), EngineError> {
        {
            let mut inner = self.shared.lock();
            let emulated = inner.record.run.accel == Accel::Tcg;
            if emulated && number < inner.record.cpus_peak {
                let why = "under emulation a processor that was taken away comes back only with a \
                           stop and start of the machine";
                return Err(unsupported("the return of a processor", why));
            }
            inner.record.cpus_peak = inner.record.cpus_peak.max(number + 1);
        }
        self.shared.store()
    }

    /// Refuses to add so many processors where that would end an emulated machine (see [`jit`]).
    async fn room_for_processors(&self, more: u32) -> Result<(), EngineError> {
        let (emulated, now, max) = {
            let inner = self.shared.lock();
            (inner.record.run.accel == Accel::Tcg, inner.record.cpus_peak, inner.cpus.1)
        };
        if more == 0 || !emulated {
            return Ok(());
        }
        let told = match self.shared.run("x-query-jit", json!({})).await {
            Ok(told) => told,
            // A command that a later QEMU may do without.
            Err(EngineError::Command { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let text = told["human-readable-text"].as_str().unwrap_or_default();
        if jit::has_room(text, max, now, more) == Some(false) {
            let why = "the emulator's cache of translated code is nearly full, and adding one would \
                       end the machine (a flaw of QEMU without KVM); try it again later, or save \
                       the machine and start it, which empties the cache";
            return Err(unsupported("another processor at this moment", why));
        }
        Ok(())
    }

    async fn qom_size(&self, property: &str) -> Result<u64, EngineError> {
        let arguments = json!({ "path": "/machine/peripheral/vmem0", "property": property });
        let value = self.shared.run("qom-get", arguments).await?;
        value.as_u64().ok_or_else(|| EngineError::Garbage(format!("vmem0 {property}: {value}")))
    }
}

#[async_trait]
impl Machine for QemuMachine {
    async fn query_status(&self) -> Result<RunState, EngineError> {
        let status = self.shared.run("query-status", json!({})).await?;
        Ok(match status["status"].as_str().unwrap_or_default() {
            "running" => RunState::Running,
            "prelaunch" => RunState::Prelaunch,
            "inmigrate" => RunState::Incoming,
            "shutdown" => RunState::ShutDown,
            "postmigrate" | "finish-migrate" | "save-vm" => RunState::Saved,
            "io-error" => RunState::IoError,
            "guest-panicked" => RunState::Panicked,
            "internal-error" => RunState::InternalError,
            _ => RunState::Paused,
        })
    }

    async fn cont(&self) -> Result<(), EngineError> {
        // QEMU would take it for a wish to go on as soon as it can.
        let arrival = self.shared.lock().record.run.arrival.is_some();
        if arrival && self.query_status().await? == RunState::Incoming {
            let why = "it has not got all of its state".to_owned();
            return Err(EngineError::Command { command: "cont".to_owned(), why });
        }
        self.shared.run("cont", json!({})).await.map(drop)
    }

    async fn pause(&self) -> Result<(), EngineError> {
        self.shared.run("stop", json!({})).await.map(drop)
    }

    async fn powerdown(&self) -> Result<(), EngineError> {
        self.shared.run("system_powerdown", json!({})).await.map(drop)
    }

    async fn reset(&self) -> Result<(), EngineError> {
        self.shared.run("system_reset", json!({})).await.map(drop)
    }

    async fn inject_nmi(&self) -> Result<(), EngineError> {
        self.shared.run("inject-nmi", json!({})).await.map(drop)
    }

    async fn kill(&self) -> Result<(), EngineError> {
        self.shared.end().await
    }

    fn run(&self) -> RunInfo {
        self.shared.lock().record.run.clone()
    }

    fn layout(&self) -> Layout {
        self.shared.lock().record.layout.clone()
    }

    async fn inventory(&self) -> Result<Inventory, EngineError> {
        let vcpus = self.shared.run("query-hotpluggable-cpus", json!({})).await?;
        let here = |cpu: &&Value| cpu.get("qom-path").is_some();
        let plugged = vcpus.as_array().map_or(0, |all| all.iter().filter(here).count());
        let inner = self.shared.lock();
        let state = |going: bool| match going {
            true => DeviceState::Unplugging,
            false => DeviceState::Plugged,
        };
        let layout = &inner.record.layout;
        let disks = layout.disks.keys();
        let nics = layout.nics.keys();
        Ok(Inventory {
            disks: disks.map(|id| (*id, state(inner.going_disks.contains(id)))).collect(),
            nics: nics.map(|id| (*id, state(inner.going_nics.contains(id)))).collect(),
            vcpus: VcpuState {
                plugged: u32::try_from(plugged).unwrap_or(inner.cpus.0),
                max: inner.cpus.1,
            },
            cpu_limits: inner.record.cpu_limits,
        })
    }

    async fn save(&self, dst: File) -> Result<(), EngineError> {
        migrate::put_away(&self.shared).await?;
        self.shared.run("stop", json!({})).await?;
        prepare_state(&self.shared).await?;
        let set = json!({ "fdset-id": FDSET_STATE });
        let _ = self.shared.run("remove-fd", set.clone()).await;
        self.shared.run_with_fd("add-fd", set, reopen(&dst, true)?).await?;
        {
            let mut inner = self.shared.lock();
            inner.save = Save::Running;
            inner.migrating = false;
        }
        let uri = json!({ "uri": format!("file:/dev/fdset/{FDSET_STATE}") });
        let begun = self.shared.run("migrate", uri).await.map(drop);
        if let Err(error) = &begun {
            self.shared.lock().save = Save::Failed(error.to_string());
        }
        begun
    }

    async fn save_progress(&self) -> Result<SaveProgress, EngineError> {
        let info = self.shared.run("query-migrate", json!({})).await?;
        let number = |name: &str| Bytes::new(info["ram"][name].as_u64().unwrap_or_default());
        let phase = match self.shared.lock().save.clone() {
            Save::Idle => SavePhase::Idle,
            Save::Running => SavePhase::Running,
            Save::Done => SavePhase::Done,
            Save::Cancelled => SavePhase::Cancelled,
            Save::Failed(why) => SavePhase::Failed(why),
        };
        let total = number("total");
        Ok(SaveProgress { phase, done: total.saturating_sub(number("remaining")), total })
    }

    async fn save_cancel(&self) -> Result<(), EngineError> {
        if self.shared.lock().save != Save::Running {
            return Ok(());
        }
        self.shared.run("migrate_cancel", json!({})).await.map(drop)
    }

    async fn migrate_blockers(&self) -> Result<Vec<String>, EngineError> {
        migrate::blockers(&self.shared).await
    }

    async fn dirty_rate(&self, window: Duration) -> Result<Bytes, EngineError> {
        migrate::dirty_rate(&self.shared, window).await
    }

    async fn migrate(
        &self,
        tuning: MigrateTuning,
        switch: Switch,
    ) -> Result<Outgoing, EngineError> {
        migrate::begin(&self.shared, tuning, switch).await
    }

    async fn migrate_switch(&self) -> Result<(), EngineError> {
        migrate::switch(&self.shared).await
    }

    async fn migrate_tune(&self, tuning: MigrateTuning) -> Result<(), EngineError> {
        migrate::tune(&self.shared, tuning).await
    }

    async fn migrate_progress(&self) -> Result<MigrateProgress, EngineError> {
        migrate::progress(&self.shared).await
    }

    async fn migrate_cancel(&self) -> Result<(), EngineError> {
        if !self.shared.lock().migrating {
            return Ok(());
        }
        migrate::cancel(&self.shared).await
    }

    async fn incoming(&self) -> Result<(), EngineError> {
        migrate::listen(&self.shared).await
    }

    async fn incoming_connect(&self) -> Result<UnixStream, EngineError> {
        migrate::connect(&self.shared, migrate::DOOR).await
    }

    async fn receive(&self, slots: &[ImageSlot]) -> Result<(), EngineError> {
        nbd::receive(&self.shared, slots).await
    }

    async fn receive_connect(&self) -> Result<UnixStream, EngineError> {
        migrate::connect(&self.shared, nbd::DOOR).await
    }

    async fn receive_end(&self) -> Result<(), EngineError> {
        nbd::receive_end(&self.shared).await
    }

    fn loaded_at(&self) -> Option<tokio::time::Instant> {
        self.shared.lock().loaded_at
    }

    async fn announce(&self) -> Result<(), EngineError> {
        migrate::announce(&self.shared).await
    }

    async fn plug_disk(&self, disk: DiskPlan) -> Result<(), EngineError> {
        self.hot("hot-plug of a disk")?;
        if disk.bus == DiskBus::Ide {
            return Err(unsupported("hot-plug of this disk", "IDE and SATA disks need a stop"));
        }
        let port = {
            let mut inner = self.shared.lock();
            if inner.ports.disk(disk.id).is_some() {
                return Err(EngineError::AlreadyPlugged(format!("disk {}", disk.id)));
            }
            let port = inner.ports.add_disk(disk.id)?;
            inner.record.chains.insert(disk.id, disk.chain.len());
            port
        };
        // Written first: a daemon that dies half-way is followed by one that cleans up.
        let done = match self.shared.store() {
            Ok(()) => self.attach_disk(&disk, port).await,
            Err(error) => Err(error),
        };
        if done.is_err() {
            self.shared.drop_disk(disk.id).await;
        }
        done
    }

    async fn unplug_disk(&self, disk: DiskId) -> Result<(), EngineError> {
        self.hot("hot-unplug of a disk")?;
        match self.shared.lock().ports.disk(disk) {
            None => return Err(EngineError::NotPlugged(format!("disk {disk}"))),
            Some(Place::Ide(_)) => {
                return Err(unsupported("hot-unplug of this disk", "SATA disks need a stop"));
            }
            Some(Place::Port(_)) => {}
        }
        let asked = self.shared.run("device_del", json!({ "id": args::disk_device(disk) })).await;
        unless_pending(asked)?;
        let mut inner = self.shared.lock();
        if inner.ports.disk(disk).is_some() {
            inner.going_disks.insert(disk);
        }
        Ok(())
    }

    async fn resize_disk(&self, disk: DiskId, size: Bytes) -> Result<(), EngineError> {
        let place = self.shared.lock().ports.disk(disk);
        let place = place.ok_or_else(|| EngineError::NotPlugged(format!("disk {disk}")))?;
        let node = image::top_node(&self.shared.lock().image_key(place));
        let nodes = self.shared.run("query-named-block-nodes", json!({ "flat": true })).await?;
        let found = nodes.as_array().into_iter().flatten().find(|one| one["node-name"] == *node);
        let now = found.and_then(|one| one["image"]["virtual-size"].as_u64()).unwrap_or(0);
        if size.get() < now || !size.is_multiple_of(512) {
            return Err(EngineError::OutOfRange {
                what: "disk size",
                asked: size.get(),
                low: now,
                high: i64::MAX.unsigned_abs(),
            });
        }
        let arguments = json!({ "node-name": node, "size": size.get() });
        self.shared.run("block_resize", arguments).await.map(drop)
    }

    async fn mirror(&self, plan: MirrorPlan) -> Result<(), EngineError> {
        mirror::begin(&self.shared, plan).await
    }

    async fn send_way(&self, count: usize) -> Result<Outgoing, EngineError> {
        nbd::send_way(&self.shared, count)
    }

    async fn send_disk(&self, slot: ImageSlot, extent: Extent) -> Result<(), EngineError> {
        nbd::send_disk(&self.shared, slot, extent).await
    }

    async fn mirrors(&self) -> Result<BTreeMap<ImageSlot, MirrorProgress>, EngineError> {
        mirror::progress(&self.shared).await
    }

    async fn mirror_tighten(&self) -> Result<(), EngineError> {
        mirror::tighten(&self.shared).await
    }

    async fn mirror_hold(&self) -> Result<(), EngineError> {
        mirror::hold(&self.shared).await
    }

    async fn mirror_pivot(&self) -> Result<(), EngineError> {
        mirror::pivot(&self.shared).await
    }

    async fn mirror_cancel(&self) -> Result<(), EngineError> {
        mirror::cancel(&self.shared).await
    }

    async fn plug_nic(&self, nic: NicPlan) -> Result<(), EngineError> {
        self.hot("hot-plug of an adapter")?;
        let id = nic.id;
        let port = {
            let mut inner = self.shared.lock();
            let port = inner.ports.add_nic(id);
            inner.record.links.insert(id, nic.link_up);
            port?
        };
        let done = match self.shared.store() {
            Ok(()) => self.attach_nic(nic, port).await,
            Err(error) => Err(error),
        };
        if done.is_err() {
            self.shared.drop_nic(id).await;
        }
        done
    }

    async fn unplug_nic(&self, nic: NicId) -> Result<(), EngineError> {
        self.hot("hot-unplug of an adapter")?;
        if self.shared.lock().ports.nic(nic).is_none() {
            return Err(EngineError::NotPlugged(format!("adapter {nic}")));
        }
        let asked = self.shared.run("device_del", json!({ "id": args::nic_device(nic) })).await;
        unless_pending(asked)?;
        let mut inner = self.shared.lock();
        if inner.ports.nic(nic).is_some() {
            inner.going_nics.insert(nic);
        }
        Ok(())
    }

    async fn set_link(&self, nic: NicId, up: bool) -> Result<(), EngineError> {
        if self.shared.lock().ports.nic(nic).is_none() {
            return Err(EngineError::NotPlugged(format!("adapter {nic}")));
        }
        let arguments = json!({ "name": args::nic_device(nic), "up": up });
        self.shared.run("set_link", arguments).await?;
        self.shared.lock().record.links.insert(nic, up);
        self.shared.store()
    }

    async fn set_memory(&self, target: Bytes) -> Result<(), EngineError> {
        let state = self.memory_state().await?;
        let target = state.check_target(target)?;
        let arguments = json!({
            "path": "/machine/peripheral/vmem0", "property": "requested-size",
            "value": target.saturating_sub(state.boot).get(),
        });
        self.shared.run("qom-set", arguments).await.map(drop)
    }

    async fn memory_state(&self) -> Result<MemoryState, EngineError> {
        let (boot, max) = self.shared.lock().record.memory;
        let sum = |more: u64| Bytes::new(boot.saturating_add(more));
        if self.profile() == Profile::Legacy || max <= boot {
            // Asked all the same: the caller learns whether the machine still is.
            self.shared.run("query-status", json!({})).await?;
            let (all, block) = (Bytes::new(boot), Bytes::ZERO);
            return Ok(MemoryState { boot: all, requested: all, present: all, max: all, block });
        }
        Ok(MemoryState {
            boot: Bytes::new(boot),
            requested: sum(self.qom_size("requested-size").await?),
            present: sum(self.qom_size("size").await?),
            max: Bytes::new(max),
            block: args::MEMORY_BLOCK,
        })
    }

    async fn set_vcpus(&self, count: u32) -> Result<(), EngineError> {
        let max = self.shared.lock().cpus.1;
        VcpuState { plugged: 1, max }.check_count(count)?;
        let cpus = self.shared.run("query-hotpluggable-cpus", json!({})).await?;
        let core = |cpu: &Value| cpu["props"]["core-id"].as_u64().unwrap_or_default();
        let all = cpus.as_array().cloned().unwrap_or_default();
        let (mut here, mut free): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|cpu| cpu.get("qom-path").is_some());
        here.sort_by_key(|cpu| std::cmp::Reverse(core(cpu)));
        free.sort_by_key(core);
        let plugged = u32::try_from(here.len()).unwrap_or(max);
        self.room_for_processors(count.saturating_sub(plugged)).await?;
        for cpu in free.iter().take(count.saturating_sub(plugged) as usize) {
            let number = u32::try_from(core(cpu)).unwrap_or_default();
            self.first_time(number)?;
            let device = json!({
                "driver": cpu["type"], "id": args::cpu_device(number),
                "socket-id": cpu["props"]["socket-id"], "core-id": number, "thread-id": 0,
            });
            self.shared.run("device_add", device).await?;
            self.shared.count_processors().await;
        }
        for cpu in here.iter().take(plugged.saturating_sub(count) as usize) {
            let number = u32::try_from(core(cpu)).unwrap_or_default();
            let id = json!({ "id": args::cpu_device(number) });
            unless_pending(self.shared.run("device_del", id).await)?;
        }
        Ok(())
    }

    async fn set_cpu_limits(&self, limits: CpuLimits) -> Result<Vec<String>, EngineError> {
        if self.shared.process.ended() {
            return Err(EngineError::Exited);
        }
        let vm = {
            let mut inner = self.shared.lock();
            inner.record.cpu_limits = limits;
            inner.record.run.vm
        };
        let missing = self.shared.cgroups.set_cpu(vm, limits);
        {
            let told = &mut self.shared.lock().record.run.missing_limits;
            told.retain(|text| !cgroup::about_cpu(text));
            // In the place where the start has them.
            told.splice(0..0, missing.iter().cloned());
        }
        self.shared.store()?;
        Ok(missing)
    }

    async fn balloon(&self, target: Bytes) -> Result<(), EngineError> {
        if !self.shared.lock().record.balloon {
            return Err(unsupported("a balloon", "the machine was started without one"));
        }
        let memory = self.memory_state().await?;
        // QEMU counts from the boot memory and leaves virtio-mem out.
        let taken = memory.present.saturating_sub(target);
        let value = memory.boot.saturating_sub(taken).max(Bytes::mib(1));
        self.shared.run("balloon", json!({ "value": value.get() })).await.map(drop)
    }

    async fn balloon_stats(&self) -> Result<BalloonStats, EngineError> {
        if !self.shared.lock().record.balloon {
            return Err(unsupported("a balloon", "the machine was started without one"));
        }
        let memory = self.memory_state().await?;
        let path = "/machine/peripheral/balloon0";
        let every = json!({
            "path": path, "property": "guest-stats-polling-interval", "value": BALLOON_EVERY,
        });
        self.shared.run("qom-set", every).await?;
        let balloon = self.shared.run("query-balloon", json!({})).await;
        let actual = match balloon {
            Ok(info) => info["actual"].as_u64().unwrap_or_default(),
            // No driver in the guest (yet): it has all.
            Err(EngineError::Command { .. }) => memory.boot.get(),
            Err(error) => return Err(error),
        };
        let stats = json!({ "path": path, "property": "guest-stats" });
        let stats = self.shared.run("qom-get", stats).await?;
        let number = |name: &str| {
            let value = stats["stats"][name].as_u64().filter(|value| *value != u64::MAX);
            value.map(Bytes::new)
        };
        let taken = memory.boot.saturating_sub(Bytes::new(actual));
        Ok(BalloonStats {
            actual: memory.present.saturating_sub(taken),
            free: number("stat-free-memory"),
            available: number("stat-available-memory"),
            total: number("stat-total-memory"),
            updated_s: stats["last-update"].as_u64().filter(|time| *time > 0),
        })
    }

    async fn disk_requests(&self) -> Result<u64, EngineError> {
        let drives = self.shared.run("query-blockstats", json!({})).await?;
        let kinds = ["rd_operations", "wr_operations", "flush_operations", "unmap_operations"];
        let of = |drive: &Value| -> u64 {
            kinds
                .iter()
                .filter_map(|kind| drive["stats"][*kind].as_u64())
                .fold(0, u64::saturating_add)
        };
        Ok(drives.as_array().into_iter().flatten().map(of).fold(0, u64::saturating_add))
    }

    async fn screenshot(&self) -> Result<Vec<u8>, EngineError> {
        let name = c"screen";
        let memory = nix::sys::memfd::memfd_create(name, nix::sys::memfd::MFdFlags::MFD_CLOEXEC)
            .map_err(|error| EngineError::io("make a memory file")(error.into()))?;
        let mut memory = File::from(memory);
        let set = json!({ "fdset-id": FDSET_SCREEN });
        self.shared.run_with_fd("add-fd", set.clone(), reopen(&memory, true)?).await?;
        let picture = json!({ "filename": format!("/dev/fdset/{FDSET_SCREEN}"), "format": "png" });
        let taken = self.shared.run("screendump", picture).await;
        let _ = self.shared.run("remove-fd", set).await;
        taken?;
        let mut png = Vec::new();
        memory
            .rewind()
            .and_then(|()| memory.take(PNG_MAX).read_to_end(&mut png))
            .map_err(EngineError::io("read the picture"))?;
        Ok(png)
    }

    async fn vnc(&self) -> Result<UnixStream, EngineError> {
        let (ours, theirs) = UnixStream::pair().map_err(EngineError::io("make a socket"))?;
        let theirs = theirs.into_std().map_err(EngineError::io("make a socket"))?;
        let name = json!({ "fdname": "vnc" });
        self.shared.run_with_fd("getfd", name, theirs.into()).await?;
        let client = json!({ "protocol": "vnc", "fdname": "vnc", "skipauth": true });
        self.shared.run("add_client", client).await?;
        Ok(ours)
    }

    async fn serial(&self) -> Result<UnixStream, EngineError> {
        if self.shared.process.ended() {
            return Err(EngineError::Exited);
        }
        self.shared.serial.view().map_err(EngineError::io("open the console"))
    }

    fn serial_tail(&self) -> Vec<u8> {
        self.shared.serial.tail()
    }

    async fn agent(&self) -> Result<UnixStream, EngineError> {
        self.shared.agent().await
    }
}

/// Sets how state is written to and read from files: pages at fixed places, several streams.
pub(super) async fn prepare_state(shared: &super::machine::Shared) -> Result<(), EngineError> {
    let set = |name: &str, state: bool| json!({ "capability": name, "state": state });
    // Some are left from a migration that did not come to its end.
    let capabilities = json!({ "capabilities": [
        set("return-path", false), set("auto-converge", false), set("late-block-activate", false),
        set("pause-before-switchover", false),
        set("mapped-ram", true), set("multifd", true), set("events", true),
    ] });
    shared.run("migrate-set-capabilities", capabilities).await?;
    let parameters = json!({ "multifd-channels": STATE_CHANNELS });
    shared.run("migrate-set-parameters", parameters).await.map(drop)
}
