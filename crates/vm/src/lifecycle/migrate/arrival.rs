//! The target's side: machines that wait for guests of other nodes.

use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use model::OpFailure;
use model::OpId;
use model::Power;
use model::VmId;
use model::VmRecord;
use tokio::time::Instant;

use super::Offer;
use super::landing;
use super::landing::Landing;
use super::still::Incoming;
use crate::engine::LaunchPlan;
use crate::engine::Launched;
use crate::engine::Machine;
use crate::engine::RestorePlan;
use crate::lifecycle::Host;
use crate::lifecycle::VmFiles;
use crate::lifecycle::ops::Step;
use crate::lifecycle::ops::Stop;
use crate::lifecycle::ops::failed;
use crate::lifecycle::ops::failure_of;
use crate::lifecycle::ops::file;
use crate::lifecycle::plan;
use crate::lifecycle::rights;
use crate::lifecycle::storage;

/// Machines that wait, until the VM's driver takes them or nobody wants them any more.
#[derive(Default)]
pub struct Arrivals {
    waiting: Mutex<HashMap<VmId, Waiting>>,
    /// Being made: not yet among those that wait, and not to be taken for a stray either.
    making: Mutex<HashSet<VmId>>,
}

/// That a machine is being made.
struct Making<'a> {
    arrivals: &'a Arrivals,
    vm: VmId,
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.arrivals.making().remove(&self.vm);
    }
}

struct Waiting {
    op: OpId,
    /// The machine; none where only files come.
    launched: Option<Launched>,
    /// Where its disks come to, until they are there.
    landing: Option<Landing>,
}

/// That nobody makes a machine of a VM here meanwhile, and none waits.
pub struct KeptOut<'a>(#[expect(dead_code, reason = "ends with it")] Making<'a>);

impl Arrivals {
    /// The machine that waits for that migration.
    pub fn machine(&self, op: OpId) -> Option<Arc<dyn Machine>> {
        let waiting = self.lock();
        let found = waiting.values().find(|waiting| waiting.op == op);
        found?.launched.as_ref().map(|launched| launched.machine.clone())
    }

    /// The right to fill the directory that files of that migration come to; given once.
    pub(super) fn incoming_files(&self, op: OpId) -> Option<Incoming> {
        let mut waiting = self.lock();
        let found = waiting.values_mut().find(|waiting| waiting.op == op)?;
        found.landing.as_mut()?.incoming()
    }

    /// Whether a machine waits for a migration of that VM, or is being made for one.
    pub fn has(&self, vm: VmId) -> bool {
        self.making().contains(&vm) || self.lock().contains_key(&vm)
    }

