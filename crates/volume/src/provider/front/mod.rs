//! The mount point: what programs on a node see of a volume, through FUSE.
//!
//! The kernel's requests for names are answered out of tasks, those for bytes where they can be on the thread
//! that takes them (`data`), so that none waits behind another one's LUN. Data is not cached by the kernel
//! (each open is `FOPEN_DIRECT_IO`), attributes and names neither.
//!
//! | what programs may ask for | what they get |
//! | --- | --- |
//! | names, folders, symbolic and hard links, permissions, times, rename over, `RENAME_NOREPLACE` | POSIX; durable when answered |
//! | read, write, append, truncate, fsync, O_DIRECT, O_SYNC | POSIX; a write is seen by every node when it is answered |
//! | fallocate: allocate, punch, zero range; SEEK_DATA, SEEK_HOLE; statfs | as on ext4; space that is allocated behind the end is not kept |
//! | open for writing | by one node at a time: `EBUSY` on another, after a short wait for one that is just closing |
//! | flock, POSIX and OFD locks | by the kernel, between the programs of one node; between nodes the rule above stands for them |
//! | private mmap, programs that are run | yes |
//! | shared mmap | `ENODEV`: pages of other nodes could not be kept the same |
//! | extended attributes, ACLs | `EOPNOTSUPP` |
//! | pipes, sockets, devices; collapse and insert range; `RENAME_EXCHANGE` | `EOPNOTSUPP` |
//! | a file that was deleted while open, after a change of coordinator | `ESTALE` |
//! | access times | not kept |

mod data;

use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use fuser::BackgroundSession;
use fuser::BsdFileFlags;
use fuser::Config;
use fuser::Errno;
use fuser::FileAttr;
use fuser::FileHandle;
use fuser::Filesystem;
use fuser::Generation;
use fuser::INodeNo;
use fuser::InitFlags;
use fuser::KernelConfig;
use fuser::LockOwner;
use fuser::MountOption;
use fuser::OpenFlags;
use fuser::RenameFlags;
use fuser::ReplyAttr;
use fuser::ReplyCreate;
use fuser::ReplyData;
use fuser::ReplyDirectory;
use fuser::ReplyEmpty;
use fuser::ReplyEntry;
use fuser::ReplyLseek;
use fuser::ReplyOpen;
use fuser::ReplyStatfs;
use fuser::ReplyWrite;
use fuser::Request;
use fuser::SessionACL;
use fuser::TimeOrNow;
use fuser::WriteFlags;
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;

use self::data::Turns;
use crate::lease::Access;
use crate::lease::FileId;
use crate::provider::bytes::OpenFile;
use crate::provider::bytes::OpenFiles;
use crate::provider::call::Attributes;
use crate::provider::call::Call;
use crate::provider::call::Change;
use crate::provider::call::Owner;
use crate::provider::call::Reply;
use crate::provider::client::Client;
use crate::provider::held::Held;
use crate::provider::kernel::access_of;
use crate::provider::kernel::access_with;
use crate::provider::kernel::errno;
use crate::provider::kernel::handle_of;
use crate::provider::kernel::name_of;
use crate::provider::kernel::opened_as;
use crate::provider::kernel::time_of;
use crate::provider::kernel::told;
use crate::provider::kernel::type_of;

/// Requests of the kernel that are in work; more wait in the kernel.
const REQUESTS_MAX: usize = 1024;

/// Threads that take requests from the kernel; one of them waits for nothing.
const THREADS: usize = 4;

/// The longest read or write of the kernel.
const TRANSFER_BYTES: u32 = 1 << 20;

/// Requests that the kernel sends without a program that waits for each.
const BACKGROUND: u16 = 256;

/// How long the kernel may believe what it was told: other nodes change it.
const BELIEVE: Duration = Duration::ZERO;

type Result<T> = std::result::Result<T, i32>;

