//! Names, attributes and room: what calls do to the mounted file system.
//!
//! Calls of different clients run beside each other; the kernel's file system keeps them apart. What
//! changes something is synced before it is answered. A call that was *asked before* may have been
//! done then, by this coordinator or the one before; it is taken as done where what is found is what
//! it would have made: a name that is gone, a folder that is empty, a link that says the same.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;

use model::NodeId;
use rustix::fs::AtFlags;
use rustix::fs::FallocateFlags;
use rustix::fs::Gid;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::RenameFlags;
use rustix::fs::Timespec;
use rustix::fs::Timestamps;
use rustix::fs::UTIME_OMIT;
use rustix::fs::Uid;

use super::call::Attributes;
use super::call::Call;
use super::call::Change;
use super::call::ENTRIES_MAX;
use super::call::Entry;
use super::call::Kind;
use super::call::Name;
use super::call::Owner;
use super::call::Reply;
use super::call::Space;
use super::call::TARGET_BYTES_MAX;
use super::call::Time;
use super::handle;
use super::store::Record;
use super::store::Store;
use super::store::to_error;
use crate::lease::FileId;

/// Does it for a node, and waits for the LUN. `Err` where the LUN itself has failed: the reign is over.
pub(super) fn perform(store: &Store, from: NodeId, call: Call, again: bool) -> io::Result<Reply> {
    match done(store, from, call, again) {
        Ok(reply) => Ok(reply),
        Err(error) => match error.raw_os_error() {
            Some(
                libc::EIO
                | libc::EROFS
                | libc::ENODEV
                | libc::ENXIO
                | libc::EUCLEAN
                | libc::ESHUTDOWN
                | libc::EBADE
                | libc::EREMOTEIO,
            ) => Err(error),
            Some(number) => Ok(Reply::Failed(number)),
            None => Ok(Reply::Failed(libc::EINVAL)),
        },
    }
}

fn done(store: &Store, from: NodeId, call: Call, again: bool) -> io::Result<Reply> {
    match call {
        Call::Lookup { folder, name } => lookup(store, &open_folder(store, folder)?, &name),
        Call::Attributes { file } => attributes(store, &plain(store, file)?),
        Call::Change { file, change } => change_of(store, file, &change),
        Call::Create { folder, name, owner, exclusive } => {
            create(store, folder, &name, owner, exclusive)
        }
        Call::MakeFolder { folder, name, owner } => make_folder(store, folder, &name, owner, again),
        Call::MakeLink { folder, name, target, owner } => {
            make_link(store, folder, &name, &target, owner, again)
        }
        Call::ReadLink { file } => {
            let target = rustix::fs::readlinkat(plain(store, file)?, "", Vec::new());
            Ok(Reply::Target(target.map_err(to_error)?.into_bytes()))
        }
        Call::Link { file, folder, name } => link(store, file, folder, &name, again),
        Call::Unlink { folder, name } => remove(store, folder, &name, AtFlags::empty(), again),
        Call::RemoveFolder { folder, name } => {
            remove(store, folder, &name, AtFlags::REMOVEDIR, again)
        }
        Call::Rename { folder, name, to_folder, to_name, exclusive } => {
            let (from, to) = (open_folder(store, folder)?, open_folder(store, to_folder)?);
            rename(&from, os(&name)?, &to, os(&to_name)?, exclusive, again)
        }
        Call::Read { folder, from: place } => entries(&open_folder(store, folder)?, place),
        Call::Space => space(store),
        Call::Length { file, length, modified, durable } => {
            set_length(store, from, file, length, modified, durable)
        }
        Call::Allocate { file, offset, length } => {
            let open = store.file(file)?;
            rustix::fs::fallocate(&*open, FallocateFlags::KEEP_SIZE, offset, length)
                .map_err(to_error)?;
            open.sync_all()?;
            Ok(Reply::Done)
        }
        Call::Seek { file, offset, hole } => seek(store, file, offset, hole),
    }
}

fn os(name: &Name) -> io::Result<&OsStr> {
    // Peers are not believed.
    let valid = name.is_valid().then(|| OsStr::from_bytes(name.bytes()));
    valid.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
}

