//! One daemon with everything around it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Once;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use api::ApiError;
use api::client::Client;
use api::client::Target;
use api::endpoint as ep;
use api::endpoint::Endpoint;
use api::endpoint::Nothing;
use api::model::EventKind;
use api::model::ImageFormat;
use api::model::ImageSource;
use api::model::OpState;
use api::types::EventQuery;
use api::types::EventView;
use api::types::ImageImportBody;
use api::types::OpListQuery;
use api::types::OpView;
use api::types::OpWaitQuery;
use api::types::VmCreateBody;
use serde_json::Value;

use crate::Netns;
use crate::OWN;
use crate::Traces;
use crate::Vm;
use crate::artifacts::guest_image;
use crate::artifacts::muster_bin;
use crate::eventually;
use crate::traces;

/// Beginning of the names of directories and namespaces of test hosts.
const DIR: &str = "/tmp/muster-e2e-";
const NETNS: &str = "m-";

/// End of the name of the namespace beside a host's.
const WORLD: &str = "-w";

/// User ids of one host's machines: its slots are counted from zero.
const UIDS: u32 = 32;

/// Longest that any operation of a test takes.
const OP_LIMIT: Duration = Duration::from_secs(300);

/// Lines of the daemon's log that are shown after a failure.
const LOG_LINES: usize = 60;

/// What is special about a host.
#[derive(Debug, Clone)]
pub struct Options {
    /// `qemu` or `fake`.
    pub engine: &'static str,
    /// Whether it has networks.
    pub networking: bool,
    /// The data directory is a small file system in memory, of so many MiB.
    pub data_mib: Option<u32>,
    /// QEMU is what [`Host::qemu_is`] says; nothing at first.
    pub own_qemu: bool,
    /// Further lines of the configuration.
    pub extra: String,
    /// It has a guard, which a cluster needs before it starts machines.
    pub guard: bool,
    /// Name of the node; one of its own if left out.
    pub name: Option<String>,
    /// A namespace that it shares with others; one of its own if left out.
    pub netns: Option<Arc<Netns>>,
    /// Its log is lines of JSON.
    pub log_json: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            engine: "qemu",
            networking: true,
            data_mib: None,
            own_qemu: false,
            extra: String::new(),
            guard: false,
            name: None,
            netns: None,
            log_json: false,
        }
    }
}

/// A daemon, its namespace and its directories. Dropping it leaves nothing of them.
pub struct Host {
    dir: PathBuf,
    uid_base: u32,
    data_is_mounted: bool,
    client: Client,
    daemon: Option<Child>,
    log_json: bool,
    guard: Option<Child>,
    /// Last, so that it goes last.
    netns: Arc<Netns>,
}

impl Host {
    /// A host with real machines.
    ///
    /// # Panics
    /// If it does not come up.
    pub async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    /// A host with machines that only pretend and without networks: for the control plane alone.
    ///
    /// # Panics
    /// If it does not come up.
    pub async fn start_fake() -> Self {
        Self::start_with(Options { engine: "fake", networking: false, ..Options::default() }).await
    }

    /// A host of another kind.
    ///
    /// # Panics
    /// If it does not come up.
    pub async fn start_with(options: Options) -> Self {
        let mut host = Self::prepare(&options);
        host.restart().await;
        host
    }

