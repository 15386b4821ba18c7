//! A machine without a process goes to another node with its files: both sides. The order of it, and
//! what a daemon that dies leaves behind: head comment of [`super`].

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use model::Bytes;
use model::DiskSource;
use model::MigratePolicy;
use model::MigrateReport;
use model::MigrateResult;
use model::NodeId;
use model::OpFailure;
use model::OpId;
use model::OpOutcome;
use model::StorageTarget;
use model::VmRecord;
use tokio::time::Instant;

use super::HandoverNote;
use super::Lane;
use super::Offer;
use super::OfferedFiles;
use super::Wire;
use super::forecast;
use super::millis;
use super::pace::Pace;
use super::parcel;
use super::parcel::Piece;
use super::source::BANDWIDTH_UNKNOWN;
use crate::engine::Layout;
use crate::image::FlatDisk;
use crate::lifecycle::Host;
use crate::lifecycle::driver::Driver;
use crate::lifecycle::ops::Step;
use crate::lifecycle::ops::Stop;
use crate::lifecycle::ops::Task;
use crate::lifecycle::ops::cancelled;
use crate::lifecycle::ops::failed;
use crate::lifecycle::ops::file;
use crate::lifecycle::ops::race;
use crate::lifecycle::storage;

/// How often the progress of a copy is shown.
const SHOW_EVERY: Duration = Duration::from_millis(500);

/// What goes, and what is made for it and goes away with it.
struct Parcel {
    pieces: Vec<Piece>,
    _flat: Vec<FlatDisk>,
}

impl Driver {
    /// Sends the files of a machine that is off or saved, and gives it away.
    pub(super) async fn migrate_still(
        &mut self,
        record: &VmRecord,
        task: &Task<'_>,
        (to, target): (NodeId, Option<&StorageTarget>),
        policy: MigratePolicy,
    ) -> Step<OpOutcome> {
        let Some(target) = target else {
            return Err(failed(
                "not_running",
                "it does not run, and its files are not to move",
                "move it as it is: muster vm move",
            ));
        };
        self.progress(task, "preparing", 0, 0);
        let begun = Instant::now();
        let offered = self.offer_still(record, target)?;
        let needed = offered.needed;
        let offer = Offer {
            op: task.op.id,
            vm: record.id,
            generation: record.generation,
            layout: Layout::default(),
            cpus: record.spec.cpus.count,
            boot_memory: record.spec.memory.size,
            storage: Some(offered),
            still: true,
        };
        let mover = self.host.mover.clone();
        let ready = race(&mut self.wanted, task, mover.prepare(to, offer)).await?;
        let ready = ready.map_err(of_target)?;
        let bandwidth = ready.bandwidth.unwrap_or(BANDWIDTH_UNKNOWN);
        let predicted = forecast::still(needed, bandwidth, policy);
        let sent = match ready.whole {
            // An earlier daemon has got as far as that, and may have sent the decision: what is there
            // must stay there.
            true => Bytes::ZERO,
            false => self.send_files(record, task, (to, target), (needed, policy)).await?,
        };
        let measured = MigrateResult {
            total_ms: millis(begun.elapsed()),
            bytes: sent,
            ..MigrateResult::default()
        };
        let report = MigrateReport {
            predicted: Some(predicted),
            measured: Some(measured),
            fallback: ready.fallback,
        };
        let (op, generation) = (task.op.id, record.generation);
        self.hand_over(HandoverNote { op, generation, report }).await?;
        tracing::info!(vm = %record.name, took = ?begun.elapsed(), "handed over, with its files");
        Err(Stop::Left)
    }

    fn offer_still(&self, record: &VmRecord, target: &StorageTarget) -> Step<OfferedFiles> {
        let mut below = Vec::new();
        for disk in record.spec.disks.iter().filter(|disk| target.whole.contains(&disk.id)) {
            if let DiskSource::Image { image } = disk.source {
                below.push((self.host.image_path)(image));
            }
        }
        Ok(OfferedFiles {
            target: target.clone(),
            // They come as files, whatever is in them.
            disks: BTreeMap::new(),
            firmware: None,
            generation_id: self.files.generation_id().map_err(file("its generation id"))?,
            // It is made anew at each start.
            seed: None,
            needed: storage::taken_by(&self.files, &below).map_err(file("its files"))?,
        })
    }

