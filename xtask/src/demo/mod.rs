//! `cargo xtask demo`: the main job on real input, on a fresh machine.
//!
//! ```text
//!   install what is missing, build, make a Debian image
//!   start a daemon of its own (target/demo)      nothing of an installed Muster is touched
//!   import the image, create and start a VM      real QEMU, real Debian, cloud-init
//!   wait for its agent, show address and facts
//!   add a disk and memory while it runs          the guest itself says that it has them
//!   kill the daemon with SIGKILL                 the guest answers all the while
//!   start the daemon again                       same process, same boot of the guest
//!
//!   a lab of two nodes, a guest under load       module `migrate`
//!   it migrates back and forth, by a drain too   a client loses no request, the guest no byte
//!
//!   labs of two nodes and of three, one cluster  module `cluster`
//!   the host under a machine loses power         its guest answers on another one
//!   the host comes back; the other one is drained
//!
//!   the last lab and the first daemon go on      module `stay`
//!   a link signs a browser in to the console     Ctrl-C takes everything down
//! ```
//!
//! Each step ends in something that was seen from outside; the steps with their figures go to
//! `target/demo/report.json`, and one that fails is the exit code. With `--unattended` nothing goes on,
//! and nothing outside of the labs reaches them.

mod cluster;
mod migrate;
mod muster;
mod stay;
mod watch;

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;
use serde::Serialize;
use serde_json::Value;

use crate::guest;
use crate::install;
use crate::lab::Lab;
use crate::lab::Reach;
use crate::run::cmd;
use crate::run::is_root;
use crate::run::quiet;
use crate::run::root;
use crate::run::show;
use crate::run::target;
use crate::stop;
use crate::web;
use muster::Muster;
use watch::Pulse;

/// Name of the labs, of which there is one at a time.
const LAB: &str = "demo";

/// The VM of the demo.
const VM: &str = "demo1";

/// How long Debian may take to boot and configure itself, under emulation on a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(420);

/// How long the guest may take to show a device that was added.
const HOTPLUG_LIMIT: Duration = Duration::from_secs(120);

/// Longest silence of the guest, seen from the host, that passes for "never stopped". An emulated
/// guest on a loaded machine takes seconds for an SSH banner by itself; a boot takes far longer. The
/// process and the generation, which must be the same, are the sharper proof.
const SILENCE_MAX: Duration = Duration::from_secs(15);

/// Options of `cargo xtask demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Ask nothing, end everything at the end, and tell by the exit code how it went.
    #[arg(long)]
    unattended: bool,
    /// Take the unoptimised build, which `cargo xtask test` has made already.
    #[arg(long)]
    dev: bool,
    /// Play one scene only.
    #[arg(long)]
    scene: Option<Scene>,
    /// End what an earlier demo has left because it was killed.
    #[arg(long, conflicts_with = "unattended")]
    stop: bool,
}

/// What can be played by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Scene {
    /// One host, and a Debian guest that never stops.
    Host,
    /// Three nodes, and one of them loses power.
    Cluster,
    /// Two nodes, and a guest under load that moves between them while a client counts.
    Migrate,
}

/// One step of the demo.
#[derive(Debug, Serialize)]
struct Step {
    step: String,
    seen: String,
    seconds: f64,
}

/// What is written to `target/demo/report.json`.
#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    error: Option<String>,
    steps: Vec<Step>,
}

impl Args {
    fn plays(&self, scene: Scene) -> bool {
        self.scene.is_none_or(|only| only == scene)
    }
}

struct Demo {
    dir: PathBuf,
    muster: Muster,
    steps: Vec<Step>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if !is_root() {
        bail!("the demo starts real machines, which needs root: sudo -E cargo xtask demo");
    }
    let dir = target().join("demo");
    if args.stop {
        return clear(&dir);
    }
    stop::listen()?;
    install::run()?;
    println!("Building Muster (a few minutes the first time) ...");
    if let Err(error) = web::build() {
        println!("The web console is left out: {error:#}");
    }
    let profile = if args.dev { "dev" } else { "release" };
    show(cmd("cargo", ["build", "--quiet", "--profile", profile, "--package", "cli"]))?;
    let binary = target().join(if args.dev { "debug/muster" } else { "release/muster" });
    Muster::new(&dir, binary.clone()).stop_all()?;
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir)?;
    let mut demo =
        Demo { muster: Muster::new(&dir, binary.clone()), dir: dir.clone(), steps: Vec::new() };
    let result = play_all(args, &mut demo, &binary);
    let report = Report {
        ok: result.is_ok(),
        error: result.as_ref().err().map(|error| format!("{error:#}")),
        steps: std::mem::take(&mut demo.steps),
    };
    let path = dir.join("report.json");
    fs::write(&path, serde_json::to_string_pretty(&report)? + "\n")?;
    println!("\nReport: {}", path.display());
    let mut lab = match result {
        Ok(lab) => lab,
        Err(error) => {
            if args.plays(Scene::Host) {
                eprintln!("\nThe daemon's last words:\n{}", demo.muster.log_tail());
            }
            demo.muster.stop_all()?;
            return Err(error.context("the demo failed"));
        }
    };
    let stayed = if args.unattended {
        Ok(())
    } else {
        stay::stay(&demo, args.plays(Scene::Host), lab.as_ref())
    };
    let shutdown = args.unattended && args.plays(Scene::Host);
    let ended = stay::end_all([
        &mut || lab.take().map_or(Ok(()), Lab::down),
        &mut || if shutdown { demo.muster.run(&["vm", "shutdown", VM]) } else { Ok(()) },
        &mut || demo.muster.stop_all(),
    ]);
    stayed.and(ended)
}

