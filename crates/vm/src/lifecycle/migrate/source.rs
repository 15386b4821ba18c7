//! The source's side, and the first steps of the guest at the target: what a driver does for a
//! migration of its VM.

use std::sync::Arc;
use std::time::Duration;

use model::Bytes;
use model::MigrateForecast;
use model::MigratePolicy;
use model::MigrateReport;
use model::MigrateResult;
use model::NO_CONVERGENCE;
use model::NodeId;
use model::OpId;
use model::OpOutcome;
use model::Power;
use model::Severity;
use model::StorageTarget;
use model::VmRecord;
use tokio::time::Instant;

use super::AfterHandover;
use super::HANDOVER_AGAIN;
use super::HandoverNote;
use super::Handovers;
use super::Lane;
use super::Offer;
use super::along::Along;
use super::carry::Carriers;
use super::forecast;
use super::ladder::Ladder;
use super::ladder::Measure;
use super::millis;
use super::pace::Pace;
use super::squeeze;
use crate::engine::EngineError;
use crate::engine::Machine;
use crate::engine::MachineEvent;
use crate::engine::MigratePhase;
use crate::engine::MigrateProgress;
use crate::engine::RunState;
use crate::engine::Switch;
use crate::lifecycle::Images;
use crate::lifecycle::Phase;
use crate::lifecycle::driver::Driver;
use crate::lifecycle::ops::Step;
use crate::lifecycle::ops::Stop;
use crate::lifecycle::ops::Task;
use crate::lifecycle::ops::failed;
use crate::lifecycle::ops::race;

/// How long the guest's changes are looked at before: as long as the target needs to get ready.
const SAMPLE: Duration = Duration::from_millis(150);

/// How often progress is looked at, beside events.
const LOOK_EVERY: Duration = Duration::from_millis(40);

/// How often it is looked whether a guest that stands is switched over.
const SWITCH_LOOK: Duration = Duration::from_millis(2);

/// How long a migration of an earlier daemon may take to notice that nobody carries it.
const OLD_ONE_MAX: Duration = Duration::from_secs(10);

/// What is taken for the way's bandwidth where it was not measured: 1 Gb/s.
pub(super) const BANDWIDTH_UNKNOWN: Bytes = Bytes::new(125_000_000);

/// What happened to a machine that is being sent.
enum Moved {
    Stopped,
    Resumed,
    ShutDown,
    Look,
}

