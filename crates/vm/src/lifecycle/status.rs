//! What is seen of a VM, and the one writer of it.

use model::Bytes;
use tokio::sync::watch;

use crate::engine::RunInfo;

/// What a VM is doing, beyond its settled power state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// The driver is looking for a machine left by an earlier daemon.
    #[default]
    Looking,
    /// No machine.
    Off,
    /// Its disks are being made.
    Creating,
    /// The process starts or its memory is read back.
    Starting,
    /// The guest runs.
    Running,
    /// The guest's processors stand.
    Paused,
    /// Its memory is being written to disk.
    Saving,
    /// The guest runs, and its memory is being sent to another node.
    Migrating,
    /// The guest shuts down or the process is being ended.
    Stopping,
    /// The process does not answer.
    Hung,
    /// It should run and cannot; the note says why.
    Failed,
}

/// The present run, as far as it changes by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunStatus {
    /// What does not change.
    pub info: RunInfo,
    /// Processors that the guest has.
    pub cpus: u32,
    /// Memory that the guest has, the balloon left out of account.
    pub memory: Bytes,
    /// Memory that the balloon leaves to the guest.
    pub balloon: Option<Bytes>,
}

/// What is seen of a VM now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// What it is doing.
    pub phase: Phase,
    /// Why, where that needs words.
    pub note: Option<String>,
    /// The present run.
    pub run: Option<RunStatus>,
}

/// The only writer of a VM's visible status.
#[derive(Debug)]
pub(crate) struct Publisher {
    sender: watch::Sender<Status>,
}

impl Publisher {
    pub(crate) fn new() -> (Self, watch::Receiver<Status>) {
        let (sender, receiver) = watch::channel(Status::default());
        (Self { sender }, receiver)
    }

    /// The phase that is shown now.
    pub(crate) fn now(&self) -> Phase {
        self.sender.borrow().phase
    }

    /// Shows a phase; the note of the last one goes.
    pub(crate) fn phase(&self, phase: Phase) {
        self.change(|status| {
            status.phase = phase;
            status.note = None;
        });
    }

    /// Shows a phase and why.
    pub(crate) fn phase_with_note(&self, phase: Phase, note: &str) {
        self.change(|status| {
            status.phase = phase;
            status.note = Some(note.to_owned());
        });
    }

    pub(crate) fn run(&self, run: Option<RunStatus>) {
        self.change(|status| status.run = run);
    }

    pub(crate) fn in_run(&self, change: impl FnOnce(&mut RunStatus)) {
        self.change(|status| {
            if let Some(run) = &mut status.run {
                change(run);
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut Status)) {
        self.sender.send_if_modified(|status| {
            let before = status.clone();
            change(status);
            *status != before
        });
    }
}
