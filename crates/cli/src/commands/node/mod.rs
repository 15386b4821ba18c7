//! The hosts.

pub(crate) mod fence;
mod fencing;
mod list;
mod show;

use crate::commands::noun;

noun! {
    /// The hosts.
    List(list),
    Show(show),
    Fence(fence),
    Fencing(fencing),
}
