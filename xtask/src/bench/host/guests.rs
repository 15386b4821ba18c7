//! Real guests through Muster against the same machines started as raw QEMU, in turns.
//!
//! A guest is up when its agent has answered: the heartbeat that Muster shows, and `guest-ping` on
//! the agent's socket for raw QEMU. Disks are made before the clock runs, on both sides.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::anyhow;
use anyhow::ensure;
use serde_json::Value;
use serde_json::json;

use super::idle;
use super::raw;
use super::raw::Line;
use crate::bench::daemon::Daemon;
use crate::bench::daemon::Engine;
use crate::bench::http::Client;
use crate::bench::process;
use crate::bench::report::Report;
use crate::bench::report::median;
use crate::bench::report::quantile;
use crate::guest;
use crate::run::target;
use crate::stop;

/// Memory of a guest.
const MEMORY_MIB: u64 = 128;

/// How long one guest may take under emulation on a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(240);

/// How long each guest of a herd may take on top of that.
const HERD_LIMIT_EACH: Duration = Duration::from_secs(30);

/// How often Muster is asked whether one guest is up: after a hundredth of the time that it has
/// taken so far, within these limits. Half of that is added to what is measured; asking more often
/// would take processor time from the guest where the machine is busy and it boots for long.
const ASK_EVERY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));

/// How often Muster is asked whether a herd is up: the list of all.
const ASK_HERD_EVERY: Duration = Duration::from_millis(200);

/// How long an operation that waits for no guest may take.
const OP_LIMIT: Duration = Duration::from_secs(120);

/// Targets: times raw QEMU.
const START_RATIO: f64 = 1.10;
const HERD_RATIO: f64 = 1.15;

/// A daemon with the tiny image, and what the same machine is without it.
struct Side {
    daemon: Daemon,
    client: Client,
    line: Line,
    raw: RawDir,
    accelerator: String,
}

/// One start, in seconds.
struct Round {
    /// Until the guest's processors run.
    ran: f64,
    /// Until its agent answers.
    up: f64,
    /// Processor time that was used by then.
    cpu: f64,
}

/// One start of many, in seconds.
struct Herd {
    /// Until each was up.
    up: Vec<f64>,
    /// Processor time that was used when the last one was.
    cpu: f64,
}

impl Herd {
    fn all(&self) -> f64 {
        quantile(&self.up, 1.0)
    }
}

/// The directory of raw machines; removed at the end.
struct RawDir(PathBuf);

impl Drop for RawDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Start to first heartbeat: rounds of raw, Muster, raw, Muster.
pub(super) fn start(report: &mut Report, binary: &Path, rounds: usize) -> Result<()> {
    println!("\nStart to first heartbeat, {rounds} rounds of raw QEMU and Muster in turns");
    let mut side = Side::new(binary)?;
    let (mut raw, mut muster) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        raw.push(side.raw_once(round)?);
        muster.push(side.muster_once(round)?);
        let (raw, muster) = (&raw[round], &muster[round]);
        println!(
            "  round {}, load {:.1}: raw {:.2} s, Muster {:.2} s (processors run: {:.2} s, {:.2} s)",
            round + 1,
            process::load(),
            raw.up,
            muster.up,
            raw.ran,
            muster.ran
        );
    }
    let of = |rounds: &[Round], part: fn(&Round) -> f64| -> Vec<f64> {
        rounds.iter().map(part).collect()
    };
    let metric = format!(
        "start to first heartbeat ({}), median of {rounds}, against raw QEMU",
        side.accelerator
    );
    let up = |rounds: &[Round]| of(rounds, |round| round.up);
    report.against(&metric, median(&up(&muster)), "s", median(&up(&raw)), START_RATIO);
    // What a machine that others use, too, disturbs least.
    let least = |rounds: &[Round]| quantile(&up(rounds), 0.0);
    report.beside(format!("{metric}, least"), least(&muster), "s", least(&raw));
    let cpu = |rounds: &[Round]| median(&of(rounds, |round| round.cpu));
    let metric = "processor time of QEMU (and the daemon) until the first heartbeat, median";
    report.beside(metric, cpu(&muster), "s", cpu(&raw));
    // All that Muster does itself lies before this; what follows is the guest's own time.
    let ran = |rounds: &[Round]| median(&of(rounds, |round| round.ran));
    let metric = "start until the guest's processors run, median";
    report.beside(metric, ran(&muster), "s", ran(&raw));
    Ok(())
}

