//! Virtual machines.

mod compat;
mod console;
mod create;
mod delete;
mod disk;
mod freeze;
mod guest;
mod ha;
mod history;
mod list;
pub(crate) mod metrics;
pub(crate) mod migrate;
mod move_storage;
mod moving;
mod nic;
mod off;
mod pause;
mod register;
mod reset;
mod resume;
mod save;
mod screenshot;
mod set;
mod show;
mod shutdown;
mod start;
mod thaw;
mod undelete;
mod upgrade;
mod vnc;

use api::types::Heartbeat;
use api::types::Phase;

use crate::commands::noun;
use crate::output::Tone;

noun! {
    /// Virtual machines: create, change, start, stop, look.
    Create(create),
    List(list),
    Show(show),
    Metrics(metrics),
    History(history),
    Start(start),
    Shutdown(shutdown),
    Off(off),
    Pause(pause),
    Resume(resume),
    Save(save),
    Reset(reset),
    Set(set),
    Migrate(migrate),
    Move(moving),
    MoveStorage(move_storage),
    Delete(delete),
    Undelete(undelete),
    Upgrade(upgrade),
    Register(register),
    Console(console),
    Screenshot(screenshot),
    Freeze(freeze),
    Thaw(thaw),
    Disk(disk),
    Nic(nic),
}

/// How a phase is to be seen.
pub(crate) const fn phase_tone(phase: Phase) -> Tone {
    match phase {
        Phase::Running => Tone::Good,
        Phase::Creating
        | Phase::Starting
        | Phase::Saving
        | Phase::Migrating
        | Phase::Stopping
        | Phase::Paused => Tone::Busy,
        Phase::Hung | Phase::Failed => Tone::Bad,
        Phase::Off | Phase::Saved | Phase::Deleted => Tone::Faint,
    }
}

/// How a heartbeat is to be seen.
pub(crate) const fn heartbeat_tone(heartbeat: Heartbeat) -> Tone {
    match heartbeat {
        Heartbeat::Ok => Tone::Good,
        Heartbeat::NoContact => Tone::Busy,
        Heartbeat::Lost => Tone::Bad,
        Heartbeat::NotInstalled | Heartbeat::Off => Tone::Faint,
    }
}

/// Machines as a list.
pub(crate) fn render_list(out: &crate::output::Output, vms: &[api::types::VmSummary]) -> String {
    list::render(out, vms, false)
}
