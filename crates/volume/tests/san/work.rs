//! Operations on a mounted volume, and what its files are after each.

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;

use nix::fcntl::FallocateFlags;
use nix::fcntl::fallocate;
use volume::block::Buffer;
use volume::extent::leasable;
use volume::extent::prepare;
use volume::lease::BLOCK_BYTES;
use volume::lease::Span;

use crate::rig::run;

/// What was on the LUN before: no file may ever show it.
pub(crate) const SECRET: u8 = 0x5E;

/// The contents of all files.
pub(crate) type State = BTreeMap<String, Vec<u8>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Create,
    Write,
    Overwrite,
    Extend,
    Truncate,
    Punch,
    Preallocate,
    Rename,
    Link,
    Unlink,
    /// Direct writes through another path, under what a lease would allow.
    Leased,
    /// Space that is written ahead, then used directly.
    Grown,
    /// XFS only.
    Clone,
}

impl Op {
    pub(crate) const ALL: [Self; 13] = [
        Self::Create,
        Self::Write,
        Self::Grown,
        Self::Overwrite,
        Self::Leased,
        Self::Extend,
        Self::Punch,
        Self::Preallocate,
        Self::Clone,
        Self::Rename,
        Self::Link,
        Self::Truncate,
        Self::Unlink,
    ];
}

pub(crate) struct Work {
    pub(crate) root: PathBuf,
    /// The other node's path to the LUN.
    pub(crate) direct: File,
    pub(crate) reflink: bool,
    count: u64,
}

pub(crate) fn direct(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).custom_flags(libc::O_DIRECT);
    options.open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Blocks of which each says what wrote it; none holds the secret byte.
fn bytes(number: u64, blocks: u64) -> Buffer {
    let mut buffer = Buffer::zeroed(usize::try_from(blocks * BLOCK_BYTES).unwrap_or(0));
    for (at, byte) in buffer.iter_mut().enumerate() {
        *byte = 0x80 | ((number >> ((at % 4) * 7)) as u8) ^ ((at / 4096) as u8);
    }
    buffer
}

impl Work {
    pub(crate) fn new(root: PathBuf, direct: File, reflink: bool) -> Self {
        Self { root, direct, reflink, count: 0 }
    }

    /// The file that an operation is about: the first one, or a new one.
    fn subject(&self) -> String {
        let first = fs::read_dir(&self.root).expect("the volume").filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            name.starts_with("file").then_some(name)
        });
        first.min().unwrap_or_else(|| "file0".to_owned())
    }

    pub(crate) fn perform(&mut self, op: Op) {
        self.count += 1;
        let number = self.count;
        let name = self.subject();
        let path = self.root.join(&name);
        let fresh = self.root.join(format!("file{number}"));
        let file = || direct(&path);
        let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match op {
            Op::Create => drop(direct(&fresh)),
            Op::Write => {
                // Through the page cache, as any program does.
                fs::write(&fresh, &bytes(number, 12)[..]).expect("a write");
            }
            Op::Overwrite => {
                file().write_all_at(&bytes(number, 3), BLOCK_BYTES).expect("a write");
            }
            Op::Extend => {
                let end = file().metadata().expect("a length").len();
                file().write_all_at(&bytes(number, 5), end).expect("a write");
            }
            Op::Truncate => file().set_len(2 * BLOCK_BYTES).expect("a length"),
            Op::Punch => {
                let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | keep;
                fallocate(file(), punch, 4096, 8192).expect("a hole");
            }
            Op::Preallocate => {
                fallocate(file(), FallocateFlags::empty(), 0, 30 * 4096).expect("space");
            }
            Op::Rename => fs::rename(&path, &fresh).expect("a rename"),
            Op::Link => {
                file();
                fs::hard_link(&path, &fresh).expect("a link");
            }
            Op::Unlink => {
                file();
                fs::remove_file(&path).expect("an unlink");
            }
            Op::Leased => self.write_leased(&file(), number),
            Op::Grown => {
                let file = file();
                prepare(&file, Span::new(0, 24)).expect("growth");
                self.write_leased(&file, number);
            }
            Op::Clone => {
                file().sync_all().expect("synced");
                if self.reflink {
                    let (from, to) = (path.to_string_lossy(), fresh.to_string_lossy());
                    run("cp", &["--reflink=always", &from, &to]);
                }
            }
        }
    }

    fn write_leased(&self, file: &File, number: u64) {
        for extent in leasable(file, Span::new(0, 64)).expect("extents") {
            let data = bytes(number + extent.span.start, extent.span.count);
            let at = extent.device * BLOCK_BYTES;
            self.direct.write_all_at(&data, at).expect("a direct write");
        }
    }

    /// What a guest's flush and a coordinator's commit do.
    pub(crate) fn settle(&self) {
        nix::unistd::syncfs(File::open(&self.root).expect("the volume")).expect("a commit");
        self.direct.sync_all().expect("a flush");
    }

    /// All files, read past the page cache.
    pub(crate) fn state(&self) -> State {
        read_all(&self.root)
    }
}

pub(crate) fn read_all(root: &Path) -> State {
    let mut state = State::new();
    for entry in fs::read_dir(root).expect("the volume") {
        let entry = entry.expect("an entry");
        let name = entry.file_name().into_string().expect("a name");
        if !name.starts_with("file") {
            continue;
        }
        let file = direct(&entry.path());
        let length = usize::try_from(file.metadata().expect("a length").len()).unwrap_or(0);
        let mut buffer = Buffer::zeroed(length.next_multiple_of(4096));
        let mut at = 0;
        while at < length {
            let count = file.read_at(&mut buffer[at..], at as u64).expect("a read");
            assert!(count > 0, "{name} ends before its end");
            at += count;
        }
        state.insert(name, buffer[..length].to_vec());
    }
    state
}
