//! Disk images that machines are made from.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

use crate::Bytes;
use crate::ImageId;
use crate::ImagePlace;
use crate::Name;
use crate::OpId;
use crate::UnixMillis;

/// Formats that can be imported. Never guessed from content by a tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageFormat {
    /// The plain bytes of a disk.
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
    /// Microsoft's first virtual hard disk format, fixed or dynamic.
    Vhd,
    /// Microsoft's second virtual hard disk format.
    Vhdx,
    /// VMware's format, one file.
    Vmdk,
}

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum ImageSource {
    /// A file on the node.
    File {
        /// Its absolute path.
        path: String,
    },
    /// An http or https address.
    Url {
        /// The address.
        url: String,
    },
}

/// How far an image is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ImageState {
    /// It is being fetched and converted.
    Importing {
        /// By this operation.
        op: OpId,
    },
    /// Machines can be made from it.
    Ready {
        /// What a guest sees as its size.
        virtual_size: Bytes,
        /// What it takes on disk.
        file_size: Bytes,
        /// SHA-256 of the source as it was fetched, in hexadecimal.
        sha256: String,
    },
    /// It is being deleted.
    Deleting {
        /// By this operation.
        op: OpId,
    },
}

/// An image as the cluster knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageRecord {
    /// Its id, which also names its file.
    pub id: ImageId,
    /// Its name, unique among images.
    pub name: Name,
    /// Where it came from.
    pub source: ImageSource,
    /// The format it had there; on our disks it is qcow2.
    pub format: ImageFormat,
    /// How far it is.
    #[serde(flatten)]
    pub state: ImageState,
    /// Where its file lies.
    pub place: ImagePlace,
    /// When the import began.
    pub created: UnixMillis,
}

/// Text that names no known format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an image format; use raw, qcow2, vhd, vhdx or vmdk")]
pub struct UnknownFormat(String);

impl ImageFormat {
    /// The format that a file name's ending stands for. `.img` stands for none: some publish qcow2
    /// under that name, and taking it for raw would make a broken disk in silence.
    pub fn from_extension(file_name: &str) -> Option<Self> {
        let (_, extension) = file_name.rsplit_once('.')?;
        match extension.to_ascii_lowercase().as_str() {
            "raw" => Some(Self::Raw),
            "qcow2" => Some(Self::Qcow2),
            "vhd" | "vpc" => Some(Self::Vhd),
            "vhdx" => Some(Self::Vhdx),
            "vmdk" => Some(Self::Vmdk),
            _ => None,
        }
    }

    /// The name in the API and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
            Self::Vmdk => "vmdk",
        }
    }
}

impl FromStr for ImageFormat {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, UnknownFormat> {
        [Self::Raw, Self::Qcow2, Self::Vhd, Self::Vhdx, Self::Vmdk]
            .into_iter()
            .find(|format| format.as_str() == text)
            .ok_or_else(|| UnknownFormat(text.chars().take(40).collect()))
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl ImageRecord {
    /// The size that guests see, once the image is ready.
    pub const fn virtual_size(&self) -> Option<Bytes> {
        match self.state {
            ImageState::Ready { virtual_size, .. } => Some(virtual_size),
            ImageState::Importing { .. } | ImageState::Deleting { .. } => None,
        }
    }
}
