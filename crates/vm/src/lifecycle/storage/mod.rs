//! A VM's directory goes to another place, while its guest works if it runs.
//!
//! ```text
//!   blank files, copies begun           the guest writes to the old files
//!   in step                             each write waits for both
//!   small files, all flushed
//!   guest stands, copies held           both are the same and durable (engine::MirrorPhase)
//!   the copy gets the VM's name
//!   VmStorageMoved: the one decision    the new place is the VM's
//!   pivot, guest goes on                the guest writes to the new files
//!   operation ends, old place removed   (driver's tidying: VmRecord::copies)
//! ```
//!
//! Which place is the VM's is decided by the state alone. Until the decision every failure leaves the
//! guest with its old files. After it there is no way back: a machine that cannot be given the new
//! files is ended, and started again from them, which lack nothing.
//!
//! The guest stands from before the copies are held until the decision is known, or until the end of
//! the operation is in the state, which refuses a decision that is still on its way; the same rule as
//! in a migration ([`crate::lifecycle::migrate`]). Only a driver that knows that no decision was sent
//! lets it go on earlier.
//!
//! Until just before the decision the copy has a name of its run's own, and on a volume that run's
//! claim: a node that was fenced and wakes up late can neither write into the copy of a newer run,
//! nor replace it, nor remove it.
//!
//! A VM that is off or saved is copied file by file, and decided about in the same way.

mod files;
mod leftovers;
mod pace;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use model::Bytes;
use model::DiskFormat;
use model::DiskSource;
use model::DiskSpec;
use model::ExitKind;
use model::Firmware;
use model::OpOutcome;
use model::Power;
use model::Severity;
use model::VmPlace;
use model::VmRecord;
use tokio::time::Instant;

use crate::engine::ImageFile;
use crate::engine::ImageFormat;
use crate::engine::ImageSlot;
use crate::engine::Machine;
use crate::engine::MachineEvent;
use crate::engine::MirrorPhase;
use crate::engine::MirrorPlan;
use crate::engine::RunState;
use crate::image::room_for;
use crate::lifecycle::VmFiles;
use crate::lifecycle::driver::Driver;
use crate::lifecycle::migrate::AfterHandover;
use crate::lifecycle::migrate::Handovers;
use crate::lifecycle::ops::Step;
use crate::lifecycle::ops::Stop;
use crate::lifecycle::ops::Task;
use crate::lifecycle::ops::failed;
use crate::lifecycle::ops::file;
use crate::lifecycle::ops::race;
use crate::lifecycle::plan;

pub(crate) use files::data_from;
pub(crate) use files::files_to_take;
pub(crate) use files::make_room;
pub use files::remove_copy;
pub(crate) use files::stays_behind;
pub(crate) use files::sync_all;

/// How often copies are looked at, beside events.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How often copies that are to hold are looked at: the guest stands.
const HOLD_LOOK: Duration = Duration::from_millis(2);

/// How long the guest may stand for the last flush: storage that takes longer is not fit to be moved
/// to.
const HOLD_MAX: Duration = Duration::from_secs(10);

/// Until a decision of which nothing is known is proposed again.
const AGAIN: Duration = Duration::from_millis(20);

/// What of a running machine is copied by its engine.
struct Image {
    slot: ImageSlot,
    from: PathBuf,
    chain: Vec<ImageFile>,
    /// What a thin copy is of.
    base: Option<PathBuf>,
}

/// Where a VM goes.
struct Target {
    /// The directory of VMs there.
    vms_dir: PathBuf,
    /// The files while they are not the VM's.
    staged: VmFiles,
    /// The files once they have the VM's name.
    own: VmFiles,
    /// Whether other nodes see them.
    on_volume: bool,
}

/// A VM's record as it would be in a place that its owner reaches; none for another node's disks.
pub fn in_place(record: &VmRecord, place: VmPlace) -> Option<VmRecord> {
    let volume = match place {
        VmPlace::Volume { volume } => Some(volume),
        VmPlace::Node { node } if node == record.owner => None,
        VmPlace::Node { .. } => return None,
    };
    Some(VmRecord { volume, ..record.clone() })
}

/// Whether the files of a VM have room in another directory of VMs; what they take.
///
/// # Errors
/// A sentence.
pub fn room_for_move(from: &VmFiles, vms_dir: &std::path::Path) -> Result<Bytes, String> {
    let needed = files::allocated(from.dir()).map_err(|error| error.to_string())?;
    room_for(vms_dir, Bytes::new(needed)).map_err(|error| error.to_string())?;
    Ok(Bytes::new(needed))
}

