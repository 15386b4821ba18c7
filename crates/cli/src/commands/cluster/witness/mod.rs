//! The witness of the cluster.

mod remove;
mod set;
mod show;

use crate::commands::noun;

noun! {
    /// The witness: a third vote for two nodes.
    Set(set),
    Show(show),
    Remove(remove),
}