fn failed<T>(number: i32) -> io::Result<T> {
    Err(io::Error::from_raw_os_error(number))
}

/// Any file, to look at.
fn plain(store: &Store, file: FileId) -> io::Result<File> {
    handle::open(&*store.root()?, file, libc::O_PATH | libc::O_NOFOLLOW)
}

fn open_folder(store: &Store, folder: FileId) -> io::Result<File> {
    handle::open(&*store.root()?, folder, libc::O_RDONLY | libc::O_DIRECTORY)
}

fn child(folder: &File, name: &OsStr) -> io::Result<File> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found: OwnedFd =
        rustix::fs::openat(folder, name, flags, Mode::empty()).map_err(to_error)?;
    Ok(found.into())
}

fn lookup(store: &Store, folder: &File, name: &Name) -> io::Result<Reply> {
    let found = child(folder, os(name)?)?;
    // Something that is mounted there is no part of the volume.
    if found.metadata()?.dev() != folder.metadata()?.dev() {
        return failed(libc::EXDEV);
    }
    attributes(store, &found)
}

fn attributes(store: &Store, file: &File) -> io::Result<Reply> {
    let id = handle::id_of(file)?;
    let found = file.metadata()?;
    let kind = match found.file_type() {
        kind if kind.is_file() => Kind::File,
        kind if kind.is_dir() => Kind::Folder,
        kind if kind.is_symlink() => Kind::Link,
        _ => Kind::Other,
    };
    let length = match kind {
        Kind::File => match store.written_length(id) {
            Some(length) => length,
            // Attributes cannot be read from a descriptor that is only a place.
            None => {
                let place = format!("/proc/self/fd/{}", file.as_raw_fd());
                store.length(id, found.len(), &File::open(place)?)?
            }
        },
        _ => found.len(),
    };
    let nanoseconds = |part: i64| u32::try_from(part).unwrap_or(0);
    Ok(Reply::Attributes(Attributes {
        file: id,
        kind,
        length,
        sectors: found.blocks(),
        mode: found.mode() & 0o7777,
        links: u32::try_from(found.nlink()).unwrap_or(u32::MAX),
        uid: found.uid(),
        gid: found.gid(),
        times: [
            Time(found.atime(), nanoseconds(found.atime_nsec())),
            Time(found.mtime(), nanoseconds(found.mtime_nsec())),
            Time(found.ctime(), nanoseconds(found.ctime_nsec())),
        ],
    }))
}

fn change_of(store: &Store, file: FileId, change: &Change) -> io::Result<Reply> {
    let open = plain(store, file)?;
    if change.uid.is_some() || change.gid.is_some() {
        let (uid, gid) = (change.uid.map(Uid::from_raw), change.gid.map(Gid::from_raw));
        rustix::fs::chownat(&open, "", uid, gid, AtFlags::EMPTY_PATH).map_err(to_error)?;
    }
    if let Some(mode) = change.mode {
        let place = format!("/proc/self/fd/{}", open.as_raw_fd());
        std::fs::set_permissions(place, std::fs::Permissions::from_mode(mode & 0o7777))?;
    }
    if change.accessed.is_some() || change.modified.is_some() {
        set_times(&open, change.accessed, change.modified)?;
    }
    rustix::fs::syncfs(&*store.root()?).map_err(to_error)?;
    attributes(store, &open)
}

fn set_times(file: &File, accessed: Option<Time>, modified: Option<Time>) -> io::Result<()> {
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let time = |time: Option<Time>| {
        time.map_or(omit, |Time(seconds, nanoseconds)| Timespec {
            tv_sec: seconds,
            tv_nsec: i64::from(nanoseconds.min(999_999_999)),
        })
    };
    let times = Timestamps { last_access: time(accessed), last_modification: time(modified) };
    rustix::fs::utimensat(file, "", &times, AtFlags::EMPTY_PATH).map_err(to_error)
}

