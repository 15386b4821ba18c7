//! A served LUN with a loop device for each path.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

use volume::san::Lun;
use volume::san::Server;
use volume::san::Store;
use volume::san::serve;

/// Taken apart when it goes; by the kernel when the process does.
pub(crate) struct Rig {
    devices: Vec<PathBuf>,
    pub(crate) folder: tempfile::TempDir,
    server: Option<Server>,
}

pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    let more = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {words} {more}");
    more
}

impl Rig {
    pub(crate) fn new(size: u64, paths: usize, fill: u8) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests need root");
        // Mounts are this thread's own, and go with it.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("a name space");
        run("mount", &["--make-rprivate", "/"]);
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        let san = folder.path().join("san");
        std::fs::create_dir(&san).expect("a place for the LUN");
        std::fs::create_dir(folder.path().join("mounted")).expect("a place to mount");
        let lun = Lun::new(size, paths, Store::filled(fill));
        let server = serve(lun, &san).expect("a served LUN");
        let mut rig = Self { devices: Vec::new(), folder, server: Some(server) };
        for path in 0..paths {
            let file = san.join(format!("path-{path}"));
            let file = file.to_string_lossy().into_owned();
            let device = run("losetup", &["--find", "--show", "--direct-io=on", &file]);
            rig.devices.push(PathBuf::from(device));
        }
        rig
    }

    pub(crate) fn device(&self, path: usize) -> &Path {
        &self.devices[path]
    }

    /// How many paths there are.
    #[allow(dead_code, reason = "one of the suites that share this file needs it")]
    pub(crate) fn paths(&self) -> usize {
        self.devices.len()
    }

    pub(crate) fn server(&self) -> &Server {
        self.server.as_ref().expect("served until the rig goes")
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.folder.path().join("mounted")
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let quiet = |program: &str, argument: &Path| {
            let mut command = Command::new(program);
            command.arg(argument).stderr(Stdio::null());
            let _ = command.status();
        };
        quiet("umount", &self.root());
        for device in &self.devices {
            let mut detach = Command::new("losetup");
            let _ = detach.arg("--detach").arg(device).stderr(Stdio::null()).status();
        }
        drop(self.server.take());
    }
}