/// A volume that is mounted on this node. Dropped, it is unmounted at once; see [`Mount::stop`].
pub struct Mount {
    session: BackgroundSession,
    volume: Arc<Volume>,
    work: Arc<Semaphore>,
}

impl Mount {
    /// Mounts the volume of a client. Waits for the first coordinator.
    ///
    /// # Errors
    ///
    /// The system's: without root or `/dev/fuse` nothing can be mounted.
    pub async fn start(client: Client, name: &str, at: &Path) -> io::Result<Self> {
        let root = client.root().await;
        let work = Arc::new(Semaphore::new(REQUESTS_MAX));
        let held = Arc::<Held>::default();
        let files = OpenFiles::new(held.clone());
        let volume = Arc::new(Volume { client, root, files, held });
        let front = Front {
            volume: volume.clone(),
            runtime: Handle::current(),
            work: work.clone(),
            turns: Turns::default(),
        };
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName(format!("muster:{name}")),
            MountOption::Subtype("muster".to_owned()),
            MountOption::DefaultPermissions,
            MountOption::NoDev,
            MountOption::NoSuid,
            MountOption::NoAtime,
        ];
        config.acl = SessionACL::All;
        config.n_threads = Some(THREADS);
        let at = at.to_owned();
        let mounted =
            tokio::task::spawn_blocking(move || fuser::spawn_mount(front, &at, &config)).await;
        let session = mounted.map_err(io::Error::other)??;
        Ok(Self { session, volume, work })
    }

    /// Unmounts, and waits until what programs had open is closed at the coordinator, too: then every
    /// file on the LUN has its length. Waits for a coordinator, if there is none.
    ///
    /// # Errors
    ///
    /// If a program still uses the mount point; it stays then.
    pub async fn stop(self) -> io::Result<()> {
        let Self { session, volume, work } = self;
        let done = tokio::task::spawn_blocking(move || session.umount_and_join()).await;
        done.map_err(io::Error::other)??;
        let all = u32::try_from(REQUESTS_MAX).unwrap_or(1024);
        let _idle = work.acquire_many(all).await;
        volume.client.closed().await;
        Ok(())
    }

    /// Holds a file back, for a live migration, at both of its ends: whatever programs of this node have
    /// written is durable when this returns, another node may write it, and nothing is written from
    /// here, whoever asks, until [`Mount::free`]. What is open stays open and can be read; more
    /// programs may open it for writing, also while another node writes it.
    ///
    /// It ends by itself with the last one who has it open for writing, and after
    /// [`crate::provider::HELD_UNOPENED_MAX`] where nobody does.
    ///
    /// # Errors
    ///
    /// If what was written cannot be made durable. It is not held then.
    pub async fn hold(&self, file: FileId) -> io::Result<()> {
        let open = self.volume.files.of(&self.volume.client, file);
        let held = open.hold().await.map_err(io::Error::from_raw_os_error);
        drop(open);
        self.volume.files.forget_unopened(file).await;
        held
    }

    /// Programs of this node may write a file again; the first write takes the right to. Fine where it
    /// was not held.
    pub fn free(&self, file: FileId) {
        self.volume.held.remove(file);
    }
}

struct Volume {
    client: Client,
    root: FileId,
    files: OpenFiles,
    held: Arc<Held>,
}

struct Front {
    volume: Arc<Volume>,
    runtime: Handle,
    work: Arc<Semaphore>,
    turns: Turns,
}

impl Volume {
    fn id(&self, inode: INodeNo) -> FileId {
        if inode == INodeNo::ROOT { self.root } else { FileId(inode.0) }
    }

    fn inode(&self, file: FileId) -> INodeNo {
        if file == self.root { INodeNo::ROOT } else { INodeNo(file.0) }
    }

