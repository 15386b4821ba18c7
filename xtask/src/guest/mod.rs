//! Guest images for tests and the demo, built from Debian packages.
//!
//! ```text
//! target/guests/tiny.img          raw; BIOS and UEFI; boots in seconds under TCG with 128 MiB
//! target/guests/bench.img         the tiny guest with a load and a page, to be migrated
//! target/guests/debian12.qcow2    a Debian 12 with cloud-init and the guest agent
//! target/guests/host12.qcow2      a Debian 12 with QEMU 10, for the test of our package
//! target/guests/*.recipe          the recipe hash an image was built by
//! ```
//!
//! An image is rebuilt only when its recipe (scripts, sources, builder) changed. It is built aside
//! and renamed into place, so a VM that uses the old one keeps it, and two builds at once wait for
//! each other on a lock file.

mod bench;
mod debian;
pub(crate) mod ticker;
mod tiny;

use std::fs;
use std::fs::File;
use std::hash::DefaultHasher;
use std::hash::Hasher;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;

use crate::apt;
use crate::run::cmd;
use crate::run::quiet;
use crate::run::target;

/// The Debian release all guests are made of, whatever the host runs.
const SUITE: &str = "bookworm";

/// A guest image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Which {
    /// Kernel, busybox and the real guest agent.
    Tiny,
    /// The tiny guest with the load of a guest that is migrated.
    Bench,
    /// Debian 12 with cloud-init.
    Debian,
    /// Debian 12 with what our package depends on.
    DebianHost,
}

impl Which {
    fn file(self) -> &'static str {
        match self {
            Which::Tiny => "tiny.img",
            Which::Bench => "bench.img",
            Which::Debian => "debian12.qcow2",
            Which::DebianHost => "host12.qcow2",
        }
    }

    fn recipe(self) -> Vec<&'static [u8]> {
        match self {
            Which::Tiny => tiny::recipe(),
            Which::Bench => bench::recipe(),
            Which::Debian | Which::DebianHost => debian::recipe(),
        }
    }

    fn build(self, work: &Path, image: &Path) -> Result<()> {
        match self {
            Which::Tiny => tiny::build(work, image),
            Which::Bench => bench::build(work, image),
            Which::Debian => debian::build(debian::Role::Guest, work, image),
            Which::DebianHost => debian::build(debian::Role::Host, work, image),
        }
    }
}

/// Builds the asked guest, or those that tests and the demo boot, unless the cache has them.
pub(crate) fn run(which: Option<Which>, force: bool) -> Result<()> {
    if let Some(asked) = which {
        return ensure(asked, force).map(drop);
    }
    let all = [Which::Tiny, Which::Debian];
    for one in all {
        ensure(one, force)?;
    }
    Ok(())
}

/// The path of an up-to-date image, built now if need be.
pub(crate) fn ensure(which: Which, force: bool) -> Result<PathBuf> {
    let dir = target().join("guests");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let image = dir.join(which.file());
    let recipe_file = dir.join(format!("{}.recipe", which.file()));
    let lock = File::create(dir.join(format!("{}.lock", which.file())))?;
    lock.lock().context("cannot lock the guest cache")?;
    let recipe = hash(&which.recipe());
    let known = fs::read_to_string(&recipe_file).unwrap_or_default();
    if !force && image.exists() && known == recipe {
        return Ok(image);
    }
    let started = Instant::now();
    println!("Building {} from Debian packages", image.display());
    let work = dir.join(format!("{}.work", which.file()));
    remove_dir(&work)?;
    fs::create_dir_all(&work)?;
    let staged = work.join("image");
    let built = which.build(&work, &staged).and_then(|()| Ok(fs::rename(&staged, &image)?));
    remove_dir(&work)?;
    built.with_context(|| format!("cannot build {}", image.display()))?;
    fs::write(&recipe_file, recipe)?;
    let seconds = started.elapsed().as_secs();
    let mib = fs::metadata(&image)?.len() >> 20;
    println!("Built {} in {seconds} s, {mib} MiB", image.display());
    Ok(image)
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// A name for a recipe. It only has to change when the recipe does; nobody attacks it.
fn hash(parts: &[&[u8]]) -> String {
    let mut hasher = DefaultHasher::new();
    for part in parts {
        hasher.write_usize(part.len());
        hasher.write(part);
    }
    format!("{:016x}", hasher.finish())
}

/// `deb` lines for the guests' packages, from the archives that this machine itself uses.
fn apt_lines() -> Vec<String> {
    let codename = apt::codename().unwrap_or_default();
    let main = apt::archive(&codename).map_or("http://deb.debian.org/debian".into(), |own| own.uri);
    let mut lines = vec![format!("deb {main} {SUITE} main")];
    if let Some(security) = apt::security_archive() {
        lines.push(format!("deb {} {SUITE}-security main", security.uri));
    }
    lines
}

/// The `deb` line of the archive that has QEMU 10 for [`SUITE`].
fn backports_line() -> String {
    let codename = apt::codename().unwrap_or_default();
    let main = apt::archive(&codename).map_or("http://deb.debian.org/debian".into(), |own| own.uri);
    format!("deb {main} {SUITE}-backports main")
}

/// Writes bytes into an image at an offset.
fn write_at(image: &Path, offset: u64, bytes: &[u8]) -> Result<()> {
    let file = fs::OpenOptions::new().write(true).open(image)?;
    file.write_all_at(bytes, offset).with_context(|| format!("cannot write {}", image.display()))
}

/// The one file below a directory whose name starts so.
fn find_by_prefix(dir: &Path, prefix: &str) -> Result<PathBuf> {
    fs::read_dir(dir)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        })
        .with_context(|| format!("no {prefix}* in {}", dir.display()))
}

/// A command over paths, as text.
fn tool(program: &str, args: &[&str]) -> Result<String> {
    quiet(cmd(program, args.iter().copied()))
}

#[cfg(test)]
mod tests {
    use super::Which;
    use super::hash;

    #[test]
    fn a_recipe_changes_its_name_with_any_part() {
        assert_ne!(hash(&[b"ab", b"c"]), hash(&[b"a", b"bc"]));
        assert_eq!(hash(&Which::Tiny.recipe()), hash(&Which::Tiny.recipe()));
        assert_ne!(hash(&Which::Tiny.recipe()), hash(&Which::Debian.recipe()));
    }
}
