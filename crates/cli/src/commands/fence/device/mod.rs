//! Fence devices.

mod add;
mod list;
mod remove;
mod show;
mod test;

use crate::commands::noun;

noun! {
    /// Fence devices: add, list, show, test, remove.
    Add(add),
    List(list),
    Show(show),
    Test(test),
    Remove(remove),
}
