//! A node's own root file system, put together from inside its new mount namespace.
//!
//! ```text
//! /            a small file system in memory
//!   usr etc bin home ...   the machine's
//!   run                    nodes/n1/run      its own, emptied by a loss of power
//!   var/lib/muster         nodes/n1/data     its own
//!   var/lib/...  var/...   the machine's
//!   muster/share           share             the same in every node
//!   muster/san             nodes/n1/san      where there is a SAN; lun0 and so on are its own paths
//!   muster/etc             nodes/n1/etc      config.toml
//!   muster/bin             bin               muster, fence_muster_lab
//!   usr/sbin               bin, laid over the machine's
//! ```
//!
//! Nothing is made on the machine's own file systems, not even a place to mount on: `/var` and
//! `/var/lib` are rebuilt entry by entry. What other labs and this one hold their namespaces by is
//! taken out of the node's view: a copy there would keep those namespaces alive after their end.

use std::ffi::CStr;
use std::ffi::CString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::mount::MountFlags;
use rustix::mount::UnmountFlags;
use rustix::mount::mount;
use rustix::mount::mount_bind;
use rustix::mount::mount_bind_recursive;
use rustix::mount::unmount;

use crate::error::LabError;
use crate::layout::Lab;
use crate::names::NodeName;
use crate::san::NODE_DIR;
use crate::san::lun_name;

/// Name of the source of a lab's small file systems, by which they are found.
pub(crate) const MOUNT_SOURCE: &str = "muster-lab";

/// Where the new root is put together: a place that no node sees of the machine.
const STAGE: &str = "/run";

/// Limits of the root: it has directories and links only.
const ROOT_OPTIONS: &CStr = c"mode=0755,size=16m";

/// Puts the node's root together. To be called in namespaces that were made for the node, by the
/// hidden verb `lab node-root`; what is started after it sees the new root.
///
/// # Errors
/// A mount that the kernel refuses.
pub fn enter_node_root(lab: &Lab, node: NodeName) -> Result<(), LabError> {
    let name = node.to_string();
    rustix::system::sethostname(name.as_bytes())
        .map_err(LabError::sys("set the host name for", Path::new(&name)))?;
    let stage = Path::new(STAGE);
    // Opened before it is covered.
    let own = [
        (lab.run(node), "run"),
        (lab.data(node), "var/lib/muster"),
        (lab.share(), "muster/share"),
        (lab.node_dir(node).join("etc"), "muster/etc"),
        (lab.bin(), "muster/bin"),
    ];
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount(MOUNT_SOURCE, stage, "tmpfs", flags, ROOT_OPTIONS)
        .map_err(LabError::sys("mount", stage))?;
    copy_entries(Path::new("/"), stage, &["run", "var", "muster", "lost+found"])?;
    copy_entries(Path::new("/var"), &stage.join("var"), &["lib"])?;
    copy_entries(Path::new("/var/lib"), &stage.join("var/lib"), &["muster"])?;
    for (from, to) in own {
        let to = stage.join(to);
        fs::create_dir_all(&to).map_err(LabError::io("make", &to))?;
        mount_bind(&from, &to).map_err(LabError::sys("show", &from))?;
    }
    show_san(lab, node, stage)?;
    show_programs(lab, &stage.join("usr/sbin"));
    let old = stage.join("old");
    fs::create_dir(&old).map_err(LabError::io("make", &old))?;
    rustix::process::pivot_root(stage, &old).map_err(LabError::sys("change to", stage))?;
    std::env::set_current_dir("/").map_err(LabError::io("enter", Path::new("/")))?;
    unmount("/old", UnmountFlags::DETACH).map_err(LabError::sys("leave", Path::new("/old")))?;
    let _ = fs::remove_dir("/old");
    forget_namespaces()
}

/// Shows a node its path to each LUN, if the lab has any.
fn show_san(lab: &Lab, node: NodeName, stage: &Path) -> Result<(), LabError> {
    let Ok(devices) = fs::read_to_string(lab.node_san_device(node)) else { return Ok(()) };
    let place = stage.join(NODE_DIR);
    fs::create_dir_all(&place).map_err(LabError::io("make", &place))?;
    let from = lab.node_san(node);
    mount_bind(&from, &place).map_err(LabError::sys("show", &from))?;
    for (number, device) in devices.lines().enumerate() {
        let lun = place.join(lun_name(number));
        mount_bind(Path::new(device), &lun).map_err(LabError::sys("show", &lun))?;
    }
    Ok(())
}

/// Lays the lab's programs over the machine's: daemons look for fence agents where the package puts
/// them. Where the kernel has no overlay, they are in `/muster/bin` only.
fn show_programs(lab: &Lab, place: &Path) {
    let layers = format!("lowerdir={}:/usr/sbin", lab.bin().display());
    let Ok(layers) = CString::new(layers) else { return };
    let _ = mount(MOUNT_SOURCE, place, "overlay", MountFlags::RDONLY, layers.as_c_str());
}

/// Shows all entries of a directory but some at the same names elsewhere.
fn copy_entries(from: &Path, to: &Path, without: &[&str]) -> Result<(), LabError> {
    fs::create_dir_all(to).map_err(LabError::io("make", to))?;
    let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if without.iter().any(|one| name == **one) {
            continue;
        }
        let (path, place) = (entry.path(), to.join(&name));
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_symlink() {
            let target = fs::read_link(&path).map_err(LabError::io("read", &path))?;
            symlink(target, &place).map_err(LabError::io("make", &place))?;
        } else if kind.is_dir() {
            fs::create_dir(&place).map_err(LabError::io("make", &place))?;
            // One that goes away at this moment is no loss.
            if let Err(error) = mount_bind_recursive(&path, &place)
                && path.exists()
            {
                return Err(LabError::sys("show", &path)(error));
            }
        } else if kind.is_file() {
            fs::write(&place, "").map_err(LabError::io("make", &place))?;
            let _ = mount_bind(&path, &place);
        }
    }
    Ok(())
}

/// Takes away what holds namespaces: see the head comment.
fn forget_namespaces() -> Result<(), LabError> {
    let path = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(path).map_err(LabError::io("read", path))?;
    for place in holders(&text) {
        // Gone already with one above it.
        let _ = unmount(place, UnmountFlags::DETACH);
    }
    Ok(())
}

/// Mounts that are namespaces or made for them, the root excepted.
fn holders(mountinfo: &str) -> Vec<&str> {
    let lines = mountinfo.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let place = before.split(' ').nth(4)?;
        let mut after = after.split(' ');
        let (kind, source) = (after.next()?, after.next()?);
        let holds = kind == "nsfs" || kind == "tmpfs" && source == MOUNT_SOURCE;
        (holds && place != "/").then_some(place)
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::holders;

    #[test]
    fn what_holds_namespaces_is_found() {
        let text = "1 0 0:1 / / rw - tmpfs muster-lab rw\n\
                    2 1 0:2 / /tmp/lab/ns rw - tmpfs muster-lab rw\n\
                    3 1 0:4 net:[1] /srv/a.net rw shared:2 - nsfs nsfs rw\n\
                    4 1 0:5 / /usr rw - ext4 /dev/vda rw\n\
                    5 1 0:6 / /usr/sbin rw - overlay muster-lab rw\nnonsense\n";
        assert_eq!(holders(text), ["/tmp/lab/ns", "/srv/a.net"]);
    }
}
