//! The source's side of disks that go along with a guest: they are copied while it works, and held when
//! it stands. The order of it all: head comment of [`super`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use model::Bytes;
use model::DiskSource;
use model::Firmware;
use model::NodeId;
use model::StorageTarget;
use model::VmRecord;
use tokio::time::Instant;

use super::Lane;
use super::OfferedFiles;
use super::carry::Carriers;
use super::landing;
use super::pace::Pace;
use crate::engine::Extent;
use crate::engine::ImageSlot;
use crate::engine::Machine;
use crate::lifecycle::driver::Driver;
use crate::lifecycle::ops::Step;
use crate::lifecycle::ops::Stop;
use crate::lifecycle::ops::Task;
use crate::lifecycle::ops::failed;
use crate::lifecycle::ops::file;
use crate::lifecycle::ops::race;
use crate::lifecycle::plan;
use crate::lifecycle::storage;
use crate::wait::on_disk;

/// Largest cloud-init disc that goes along in a message: some twenty times what one takes.
const SEED_MAX: u64 = 2 << 20;

/// Disks on their way.
pub(super) struct Along {
    /// Their connections end with it.
    pub(super) carriers: Carriers,
    to: NodeId,
    count: usize,
    /// What was copied of them until each write went to both.
    pub(super) copied: Bytes,
    /// What it takes to make the target's disks durable, and to hear of it; none where that was not
    /// found out.
    pub(super) flush: Option<Duration>,
}

/// How often they are made durable while the guest works: the first time writes what the copy has left
/// in caches, which would else be done while the guest stands; the last time is the measure.
const REHEARSALS: usize = 2;

/// How much of it.
fn extent(slot: ImageSlot, target: &StorageTarget) -> Extent {
    match slot {
        ImageSlot::Disk(disk) if !target.whole.contains(&disk) => Extent::OwnFile,
        ImageSlot::Disk(_) | ImageSlot::Firmware => Extent::Whole,
    }
}

impl Driver {
    /// What the target must know of the files to make them.
    pub(super) async fn offer_files(
        &self,
        record: &VmRecord,
        target: &StorageTarget,
        machine: &Arc<dyn Machine>,
    ) -> Step<OfferedFiles> {
        let plugged = machine.inventory().await?.disks;
        let known =
            |id: &&model::DiskId| **id != plan::SEED_DISK && record.spec.disk(**id).is_none();
        if plugged.keys().any(|id| known(&id))
            || record.spec.disks.iter().any(|disk| !plugged.contains_key(&disk.id))
        {
            return Err(failed(
                "disk_leaving",
                "its guest has other disks in its hands than it should have",
                "unmount what was taken away in the guest, or restart it, and try again",
            ));
        }
        let mut disks = BTreeMap::new();
        let mut below = Vec::new();
        for disk in &record.spec.disks {
            let size = self.host.disks.virtual_size(&self.files.disk(disk), disk.format).await?;
            disks.insert(disk.id, size);
            if let DiskSource::Image { image } = disk.source
                && target.whole.contains(&disk.id)
            {
                below.push((self.host.image_path)(image));
            }
        }
        let length =
            |path| on_disk(|| std::fs::metadata(path)).map(|found| Bytes::new(found.len()));
        let firmware = match record.spec.firmware {
            Firmware::Uefi => Some(length(self.files.uefi_vars()).map_err(file("its firmware"))?),
            Firmware::Bios => None,
        };
        Ok(OfferedFiles {
            target: target.clone(),
            disks,
            firmware,
            generation_id: self.files.generation_id().map_err(file("its generation id"))?,
            seed: self.seed_to_offer(record)?,
            needed: storage::taken_by(&self.files, &below).map_err(file("its files"))?,
        })
    }

