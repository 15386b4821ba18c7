//! Placement rules: which machines belong together, and which apart.

mod create;
mod delete;
mod list;

use crate::commands::noun;

noun! {
    /// Placement rules: which machines belong together, and which apart.
    List(list),
    Create(create),
    Delete(delete),
}
