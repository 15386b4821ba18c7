//! What makes this process hard to stop: memory that stays, a place before ordinary work, and no
//! death for want of memory.
#![allow(unsafe_code, reason = "sched_setscheduler has no safe wrapper")]

use std::fs;
use std::io;

use rustix::mm::MlockAllFlags;

/// Before all ordinary work, behind the kernel's own real-time threads (50).
const PRIORITY: nix::libc::c_int = 10;

/// Does what is allowed; returns in words what is not.
pub(super) fn harden() -> Vec<String> {
    let mut not = Vec::new();
    let mut note = |what: &str, result: io::Result<()>| {
        if let Err(error) = result {
            not.push(format!("{what}: {error}"));
        }
    };
    note("no death for want of memory", fs::write("/proc/self/oom_score_adj", "-1000"));
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE;
    note("memory that stays", rustix::mm::mlockall(flags).map_err(io::Error::from));
    note("a place before ordinary work", real_time());
    not
}

fn real_time() -> io::Result<()> {
    // SAFETY: the structure is plain numbers, all zero is a value of it.
    let mut param: nix::libc::sched_param = unsafe { std::mem::zeroed() };
    param.sched_priority = PRIORITY;
    let policy = nix::libc::SCHED_FIFO | nix::libc::SCHED_RESET_ON_FORK;
    // SAFETY: 0 is this process, and the pointer is to a live structure.
    let result = unsafe { nix::libc::sched_setscheduler(0, policy, &raw const param) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
