//! Creating, starting, stopping and saving.

use std::time::Duration;

use model::OpOutcome;
use model::Power;
use model::SavedState;
use model::VmRecord;
use tokio::time::Instant;

use crate::engine::MachineEvent;
use crate::engine::NicPlan;
use crate::engine::RestorePlan;
use crate::engine::RunState;
use crate::engine::SavePhase;
use crate::lifecycle::Phase;
use crate::lifecycle::driver::Driver;
use crate::lifecycle::ops::Step;
use crate::lifecycle::ops::Stop;
use crate::lifecycle::ops::Task;
use crate::lifecycle::ops::failed;
use crate::lifecycle::ops::file;
use crate::lifecycle::ops::race;
use crate::lifecycle::plan;
use crate::wait::on_disk;

/// How often the progress of a save is looked at.
const SAVE_LOOK_EVERY: Duration = Duration::from_millis(200);

/// How long the agent alone may try to shut the guest down before the power button is pressed too:
/// an agent that took the order and could not carry it out is common.
const BUTTON_AFTER: Duration = Duration::from_secs(10);

impl Driver {
    pub(crate) async fn create(&mut self, record: &VmRecord, task: &Task<'_>) -> Step<OpOutcome> {
        self.publisher.phase(Phase::Creating);
        self.files.make().map_err(file("its directory cannot be made"))?;
        let count = record.spec.disks.len() as u64;
        for (done, disk) in record.spec.disks.iter().enumerate() {
            self.progress(task, "making disks", done as u64, count);
            self.make_disk_file(task, disk).await?;
        }
        let copy = record.clone();
        let written = self.with_files(move |files| {
            // Made here, since a start should wait for no disk.
            files.generation_id()?;
            files.write_record(&copy)
        });
        written.await.map_err(file("its record cannot be written"))?;
        self.publisher.phase(Phase::Off);
        Ok(OpOutcome::Done)
    }

    pub(crate) async fn start(&mut self, record: &VmRecord, task: &Task<'_>) -> Step<OpOutcome> {
        if let Some(run) = &self.run {
            if run.info.generation == record.generation {
                // An earlier daemon got this far. It puts the memory away before the guest goes on,
                // so memory that is still in its place is what this machine was made from.
                self.publisher.phase(Phase::Starting);
                let restored = record
                    .saved
                    .is_some_and(|saved| on_disk(|| self.files.memory(saved.generation).exists()));
                self.make_ready(record, restored).await?;
                return Ok(OpOutcome::Done);
            }
            self.end_machine().await?;
        }
        self.publisher.phase(Phase::Starting);
        self.progress(task, if record.saved.is_some() { "restoring" } else { "starting" }, 0, 0);
        self.boot_within(record, Some(task)).await?;
        Ok(OpOutcome::Done)
    }

    /// Starts the machine without an operation around it.
    pub(crate) async fn boot(&mut self, record: &VmRecord) -> Step<()> {
        self.boot_within(record, None).await
    }

    async fn boot_within(&mut self, record: &VmRecord, task: Option<&Task<'_>>) -> Step<()> {
        self.volume_ready(record)?;
        self.files.make().map_err(file("its directory cannot be made"))?;
        if record.volume.is_some() {
            self.claim(record)?;
        }
        if record.saved.is_none() {
            // Of a save that is over. Its disks change from here on, so it must not be there when
            // the VM is ever registered again.
            self.files.drop_memory();
        }
        let restore = self.open_memory(record)?;
        let restored = restore.is_some();
        let nics = self.open_ports(record).await?;
        let layout = match (&record.saved, &restore) {
            (Some(saved), Some(_)) => self.files.read_memory_layout(saved.generation),
            _ => self.files.read_layout(),
        };
        let parts = plan::Parts {
            layout: layout.map_err(file("the layout of its devices cannot be read"))?,
            nics,
            seed: self.make_seed(record, restored)?,
            restore,
            generation_id: self
                .files
                .generation_id()
                .map_err(file("its generation id cannot be written"))?,
        };
        let size = plan::Size::of(record, restored);
        let plan = plan::launch(record, &self.files, &*self.host.image_path, parts, size);
        let host = self.host.clone();
        let launching = host.engine.launch(plan);
        let launched = match task {
            Some(task) => race(&mut self.wanted, task, launching).await??,
            None => launching.await?,
        };
        self.take(launched);
        self.make_ready(record, restored).await
    }

    /// Puts the right to run on the disk itself, where every node sees it (DESIGN.md section 4,
    /// rule 1): a node that was away and missed that the VM went elsewhere finds it there.
    fn claim(&self, record: &VmRecord) -> Step<()> {
        let newer = self.files.claim(record.generation);
        match newer.map_err(file("its generation cannot be written"))? {
            None => Ok(()),
            Some(newer) => Err(Stop::Volume(format!(
                "its disks were used by run {newer} already, and this is run {}",
                record.generation
            ))),
        }
    }

