//! What the file system's names and attributes are asked for. Only the coordinator answers.
//!
//! Every call that changes something is durable before it is answered, so that no answer hangs on a
//! coordinator's memory. A call that has no answer is asked again, also of the next coordinator,
//! marked as asked before: what it finds done then it takes for its own doing (see `names`).

use serde::Deserialize;
use serde::Serialize;

use crate::lease::FileId;

/// The longest name, in bytes, as in every Linux file system.
pub(super) const NAME_BYTES_MAX: usize = 255;

/// The longest target of a symbolic link.
pub(super) const TARGET_BYTES_MAX: usize = 4095;

/// Entries of a folder in one answer.
pub(super) const ENTRIES_MAX: usize = 512;

/// A name in a folder: bytes without a slash or a zero, not empty, not `.` or `..`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Name(Vec<u8>);

impl Name {
    /// A name, if it is one; the kernel gives no others, peers may.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let name = Self(bytes.to_vec());
        name.is_valid().then_some(name)
    }

    /// What came over the wire need not be one.
    pub fn is_valid(&self) -> bool {
        let bytes = &self.0;
        !bytes.is_empty()
            && bytes.len() <= NAME_BYTES_MAX
            && bytes != b"."
            && bytes != b".."
            && !bytes.contains(&b'/')
            && !bytes.contains(&0)
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Seconds and nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Time(pub i64, pub u32);

/// Who will own what is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

/// What kind of thing a name means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A pipe, a socket or a device; shown, never served.
    Other,
}

/// What there is to know of a file without reading it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Which.
    pub file: FileId,
    /// What.
    pub kind: Kind,
    /// Length in bytes, without what was written ahead.
    pub length: u64,
    /// Allocated, in units of 512 bytes.
    pub sectors: u64,
    /// Permission bits.
    pub mode: u32,
    /// Names it has.
    pub links: u32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last read, written, changed.
    pub times: [Time; 3],
}

/// What is to be set; the length is not among it, it belongs to the writer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Permission bits.
    pub mode: Option<u32>,
    /// User.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Last read.
    pub accessed: Option<Time>,
    /// Last written.
    pub modified: Option<Time>,
}

/// One name of a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The name.
    pub name: Vec<u8>,
    /// The inode's number, for programs that look at it.
    pub inode: u64,
    /// What kind.
    pub kind: Kind,
    /// Where the next page begins.
    pub next: u64,
}

/// Room on the volume, in units of `block` bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// Bytes of a unit.
    pub block: u32,
    /// All.
    pub blocks: u64,
    /// Free.
    pub free: u64,
    /// Free for everybody.
    pub available: u64,
    /// Inodes.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
}

/// A question or an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// Which file has that name? Answer: `Attributes`.
    Lookup {
        /// Where.
        folder: FileId,
        /// The name.
        name: Name,
    },
    /// Answer: `Attributes`.
    Attributes {
        /// Of which.
        file: FileId,
    },
    /// Answer: `Attributes`.
    Change {
        /// Of which.
        file: FileId,
        /// What.
        change: Change,
    },
    /// Makes a regular file, or finds it. Answer: `Attributes`.
    Create {
        /// Where.
        folder: FileId,
        /// The name.
        name: Name,
        /// Whose, if it is made.
        owner: Owner,
        /// It must not be there.
        exclusive: bool,
    },
    /// Answer: `Attributes`.
    MakeFolder {
        /// Where.
        folder: FileId,
        /// The name.
        name: Name,
        /// Whose.
        owner: Owner,
    },
    /// Answer: `Attributes`.
    MakeLink {
        /// Where.
        folder: FileId,
        /// The name.
        name: Name,
        /// What it says.
        target: Vec<u8>,
        /// Whose.
        owner: Owner,
    },
    /// What does a symbolic link say? Answer: `Target`.
    ReadLink {
        /// Which.
        file: FileId,
    },
    /// A further name. Answer: `Attributes`.
    Link {
        /// Of which.
        file: FileId,
        /// Where.
        folder: FileId,
        /// The name.
        name: Name,
    },
    /// Takes a name away. Answer: `Done`.
    Unlink {
        /// Where.
        folder: FileId,
        /// The name.
        name: Name,
    },
    /// Takes an empty folder away. Answer: `Done`.
    RemoveFolder {
        /// Where.
        folder: FileId,
        /// The name.
        name: Name,
    },
    /// Answer: `Done`.
    Rename {
        /// From where.
        folder: FileId,
        /// The name.
        name: Name,
        /// To where.
        to_folder: FileId,
        /// The name there.
        to_name: Name,
        /// It must not be there.
        exclusive: bool,
    },
    /// A page of a folder. Answer: `Entries`.
    Read {
        /// Which.
        folder: FileId,
        /// 0, or what the last entry said.
        from: u64,
    },
    /// Answer: `Space`.
    Space,
    /// The writer's file is so long now; kept until it is closed, durable only with `durable`.
    Length {
        /// Which.
        file: FileId,
        /// Its length in bytes.
        length: u64,
        /// Last written.
        modified: Option<Time>,
        /// To be on the LUN before the answer, which is `Done`.
        durable: bool,
    },
    /// Has space without data in it for these bytes. Answer: `Done`.
    Allocate {
        /// Which.
        file: FileId,
        /// From which byte.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// Where does data, or a hole, begin, from there on? Answer: `Place`.
    Seek {
        /// Which.
        file: FileId,
        /// From which byte.
        offset: u64,
        /// For a hole, not for data.
        hole: bool,
    },
}

/// What came of a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// It is done.
    Done,
    /// What is known now.
    Attributes(Attributes),
    /// What a link says.
    Target(Vec<u8>),
    /// Names; the folder's end if there are none.
    Entries(Vec<Entry>),
    /// Room.
    Space(Space),
    /// A byte of the file.
    Place(u64),
    /// The file system refused, with this error number of Linux. Nothing has changed.
    Failed(i32),
}
