//! A process that is surely the one we mean: held by a pidfd, identified by its start time.
#![allow(unsafe_code, reason = "pidfd_open, pidfd_send_signal and waitid have no safe wrapper")]

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::engine::ExitInfo;

/// A handle on a process, of our own or of an earlier daemon's making.
#[derive(Debug)]
pub(super) struct Process {
    fd: AsyncFd<OwnedFd>,
}

/// When a process was started, in clock ticks since boot; `None` where it is not there, or dead
/// and only not yet collected.
pub(super) fn start_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything, also brackets and spaces.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    // Field 22 of the line; the state is field 3.
    fields.nth(18)?.parse().ok()
}

/// Children whose end somebody waits for, by their numbers.
static WATCHED: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

fn watched() -> MutexGuard<'static, BTreeSet<u32>> {
    // Plain data, changed in single steps.
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Somebody waits for the end of a process, and takes it off the process table.
#[derive(Debug)]
pub(super) struct Watched(u32);

impl Watched {
    pub(super) fn new(pid: u32) -> Self {
        watched().insert(pid);
        Self(pid)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        watched().remove(&self.0);
    }
}

/// Takes an ended process off the process table if it is a child of ours that nobody watches; else
/// does nothing. Only one can learn how it ended, and that is whoever watches it.
pub(super) fn collect_unwatched(pid: u32) {
    if pid > 1 && !watched().contains(&pid) {
        // SAFETY: plain integers and a null pointer, which the call allows.
        unsafe {
            libc::waitid(libc::P_PID, pid, std::ptr::null_mut(), libc::WEXITED | libc::WNOHANG);
        }
    }
}

/// A process that was just started and is not yet in any record: whoever gives it up, by an error
/// or because nobody waits any more, ends it and takes it off the process table.
#[derive(Debug)]
pub(super) struct Newborn(u32);

impl Newborn {
    /// Takes charge of a child of ours.
    pub(super) fn new(pid: u32) -> Self {
        Self(pid)
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.0
    }

    /// It is in a record now, by which it is found and ended.
    pub(super) fn recorded(mut self) {
        self.0 = 0;
    }
}

impl Drop for Newborn {
    fn drop(&mut self) {
        let Ok(pid @ 2..) = i32::try_from(self.0) else { return };
        // SAFETY: plain integers; a child that was not collected keeps its number.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        // The kernel takes a moment, and this may be an async task.
        std::thread::spawn(move || {
            // SAFETY: plain integers and a null pointer, which the call allows.
            unsafe {
                let id = pid.unsigned_abs();
                libc::waitid(libc::P_PID, id, std::ptr::null_mut(), libc::WEXITED);
            }
        });
    }
}

/// Which boot of the host this is.
pub(super) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

impl Process {
    /// Opens a process if it (still) is the one that started at `ticks`.
    pub(super) fn open(pid: u32, ticks: u64) -> io::Result<Option<Self>> {
        let raw = i32::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: plain integers; a new descriptor or an error comes back.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, raw, libc::PIDFD_NONBLOCK) };
        if fd < 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::ESRCH) => Ok(None),
                _ => Err(error),
            };
        }
        let fd = i32::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
        // SAFETY: the kernel has just given us this descriptor.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // Looked at after the pidfd is held: now the number cannot pass to another process.
        if start_ticks(pid) != Some(ticks) {
            return Ok(None);
        }
        // SAFETY: the descriptor is owned and stays open for as long as it is registered.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE)? };
        Ok(Some(Self { fd }))
    }

    /// Kills it. Fine if it is gone.
    pub(super) fn kill(&self) {
        let fd = self.fd.as_raw_fd();
        // SAFETY: plain integers and a null pointer, which the call allows.
        unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, fd, libc::SIGKILL, 0_usize, 0);
        }
    }

    /// Whether it has ended.
    pub(super) fn ended(&self) -> bool {
        let mut poll = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one live entry, no wait.
        unsafe { libc::poll(&raw mut poll, 1, 0) > 0 }
    }

    /// Waits for its end.
    pub(super) async fn wait(&self) {
        while !self.ended() {
            match self.fd.readable().await {
                Ok(mut guard) => {
                    if !self.ended() {
                        guard.clear_ready();
                    }
                }
                Err(_) => break,
            }
        }
    }

    /// After its end: takes it off the process table and tells how it ended, if it is our child.
    pub(super) fn collect(&self) -> ExitInfo {
        let mut exit = ExitInfo::default();
        // SAFETY: all zeroes is a valid value of this plain C structure.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let id = self.fd.as_raw_fd().unsigned_abs();
        // SAFETY: the structure lives; an adopted process is not our child, which is an error here.
        let done = unsafe {
            libc::waitid(libc::P_PIDFD, id, &raw mut info, libc::WEXITED | libc::WNOHANG)
        };
        if done == 0 && info.si_signo == libc::SIGCHLD {
            // SAFETY: the fields are valid for SIGCHLD.
            let status = unsafe { info.si_status() };
            match info.si_code {
                libc::CLD_EXITED => exit.code = Some(status),
                _ => exit.signal = Some(status),
            }
        }
        exit
    }
}