    /// Sends all files, and lets the target make them durable under the VM's name.
    async fn send_files(
        &mut self,
        record: &VmRecord,
        task: &Task<'_>,
        (to, target): (NodeId, &StorageTarget),
        (needed, policy): (Bytes, MigratePolicy),
    ) -> Step<Bytes> {
        let parcel = self.pack(record, task, target).await?;
        let (mover, done) = (self.host.mover.clone(), AtomicU64::new(0));
        let pace = Pace::new(policy.bandwidth);
        let sending = async {
            let mut wire = mover.connect(to, task.op.id, Lane::Files).await?;
            let sent = parcel::send(&mut *wire, &parcel.pieces, &done, &pace).await;
            sent.map_err(|error| error.to_string())
        };
        tokio::pin!(sending);
        let sent = loop {
            self.progress(task, "sending files", done.load(Ordering::Relaxed), needed.get());
            tokio::select! {
                biased;
                sent = &mut sending => break sent,
                stop = cancelled(&mut self.wanted, task) => return Err(stop),
                () = tokio::time::sleep_until(task.deadline) => return Err(Stop::Deadline),
                () = tokio::time::sleep(SHOW_EVERY) => {}
            }
        };
        sent.map_err(|why| {
            failed(
                "copy",
                format!("its files could not be sent: {why}"),
                "it is where it was, and lacks nothing; see: muster event list",
            )
        })?;
        self.progress(task, "switching", 0, 0);
        let settled = race(&mut self.wanted, task, mover.settle(to, task.op.id)).await?;
        settled.map_err(of_target)?;
        Ok(Bytes::new(done.load(Ordering::Relaxed)))
    }

    /// What goes. Thin copies that the target could not read become whole ones first.
    async fn pack(
        &mut self,
        record: &VmRecord,
        task: &Task<'_>,
        target: &StorageTarget,
    ) -> Step<Parcel> {
        let mut flat = Vec::new();
        let whole = record.spec.disks.iter().filter(|disk| target.whole.contains(&disk.id));
        let mut instead = BTreeMap::new();
        for disk in whole {
            let DiskSource::Image { image } = disk.source else { continue };
            self.progress(task, "making whole disks", 0, 0);
            let (tool, path) = (self.host.disks.clone(), self.files.disk(disk));
            let base = (self.host.image_path)(image);
            let made = race(&mut self.wanted, task, tool.flatten(&path, &base)).await??;
            instead.insert(path, made.path().to_owned());
            flat.push(made);
        }
        let names = storage::files_to_take(&self.files).map_err(file("its files"))?;
        let pieces = names
            .into_iter()
            .map(|(name, from)| {
                let from = instead.get(&from).cloned().unwrap_or(from);
                Piece { name, from }
            })
            .collect();
        Ok(Parcel { pieces, _flat: flat })
    }

    /// It is this node's, with its files.
    pub(super) fn arrived_still(&mut self, record: &VmRecord, task: &Task<'_>) -> OpOutcome {
        self.keep_files_that_came(record, task);
        let report = task.op.migration.as_ref();
        let measured = report.and_then(|report| report.measured).unwrap_or_default();
        OpOutcome::Migrated { measured }
    }
}

fn of_target(failure: OpFailure) -> Stop {
    Stop::Failed { code: "target", message: failure.message, hint: failure.hint }
}

/// Takes the files of a machine that comes by that migration, over a connection from its node.
///
/// # Errors
/// Why they cannot be taken; the source is told by the end of the connection.
pub async fn receive_files(host: &Host, op: OpId, wire: &mut dyn Wire) -> std::io::Result<()> {
    let Some(incoming) = host.arrivals.incoming_files(op) else {
        return Err(std::io::Error::other("no files of it come here, or they have come already"));
    };
    let received = parcel::receive(wire, incoming.dir.clone()).await?;
    incoming.received();
    received.tell(wire).await
}

/// The right to fill a directory: given once.
pub(super) struct Incoming {
    pub(super) dir: Arc<OwnedFd>,
    pub(super) whole: Arc<AtomicBool>,
}

impl Incoming {
    fn received(&self) {
        self.whole.store(true, Ordering::SeqCst);
    }
}
