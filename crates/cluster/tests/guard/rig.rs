//! A guard, its group, and processes that play machines.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use cluster::guard::GuardClient;
use cluster::guard::Status;
use cluster::guard::boot_time;
use cluster::guard::wire::Ask;
use cluster::guard::wire::Reply;
use cluster::lease::BootTime;
use cluster::lease::Grant;
use cluster::lease::GrantKey;
use cluster::lease::LeaseGrant;
use cluster::lease::Mode;
use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;

/// Long, so that a busy host does things in their order: a test asks for a lease that is already
/// partly over, see [`ago`], and waits for little of it.
pub(crate) const LEASE: Duration = Duration::from_secs(45);
/// A lease of this age is frozen in 2 s, and 15 s later killed.
pub(crate) const SOON_FROZEN: Duration = Duration::from_secs(28);
/// A lease of this age is frozen, and killed in 1 s.
pub(crate) const SOON_KILLED: Duration = Duration::from_secs(44);
/// Longer than anything that is waited for takes on a busy host.
const LIMIT: Duration = Duration::from_secs(90);
/// How long something is watched that must not happen.
const WATCH: Duration = Duration::from_millis(300);

static COUNT: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Rig {
    dir: tempfile::TempDir,
    group: PathBuf,
    guard: Option<Child>,
    client: Option<GuardClient>,
    pipe: Option<fs::File>,
    heard: std::sync::Mutex<String>,
}

/// A process in a group below the guard's, that counts in a file while it runs.
pub(crate) struct Machine {
    child: std::cell::RefCell<Child>,
    group: PathBuf,
    counter: PathBuf,
}

pub(crate) fn grant(seq: u64, epoch: u64, mode: Mode, sent: BootTime) -> Grant {
    let lease_ms = u64::try_from(LEASE.as_millis()).unwrap();
    let key = GrantKey { term: 1, seq };
    Grant { lease: LeaseGrant { key, epoch, mode, lease_ms, watchdog_ms: 2_000 }, sent }
}

/// That long ago.
pub(crate) fn ago(time: Duration) -> BootTime {
    BootTime::from_nanos(boot_time().nanos() - u64::try_from(time.as_nanos()).unwrap())
}

