//! A lab of the built binary, driven as a person would drive it: for the demo and for benches.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::anyhow;
use anyhow::bail;
use anyhow::ensure;
use serde_json::Value;

use crate::guest;
use crate::run::quiet;
use crate::run::show;
use crate::stop;

/// How long anything in a lab may take, on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How often a daemon is asked: each question is a process.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// Addresses that a lab gets that a browser of this machine reaches: the first ones that are free.
const NETS: [&str; 4] = ["10.90.0.0/16", "10.91.0.0/16", "10.92.0.0/16", "10.93.0.0/16"];

/// Who reaches the nodes of a lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// The lab alone.
    Inside,
    /// This machine, too, over a cable.
    Host,
}

/// A cluster in a lab, with a shared volume, the tiny guest's image and a fence device. Dropping it
/// takes it down.
pub(crate) struct Lab {
    binary: PathBuf,
    dir: PathBuf,
    nodes: Vec<String>,
    /// Whether it was taken down, so that nobody does it again.
    is_down: bool,
}

impl Lab {
    /// Brings a lab of that many nodes up, which nothing outside of it reaches.
    pub(crate) fn up(binary: &Path, name: &str, nodes: usize) -> Result<Self> {
        Self::up_for(binary, name, nodes, Reach::Inside)
    }

    /// Brings a lab of that many nodes up. Its directory is a short one: paths of sockets must be.
    pub(crate) fn up_for(binary: &Path, name: &str, nodes: usize, reach: Reach) -> Result<Self> {
        let image = guest::ensure(guest::Which::Tiny, false)?;
        let names = (1..=nodes).map(|n| format!("n{n}")).collect();
        let (binary, dir) = (binary.to_owned(), Self::dir_of(name));
        let lab = Self { binary, dir, nodes: names, is_down: false };
        // Of an earlier one that was killed.
        let _ = quiet(lab.command(&["down"]));
        lab.switch_on(reach)?;
        lab.muster("n1", &["volume", "create", "shared", "--share", "/muster/share"])?;
        let image = image.display().to_string();
        let import = ["image", "import", "tiny", &image, "--format", "raw", "--volume", "shared"];
        lab.muster("n1", &import)?;
        let pairs: Vec<String> = lab.nodes.iter().map(|node| format!("{node}={node}")).collect();
        let mut add = vec!["fence", "device", "add", "bmc", "--agent", "fence_muster_lab"];
        for pair in &pairs {
            add.extend(["--node", pair]);
        }
        lab.muster("n1", &add)?;
        Ok(lab)
    }

    fn switch_on(&self, reach: Reach) -> Result<()> {
        let count = self.nodes.len().to_string();
        let up = ["up", "--nodes", &count];
        if reach == Reach::Inside {
            return self.lab(&up).map(drop);
        }
        let mut tried = Err(anyhow!("no addresses"));
        for net in NETS {
            stop::check()?;
            tried = self.lab(&[up.as_slice(), &["--host-link", "--net", net]].concat()).map(drop);
            let taken = |error: &anyhow::Error| format!("{error:#}").contains("has a way into");
            if !tried.as_ref().is_err_and(taken) {
                break;
            }
            // What was made before it was seen that the addresses are in use.
            self.lab(&["down"])?;
        }
        tried
    }

