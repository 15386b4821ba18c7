//! Between the kernel's words and ours.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use fuser::Errno;
use fuser::FileHandle;
use fuser::FileType;
use fuser::FopenFlags;
use fuser::OpenAccMode;
use fuser::OpenFlags;
use fuser::TimeOrNow;

use super::call::Kind;
use super::call::Name;
use super::call::Time;
use crate::lease::Access;

type Result<T> = std::result::Result<T, i32>;

pub(super) fn errno(number: i32) -> Errno {
    Errno::from_i32(number)
}

pub(super) fn time_of(Time(seconds, nanoseconds): Time) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let time =
        if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    time.unwrap_or(UNIX_EPOCH) + Duration::from_nanos(nanoseconds.into())
}

pub(super) fn told(time: TimeOrNow) -> Time {
    let time = match time {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => SystemTime::now(),
    };
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => Time(i64::try_from(since.as_secs()).unwrap_or(0), since.subsec_nanos()),
        Err(before) => Time(-i64::try_from(before.duration().as_secs()).unwrap_or(0), 0),
    }
}

pub(super) fn name_of(name: &OsStr) -> Result<Name> {
    Name::new(name.as_bytes()).ok_or(libc::ENAMETOOLONG)
}

pub(super) const fn type_of(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Folder => FileType::Directory,
        Kind::Link => FileType::Symlink,
        Kind::Other => FileType::NamedPipe,
    }
}

pub(super) fn access_of(flags: OpenFlags) -> Access {
    match flags.acc_mode() {
        OpenAccMode::O_RDONLY => Access::Read,
        _ => Access::Write,
    }
}

pub(super) const fn handle_of(access: Access) -> FileHandle {
    match access {
        Access::Read => FileHandle(0),
        Access::Write => FileHandle(1),
    }
}

pub(super) const fn access_with(handle: FileHandle) -> Access {
    if handle.0 == 0 { Access::Read } else { Access::Write }
}

pub(super) const fn opened_as() -> FopenFlags {
    FopenFlags::FOPEN_DIRECT_IO.union(FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES)
}