/// What the files of a VM take, with those images that come along within its disks.
///
/// # Errors
/// What the system said.
pub fn taken_by(files: &VmFiles, images: &[PathBuf]) -> std::io::Result<Bytes> {
    let mut taken = files::allocated(files.dir())?;
    for image in images {
        taken = taken.saturating_add(crate::image::allocated_bytes(image)?);
    }
    Ok(Bytes::new(taken))
}

/// Whether there is room for the files of a VM in a directory of VMs, which need not be there yet.
///
/// # Errors
/// A sentence.
pub fn room_for_files(vms_dir: &std::path::Path, needed: Bytes) -> Result<(), String> {
    std::fs::create_dir_all(vms_dir).map_err(|error| error.to_string())?;
    room_for(vms_dir, needed).map_err(|error| error.to_string())
}

impl Driver {
    /// Where the VM would be in a place. Nothing is touched.
    fn target(&self, record: &VmRecord, place: VmPlace) -> Step<Target> {
        let Some(there) = in_place(record, place) else {
            return Err(failed(
                "elsewhere",
                "it went to another node meanwhile, which does not reach that place",
                "move its storage again, to a volume",
            ));
        };
        self.volume_ready(&there)?;
        let vms_dir = (self.host.vms_dir)(&there);
        let own = VmFiles::new(&vms_dir, self.vm);
        assert_ne!(own.dir(), self.files.dir(), "a directory is not moved onto itself");
        let staged = VmFiles::staged(&vms_dir, self.vm, record.generation);
        Ok(Target { vms_dir, staged, own, on_volume: matches!(place, VmPlace::Volume { .. }) })
    }

    pub(crate) async fn move_storage(
        &mut self,
        record: &VmRecord,
        task: &Task<'_>,
        to: VmPlace,
    ) -> Step<OpOutcome> {
        if record.place() == to {
            // An earlier daemon, or an earlier owner, got as far as the decision.
            return Ok(self.go_on_there(record).await);
        }
        let target = self.target(record, to)?;
        match (&self.run, record.power) {
            (Some(_), _) => self.move_running(record, task, &target).await?,
            (None, Power::Off | Power::Saved) => {
                self.copy_still(record, task, &target).await?;
                self.decide(record, task).await.map_err(|(stop, _)| stop)?;
            }
            (None, Power::Running | Power::Paused) => {
                return Err(failed(
                    "not_running",
                    "its process is not there",
                    "wait until it runs again, and move its storage then",
                ));
            }
        }
        self.files = target.own;
        Ok(self.go_on_there(record).await)
    }

    /// Up to the decision. On an error the guest goes on, or stands until the operation has ended.
    async fn move_running(
        &mut self,
        record: &VmRecord,
        task: &Task<'_>,
        target: &Target,
    ) -> Step<()> {
        let machine = self.machine()?;
        let mut before = machine.mirrors().await?;
        let fits = |to: &PathBuf| to.starts_with(target.staged.dir());
        if !before.values().all(|mirror| mirror.target.as_ref().is_some_and(fits)) {
            // Of an earlier move to elsewhere, which is over.
            machine.mirror_cancel().await?;
            before.clear();
        }
        // An earlier daemon may have sent the decision: nobody but the state can take it back.
        let mut sent = before.values().any(|mirror| mirror.phase == MirrorPhase::Held);
        let images = self.images(record, &target.staged, &machine).await?;
        if !sent {
            if record.power == Power::Running && machine.query_status().await? == RunState::Paused {
                // An earlier daemon has let it stand, and got no further.
                self.let_go_on(&machine).await?;
            }
            if before.is_empty() {
                self.make_room(record, task, target).await?;
            }
            self.begin_copies(task, &images, &machine).await?;
            self.bring_in_step(task, &machine, images.len()).await?;
            let live = images.iter().map(|image| image.from.clone()).collect();
            self.copy_files(task, target, live, 0).await?;
        }
        let held = self.hold(task, &machine, target, images.len()).await;
        let decided = match held {
            Ok(()) => self.decide(record, task).await.map_err(|(stop, may_come)| {
                sent |= may_come;
                stop
            }),
            Err(stop) => Err(stop),
        };
        if decided.is_err() && !sent {
            self.stay_here(record, &machine).await;
        }
        decided
    }