    fn seed_to_offer(&self, record: &VmRecord) -> Step<Option<String>> {
        let path = self.files.seed();
        if record.spec.cloud_init.is_none() {
            return Ok(None);
        }
        let unread = || file("its cloud-init disc cannot be read");
        if on_disk(|| std::fs::metadata(&path)).map_err(unread())?.len() > SEED_MAX {
            return Err(failed("seed", "its cloud-init disc is too large", "report this"));
        }
        Ok(Some(BASE64_STANDARD.encode(std::fs::read(path).map_err(unread())?)))
    }

    /// Copies the disks until each write of the guest goes to both. The target has made its blank ones.
    pub(super) async fn send_disks(
        &mut self,
        record: &VmRecord,
        task: &Task<'_>,
        (to, target): (NodeId, &StorageTarget),
        machine: &Arc<dyn Machine>,
        pace: Arc<Pace>,
    ) -> Step<Along> {
        let slots = landing::slots(record);
        let way = machine.send_way(slots.len()).await?;
        let lane = (task.op.id, Lane::Disks);
        let carriers = Carriers::start(self.host.mover.clone(), to, lane, way.connections, pace);
        let copying = async {
            for slot in &slots {
                machine.send_disk(*slot, extent(*slot, target)).await?;
            }
            self.bring_in_step(task, machine, slots.len()).await?;
            let copied = machine.mirrors().await?.values().map(|copy| copy.done.get()).sum();
            Ok(Bytes::new(copied))
        };
        let copied = copying.await.map_err(|stop| broken(stop, &carriers))?;
        let flush = self.rehearse(task, to).await?;
        Ok(Along { carriers, to, count: slots.len(), copied, flush })
    }

    /// Lets the target do what it will have to do when the guest stands. A target that cannot is found
    /// out again then.
    async fn rehearse(&mut self, task: &Task<'_>, to: NodeId) -> Step<Option<Duration>> {
        self.progress(task, "flushing disks", 0, 0);
        let mover = self.host.mover.clone();
        let rehearsing = async {
            let mut took = Ok(Duration::ZERO);
            for _ in 0..REHEARSALS {
                let asked = Instant::now();
                took = mover.rehearse(to, task.op.id).await.map(|()| asked.elapsed());
            }
            took
        };
        match race(&mut self.wanted, task, rehearsing).await? {
            Ok(took) => Ok(Some(took)),
            Err(failure) => {
                tracing::info!(vm = %self.vm, ?failure, "the flush of its disks was not measured");
                Ok(None)
            }
        }
    }

    /// The guest stands: makes what the target has of its disks the same and durable there, and ends
    /// the copies. Nothing of them is open any more when its memory is switched over.
    pub(super) async fn close_disks(
        &mut self,
        task: &Task<'_>,
        machine: &Arc<dyn Machine>,
        along: &Along,
    ) -> Step<()> {
        let begun = Instant::now();
        let held = self.hold_copies(task, machine, along.count).await;
        held.map_err(|stop| broken(stop, &along.carriers))?;
        let hold = begun.elapsed();
        machine.mirror_cancel().await?;
        let closed = begun.elapsed();
        let mover = self.host.mover.clone();
        let settled = race(&mut self.wanted, task, mover.settle(along.to, task.op.id)).await?;
        tracing::info!(
            vm = %self.vm, ?hold, close = ?closed - hold, settle = ?begun.elapsed() - closed,
            rehearsed = ?along.flush, "its disks are closed"
        );
        settled.map_err(|failure| Stop::Failed {
            code: "target",
            message: failure.message,
            hint: failure.hint,
        })
    }
}

/// The engine only knows that a connection has ended; who carried it may know why.
fn broken(stop: Stop, carriers: &Carriers) -> Stop {
    match (stop, carriers.problem()) {
        (Stop::Failed { code: "copy", .. } | Stop::Engine(_), Some(why)) => failed(
            "copy",
            format!("its disks could not be sent: {why}"),
            "the guest goes on where it was; see: muster event list",
        ),
        (stop, _) => stop,
    }
}