/// Ends what a demo has left that was killed.
fn clear(dir: &Path) -> Result<()> {
    let built = ["release/muster", "debug/muster"].map(|path| target().join(path));
    let lab = || match built.iter().find(|path| path.exists()) {
        Some(binary) => Lab::clear(binary, LAB),
        None => Ok(()),
    };
    stay::end_all([&mut || lab(), &mut || Muster::new(dir, PathBuf::new()).stop_all()])
}

/// Plays what was asked for; gives the last lab, which is still up.
fn play_all(args: &Args, demo: &mut Demo, binary: &Path) -> Result<Option<Lab>> {
    // What is not watched needs no way in from outside.
    let reach = if args.unattended { Reach::Inside } else { Reach::Host };
    let mut lab = None;
    if args.plays(Scene::Host) {
        println!("Building the Debian guest (cached) ...");
        let image = guest::ensure(guest::Which::Debian, false)?;
        demo.play(&image)?;
    }
    if args.plays(Scene::Migrate) {
        lab = Some(migrate::play(binary, reach, &mut demo.steps)?);
    }
    if args.plays(Scene::Cluster) {
        if let Some(lab) = lab.take() {
            lab.down()?;
        }
        lab = Some(cluster::play(binary, reach, &mut demo.steps)?);
    }
    Ok(lab)
}

/// Tells of a step that was seen to work.
fn done(steps: &mut Vec<Step>, step: &str, seen: &str, began: Instant) {
    let seconds = began.elapsed().as_secs_f64();
    println!("  {step}: {seen} ({seconds:.1} s)");
    steps.push(Step { step: step.to_owned(), seen: seen.to_owned(), seconds });
}

impl Demo {
    fn play(&mut self, image: &Path) -> Result<()> {
        let key = self.make_key()?;
        let began = Instant::now();
        self.muster.start_daemon()?;
        self.done("daemon", "it answers on its socket", began);

        let began = Instant::now();
        let image = image.to_string_lossy().into_owned();
        self.muster.run(&["image", "import", "debian", &image])?;
        self.done("image", "debian12 imported, checked and ready", began);

        let began = Instant::now();
        let public = key.with_extension("pub").to_string_lossy().into_owned();
        let create = [
            "vm",
            "create",
            VM,
            "--image",
            "debian",
            "--disk-size",
            "4G",
            "--cpus",
            "1",
            "--cpus-max",
            "2",
            "--memory",
            "512M",
            "--memory-max",
            "1G",
            "--user",
            "muster",
            "--ssh-key",
            &public,
            "--start",
        ];
        self.muster.run(&create)?;
        let node = self.muster.json(&["node", "list"])?;
        let by = node[0]["accelerator_reason"].as_str().unwrap_or_default();
        self.done("start", &format!("{VM} was created and started ({by})"), began);

        let began = Instant::now();
        let vm =
            self.muster.until(VM, BOOT_LIMIT, "its agent answers and it has an address", |vm| {
                vm["guest"]["heartbeat"] == "ok"
                    && vm["guest"]["os"].is_string()
                    && !vm["nics"][0]["addresses"][0].is_null()
            })?;
        let address = vm["nics"][0]["addresses"][0].as_str().unwrap_or_default().to_owned();
        let os = vm["guest"]["os"].as_str().unwrap_or_default();
        self.done("guest", &format!("{os} at {address}, told by its agent"), began);

        let began = Instant::now();
        let pulse = Pulse::start(&address, BOOT_LIMIT)?;
        let banner = pulse.banner().to_owned();
        self.done("network", &format!("{address}:22 answers: {banner}"), began);
        pulse.end()?;
        self.hot_add(&key, &address)?;
        self.kill_daemon(Pulse::start(&address, HOTPLUG_LIMIT)?)?;
        self.muster.run(&["vm", "show", VM])?;
        Ok(())
    }