    fn dir_of(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("muster-{name}-lab"))
    }

    /// Takes down what is left of a lab whose program was killed; fine if nothing is.
    pub(crate) fn clear(binary: &Path, name: &str) -> Result<()> {
        let dir = Self::dir_of(name);
        if dir.exists() {
            let (binary, nodes) = (binary.to_owned(), Vec::new());
            Self { binary, dir, nodes, is_down: false }.down()?;
        }
        Ok(())
    }

    /// Takes it down; an error says that it is still there.
    pub(crate) fn down(mut self) -> Result<()> {
        self.is_down = true;
        self.lab(&["down"]).map(drop)
    }

    pub(crate) fn binary(&self) -> &Path {
        &self.binary
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn nodes(&self) -> &[String] {
        &self.nodes
    }

    /// The API's socket of a node.
    pub(crate) fn socket(&self, node: &str) -> PathBuf {
        self.dir.join("nodes").join(node).join("run/muster/api.sock")
    }

    /// The directory that all nodes see.
    pub(crate) fn share(&self) -> PathBuf {
        self.dir.join("share")
    }

    /// The file that holds the network of the world, where the nodes' switches are.
    pub(crate) fn world(&self) -> PathBuf {
        self.dir.join("ns/world.net")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(["lab", "--dir"]).arg(&self.dir).args(args).env_remove("MUSTER_LAB");
        command
    }

    /// `muster lab ...`.
    pub(crate) fn lab(&self, args: &[&str]) -> Result<String> {
        quiet(self.command(args)).with_context(|| format!("muster lab {}", args.join(" ")))
    }

    /// `muster ...`, asked of a node.
    pub(crate) fn muster(&self, node: &str, args: &[&str]) -> Result<Value> {
        let mut command = Command::new(&self.binary);
        command.arg("--socket").arg(self.socket(node)).arg("--json").args(args);
        let said =
            quiet(command).with_context(|| format!("on {node}: muster {}", args.join(" ")))?;
        // Some verbs have nothing to say.
        if said.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&said)
            .with_context(|| format!("muster {} said no JSON", args.join(" ")))
    }

    /// `muster ...`, typed at a node: the command and what it says are shown.
    pub(crate) fn typed(&self, node: &str, args: &[&str]) -> Result<()> {
        println!("  {node}$ muster {}", args.join(" "));
        let mut command = Command::new(&self.binary);
        command.arg("--socket").arg(self.socket(node)).args(args);
        let shown = show(command);
        // Ctrl-C is for the command, too; that it was interrupted is not its failure.
        stop::check()?;
        shown
    }

    /// Makes a machine on a node, starts it and waits for its guest. Returns how long that took.
    pub(crate) fn boot(&self, node: &str, vm: &str) -> Result<Duration> {
        let create =
            ["vm", "create", vm, "--image", "tiny", "--memory", "128M", "--volume", "shared"];
        self.muster(node, &create)?;
        let began = Instant::now();
        self.muster(node, &["vm", "start", vm])?;
        self.answers(node, vm, |_| true)?;
        Ok(began.elapsed())
    }

    /// Waits until a machine's guest answers on a wanted node; asked of `by`. Returns which node.
    pub(crate) fn answers(
        &self,
        by: &str,
        vm: &str,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let until = Instant::now() + LIMIT;
        loop {
            stop::check()?;
            if let Ok(view) = self.muster(by, &["vm", "show", vm])
                && view["guest"]["heartbeat"] == "ok"
                && let Some(node) = view["node"].as_str().filter(|node| wanted(node))
            {
                return Ok(node.to_owned());
            }
            ensure!(Instant::now() < until, "{vm} does not answer");
            std::thread::sleep(ASK_EVERY);
        }
    }

    /// Waits until a node that was lost takes part again and all is well.
    pub(crate) fn whole(&self, by: &str, node: &str) -> Result<()> {
        let until = Instant::now() + LIMIT;
        loop {
            stop::check()?;
            let fencing = self.muster(by, &["node", "fencing", node]);
            let status = self.muster(by, &["cluster", "status"]);
            if fencing.is_ok_and(|it| it["fenced"].is_null() && it["wish"].is_null())
                && status.is_ok_and(|it| it["health"] == "healthy")
            {
                return Ok(());
            }
            ensure!(Instant::now() < until, "{node} does not take part again");
            std::thread::sleep(ASK_EVERY);
        }
    }

    /// Waits until so many voters decide, and all is well.
    pub(crate) fn votes(&self, by: &str, voters: u64) -> Result<()> {
        let until = Instant::now() + LIMIT;
        loop {
            stop::check()?;
            let status = self.muster(by, &["cluster", "status"]);
            if status.is_ok_and(|it| it["health"] == "healthy" && it["voters"] == voters) {
                return Ok(());
            }
            ensure!(Instant::now() < until, "{voters} voters do not come together");
            std::thread::sleep(ASK_EVERY);
        }
    }

    /// Waits until a machine has a process that it did not have before; from the process table.
    pub(crate) fn another_process(&self, vm: &str, before: &[u32]) -> Result<u32> {
        let until = Instant::now() + LIMIT;
        loop {
            stop::check()?;
            if let Some(pid) = processes(vm)?.into_iter().find(|pid| !before.contains(pid)) {
                return Ok(pid);
            }
            if Instant::now() > until {
                bail!("{vm} gets no process");
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// The node that leads, as `by` sees it.
    pub(crate) fn leader(&self, by: &str) -> Result<Option<String>> {
        let view = self.muster(by, &["cluster", "status"])?;
        let nodes = view["nodes"].as_array().context("the status has no nodes")?;
        let leader = nodes.iter().find(|node| node["id"] == view["leader"]);
        Ok(leader.and_then(|node| node["name"].as_str()).map(str::to_owned))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.is_down {
            return;
        }
        if let Err(error) = self.lab(&["down"]) {
            eprintln!("the lab in {} is still up: {error:#}", self.dir.display());
        }
    }
}

/// QEMU processes of a machine, on whichever node.
pub(crate) fn processes(vm: &str) -> Result<Vec<u32>> {
    let mark = format!("guest={vm},");
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // It may have ended since.
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        if line.contains("qemu-system") && line.contains(&mark) {
            found.push(pid);
        }
    }
    Ok(found)
}
