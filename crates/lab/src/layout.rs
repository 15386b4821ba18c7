//! Where everything of a lab is.
//!
//! ```text
//! DIR/
//!   lab.json            what the lab is to be: written before anything is made
//!   lock                held by whoever changes the lab
//!   ns/                 a small file system of its own: world.net, n1.net, n1.uts, n1.mnt ...
//!   bin/                /muster/bin in each node: muster, fence_muster_lab
//!   share/              /muster/share in each node
//!   batch/              texts for ip and nft
//!   bmc.log
//!   san/ san.sock san.log   where there is a SAN: see `san`
//!   nodes/n1/data       /var/lib/muster of n1
//!   nodes/n1/run        /run of n1; emptied by a loss of power
//!   nodes/n1/etc        /muster/etc of n1: config.toml
//!   nodes/n1/root       where its root file system is put together
//!   nodes/n1/san         /muster/san of n1, where there is a SAN
//!   nodes/n1/daemon.log
//!   nodes/n1/guard.log
//! ```

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use crate::cgroup::Group;
use crate::error::LabError;
use crate::names::NodeName;
use crate::names::Tag;

/// Longest path of a Unix socket, with its end.
const SOCKET_PATH_MAX: usize = 107;

/// Path of a node's API socket below its run directory.
const SOCKET: &str = "muster/api.sock";

/// The state file.
pub(crate) const STATE_FILE: &str = "lab.json";

/// A lab, by its directory. It need not be up.
#[derive(Debug, Clone)]
pub struct Lab {
    dir: PathBuf,
    tag: Tag,
}

impl Lab {
    /// The lab of a directory, which need not exist.
    ///
    /// # Errors
    /// Not root; a path that cannot hold a lab.
    pub fn at(dir: &Path) -> Result<Self, LabError> {
        if !rustix::process::geteuid().is_root() {
            return Err(LabError::usage(
                "a lab makes namespaces and starts machines, which needs root",
                "run it with sudo, or in a root shell",
            ));
        }
        Self::named(dir)
    }

    fn named(dir: &Path) -> Result<Self, LabError> {
        let dir = canonical(dir).map_err(LabError::io("find", dir))?;
        // The path goes into texts for ip, which splits them at blanks.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+".contains(&byte);
        if !dir.as_os_str().as_encoded_bytes().iter().copied().all(plain) {
            return Err(LabError::usage(
                format!("{} has a character that a lab's directory must not have", dir.display()),
                "use letters, digits and . _ - + only: --dir /var/tmp/lab",
            ));
        }
        for bad in ["/run", "/proc", "/sys", "/dev"] {
            if dir.starts_with(bad) {
                return Err(LabError::usage(
                    format!("a lab cannot be below {bad}, which each node has its own of"),
                    "use a directory on a disk: --dir /var/tmp/lab",
                ));
            }
        }
        let this = Self { tag: Tag::of(&dir), dir };
        let longest = this.socket(NodeName::of(crate::names::NODES_MAX));
        if longest.as_os_str().len() > SOCKET_PATH_MAX {
            return Err(LabError::usage(
                format!("{} is too long: sockets below it could not be named", this.dir.display()),
                "use a shorter one: --dir /var/tmp/lab",
            ));
        }
        Ok(this)
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What tells its names from those of other labs.
    pub(crate) const fn tag(&self) -> &Tag {
        &self.tag
    }

    /// Control group of all that runs in it.
    pub(crate) fn group(&self) -> Result<Group, LabError> {
        Group::top(&self.tag.group())
    }

    /// Control group of a node.
    pub(crate) fn node_group(&self, node: NodeName) -> Result<Group, LabError> {
        Ok(self.group()?.child(&node.to_string()))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn ns_dir(&self) -> PathBuf {
        self.path("ns")
    }

    /// The file that holds the world's network namespace.
    pub(crate) fn world_net(&self) -> PathBuf {
        self.ns_dir().join("world.net")
    }

    /// The file that holds one of a node's namespaces: `net`, `uts`, `mnt` or `time`.
    pub(crate) fn node_ns(&self, node: NodeName, kind: &str) -> PathBuf {
        self.ns_dir().join(format!("{node}.{kind}"))
    }

    pub(crate) fn share(&self) -> PathBuf {
        self.path("share")
    }

    pub(crate) fn bin(&self) -> PathBuf {
        self.path("bin")
    }

    pub(crate) fn node_dir(&self, node: NodeName) -> PathBuf {
        self.dir.join("nodes").join(node.to_string())
    }

    /// `/var/lib/muster` of a node.
    pub fn data(&self, node: NodeName) -> PathBuf {
        self.node_dir(node).join("data")
    }

    /// `/run` of a node.
    pub(crate) fn run(&self, node: NodeName) -> PathBuf {
        self.node_dir(node).join("run")
    }

    /// The socket of a node's API, seen from the machine.
    pub fn socket(&self, node: NodeName) -> PathBuf {
        self.run(node).join(SOCKET)
    }

    /// What a node's daemon has said.
    pub fn log(&self, node: NodeName) -> PathBuf {
        self.node_dir(node).join("daemon.log")
    }

    /// What a node's guard has said.
    pub fn guard_log(&self, node: NodeName) -> PathBuf {
        self.node_dir(node).join("guard.log")
    }
}

/// The absolute path without links, also of what does not exist yet.
fn canonical(dir: &Path) -> io::Result<PathBuf> {
    let dir = std::path::absolute(dir)?;
    match fs::canonicalize(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            match (dir.parent(), dir.file_name()) {
                (Some(parent), Some(name)) => Ok(canonical(parent)?.join(name)),
                _ => Err(error),
            }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::Lab;

    #[test]
    fn directories_that_cannot_hold_a_lab() {
        for bad in ["/tmp/a b", "/tmp/a;b", "/run/lab", "/proc/lab", "/tmp/\u{e9}"] {
            let error = Lab::named(Path::new(bad)).unwrap_err();
            assert!(error.hint.contains("--dir"), "{bad}: {error:?}");
        }
        let long = format!("/tmp/{}", "x".repeat(120));
        assert!(Lab::named(Path::new(&long)).unwrap_err().message.contains("too long"));
    }

    #[test]
    fn one_directory_is_one_lab_whatever_the_way_to_it() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
        let a = Lab::named(&dir.path().join("lab")).unwrap();
        let b = Lab::named(&dir.path().join("link/lab")).unwrap();
        assert_eq!(a.tag, b.tag);
    }
}
