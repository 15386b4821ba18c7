//! Disk images that machines are made from.

mod delete;
mod import;
mod list;
mod show;

use crate::commands::noun;

noun! {
    /// Disk images that machines are made from.
    Import(import),
    List(list),
    Show(show),
    Delete(delete),
}