pub(crate) fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < end, "waited too long: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Rig {
    pub(crate) fn new() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts
            .lines()
            .filter_map(|line| line.split_once(" - "))
            .find(|(_, after)| after.starts_with("cgroup2 "))
            .and_then(|(before, _)| before.split(' ').nth(4))
            .expect("a cgroup v2 mount; mount one: mount -t cgroup2 none /sys/fs/cgroup");
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("muster-test-guard-{}-{count}", std::process::id());
        Self {
            dir: tempfile::tempdir().unwrap(),
            group: Path::new(mount).join(name),
            guard: None,
            client: None,
            pipe: None,
            heard: std::sync::Mutex::default(),
        }
    }

    /// Its group is to be made in one that is not there.
    pub(crate) fn below_nothing() -> Self {
        let mut rig = Self::new();
        rig.group.push("machines");
        rig
    }

    pub(crate) fn parent(&self) -> &Path {
        self.group.parent().unwrap()
    }

    pub(crate) fn with_watchdog() -> Self {
        let mut rig = Self::new();
        let path = rig.dir.path().join("watchdog");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        let mut options = fs::File::options();
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, nix::libc::O_NONBLOCK);
        rig.pipe = Some(options.read(true).write(true).open(path).unwrap());
        rig
    }

    /// All that the pretend watchdog was told so far.
    pub(crate) fn pretend(&self) -> String {
        let mut heard = self.heard.lock().unwrap();
        let mut bytes = [0; 4096];
        if let Some(mut pipe) = self.pipe.as_ref()
            && let Ok(length) = pipe.read(&mut bytes)
        {
            heard.push_str(std::str::from_utf8(&bytes[..length]).unwrap());
        }
        heard.clone()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_test-guard"));
        command.arg(self.dir.path()).arg(&self.group).stdin(Stdio::null());
        if self.pipe.is_some() {
            command.arg(self.dir.path().join("watchdog")).arg("2");
        }
        command
    }

    pub(crate) fn start(&mut self) {
        assert!(self.guard.is_none());
        let _ = fs::remove_file(self.dir.path().join("guard.sock"));
        self.guard = Some(self.command().spawn().unwrap());
        wait_for("the guard listens", || self.dir.path().join("guard.sock").exists());
    }

    pub(crate) fn start_another(&self) -> String {
        let output = self.command().output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    }

    pub(crate) fn kill_guard(&mut self) {
        self.client = None;
        let mut guard = self.guard.take().unwrap();
        guard.kill().unwrap();
        guard.wait().unwrap();
    }

    pub(crate) fn signal_guard(&self, signal: Signal) {
        let pid = self.guard.as_ref().unwrap().id();
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
    }

    pub(crate) fn guard_runs(&mut self) -> bool {
        self.guard.as_mut().unwrap().try_wait().unwrap().is_none()
    }

    pub(crate) fn disconnect(&mut self) {
        self.client = None;
    }

    pub(crate) async fn ask(&mut self, ask: Ask) -> Reply {
        if self.client.is_none() {
            let client = GuardClient::connect(self.dir.path()).await.unwrap();
            self.client = Some(client.patient(LIMIT));
        }
        self.client.as_mut().unwrap().ask(ask).await.unwrap()
    }

    /// The status as soon as the process that starts anew answers.
    pub(crate) async fn status_after_restart(&mut self) -> Status {
        let end = Instant::now() + LIMIT;
        // The old connection ends with the old program.
        while self.client.as_mut().unwrap().ask(Ask::Status).await.is_ok() {
            assert!(Instant::now() < end, "it never started anew");
        }
        loop {
            assert!(Instant::now() < end, "it does not come back");
            if let Ok(mut client) = GuardClient::connect(self.dir.path()).await
                && let Ok(reply) = client.ask(Ask::Status).await
            {
                self.client = Some(client);
                return reply.status;
            }
        }
    }

    pub(crate) fn run_dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn group(&self) -> &Path {
        &self.group
    }

    /// Whether the kernel says that everything stands still.
    pub(crate) fn frozen(&self) -> bool {
        self.says("frozen 1")
    }

    /// Whether the kernel says that nobody is left.
    pub(crate) fn empty(&self) -> bool {
        self.says("populated 0")
    }

    fn says(&self, what: &str) -> bool {
        let events = fs::read_to_string(self.group.join("cgroup.events")).unwrap();
        events.lines().any(|line| line == what)
    }

    /// Starts a machine: it enters its group by itself, as ours do.
    pub(crate) fn machine(&self, name: &str) -> Machine {
        let group = self.group.join(format!("vm-{name}"));
        fs::create_dir_all(&group).unwrap();
        let counter = self.dir.path().join(name);
        let script = "echo $$ > \"$1/cgroup.procs\" || exit 1; n=0; \
            while :; do n=$((n + 1)); echo $n > \"$2.new\"; mv \"$2.new\" \"$2\"; sleep 0.02; done";
        let child = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(&group)
            .arg(&counter)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let machine = Machine { child: std::cell::RefCell::new(child), group, counter };
        wait_for("it is in its group", || !machine.alive() || machine.entered());
        machine
    }
}

impl Machine {
    fn entered(&self) -> bool {
        let procs = fs::read_to_string(self.group.join("cgroup.procs")).unwrap_or_default();
        procs.lines().any(|line| line == self.child.borrow().id().to_string())
    }

    pub(crate) fn alive(&self) -> bool {
        self.child.borrow_mut().try_wait().unwrap().is_none()
    }

    /// Whether it counts on while it is watched.
    pub(crate) fn works(&self) -> bool {
        let before = fs::read(&self.counter).unwrap_or_default();
        std::thread::sleep(WATCH);
        fs::read(&self.counter).unwrap_or_default() != before
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::write(self.group.join("cgroup.kill"), "1");
        let _ = self.child.borrow_mut().kill();
        let _ = self.child.borrow_mut().wait();
        // As the daemon does when a machine is gone; as long as a helper of it dies, it stays.
        let end = Instant::now() + LIMIT;
        while fs::remove_dir(&self.group).is_err() && self.group.exists() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            let _ = guard.kill();
            let _ = guard.wait();
        }
        let _ = fs::write(self.group.join("cgroup.kill"), "1");
        let _ = fs::write(self.group.join("cgroup.freeze"), "0");
        // A killed process leaves its group a moment later.
        let end = Instant::now() + LIMIT;
        while self.group.exists() && Instant::now() < end {
            if let Ok(entries) = fs::read_dir(&self.group) {
                for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
                    let _ = fs::remove_dir(entry.path());
                }
            }
            let _ = fs::remove_dir(&self.group);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
