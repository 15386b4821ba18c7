//! A lab of a test, driven by the program as a person would, and what it may leave on a machine.

use std::collections::BTreeSet;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::net::IpAddr;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::sync::Once;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;

use api::client::Client;
use api::client::Target;
use api::endpoint::VmSerial;
use rustix::thread::LinkNameSpaceType;
use rustix::thread::move_into_link_name_space;
use serde_json::Value;

use crate::OWN;
use crate::Ran;
use crate::Serial;
use crate::eventually;
use crate::muster_bin;

/// Beginning of the directories of labs of tests; the process id of the test follows.
const DIR: &str = "/tmp/muster-e2elab-";

/// How long a datagram that should come is waited for, and one that should not.
const DATAGRAM: Duration = Duration::from_millis(500);

/// A lab; dropping it ends it.
#[derive(Debug)]
pub struct TestLab {
    dir: PathBuf,
    /// Network namespace that plays the machine's own.
    machine: Option<PathBuf>,
}

impl TestLab {
    /// A directory for a lab; nothing is in it.
    pub fn new() -> Self {
        static SWEEP: Once = Once::new();
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        SWEEP.call_once(sweep);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self { dir: format!("{DIR}{}-{number}", std::process::id()).into(), machine: None }
    }

    /// As [`TestLab::new`], with a network namespace in the place of the machine's own.
    pub fn on(machine: PathBuf) -> Self {
        let mut this = Self::new();
        this.machine = Some(machine);
        this
    }

    /// A lab that is up.
    ///
    /// # Panics
    /// If it does not come up.
    pub async fn up(args: &[&str]) -> Self {
        let this = Self::new();
        this.run(&[&["up"], args].concat()).await.ok();
        this
    }

    /// As [`TestLab::up`], with further lines for the configuration of each daemon.
    ///
    /// # Panics
    /// If it does not come up.
    pub async fn up_with(args: &[&str], config: &str) -> Self {
        let this = Self::new();
        let file = this.dir.with_extension("toml");
        fs::write(&file, config).expect("a file can be written");
        let path = file.to_str().expect("it was made from text");
        let ran = this.run(&[&["up", "--config", path], args].concat()).await;
        fs::remove_file(&file).expect("it is ours");
        ran.ok();
        this
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `muster lab` for it, ready for a verb.
    pub fn command(&self) -> Command {
        let mut command = match &self.machine {
            Some(net) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", net.display())).arg("--").arg(muster_bin());
                command
            }
            None => Command::new(muster_bin()),
        };
        command.args(["lab", "--dir"]).arg(&self.dir).stdin(Stdio::null());
        command.env_remove("MUSTER_LAB");
        command
    }

    /// Runs a verb to its end.
    ///
    /// # Panics
    /// If the program cannot be started.
    pub async fn run(&self, args: &[&str]) -> Ran {
        let mut command = self.command();
        command.args(args);
        run(command).await
    }

    /// Runs `muster` for a node's daemon.
    ///
    /// # Panics
    /// If the program cannot be started.
    pub async fn muster(&self, node: &str, args: &[&str]) -> Ran {
        let mut command = Command::new(muster_bin());
        command.arg("--socket").arg(self.dir.join("nodes").join(node).join("run/muster/api.sock"));
        command.args(args).stdin(Stdio::null());
        run(command).await
    }

    /// Opens a machine's serial console at a node.
    ///
    /// # Panics
    /// If it cannot be opened.
    pub async fn serial(&self, node: &str, vm: &str) -> Serial {
        let path = self.dir.join("nodes").join(node).join("run/muster/api.sock");
        let client = Client::new(Target::Unix { path });
        let socket = eventually("the console opens", OWN, async || {
            client.socket::<VmSerial>(&[vm]).await.ok()
        })
        .await;
        // A lab leaves no files behind; what the guest said last is in each failure's words.
        let log = OpenOptions::new().write(true).open("/dev/null");
        Serial::new(socket, log.expect("there is always room for nothing"))
    }

    /// The network namespace in which all switches of the lab are.
    pub fn world(&self) -> PathBuf {
        self.dir.join("ns/world.net")
    }

    /// What `status` says.
    ///
    /// # Panics
    /// If there is no lab.
    pub async fn status(&self) -> Value {
        self.run(&["status", "--json"]).await.ok().json()
    }

    /// What `status` says of a node.
    ///
    /// # Panics
    /// If there is no such node.
    pub async fn node(&self, name: &str) -> Value {
        let status = self.status().await;
        let nodes = status["nodes"].as_array().expect("a list");
        nodes.iter().find(|node| node["name"] == name).expect("the node").clone()
    }

