//! The launcher's own process: from root of the host to nobody in a cell.
//!
//! Runs with one thread, before any runtime is started, so that `clone` without `exec` is sound.
#![allow(unsafe_code, reason = "clone, prctl, close_range have no safe wrapper; one thread only")]

use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use landlock::ABI;
use landlock::Access;
use landlock::AccessFs;
use landlock::AccessNet;
use landlock::CompatLevel;
use landlock::Compatible;
use landlock::PathBeneath;
use landlock::PathFd;
use landlock::Ruleset;
use landlock::RulesetAttr;
use landlock::RulesetCreatedAttr;
use landlock::Scope;
use nix::sched::CloneFlags;
use nix::sys::resource::Resource;
use nix::sys::resource::setrlimit;
use nix::unistd::Gid;
use nix::unistd::Uid;

use super::JailError;
use super::JailPlan;
use super::PLAN_MAX;
use super::REPORT_MAX;
use super::Report;
use super::root;
use super::seccomp;

/// Descriptors a machine may have open: each disk, adapter and viewer takes a few.
const NOFILE: u64 = 4096;

/// Flag of clone3 (linux/sched.h): the new process begins in the control group that is given.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Highest capability number the kernel may know; asking for more ends the loop early.
const CAP_MAX: u64 = 63;

/// The whole life of the launcher: reads a [`JailPlan`] from standard input, starts the program,
/// writes a report to standard output. The command line calls this for the hidden verb
/// `launch-vm`, before it starts any thread.
pub fn jail_main() -> ExitCode {
    let report = match launch() {
        Ok(pid) => Report::Started { pid },
        Err(JailError { step, why }) => Report::Failed { step, why },
    };
    let failed = matches!(report, Report::Failed { .. });
    let text = serde_json::to_vec(&report).unwrap_or_default();
    // Nobody reads it where the daemon has died; the run record says "starting" then.
    let _ = std::io::stdout().write_all(&text);
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn launch() -> Result<u32, JailError> {
    let mut text = Vec::new();
    std::io::stdin()
        .take(PLAN_MAX)
        .read_to_end(&mut text)
        .map_err(|error| JailError::new("read plan", error))?;
    let plan: JailPlan =
        serde_json::from_slice(&text).map_err(|error| JailError::new("read plan", error))?;
    // SAFETY: a plain getter.
    if unsafe { libc::geteuid() } != 0 {
        return Err(JailError::new("check user", "not root"));
    }
    close_all_but(&plan)?;
    forget_protection();
    nix::sched::unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWPID,
    )
    .map_err(|error| JailError::new("make namespaces", error))?;
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
        .map_err(|error| JailError::new("make pipe", error))?;
    let pid = clone_into(&plan.cgroup)?;
    if pid == 0 {
        drop(read);
        let Err(error) = become_prisoner(&plan);
        let _ = File::from(write).write_all(format!("{}\n{}", error.step, error.why).as_bytes());
        std::process::exit(1);
    }
    drop(write);
    // End of file without a word: the exec has closed the pipe.
    let mut words = String::new();
    let _ = File::from(read).take(REPORT_MAX).read_to_string(&mut words);
    match words.split_once('\n') {
        Some((step, why)) => Err(JailError::new(step, why)),
        None => u32::try_from(pid).map_err(|error| JailError::new("clone", error)),
    }
}

/// Forks into a control group, with the launcher's own parent as parent; 0 in the new process.
///
/// Born there, not moved there: the kernel moves a process only after all processors have passed a
/// quiet point, which takes tens of milliseconds, one machine after the other. A group that was
/// removed meanwhile takes nobody in.
fn clone_into(group: &Path) -> Result<i64, JailError> {
    let group = File::open(group).map_err(|error| JailError::new("open control group", error))?;
    let flags = libc::CLONE_PARENT.unsigned_abs();
    // SAFETY: all zeroes is a valid value of this plain C structure.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    // With this parent the signal at the end is the launcher's own, SIGCHLD, and none may be given.
    args.flags = u64::from(flags) | CLONE_INTO_CGROUP;
    args.cgroup = u64::from(group.as_raw_fd().unsigned_abs());
    // SAFETY: one thread, and no stack is given, so this is fork with another parent; the structure
    // lives and has the size given.
    let pid =
        unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    if pid < 0 {
        let error = std::io::Error::last_os_error();
        return Err(JailError::new("start in control group", error));
    }
    Ok(pid)
}

/// The daemon is protected from the kernel's out-of-memory killer, and a machine that inherited this
/// would have everything else on the host killed before itself.
fn forget_protection() {
    let path = "/proc/self/oom_score_adj";
    let score = std::fs::read_to_string(path).unwrap_or_default();
    if score.trim().parse::<i32>().is_ok_and(|score| score < 0) {
        // To give up protection is always allowed; if it failed, the machine still could run.
        let _ = std::fs::write(path, "0");
    }
}

