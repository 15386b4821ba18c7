//! Images (under construction).

pub mod format;
pub mod inspect;