    /// Whether a datagram from one node arrives at an address in another; with sockets of the
    /// test's own, to check what the lab says of itself.
    ///
    /// # Panics
    /// If sockets cannot be made.
    pub async fn arrives(&self, from: &str, to: &str, wire: &str) -> bool {
        let (from, to) = (self.node(from).await, self.node(to).await);
        let receiver = socket(&from_json(&to, wire));
        let sender = socket(&from_json(&from, wire));
        let target = receiver.local_addr().expect("it is bound");
        tokio::task::spawn_blocking(move || {
            receiver.set_read_timeout(Some(DATAGRAM)).expect("a duration");
            // An unreachable neighbour is an answer, too.
            let _ = sender.send_to(b"e2e", target);
            receiver.recv(&mut [0; 8]).is_ok()
        })
        .await
        .expect("it does not panic")
    }

    /// All that is on the machine because of this lab; empty once it is gone. `before` are the
    /// namespaces that it had.
    pub fn remains(&self, before: &BTreeSet<u64>) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let dir = self.dir.display().to_string();
        if self.dir.exists() {
            found.insert(format!("directory {dir}"));
        }
        for line in fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines() {
            if line.contains(&dir) {
                found.insert(format!("mount {line}"));
            }
        }
        for group in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
            let group = Path::new(group).join(format!("muster-lab-{}", self.tag()));
            if group.exists() {
                found.insert(format!("control group {}", group.display()));
            }
        }
        let device = Path::new("/sys/class/net").join(format!("mlab-{}", self.tag()));
        if device.exists() {
            found.insert(format!("device {}", device.display()));
        }
        processes(&dir, before, &mut found);
        found
    }

    /// Numbers of the network namespaces that it holds now.
    pub fn namespaces(&self) -> BTreeSet<u64> {
        let entries = fs::read_dir(self.dir.join("ns")).into_iter().flatten().flatten();
        entries.filter_map(|entry| fs::metadata(entry.path()).ok()).map(|data| data.ino()).collect()
    }

    /// The lab's tag, which follows from its directory; read from its groups while it is up, so
    /// that the test needs not know how.
    fn tag(&self) -> String {
        let mut command = Command::new("sh");
        let text = format!("printf %s {} | sha256sum | cut -c1-6", self.dir.display());
        let output = command.args(["-c", &text]).output().expect("there is a shell");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Default for TestLab {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for TestLab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let said = self.command().arg("status").output().map(|it| it.stdout);
            eprintln!("==== lab\n{}", String::from_utf8_lossy(&said.unwrap_or_default()));
            for node in fs::read_dir(self.dir.join("nodes")).into_iter().flatten().flatten() {
                let log = fs::read(node.path().join("daemon.log")).unwrap_or_default();
                let log = String::from_utf8_lossy(&log);
                let lines: Vec<_> = log.lines().rev().take(12).collect();
                eprintln!("==== {}, last line first\n{}", node.path().display(), lines.join("\n"));
            }
        }
        let _ = self.command().args(["down", "--force"]).output();
    }
}

async fn run(mut command: Command) -> Ran {
    let ran = tokio::task::spawn_blocking(move || command.output()).await;
    Ran::new(&ran.expect("it does not panic").expect("it can be started"))
}

/// Namespace and address of a node on a network.
fn from_json(node: &Value, wire: &str) -> (PathBuf, IpAddr) {
    let path = node["network_namespace"].as_str().expect("a path");
    let address = node["addresses"][wire].as_str().expect("an address");
    (path.into(), address.parse().expect("an address"))
}

fn socket(place: &(PathBuf, IpAddr)) -> UdpSocket {
    let (path, address) = place.clone();
    let made = std::thread::spawn(move || {
        let namespace = File::open(path).expect("the namespace is there");
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("root may enter a namespace");
        UdpSocket::bind((address, 0)).expect("the address is there")
    });
    made.join().expect("it does not panic")
}

/// Processes that know the lab's directory, or are in one of its namespaces or hold it mounted.
fn processes(dir: &str, namespaces: &BTreeSet<u64>, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.parse::<u32>().is_err() || name == std::process::id().to_string() {
            continue;
        }
        let path = entry.path();
        let command = fs::read(path.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        // A lab whose name goes on after ours is another one.
        let knows = command
            .split_whitespace()
            .any(|word| word == dir || word.starts_with(&format!("{dir}/")));
        let inside =
            fs::metadata(path.join("ns/net")).is_ok_and(|it| namespaces.contains(&it.ino()));
        let mounts = fs::read_to_string(path.join("mountinfo")).unwrap_or_default();
        let holds = namespaces.iter().any(|one| mounts.contains(&format!("net:[{one}]")));
        if knows || inside || holds {
            found.insert(format!("process {name} {command}"));
        }
    }
}

/// Ends what killed test runs have left.
fn sweep() {
    for entry in fs::read_dir("/tmp").into_iter().flatten().flatten() {
        let dir = entry.path();
        let Some(id) = dir.to_str().and_then(|it| it.strip_prefix(DIR)) else { continue };
        let owner = id.split('-').next().unwrap_or_default();
        if !owner.is_empty() && !Path::new("/proc").join(owner).exists() {
            drop(TestLab { dir, machine: None });
        }
    }
}
