//! Test helper: the launcher of machines as a program of its own, and a stand-in for QEMU that
//! tries what a guest that broke out would try. Not installed anywhere.
//!
//! `vm-jail hostile DISK SOCKET ABSTRACT PID` prints one line for each attempt: its name, a tab,
//! and `denied` with the reason or `DONE`. With `control` for `hostile` it makes only the attempts
//! that do no harm where they succeed, to prove that they would.
#![allow(unsafe_code, reason = "the attempts are raw system calls on purpose")]

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

/// Number of the capability that is nearly root.
const CAP_SYS_ADMIN: i32 = 21;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("hostile") => attempt_all(&args[2..], false),
        Some("control") => attempt_all(&args[2..], true),
        _ => return vm::engine::qemu::jail::jail_main(),
    }
    ExitCode::SUCCESS
}

type Attempt<'a> = (&'a str, bool, Box<dyn Fn() -> io::Result<()> + 'a>);

fn attempt_all(args: &[String], harmless_only: bool) {
    let [disk, socket, name, pid] = args else { panic!("four arguments") };
    let pid: i64 = pid.parse().expect("a process id");
    let mut attempts = files(disk);
    attempts.extend(neighbours(socket, name, pid));
    attempts.extend(kernel());
    attempts.extend(identity());
    attempts.extend(resources());
    for (what, harmless, attempt) in attempts {
        if harmless_only && !harmless {
            continue;
        }
        match attempt() {
            Ok(()) => println!("{what}\tDONE"),
            Err(error) => println!("{what}\tdenied: {error}"),
        }
    }
    println!("the end\tdenied: nothing was left to try");
}

