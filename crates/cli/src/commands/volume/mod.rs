//! Volumes: places for machines and images that several nodes reach.

mod create;
mod delete;
mod list;
mod show;

use crate::commands::noun;

noun! {
    /// Volumes: places for machines and images that several nodes reach.
    List(list),
    Show(show),
    Create(create),
    Delete(delete),
}