    /// What the machine has open in the VM's directory.
    async fn images(
        &self,
        record: &VmRecord,
        target: &VmFiles,
        machine: &Arc<dyn Machine>,
    ) -> Step<Vec<Image>> {
        let plugged: BTreeSet<_> = machine.inventory().await?.disks.into_keys().collect();
        let mut images = Vec::new();
        for disk in record.spec.disks.iter().filter(|disk| plugged.contains(&disk.id)) {
            images.push(self.image_of(record, target, disk));
        }
        let raw = |slot, from: PathBuf, to: PathBuf| Image {
            slot,
            from,
            chain: vec![ImageFile { path: to, format: ImageFormat::Raw }],
            base: None,
        };
        if plugged.contains(&plan::SEED_DISK) {
            let slot = ImageSlot::Disk(plan::SEED_DISK);
            images.push(raw(slot, self.files.seed(), target.seed()));
        }
        if record.spec.firmware == Firmware::Uefi {
            let (from, to) = (self.files.uefi_vars(), target.uefi_vars());
            images.push(raw(ImageSlot::Firmware, from, to));
        }
        let known = |id: &model::DiskId| *id == plan::SEED_DISK || record.spec.disk(*id).is_some();
        if !plugged.iter().all(known) {
            return Err(failed(
                "disk_leaving",
                "the guest still has a disk in its hands that was taken away",
                "unmount it in the guest, or restart the guest, and try again",
            ));
        }
        Ok(images)
    }

    fn image_of(&self, record: &VmRecord, target: &VmFiles, disk: &DiskSpec) -> Image {
        let image_path = &*self.host.image_path;
        Image {
            slot: ImageSlot::Disk(disk.id),
            from: self.files.disk(disk),
            chain: plan::disk(record, target, image_path, disk, None).chain,
            base: match disk.source {
                DiskSource::Image { image } => Some(image_path(image)),
                DiskSource::Blank => None,
            },
        }
    }

    /// Begins the copies that an earlier daemon has not begun.
    async fn begin_copies(
        &mut self,
        task: &Task<'_>,
        images: &[Image],
        machine: &Arc<dyn Machine>,
    ) -> Step<()> {
        self.progress(task, "making disks", 0, 0);
        let under_way = machine.mirrors().await?;
        for image in images.iter().filter(|image| !under_way.contains_key(&image.slot)) {
            self.make_blank(task, image).await?;
            machine.mirror(MirrorPlan { slot: image.slot, chain: image.chain.clone() }).await?;
        }
        Ok(())
    }

    /// A file that is as large as the old one and takes no room.
    async fn make_blank(&mut self, task: &Task<'_>, image: &Image) -> Step<()> {
        let (path, tool) = (&image.chain[0].path, self.host.disks.clone());
        match (image.chain[0].format, &image.base) {
            (ImageFormat::Qcow2, base) => {
                let size = tool.virtual_size(&image.from, DiskFormat::Qcow2).await?;
                let make = async {
                    match base {
                        Some(base) => tool.create_overlay(base, path, size).await,
                        None => tool.create_blank(path, size, DiskFormat::Qcow2).await,
                    }
                };
                Ok(race(&mut self.wanted, task, make).await??)
            }
            (ImageFormat::Raw, _) => {
                files::make_raw_like(&image.from, path).map_err(file("the new disk cannot be made"))
            }
        }
    }

    /// Waits until every write of the guest is in both.
    pub(crate) async fn bring_in_step(
        &mut self,
        task: &Task<'_>,
        machine: &Arc<dyn Machine>,
        count: usize,
    ) -> Step<()> {
        let begun = Instant::now();
        let mut pace = pace::Pace::default();
        loop {
            let all = machine.mirrors().await?;
            check(all.values().map(|mirror| &mirror.phase), count)?;
            let sum = |part: fn(&crate::engine::MirrorProgress) -> Bytes| {
                all.values().map(|mirror| part(mirror).get()).sum::<u64>()
            };
            let (done, total) = (sum(|mirror| mirror.done), sum(|mirror| mirror.total));
            self.progress(task, "copying disks", done, total);
            if all.values().all(|mirror| mirror.phase == MirrorPhase::InStep) {
                return Ok(());
            }
            if pace.tighten(total.saturating_sub(done), total, begun.elapsed()) {
                machine.mirror_tighten().await?;
            }
            self.event(task, Instant::now() + LOOK_EVERY, |event| match event {
                MachineEvent::MirrorMoved | MachineEvent::Lagged(_) => Some(()),
                _ => None,
            })
            .await?;
        }
    }

    /// Lets the guest stand and both copies be the same and durable.
    async fn hold(
        &mut self,
        task: &Task<'_>,
        machine: &Arc<dyn Machine>,
        target: &Target,
        count: usize,
    ) -> Step<()> {
        self.progress(task, "switching", 0, 0);
        if machine.query_status().await? == RunState::Running {
            machine.pause().await?;
        }
        self.hold_copies(task, machine, count).await?;
        // The engine has flushed what it wrote; this asks the system once more.
        if target.staged.dir().exists() {
            let to = target.staged.clone();
            let synced = tokio::task::spawn_blocking(move || files::sync_all(to.dir()));
            let synced = race(&mut self.wanted, task, synced).await?;
            let synced = synced.map_err(std::io::Error::other).flatten();
            synced.map_err(file("the new files cannot be made durable"))?;
        }
        self.publish(target).await
    }

