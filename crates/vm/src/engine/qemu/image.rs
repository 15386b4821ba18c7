//! Disk images as QEMU gets them: opened by us, handed over as descriptors, every format and every
//! backing file named by us. QEMU never sees a path and never guesses.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde_json::Value;
use serde_json::json;

use crate::engine::DiskKind;
use crate::engine::DiskPlan;
use crate::engine::EngineError;
use crate::engine::ImageFormat;

/// Most files in a chain: each is opened and locked, and reads may walk all of them.
const CHAIN_MAX: usize = 64;

/// An opened image file.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) fd: OwnedFd,
    format: ImageFormat,
    read_only: bool,
    direct: bool,
    block_device: bool,
}

/// Node of the top of a disk's graph.
pub(super) fn top_node(key: &str) -> String {
    format!("{key}d0")
}

/// Nodes of a disk from the top to the bottom, in the order in which they can be deleted.
pub(super) fn nodes(key: &str, files: usize) -> Vec<String> {
    (0..files).flat_map(|at| [format!("{key}d{at}"), format!("{key}f{at}")]).collect()
}

/// Opens all files of a disk's chain.
pub(super) fn open_chain(disk: &DiskPlan) -> Result<Vec<Image>, EngineError> {
    if disk.chain.is_empty() || disk.chain.len() > CHAIN_MAX {
        return Err(EngineError::Image {
            path: format!("disk {}", disk.id),
            why: format!("a disk has 1 to {CHAIN_MAX} files, not {}", disk.chain.len()),
        });
    }
    let read_only = disk.read_only || disk.kind == DiskKind::Cdrom;
    let files = disk.chain.iter().enumerate();
    files.map(|(at, file)| open(&file.path, file.format, read_only || at > 0)).collect()
}

/// Opens one image file.
pub(super) fn open(
    path: &Path,
    format: ImageFormat,
    read_only: bool,
) -> Result<Image, EngineError> {
    let fail = |why: &dyn std::fmt::Display| EngineError::Image {
        path: path.display().to_string(),
        why: why.to_string(),
    };
    let with = |flags: i32| {
        // Never waits for the other side of a FIFO.
        let flags = flags | libc::O_NONBLOCK | libc::O_NOCTTY;
        File::options().read(true).write(!read_only).custom_flags(flags).open(path)
    };
    // Images that are shared and only read profit from the host's cache; the others bypass it, so
    // that the guest's flush is the only thing between it and its data.
    let (file, direct) = match if read_only { None } else { Some(with(libc::O_DIRECT)) } {
        Some(Ok(file)) => (file, true),
        Some(Err(error)) if error.kind() != io::ErrorKind::InvalidInput => {
            return Err(fail(&error));
        }
        _ => (with(0).map_err(|error| fail(&error))?, false),
    };
    let kind = file.metadata().map_err(|error| fail(&error))?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(fail(&"neither a file nor a block device"));
    }
    Ok(Image { fd: file.into(), format, read_only, direct, block_device: kind.is_block_device() })
}

impl Image {
    /// An image that was opened as usual, for tests of what is told to QEMU.
    #[cfg(test)]
    pub(super) fn pretend(format: ImageFormat, read_only: bool) -> Self {
        let fd = File::open("/dev/null").unwrap().into();
        Self { fd, format, read_only, direct: !read_only, block_device: false }
    }

    /// The two nodes of this file: `at` is its place in the chain, `last` whether it is the bottom.
    pub(super) fn blockdevs(&self, key: &str, at: usize, last: bool, fdset: i32) -> [Value; 2] {
        let (file_node, format_node) = (format!("{key}f{at}"), format!("{key}d{at}"));
        let mut file = json!({
            "driver": if self.block_device { "host_device" } else { "file" },
            "node-name": file_node,
            "filename": format!("/dev/fdset/{fdset}"),
            "read-only": self.read_only,
            "auto-read-only": false,
            "cache": { "direct": self.direct, "no-flush": false },
            "aio": "threads",
            "discard": "unmap",
            // "auto" would go on without a lock where the file system has none.
            "locking": "on",
        });
        if self.block_device
            && let Some(object) = file.as_object_mut()
        {
            object.remove("locking");
        }
        let mut format = json!({
            "driver": match self.format {
                ImageFormat::Raw => "raw",
                ImageFormat::Qcow2 => "qcow2",
            },
            "node-name": format_node,
            "file": file_node,
            "read-only": self.read_only,
            "discard": "unmap",
            "cache": { "direct": self.direct, "no-flush": false },
        });
        if self.format == ImageFormat::Qcow2 {
            format["backing"] = match last {
                true => Value::Null,
                false => Value::String(format!("{key}d{}", at + 1)),
            };
        }
        [file, format]
    }
}

/// Takes QEMU's words about an image apart: somebody else's lock has an error of its own.
pub(super) fn explain(path: &Path, why: &str) -> EngineError {
    let path = path.display().to_string();
    if why.contains("lock") {
        return EngineError::DiskBusy { path };
    }
    EngineError::Image { path, why: why.to_owned() }
}