    /// From a machine that is launched to a guest that goes on. Can be done again.
    async fn make_ready(&mut self, record: &VmRecord, restored: bool) -> Step<()> {
        self.set_up(record, restored).await?;
        if let (Some(saved), true) = (&record.saved, restored) {
            // From here on the disks change, so this memory must never be used again.
            self.files
                .consume_memory(saved.generation)
                .map_err(file("the saved memory cannot be put away"))?;
        }
        self.go_on().await?;
        // Without it the next start makes the same one, unless devices have come or gone meanwhile.
        self.keep_layout().await?;
        if restored {
            self.sync_time_soon(record);
        }
        Ok(())
    }

    /// What a machine needs between its launch and its first instruction.
    async fn set_up(&mut self, record: &VmRecord, restored: bool) -> Step<()> {
        let machine = self.machine()?;
        if let (Some(saved), true) = (&record.saved, restored)
            && saved.memory != saved.boot_memory
        {
            machine.set_memory(saved.memory).await?;
        }
        if let Some(target) = record.spec.memory.balloon {
            machine.balloon(target).await?;
        }
        Ok(())
    }

    pub(crate) async fn go_on(&mut self) -> Step<()> {
        let machine = self.machine()?;
        self.let_go_on(&machine).await?;
        self.observe().await;
        Ok(())
    }

    /// The saved memory, if there is one that may be used.
    fn open_memory(&self, record: &VmRecord) -> Step<Option<RestorePlan>> {
        let Some(saved) = &record.saved else { return Ok(None) };
        match on_disk(|| std::fs::File::open(self.files.memory(saved.generation))) {
            Ok(file) => Ok(Some(RestorePlan::File(file))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let text = "its saved memory was used once already, and it is started from its \
                            disks, as after a power cut";
                self.note(model::Severity::Warning, text.to_owned());
                Ok(None)
            }
            Err(error) => Err(file("its saved memory cannot be opened")(error)),
        }
    }

    async fn open_ports(&mut self, record: &VmRecord) -> Step<Vec<NicPlan>> {
        let mut nics = Vec::new();
        for nic in &record.spec.nics {
            let tap = self.host.ports.open(self.vm, nic).await.map_err(|why| {
                let message = format!("adapter {} cannot be plugged in: {why}", nic.name);
                failed("network", message, "see the network: muster network show NAME")
            })?;
            nics.push(plan::nic(record, nic, tap));
        }
        Ok(nics)
    }

    /// After a start that stopped: nothing of it runs, and the VM is where it was.
    pub(crate) async fn undo_start(&mut self, record: &VmRecord) -> Power {
        // What does not go away is looked for again, and has no right to run.
        let _ = self.end_machine().await;
        match &record.saved {
            Some(saved) if on_disk(|| self.files.memory(saved.generation).exists()) => Power::Saved,
            _ => Power::Off,
        }
    }

    pub(crate) async fn resume(&mut self, record: &VmRecord, task: &Task<'_>) -> Step<OpOutcome> {
        self.progress(task, "resuming", 0, 0);
        self.go_on().await?;
        self.sync_time_soon(record);
        Ok(OpOutcome::Done)
    }

    pub(crate) async fn pause(&mut self, task: &Task<'_>) -> Step<OpOutcome> {
        self.progress(task, "pausing", 0, 0);
        self.machine()?.pause().await?;
        self.observe().await;
        Ok(OpOutcome::Done)
    }

    pub(crate) async fn reset(&mut self, task: &Task<'_>) -> Step<OpOutcome> {
        self.progress(task, "resetting", 0, 0);
        self.machine()?.reset().await?;
        Ok(OpOutcome::Done)
    }

    /// Agent first where there is one, then the power button; then, if wanted, the plug.
    pub(crate) async fn shut_down(
        &mut self,
        record: &VmRecord,
        task: &Task<'_>,
        patience: Duration,
        then_off: bool,
    ) -> Step<OpOutcome> {
        let begun = Instant::now();
        let until = (begun + patience).min(task.deadline);
        self.publisher.phase(Phase::Stopping);
        self.progress(task, "waiting for the guest", 0, 0);
        if self.run.is_none() {
            // An earlier daemon got this far.
            self.end_machine().await?;
            return Ok(OpOutcome::Done);
        }
        match self.ask_to_shut_down(record, task, begun, until).await {
            Ok(true) => {}
            Ok(false) if then_off => {
                let text = "the guest did not shut down in time and was turned off";
                self.note(model::Severity::Warning, text.to_owned());
            }
            Ok(false) => {
                self.observe().await;
                return Err(failed(
                    "guest_did_not_shut_down",
                    format!("the guest did not shut down within {} s", patience.as_secs()),
                    format!("look at its console, or turn it off: muster vm off {}", record.name),
                ));
            }
            // It cannot even be asked.
            Err(Stop::Engine(error)) if then_off => {
                let text = format!("the guest could not be asked and was turned off: {error}");
                self.note(model::Severity::Warning, text);
            }
            Err(stop) => return Err(stop),
        }
        self.end_machine().await?;
        Ok(OpOutcome::Done)
    }

