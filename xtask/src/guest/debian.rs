//! The Debian guest (placeholder until its slice lands).
use std::path::Path;

use anyhow::Result;

pub(super) fn recipe() -> Vec<&'static [u8]> {
    vec![include_bytes!("debian.rs")]
}

pub(super) fn build(_work: &Path, _image: &Path) -> Result<()> {
    anyhow::bail!("the Debian guest is not there yet")
}