/// Gives something new its owner; the group of a folder with that bit is inherited, as ever.
fn own(folder: &File, made: &File, owner: Owner) -> io::Result<()> {
    let parent = folder.metadata()?;
    let inherited = parent.mode() & 0o2000 != 0;
    let gid = if inherited { parent.gid() } else { owner.gid };
    let (uid, gid) = (Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(gid)));
    rustix::fs::chownat(made, "", uid, gid, AtFlags::EMPTY_PATH).map_err(to_error)?;
    let kind = made.metadata()?;
    if !kind.is_symlink() {
        let more = if inherited && kind.is_dir() { 0o2000 } else { 0 };
        let place = format!("/proc/self/fd/{}", made.as_raw_fd());
        let mode = std::fs::Permissions::from_mode((owner.mode & 0o7777) | more);
        std::fs::set_permissions(place, mode)?;
    }
    Ok(())
}

fn create(
    store: &Store,
    folder: FileId,
    name: &Name,
    owner: Owner,
    exclusive: bool,
) -> io::Result<Reply> {
    let folder = open_folder(store, folder)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(&folder, os(name)?, flags, Mode::empty()) {
        Ok(made) => {
            let made = File::from(made);
            own(&folder, &made, owner)?;
            made.sync_all()?;
            folder.sync_all()?;
            attributes(store, &made)
        }
        Err(rustix::io::Errno::EXIST) if !exclusive => lookup(store, &folder, name),
        Err(error) => Err(error.into()),
    }
}

fn make_folder(
    store: &Store,
    folder: FileId,
    name: &Name,
    owner: Owner,
    again: bool,
) -> io::Result<Reply> {
    let folder = open_folder(store, folder)?;
    match rustix::fs::mkdirat(&folder, os(name)?, Mode::RWXU) {
        Ok(()) => {}
        Err(rustix::io::Errno::EXIST) if again => {
            let there = child(&folder, os(name)?)?;
            let place = format!("/proc/self/fd/{}", there.as_raw_fd());
            // One that somebody uses already was not made by this.
            if !there.metadata()?.is_dir() || std::fs::read_dir(place)?.next().is_some() {
                return failed(libc::EEXIST);
            }
        }
        Err(error) => return Err(error.into()),
    }
    let made = child(&folder, os(name)?)?;
    own(&folder, &made, owner)?;
    rustix::fs::syncfs(&*store.root()?).map_err(to_error)?;
    attributes(store, &made)
}

fn make_link(
    store: &Store,
    folder: FileId,
    name: &Name,
    target: &[u8],
    owner: Owner,
    again: bool,
) -> io::Result<Reply> {
    if target.is_empty() || target.len() > TARGET_BYTES_MAX || target.contains(&0) {
        return failed(libc::EINVAL);
    }
    let folder = open_folder(store, folder)?;
    match rustix::fs::symlinkat(OsStr::from_bytes(target), &folder, os(name)?) {
        Ok(()) => {}
        Err(rustix::io::Errno::EXIST) if again => {
            let said = rustix::fs::readlinkat(&folder, os(name)?, Vec::new()).map_err(to_error)?;
            if said.as_bytes() != target {
                return failed(libc::EEXIST);
            }
        }
        Err(error) => return Err(error.into()),
    }
    let made = child(&folder, os(name)?)?;
    own(&folder, &made, owner)?;
    rustix::fs::syncfs(&*store.root()?).map_err(to_error)?;
    attributes(store, &made)
}

fn link(
    store: &Store,
    file: FileId,
    folder: FileId,
    name: &Name,
    again: bool,
) -> io::Result<Reply> {
    let open = plain(store, file)?;
    let folder = open_folder(store, folder)?;
    match rustix::fs::linkat(&open, "", &folder, os(name)?, AtFlags::EMPTY_PATH) {
        Ok(()) => {}
        Err(rustix::io::Errno::EXIST)
            if again && handle::id_of(&child(&folder, os(name)?)?)? == file => {}
        Err(error) => return Err(error.into()),
    }
    rustix::fs::syncfs(&*store.root()?).map_err(to_error)?;
    attributes(store, &open)
}

