//! Which LUNs this node sees.
//!
//! | where | what | identity |
//! | --- | --- | --- |
//! | `/sys/block/sd*` | SCSI, SAS, FC, iSCSI | `device/wwid` |
//! | `/sys/block/nvme*` | NVMe, local and over fabrics | `wwid` |
//! | `/sys/block/dm-*` with a UUID `mpath-` | multipath | that of its first path; it goes first |
//! | folders of the configuration | any block device | the text file beside it |
//!
//! A device without an identity is nobody's LUN: two nodes could not tell that it is the same.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::path::PathBuf;

use model::Bytes;
use model::LunContents;
use model::LunId;
use model::LunSeen;

use super::probe;

/// Longest file of sysfs or identity that is read.
const TEXT_MAX: u64 = 4096;

/// Most LUNs and paths that are told of; more are not looked at.
const LUNS_MAX: usize = 256;
const PATHS_MAX: usize = 32;

/// A device that is a path to a LUN.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    lun: LunId,
    device: PathBuf,
    /// Multipath goes before the paths that it is made of.
    first: bool,
    fences: bool,
}

pub(super) fn find(folders: &[PathBuf]) -> BTreeMap<LunId, LunSeen> {
    let mut found = in_sysfs(Path::new("/sys/block"));
    found.extend(folders.iter().flat_map(|folder| in_folder(folder)));
    let mut by_lun: BTreeMap<LunId, Vec<Found>> = BTreeMap::new();
    for one in found {
        by_lun.entry(one.lun.clone()).or_default().push(one);
    }
    let seen = by_lun.into_iter().take(LUNS_MAX).map(|(lun, mut paths)| {
        paths.sort_by_key(|path| (!path.first, path.device.clone()));
        (lun, look(&paths))
    });
    seen.collect()
}

fn look(paths: &[Found]) -> LunSeen {
    let mut size = Bytes::ZERO;
    let mut contents = LunContents::Unreadable { why: "it has no path".to_owned() };
    let mut read_only = false;
    for path in paths {
        // The first path that answers speaks for the LUN.
        (size, read_only) = probe::size(&path.device).unwrap_or((size, read_only));
        contents = probe::contents(&path.device);
        if !matches!(contents, LunContents::Unreadable { .. }) {
            break;
        }
    }
    LunSeen {
        paths: paths.iter().take(PATHS_MAX).map(|it| it.device.display().to_string()).collect(),
        size,
        read_only,
        fences: paths.iter().any(|path| path.fences),
        contents,
        attached: false,
    }
}

fn in_sysfs(top: &Path) -> Vec<Found> {
    let mut found = Vec::new();
    for entry in fs::read_dir(top).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let place = entry.path();
        let multipath = text(&place.join("dm/uuid")).is_some_and(|it| it.starts_with("mpath-"));
        let identity = if multipath {
            let mut paths = fs::read_dir(place.join("slaves")).into_iter().flatten().flatten();
            paths.find_map(|path| identity(&top.join(path.file_name())))
        } else {
            identity(&place)
        };
        let device = Path::new("/dev").join(&name);
        // Reservations of SCSI and NVMe come with the data plane.
        found.extend(identity.map(|lun| Found { lun, device, first: multipath, fences: false }));
    }
    found
}

/// What a device calls itself. Local disks have one, too; they are seen by one node.
fn identity(place: &Path) -> Option<LunId> {
    let found = text(&place.join("wwid")).or_else(|| text(&place.join("device/wwid")))?;
    let plain =
        |it: char| if it.is_ascii_alphanumeric() || "._-+:".contains(it) { it } else { '_' };
    found.chars().map(plain).collect::<String>().parse().ok()
}

fn in_folder(folder: &Path) -> Vec<Found> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let device = entry.path();
        if !fs::metadata(&device).is_ok_and(|it| it.file_type().is_block_device()) {
            continue;
        }
        let name = device.display();
        let Some(lun) = text(Path::new(&format!("{name}.wwid"))) else { continue };
        match lun.parse() {
            Ok(lun) => {
                let fences = super::reserve::socket_of(&device).exists();
                found.push(Found { lun, device, first: false, fences });
            }
            Err(error) => tracing::warn!(%error, device = %name, "a device is not a LUN"),
        }
    }
    found
}

fn text(path: &Path) -> Option<String> {
    let file = fs::File::open(path).ok()?;
    let mut text = String::new();
    file.take(TEXT_MAX).read_to_string(&mut text).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn devices_are_found_by_what_they_call_themselves() {
        let top = tempfile::tempdir().unwrap();
        let at = |name: &str| top.path().join(name);
        write(&at("sda/device/wwid"), "naa.6001\n");
        write(&at("sdb/device/wwid"), "naa.6001\n");
        write(&at("nvme0n1/wwid"), "eui.00 25\n");
        write(&at("loop0/size"), "0\n");
        write(&at("dm-0/dm/uuid"), "mpath-36001\n");
        write(&at("dm-1/dm/uuid"), "LVM-abc\n");
        fs::create_dir_all(at("dm-0/slaves/sda")).unwrap();
        let mut found = in_sysfs(top.path());
        found.sort_by_key(|it| it.device.clone());
        let names: Vec<_> = found
            .iter()
            .map(|it| (it.device.to_str().unwrap(), it.lun.as_str(), it.first))
            .collect();
        assert_eq!(
            names,
            [
                ("/dev/dm-0", "naa.6001", true),
                ("/dev/nvme0n1", "eui.00_25", false),
                ("/dev/sda", "naa.6001", false),
                ("/dev/sdb", "naa.6001", false),
            ]
        );
        assert_eq!(in_folder(top.path()), [], "directories are no devices");
    }
}
