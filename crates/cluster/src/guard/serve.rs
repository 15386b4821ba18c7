//! The guard's loop.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::fcntl::Flock;
use nix::fcntl::FlockArg;
use nix::sys::signal::SigSet;
use nix::sys::signal::Signal;
use nix::sys::signalfd::SfdFlags;
use nix::sys::signalfd::SignalFd;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::poll;
use rustix::time::Itimerspec;
use rustix::time::TimerfdClockId;
use rustix::time::TimerfdFlags;
use rustix::time::TimerfdTimerFlags;
use rustix::time::Timespec;

use super::GuardConfig;
use super::GuardError;
use super::boot_time;
use super::group;
use super::group::Group;
use super::group::Seen;
use super::own;
use super::socket_path;
use super::store::Found;
use super::store::Store;
use super::watchdog::Watchdog;
use super::wire;
use super::wire::Ask;
use super::wire::LINE_MAX;
use super::wire::Line;
use super::wire::Reply;
use super::wire::Status;
use crate::lease::BootTime;
use crate::lease::Held;
use crate::lease::Mode;
use crate::lease::NodeLease;
use crate::lease::NotTaken;
use crate::lease::Stage;
use crate::lease::Wanted;

/// Callers at once: the daemon, the one before it, and a person who looks.
const CALLERS_MAX: usize = 8;
/// Lines of one caller between two looks at the clock.
const LINES_AT_ONCE: usize = 16;
/// How soon a group that is being killed is looked at again.
const KILL_AGAIN: Duration = Duration::from_millis(50);
/// How soon the group is looked at again while nothing may run in it: the daemon may have made it
/// anew, and the kernel may have been slow.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How often all is looked at even with nothing due.
const IDLE: Duration = Duration::from_secs(10);
/// Signs of life in one time of the watchdog.
const PETS: u32 = 4;
/// Log of refused stops and the like at most this often.
const LOG_AGAIN: Duration = Duration::from_secs(10);

pub(super) fn run(config: GuardConfig, ready: impl FnOnce()) -> Result<(), GuardError> {
    // Found now: after an update the name of the running file says "deleted".
    let program = std::env::current_exe().map_err(GuardError::io("find this program"))?;
    let mut guard = Guard::begin(config)?;
    ready();
    match guard.serve() {
        End::Stopped => {
            guard.leave();
            Ok(())
        }
        End::Again => {
            drop(guard);
            let source = Command::new(program).args(std::env::args_os().skip(1)).exec();
            Err(GuardError::Io { what: "start the program anew".to_owned(), source })
        }
    }
}

/// How a loop ended.
enum End {
    Stopped,
    Again,
}

struct Guard {
    config: GuardConfig,
    // Held for as long as this guard lives: two would not agree.
    _lock: Flock<File>,
    store: Store,
    lease: NodeLease,
    /// Nothing: it is not there, and nobody is in it.
    group: Option<Group>,
    watchdog: Option<Watchdog>,
    timer: OwnedFd,
    signals: SignalFd,
    listener: UnixListener,
    callers: Vec<Caller>,
    /// What was last set; nothing: not known.
    frozen: Option<bool>,
    stage: Option<Stage>,
    seen: Seen,
    last_pet: BootTime,
    problem: Option<String>,
    told: BootTime,
}

/// A connection of the daemon's.
struct Caller {
    stream: UnixStream,
    line: [u8; LINE_MAX],
    filled: usize,
}

/// Whether a caller may stay.
#[derive(PartialEq, Eq)]
enum Stay {
    Yes,
    No,
}

