//! Disks that go to other files, by QEMU's mirror job.
//!
//! One job for each disk, `mirror-<place>-<side>`, which stays until it is dismissed by us: whoever
//! adopts the machine finds in the list of jobs how far each is. With `auto-finalize` off a job that
//! was completed is *pending*: it has drained and flushed the disk, with success, and holds the
//! guest's requests back until it is finalized (the new files are the machine's) or cancelled. That
//! is the two-phase commit that the state's one decision needs.
//!
//! The nodes of a disk that was moved have names of their own ([`key_of`]): sides are counted.

use std::collections::BTreeMap;

use model::Bytes;
use serde_json::Value;
use serde_json::json;

use super::args;
use super::image;
use super::machine::Inner;
use super::machine::Shared;
use crate::engine::DiskBus;
use crate::engine::DiskKind;
use crate::engine::DiskPlan;
use crate::engine::EngineError;
use crate::engine::ImageSlot;
use crate::engine::MirrorPhase;
use crate::engine::MirrorPlan;
use crate::engine::MirrorProgress;

/// Key of the firmware's variables among places.
const FIRMWARE: &str = "vars";

/// How long a job that was finalized, or cancelled, may take to end: it only has to take its hands
/// off, once what is on its way to the storage has come back.
const END_LIMIT: std::time::Duration = std::time::Duration::from_secs(10);

/// Pause between two looks at it.
const END_POLL: std::time::Duration = std::time::Duration::from_millis(2);

/// Key of the nodes of a place's images, after so many moves.
pub(super) fn key_of(place: &str, side: u32) -> String {
    match side {
        0 => place.to_owned(),
        side => format!("{place}m{side}"),
    }
}

/// One job of ours.
struct Job {
    place: String,
    side: u32,
    status: String,
    in_step: bool,
    done: u64,
    total: u64,
    error: Option<String>,
}

impl Job {
    fn id(place: &str, side: u32) -> String {
        format!("mirror-{place}-{side}")
    }

    fn read(value: &Value) -> Option<Self> {
        let (place, side) = value["device"].as_str()?.strip_prefix("mirror-")?.split_once('-')?;
        Some(Self {
            place: place.to_owned(),
            side: side.parse().ok()?,
            status: value["status"].as_str()?.to_owned(),
            in_step: value["ready"] == true && value["actively-synced"] == true,
            done: value["offset"].as_u64().unwrap_or_default(),
            total: value["len"].as_u64().unwrap_or_default(),
            error: value["error"].as_str().map(ToOwned::to_owned),
        })
    }

    fn has_ended(&self) -> bool {
        self.status == "concluded"
    }

    /// The new files are the machine's since.
    fn has_pivoted(&self) -> bool {
        self.has_ended() && self.error.is_none()
    }

    fn phase(&self) -> MirrorPhase {
        match (self.status.as_str(), &self.error) {
            ("concluded" | "aborting", why) => {
                let why = why.clone().unwrap_or_else(|| "it was given up".to_owned());
                MirrorPhase::Failed(why)
            }
            ("pending", _) => MirrorPhase::Held,
            ("ready", _) if self.in_step => MirrorPhase::InStep,
            _ => MirrorPhase::Copying,
        }
    }
}

async fn jobs(shared: &Shared) -> Result<Vec<Job>, EngineError> {
    let all = shared.run("query-block-jobs", json!({})).await?;
    Ok(all.as_array().into_iter().flatten().filter_map(Job::read).collect())
}

fn place_of(inner: &Inner, slot: ImageSlot) -> Result<String, EngineError> {
    match slot {
        ImageSlot::Firmware => Ok(FIRMWARE.to_owned()),
        ImageSlot::Disk(disk) => match inner.ports.disk(disk) {
            Some(place) => Ok(args::place_key(place)),
            None => Err(EngineError::NotPlugged(format!("disk {disk}"))),
        },
    }
}

fn slot_of(inner: &Inner, place: &str) -> Option<ImageSlot> {
    if place == FIRMWARE {
        return Some(ImageSlot::Firmware);
    }
    let mut disks = inner.record.chains.keys();
    let here = |disk: &&model::DiskId| {
        inner.ports.disk(**disk).is_some_and(|at| args::place_key(at) == place)
    };
    disks.find(here).map(|disk| ImageSlot::Disk(*disk))
}

