//! `cargo xtask bench ha`: how fast machines are back after a loss, in a lab of three nodes with a
//! fence device that answers.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;
use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::json;

use super::http::Client;
use super::process;
use super::report::Report;
use super::report::median;
use super::report::quantile;
use crate::install;
use crate::lab::Lab;
use crate::lab::processes;
use crate::run::cmd;
use crate::run::is_root;
use crate::run::show;
use crate::run::target;
use crate::stop;

/// The machine that is lost again and again.
const VM: &str = "bench-ha";

/// Writes through each node.
const WRITES: usize = 100;

/// Targets in seconds (issue "The lab and the failover cluster").
const STARTED_MEDIAN: f64 = 3.0;
const STARTED_WORST: f64 = 5.0;
const BOOT_RATIO: f64 = 1.2;
const RESTART_WORST: f64 = 1.0;
const LEADER_P99: f64 = 2.0;

/// A write costs at most so many times its own node's fsync and one round trip.
const WRITE_RATIO: f64 = 2.0;

/// How long a new leader may take before the bench gives up.
const LEADER_LIMIT: Duration = Duration::from_secs(60);

/// Options of `cargo xtask bench ha`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Losses of power, deaths of QEMU, and losses of the leader.
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// Measure this program instead of building it.
    #[arg(long, value_name = "FILE")]
    muster: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> Result<()> {
    if !is_root() {
        bail!("a lab needs root: sudo -E cargo xtask bench ha");
    }
    install::run()?;
    let binary = match &args.muster {
        Some(binary) => binary.clone(),
        None => {
            show(cmd("cargo", ["build", "--release", "--quiet", "--package", "cli"]))?;
            target().join("release/muster")
        }
    };
    println!("Load average {:.1}", process::load());
    let lab = Lab::up(&binary, "bench", 3)?;
    let mut report = Report::default();
    writes(&lab, &mut report)?;
    let boot = lab.boot("n1", VM)?.as_secs_f64();
    report.note("plain boot to the first heartbeat", boot, "s");
    power(&lab, args.rounds, boot, &mut report)?;
    deaths(&lab, args.rounds, &mut report)?;
    leaders(&lab, args.rounds, &mut report)?;
    drop(lab);
    let missed = report.finish("ha")?;
    ensure!(missed.is_empty(), "missed: {}", missed.join("; "));
    Ok(())
}

/// The host under the machine loses power.
fn power(lab: &Lab, rounds: usize, boot: f64, report: &mut Report) -> Result<()> {
    let (mut started, mut answers) = (Vec::new(), Vec::new());
    let mut on = "n1".to_owned();
    for round in 1..=rounds {
        stop::check()?;
        let other = if on == "n1" { "n2" } else { "n1" };
        let before = processes(VM)?;
        let began = Instant::now();
        lab.lab(&["power-off", &on])?;
        lab.another_process(VM, &before)?;
        started.push(began.elapsed().as_secs_f64());
        let to = lab.answers(other, VM, |node| node != on)?;
        answers.push(began.elapsed().as_secs_f64());
        let (a, b) = (started.last().unwrap_or(&0.0), answers.last().unwrap_or(&0.0));
        println!(
            "power loss {round}: {on} to {to}: started after {a:.2} s, answers after {b:.2} s"
        );
        lab.lab(&["power-on", &on])?;
        lab.whole(other, &on)?;
        on = to;
    }
    let worst = started.iter().copied().fold(0.0, f64::max);
    report.at_most("power loss to QEMU elsewhere, median", median(&started), "s", STARTED_MEDIAN);
    report.at_most("power loss to QEMU elsewhere, worst", worst, "s", STARTED_WORST);
    let allowed = STARTED_MEDIAN + BOOT_RATIO * boot;
    report.at_most("power loss to the first heartbeat, median", median(&answers), "s", allowed);
    Ok(())
}

