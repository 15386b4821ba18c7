//! Sessions of browsers in the web console.

mod end;
mod list;

use crate::commands::noun;

noun! {
    /// Sessions of browsers in the web console.
    List(list),
    End(end),
}
