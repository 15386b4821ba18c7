//! The LUN's paths as files of a FUSE file system.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::UNIX_EPOCH;

use fuser::BackgroundSession;
use fuser::Config;
use fuser::Errno;
use fuser::FileAttr;
use fuser::FileHandle;
use fuser::FileType;
use fuser::Filesystem;
use fuser::FopenFlags;
use fuser::Generation;
use fuser::INodeNo;
use fuser::LockOwner;
use fuser::MountOption;
use fuser::OpenFlags;
use fuser::ReplyAttr;
use fuser::ReplyData;
use fuser::ReplyEmpty;
use fuser::ReplyEntry;
use fuser::ReplyOpen;
use fuser::ReplyWrite;
use fuser::Request;
use fuser::WriteFlags;

use super::Lun;
use super::LunError;
use super::SECTOR_BYTES;
use crate::lease::ReservationKey;
use crate::provider::Fence;

/// How long the kernel may believe what it was told about a file: nothing of it changes.
const BELIEVE: Duration = Duration::from_secs(3600);

/// Requests that are served at a time.
const THREADS: usize = 2;

/// The inode of path 0.
const FIRST_INODE: u64 = 2;

/// A LUN that is served; ends, and unmounts, when it is dropped.
pub struct Server {
    lun: Arc<Mutex<Lun>>,
    _session: BackgroundSession,
}

/// Serves a LUN: `folder` then has the files `path-0`, `path-1` and so on.
///
/// # Errors
///
/// The system's: without root or `/dev/fuse` nothing can be mounted.
pub fn serve(lun: Lun, folder: &Path) -> io::Result<Server> {
    serve_as(lun, folder, "")
}

/// The same, with names that begin with `prefix`, so that loop devices on them tell whose they are. The
/// path of a node that lost power so many times is `path-0.<times>`; what it had before is dead.
///
/// # Errors
///
/// As [`serve`].
pub fn serve_as(lun: Lun, folder: &Path, prefix: &str) -> io::Result<Server> {
    let lun = Arc::new(Mutex::new(lun));
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("muster-san".to_owned())];
    config.n_threads = Some(THREADS);
    let session = fuser::spawn_mount(Front::new(&lun, prefix), folder, &config)?;
    Ok(Server { lun, _session: session })
}

impl Server {
    /// The LUN, for as long as the guard is held; no command is served meanwhile.
    pub fn lun(&self) -> MutexGuard<'_, Lun> {
        lock(&self.lun)
    }
}

/// The reservations of a served LUN, over one of its paths.
#[derive(Debug, Clone)]
pub struct PathFence {
    lun: Arc<Mutex<Lun>>,
    path: usize,
    losses: Arc<AtomicU64>,
}

impl Server {
    /// What the node with this path can do about reservations.
    pub fn fence(&self, path: usize) -> PathFence {
        let losses = self.lun().losses(path).unwrap_or_default();
        PathFence { lun: self.lun.clone(), path, losses }
    }
}

impl Fence for PathFence {
    fn register(&self, key: ReservationKey) -> io::Result<()> {
        lock(&self.lun).register(self.path, key.word()).map_err(io::Error::other)
    }

    fn unregister(&self) -> io::Result<()> {
        lock(&self.lun).unregister(self.path).map_err(io::Error::other)
    }

    fn keys(&self) -> io::Result<Vec<ReservationKey>> {
        let keys = lock(&self.lun).keys(self.path).map_err(io::Error::other)?;
        Ok(keys.into_iter().map(ReservationKey::from_word).collect())
    }

    fn own(&self) -> io::Result<Option<ReservationKey>> {
        let key = lock(&self.lun).key_of(self.path).map_err(io::Error::other)?;
        Ok(key.map(ReservationKey::from_word))
    }

    fn preempt(&self, key: ReservationKey) -> io::Result<()> {
        lock(&self.lun).preempt_and_abort(self.path, key.word()).map_err(io::Error::other)
    }

    fn losses(&self) -> u64 {
        self.losses.load(Ordering::SeqCst)
    }
}

