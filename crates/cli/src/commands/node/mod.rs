//! The hosts.

mod drain;
pub(crate) mod fence;
mod fencing;
mod list;
pub(crate) mod plan;
mod resume;
mod show;
mod standby;

use crate::commands::noun;

noun! {
    /// The hosts.
    List(list),
    Show(show),
    Fence(fence),
    Fencing(fencing),
    Drain(drain),
    Resume(resume),
    Standby(standby),
}
