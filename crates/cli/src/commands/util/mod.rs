//! Completions, man pages, reference, API document.

mod completions;
mod man;
mod openapi;
mod reference;

use crate::commands::noun;

noun! {
    /// Completions, man pages, reference, API document.
    Completions(completions),
    Man(man),
    Reference(reference),
    Openapi(openapi),
}