/// Files of the chain of a place.
fn files_of(inner: &Inner, place: &str) -> usize {
    match slot_of(inner, place) {
        Some(ImageSlot::Disk(disk)) => inner.record.chains.get(&disk).copied().unwrap_or(1),
        Some(ImageSlot::Firmware) | None => 1,
    }
}

/// Place, side and number of files of what is to be copied.
pub(super) fn what(shared: &Shared, slot: ImageSlot) -> Result<(String, u32, usize), EngineError> {
    let inner = shared.lock();
    let place = place_of(&inner, slot)?;
    let (side, files) = (inner.record.side(&place), files_of(&inner, &place));
    Ok((place, side, files))
}

/// Refuses a place that is being copied.
pub(super) async fn not_copied(shared: &Shared, place: &str) -> Result<(), EngineError> {
    if jobs(shared).await?.iter().any(|job| job.place == place) {
        let command = "blockdev-mirror".to_owned();
        return Err(EngineError::Command { command, why: "it is being copied already".into() });
    }
    Ok(())
}

/// The job that copies a place from one node to another; `sync` as QEMU has it.
pub(super) async fn start(
    shared: &Shared,
    (place, side): (&str, u32),
    (old, new): (&str, &str),
    sync: &str,
) -> Result<(), EngineError> {
    let job = json!({
        "job-id": Job::id(place, side + 1),
        "device": image::top_node(old), "target": image::top_node(new),
        "sync": sync, "copy-mode": "background",
        "on-source-error": "report", "on-target-error": "report",
        "auto-finalize": false, "auto-dismiss": false,
    });
    shared.run("blockdev-mirror", job).await.map(drop)
}

/// Begins a copy.
pub(super) async fn begin(shared: &Shared, plan: MirrorPlan) -> Result<(), EngineError> {
    let (place, side, files) = what(shared, plan.slot)?;
    if plan.chain.len() != files {
        let why = format!("the new chain has {} files, the old one {files}", plan.chain.len());
        return Err(EngineError::Unsupported { what: "this copy".to_owned(), why });
    }
    not_copied(shared, &place).await?;
    let (old, new) = (key_of(&place, side), key_of(&place, side + 1));
    if let Some(top) = plan.chain.first() {
        shared.lock().record.targets.insert(place.clone(), top.path.clone());
        shared.store()?;
    }
    // Of an attempt that failed half-way.
    shared.close_images(&new, files).await;
    let begun = open_and_mirror(shared, &plan, &place, side, (&old, &new)).await;
    if begun.is_err() {
        shared.close_images(&new, files).await;
    }
    begun
}

async fn open_and_mirror(
    shared: &Shared,
    plan: &MirrorPlan,
    place: &str,
    side: u32,
    (old, new): (&str, &str),
) -> Result<(), EngineError> {
    let target = DiskPlan {
        id: model::DiskId::new(uuid::Uuid::nil()),
        kind: DiskKind::Disk,
        bus: DiskBus::Virtio,
        chain: plan.chain.clone(),
        // Written to by the copy, also where the guest may not.
        read_only: false,
        boot_index: None,
    };
    let images = image::open_chain(&target)?;
    let files = images.len();
    let mut nodes = Vec::new();
    for (at, image) in images.into_iter().enumerate() {
        let fd = image.fd.try_clone().map_err(EngineError::io("hand over an image"))?;
        let set = shared.run_with_fd("add-fd", json!({ "opaque": new }), fd).await?;
        let set = set["fdset-id"].as_i64().and_then(|set| i32::try_from(set).ok());
        let set = set.ok_or_else(|| EngineError::Garbage("add-fd without a set".to_owned()))?;
        nodes.push((at, image.blockdevs(new, at, at + 1 == files, set)));
    }
    for (at, pair) in nodes.into_iter().rev() {
        for node in pair {
            let added = shared.run("blockdev-add", node).await;
            added.map_err(|error| match error {
                EngineError::Command { why, .. } => image::explain(&plan.chain[at].path, &why),
                other => other,
            })?;
        }
    }
    // What lies in a file below is there already, and is never written to.
    let sync = if files > 1 { "top" } else { "full" };
    start(shared, (place, side), (old, new), sync).await
}

/// All copies under way.
pub(super) async fn progress(
    shared: &Shared,
) -> Result<BTreeMap<ImageSlot, MirrorProgress>, EngineError> {
    let jobs = jobs(shared).await?;
    let inner = shared.lock();
    let told = jobs.iter().filter(|job| !job.has_pivoted()).filter_map(|job| {
        let progress = MirrorProgress {
            phase: job.phase(),
            target: inner.record.targets.get(&job.place).cloned(),
            done: Bytes::new(job.done),
            total: Bytes::new(job.total),
        };
        Some((slot_of(&inner, &job.place)?, progress))
    });
    Ok(told.collect())
}

