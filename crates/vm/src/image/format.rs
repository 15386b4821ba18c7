//! Formats we import from, and how one is chosen: stated by the caller, or by the file's extension.
//! Never by content.

use std::fmt;
use std::path::Path;

/// Format of an image to import.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SourceFormat {
    /// Plain bytes of the disk.
    Raw,
    /// QEMU copy-on-write, version 2 or 3.
    Qcow2,
    /// Virtual PC and old Hyper-V disks, fixed or dynamic.
    Vhd,
    /// Hyper-V disks.
    Vhdx,
    /// VMware disks in one file (monolithicSparse, streamOptimized).
    Vmdk,
}

impl SourceFormat {
    /// Every format, in the order they are shown to users.
    pub const ALL: [Self; 5] = [Self::Raw, Self::Qcow2, Self::Vhd, Self::Vhdx, Self::Vmdk];

    /// Name as users write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
            Self::Vmdk => "vmdk",
        }
    }

    /// Name of QEMU's block driver for it.
    pub(super) fn qemu_driver(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vhd => "vpc",
            Self::Vhdx => "vhdx",
            Self::Vmdk => "vmdk",
        }
    }

    /// Derives the format from the last extension of a file name or URL path.
    ///
    /// `.img` is no answer: some publishers put raw disks there and others qcow2, and a wrong
    /// choice is silent.
    #[must_use]
    pub fn from_extension(name: &str) -> Option<Self> {
        let extension = Path::new(name).extension()?.to_str()?.to_ascii_lowercase();
        match extension.as_str() {
            "raw" | "iso" => Some(Self::Raw),
            "qcow2" => Some(Self::Qcow2),
            "vhd" | "vpc" => Some(Self::Vhd),
            "vhdx" => Some(Self::Vhdx),
            "vmdk" => Some(Self::Vmdk),
            _ => None,
        }
    }
}

impl fmt::Display for SourceFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