/// Many guests at once, in turns raw and through Muster; the daemon is then watched while idle.
pub(super) fn herd(
    report: &mut Report,
    binary: &Path,
    guests: usize,
    rounds: usize,
    idle_s: u64,
) -> Result<()> {
    println!("\n{guests} guests of {MEMORY_MIB} MiB at once, {rounds} rounds of raw and Muster");
    let mut side = Side::new(binary)?;
    for n in 0..guests {
        create(&mut side.client, &herd_name(n))?;
    }
    let (mut raw, mut muster) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        if round > 0 {
            side.off_all(guests)?;
        }
        raw.push(side.raw_herd(guests)?);
        muster.push(side.muster_herd(guests)?);
        let (raw, muster) = (&raw[round], &muster[round]);
        for (who, herd) in [("raw QEMU", raw), ("Muster", muster)] {
            println!(
                "  round {}, load {:.1}: {who}: half up after {:.1} s, all after {:.1} s",
                round + 1,
                process::load(),
                median(&herd.up),
                herd.all()
            );
        }
    }
    let all = |herds: &[Herd]| median(&herds.iter().map(Herd::all).collect::<Vec<_>>());
    let half = |herds: &[Herd]| median(&herds.iter().map(|it| median(&it.up)).collect::<Vec<_>>());
    let cpu = |herds: &[Herd]| median(&herds.iter().map(|it| it.cpu).collect::<Vec<_>>());
    let metric = format!(
        "{guests} guests of {MEMORY_MIB} MiB at once ({}): all up, median of {rounds}, against a \
         loop of raw QEMU",
        side.accelerator
    );
    report.against(&metric, all(&muster), "s", all(&raw), HERD_RATIO);
    report.beside(format!("{guests} guests: half of them up"), half(&muster), "s", half(&raw));
    let metric = format!("{guests} guests: processor time of QEMU (and the daemon) until all are");
    report.beside(metric, cpu(&muster), "s", cpu(&raw));
    idle::watch(report, &side.daemon, &format!("idle daemon, {guests} VMs (real)"), idle_s)
        .with_context(|| format!("the daemon's last words:\n{}", side.daemon.log_tail()))
}

impl Side {
    /// Starts a daemon, imports the image, and boots one machine to learn its command line. That
    /// also brings everything both sides read into memory.
    fn new(binary: &Path) -> Result<Self> {
        let image = guest::ensure(guest::Which::Tiny, false)?;
        let mut daemon = Daemon::new(binary, Engine::Qemu)?;
        daemon.start()?;
        let mut client = daemon.client();
        let node = client.get("/v1/nodes")?;
        let accelerator = node[0]["accelerator"].as_str().unwrap_or("unknown").to_owned();
        let source = json!({"from": "file", "path": image});
        let import = json!({"name": "tiny", "source": source, "format": "raw"});
        let op = client.post("/v1/images", &import)?;
        wait_op(&mut client, &op)?;
        create(&mut client, "first")?;
        client.post("/v1/vms/first/start", &json!({}))?;
        let (_, pid) = wait_up(&mut client, "first")?;
        let line = Line::of(pid, &daemon.images())?;
        off(&mut client, "first")?;
        let raw = RawDir(target().join("bench").join(format!("raw-{}", std::process::id())));
        fs::create_dir_all(&raw.0)?;
        Ok(Self { daemon, client, line, raw, accelerator })
    }

    fn raw_once(&self, round: usize) -> Result<Round> {
        let dir = self.raw.0.join(format!("round-{round}"));
        let args = self.line.prepare(&dir)?;
        let began = Instant::now();
        let machine = self.line.start(&args)?;
        raw::runs(&dir.join("qmp"), BOOT_LIMIT)?;
        let ran = began.elapsed().as_secs_f64();
        raw::first_heartbeat(&dir.join("agent"), BOOT_LIMIT)?;
        let up = began.elapsed().as_secs_f64();
        Ok(Round { ran, up, cpu: process::cpu_time(machine.pid())?.as_secs_f64() })
    }

    fn muster_once(&mut self, round: usize) -> Result<Round> {
        let name = format!("round-{round}");
        create(&mut self.client, &name)?;
        let daemon = self.daemon.pid()?;
        let before = process::cpu_time(daemon)?;
        let began = Instant::now();
        self.client.post(&format!("/v1/vms/{name}/start"), &json!({}))?;
        let (ran, pid) = wait_up(&mut self.client, &name)
            .with_context(|| format!("the daemon's last words:\n{}", self.daemon.log_tail()))?;
        let up = began.elapsed().as_secs_f64();
        let cpu = process::cpu_time(pid)? + process::cpu_time(daemon)?.saturating_sub(before);
        off(&mut self.client, &name)?;
        let ran = ran.duration_since(began).as_secs_f64();
        Ok(Round { ran, up, cpu: cpu.as_secs_f64() })
    }