impl Guard {
    fn begin(config: GuardConfig) -> Result<Self, GuardError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&config.run_dir)
            .map_err(GuardError::io(format!("make {}", config.run_dir.display())))?;
        let lock = lock(&config.run_dir)?;
        let inside = group::holds_us(&config.group);
        if inside.map_err(GuardError::io("read the own control group"))? {
            return Err(GuardError::Inside(config.group));
        }
        let store = Store::new(&config.run_dir).map_err(GuardError::io("read the boot's id"))?;
        let held = match store.load() {
            Found::Held(held) => held,
            Found::Nothing => Held::default(),
            Found::Damaged(what) => {
                tracing::error!(
                    what,
                    "guard.state cannot be used; machines are frozen until the \
                    daemon brings a lease"
                );
                Held::default()
            }
        };
        let group = Group::open(&config.group)
            .map_err(GuardError::io(format!("open control group {}", config.group.display())))?;
        let watchdog = config.watchdog.as_ref().and_then(|(path, _)| {
            let opened = Watchdog::new(path.clone());
            opened
                .inspect_err(|error| {
                    tracing::error!(%error, path = %path.display(), "no watchdog");
                })
                .ok()
        });
        for what in own::harden() {
            tracing::warn!(what, "not allowed to this guard");
        }
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Boottime, flags)
            .map_err(|error| GuardError::io("make a timer")(error.into()))?;
        let signals = signals().map_err(|error| GuardError::io("take signals")(error.into()))?;
        let listener = listen(&config).map_err(GuardError::io("open guard.sock"))?;
        tracing::info!(group = %config.group.display(), held = ?held, "guarding");
        Ok(Self {
            config,
            _lock: lock,
            store,
            lease: NodeLease::new(held),
            group,
            watchdog,
            timer,
            signals,
            listener,
            callers: Vec::with_capacity(CALLERS_MAX),
            frozen: None,
            stage: None,
            seen: Seen::UNKNOWN,
            last_pet: BootTime::default(),
            problem: None,
            told: BootTime::default(),
        })
    }

    fn serve(&mut self) -> End {
        loop {
            let wait = self.turn();
            if let Err(error) = self.wait(wait) {
                tracing::error!(%error, "waiting failed");
                std::thread::sleep(KILL_AGAIN);
            }
            while let Ok(Some(signal)) = self.signals.read_signal() {
                if i32::try_from(signal.ssi_signo) == Ok(Signal::SIGHUP as i32) {
                    tracing::info!("starting anew");
                    return End::Again;
                }
                if self.may_stop() {
                    return End::Stopped;
                }
                let why = "machines run under a lease that only this guard ends; stop or drain \
                           them first";
                self.tell(why);
            }
            self.hear();
        }
    }

    /// Whether nobody would miss it.
    fn may_stop(&mut self) -> bool {
        // A machine may have started since the last turn; one that cannot be seen counts.
        let _ = self.look();
        let self_fencing =
            self.lease.held().grant.is_some_and(|grant| grant.lease.mode == Mode::SelfFence);
        !self_fencing || !self.seen.populated
    }

    fn leave(&mut self) {
        if let Some(watchdog) = &mut self.watchdog
            && let Err(error) = watchdog.disarm()
        {
            tracing::error!(%error, "the watchdog does not stop");
        }
        if !self.seen.populated {
            self.group.iter().for_each(Group::release);
        }
        let _ = fs::remove_file(socket_path(&self.config.run_dir));
        tracing::info!("ending");
    }

    /// Makes what is be what shall be; returns how long that may be left alone.
    fn turn(&mut self) -> Duration {
        let now = boot_time();
        let mut problem = None;
        self.look().unwrap_or_else(|error| problem = Some(format!("look at the group: {error}")));
        let before = self.lease.held().clone();
        let wanted = self.lease.wanted(now, self.seen.populated);
        if *self.lease.held() != before
            && let Err(error) = self.store.save(self.lease.held())
        {
            // The clock brings the same about again.
            problem = Some(format!("store the state: {error}"));
        }
        if self.stage != Some(wanted.stage) {
            tracing::info!(stage = ?wanted.stage, populated = self.seen.populated, "stage");
            self.stage = Some(wanted.stage);
        }
        // Set again at each look while it must stand: the group may be a new one.
        if (self.frozen != Some(wanted.frozen) || wanted.frozen && !self.seen.frozen)
            && let Some(Err(error)) = self.group.as_ref().map(|group| group.freeze(wanted.frozen))
        {
            problem = Some(format!("set cgroup.freeze: {error}"));
            self.frozen = None;
        } else {
            self.frozen = Some(wanted.frozen);
        }
        if wanted.kill
            && let Some(Err(error)) = self.group.as_ref().map(Group::kill)
        {
            problem = Some(format!("kill the group: {error}"));
        }
        if let Err(error) = self.tend_watchdog(now, &wanted) {
            problem = Some(format!("the watchdog: {error}"));
        }
        if problem.is_some() && problem != self.problem {
            self.tell(problem.as_deref().unwrap_or_default());
        }
        self.problem = problem;
        self.next(now, &wanted)
    }

    fn next(&self, now: BootTime, wanted: &Wanted) -> Duration {
        let mut wait = if wanted.kill {
            KILL_AGAIN
        } else if wanted.frozen || self.problem.is_some() || self.group.is_none() {
            LOOK_AGAIN
        } else {
            IDLE
        };
        if let Some(until) = wanted.until {
            wait = wait.min(until.since(now));
        }
        if let Some(time) = self.watchdog.as_ref().and_then(Watchdog::armed) {
            wait = wait.min(time / PETS);
        }
        wait
    }

    fn look(&mut self) -> io::Result<()> {
        if let Some(Ok(seen)) = self.group.as_ref().map(Group::seen) {
            self.seen = seen;
            return Ok(());
        }
        (self.seen, self.frozen, self.group) = (Seen::UNKNOWN, None, None);
        let group = Group::open(&self.config.group)?;
        self.seen = group.as_ref().map_or(Ok(Seen::NOBODY), Group::seen)?;
        self.group = group;
        Ok(())
    }

    fn tend_watchdog(&mut self, now: BootTime, wanted: &Wanted) -> io::Result<()> {
        let Some(watchdog) = &mut self.watchdog else { return Ok(()) };
        let Some(time) = wanted.watchdog else { return watchdog.disarm() };
        if watchdog.armed() != Some(time) {
            watchdog.arm(time)?;
            self.last_pet = BootTime::default();
        }
        if wanted.pet && now.since(self.last_pet) >= time / PETS / 2 {
            watchdog.pet()?;
            self.last_pet = now;
        }
        Ok(())
    }

    fn wait(&mut self, wait: Duration) -> io::Result<()> {
        // Zero would switch the timer off.
        let wait = wait.max(Duration::from_millis(1));
        let value = Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: wait.subsec_nanos().into(),
        };
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let setting = Itimerspec { it_interval: never, it_value: value };
        rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &setting)?;
        let mut wake: Vec<PollFd<'_>> = Vec::with_capacity(CALLERS_MAX + 3);
        wake.push(PollFd::new(&self.timer, PollFlags::IN));
        let signals = self.signals.as_fd();
        wake.push(PollFd::from_borrowed_fd(signals, PollFlags::IN));
        wake.push(PollFd::new(&self.listener, PollFlags::IN));
        for caller in &self.callers {
            wake.push(PollFd::new(&caller.stream, PollFlags::IN));
        }
        match poll(&mut wake, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes what callers say. Before the clock is looked at: a grant that is there counts.
    fn hear(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let root =
                rustix::net::sockopt::socket_peercred(&stream).is_ok_and(|peer| peer.uid.is_root());
            if !root || stream.set_nonblocking(true).is_err() {
                continue;
            }
            // The newest is the daemon that lives; the oldest may be one that hangs.
            if self.callers.len() == CALLERS_MAX {
                self.callers.remove(0);
            }
            self.callers.push(Caller { stream, line: [0; LINE_MAX], filled: 0 });
        }
        let mut callers = std::mem::take(&mut self.callers);
        callers.retain_mut(|caller| self.attend(caller) == Stay::Yes);
        self.callers = callers;
    }

    fn attend(&mut self, caller: &mut Caller) -> Stay {
        for _ in 0..LINES_AT_ONCE {
            let Caller { stream, line, filled } = caller;
            if let Some(end) = line[..*filled].iter().position(|byte| *byte == b'\n') {
                let reply = self.answer(&line[..end]);
                line.copy_within(end + 1..*filled, 0);
                *filled -= end + 1;
                if send(stream, &reply).is_err() {
                    return Stay::No;
                }
                continue;
            }
            // A line without an end.
            if *filled == LINE_MAX {
                return Stay::No;
            }
            match stream.read(&mut line[*filled..]) {
                Ok(0) => return Stay::No,
                Ok(length) => *filled += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Stay::Yes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Stay::No,
            }
        }
        Stay::Yes
    }

    fn answer(&mut self, line: &[u8]) -> Reply {
        let mut reply = self.reply();
        let ask = match serde_json::from_slice::<Line>(line) {
            Ok(Line { v, ask }) if v == wire::VERSION => ask,
            Ok(Line { v, .. }) => {
                reply.why = Some(format!("this guard speaks version {}, not {v}", wire::VERSION));
                return reply;
            }
            Err(error) => {
                reply.why = Some(format!("not understood: {error}"));
                return reply;
            }
        };
        let before = self.lease.clone();
        if let Err(error) = self.look() {
            reply.why = Some(format!("look at the group: {error}"));
            return reply;
        }
        let populated = self.seen.populated;
        match ask {
            Ask::Status => {}
            Ask::Enter { scope } if scope.len() > wire::SCOPE_MAX => {
                reply.why = Some(format!("a scope has at most {} bytes", wire::SCOPE_MAX));
            }
            Ask::Enter { scope } => {
                if !self.lease.enter(&scope, populated) {
                    reply.why = Some("machines of another cluster run here; end them".to_owned());
                }
            }
            Ask::Grant(grant) => {
                if let Err(not) = self.lease.take(boot_time(), grant, populated) {
                    if let NotTaken::EndMachinesFirst { epoch } = not {
                        reply.end_first = Some(epoch);
                    }
                    reply.why = Some(not.to_string());
                }
            }
            Ask::EndAll { epoch } => reply.ended = Some(self.lease.end_all(epoch, populated)),
        }
        if self.lease != before
            && let Err(error) = self.store.save(self.lease.held())
        {
            // What the next guard would not know, this one must not act on.
            self.lease = before;
            reply.ended = None;
            reply.why = Some(format!("it cannot be stored: {error}"));
        }
        self.turn();
        Reply { ok: reply.why.is_none(), status: self.status(), ..reply }
    }

    fn reply(&self) -> Reply {
        let status = self.status();
        Reply { v: wire::VERSION, ok: false, why: None, end_first: None, ended: None, status }
    }

    fn status(&self) -> Status {
        let held = self.lease.held();
        let grant = held.grant;
        let open = self.stage == Some(Stage::Open);
        let until = |grant: &crate::lease::Grant| match grant.lease.mode {
            Mode::Unlimited => BootTime::from_nanos(u64::MAX),
            Mode::Proof => grant.ends_at(),
            Mode::SelfFence => grant.freeze_at(),
        };
        let longest = self.config.watchdog.as_ref().map(|(_, time)| *time);
        let longest = longest.filter(|_| self.watchdog.is_some()).unwrap_or_default();
        let armed = self.watchdog.as_ref().is_some_and(|watchdog| watchdog.armed().is_some());
        Status {
            pid: std::process::id(),
            group: self.config.group.clone(),
            now: boot_time(),
            stage: self.stage.unwrap_or(Stage::Blocked),
            epoch: held.epoch,
            key: grant.map(|grant| grant.lease.key),
            mode: grant.map(|grant| grant.lease.mode),
            start_until: grant.as_ref().filter(|_| open).map(until),
            ends: grant
                .filter(|grant| grant.lease.mode != Mode::Unlimited)
                .map(|grant| grant.ends_at()),
            populated: self.seen.populated,
            frozen: self.seen.frozen,
            watchdog_ms: u64::try_from(longest.as_millis()).unwrap_or_default(),
            watchdog_armed: armed,
            problem: self.problem.clone(),
        }
    }

    /// Logs, but not more often than a person can read.
    fn tell(&mut self, what: &str) {
        let now = boot_time();
        if now.since(self.told) >= LOG_AGAIN {
            self.told = now;
            tracing::error!(what, "guard");
        }
    }
}

fn lock(run_dir: &std::path::Path) -> Result<Flock<File>, GuardError> {
    let path: PathBuf = run_dir.join("guard.lock");
    let file = File::create(&path).map_err(GuardError::io("make guard.lock"))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        nix::errno::Errno::EWOULDBLOCK => GuardError::Another(run_dir.to_owned()),
        error => GuardError::io("lock guard.lock")(error.into()),
    })
}

/// The signals are taken from the loop; before this, none may end the process half-way.
fn signals() -> nix::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

fn listen(config: &GuardConfig) -> io::Result<UnixListener> {
    let path = socket_path(&config.run_dir);
    match fs::remove_file(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // The mask makes the socket root's from its first moment; this process has one thread.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(&path);
    rustix::process::umask(before);
    let listener = listener?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// A reply fits the socket's buffer, unless its reader has not read for a long time.
fn send(stream: &mut UnixStream, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply).map_err(io::Error::other)?;
    line.push(b'\n');
    stream.write_all(&line)
}