    /// Keeps machines of a VM from being made here, for as long as the answer lives; none if one waits
    /// or is being made. For whoever removes what may be the files of one.
    pub fn keep_out(&self, vm: VmId) -> Option<KeptOut<'_>> {
        if self.lock().contains_key(&vm) || !self.making().insert(vm) {
            return None;
        }
        Some(KeptOut(Making { arrivals: self, vm }))
    }

    /// The machine that waits for that migration, and where its disks come to, which is told once.
    fn landing(&self, op: OpId) -> Option<(Option<Arc<dyn Machine>>, Landing)> {
        let mut waiting = self.lock();
        let found = waiting.values_mut().find(|waiting| waiting.op == op)?;
        let machine = found.launched.as_ref().map(|launched| launched.machine.clone());
        Some((machine, found.landing.take()?))
    }

    /// Where disks of that migration come to, while they do.
    fn staged(&self, op: OpId) -> Option<VmFiles> {
        let waiting = self.lock();
        let found = waiting.values().find(|waiting| waiting.op == op)?;
        found.landing.as_ref().map(|landing| landing.staged.clone())
    }

    fn making(&self) -> std::sync::MutexGuard<'_, HashSet<VmId>> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The migrations that machines wait for.
    pub fn all(&self) -> Vec<(VmId, OpId)> {
        self.lock().iter().map(|(vm, waiting)| (*vm, waiting.op)).collect()
    }

    /// Takes the machine that waits for that migration: it is the caller's from here on.
    pub fn take(&self, vm: VmId, op: OpId) -> Option<Launched> {
        self.remove(vm, op)?.launched
    }

    fn remove(&self, vm: VmId, op: OpId) -> Option<Waiting> {
        let mut waiting = self.lock();
        if waiting.get(&vm).is_none_or(|waiting| waiting.op != op) {
            return None;
        }
        waiting.remove(&vm)
    }

    fn put(&self, vm: VmId, waiting: Waiting) {
        self.lock().insert(vm, waiting);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<VmId, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a target has for a VM that comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prepared {
    /// Something that waits for it.
    Waits,
    /// All of its files already, durable and under its name (see [`super::Ready::whole`]).
    Whole,
}

/// Makes a machine that waits for a guest. `record` is the VM as the state has it, still owned by the
/// source. The caller has made sure that nothing of the VM is left on this host, and watches the
/// operation to the end.
///
/// # Errors
/// Why it cannot; nothing is left of it.
pub async fn prepare(host: &Host, record: &VmRecord, offer: &Offer) -> Result<Prepared, OpFailure> {
    if !host.arrivals.making().insert(record.id) {
        let stop = failed("busy", "a machine for it is being made there", "try it again");
        return Err(failure_of(&stop));
    }
    let _making = Making { arrivals: &host.arrivals, vm: record.id };
    if offer.still {
        return make_still(host, record, offer).await.map_err(|stop| failure_of(&stop));
    }
    if let Err(stop) = make(host, record, offer).await {
        // Its own error is told where it fails; what it leaves is looked for as a stray.
        let _ = host.engine.reap(record.id).await;
        close_ports(host, record).await;
        return Err(failure_of(&stop));
    }
    Ok(Prepared::Waits)
}

/// Makes durable what has come of a guest's disks: see [`super::Mover::rehearse`].
///
/// # Errors
/// Why it cannot.
pub async fn rehearse(host: &Host, op: OpId) -> Result<(), OpFailure> {
    let Some(staged) = host.arrivals.staged(op) else {
        return Err(failure_of(&nothing_comes()));
    };
    let flushed = tokio::task::spawn_blocking(move || storage::sync_all(staged.dir())).await;
    let flushed = flushed.map_err(std::io::Error::other).flatten();
    flushed.map_err(file("its disks cannot be made durable")).map_err(|stop| failure_of(&stop))
}

fn nothing_comes() -> Stop {
    failed("stale", "no disks of it come here", "try it again")
}

/// All disks of a guest that comes are there: see [`super::Mover::settle`].
///
/// # Errors
/// Why they cannot be kept.
pub async fn settle(host: &Host, op: OpId) -> Result<(), OpFailure> {
    let Some((machine, landing)) = host.arrivals.landing(op) else {
        return Err(failure_of(&nothing_comes()));
    };
    landing.settle(machine.as_deref()).await.map_err(|stop| failure_of(&stop))
}

/// Ends a machine that waits and is not needed.
pub async fn abandon(host: &Host, record: Option<&VmRecord>, vm: VmId, op: OpId) {
    let Some(waiting) = host.arrivals.remove(vm, op) else { return };
    if waiting.launched.is_none() {
        // Of files that do not come the state knows, and somebody removes them.
        return;
    }
    drop(waiting);
    if let Err(error) = host.engine.reap(vm).await {
        tracing::warn!(%vm, %error, "a machine that nobody needs does not go away");
    }
    if let Some(record) = record {
        close_ports(host, record).await;
    }
}

async fn close_ports(host: &Host, record: &VmRecord) {
    futures::future::join_all(record.spec.nics.iter().map(|nic| host.ports.close(nic.id))).await;
}

/// Makes a directory that files of a machine without a process come to.
async fn make_still(host: &Host, record: &VmRecord, offer: &Offer) -> Step<Prepared> {
    let stale = || failed("stale", "it is not what the state says of it", "try it again");
    let Some(offered) = &offer.storage else { return Err(stale()) };
    let still = matches!(record.power, Power::Off | Power::Saved);
    if offer.generation != record.generation || !still {
        return Err(stale());
    }
    let there = &record.in_storage(&offered.target);
    (host.volume_ready)(there).map_err(Stop::Volume)?;
    if VmFiles::new(&(host.vms_dir)(there), record.id).is_coming(offer.op) {
        return Ok(Prepared::Whole);
    }
    let landing = Some(landing::make_still(host, there, offer.op, offered).await?);
    host.arrivals.put(record.id, Waiting { op: offer.op, launched: None, landing });
    Ok(Prepared::Waits)
}

async fn make(host: &Host, record: &VmRecord, offer: &Offer) -> Step<()> {
    if offer.generation != record.generation {
        return Err(failed("stale", "another run of it has begun", "try it again"));
    }
    if offer.cpus > record.spec.cpus.max || offer.boot_memory > record.spec.memory.max {
        return Err(failed("stale", "it is not what the state says of it", "try it again"));
    }
    let run = offer.generation.next();
    let there = match &offer.storage {
        Some(offered) => &record.in_storage(&offered.target),
        None => record,
    };
    (host.volume_ready)(there).map_err(Stop::Volume)?;
    let landing = match &offer.storage {
        Some(offered) => Some(landing::make(host, there, offer.op, offered).await?),
        None => None,
    };
    let files = match &landing {
        Some(landing) => landing.staged.clone(),
        None => {
            let files = VmFiles::new(&(host.vms_dir)(record), record.id);
            // Before anything of it could run here. It keeps older runs from these disks only, and
            // the source's is the newest until the handover.
            claim(&files, run)?;
            // It opens them while the source's guest still writes.
            rights::hold(&*host.rights, record, &files).await?;
            files
        }
    };
    let (launch, begun) = (launch(host, there, &files, offer).await?, Instant::now());
    let launched = host.engine.launch(LaunchPlan { generation: run, ..launch }).await?;
    launched.machine.incoming().await?;
    if landing.is_some() {
        launched.machine.receive(&landing::slots(there)).await?;
    }
    tracing::info!(vm = %record.name, launch = ?begun.elapsed(), "a machine waits for its guest");
    host.arrivals.put(record.id, Waiting { op: offer.op, launched: Some(launched), landing });
    Ok(())
}

/// What the machine is to be like.
async fn launch(
    host: &Host,
    record: &VmRecord,
    files: &VmFiles,
    offer: &Offer,
) -> Step<LaunchPlan> {
    let mut nics = Vec::new();
    for nic in &record.spec.nics {
        let tap = host.ports.open(record.id, nic).await.map_err(|why| {
            let message = format!("adapter {} cannot be plugged in: {why}", nic.name);
            failed("network", message, "see the network: muster network show NAME")
        })?;
        nics.push(plan::nic(record, nic, tap));
    }
    let seed = record.spec.cloud_init.is_some().then(|| files.seed());
    let parts = plan::Parts {
        layout: offer.layout.clone(),
        nics,
        seed,
        restore: Some(RestorePlan::Stream(offer.op)),
        generation_id: files.generation_id().map_err(file("its generation id cannot be read"))?,
    };
    let size = plan::Size { cpus: offer.cpus, memory: offer.boot_memory };
    Ok(plan::launch(record, files, &*host.image_path, parts, size))
}

fn claim(files: &VmFiles, run: model::Generation) -> Step<()> {
    match files.claim(run).map_err(file("its generation cannot be written"))? {
        None => Ok(()),
        Some(newer) => Err(Stop::Volume(format!("its disks were used by run {newer} already"))),
    }
}