impl Driver {
    /// Sends the guest to another node; at the target, lets it go on. Ends by [`Stop::Left`] when the
    /// VM is no longer this node's.
    pub(crate) async fn migrate(
        &mut self,
        record: &VmRecord,
        task: &Task<'_>,
        to: NodeId,
        policy: MigratePolicy,
        storage: Option<&StorageTarget>,
    ) -> Step<OpOutcome> {
        if record.arrived_by() == Some(task.op.id) {
            return match record.power {
                Power::Off | Power::Saved => Ok(self.arrived_still(record, task)),
                Power::Running | Power::Paused => self.arrived(record, task).await,
            };
        }
        if matches!(record.power, Power::Off | Power::Saved) {
            return self.migrate_still(record, task, (to, storage), policy).await;
        }
        let machine = self.machine()?;
        self.end_old_migration(task, &machine).await?;
        self.progress(task, "preparing", 0, 0);
        let images = self.images_to_give_up(record, storage.is_some()).await?;
        let asked = Instant::now();
        let prepared = self.prepare(record, task, (to, storage), &machine).await?;
        let (known, fallback) = prepared;
        self.publisher.phase(Phase::Migrating);
        let begun = Instant::now();
        let pace = Arc::new(Pace::new(policy.bandwidth));
        let along = match storage {
            Some(target) => {
                Some(self.send_disks(record, task, (to, target), &machine, pace.clone()).await?)
            }
            None => None,
        };
        let flush = along.as_ref().map(|along| along.flush.unwrap_or(forecast::FLUSH_UNKNOWN));
        let forecast = forecast::forecast(forecast::Known { flush, ..known }, policy);
        let mut ladder = Ladder::new(policy);
        let switch = if along.is_some() { Switch::OnWord } else { Switch::AtOnce };
        let outgoing = machine.migrate(ladder.first(), switch).await?;
        let lane = (task.op.id, Lane::Memory);
        let carriers =
            Carriers::start(self.host.mover.clone(), to, lane, outgoing.connections, pace);
        let sent = self.send(task, &machine, &mut ladder, &carriers, along.as_ref()).await;
        let (seen, stopped) = sent.map_err(|stop| explain(stop, &carriers))?;
        // As far as the source can know, and by the engine, which knows it to the millisecond: what the
        // target counts begins where this ends.
        let stood = seen.stood.unwrap_or_else(|| stopped.elapsed());
        let gave_up = self.give_up_images(&images).await?;
        let copied = along.as_ref().map_or(Bytes::ZERO, |along| along.copied);
        let measured = MigrateResult {
            total_ms: millis(begun.elapsed()),
            pause_ms: millis(stood),
            passes: seen.pass,
            bytes: seen.sent.checked_add(copied).unwrap_or(seen.sent),
            empty: seen.empty,
            ..MigrateResult::default()
        };
        let report =
            MigrateReport { predicted: Some(forecast), measured: Some(measured), fallback };
        let (op, generation) = (task.op.id, record.generation);
        self.hand_over(HandoverNote { op, generation, report }).await?;
        tracing::info!(
            vm = %record.name, preparing = ?begun - asked, sending = ?stopped - begun,
            images = ?gave_up, pause = ?stopped.elapsed(), "handed over"
        );
        Err(Stop::Left)
    }

    /// The images that change hands. With disks that come along nobody but this node ever writes these.
    async fn images_to_give_up(&self, record: &VmRecord, along: bool) -> Step<Images> {
        if along {
            return Ok(Images::default());
        }
        let images = self.images_of(record).await?;
        // Changes nothing; a volume that knows of no holding says so here.
        self.free(&images).await?;
        Ok(images)
    }

    /// The guest stands and its engine has closed the images: this node writes them no more. Tells how long
    /// that took. Before the handover, so that the target never waits for a node that may be gone.
    async fn give_up_images(&self, images: &Images) -> Step<Duration> {
        let begun = Instant::now();
        if !images.is_empty() {
            let held = self.host.rights.hold(images).await;
            held.map_err(|why| broken(&format!("its disks cannot change hands: {why}")))?;
        }
        Ok(begun.elapsed())
    }

