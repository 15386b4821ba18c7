//! The target's side: machines that wait for guests of other nodes.

use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use model::OpFailure;
use model::OpId;
use model::VmId;
use model::VmRecord;
use tokio::time::Instant;

use super::Offer;
use super::landing;
use super::landing::Landing;
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
    launched: Launched,
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
        found.map(|waiting| waiting.launched.machine.clone())
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
    fn landing(&self, op: OpId) -> Option<(Arc<dyn Machine>, Option<Landing>)> {
        let mut waiting = self.lock();
        let found = waiting.values_mut().find(|waiting| waiting.op == op)?;
        Some((found.launched.machine.clone(), found.landing.take()))
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
        let mut waiting = self.lock();
        if waiting.get(&vm).is_none_or(|waiting| waiting.op != op) {
            return None;
        }
        waiting.remove(&vm).map(|waiting| waiting.launched)
    }

    fn put(&self, vm: VmId, waiting: Waiting) {
        self.lock().insert(vm, waiting);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<VmId, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a machine that waits for a guest. `record` is the VM as the state has it, still owned by the
/// source. The caller has made sure that nothing of the VM is left on this host, and watches the
/// operation to the end.
///
/// # Errors
/// Why it cannot; nothing is left of it.
pub async fn prepare(host: &Host, record: &VmRecord, offer: &Offer) -> Result<(), OpFailure> {
    if !host.arrivals.making().insert(record.id) {
        let stop = failed("busy", "a machine for it is being made there", "try it again");
        return Err(failure_of(&stop));
    }
    let _making = Making { arrivals: &host.arrivals, vm: record.id };
    if let Err(stop) = make(host, record, offer).await {
        // Its own error is told where it fails; what it leaves is looked for as a stray.
        let _ = host.engine.reap(record.id).await;
        close_ports(host, record).await;
        return Err(failure_of(&stop));
    }
    Ok(())
}

/// All disks of a guest that comes are there: see [`super::Mover::settle`].
///
/// # Errors
/// Why they cannot be kept.
pub async fn settle(host: &Host, op: OpId) -> Result<(), OpFailure> {
    let Some((machine, Some(landing))) = host.arrivals.landing(op) else {
        let stop = failed("stale", "no disks of it come here", "try it again");
        return Err(failure_of(&stop));
    };
    landing.settle(&*machine).await.map_err(|stop| failure_of(&stop))
}

/// Ends a machine that waits and is not needed.
pub async fn abandon(host: &Host, record: Option<&VmRecord>, vm: VmId, op: OpId) {
    let Some(launched) = host.arrivals.take(vm, op) else { return };
    drop(launched);
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
    host.arrivals.put(record.id, Waiting { op: offer.op, launched, landing });
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