    /// A host whose daemon somebody else will start.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn prepare(options: &Options) -> Self {
        static SWEEP: Once = Once::new();
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        SWEEP.call_once(sweep);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id();
        let id = format!("{pid}-{number}");
        let uid_base = uid_base(pid, number);
        let netns = match &options.netns {
            Some(shared) => shared.clone(),
            None => Arc::new(Netns::new(format!("{NETNS}{id}"))),
        };
        let dir = PathBuf::from(format!("{DIR}{id}"));
        let mut host = Self {
            client: Client::new(Target::Unix { path: dir.join("run/api.sock") }),
            dir,
            uid_base,
            data_is_mounted: false,
            daemon: None,
            log_json: options.log_json,
            guard: None,
            netns,
        };
        host.lay_out(options, &id);
        if options.guard {
            host.start_guard();
        }
        host
    }

    fn lay_out(&mut self, options: &Options, id: &str) {
        let name = options.name.clone().unwrap_or_else(|| format!("host-{id}"));
        fs::create_dir_all(self.data_dir()).expect("/tmp can be written");
        fs::create_dir_all(self.run_dir()).expect("/tmp can be written");
        fs::write(self.dir.join("uids"), self.uid_base.to_string()).expect("/tmp can be written");
        if let Some(mib) = options.data_mib {
            let size = format!("size={mib}m,mode=0755");
            let mut mount = Command::new("mount");
            mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(self.data_dir());
            assert!(mount.status().is_ok_and(|it| it.success()), "{mount:?}");
            self.data_is_mounted = true;
        }
        let qemu = match options.own_qemu {
            true => format!("qemu = {:?}\n", self.qemu_path()),
            false => String::new(),
        };
        let config = format!(
            "data_dir = {:?}\nrun_dir = {:?}\nnode_name = \"{name}\"\nengine = \"{}\"\n\
             networking = {}\nuid_base = {}\nwatchdog = \"none\"\n{qemu}{}\n",
            self.data_dir(),
            self.run_dir(),
            options.engine,
            options.networking,
            self.uid_base,
            options.extra,
        );
        fs::write(self.config_path(), config).expect("/tmp can be written");
    }

    /// Starts the daemon and waits until it answers; nothing if it runs.
    ///
    /// # Panics
    /// If it does not answer.
    pub async fn restart(&mut self) {
        if self.daemon.is_none() {
            self.spawn();
        }
        let what = format!("the daemon answers; its log:\n{}", self.log_tail());
        eventually(&what, OWN, async || self.client.get::<ep::Version>(&[]).await.ok()).await;
    }

    /// Starts the daemon and does not wait.
    ///
    /// # Panics
    /// If the program cannot be started.
    pub fn spawn(&mut self) {
        self.daemon = Some(self.role("daemon", &self.log_path()));
    }

    /// Starts one of the program's long-lived roles.
    fn role(&self, role: &str, log: &Path) -> Child {
        let log = OpenOptions::new().create(true).append(true).open(log);
        let log = log.expect("/tmp can be written");
        let mut command = self.netns.command(&muster_bin().to_string_lossy());
        command.arg(role).arg("--config").arg(self.config_path());
        if self.log_json {
            command.env("MUSTER_LOG", "json");
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a descriptor")).stderr(log);
        command.spawn().expect("muster can be started")
    }

    /// Kills the daemon with -9.
    ///
    /// # Panics
    /// If it has ended by itself before.
    pub fn kill9(&mut self) {
        let Some(mut daemon) = self.daemon.take() else { return };
        let ended = daemon.try_wait().expect("it is our child");
        assert!(ended.is_none(), "the daemon ended by itself: {ended:?}\n{}", self.log_tail());
        daemon.kill().expect("it is our child");
        daemon.wait().expect("it is our child");
    }

    /// Starts its guard.
    ///
    /// # Panics
    /// If the program cannot be started.
    pub fn start_guard(&mut self) {
        self.guard = Some(self.role("guard", &self.dir.join("guard.log")));
    }

    /// Kills its guard with -9.
    ///
    /// # Panics
    /// If there is none.
    pub fn kill_guard(&mut self) {
        let mut guard = self.guard.take().expect("it has a guard");
        guard.kill().expect("it is our child");
        guard.wait().expect("it is our child");
    }

    /// What its guard says of itself; nothing if it does not answer.
    pub fn guard_status(&self) -> Option<Value> {
        let mut stream = UnixStream::connect(self.run_dir().join("guard.sock")).ok()?;
        stream.set_read_timeout(Some(OWN)).ok()?;
        stream.write_all(b"{\"v\":1,\"ask\":\"status\"}\n").ok()?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).ok()?;
        serde_json::from_str::<Value>(&line).ok().map(|mut reply| reply["status"].take())
    }

    /// The daemon's process id, while it runs.
    pub fn daemon_pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    /// The typed client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Another network beside this host's, joined to it by a cable: `wan0` here, `eth0` there.
    pub fn world(&self) -> Netns {
        let world = Netns::new(format!("{}{WORLD}", self.netns.name()));
        self.netns.sh(&format!("ip link add wan0 type veth peer name eth0 netns {}", world.name()));
        self.netns.sh("ip link set wan0 up");
        world.sh("ip link set eth0 up");
        world
    }

    /// The API's socket.
    pub fn socket(&self) -> PathBuf {
        self.run_dir().join("api.sock")
    }

    /// Where it keeps its data.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Where it keeps its sockets.
    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// A file of the test's own.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Puts a program in QEMU's place, or takes QEMU away.
    ///
    /// # Panics
    /// If the host has no QEMU of its own, or the file cannot be changed.
    pub fn qemu_is(&self, program: Option<&Path>) {
        let (path, new) = (self.qemu_path(), self.dir.join("qemu.new"));
        match program {
            Some(program) => {
                std::os::unix::fs::symlink(program, &new).expect("/tmp can be written");
                fs::rename(new, path).expect("/tmp can be written");
            }
            None => fs::remove_file(path).expect("there is a QEMU"),
        }
    }

    fn qemu_path(&self) -> PathBuf {
        self.dir.join("qemu")
    }

    /// The daemon's configuration.
    pub fn config_path(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("daemon.log")
    }

    /// The daemon's log, whole.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The end of the daemon's log.
    pub fn log_tail(&self) -> String {
        tail(&self.log_path(), LOG_LINES)
    }

    /// Begins an operation and waits for its end, whatever that is.
    ///
    /// # Errors
    /// The daemon does not take it.
    ///
    /// # Panics
    /// If it does not end.
    pub async fn try_op<E: Endpoint<Reply = OpView>>(
        &self,
        path: &[&str],
        body: &E::Body,
    ) -> Result<OpView, ApiError> {
        let op = self.client.send::<E>(path, body).await?;
        Ok(self.ended(&op).await)
    }

    /// Does an operation that must be done.
    ///
    /// # Panics
    /// If it is not.
    pub async fn op<E: Endpoint<Reply = OpView>>(&self, path: &[&str], body: &E::Body) -> OpView {
        let op = self.try_op::<E>(path, body).await;
        let op = op.unwrap_or_else(|error| panic!("{} {path:?}: {error:?}", E::INFO.id));
        assert!(matches!(op.state, OpState::Done { .. }), "{} is {:?}", op.title, op.state);
        op
    }

    /// Waits for the end of an operation.
    ///
    /// # Panics
    /// If it does not end, or the daemon forgets it.
    pub async fn ended(&self, op: &OpView) -> OpView {
        let id = op.id.to_string();
        eventually(&format!("{} ends", op.title), OP_LIMIT, async || {
            let query = OpWaitQuery { timeout_ms: 10_000 };
            let seen = self.client.call::<ep::OpWait>(&[&id], &query, &Nothing {}).await;
            Some(seen.expect("the operation is known")).filter(|op| !op.is_running())
        })
        .await
    }

    /// Waits until no operation is under way.
    ///
    /// # Panics
    /// If one does not end.
    pub async fn quiet(&self) {
        eventually("all operations end", OP_LIMIT, async || {
            let query = OpListQuery { all: false };
            let ops = self.client.call::<ep::OpList>(&[], &query, &Nothing {}).await.ok()?;
            ops.is_empty().then_some(())
        })
        .await;
    }

    /// Imports the tiny guest as `tiny`.
    ///
    /// # Panics
    /// If that fails.
    pub async fn import_tiny(&self) {
        let path = guest_image("tiny.img").to_string_lossy().into_owned();
        let body = ImageImportBody {
            name: "tiny".parse().expect("a name"),
            source: ImageSource::File { path },
            format: Some(ImageFormat::Raw),
            sha256: None,
            volume: None,
        };
        self.op::<ep::ImageImport>(&[], &body).await;
    }

    /// Creates a machine and leaves it off.
    ///
    /// # Panics
    /// If that fails.
    pub async fn create(&self, body: &VmCreateBody) -> Vm<'_> {
        self.op::<ep::VmCreate>(&[], body).await;
        self.vm(body.name.as_str())
    }

    /// Creates a machine, starts it and waits for its guest.
    ///
    /// # Panics
    /// If that fails.
    pub async fn boot(&self, body: &VmCreateBody) -> Vm<'_> {
        let vm = self.create(body).await;
        vm.start().await;
        vm.wait_heartbeat().await;
        vm
    }

    /// A machine that exists.
    pub fn vm(&self, name: &str) -> Vm<'_> {
        Vm::new(self, name)
    }

    /// All events that were kept.
    ///
    /// # Panics
    /// If they cannot be had.
    pub async fn events(&self) -> Vec<EventView> {
        let query = EventQuery { after: Some(0), limit: Some(1000) };
        let events = self.client.call::<ep::EventList>(&[], &query, &Nothing {}).await;
        events.expect("events can be listed")
    }

    /// How many events of a kind there are.
    ///
    /// # Panics
    /// As [`Host::events`].
    pub async fn count_events(&self, kind: EventKind) -> usize {
        self.events().await.iter().filter(|it| it.event.kind == kind).count()
    }

    /// The word in the names of its kernel objects, once there is a bridge.
    fn tag(&self) -> Option<String> {
        let links = self.netns.links();
        links.iter().find(|name| name.starts_with('n'))?.get(1..5).map(str::to_owned)
    }

    /// What is on the host because of this daemon's machines and images.
    pub fn traces(&self) -> Traces {
        let mut files = BTreeSet::new();
        for dir in [self.run_dir().join("vms"), self.data_dir().join("vms")] {
            traces::tree(&self.dir, &dir, &mut files);
        }
        traces::tree(&self.dir, &self.data_dir().join("images"), &mut files);
        let groups = self.tag().map(|tag| traces::groups(&tag)).unwrap_or_default();
        let groups = groups.iter().flat_map(|dir| traces::children(dir));
        let processes = traces::processes_of(self.uid_base, UIDS);
        Traces {
            processes: processes.into_iter().map(traces::describe).collect(),
            links: self.netns.links().into_iter().collect(),
            groups: groups.map(|path| path.display().to_string()).collect(),
            files,
        }
    }

    /// Everything that helps to see why a test failed.
    fn dump(&self) {
        let mut text = format!("\n==== {}: daemon.log\n{}", self.dir.display(), self.log_tail());
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            if path.extension().is_some_and(|it| it == "serial") {
                let _ = write!(text, "\n==== {}\n{}", path.display(), tail(&path, 20));
            }
        }
        let list = self.muster().args(["vm", "list"]).output();
        let list = list.map(|it| it.stdout).unwrap_or_default();
        let _ = write!(text, "\n==== vm list\n{}", String::from_utf8_lossy(&list));
        let _ = write!(text, "\n==== {:#?}\n", self.traces());
        eprintln!("{text}");
    }

    pub(crate) fn serial_log(&self, vm: &str) -> File {
        let path = self.dir.join(format!("{vm}.serial"));
        OpenOptions::new().create(true).append(true).open(path).expect("/tmp can be written")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.dump();
        }
        let guarded = self.guard_status().and_then(|it| Some(PathBuf::from(it["group"].as_str()?)));
        for mut role in [self.daemon.take(), self.guard.take()].into_iter().flatten() {
            let _ = role.kill();
            let _ = role.wait();
        }
        let mut groups = self.tag().map(|tag| traces::groups(&tag)).unwrap_or_default();
        groups.extend(guarded);
        end_processes(self.uid_base);
        for group in groups {
            for child in traces::children(&group) {
                let _ = fs::remove_dir(child);
            }
            let _ = fs::remove_dir(group);
        }
        if self.data_is_mounted {
            let _ = Command::new("umount").arg(self.data_dir()).output();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// User ids that no other host of this or another test process uses at this time.
fn uid_base(pid: u32, number: u32) -> u32 {
    const PIDS_MAX: u32 = 1 << 22;
    1_000_000_000 + (pid % PIDS_MAX) * (8 * UIDS) % 1_000_000_000 + (number % 8) * UIDS
}

/// Kills all machines of a host and waits until they are gone.
fn end_processes(uid_base: u32) {
    let start = Instant::now();
    while start.elapsed() < OWN {
        let processes = traces::processes_of(uid_base, UIDS);
        if processes.is_empty() {
            return;
        }
        processes.into_iter().for_each(traces::kill);
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Removes what killed test runs have left.
fn sweep() {
    let entries = fs::read_dir("/tmp").into_iter().flatten().flatten();
    for dir in entries.map(|entry| entry.path()) {
        let Some(id) = dir.to_str().and_then(|it| it.strip_prefix(DIR)) else { continue };
        let owner = id.split('-').next().unwrap_or_default();
        if owner.is_empty() || Path::new("/proc").join(owner).exists() {
            continue;
        }
        end_daemon(&dir);
        let uids = fs::read_to_string(dir.join("uids")).ok().and_then(|it| it.parse().ok());
        uids.into_iter().for_each(end_processes);
        let _ = Command::new("umount").arg(dir.join("data")).output();
        for name in [format!("{NETNS}{id}"), format!("{NETNS}{id}{WORLD}")] {
            let _ = Command::new("ip").args(["netns", "delete", &name]).output();
        }
        let _ = fs::remove_dir_all(&dir);
    }
}

/// Ends the daemon whose configuration is in a directory.
fn end_daemon(dir: &Path) {
    let config = dir.join("config.toml").display().to_string();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|it| it.parse().ok()) else { continue };
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if command.split(|byte| *byte == 0).any(|word| word == config.as_bytes()) {
            traces::kill(pid);
        }
    }
}

fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
