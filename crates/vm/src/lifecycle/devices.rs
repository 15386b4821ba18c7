//! Changes of a VM's hardware, running or not.
//!
//! A device is made, then plugged, and only then part of the configuration; it leaves the
//! configuration only when the guest has let it go.

use std::time::Duration;

use model::Bytes;
use model::CpuSpec;
use model::DiskId;
use model::DiskSource;
use model::DiskSpec;
use model::NicChange;
use model::NicId;
use model::NicSpec;
use model::OpOutcome;
use model::VmChange;
use model::VmRecord;
use tokio::time::Instant;

use crate::engine::CpuLimits;
use crate::engine::EngineError;
use crate::engine::MachineEvent;
use crate::guest::PartKind;
use crate::lifecycle::driver::Driver;
use crate::lifecycle::ops::Step;
use crate::lifecycle::ops::Stop;
use crate::lifecycle::ops::Task;
use crate::lifecycle::ops::failed;
use crate::lifecycle::ops::file;
use crate::lifecycle::ops::race;
use crate::lifecycle::plan;
use crate::wait::on_disk;

/// How often the guest's part of a change is looked at when no event tells.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How long before an operation's deadline it gives up by itself, so that undoing has time.
pub(crate) const SPARE: Duration = Duration::from_secs(2);

impl Driver {
    /// Makes a disk's file, unless an earlier daemon has.
    pub(crate) async fn make_disk_file(&mut self, task: &Task<'_>, disk: &DiskSpec) -> Step<()> {
        let path = self.files.disk(disk);
        if path.exists() {
            return Ok(());
        }
        let host = self.host.clone();
        let making = async {
            match disk.source {
                DiskSource::Blank => host.disks.create_blank(&path, disk.size, disk.format).await,
                DiskSource::Image { image } => {
                    let base = (host.image_path)(image);
                    host.disks.create_overlay(&base, &path, disk.size).await
                }
            }
        };
        race(&mut self.wanted, task, making).await??;
        Ok(())
    }