    /// Adds a disk and memory, and asks the guest itself whether it has them.
    fn hot_add(&mut self, key: &Path, address: &str) -> Result<()> {
        let began = Instant::now();
        self.muster.run(&["vm", "disk", "add", VM, "--size", "1G", "--name", "data"])?;
        let disks = "ls /sys/block | grep -c '^vd'";
        let before = "2";
        self.guest_says(key, address, disks, |said| said > before, HOTPLUG_LIMIT)?;
        self.done("disk", "1 GiB added while it runs; the guest has one more disk", began);

        let began = Instant::now();
        self.muster.run(&["vm", "set", VM, "--memory", "768M"])?;
        let memory = "awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo";
        let enough = |said: &str| said.parse::<u64>().is_ok_and(|mib| mib > 600);
        let said = self.guest_says(key, address, memory, enough, HOTPLUG_LIMIT)?;
        self.done(
            "memory",
            &format!("768 MiB set while it runs; the guest sees {said} MiB"),
            began,
        );
        Ok(())
    }

    /// Kills the daemon and shows that the guest never stopped, then that a new daemon finds it.
    fn kill_daemon(&mut self, pulse: Pulse) -> Result<()> {
        let began = Instant::now();
        let before = self.muster.json(&["vm", "show", VM])?;
        let pid = before["run"]["pid"].as_u64().context("the VM has no process")?;
        self.muster.kill_daemon()?;
        std::thread::sleep(Duration::from_secs(2));
        ensure!(Path::new(&format!("/proc/{pid}")).exists(), "the VM's process is gone");
        self.muster.start_daemon()?;
        let vm = self.muster.until(VM, Duration::from_secs(60), "it is found again", |vm| {
            vm["phase"] == "running" && vm["guest"]["heartbeat"] == "ok"
        })?;
        ensure!(vm["run"]["pid"].as_u64() == Some(pid), "another process runs now");
        ensure!(vm["generation"] == before["generation"], "it was started again");
        let silence = pulse.end()?;
        ensure!(silence < SILENCE_MAX, "the guest was silent for {silence:?}");
        let seen = format!(
            "daemon killed with SIGKILL and started again: same process ({pid}), longest silence of \
             the guest {} ms",
            silence.as_millis()
        );
        self.done("daemon killed", &seen, began);
        Ok(())
    }

    /// Runs a command in the guest by SSH until its answer is as wanted.
    fn guest_says(
        &self,
        key: &Path,
        address: &str,
        command: &str,
        wanted: impl Fn(&str) -> bool,
        limit: Duration,
    ) -> Result<String> {
        let until = Instant::now() + limit;
        let key = key.to_string_lossy().into_owned();
        let login = format!("muster@{address}");
        loop {
            let said = quiet(cmd(
                "ssh",
                [
                    "-i",
                    &key,
                    "-o",
                    "StrictHostKeyChecking=no",
                    "-o",
                    "UserKnownHostsFile=/dev/null",
                    "-o",
                    "LogLevel=ERROR",
                    "-o",
                    "ConnectTimeout=10",
                    "-o",
                    "BatchMode=yes",
                    &login,
                    command,
                ],
            ));
            match said {
                Ok(said) if wanted(said.trim()) => return Ok(said.trim().to_owned()),
                said if Instant::now() > until => {
                    bail!("the guest did not show it in {limit:?}; its last answer: {said:?}")
                }
                _ => stop::pass(Duration::from_secs(1))?,
            }
        }
    }

    fn make_key(&self) -> Result<PathBuf> {
        let key = self.dir.join("id_ed25519");
        let path = key.to_string_lossy().into_owned();
        quiet(cmd(
            "ssh-keygen",
            ["-q", "-t", "ed25519", "-N", "", "-C", "muster-demo", "-f", &path],
        ))?;
        Ok(key)
    }

    fn done(&mut self, step: &str, seen: &str, began: Instant) {
        done(&mut self.steps, step, seen, began);
    }

    fn what_next(&self) {
        let vm: Value = self.muster.json(&["vm", "show", VM]).unwrap_or_default();
        let address = vm["nics"][0]["addresses"][0].as_str().unwrap_or("ADDRESS").to_owned();
        let web: Value = self.muster.json(&["web"]).unwrap_or_default();
        if let Some(link) = web["url"].as_str() {
            println!(
                "\nThe web console, in a browser of this host, once within five minutes:\n\n  {link}"
            );
        }
        println!(
            "\n{VM} goes on running. What to type next:\n\n  \
             export PATH={}:$PATH MUSTER_SOCKET={}\n  \
             muster vm list\n  \
             muster vm console {VM}            (leave it with Ctrl-])\n  \
             ssh -i {} muster@{address}\n  \
             muster top\n  \
             muster web                        (another link to the web console)\n\n\
             A tutorial of ten minutes: {}",
            self.muster.binary_dir().display(),
            self.muster.socket().display(),
            self.dir.join("id_ed25519").display(),
            root().join("docs/operate/tutorial.md").display(),
        );
    }
}
