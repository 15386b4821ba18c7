//! The smallest guest: a boot sector that ticks on its screen and knows its power button.
//!
//! For a machine inside of an emulated host, where Linux would take a quarter of an hour to boot.

use std::fs;
use std::path::Path;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;

use super::tool;
use crate::run::root;

/// A disk is counted in MiB.
const DISK_LEN: usize = 1 << 20;

/// What the BIOS loads, and its address.
const SECTOR: usize = 512;
const LOADED_AT: &str = "-Ttext=0x7c00";

/// Writes the raw image; `work` is for what is made on the way.
pub(crate) fn build(work: &Path, image: &Path) -> Result<()> {
    let source = root().join("xtask/guests/ticker/ticker.s");
    let (object, sector) = (work.join("ticker.o"), work.join("ticker.bin"));
    let (source, object) = (source.to_string_lossy(), object.to_string_lossy());
    tool("as", &["--32", "--fatal-warnings", "-o", &object, &source])?;
    let link = ["-m", "elf_i386", LOADED_AT, "--oformat=binary", "-o"];
    let to = sector.to_string_lossy();
    tool("ld", &[link.as_slice(), &[&*to, &*object]].concat())?;
    let mut bytes = fs::read(&sector)?;
    ensure!(bytes.len() == SECTOR, "the boot sector has {} bytes", bytes.len());
    bytes.resize(DISK_LEN, 0);
    fs::write(image, bytes).with_context(|| format!("cannot write {}", image.display()))
}

#[cfg(test)]
mod tests {
    use super::build;

    #[test]
    fn it_is_a_boot_sector_on_a_disk() {
        let dir = std::env::temp_dir().join(format!("muster-ticker-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        let image = dir.join("ticker.img");
        let built = build(&dir, &image).and_then(|()| Ok(std::fs::read(image)?));
        std::fs::remove_dir_all(&dir).expect("it is removed again");
        let bytes = built.expect("it is assembled and fits");
        assert_eq!((bytes.len(), &bytes[510..513]), (1 << 20, [0x55, 0xaa, 0].as_slice()));
    }
}