/// A raw system call.
fn call(number: i64, args: [i64; 5]) -> io::Result<()> {
    let [a, b, c, d, e] = args;
    // SAFETY: every pointer that is passed in here is null or to memory that outlives the call.
    if unsafe { libc::syscall(number, a, b, c, d, e) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn harmless<'a>(what: &'a str, attempt: impl Fn() -> io::Result<()> + 'a) -> Attempt<'a> {
    (what, true, Box::new(attempt))
}

fn harm<'a>(what: &'a str, attempt: impl Fn() -> io::Result<()> + 'a) -> Attempt<'a> {
    (what, false, Box::new(attempt))
}

fn raw(what: &'static str, number: i64, args: [i64; 5]) -> Attempt<'static> {
    (what, false, Box::new(move || call(number, args)))
}

fn write_file(path: &str) -> io::Result<()> {
    fs::write(path, "x").inspect(|()| {
        let _ = fs::remove_file(path);
    })
}

fn files(disk: &str) -> Vec<Attempt<'_>> {
    let open_both = |path: &str| fs::File::options().read(true).write(true).open(path).map(drop);
    vec![
        harmless("read another VM's disk", move || fs::read(disk).map(drop)),
        harmless("write another VM's disk", move || open_both(disk)),
        harmless("read /etc/shadow", || fs::read("/etc/shadow").map(drop)),
        harmless("read /etc/passwd", || fs::read("/etc/passwd").map(drop)),
        harmless("read a way out by ..", || fs::read("/tmp/../../../etc/passwd").map(drop)),
        harmless("list host processes", || fs::read_dir("/proc/1/task").map(drop)),
        harmless("read own memory map", || fs::read("/proc/self/maps").map(drop)),
        harmless("list root's home", || fs::read_dir("/root").map(drop)),
        harmless("list control groups", || fs::read_dir("/sys/fs/cgroup").map(drop)),
        harmless("run a shell", || fs::metadata("/bin/sh").map(drop)),
        harmless("open the kernel log", || fs::File::open("/dev/kmsg").map(drop)),
        harmless("open /dev/net/tun", move || open_both("/dev/net/tun")),
        harmless("open /dev/kvm", move || open_both("/dev/kvm")),
        harm("open /dev/mem", move || open_both("/dev/mem")),
        harmless("write to /usr/lib", || write_file("/usr/lib/muster-test")),
        harmless("write to /etc", || write_file("/etc/muster-test")),
        harmless("write to /", || write_file("/muster-test")),
        harm("overwrite its own program", || {
            fs::OpenOptions::new()
                .append(true)
                .open(std::env::args().next().unwrap_or_default())
                .map(drop)
        }),
        harm("write to a character device", || {
            fs::OpenOptions::new().append(true).open("/dev/console").map(drop)
        }),
        harm("make a block device", || {
            let path = c"/tmp/sda";
            let (mode, device) = (i64::from(libc::S_IFBLK | 0o600), 0xfe00);
            call(libc::SYS_mknod, [path.as_ptr() as i64, mode, device, 0, 0])
        }),
        harm("run a file from /tmp", || {
            fs::write("/tmp/run", "#!/bin/true\n")?;
            let path = c"/tmp/run";
            call(libc::SYS_chmod, [path.as_ptr() as i64, 0o755, 0, 0, 0])?;
            let args = [path.as_ptr(), std::ptr::null()];
            call(libc::SYS_execve, [path.as_ptr() as i64, args.as_ptr() as i64, 0, 0, 0])
        }),
        harm("keep a descriptor it was not given", || {
            let open = |fd: &i32| call(libc::SYS_fcntl, [i64::from(*fd), 1, 0, 0, 0]).is_ok();
            match (3..1024).find(open) {
                Some(_) => Ok(()),
                None => Err(io::Error::other("there is none")),
            }
        }),
    ]
}

fn neighbours<'a>(socket: &'a str, name: &'a str, pid: i64) -> Vec<Attempt<'a>> {
    let inet = |domain: i32, kind: i32| {
        move || call(libc::SYS_socket, [i64::from(domain), i64::from(kind), 0, 0, 0])
    };
    vec![
        harmless("connect to our API socket", move || UnixStream::connect(socket).map(drop)),
        harmless("connect to an abstract socket", move || {
            let address = SocketAddr::from_abstract_name(name)?;
            UnixStream::connect_addr(&address).map(drop)
        }),
        harmless("open a TCP socket", inet(libc::AF_INET, libc::SOCK_STREAM)),
        harmless("open a UDP socket", inet(libc::AF_INET6, libc::SOCK_DGRAM)),
        harmless("open a raw socket", inet(libc::AF_INET, libc::SOCK_RAW)),
        harmless("open a packet socket", inet(libc::AF_PACKET, libc::SOCK_RAW)),
        harmless("open a netlink socket", inet(libc::AF_NETLINK, libc::SOCK_RAW)),
        harmless("open a vsock socket", inet(libc::AF_VSOCK, libc::SOCK_STREAM)),
        harmless("signal another process", move || call(libc::SYS_kill, [pid, 0, 0, 0, 0])),
        harm("kill another process", move || call(libc::SYS_kill, [pid, 9, 0, 0, 0])),
        harm("trace another process", move || {
            call(libc::SYS_ptrace, [i64::from(libc::PTRACE_ATTACH), pid, 0, 0, 0])
        }),
        harm("be traced", || call(libc::SYS_ptrace, [0; 5])),
        harm("read another process's memory", move || {
            call(libc::SYS_process_vm_readv, [pid, 0, 0, 0, 0])
        }),
        harmless("hold another process", move || call(libc::SYS_pidfd_open, [pid, 0, 0, 0, 0])),
        harmless("hold itself", || {
            call(libc::SYS_pidfd_open, [i64::from(std::process::id()), 0, 0, 0, 0])
        }),
    ]
}

fn kernel() -> Vec<Attempt<'static>> {
    let root = c"/".as_ptr() as i64;
    let tmp = c"/tmp".as_ptr() as i64;
    let tmpfs = c"tmpfs".as_ptr() as i64;
    vec![
        raw("mount", libc::SYS_mount, [tmpfs, tmp, tmpfs, 0, 0]),
        raw("unmount", libc::SYS_umount2, [tmp, 2, 0, 0, 0]),
        raw("pivot_root", libc::SYS_pivot_root, [tmp, tmp, 0, 0, 0]),
        raw("chroot", libc::SYS_chroot, [tmp, 0, 0, 0, 0]),
        raw("clone a mount", libc::SYS_open_tree, [-100, root, 1, 0, 0]),
        raw("make a file system", libc::SYS_fsopen, [tmpfs, 0, 0, 0, 0]),
        raw("new user namespace", libc::SYS_unshare, [i64::from(libc::CLONE_NEWUSER), 0, 0, 0, 0]),
        raw("new mount namespace", libc::SYS_unshare, [i64::from(libc::CLONE_NEWNS), 0, 0, 0, 0]),
        raw(
            "child in a user namespace",
            libc::SYS_clone,
            [i64::from(libc::CLONE_NEWUSER | libc::SIGCHLD), 0, 0, 0, 0],
        ),
        raw("clone3", libc::SYS_clone3, [0; 5]),
        raw("enter a namespace", libc::SYS_setns, [0; 5]),
        raw("load a module", libc::SYS_init_module, [0; 5]),
        raw("load a module file", libc::SYS_finit_module, [0; 5]),
        raw("load a kernel", libc::SYS_kexec_load, [0; 5]),
        // The command that only switches Ctrl-Alt-Del off.
        raw("reboot", libc::SYS_reboot, [0xfee1_dead, 672_274_793, 0, 0, 0]),
        raw("set the host name", libc::SYS_sethostname, [root, 1, 0, 0, 0]),
        raw("set the clock", libc::SYS_clock_settime, [0; 5]),
        raw("adjust the clock", libc::SYS_adjtimex, [0; 5]),
        raw("swap on", libc::SYS_swapon, [root, 0, 0, 0, 0]),
        raw("bpf", libc::SYS_bpf, [0; 5]),
        raw("perf_event_open", libc::SYS_perf_event_open, [0, 0, -1, -1, 0]),
        raw("add a key", libc::SYS_add_key, [0; 5]),
        raw("read keys", libc::SYS_keyctl, [0, -3, 0, 0, 0]),
        raw("io_uring", libc::SYS_io_uring_setup, [1, 0, 0, 0, 0]),
        raw("userfaultfd", libc::SYS_userfaultfd, [1, 0, 0, 0, 0]),
        raw("watch all files", libc::SYS_fanotify_init, [0; 5]),
        raw("open a file by handle", libc::SYS_open_by_handle_at, [-100, 0, 0, 0, 0]),
        raw("name a file by handle", libc::SYS_name_to_handle_at, [-100, root, 0, 0, 0]),
        raw("read the kernel log", libc::SYS_syslog, [3, 0, 0, 0, 0]),
        raw("use I/O ports", libc::SYS_iopl, [3, 0, 0, 0, 0]),
        raw("change its personality", libc::SYS_personality, [0x0040_0000, 0, 0, 0, 0]),
        raw("type into a terminal", libc::SYS_ioctl, [0, 0x5412, root, 0, 0]),
    ]
}

fn identity() -> Vec<Attempt<'static>> {
    vec![
        raw("become root", libc::SYS_setuid, [0; 5]),
        raw("become root again", libc::SYS_setresuid, [0; 5]),
        raw("become root's group", libc::SYS_setgid, [0; 5]),
        raw("join groups", libc::SYS_setgroups, [0; 5]),
        raw("take capabilities", libc::SYS_capset, [0; 5]),
        harm("be root or have capabilities", || {
            // SAFETY: plain getters.
            let (uid, bound) =
                unsafe { (libc::geteuid(), libc::prctl(libc::PR_CAPBSET_READ, CAP_SYS_ADMIN)) };
            match uid == 0 || bound != 0 {
                true => Ok(()),
                false => Err(io::Error::other(format!("it is user {uid} without any"))),
            }
        }),
    ]
}

