//! Volumes: places for machines and images that several nodes reach.

mod adopt;
mod check;
mod create;
mod delete;
mod list;
mod maintenance;
mod move_to;
mod release;
mod show;

use crate::commands::noun;

noun! {
    /// Volumes: places for machines and images that several nodes reach.
    List(list),
    Show(show),
    Create(create),
    Adopt(adopt),
    Move(move_to),
    Maintenance(maintenance),
    Check(check),
    Release(release),
    Delete(delete),
}
