//! Network adapters of virtual machines.

mod add;
mod list;
mod remove;
mod set;

use crate::commands::noun;

noun! {
    /// Network adapters of a machine: add, remove, change, list; also while it runs.
    Add(add),
    Remove(remove),
    Set(set),
    List(list),
}
