//! The guest of `cargo xtask bench migrate`: the tiny guest, with a load that the bench steers.
//!
//! The tiny guest's own disk is copied, and a second archive is put behind the one in its initrd:
//! the kernel unpacks both, and the later file of a name wins. So the tiny guest, which tests boot
//! hundreds of times, carries nothing that only a bench needs.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;
use anyhow::Result;

use super::Which;
use super::ensure;
use super::tiny;
use super::tool;
use crate::run::root;

const LOAD: &str = include_str!("../../guests/bench/benchload.c");
const ON_EVENT: &str = include_str!("../../guests/bench/on-event");

pub(super) fn recipe() -> Vec<&'static [u8]> {
    let mut parts = tiny::recipe();
    parts.extend([LOAD.as_bytes(), ON_EVENT.as_bytes(), include_bytes!("bench.rs")]);
    parts
}

pub(super) fn build(work: &Path, image: &Path) -> Result<()> {
    let tiny = ensure(Which::Tiny, false)?;
    let (tree, addition) = (work.join("root"), work.join("addition"));
    for dir in ["bin", "etc"] {
        fs::create_dir_all(tree.join(dir))?;
    }
    let handler = tree.join("etc/on-event");
    fs::write(&handler, ON_EVENT)?;
    fs::set_permissions(&handler, fs::Permissions::from_mode(0o755))?;
    let source = root().join("xtask/guests/bench/benchload.c");
    let (source, load) = (source.to_string_lossy(), tree.join("bin/benchload"));
    let load = load.to_string_lossy();
    tool("gcc", &["-O2", "-static", "-s", "-Wall", "-Werror", "-o", &load, &source])?;
    tiny::pack(&tree, &addition)?;
    fs::copy(&tiny, image).with_context(|| format!("cannot copy {}", tiny.display()))?;
    append(image, work, &addition)
}

/// Puts an archive behind the initrd's own.
fn append(image: &Path, work: &Path, addition: &Path) -> Result<()> {
    let (partition, initrd) = (tiny::partition(image), work.join("initrd"));
    let path = initrd.to_string_lossy();
    tool("mcopy", &["-i", &partition, "::/initrd", &path])?;
    let mut file = fs::OpenOptions::new().append(true).open(&initrd)?;
    file.write_all(&fs::read(addition)?)?;
    tool("mcopy", &["-o", "-i", &partition, &path, "::/initrd"]).map(drop)
}
