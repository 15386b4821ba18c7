//! Live migration of fake machines: the stream is what a save would write, and one byte back.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use model::Bytes;
use model::Millis;
use tokio::io::AsyncBufReadExt;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::io::BufReader;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::FakeHost;
use super::Fault;
use super::SAVED_MAX;
use super::lock;
use super::machine::FakeVm;
use super::machine::SavedDoc;
use crate::engine::EngineError;
use crate::engine::MachineEvent;
use crate::engine::MigratePhase;
use crate::engine::MigrateProgress;
use crate::engine::MigrateTuning;
use crate::engine::Outgoing;
use crate::engine::RunState;
use crate::engine::Switch;

/// How long a pass takes.
const PASS: Duration = Duration::from_millis(10);

/// How often it is looked whether the word to go on was given.
const WORD_LOOK: Duration = Duration::from_millis(1);

/// Passes of a guest that changes little.
const PASSES: u64 = 2;

/// A pause that any guest can be moved with.
const ANY_PAUSE: Millis = Millis::from_secs(600);

/// What the way carries when a guest is too quick for it, in bytes per second.
const SLOW: Bytes = Bytes::mib(10);

/// What the fake knows of its migration.
#[derive(Debug)]
pub(super) struct Migration {
    progress: MigrateProgress,
    tuning: MigrateTuning,
    switch: Switch,
}

impl Default for Migration {
    fn default() -> Self {
        let tuning = MigrateTuning { budget: Millis::new(0), throttle_max: 1 };
        Self { progress: MigrateProgress::idle(), tuning, switch: Switch::AtOnce }
    }
}

impl Migration {
    pub(super) fn progress(&self) -> MigrateProgress {
        self.progress.clone()
    }

    pub(super) fn tune(&mut self, tuning: MigrateTuning) {
        self.tuning = tuning;
    }
}

impl FakeVm {
    /// Ends a migration under way, if there is one; the guest goes on.
    pub(super) fn end_migration(&mut self, phase: MigratePhase) {
        if !matches!(self.migration.progress.phase, MigratePhase::Running | MigratePhase::Waiting) {
            return;
        }
        self.migration.progress.phase = phase;
        if self.state == RunState::Paused {
            self.state = RunState::Running;
            self.emit(MachineEvent::Resumed);
        }
        self.emit(MachineEvent::MigrationMoved);
    }
}

/// Begins to send.
pub(super) fn begin(
    host: &FakeHost,
    shared: &Arc<Mutex<FakeVm>>,
    vm: &mut FakeVm,
    (tuning, switch): (MigrateTuning, Switch),
) -> Result<Outgoing, EngineError> {
    let refuse =
        |why: &str| EngineError::Command { command: "migrate".to_owned(), why: why.to_owned() };
    if matches!(vm.migration.progress.phase, MigratePhase::Running | MigratePhase::Waiting) {
        return Err(refuse("it is being migrated already"));
    }
    if vm.state != RunState::Running {
        return Err(refuse("the guest does not run"));
    }
    let (ours, theirs) = UnixStream::pair().map_err(EngineError::io("make a socket"))?;
    let (tell, connections) = mpsc::channel(1);
    // There is room for one.
    let _ = tell.try_send(theirs.into());
    let total = vm.present();
    vm.migration = Migration {
        progress: MigrateProgress {
            phase: MigratePhase::Running,
            pass: 1,
            total,
            empty: vm.emptied.max(Bytes::new(total.get() / 4)).min(total),
            remaining: total,
            bandwidth: Bytes::gib(1),
            ..MigrateProgress::idle()
        },
        tuning,
        switch,
    };
    tokio::spawn(send(host.clone(), shared.clone(), ours));
    Ok(Outgoing { connections })
}

