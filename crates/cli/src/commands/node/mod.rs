//! The hosts.

mod list;
mod show;

use crate::commands::noun;

noun! {
    /// The hosts.
    List(list),
    Show(show),
}
