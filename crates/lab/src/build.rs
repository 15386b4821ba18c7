//! Making and taking away the world and the nodes: directories, namespaces, cables, groups.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::mount::MountFlags;
use rustix::mount::MountPropagationFlags;
use rustix::mount::UnmountFlags;
use rustix::mount::mount;
use rustix::mount::mount_change;
use rustix::mount::unmount;

use crate::error::LabError;
use crate::layout::Lab;
use crate::names::NodeName;
use crate::names::Wire;
use crate::programs::run;
use crate::root::MOUNT_SOURCE;
use crate::state::LabState;

/// Limits of the file system that holds the namespaces: it has empty files only.
const NS_OPTIONS: &std::ffi::CStr = c"mode=0700,size=1m";

/// Kinds of namespaces of a node that are held by files.
const KINDS: [&str; 4] = ["net", "uts", "mnt", "time"];

impl Lab {
    /// Makes the lab's directories, group and world.
    pub(crate) fn make_world(&self, state: &LabState) -> Result<(), LabError> {
        self.group()?.make()?;
        make_dir(&self.share(), 0o1777)?;
        make_dir(&self.bin(), 0o755)?;
        self.write_programs(state)?;
        let ns = self.ns_dir();
        make_dir(&ns, 0o700)?;
        mount(MOUNT_SOURCE, &ns, "tmpfs", MountFlags::NOSUID, NS_OPTIONS)
            .map_err(LabError::sys("mount", &ns))?;
        // The file of a mount namespace can only be held where nothing is passed on.
        mount_change(&ns, MountPropagationFlags::PRIVATE)
            .map_err(LabError::sys("make private", &ns))?;
        let world = self.world_net();
        fs::write(&world, "").map_err(LabError::io("make", &world))?;
        run("unshare", [format!("--net={}", world.display()).as_str(), "true"])?;
        self.build_world(state)
    }

    /// Makes a node's directories, namespaces and cables; starts nothing.
    pub(crate) fn make_node(&self, state: &LabState, node: NodeName) -> Result<(), LabError> {
        make_dir(&self.node_dir(node), 0o755)?;
        make_dir(&self.data(node), 0o711)?;
        make_dir(&self.run(node), 0o755)?;
        make_dir(&self.node_dir(node).join("etc"), 0o755)?;
        self.write_config(state, node)?;
        self.node_group(node)?.make()?;
        self.plug_san(state, node)?;
        let mut args = Vec::new();
        for kind in ["net", "uts", "mnt"] {
            let file = self.node_ns(node, kind);
            fs::write(&file, "").map_err(LabError::io("make", &file))?;
            let option = if kind == "mnt" { "mount" } else { kind };
            args.push(format!("--{option}={}", file.display()));
        }
        args.extend(["--propagation", "slave", "--"].map(str::to_owned));
        args.push(state.exe.display().to_string());
        let dir = self.dir().display().to_string();
        args.extend(["lab", "--dir", &dir, "node-root", &node.to_string()].map(str::to_owned));
        run("unshare", &args)?;
        self.plug(state, node)?;
        self.make_clock(node, state.node(node)?.clock_offset)
    }

    /// Takes away what a loss of power takes: processes, namespaces with all that is in them, and
    /// `/run`. Fine where there is nothing. Returns how many processes there were.
    pub(crate) fn unmake_node(&self, node: NodeName) -> Result<usize, LabError> {
        // First of all: nothing of it reaches the LUN any more, whatever its mounts still hold.
        self.unplug_san(node)?;
        let group = self.node_group(node)?;
        let killed = if group.exists() { group.kill()? } else { 0 };
        group.remove()?;
        self.unplug(node)?;
        for kind in KINDS {
            self.let_go(&self.node_ns(node, kind))?;
        }
        let run_dir = self.run(node);
        for entry in fs::read_dir(&run_dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_dir = entry.file_type().is_ok_and(|it| it.is_dir());
            let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(LabError::io("remove", &path))?;
        }
        Ok(killed)
    }

    /// Ends all processes and lets go of all namespaces; the data stays.
    pub(crate) fn unmake(&self) -> Result<(), LabError> {
        self.group()?.remove()?;
        let ns = self.ns_dir();
        // More than once where an `up` was killed between two of its own tries.
        while is_mount(&ns) {
            unmount(&ns, UnmountFlags::DETACH).map_err(LabError::sys("unmount", &ns))?;
        }
        self.sweep_loops()
    }

    fn let_go(&self, file: &Path) -> Result<(), LabError> {
        while self.holds(file) {
            unmount(file, UnmountFlags::DETACH).map_err(LabError::sys("unmount", file))?;
        }
        match fs::remove_file(file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(LabError::io("remove", file)(error))
            }
            _ => Ok(()),
        }
    }

    /// What a node finds in `/muster/bin`.
    fn write_programs(&self, state: &LabState) -> Result<(), LabError> {
        let link = self.bin().join("muster");
        let _ = fs::remove_file(&link);
        symlink(&state.exe, &link).map_err(LabError::io("make", &link))?;
        let agent = self.bin().join("fence_muster_lab");
        let exe = state.exe.display();
        let text = format!("#!/bin/sh\nexec '{exe}' lab fence-agent \"$@\"\n");
        fs::write(&agent, text).map_err(LabError::io("write", &agent))?;
        fs::set_permissions(&agent, fs::Permissions::from_mode(0o755))
            .map_err(LabError::io("write", &agent))
    }

    fn write_config(&self, state: &LabState, node: NodeName) -> Result<(), LabError> {
        let path = self.node_dir(node).join("etc/config.toml");
        let text = config(self, state, node, &self.node_group(node)?.path());
        fs::write(&path, text).map_err(LabError::io("write", &path))
    }
}

/// A node's configuration.
fn config(lab: &Lab, state: &LabState, node: NodeName, group: &str) -> String {
    let mgmt = state.net.of(Wire::Mgmt, node);
    format!(
        "# made by muster lab up\n\
         node_name = \"{node}\"\n\
         engine = \"{}\"\n\
         control_group = \"{group}\"\n\
         watchdog = \"none\"\n\
         uid_base = {}\n\
         tls_listen = \"{mgmt}:7443\"\n\
         cluster_addresses = [\"{}:7444\", \"{mgmt}:7444\"]\n\
         {}{}\n",
        if state.fake { "fake" } else { "qemu" },
        lab.tag().uid_base(node),
        state.net.of(Wire::Cluster, node),
        if state.san.is_some() { "disk_folders = [\"/muster/san\"]\n" } else { "" },
        state.config,
    )
}

fn make_dir(path: &Path, mode: u32) -> Result<(), LabError> {
    fs::create_dir_all(path).map_err(LabError::io("make", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(LabError::io("make", path))
}

/// Whether something is mounted right there.
fn is_mount(path: &Path) -> bool {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let wanted = path.display().to_string();
    text.lines().any(|line| line.split(' ').nth(4) == Some(wanted.as_str()))
}