    /// Waits until all copies of a guest that stands are held.
    pub(crate) async fn hold_copies(
        &mut self,
        task: &Task<'_>,
        machine: &Arc<dyn Machine>,
        count: usize,
    ) -> Step<()> {
        let end = (Instant::now() + HOLD_MAX).min(task.deadline);
        loop {
            let all = machine.mirrors().await?;
            check(all.values().map(|mirror| &mirror.phase), count)?;
            if all.values().all(|mirror| mirror.phase == MirrorPhase::Held) {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(failed(
                    "slow_storage",
                    format!("the last writes took longer than {} s", HOLD_MAX.as_secs()),
                    "the guest goes on where it was; look at the new volume's storage",
                ));
            }
            machine.mirror_hold().await?;
            self.event(task, Instant::now() + HOLD_LOOK, |event| match event {
                MachineEvent::MirrorMoved => Some(()),
                _ => None,
            })
            .await?;
        }
    }

    /// The one decision. With an error, whether it may still be taken by one that was sent.
    async fn decide(&mut self, record: &VmRecord, task: &Task<'_>) -> Result<(), (Stop, bool)> {
        let begun = Instant::now();
        let mut handovers = Handovers::default();
        loop {
            let answer = self.host.ledger.storage_moved(task.op.id, record.generation).await;
            match handovers.answered(answer, begun.elapsed()) {
                AfterHandover::Leave => return Ok(()),
                AfterHandover::Stand(why) => return Err((not_taken(&why), true)),
                AfterHandover::GoOn(why) => return Err((not_taken(&why), false)),
                AfterHandover::Again(why) => {
                    tracing::warn!(vm = %self.vm, why, "a move of storage is proposed again");
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// The guest goes on with its old files: no decision was sent.
    async fn stay_here(&mut self, record: &VmRecord, machine: &Arc<dyn Machine>) {
        if let Err(error) = machine.mirror_cancel().await {
            tracing::warn!(vm = %self.vm, %error, "copies could not be given up");
            return;
        }
        let stands = matches!(machine.query_status().await, Ok(RunState::Paused));
        if stands
            && record.power == Power::Running
            && let Err(error) = self.let_go_on(machine).await
        {
            self.note(Severity::Error, format!("it does not go on: {error}"));
        }
    }

    /// The new place is the VM's: so must the machine's files be.
    async fn go_on_there(&mut self, record: &VmRecord) -> OpOutcome {
        self.files.arrived();
        let Ok(machine) = self.machine() else { return OpOutcome::Done };
        self.pivot(&machine).await;
        if self.run.is_some()
            && record.power == Power::Running
            && matches!(machine.query_status().await, Ok(RunState::Paused))
            && let Err(error) = self.let_go_on(&machine).await
        {
            // Looked at again when this is over.
            tracing::warn!(vm = %self.vm, %error, "it does not go on from its new storage");
        }
        self.observe().await;
        self.keep_layout_if_it_can().await;
        OpOutcome::Done
    }

    /// Gives the machine the files of the copies that are held; ends it where that cannot be.
    async fn pivot(&mut self, machine: &Arc<dyn Machine>) {
        let pivoted = match machine.mirrors().await {
            Ok(mirrors) if mirrors.is_empty() => return,
            Ok(_) => machine.mirror_pivot().await,
            Err(error) => Err(error),
        };
        let Err(error) = pivoted else { return };
        // It may work with either now, and no write may go to the old files any more.
        let detail = format!("it could not be given its disks in their new place: {error}");
        self.note(Severity::Error, format!("{detail}; it is started again from there"));
        // What does not go away is looked for again, and brought to its new files then.
        let _ = self.end_machine().await;
        self.lost = Some((ExitKind::Crashed, detail));
    }
}

/// Whether all copies are there and none has failed.
fn check<'a>(phases: impl Iterator<Item = &'a MirrorPhase>, count: usize) -> Step<()> {
    let mut seen = 0;
    for phase in phases {
        seen += 1;
        if let MirrorPhase::Failed(why) = phase {
            let full = why.contains("No space left");
            return Err(failed(
                if full { "no_space" } else { "copy" },
                format!("its disks could not be copied: {why}"),
                "the machine goes on where it was; look at both volumes: muster volume list",
            ));
        }
    }
    if seen == count {
        return Ok(());
    }
    Err(failed(
        "copy",
        format!("{seen} of {count} copies of its disks are left"),
        "the machine goes on where it was; try it again",
    ))
}

fn no_room(why: &str) -> Stop {
    failed(
        "no_space",
        format!("there is no room for it: {why}"),
        "free space there, or choose another volume: muster volume list",
    )
}

fn not_taken(why: &str) -> Stop {
    failed(
        "handover",
        format!("the cluster did not take the new place in: {why}"),
        "the machine goes on where it was; see: muster cluster status",
    )
}