    /// Asks the guest in every way there is. True when it is down.
    async fn ask_to_shut_down(
        &mut self,
        record: &VmRecord,
        task: &Task<'_>,
        begun: Instant,
        until: Instant,
    ) -> Step<bool> {
        let machine = self.machine()?;
        if machine.query_status().await? == RunState::ShutDown {
            return Ok(true);
        }
        let by_agent = record.spec.services.shutdown && self.agent_shutdown().await;
        if !by_agent {
            machine.powerdown().await?;
        }
        let first = if by_agent { (begun + BUTTON_AFTER).min(until) } else { until };
        let mut down = self.await_shutdown(task, first).await?;
        if !down && by_agent && Instant::now() < until {
            machine.powerdown().await?;
            down = self.await_shutdown(task, until).await?;
        }
        Ok(down)
    }

    async fn await_shutdown(&mut self, task: &Task<'_>, until: Instant) -> Step<bool> {
        let down = self
            .event(task, until, |event| match event {
                MachineEvent::ShutDown(_) | MachineEvent::Exited(_) => Some(()),
                _ => None,
            })
            .await?;
        Ok(down.is_some())
    }

    pub(crate) async fn save(&mut self, record: &VmRecord, task: &Task<'_>) -> Step<OpOutcome> {
        let machine = self.machine()?;
        let run = record.generation;
        self.publisher.phase(Phase::Saving);
        let memory = machine.memory_state().await?;
        let cpus = machine.inventory().await?.vcpus.plugged;
        let saved = |size: u64, at| SavedState {
            generation: run,
            size: model::Bytes::new(size),
            at,
            cpus,
            boot_memory: memory.boot,
            memory: memory.requested,
        };
        // An earlier daemon may have got some of the way. A file counts only while the machine stands
        // where that file was written: once the guest goes on, it is of the past.
        let stands = machine.query_status().await? == RunState::Saved;
        if stands && let Ok(written) = on_disk(|| std::fs::metadata(self.files.memory(run))) {
            return Ok(OpOutcome::Saved { saved: saved(written.len(), self.host.ledger.now()) });
        }
        let under_way = machine.save_progress().await?.phase == SavePhase::Running;
        if !(self.files.has_part() && (stands || under_way)) {
            if stands {
                // It wrote into a file that is not there any more.
                machine.save_cancel().await?;
            }
            self.files.abandon_save(run).map_err(file("an old memory file cannot be removed"))?;
            let part = self.files.begin_save().map_err(file("the memory cannot be written"))?;
            machine.save(part).await?;
        }
        self.await_saved(task).await?;
        let layout = machine.layout();
        let size = self
            .files
            .commit_save(run, &layout)
            .map_err(file("the written memory cannot be made durable"))?;
        Ok(OpOutcome::Saved { saved: saved(size, self.host.ledger.now()) })
    }

    async fn await_saved(&mut self, task: &Task<'_>) -> Step<()> {
        loop {
            let progress = self.machine()?.save_progress().await?;
            self.progress(task, "writing memory", progress.done.get(), progress.total.get());
            match progress.phase {
                SavePhase::Done => return Ok(()),
                SavePhase::Failed(why) => return Err(save_failed(&why)),
                SavePhase::Cancelled => return Err(Stop::Cancelled),
                SavePhase::Idle | SavePhase::Running => {}
            }
            // The event says only when to look: it may be of an earlier save.
            self.event(task, Instant::now() + SAVE_LOOK_EVERY, |event| match event {
                MachineEvent::SaveEnded(_) => Some(()),
                _ => None,
            })
            .await?;
        }
    }

    /// After a save that stopped: no file is left, and the guest goes on if it ran.
    pub(crate) async fn undo_save(&mut self, record: &VmRecord) {
        let machine = self.machine().ok();
        if let Some(machine) = &machine
            && let Err(error) = machine.save_cancel().await
        {
            tracing::warn!(vm = %self.vm, %error, "a save could not be given up");
        }
        // Before the guest goes on: its disks change then, and this memory no longer fits them.
        if let Err(error) = self.files.abandon_save(record.generation) {
            self.note(model::Severity::Error, format!("a file of a save is left over: {error}"));
        }
        if let (Some(machine), Power::Running) = (machine, record.power)
            && let Err(error) = self.let_go_on(&machine).await
        {
            self.note(model::Severity::Error, format!("it does not go on after a save: {error}"));
        }
    }
}

fn save_failed(why: &str) -> Stop {
    let full = why.contains("No space left");
    failed(
        if full { "no_space" } else { "save" },
        format!("the memory could not be written: {why}"),
        "free space on the node (muster node show) and save again; the guest goes on",
    )
}