fn resources() -> Vec<Attempt<'static>> {
    vec![
        harm("fork without end", fork_without_end),
        harm("open files without end", || {
            let mut open = Vec::new();
            while open.len() < 20_000 {
                open.push(fs::File::open("/dev/null")?);
            }
            Ok(())
        }),
        harm("fill the host's memory by /tmp", || {
            let done = fs::write("/tmp/big", vec![1; 64 << 20]);
            let _ = fs::remove_file("/tmp/big");
            done
        }),
        harm("raise its own limits", || {
            let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
            // SAFETY: a live structure.
            match unsafe { libc::setrlimit(libc::RLIMIT_NPROC, &raw const limit) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        }),
        harm("run before all others", || {
            let priority = 50_i32;
            let fifo = i64::from(libc::SCHED_FIFO);
            call(libc::SYS_sched_setscheduler, [0, fifo, (&raw const priority) as i64, 0, 0])
        }),
        harm("lock memory", || {
            let memory = vec![1_u8; 1 << 20];
            call(libc::SYS_mlock, [memory.as_ptr() as i64, 1 << 20, 0, 0, 0])
        }),
        harm("move to another control group", || fs::write("/sys/fs/cgroup/cgroup.procs", "0")),
        harm("leave its root by a descriptor of it", || {
            let root = fs::File::open("/")?;
            let up = c"../..";
            call(libc::SYS_openat, [i64::from(root.as_raw_fd()), up.as_ptr() as i64, 0, 0, 0])?;
            // ".." of the root is the root: only something of the host would be an escape.
            if Path::new("/../../root").exists() {
                Ok(())
            } else {
                Err(io::Error::other("same root"))
            }
        }),
    ]
}

fn fork_without_end() -> io::Result<()> {
    let mut children = Vec::new();
    let result = loop {
        // SAFETY: one thread; the child only waits.
        match unsafe { libc::fork() } {
            0 => loop {
                // SAFETY: waits for a signal.
                unsafe { libc::pause() };
            },
            child if child > 0 => children.push(child),
            _ => break Err(io::Error::last_os_error()),
        }
        if children.len() > 2000 {
            break Ok(());
        }
    };
    for child in children {
        // SAFETY: our own children.
        unsafe {
            libc::kill(child, 9);
            libc::waitpid(child, std::ptr::null_mut(), 0);
        }
    }
    result
}