    pub(crate) async fn add_disk(
        &mut self,
        record: &VmRecord,
        task: &Task<'_>,
        disk: &DiskSpec,
    ) -> Step<OpOutcome> {
        self.files.make().map_err(file("its directory cannot be made"))?;
        self.progress(task, "making the disk", 0, 0);
        self.make_disk_file(task, disk).await?;
        if self.run.is_some() {
            let plan = plan::disk(record, &self.files, &*self.host.image_path, disk, None);
            match self.machine()?.plug_disk(plan).await {
                // An earlier daemon got this far.
                Ok(()) | Err(EngineError::AlreadyPlugged(_)) => self.keep_layout().await?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(OpOutcome::Done)
    }

    pub(crate) async fn undo_add_disk(&mut self, disk: &DiskSpec) {
        // Aside, not away, as long as the guest may have it in its hands.
        if let Err(error) = self.files.put_aside(disk) {
            tracing::warn!(vm = %self.vm, disk = %disk.id, %error, "a disk file is left");
        }
        let Ok(machine) = self.machine() else { return };
        match machine.unplug_disk(disk.id).await {
            Ok(()) | Err(EngineError::NotPlugged(_)) => {}
            Err(error) => {
                tracing::warn!(vm = %self.vm, disk = %disk.id, %error, "a disk cannot be taken back");
            }
        }
        // A guest that lets go at once does so within this time; any other is told of by an event.
        let until = Instant::now() + SPARE;
        while Instant::now() < until
            && machine.inventory().await.is_ok_and(|now| now.disks.contains_key(&disk.id))
        {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    pub(crate) async fn remove_disk(
        &mut self,
        record: &VmRecord,
        task: &Task<'_>,
        disk: DiskId,
    ) -> Step<OpOutcome> {
        if self.run.is_some() {
            self.release_disk(record, task, disk).await?;
        }
        if let Some(disk) = record.spec.disk(disk) {
            self.files.put_aside(disk).map_err(file("the disk's file cannot be moved"))?;
        }
        Ok(OpOutcome::Done)
    }

    /// Waits for the guest to let a disk go.
    async fn release_disk(&mut self, record: &VmRecord, task: &Task<'_>, disk: DiskId) -> Step<()> {
        let machine = self.machine()?;
        self.progress(task, "waiting for the guest to let it go", 0, 0);
        match machine.unplug_disk(disk).await {
            Ok(()) => {}
            Err(EngineError::NotPlugged(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let released = self
            .released(task, |event| match event {
                MachineEvent::DiskUnplugged(id) if *id == disk => Some(true),
                MachineEvent::DiskUnplugRefused(id) if *id == disk => Some(false),
                _ => None,
            })
            .await?;
        let gone = released == Some(true) || !machine.inventory().await?.disks.contains_key(&disk);
        if gone { Ok(()) } else { Err(not_released(record, "disk")) }
    }

    /// Waits for the guest to let a device go: true, false if it refuses, nothing if it is silent.
    async fn released(
        &mut self,
        task: &Task<'_>,
        pick: impl FnMut(&MachineEvent) -> Option<bool>,
    ) -> Step<Option<bool>> {
        let until = task.deadline.checked_sub(SPARE).unwrap_or(task.deadline);
        self.event(task, until, pick).await
    }

    pub(crate) fn drop_disk_file(&self, record: &VmRecord, disk: DiskId) {
        if let Some(disk) = record.spec.disk(disk) {
            self.remove_file(&self.files.aside(disk));
        }
    }

    fn remove_file(&self, path: &std::path::Path) {
        if let Err(error) = on_disk(|| std::fs::remove_file(path))
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(vm = %self.vm, path = %path.display(), %error, "a disk file is left");
        }
    }

    pub(crate) async fn resize_disk(
        &mut self,
        record: &VmRecord,
        task: &Task<'_>,
        disk: DiskId,
        size: Bytes,
    ) -> Step<OpOutcome> {
        let Some(spec) = record.spec.disk(disk) else {
            return Err(failed("not_found", "the disk is gone", "see: muster vm show NAME"));
        };
        self.progress(task, "growing", 0, 0);
        if self.run.is_some() {
            self.machine()?.resize_disk(disk, size).await?;
        } else {
            let path = self.files.disk(spec);
            let host = self.host.clone();
            let format = spec.format;
            race(&mut self.wanted, task, host.disks.resize(&path, size, format)).await??;
        }
        Ok(OpOutcome::Done)
    }

    pub(crate) async fn add_nic(
        &mut self,
        record: &VmRecord,
        task: &Task<'_>,
        nic: &NicSpec,
    ) -> Step<OpOutcome> {
        if self.run.is_none() {
            return Ok(OpOutcome::Done);
        }
        let machine = self.machine()?;
        if machine.inventory().await?.nics.contains_key(&nic.id) {
            self.keep_layout().await?;
            return Ok(OpOutcome::Done);
        }
        self.progress(task, "plugging in", 0, 0);
        let tap =
            self.host.ports.open(self.vm, nic).await.map_err(|why| {
                failed("network", why, "see the network: muster network show NAME")
            })?;
        machine.plug_nic(plan::nic(record, nic, tap)).await?;
        self.keep_layout().await?;
        Ok(OpOutcome::Done)
    }

    pub(crate) async fn undo_add_nic(&mut self, nic: NicId) {
        if let Ok(machine) = self.machine()
            && let Err(error) = machine.unplug_nic(nic).await
            && !matches!(error, EngineError::NotPlugged(_))
        {
            tracing::warn!(vm = %self.vm, %nic, %error, "an adapter that was being added is left");
        }
        self.host.ports.close(nic).await;
    }

    pub(crate) async fn remove_nic(
        &mut self,
        record: &VmRecord,
        task: &Task<'_>,
        nic: NicId,
    ) -> Step<OpOutcome> {
        if self.run.is_none() {
            self.host.ports.close(nic).await;
            return Ok(OpOutcome::Done);
        }
        let machine = self.machine()?;
        self.progress(task, "waiting for the guest to let it go", 0, 0);
        match machine.unplug_nic(nic).await {
            Ok(()) => {}
            Err(EngineError::NotPlugged(_)) => {
                self.host.ports.close(nic).await;
                return Ok(OpOutcome::Done);
            }
            Err(error) => return Err(error.into()),
        }
        let released = self
            .released(task, |event| match event {
                MachineEvent::NicUnplugged(id) if *id == nic => Some(true),
                MachineEvent::NicUnplugRefused(id) if *id == nic => Some(false),
                _ => None,
            })
            .await?;
        let gone = released == Some(true) || !machine.inventory().await?.nics.contains_key(&nic);
        if !gone {
            return Err(not_released(record, "adapter"));
        }
        self.host.ports.close(nic).await;
        Ok(OpOutcome::Done)
    }

    pub(crate) async fn set_nic(
        &mut self,
        record: &VmRecord,
        _task: &Task<'_>,
        nic: NicId,
        change: &NicChange,
    ) -> Step<OpOutcome> {
        let Some(spec) = record.spec.nic(nic) else {
            return Err(failed("not_found", "the adapter is gone", "see: muster vm show NAME"));
        };
        if self.run.is_some() {
            let link_up = change.link_up.unwrap_or(spec.link_up);
            // A guest that moves sees its cable pulled, so that it asks for an address anew.
            let moves = moves(spec, change);
            self.machine()?.set_link(nic, link_up && !moves).await?;
        }
        Ok(OpOutcome::Done)
    }

    /// The state knows the adapter's network now: moves the port there and puts the cable back in.
    pub(crate) async fn after_nic_set(
        &mut self,
        record: &VmRecord,
        nic: NicId,
        change: &NicChange,
    ) {
        let Some(spec) = record.spec.nic(nic) else { return };
        if self.run.is_none() || !moves(spec, change) {
            return;
        }
        self.host.ports.refresh().await;
        let link_up = change.link_up.unwrap_or(spec.link_up);
        if let Ok(machine) = self.machine()
            && let Err(error) = machine.set_link(nic, link_up).await
        {
            self.note(model::Severity::Error, format!("adapter {}: {error}", spec.name));
        }
    }

    pub(crate) async fn set(
        &mut self,
        record: &VmRecord,
        task: &Task<'_>,
        change: &VmChange,
    ) -> Step<OpOutcome> {
        if self.run.is_none() {
            return Ok(OpOutcome::Done);
        }
        let spec = &record.spec;
        if change.cpu_weight.is_some() || change.cpu_cap_percent.is_some() {
            self.set_cpu_limits(cpu_limits(&spec.cpus, change)).await?;
        }
        if let Some(count) = change.cpus {
            self.set_cpus(task, count).await?;
        }
        if let Some(size) = change.memory {
            self.set_memory(task, size).await?;
        }
        if change.balloon.is_some() || change.memory.is_some() {
            let size = change.memory.unwrap_or(spec.memory.size);
            let target = change.balloon.or(spec.memory.balloon).unwrap_or(size).min(size);
            if change.balloon.is_some() || spec.memory.balloon.is_some() {
                self.machine()?.balloon(target).await?;
            }
        }
        Ok(OpOutcome::Done)
    }

    /// After a change that stopped: asks for what there was before.
    pub(crate) async fn undo_set(&self, record: &VmRecord, change: &VmChange) {
        let Ok(machine) = self.machine() else { return };
        let spec = &record.spec;
        if change.cpu_weight.is_some() || change.cpu_cap_percent.is_some() {
            let before = cpu_limits(&spec.cpus, &VmChange::default());
            self.give_back(machine.set_cpu_limits(before).await.map(drop));
        }
        if change.cpus.is_some() {
            self.give_back(machine.set_vcpus(spec.cpus.count).await);
            self.bring_back_online(PartKind::Processors).await;
        }
        if change.memory.is_some() {
            self.give_back(machine.set_memory(spec.memory.size).await);
        }
        if change.balloon.is_some() {
            let target = spec.memory.balloon.unwrap_or(spec.memory.size);
            self.give_back(machine.balloon(target).await);
        }
    }

    fn give_back(&self, result: Result<(), EngineError>) {
        if let Err(error) = result {
            tracing::warn!(vm = %self.vm, %error, "a change that failed could not be taken back");
        }
    }

    async fn set_cpu_limits(&self, limits: CpuLimits) -> Step<()> {
        let machine = self.machine()?;
        let missing = machine.set_cpu_limits(limits).await?;
        for what in &missing {
            self.note(model::Severity::Warning, format!("a limit does not hold: {what}"));
        }
        self.publisher.in_run(|run| run.info = machine.run());
        Ok(())
    }

    async fn set_cpus(&mut self, task: &Task<'_>, count: u32) -> Step<()> {
        let machine = self.machine()?;
        self.progress(task, "changing processors", 0, u64::from(count));
        if count < machine.inventory().await?.vcpus.plugged {
            self.take_offline(task, count).await?;
        }
        machine.set_vcpus(count).await?;
        loop {
            let now = machine.inventory().await?.vcpus.plugged;
            self.publisher.in_run(|run| run.cpus = now);
            if now == count {
                return self.await_online(task, PartKind::Processors, u64::from(count)).await;
            }
            if self.no_time_left(task) {
                return Err(failed(
                    "guest_did_not_release",
                    format!("the guest keeps {now} processors; {count} were wanted"),
                    "shut it down to change the number of processors",
                ));
            }
            self.event(task, Instant::now() + LOOK_EVERY, |event| match event {
                MachineEvent::VcpusChanged(_) => Some(()),
                _ => None,
            })
            .await?;
        }
    }

    async fn set_memory(&mut self, task: &Task<'_>, size: Bytes) -> Step<()> {
        let machine = self.machine()?;
        // What leaves the guest is not to be brought back by us.
        let grows = size > machine.memory_state().await?.present;
        machine.set_memory(size).await?;
        loop {
            if grows {
                // A guest that leaves it offline takes no more after the first gigabyte.
                self.bring_online(task, PartKind::Memory).await?;
            }
            let memory = machine.memory_state().await?;
            self.publisher.in_run(|run| run.memory = memory.present);
            self.progress(task, "changing memory", memory.present.get(), size.get());
            if memory.present == memory.requested {
                let wanted = if grows { memory.present.get() } else { return Ok(()) };
                return self.await_online(task, PartKind::Memory, wanted).await;
            }
            if self.no_time_left(task) {
                return Err(failed(
                    "guest_did_not_release",
                    format!("the guest has {}; {size} was wanted", memory.present),
                    "free memory in the guest and try again, or shut it down first",
                ));
            }
            self.event(task, Instant::now() + LOOK_EVERY, |event| match event {
                MachineEvent::MemoryChanged(_) => Some(()),
                _ => None,
            })
            .await?;
        }
    }

    fn no_time_left(&self, task: &Task<'_>) -> bool {
        Instant::now() + SPARE >= task.deadline
    }

    pub(crate) async fn keep_layout_if_it_can(&self) {
        if let Err(error) = self.keep_layout().await {
            tracing::warn!(vm = %self.vm, %error, "the layout is not kept");
        }
    }

    pub(crate) async fn keep_layout(&self) -> Step<()> {
        let layout = self.machine()?.layout();
        let written = self.with_files(move |files| files.write_layout(&layout));
        written.await.map_err(file("its layout cannot be written"))
    }
}

/// Share and cap of processor time after a change.
fn cpu_limits(before: &CpuSpec, change: &VmChange) -> CpuLimits {
    CpuLimits {
        weight: change.cpu_weight.unwrap_or(before.weight),
        cap_percent: match change.cpu_cap_percent {
            Some(cap) => (cap != 0).then_some(cap),
            None => before.cap_percent,
        },
    }
}

fn moves(spec: &NicSpec, change: &NicChange) -> bool {
    let network = change.network.as_ref().is_some_and(|it| it.key() != spec.network.key());
    network || (change.address.is_some() && change.address != spec.address)
}

fn not_released(record: &VmRecord, what: &str) -> Stop {
    failed(
        "guest_did_not_release",
        format!("the guest did not release the {what}"),
        format!(
            "unmount or stop using it in the guest and try again, or turn {0} off first: muster vm \
             shutdown {0}",
            record.name
        ),
    )
}
