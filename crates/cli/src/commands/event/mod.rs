//! Events: what happened.

mod list;

use crate::commands::noun;

noun! {
    /// Events: what happened.
    List(list),
}
