//! Disks: LUNs that nodes share, or could.

mod list;

use crate::commands::noun;

noun! {
    /// Disks: LUNs that nodes share, or could.
    List(list),
}