/// Marks everything but the wanted descriptors to be closed by exec, so that nothing leaks in.
fn close_all_but(plan: &JailPlan) -> Result<(), JailError> {
    // SAFETY: only sets a flag on descriptors.
    let done =
        unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done != 0 {
        return Err(JailError::new("close descriptors", std::io::Error::last_os_error()));
    }
    for fd in &plan.keep_fds {
        // SAFETY: only clears a flag on a descriptor; a bad number is an error.
        if unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) } != 0 {
            let error = std::io::Error::last_os_error();
            return Err(JailError::new("keep descriptor", format!("{fd}: {error}")));
        }
    }
    Ok(())
}

/// In the new process: goes into the cell and becomes the program. Returns only on failure.
fn become_prisoner(plan: &JailPlan) -> Result<std::convert::Infallible, JailError> {
    // Only now: the group that this process is in becomes the top of what it can see.
    nix::sched::unshare(CloneFlags::CLONE_NEWCGROUP)
        .map_err(|error| JailError::new("make namespaces", error))?;
    nix::unistd::setsid().map_err(|error| JailError::new("setsid", error))?;
    nix::unistd::sethostname(&plan.hostname)
        .map_err(|error| JailError::new("set host name", error))?;
    root::build(plan)?;
    redirect(plan)?;
    limits(plan)?;
    drop_privileges(plan.uid)?;
    landlock()?;
    let text =
        |bytes: &[u8]| CString::new(bytes).map_err(|error| JailError::new("arguments", error));
    let program = text(plan.program.as_os_str().as_bytes())?;
    let mut args = vec![program.clone()];
    for arg in &plan.args {
        args.push(text(arg.as_bytes())?);
    }
    let env = [text(b"TMPDIR=/tmp")?, text(b"PATH=/nonexistent")?];
    seccomp::install()?;
    match nix::unistd::execve(&program, &args, &env) {
        Ok(never) => match never {},
        Err(error) => Err(JailError::new("exec", error)),
    }
}

fn redirect(plan: &JailPlan) -> Result<(), JailError> {
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(|error| JailError::new("open /dev/null", error))?;
    for (from, to) in [(null.as_raw_fd(), 0), (plan.output_fd, 1), (plan.output_fd, 2)] {
        // SAFETY: replaces the standard descriptors of this process, which nobody uses.
        if unsafe { libc::dup2(from, to) } < 0 {
            return Err(JailError::new("redirect output", std::io::Error::last_os_error()));
        }
    }
    // The number itself is not handed on.
    // SAFETY: the descriptor was given to this process for this purpose.
    drop(unsafe { OwnedFd::from_raw_fd(plan.output_fd) });
    Ok(())
}

fn limits(plan: &JailPlan) -> Result<(), JailError> {
    let limits = [
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_NPROC, plan.threads_max),
        (Resource::RLIMIT_NOFILE, NOFILE),
        (Resource::RLIMIT_MEMLOCK, 0),
        (Resource::RLIMIT_MSGQUEUE, 0),
        (Resource::RLIMIT_NICE, 0),
        (Resource::RLIMIT_RTPRIO, 0),
        (Resource::RLIMIT_SIGPENDING, 1024),
    ];
    for (what, limit) in limits {
        setrlimit(what, limit, limit)
            .map_err(|error| JailError::new("set limits", format!("{what:?}: {error}")))?;
    }
    Ok(())
}

fn drop_privileges(uid: u32) -> Result<(), JailError> {
    let fail = |error: nix::Error| JailError::new("drop privileges", error);
    for cap in 0..=CAP_MAX {
        // SAFETY: plain integers.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, cap, 0, 0, 0) } != 0 {
            break;
        }
    }
    nix::unistd::setgroups(&[]).map_err(fail)?;
    let gid = Gid::from_raw(uid);
    nix::unistd::setresgid(gid, gid, gid).map_err(fail)?;
    let uid = Uid::from_raw(uid);
    nix::unistd::setresuid(uid, uid, uid).map_err(fail)?;
    nix::sys::prctl::set_no_new_privs().map_err(fail)?;
    assert!(!nix::unistd::geteuid().is_root(), "root must be gone before the guest runs");
    assert!(nix::unistd::setuid(Uid::from_raw(0)).is_err(), "there must be no way back to root");
    Ok(())
}

/// A second wall behind the mount namespace: nothing is written outside of `/tmp`, no TCP, no
/// abstract sockets or signals to anybody outside. On kernels without Landlock the first wall
/// stands alone.
fn landlock() -> Result<(), JailError> {
    let abi = ABI::V4;
    let build = || -> Result<(), landlock::RulesetError> {
        let read = AccessFs::from_read(abi);
        let devices = AccessFs::ReadFile | AccessFs::WriteFile;
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(abi))?
            .handle_access(AccessNet::from_all(abi))?
            .scope(Scope::AbstractUnixSocket | Scope::Signal)?
            .create()?;
        let rules = [("/", read), ("/dev", read | devices), ("/tmp", AccessFs::from_all(abi))];
        for (path, access) in rules {
            if let Ok(fd) = PathFd::new(path) {
                ruleset = ruleset.add_rule(PathBeneath::new(fd, access))?;
            }
        }
        ruleset.restrict_self()?;
        Ok(())
    };
    build().map_err(|error| JailError::new("landlock", error))
}