    /// What an earlier daemon has begun is over: its connections have ended with it. A guest that
    /// stands at the end of one may have been handed over by a proposal that is still on its way;
    /// only the end of the operation makes sure that it was not.
    async fn end_old_migration(&self, task: &Task<'_>, machine: &Arc<dyn Machine>) -> Step<()> {
        let interrupted = || {
            failed(
                "interrupted",
                "the daemon was started again in the middle of it",
                "the guest goes on where it was; migrate it again",
            )
        };
        if machine.query_status().await? == RunState::Saved {
            return Err(interrupted());
        }
        // Copies of disks have lost their connections as well.
        machine.mirror_cancel().await?;
        let under_way = |phase| matches!(phase, MigratePhase::Running | MigratePhase::Waiting);
        if !under_way(machine.migrate_progress().await?.phase) {
            return Ok(());
        }
        machine.migrate_cancel().await?;
        let end = (Instant::now() + OLD_ONE_MAX).min(task.deadline);
        while under_way(machine.migrate_progress().await?.phase) {
            if Instant::now() > end {
                return Err(interrupted());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Lets the target get ready, and looks at the guest meanwhile.
    async fn prepare(
        &mut self,
        record: &VmRecord,
        task: &Task<'_>,
        (to, storage): (NodeId, Option<&StorageTarget>),
        machine: &Arc<dyn Machine>,
    ) -> Step<(forecast::Known, Option<String>)> {
        let memory = machine.memory_state().await?;
        let storage = match storage {
            Some(target) => Some(self.offer_files(record, target, machine).await?),
            None => None,
        };
        let disks = storage.as_ref().map_or(Bytes::ZERO, |files| files.needed);
        let storage_free = storage.is_none();
        let offer = Offer {
            op: task.op.id,
            vm: record.id,
            generation: record.generation,
            layout: machine.layout(),
            cpus: machine.inventory().await?.vcpus.plugged,
            boot_memory: memory.boot,
            storage,
            still: false,
        };
        let mover = self.host.mover.clone();
        // Disks go before the memory, and a guest has used it again when they are there.
        let squeezed = storage_free.then(|| resident(machine.run().pid).unwrap_or(memory.present));
        let look = async {
            if let Some(resident) = squeezed {
                squeeze::squeeze(machine, record, resident).await;
            }
            machine.dirty_rate(SAMPLE).await
        };
        let both = async { tokio::join!(mover.prepare(to, offer), look) };
        let (ready, dirty_rate) = race(&mut self.wanted, task, both).await?;
        let ready = ready.map_err(|failure| Stop::Failed {
            code: "target",
            message: failure.message,
            hint: failure.hint,
        })?;
        let dirty_rate = dirty_rate.ok();
        let known = known(&**machine, memory.present, ready.bandwidth, dirty_rate);
        // What it takes to flush them is measured when they are there.
        Ok((forecast::Known { disks, ..known }, ready.fallback))
    }

    /// Sends until the target has everything. Gives what was seen last, and when the guest stopped.
    async fn send(
        &mut self,
        task: &Task<'_>,
        machine: &Arc<dyn Machine>,
        ladder: &mut Ladder,
        carriers: &Carriers,
        along: Option<&Along>,
    ) -> Step<(MigrateProgress, Instant)> {
        let begun = Instant::now();
        let mut stopped = None;
        let mut waits_for_disks = along;
        loop {
            let seen = machine.migrate_progress().await?;
            let done = seen.total.saturating_sub(seen.remaining);
            let step = format!("sending memory, pass {}", seen.pass);
            self.progress(task, &step, done.get(), seen.total.get());
            match &seen.phase {
                MigratePhase::Done => return Ok((seen, stopped.unwrap_or_else(Instant::now))),
                MigratePhase::Failed(why) => return Err(broken(why)),
                MigratePhase::Cancelled => return Err(Stop::Cancelled),
                MigratePhase::Idle | MigratePhase::Running => {}
                MigratePhase::Waiting => {
                    // Once: it may be seen to wait for a moment longer.
                    if let Some(along) = waits_for_disks.take() {
                        stopped.get_or_insert_with(Instant::now);
                        self.close_disks(task, machine, along).await?;
                        machine.migrate_switch().await?;
                    }
                    tokio::time::sleep(SWITCH_LOOK).await;
                    continue;
                }
            }
            match ladder.step(&seen, begun.elapsed()) {
                Some(Measure::Tune(tuning, words)) => {
                    machine.migrate_tune(tuning).await?;
                    self.note(
                        Severity::Info,
                        format!("pass {} of its migration: {words}", seen.pass),
                    );
                }
                Some(Measure::GiveUp(words)) => return Err(too_quick(&words)),
                Some(Measure::Stalled) => {
                    let why = carriers.problem();
                    return Err(broken(why.as_deref().unwrap_or("nothing moves any more")));
                }
                None => {}
            }
            match self.moved(task).await? {
                Some(Moved::Stopped) => {
                    stopped = Some(Instant::now());
                    // The engine has its hands full now; the next word from it is the last.
                    let _ = self.moved(task).await?;
                }
                Some(Moved::Resumed) => stopped = None,
                Some(Moved::ShutDown) => {
                    return Err(failed(
                        "guest_shut_down",
                        "the guest shut itself down meanwhile",
                        "it stays where it is",
                    ));
                }
                Some(Moved::Look) | None => {}
            }
        }
    }

    async fn moved(&mut self, task: &Task<'_>) -> Step<Option<Moved>> {
        self.event(task, Instant::now() + LOOK_EVERY, |event| match event {
            MachineEvent::Stopped => Some(Moved::Stopped),
            MachineEvent::Resumed => Some(Moved::Resumed),
            MachineEvent::ShutDown(_) => Some(Moved::ShutDown),
            MachineEvent::MigrationMoved | MachineEvent::Lagged(_) => Some(Moved::Look),
            _ => None,
        })
        .await
    }

    /// The one decision. The guest stands until it is known: it must not go on here while the state
    /// may still give it to the target.
    pub(super) async fn hand_over(&mut self, note: HandoverNote) -> Step<()> {
        let begun = Instant::now();
        let mut handovers = Handovers::default();
        loop {
            let answer = self.host.ledger.hand_over(note.clone()).await;
            match handovers.answered(answer, begun.elapsed()) {
                AfterHandover::Leave => return Ok(()),
                AfterHandover::Stand(why) => return Err(handover_failed(&why)),
                AfterHandover::GoOn(why) => {
                    if self.run.is_some() {
                        self.go_on().await?;
                    }
                    return Err(handover_failed(&why));
                }
                AfterHandover::Again(why) => {
                    tracing::warn!(vm = %self.vm, why, "a handover is proposed again");
                }
            }
            tokio::time::sleep(HANDOVER_AGAIN).await;
        }
    }

    /// The VM is this node's since the handover: lets its guest go on.
    async fn arrived(&mut self, record: &VmRecord, task: &Task<'_>) -> Step<OpOutcome> {
        let machine = match self.machine() {
            Ok(machine) if machine.run().arrival == Some(task.op.id) => machine,
            _ => {
                self.note_lost_on_arrival();
                return Err(failed(
                    "lost_on_arrival",
                    "the machine that it had arrived in is not there any more",
                    "it is started again from its disks, as after a crash",
                ));
            }
        };
        // A daemon that was started since does not know, and counts from here.
        let loaded = machine.loaded_at().unwrap_or_else(Instant::now);
        let commit_ms = millis(loaded.elapsed());
        let memory = machine.memory_state().await?;
        if memory.block != Bytes::ZERO && memory.requested != record.spec.memory.size {
            // Before the guest goes on: it would take the machine's own figure for a wish.
            machine.set_memory(record.spec.memory.size).await?;
        }
        if let Err(stop) = self.let_go_on(&machine).await {
            return Err(self.cannot_begin(stop).await);
        }
        let more = millis(loaded.elapsed());
        if let Err(error) = machine.announce().await {
            self.note(Severity::Warning, format!("the network was not told of its move: {error}"));
        }
        self.observe().await;
        self.keep_layout_if_it_can().await;
        self.keep_files_that_came(record, task);
        let before = task.op.migration.as_ref().and_then(|report| report.measured);
        let before = before.unwrap_or_default();
        let measured = MigrateResult {
            total_ms: before.total_ms.saturating_add(more),
            pause_ms: before.pause_ms.saturating_add(more),
            commit_ms,
            ..before
        };
        Ok(OpOutcome::Migrated { measured })
    }

    /// A guest that has arrived does not go on. Where its engine refuses, its images are not what it opened
    /// any more (who served them has died), and never will be; its source is gone, and what it flushed is
    /// on its disks. So it is started from them.
    async fn cannot_begin(&mut self, stop: Stop) -> Stop {
        if !matches!(stop, Stop::Engine(EngineError::Command { .. })) {
            return stop;
        }
        if self.end_machine().await.is_ok() {
            self.note_lost_on_arrival();
        }
        failed(
            "lost_on_arrival",
            format!("it does not go on where it has arrived: {stop}"),
            "it is started again from its disks, as after a crash",
        )
    }

    /// Files that came along are this run's from here on.
    pub(super) fn keep_files_that_came(&self, record: &VmRecord, task: &Task<'_>) {
        if !self.files.is_coming(task.op.id) {
            return;
        }
        self.files.arrived();
        if record.volume.is_some()
            && let Err(error) = self.files.claim(record.generation)
        {
            tracing::warn!(vm = %self.vm, %error, "its run is not noted at its disks");
        }
    }

    /// After a migration that stopped: nothing is left at the target, and the guest goes on here as
    /// soon as the state knows that it stays (see [`super`]).
    pub(crate) async fn undo_migrate(&mut self, op: OpId, to: NodeId) {
        let mover = self.host.mover.clone();
        let Ok(machine) = self.machine() else {
            tokio::spawn(async move { mover.abandon(to, op).await });
            return;
        };
        if let Err(error) = machine.migrate_cancel().await {
            tracing::warn!(vm = %self.vm, %error, "a migration could not be given up");
        }
        // Held ones keep the guest from its disks.
        if let Err(error) = machine.mirror_cancel().await {
            tracing::warn!(vm = %self.vm, %error, "copies could not be given up");
        }
        // A guest that was sent may still be handed over, by a proposal that is on its way: then the
        // machine at the target is the only one that has it. When no handover can happen any more,
        // the target sees that in the state.
        if !matches!(machine.query_status().await, Ok(status) if status != RunState::Saved) {
            return;
        }
        // A target that does not answer must not keep the guest waiting.
        tokio::spawn(async move { mover.abandon(to, op).await });
    }
}

/// What a live migration of a machine would take that began now, its disks staying where they are. Nothing of
/// the machine is changed; its guest is looked at for some tenths of a second. `bandwidth` is what the way
/// carries, in bytes per second.
///
/// # Errors
/// The machine does not answer.
pub async fn outlook(
    machine: &dyn Machine,
    bandwidth: Bytes,
    policy: MigratePolicy,
) -> Result<MigrateForecast, EngineError> {
    let memory = machine.memory_state().await?;
    let dirty_rate = machine.dirty_rate(SAMPLE).await?;
    let known = known(machine, memory.present, Some(bandwidth), Some(dirty_rate));
    Ok(forecast::forecast(known, policy))
}

/// What is known of a machine's memory and of the way.
fn known(
    machine: &dyn Machine,
    present: Bytes,
    bandwidth: Option<Bytes>,
    dirty_rate: Option<Bytes>,
) -> forecast::Known {
    forecast::Known {
        memory: resident(machine.run().pid).unwrap_or(present).min(present),
        disks: Bytes::ZERO,
        flush: None,
        bandwidth: bandwidth.unwrap_or(BANDWIDTH_UNKNOWN),
        // A guest of which nothing is known is taken for an idle one; the ladder sees more.
        dirty_rate: dirty_rate.unwrap_or(Bytes::ZERO),
    }
}

/// Memory that a process has on this host.
fn resident(pid: u32) -> Option<Bytes> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    Some(Bytes::new(pages.saturating_mul(4096)))
}

fn broken(why: &str) -> Stop {
    failed(
        "migration",
        format!("it could not be sent: {why}"),
        "the guest goes on where it was; see: muster event list",
    )
}

/// The engine only knows that its connection has ended; who carried it may know why.
fn explain(stop: Stop, carriers: &Carriers) -> Stop {
    match (&stop, carriers.problem()) {
        (Stop::Failed { code: "migration", .. }, Some(why)) => broken(&why),
        _ => stop,
    }
}

fn too_quick(words: &str) -> Stop {
    failed(
        NO_CONVERGENCE,
        format!("the guest changes its memory faster than it can be sent: {words}"),
        "allow a longer pause (muster vm set NAME --migrate-max-pause 5s) or let it stand \
         (--migrate-at-limit force)",
    )
}

fn handover_failed(why: &str) -> Stop {
    failed(
        "handover",
        format!("the cluster did not take the handover: {why}"),
        "the guest goes on where it was; see: muster cluster status",
    )
}