/// Makes the guest's writes wait for both files.
pub(super) async fn tighten(shared: &Shared) -> Result<(), EngineError> {
    for job in jobs(shared).await? {
        if matches!(job.status.as_str(), "running" | "ready") {
            let change = json!({
                "id": Job::id(&job.place, job.side), "type": "mirror",
                "copy-mode": "write-blocking",
            });
            shared.run("block-job-change", change).await?;
        }
    }
    Ok(())
}

/// Asks all copies that are in step to hold.
pub(super) async fn hold(shared: &Shared) -> Result<(), EngineError> {
    for job in jobs(shared).await? {
        if job.status == "ready" {
            let id = json!({ "id": Job::id(&job.place, job.side) });
            match shared.run("job-complete", id).await {
                // It was asked before, and has come further meanwhile; or it has failed, which the
                // next look shows.
                Ok(_) | Err(EngineError::Command { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Gives the machine the new files for good. Can be done again from any point.
pub(super) async fn pivot(shared: &Shared) -> Result<(), EngineError> {
    let all = jobs(shared).await?;
    let fit = |job: &&Job| job.status == "pending" || job.has_pivoted();
    if let Some(job) = all.iter().find(|job| !fit(job)) {
        let why = format!("{} is {} and not held", job.place, job.status);
        return Err(EngineError::Command { command: "job-finalize".to_owned(), why });
    }
    if let Some(job) = all.iter().find(|job| !shared.lock().record.targets.contains_key(&job.place))
    {
        let why = format!("{} is copied to another machine", job.place);
        return Err(EngineError::Command { command: "job-finalize".to_owned(), why });
    }
    for job in all.iter().filter(|job| job.status == "pending") {
        let id = json!({ "id": Job::id(&job.place, job.side) });
        shared.run("job-finalize", id).await?;
    }
    let ended = ended(shared).await?;
    if let Some(job) = ended.iter().find(|job| !job.has_pivoted()) {
        let why = job.error.clone().unwrap_or_default();
        return Err(EngineError::Command { command: "job-finalize".to_owned(), why });
    }
    settle(shared, ended).await
}

/// Gives all copies up, and closes the new files. Idempotent.
pub(super) async fn cancel(shared: &Shared) -> Result<(), EngineError> {
    for job in jobs(shared).await?.iter().filter(|job| !job.has_ended()) {
        let id = json!({ "id": Job::id(&job.place, job.side) });
        match shared.run("job-cancel", id).await {
            // It has ended by itself meanwhile, or is at it.
            Ok(_) | Err(EngineError::Command { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let ended = ended(shared).await?;
    settle(shared, ended).await
}

/// After adoption: goes through with what an earlier daemon has begun to pivot.
pub(super) async fn prune(shared: &Shared) -> Result<(), EngineError> {
    let pivoted = jobs(shared).await?.into_iter().filter(Job::has_pivoted).collect();
    settle(shared, pivoted).await
}

/// Waits until every job has ended.
async fn ended(shared: &Shared) -> Result<Vec<Job>, EngineError> {
    let end = tokio::time::Instant::now() + END_LIMIT;
    loop {
        let all = jobs(shared).await?;
        if all.iter().all(Job::has_ended) {
            return Ok(all);
        }
        if tokio::time::Instant::now() > end {
            return Err(EngineError::Hung {
                command: "the end of a mirror job".to_owned(),
                limit: END_LIMIT,
            });
        }
        tokio::time::sleep(END_POLL).await;
    }
}

/// Notes which files are the machine's after jobs that have ended, closes the others, and forgets the
/// jobs: in this order, so that whoever dies in between leaves the job to tell the next one.
async fn settle(shared: &Shared, ended: Vec<Job>) -> Result<(), EngineError> {
    for job in ended {
        let files = files_of(&shared.lock(), &job.place);
        let over = match job.has_pivoted() {
            true => job.side - 1,
            false => job.side,
        };
        if job.has_pivoted() {
            shared.lock().record.sides.insert(job.place.clone(), job.side);
            shared.store()?;
        }
        shared.close_images(&key_of(&job.place, over), files).await;
        let id = json!({ "id": Job::id(&job.place, job.side) });
        shared.run("job-dismiss", id).await?;
    }
    Ok(())
}