fn remove(
    store: &Store,
    folder: FileId,
    name: &Name,
    flags: AtFlags,
    again: bool,
) -> io::Result<Reply> {
    let folder = open_folder(store, folder)?;
    // Blocks that are leased are not freed by this: the store has every file open that is in use.
    match rustix::fs::unlinkat(&folder, os(name)?, flags) {
        Ok(()) => {}
        Err(rustix::io::Errno::NOENT) if again => {}
        Err(error) => return Err(error.into()),
    }
    folder.sync_all()?;
    Ok(Reply::Done)
}

fn rename(
    from: &File,
    name: &OsStr,
    to: &File,
    to_name: &OsStr,
    exclusive: bool,
    again: bool,
) -> io::Result<Reply> {
    let flags = if exclusive { RenameFlags::NOREPLACE } else { RenameFlags::empty() };
    match rustix::fs::renameat_with(from, name, to, to_name, flags) {
        Ok(()) => {}
        Err(rustix::io::Errno::NOENT) if again && child(to, to_name).is_ok() => {}
        Err(error) => return Err(error.into()),
    }
    to.sync_all()?;
    from.sync_all()?;
    Ok(Reply::Done)
}

fn entries(folder: &File, from: u64) -> io::Result<Reply> {
    let mut found = Vec::new();
    let mut folder = rustix::fs::Dir::read_from(folder).map_err(to_error)?;
    if from > 0 {
        folder.seek(i64::try_from(from).unwrap_or(i64::MAX)).map_err(to_error)?;
    }
    for entry in folder {
        let entry = entry.map_err(to_error)?;
        let kind = match entry.file_type() {
            rustix::fs::FileType::RegularFile => Kind::File,
            rustix::fs::FileType::Directory => Kind::Folder,
            rustix::fs::FileType::Symlink => Kind::Link,
            _ => Kind::Other,
        };
        found.push(Entry {
            name: entry.file_name().to_bytes().to_vec(),
            inode: entry.ino(),
            kind,
            next: u64::try_from(entry.offset()).unwrap_or(0),
        });
        if found.len() >= ENTRIES_MAX {
            break;
        }
    }
    Ok(Reply::Entries(found))
}

fn space(store: &Store) -> io::Result<Reply> {
    let found = rustix::fs::fstatvfs(&*store.root()?).map_err(to_error)?;
    Ok(Reply::Space(Space {
        block: u32::try_from(found.f_frsize).unwrap_or(4096),
        blocks: found.f_blocks,
        free: found.f_bfree,
        available: found.f_bavail,
        files: found.f_files,
        files_free: found.f_ffree,
    }))
}

fn set_length(
    store: &Store,
    from: NodeId,
    file: FileId,
    length: u64,
    modified: Option<Time>,
    durable: bool,
) -> io::Result<Reply> {
    let open = store.file(file)?;
    // Its writer is who the record says; what another one says may be late.
    let record = Store::record(&*open)?.and_then(|record| record.writer);
    let Some(writer) = record.filter(|(node, _)| *node == from) else {
        return failed(libc::EBADF);
    };
    store.set_length(file, Some(length));
    if let Some(modified) = modified {
        set_times(&open, None, Some(modified))?;
    }
    if durable {
        Store::set_record(&open, &Record { writer: Some(writer), length })?;
        open.sync_all()?;
    }
    Ok(Reply::Done)
}

fn seek(store: &Store, file: FileId, offset: u64, hole: bool) -> io::Result<Reply> {
    let open = store.file(file)?;
    let length = store.length(file, open.metadata()?.len(), &*open)?;
    // From a seek this says that there is none, and nothing of the LUN.
    let none = || Ok(Reply::Failed(libc::ENXIO));
    if offset >= length {
        return none();
    }
    // A descriptor of its own: the place in a file is shared by all users of one.
    let place = format!("/proc/self/fd/{}", open.as_raw_fd());
    let own = File::open(place)?;
    let from =
        if hole { rustix::fs::SeekFrom::Hole(offset) } else { rustix::fs::SeekFrom::Data(offset) };
    match rustix::fs::seek(&own, from) {
        Ok(found) if found < length => Ok(Reply::Place(found)),
        // Every file ends with a hole.
        Ok(_) if hole => Ok(Reply::Place(length)),
        Ok(_) | Err(rustix::io::Errno::NXIO) => none(),
        Err(error) => Err(error.into()),
    }
}