    fn shown(&self, found: &Attributes) -> FileAttr {
        let written = self.files.find(found.file).and_then(|file| file.written());
        let (size, modified) =
            written.map_or((found.length, None), |(length, time)| (length, time));
        let modified = modified.unwrap_or(found.times[1]).max(found.times[1]);
        FileAttr {
            ino: self.inode(found.file),
            size,
            blocks: found.sectors,
            atime: time_of(found.times[0]),
            mtime: time_of(modified),
            ctime: time_of(found.times[2].max(modified)),
            crtime: UNIX_EPOCH,
            kind: type_of(found.kind),
            perm: u16::try_from(found.mode & 0o7777).unwrap_or(0),
            nlink: found.links,
            uid: found.uid,
            gid: found.gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    async fn attributes(&self, call: Call) -> Result<FileAttr> {
        match self.client.call(call).await {
            Reply::Attributes(found) => Ok(self.shown(&found)),
            Reply::Failed(number) => Err(number),
            _ => Err(libc::EPROTO),
        }
    }

    async fn done(&self, call: Call) -> Result<()> {
        match self.client.call(call).await {
            Reply::Done | Reply::Attributes(_) => Ok(()),
            Reply::Failed(number) => Err(number),
            _ => Err(libc::EPROTO),
        }
    }

    async fn open(&self, id: FileId, access: Access) -> Result<Arc<OpenFile>> {
        let file = self.files.of(&self.client, id);
        match file.open(access).await {
            Ok(()) => Ok(file),
            Err(number) => {
                drop(file);
                self.files.forget(id);
                Err(number)
            }
        }
    }

    async fn close(&self, id: FileId, access: Access) {
        let Some(file) = self.files.find(id) else { return };
        let last = file.close(access).await;
        drop(file);
        if last {
            self.files.forget(id);
        }
    }

    fn opened(&self, inode: INodeNo) -> Result<Arc<OpenFile>> {
        self.files.find(self.id(inode)).ok_or(libc::EBADF)
    }

    async fn truncate(&self, id: FileId, length: u64) -> Result<()> {
        let file = self.open(id, Access::Write).await?;
        let result = file.truncate(length).await;
        drop(file);
        self.close(id, Access::Write).await;
        result
    }
}

impl Front {
    /// Answers out of a task. If too much is in work already, the kernel waits.
    fn run<F>(&self, work: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let Some(permit) = self.permit() else { return };
        self.runtime.spawn(async move {
            work.await;
            drop(permit);
        });
    }

    /// Leave to have one more request in work; waits where there are too many.
    fn permit(&self) -> Option<OwnedSemaphorePermit> {
        match self.work.clone().try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(_) => self.runtime.block_on(self.work.clone().acquire_owned()).ok(),
        }
    }

    fn entry(&self, reply: ReplyEntry, call: Result<Call>) {
        let volume = self.volume.clone();
        self.run(async move {
            let found = match call {
                Ok(call) => volume.attributes(call).await,
                Err(number) => Err(number),
            };
            match found {
                Ok(found) => reply.entry(&BELIEVE, &found, Generation(0)),
                Err(number) => reply.error(errno(number)),
            }
        });
    }

    fn empty<F>(&self, reply: ReplyEmpty, work: impl FnOnce(Arc<Volume>) -> F)
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let work = work(self.volume.clone());
        self.run(async move {
            match work.await {
                Ok(()) => reply.ok(),
                Err(number) => reply.error(errno(number)),
            }
        });
    }

    fn owner(request: &Request, mode: u32) -> Owner {
        Owner { uid: request.uid(), gid: request.gid(), mode: mode & 0o7777 }
    }
}

