//! What moves of storage leave behind: copies of a VM that is not running, and old places.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use model::VmRecord;

use super::Target;
use super::files;
use super::in_place;
use super::no_room;
use super::room_for_move;
use crate::engine::MirrorPhase;
use crate::lifecycle::driver::Driver;
use crate::lifecycle::ops::Step;
use crate::lifecycle::ops::Stop;
use crate::lifecycle::ops::Task;
use crate::lifecycle::ops::cancelled;
use crate::lifecycle::ops::file;

/// How often the progress of a copy is shown.
const SHOW_EVERY: Duration = Duration::from_millis(500);

impl Driver {
    /// Makes the directory that a VM comes to, after a look at the room there.
    pub(super) async fn make_room(
        &self,
        record: &VmRecord,
        task: &Task<'_>,
        target: &Target,
    ) -> Step<()> {
        let needed = room_for_move(&self.files, &target.vms_dir).map_err(|why| no_room(&why))?;
        tracing::info!(vm = %record.name, %needed, to = %target.vms_dir.display(), "storage moves");
        let (vms_dir, on_volume) = (target.vms_dir.clone(), target.on_volume);
        let (vm, run, op) = (self.vm, record.generation, task.op.id);
        // Not to be left half-way: what it makes is removed by others then.
        let made =
            tokio::task::spawn_blocking(move || files::make_room(&vms_dir, vm, run, op, on_volume));
        let made = made.await.map_err(std::io::Error::other).flatten();
        made.map(drop).map_err(file("the new directory cannot be made"))
    }

    /// Copies the directory of a VM that has no process.
    pub(super) async fn copy_still(
        &mut self,
        record: &VmRecord,
        task: &Task<'_>,
        target: &Target,
    ) -> Step<()> {
        if target.own.is_coming(task.op.id) {
            // Whole since an earlier daemon, which may have sent the decision: it must be there when
            // that is taken in.
            return Ok(());
        }
        self.make_room(record, task, target).await?;
        let needed = files::allocated(self.files.dir()).unwrap_or_default();
        // It is made anew at each start.
        let live = BTreeSet::from([self.files.seed()]);
        self.copy_files(task, target, live, needed).await?;
        self.publish(target).await
    }

    /// Gives the whole and durable copy the VM's name.
    pub(super) async fn publish(&self, target: &Target) -> Step<()> {
        let (staged, own) = (target.staged.clone(), target.own.clone());
        let named = tokio::task::spawn_blocking(move || staged.publish(&own)).await;
        let named = named.map_err(std::io::Error::other).flatten();
        named.map_err(file("the new directory cannot be given its name"))
    }

    /// Copies what is not in `live`.
    pub(super) async fn copy_files(
        &mut self,
        task: &Task<'_>,
        target: &Target,
        live: BTreeSet<PathBuf>,
        total: u64,
    ) -> Step<()> {
        let copying = Arc::new(files::Copying::default());
        let (from, to, shared) = (self.files.clone(), target.staged.clone(), copying.clone());
        let mut copy =
            tokio::task::spawn_blocking(move || files::copy_rest(&from, &to, &live, &shared));
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
            let place = self.files.dir().parent().unwrap_or(self.files.dir());
            let ours = mirror.target.as_ref().is_some_and(|to| to.starts_with(place));
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
            assert_ne!(*place, record.place(), "the place that counts is no copy");
            let there_dir = (self.host.vms_dir)(&there);
            if there_dir == (self.host.vms_dir)(record) || self.volume_ready(&there).is_err() {
                all = false;
                continue;
            }
            let (vm, run) = (self.vm, record.generation);
            let removed =
                tokio::task::spawn_blocking(move || files::remove_copy(&there_dir, vm, run)).await;
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
