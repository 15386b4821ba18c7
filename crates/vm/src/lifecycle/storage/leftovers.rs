//! What moves of storage leave behind: copies of a VM that is not running, and old places.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use model::Bytes;
use model::Generation;
use model::VmRecord;

use super::files;
use super::in_place;
use super::no_room;
use crate::engine::MirrorPhase;
use crate::image::room_for;
use crate::lifecycle::VmFiles;
use crate::lifecycle::driver::Driver;
use crate::lifecycle::ops::Step;
use crate::lifecycle::ops::Stop;
use crate::lifecycle::ops::Task;
use crate::lifecycle::ops::cancelled;
use crate::lifecycle::ops::file;

/// How often the progress of a copy is shown.
const SHOW_EVERY: Duration = Duration::from_millis(500);

impl Driver {
    /// Copies the directory of a VM that has no process.
    pub(super) async fn copy_still(
        &mut self,
        record: &VmRecord,
        task: &Task<'_>,
        target: &VmFiles,
        on_volume: bool,
    ) -> Step<()> {
        let cannot = "the new directory cannot be made";
        let needed = files::allocated(self.files.dir()).map_err(file(cannot))?;
        let to = target.clone();
        // Of an attempt that did not come to its end.
        let removed = tokio::task::spawn_blocking(move || to.remove()).await;
        removed.map_err(std::io::Error::other).flatten().map_err(file(cannot))?;
        target.make().map_err(file(cannot))?;
        room_for(target.dir(), Bytes::new(needed)).map_err(|error| no_room(&error))?;
        // It is made anew at each start.
        let live = BTreeSet::from([self.files.seed()]);
        self.copy_files(record, task, target, (live, needed), on_volume).await
    }

    /// Copies what the engine does not.
    pub(super) async fn copy_small_files(
        &mut self,
        record: &VmRecord,
        task: &Task<'_>,
        target: &VmFiles,
        live: BTreeSet<PathBuf>,
        on_volume: bool,
    ) -> Step<()> {
        self.copy_files(record, task, target, (live, 0), on_volume).await
    }

    async fn copy_files(
        &mut self,
        record: &VmRecord,
        task: &Task<'_>,
        target: &VmFiles,
        (live, total): (BTreeSet<PathBuf>, u64),
        on_volume: bool,
    ) -> Step<()> {
        let copying = Arc::new(files::Copying::default());
        let run: Option<Generation> = on_volume.then_some(record.generation);
        let (from, to, shared) = (self.files.clone(), target.clone(), copying.clone());
        let mut copy =
            tokio::task::spawn_blocking(move || files::copy_rest(&from, &to, &live, run, &shared));
        let stop = loop {
            self.progress(task, "copying files", copying.done.load(Ordering::Relaxed), total);
            tokio::select! {
                biased;
                done = &mut copy => {
                    let done = done.map_err(std::io::Error::other).flatten();
                    return done.map_err(file("its files cannot be copied"));
                }
                stop = cancelled(&mut self.wanted, task) => break stop,
                () = tokio::time::sleep_until(task.deadline) => break Stop::Deadline,
                () = tokio::time::sleep(SHOW_EVERY) => {}
            }
        };
        copying.stop.store(true, Ordering::Relaxed);
        // Nobody may write there any more when this ends.
        let _ = copy.await;
        Err(stop)
    }

    /// Brings copies of disks to an end that no operation is about any more. False if some are left.
    pub(crate) async fn settle_mirrors(&mut self) -> bool {
        let Ok(machine) = self.machine() else { return true };
        let mirrors = match machine.mirrors().await {
            Ok(mirrors) if mirrors.is_empty() => return true,
            Ok(mirrors) => mirrors,
            Err(_) => return false,
        };
        // One that was decided about ends by its pivot; any other was given up.
        let decided = mirrors.values().all(|mirror| {
            let ours = mirror.target.as_ref().is_some_and(|to| to.starts_with(self.files.dir()));
            mirror.phase == MirrorPhase::Held && ours
        });
        if decided {
            self.pivot(&machine).await;
            return self.run.is_none() || machine.mirrors().await.is_ok_and(|left| left.is_empty());
        }
        match machine.mirror_cancel().await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(vm = %self.vm, %error, "copies could not be given up");
                false
            }
        }
    }

    /// Removes what lies in places that are not the VM's. False if some is left.
    pub(crate) async fn remove_copies(&mut self, record: &VmRecord) -> bool {
        let mut all = true;
        for place in &record.copies {
            // Of another node's disks, that node does it.
            let Some(there) = in_place(record, *place) else { continue };
            let old = VmFiles::new(&(self.host.vms_dir)(&there), self.vm);
            assert_ne!(*place, record.place(), "the place that counts is no copy");
            let ours = VmFiles::new(&(self.host.vms_dir)(record), self.vm);
            if old.dir() == ours.dir() || self.volume_ready(&there).is_err() {
                all = false;
                continue;
            }
            let removed = tokio::task::spawn_blocking(move || old.remove()).await;
            let gone = match removed.map_err(std::io::Error::other).flatten() {
                Ok(()) => self.host.ledger.copy_gone(self.vm, *place).await.is_ok(),
                Err(error) => {
                    tracing::warn!(vm = %self.vm, ?place, %error, "an old copy is left over");
                    false
                }
            };
            all &= gone;
        }
        all
    }
}