impl Filesystem for Front {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for wanted in [InitFlags::FUSE_ASYNC_DIO, InitFlags::FUSE_PARALLEL_DIROPS] {
            // An older kernel is slower, and as right.
            let _ = config.add_capabilities(wanted);
        }
        let _ = config.set_max_write(TRANSFER_BYTES);
        let _ = config.set_max_background(BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let folder = self.volume.id(parent);
        self.entry(reply, name_of(name).map(|name| Call::Lookup { folder, name }));
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let volume = self.volume.clone();
        self.run(async move {
            let file = volume.id(inode);
            match volume.attributes(Call::Attributes { file }).await {
                Ok(found) => reply.attr(&BELIEVE, &found),
                Err(number) => reply.error(errno(number)),
            }
        });
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let volume = self.volume.clone();
        let (accessed, modified) = (atime.map(told), mtime.map(told));
        let change = Change { mode, uid, gid, accessed, modified };
        self.run(async move {
            let file = volume.id(inode);
            let work = async {
                if let Some(size) = size {
                    volume.truncate(file, size).await?;
                }
                if change == Change::default() {
                    return volume.attributes(Call::Attributes { file }).await;
                }
                if modified.is_some()
                    && let Some(open) = volume.files.find(file)
                {
                    open.set_modified();
                }
                volume.attributes(Call::Change { file, change }).await
            };
            match work.await {
                Ok(found) => reply.attr(&BELIEVE, &found),
                Err(number) => reply.error(errno(number)),
            }
        });
    }

    fn readlink(&self, _: &Request, inode: INodeNo, reply: ReplyData) {
        let volume = self.volume.clone();
        self.run(async move {
            match volume.client.call(Call::ReadLink { file: volume.id(inode) }).await {
                Reply::Target(target) => reply.data(&target),
                Reply::Failed(number) => reply.error(errno(number)),
                _ => reply.error(Errno::EIO),
            }
        });
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        if mode & libc::S_IFMT != libc::S_IFREG && mode & libc::S_IFMT != 0 {
            return reply.error(errno(libc::EOPNOTSUPP));
        }
        let (folder, owner) = (self.volume.id(parent), Self::owner(request, mode));
        let exclusive = true;
        self.entry(
            reply,
            name_of(name).map(|name| Call::Create { folder, name, owner, exclusive }),
        );
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        let (folder, owner) = (self.volume.id(parent), Self::owner(request, mode));
        self.entry(reply, name_of(name).map(|name| Call::MakeFolder { folder, name, owner }));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (folder, name) = (self.volume.id(parent), name_of(name));
        self.empty(reply, |volume| async move {
            volume.done(Call::Unlink { folder, name: name? }).await
        });
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (folder, name) = (self.volume.id(parent), name_of(name));
        self.empty(reply, |volume| async move {
            volume.done(Call::RemoveFolder { folder, name: name? }).await
        });
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let (folder, owner) = (self.volume.id(parent), Self::owner(request, 0o777));
        let target = target.as_os_str().as_bytes().to_vec();
        let call = name_of(name).map(|name| Call::MakeLink { folder, name, target, owner });
        self.entry(reply, call);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        to_parent: INodeNo,
        to_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let exclusive = match flags.bits() {
            0 => false,
            libc::RENAME_NOREPLACE => true,
            _ => return reply.error(errno(libc::EOPNOTSUPP)),
        };
        let (folder, to_folder) = (self.volume.id(parent), self.volume.id(to_parent));
        let (name, to_name) = (name_of(name), name_of(to_name));
        self.empty(reply, |volume| async move {
            let (name, to_name) = (name?, to_name?);
            volume.done(Call::Rename { folder, name, to_folder, to_name, exclusive }).await
        });
    }

    fn link(&self, _: &Request, inode: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (file, folder) = (self.volume.id(inode), self.volume.id(parent));
        self.entry(reply, name_of(name).map(|name| Call::Link { file, folder, name }));
    }

