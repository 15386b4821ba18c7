//! Disks of virtual machines.

mod add;
mod list;
mod remove;
mod resize;

use crate::commands::noun;

noun! {
    /// Disks of a machine: add, remove, grow, list; also while it runs.
    Add(add),
    Remove(remove),
    Resize(resize),
    List(list),
}