/// Only QEMU dies.
fn deaths(lab: &Lab, rounds: usize, report: &mut Report) -> Result<()> {
    let mut took = Vec::new();
    for _ in 0..rounds {
        stop::check()?;
        let before = processes(VM)?;
        let pid = *before.first().context("the machine has no process")?;
        let began = Instant::now();
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL)?;
        lab.another_process(VM, &before)?;
        took.push(began.elapsed().as_secs_f64());
        // The limit of restarts after crashes is counted; an operation clears it.
        lab.answers("n1", VM, |_| true)?;
        lab.muster("n1", &["vm", "off", VM])?;
        lab.muster("n1", &["vm", "start", VM])?;
    }
    let worst = took.iter().copied().fold(0.0, f64::max);
    report.note("QEMU dies to QEMU again, median", median(&took), "s");
    report.at_most("QEMU dies to QEMU again, worst", worst, "s", RESTART_WORST);
    Ok(())
}

/// The leader loses power.
fn leaders(lab: &Lab, rounds: usize, report: &mut Report) -> Result<()> {
    let mut took = Vec::new();
    for _ in 0..rounds {
        stop::check()?;
        let leader = stop::until("a leader", LEADER_LIMIT, || Ok(lab.leader("n1").ok().flatten()))?;
        let other = lab.nodes().iter().find(|node| **node != leader).context("one node")?.clone();
        let mut client = Client::new(&lab.socket(&other));
        let began = Instant::now();
        lab.lab(&["power-off", &leader])?;
        // The first change that is committed again; the daemon itself waits for the new leader.
        let body = json!({ "name": "after", "tag": "bench", "kind": "apart" });
        stop::until("another leader", LEADER_LIMIT, || Ok(client.post("/v1/rules", &body).ok()))?;
        took.push(began.elapsed().as_secs_f64());
        client.call("DELETE", "/v1/rules/after", None)?;
        lab.lab(&["power-on", &leader])?;
        lab.whole(&other, &leader)?;
    }
    report.note("leader loss to the next committed write, median", median(&took), "s");
    report.at_most(
        "leader loss to the next committed write, p99",
        quantile(&took, 0.99),
        "s",
        LEADER_P99,
    );
    Ok(())
}

/// Committed writes through each node, beside what the disk and the way cost by themselves.
fn writes(lab: &Lab, report: &mut Report) -> Result<()> {
    let mut all = Vec::new();
    let mut trips = Vec::new();
    for node in lab.nodes() {
        let mut client = Client::new(&lab.socket(node));
        for n in 0..WRITES {
            stop::check()?;
            let began = Instant::now();
            client.get("/v1/version")?;
            trips.push(began.elapsed().as_secs_f64() * 1e3);
            let body = json!({ "name": format!("w{n}"), "tag": "bench", "kind": "apart" });
            let began = Instant::now();
            client.post("/v1/rules", &body)?;
            all.push(began.elapsed().as_secs_f64() * 1e3);
            client.call("DELETE", &format!("/v1/rules/w{n}"), None)?;
        }
    }
    let limit = fsync_ms()? + median(&trips);
    report.note("fsync and one round trip, medians", limit, "ms");
    report.against("committed write, median", median(&all), "ms", limit, WRITE_RATIO);
    report.note("committed write, p99", quantile(&all, 0.99), "ms");
    Ok(())
}

/// What the disk under the lab takes for a small durable write.
fn fsync_ms() -> Result<f64> {
    let path = std::env::temp_dir().join(format!("muster-bench-fsync-{}", std::process::id()));
    let mut file = File::create(&path)?;
    let mut took = Vec::new();
    for _ in 0..WRITES {
        let began = Instant::now();
        file.write_all(&[7; 512])?;
        file.sync_data()?;
        took.push(began.elapsed().as_secs_f64() * 1e3);
    }
    std::fs::remove_file(&path)?;
    Ok(median(&took))
}