    fn open(&self, _: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (volume, access) = (self.volume.clone(), access_of(flags));
        self.run(async move {
            match volume.open(volume.id(inode), access).await {
                Ok(_) => reply.opened(handle_of(access), opened_as()),
                Err(number) => reply.error(errno(number)),
            }
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (volume, owner) = (self.volume.clone(), Self::owner(request, mode));
        let (access, name) = (access_of(OpenFlags(flags)), name_of(name));
        let exclusive = flags & libc::O_EXCL != 0;
        self.run(async move {
            let folder = volume.id(parent);
            let work = async {
                let call = Call::Create { folder, name: name?, owner, exclusive };
                let found = volume.attributes(call).await?;
                volume.open(volume.id(found.ino), access).await?;
                Ok(found)
            };
            match work.await {
                Ok(found) => {
                    let (handle, flags) = (handle_of(access), opened_as());
                    reply.created(&BELIEVE, &found, Generation(0), handle, flags);
                }
                Err(number) => reply.error(errno(number)),
            }
        });
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
        match self.volume.opened(inode) {
            Ok(file) => self.read_data(file, offset, size, reply),
            Err(number) => reply.error(errno(number)),
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
        match self.volume.opened(inode) {
            Ok(file) => self.write_data(file, offset, data, reply),
            Err(number) => reply.error(errno(number)),
        }
    }

    fn flush(&self, _: &Request, inode: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.empty(reply, |volume| async move { volume.opened(inode)?.tell().await });
    }

    fn release(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.empty(reply, |volume| async move {
            volume.close(volume.id(inode), access_with(handle)).await;
            Ok(())
        });
    }

    fn fsync(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.volume.opened(inode) {
            Ok(file) => self.flush_data(file, reply),
            Err(number) => reply.error(errno(number)),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let volume = self.volume.clone();
        self.run(async move {
            let call = Call::Read { folder: volume.id(inode), from: offset };
            match volume.client.call(call).await {
                Reply::Entries(entries) => {
                    for entry in entries {
                        let name = OsStr::from_bytes(&entry.name);
                        let inode = INodeNo(entry.inode.max(1));
                        if reply.add(inode, entry.next, type_of(entry.kind), name) {
                            break;
                        }
                    }
                    reply.ok();
                }
                Reply::Failed(number) => reply.error(errno(number)),
                _ => reply.error(Errno::EIO),
            }
        });
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        // Names are durable when they are answered.
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let volume = self.volume.clone();
        self.run(async move {
            match volume.client.call(Call::Space).await {
                Reply::Space(it) => reply.statfs(
                    it.blocks,
                    it.free,
                    it.available,
                    it.files,
                    it.files_free,
                    it.block,
                    255,
                    it.block,
                ),
                Reply::Failed(number) => reply.error(errno(number)),
                _ => reply.error(Errno::EIO),
            }
        });
    }

    fn fallocate(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let keep = libc::FALLOC_FL_KEEP_SIZE;
        self.empty(reply, |volume| async move {
            let file = volume.opened(inode)?;
            match mode & !keep {
                0 => file.allocate(offset, length, mode & keep == 0).await,
                libc::FALLOC_FL_PUNCH_HOLE if mode & keep != 0 => file.punch(offset, length).await,
                libc::FALLOC_FL_ZERO_RANGE => {
                    if mode & keep == 0 {
                        file.allocate(offset, length, true).await?;
                    }
                    file.punch(offset, length).await
                }
                _ => Err(libc::EOPNOTSUPP),
            }
        });
    }

    fn lseek(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let volume = self.volume.clone();
        self.run(async move {
            let work = async {
                let from = u64::try_from(offset).map_err(|_| libc::ENXIO)?;
                let hole = match whence {
                    libc::SEEK_HOLE => true,
                    libc::SEEK_DATA => false,
                    _ => return Err(libc::EINVAL),
                };
                volume.opened(inode)?.seek(from, hole).await
            };
            match work.await {
                Ok(place) => reply.offset(i64::try_from(place).unwrap_or(i64::MAX)),
                Err(number) => reply.error(errno(number)),
            }
        });
    }

    fn setxattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: &[u8],
        _: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        // The kernel makes EOPNOTSUPP of it, and asks no more.
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: fuser::ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: fuser::ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }
}
