//! A real file system on a loop device, and the device beside it.

use std::fs::File;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use std::os::unix::fs::FileExt;
use volume::block::Buffer;
use volume::lease::BLOCK_BYTES;

const SIZE: u64 = 320 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Blocks of 1 KiB.
    SmallExt4,
    Ext4,
    Xfs,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::SmallExt4, Self::Ext4, Self::Xfs];
}

/// A volume; unmounted and detached when it goes, and by the kernel when the process does.
pub(crate) struct Volume {
    pub(crate) kind: Kind,
    folder: tempfile::TempDir,
    device: PathBuf,
    /// The LUN, seen past the file system.
    direct: File,
}

pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {words}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

pub(crate) fn block() -> Buffer {
    Buffer::zeroed(4096)
}

pub(crate) fn filled(byte: u8, length: usize) -> Buffer {
    let mut buffer = Buffer::zeroed(length);
    buffer.fill(byte);
    buffer
}

/// A block that says which one it is, without the byte that is secret.
pub(crate) fn pattern(number: u64) -> Buffer {
    let mut buffer = block();
    for (at, byte) in buffer.iter_mut().enumerate() {
        let shift = (at % 8) * 8;
        *byte = 0x80 | ((number >> shift) as u8).wrapping_add((at / 8) as u8);
    }
    buffer
}

fn open(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).custom_flags(libc::O_DIRECT);
    options.open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

impl Volume {
    pub(crate) fn new(kind: Kind, before: u8) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests need root");
        // Mounts are this thread's own, and go with it.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("a name space");
        run("mount", &["--make-rprivate", "/"]);
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        let image = folder.path().join("lun");
        let file = File::create(&image).expect("a file");
        file.set_len(SIZE).expect("its size");
        for chunk in 0..80 {
            file.write_all_at(&filled(before, 1 << 20), chunk << 20).expect("bytes of before");
        }
        let image = image.to_string_lossy().into_owned();
        let device = run("losetup", &["--find", "--show", "--direct-io=on", &image]);
        match kind {
            Kind::SmallExt4 => {
                run("mkfs.ext4", &["-q", "-F", "-b", "1024", "-E", "nodiscard", &device]);
            }
            Kind::Ext4 => {
                run("mkfs.ext4", &["-q", "-F", "-b", "4096", "-E", "nodiscard", &device]);
            }
            Kind::Xfs => {
                run("mkfs.xfs", &["-q", "-f", "-K", "-m", "reflink=1", &device]);
            }
        }
        let direct = open(Path::new(&device));
        let volume = Self { kind, folder, device: PathBuf::from(device), direct };
        std::fs::create_dir(volume.root()).expect("a place to mount");
        volume.mount();
        volume
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("mounted")
    }

    fn mount(&self) {
        run("mount", &[&self.device.to_string_lossy(), &self.root().to_string_lossy()]);
    }

    pub(crate) fn remount(&self) {
        run("umount", &[&self.root().to_string_lossy()]);
        self.mount();
    }

    /// Opens a file as the coordinator does.
    pub(crate) fn file(&self, name: &str) -> File {
        open(&self.root().join(name))
    }

    /// Opens a file as everybody else does.
    pub(crate) fn buffered(&self, name: &str) -> File {
        let path = self.root().join(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.open(path).expect("a file")
    }

    pub(crate) fn remove(&self, name: &str) {
        std::fs::remove_file(self.root().join(name)).expect("removed");
    }

    pub(crate) fn clone_file(&self, from: &str, to: &str) {
        let (from, to) = (self.root().join(from), self.root().join(to));
        run("cp", &["--reflink=always", &from.to_string_lossy(), &to.to_string_lossy()]);
    }

    pub(crate) fn read(&self, at: u64) -> Buffer {
        let mut buffer = block();
        self.direct.read_exact_at(&mut buffer, at * BLOCK_BYTES).expect("a block of the LUN");
        buffer
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        self.direct.write_all_at(bytes, at * BLOCK_BYTES).expect("a write to the LUN");
    }

    /// Direct writes have not hurt the file system.
    pub(crate) fn unmount_and_check(&self) {
        run("umount", &[&self.root().to_string_lossy()]);
        let device = self.device.to_string_lossy().into_owned();
        match self.kind {
            Kind::Xfs => run("xfs_repair", &["-n", &device]),
            Kind::SmallExt4 | Kind::Ext4 => run("e2fsck", &["-f", "-n", &device]),
        };
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ =
            Command::new("umount").arg(self.root()).stderr(std::process::Stdio::null()).status();
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
    }
}