async fn send(host: FakeHost, shared: Arc<Mutex<FakeVm>>, mut stream: UnixStream) {
    let id = lock(&shared).run.vm;
    loop {
        tokio::time::sleep(PASS).await;
        let dirties = host.has_fault(id, &Fault::MigrateDirties);
        let stalls = host.has_fault(id, &Fault::MigrateStalls);
        let mut vm = lock(&shared);
        if vm.exit.is_some() || vm.migration.progress.phase != MigratePhase::Running {
            return;
        }
        if stalls {
            continue;
        }
        vm.migration.progress.pass += 1;
        let progress = &mut vm.migration.progress;
        let full = progress.total.saturating_sub(progress.empty);
        progress.sent = progress.sent.checked_add(full).unwrap_or(progress.sent);
        if dirties {
            progress.bandwidth = SLOW;
        }
        vm.emit(MachineEvent::MigrationMoved);
        let done = vm.migration.progress.pass > PASSES;
        if done && (!dirties || vm.migration.tuning.budget >= ANY_PAUSE) {
            vm.migration.progress.remaining = Bytes::ZERO;
            vm.state = RunState::Paused;
            vm.emit(MachineEvent::Stopped);
            break;
        }
    }
    let stopped = tokio::time::Instant::now();
    if !switched(&shared).await {
        return;
    }
    let text = serde_json::to_string(&SavedDoc::of(&lock(&shared))).unwrap_or_default();
    let work = async {
        stream.write_all(format!("{text}\n").as_bytes()).await?;
        stream.read_u8().await
    };
    let loaded = work.await;
    let mut vm = lock(&shared);
    match loaded {
        Ok(_) if vm.migration.progress.phase == MigratePhase::Running => {
            vm.state = RunState::Saved;
            vm.migration.progress.phase = MigratePhase::Done;
            vm.migration.progress.stood = Some(stopped.elapsed());
            vm.emit(MachineEvent::MigrationMoved);
        }
        Ok(_) => {}
        Err(error) => vm.end_migration(MigratePhase::Failed(error.to_string())),
    }
}

/// Waits for the word to go on, where one is needed. False if the migration has ended instead.
async fn switched(shared: &Arc<Mutex<FakeVm>>) -> bool {
    {
        let mut vm = lock(shared);
        if vm.migration.switch == Switch::AtOnce {
            return true;
        }
        vm.migration.progress.phase = MigratePhase::Waiting;
        vm.emit(MachineEvent::MigrationMoved);
    }
    loop {
        tokio::time::sleep(WORD_LOOK).await;
        let vm = lock(shared);
        match vm.migration.progress.phase {
            MigratePhase::Waiting if vm.exit.is_none() => {}
            MigratePhase::Running => return true,
            _ => return false,
        }
    }
}

/// The word to go on.
pub(super) fn switch(vm: &mut FakeVm) -> Result<(), EngineError> {
    if vm.migration.progress.phase != MigratePhase::Waiting {
        let (command, why) = ("migrate-continue".to_owned(), "it does not wait".to_owned());
        return Err(EngineError::Command { command, why });
    }
    vm.migration.progress.phase = MigratePhase::Running;
    Ok(())
}

/// Takes one connection in.
pub(super) fn connect(
    host: &FakeHost,
    shared: &Arc<Mutex<FakeVm>>,
    vm: &FakeVm,
) -> Result<UnixStream, EngineError> {
    if vm.state != RunState::Incoming {
        let source = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        return Err(EngineError::io("connect to the machine that waits")(source));
    }
    let (ours, theirs) = UnixStream::pair().map_err(EngineError::io("make a socket"))?;
    if !host.has_fault(vm.run.vm, &Fault::IncomingFails) {
        tokio::spawn(load(shared.clone(), ours));
    }
    Ok(theirs)
}

async fn load(shared: Arc<Mutex<FakeVm>>, mut stream: UnixStream) {
    let mut line = String::new();
    let mut reader = BufReader::new(&mut stream).take(SAVED_MAX);
    let read = reader.read_line(&mut line).await;
    let Ok(doc) = serde_json::from_str::<SavedDoc>(&line) else { return };
    if read.is_err() || !lock(&shared).load(&doc) {
        return;
    }
    // The source sees it, or sees the end of the stream.
    let _ = stream.write_u8(1).await;
}