/// A panic in one command leaves the LUN as it was before it or after it.
fn lock(lun: &Mutex<Lun>) -> MutexGuard<'_, Lun> {
    lun.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Front {
    lun: Arc<Mutex<Lun>>,
    prefix: String,
}

/// Paths that a LUN can have at most; the rest of an inode is the life of the path's node.
const PATHS_MAX: u64 = 1024;

fn path_in(lun: &Lun, inode: INodeNo) -> Option<usize> {
    let number = u64::from(inode).checked_sub(FIRST_INODE)?;
    let path = usize::try_from(number % PATHS_MAX).ok()?;
    (lun.life(path)? == number / PATHS_MAX).then_some(path)
}

impl Front {
    fn new(lun: &Arc<Mutex<Lun>>, prefix: &str) -> Self {
        Self { lun: lun.clone(), prefix: format!("{prefix}path-") }
    }

    /// The path of an inode, if its node has not lost power since.
    fn path_of(&self, inode: INodeNo) -> Option<usize> {
        path_in(&lock(&self.lun), inode)
    }

    fn inode_of(&self, name: &OsStr) -> Option<INodeNo> {
        let name = name.to_str()?.strip_prefix(&self.prefix)?;
        let (path, life) = name.split_once('.').unwrap_or((name, "0"));
        let (path, life) = (path.parse::<u64>().ok()?, life.parse::<u64>().ok()?);
        let first = path.checked_add(FIRST_INODE).filter(|_| path < PATHS_MAX)?;
        Some(INodeNo(life.checked_mul(PATHS_MAX)?.checked_add(first)?))
    }

    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let folder = inode == INodeNo::ROOT;
        if !folder {
            self.path_of(inode)?;
        }
        let size = if folder { 0 } else { lock(&self.lun).size() };
        Some(FileAttr {
            ino: inode,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if folder { FileType::Directory } else { FileType::RegularFile },
            perm: if folder { 0o755 } else { 0o600 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: u32::try_from(SECTOR_BYTES).unwrap_or(4096),
            flags: 0,
        })
    }

    /// A slow LUN is slow without holding up the commands of other paths.
    fn wait(&self) {
        let delay = lock(&self.lun).delay();
        if !delay.is_zero() {
            std::thread::sleep(delay);
        }
    }
}

impl From<LunError> for Errno {
    fn from(error: LunError) -> Self {
        match error {
            LunError::NoPath | LunError::OutOfRange | LunError::Medium => Self::EIO,
            // What Linux makes of a reservation conflict.
            LunError::Conflict => Self::from_i32(libc::EBADE),
        }
    }
}

impl Filesystem for Front {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.inode_of(name).and_then(|inode| self.attributes(inode)) {
            Some(found) if parent == INodeNo::ROOT => {
                reply.entry(&BELIEVE, &found, Generation(0));
            }
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(inode) {
            Some(found) => reply.attr(&BELIEVE, &found),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.path_of(inode) {
            // The kernel must not cache: other paths write the same bytes.
            Some(_) => reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.wait();
        let lun = lock(&self.lun);
        let Some(path) = path_in(&lun, inode) else { return reply.error(Errno::EIO) };
        let rest = lun.size().saturating_sub(offset).min(u64::from(size));
        let mut buffer = vec![0; usize::try_from(rest).unwrap_or(0)];
        match lun.read(path, offset, &mut buffer) {
            Ok(()) => reply.data(&buffer),
            Err(error) => reply.error(error.into()),
        }
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.wait();
        // One lock for the look and the deed: a life that ends ends between two commands.
        let mut lun = lock(&self.lun);
        let Some(path) = path_in(&lun, inode) else { return reply.error(Errno::EIO) };
        match lun.write(path, offset, data) {
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(0)),
            Err(error) => reply.error(error.into()),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Of a file that is closed; says nothing about the cache.
        reply.ok();
    }

    fn fsync(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.wait();
        let mut lun = lock(&self.lun);
        let Some(path) = path_in(&lun, inode) else { return reply.error(Errno::EIO) };
        match lun.flush(path) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error.into()),
        }
    }
}
