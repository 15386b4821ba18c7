//! The hosts.

pub(crate) mod drain;
pub(crate) mod fence;
mod fencing;
mod list;
mod metrics;
pub(crate) mod plan;
mod remembered;
mod resume;
mod show;
mod standby;
mod start_machines;
mod stop_machines;

use crate::commands::noun;

noun! {
    /// The hosts.
    List(list),
    Show(show),
    Metrics(metrics),
    Fence(fence),
    Fencing(fencing),
    Drain(drain),
    Resume(resume),
    Standby(standby),
    StopMachines(stop_machines),
    StartMachines(start_machines),
}