    fn raw_herd(&self, guests: usize) -> Result<Herd> {
        let dirs: Vec<PathBuf> = (0..guests).map(|n| self.raw.0.join(format!("g{n}"))).collect();
        let lines = dirs.iter().map(|dir| self.line.prepare(dir)).collect::<Result<Vec<_>>>()?;
        let limit = herd_limit(guests);
        let began = Instant::now();
        let mut machines = Vec::new();
        for args in &lines {
            machines.push(self.line.start(args)?);
        }
        std::thread::scope(|scope| {
            let watch = |dir: &PathBuf| {
                let socket = dir.join("agent");
                scope.spawn(move || -> Result<f64> {
                    raw::first_heartbeat(&socket, limit)?;
                    Ok(began.elapsed().as_secs_f64())
                })
            };
            let watchers: Vec<_> = dirs.iter().map(watch).collect();
            let mut up = Vec::new();
            for watcher in watchers {
                up.push(watcher.join().map_err(|_| anyhow!("a watcher failed"))??);
            }
            let mut cpu = Duration::ZERO;
            for machine in &machines {
                cpu += process::cpu_time(machine.pid())?;
            }
            Ok(Herd { up, cpu: cpu.as_secs_f64() })
        })
    }

    fn muster_herd(&mut self, guests: usize) -> Result<Herd> {
        let daemon = self.daemon.pid()?;
        let before = process::cpu_time(daemon)?;
        let end = Instant::now() + herd_limit(guests);
        let began = Instant::now();
        for n in 0..guests {
            self.client.post(&format!("/v1/vms/{}/start", herd_name(n)), &json!({}))?;
        }
        // A guest is up from its first heartbeat on, as on the other side: while others boot, a
        // machine without a processor to spare may miss the next ones.
        let mut up: BTreeMap<String, f64> = BTreeMap::new();
        while up.len() < guests {
            stop::pass(ASK_HERD_EVERY)?;
            let list = self.client.get("/v1/vms")?;
            let now = began.elapsed().as_secs_f64();
            for vm in list.as_array().into_iter().flatten() {
                let name = vm["name"].as_str().unwrap_or_default();
                ensure!(vm["phase"] != "failed", "{name} does not run");
                if vm["heartbeat"] == "ok" && !up.contains_key(name) {
                    up.insert(name.to_owned(), now);
                }
            }
            let late = || format!("{} of {guests} are up:\n{}", up.len(), self.daemon.log_tail());
            ensure!(Instant::now() < end, "{}", late());
        }
        let mut cpu = process::cpu_time(daemon)?.saturating_sub(before);
        for n in 0..guests {
            let vm = self.client.get(&format!("/v1/vms/{}", herd_name(n)))?;
            let pid = vm["run"]["pid"].as_u64().context("the machine has no process")?;
            cpu += process::cpu_time(u32::try_from(pid)?)?;
        }
        Ok(Herd { up: up.into_values().collect(), cpu: cpu.as_secs_f64() })
    }

    /// Turns the herd off.
    fn off_all(&mut self, guests: usize) -> Result<()> {
        for n in 0..guests {
            self.client.post(&format!("/v1/vms/{}/off", herd_name(n)), &json!({}))?;
        }
        self.daemon.calm(OP_LIMIT)
    }
}

fn herd_name(n: usize) -> String {
    format!("herd-{n:03}")
}

fn herd_limit(guests: usize) -> Duration {
    BOOT_LIMIT + HERD_LIMIT_EACH * u32::try_from(guests).unwrap_or(u32::MAX)
}

/// Creates a VM with a thin copy of the tiny image and waits until it is there.
fn create(client: &mut Client, name: &str) -> Result<()> {
    let body = json!({
        "name": name, "memory": MEMORY_MIB << 20, "disks": [{"image": "tiny"}],
    });
    let op = client.post("/v1/vms", &body)?;
    wait_op(client, &op)
}

fn off(client: &mut Client, name: &str) -> Result<()> {
    let op = client.post(&format!("/v1/vms/{name}/off"), &json!({}))?;
    wait_op(client, &op)
}

fn wait_op(client: &mut Client, op: &Value) -> Result<()> {
    let id = op["id"].as_str().context("no operation")?;
    stop::until("an operation", OP_LIMIT, || {
        let op = client.get(&format!("/v1/ops/{id}/wait?timeout_ms=1000"))?;
        let state = op["state"].as_str().unwrap_or_default();
        ensure!(matches!(state, "running" | "done"), "{}: {op}", op["title"]);
        Ok((state == "done").then_some(()))
    })
}

/// Waits for the heartbeat; when the guest's processors were first seen to run, and the process.
fn wait_up(client: &mut Client, name: &str) -> Result<(Instant, u32)> {
    let began = Instant::now();
    let end = began + BOOT_LIMIT;
    let mut ran = None;
    loop {
        let vm = client.get(&format!("/v1/vms/{name}"))?;
        if vm["phase"] == "running" {
            ran.get_or_insert_with(Instant::now);
        }
        if let Some(ran) = ran
            && vm["guest"]["heartbeat"] == "ok"
        {
            let pid = vm["run"]["pid"].as_u64().context("the machine has no process")?;
            return Ok((ran, u32::try_from(pid)?));
        }
        ensure!(vm["phase"] != "failed", "{name} does not run: {}", vm["note"]);
        ensure!(Instant::now() < end, "{name} is not up; the last look: {vm:#}");
        stop::pass((began.elapsed() / 100).clamp(ASK_EVERY.0, ASK_EVERY.1))?;
    }
}
