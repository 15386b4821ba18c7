//! Thousands of VMs in the state: what listing, changing and starting anew cost then.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::anyhow;
use anyhow::ensure;
use serde_json::json;

use crate::bench::daemon::Daemon;
use crate::bench::daemon::Engine;
use crate::bench::http::Client;
use crate::bench::process;
use crate::bench::report::Report;
use crate::bench::report::median;
use crate::bench::report::quantile;

/// How often the list is asked for.
const LISTS: usize = 200;

/// How many changes are followed.
const CHANGES: usize = 100;

/// How often the daemon is killed and started.
const STARTS: usize = 5;

/// Clients that create VMs at the same time.
const CREATORS: usize = 8;

/// How many of the VMs run, so that the list has running ones: what half of the memory of a small
/// host would hold, by the promises that the daemon keeps for fake machines, too.
const RUNNING_MAX: usize = 200;

/// Memory of each VM: the least there is.
const MEMORY_MIB: u64 = 32;

/// How long all the work that creating VMs leaves may take.
const CALM_LIMIT: Duration = Duration::from_secs(300);

/// How long one change may take before the bench gives up.
const CHANGE_LIMIT: Duration = Duration::from_secs(10);

/// Targets, in the units of the report.
const LIST_P99_MS: f64 = 100.0;
const CHANGE_MS: f64 = 50.0;
const START_S: f64 = 5.0;

pub(super) fn measure(report: &mut Report, binary: &Path, vms: usize) -> Result<()> {
    println!("\n{vms} VMs in the state, fake engine");
    let mut daemon = Daemon::new(binary, Engine::Fake)?;
    let (took, _) = daemon.start()?;
    report.note("empty daemon: start until it lists VMs", millis(took), "ms");
    report.note("empty daemon: resident", process::resident_mib(daemon.pid()?)?, "MiB");

    let result = play(report, &mut daemon, vms);
    result.with_context(|| format!("the daemon's last words:\n{}", daemon.log_tail()))
}

fn play(report: &mut Report, daemon: &mut Daemon, vms: usize) -> Result<()> {
    let label = format!("{vms} VMs (fake)");
    let began = Instant::now();
    create(daemon, vms)?;
    daemon.calm(CALM_LIMIT)?;
    let rate = vms as f64 / began.elapsed().as_secs_f64();
    report.note(format!("{label}: created, {CREATORS} clients"), rate, "VMs/s");

    let room = process::host_memory_mib() / 2 / MEMORY_MIB;
    let running = RUNNING_MAX.min(vms).min(usize::try_from(room)?);
    let mut client = daemon.client();
    for n in 0..running {
        client.post(&format!("/v1/vms/{}/start", name(n)), &json!({}))?;
    }
    daemon.calm(CALM_LIMIT)?;
    report.note(format!("{label}: of these running"), running as f64, "VMs");

    let pid = daemon.pid()?;
    let used = process::cpu_time(pid)?;
    let times = lists(daemon, vms)?;
    // Says what the daemon costs where neighbours on the machine make the times long.
    let each = millis(process::cpu_time(pid)?.saturating_sub(used)) / LISTS as f64;
    report.note(format!("{label}: list, processor time"), each, "ms");
    report.note(format!("{label}: list, median of {LISTS}"), median(&times), "ms");
    report.at_most(format!("{label}: list, p99"), quantile(&times, 0.99), "ms", LIST_P99_MS);

    let used = process::cpu_time(pid)?;
    let (begun, done) = changes(daemon, vms)?;
    let each = millis(process::cpu_time(pid)?.saturating_sub(used)) / CHANGES as f64;
    report.note(format!("{label}: a change, processor time"), each, "ms");
    let seen = format!("{label}: a change seen by a subscriber");
    report.note(format!("{seen}: begun, p99"), quantile(&begun, 0.99), "ms");
    report.at_most(format!("{seen}: done, median of {CHANGES}"), median(&done), "ms", CHANGE_MS);
    report.at_most(format!("{seen}: done, p99"), quantile(&done, 0.99), "ms", CHANGE_MS);

    report.note(format!("{label}: resident"), process::resident_mib(pid)?, "MiB");
    report.note(format!("{label}: most resident"), process::peak_mib(pid)?, "MiB");

    let mut starts = Vec::new();
    for _ in 0..STARTS {
        daemon.kill()?;
        let (took, listed) = daemon.start()?;
        ensure!(listed == vms, "after a start {listed} of {vms} VMs are there");
        starts.push(took.as_secs_f64());
    }
    let what = format!("{label}: start after SIGKILL until it lists them, worst of {STARTS}");
    report.at_most(what, quantile(&starts, 1.0), "s", START_S);
    Ok(())
}

pub(in crate::bench) fn name(n: usize) -> String {
    format!("vm-{n:05}")
}

/// Creates the VMs, some at a time.
pub(in crate::bench) fn create(daemon: &Daemon, vms: usize) -> Result<()> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        let mut client = daemon.client();
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= vms {
                return Ok(());
            }
            let tag = format!("team-{}", n % 40);
            let body = json!({"name": name(n), "memory": MEMORY_MIB << 20, "tags": [tag]});
            client.post("/v1/vms", &body)?;
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..CREATORS).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            worker.join().map_err(|_| anyhow!("a client failed"))??;
        }
        Ok(())
    })
}

/// Times of whole answers, in milliseconds.
fn lists(daemon: &Daemon, vms: usize) -> Result<Vec<f64>> {
    let mut client = daemon.client();
    let listed = client.get("/v1/vms")?;
    ensure!(listed.as_array().is_some_and(|list| list.len() == vms), "not all VMs are listed");
    let mut times = Vec::with_capacity(LISTS);
    for _ in 0..LISTS {
        let began = Instant::now();
        let answer = client.ask("GET", "/v1/vms", None)?;
        times.push(millis(began.elapsed()));
        ensure!(answer.status == 200, "the list of VMs: {}", answer.status);
    }
    Ok(times)
}

/// Times from asking for a change until a subscriber has been told that it began, and that it is
/// done, in milliseconds.
fn changes(daemon: &Daemon, vms: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    let mut events = daemon.client().follow("/v1/events/stream")?;
    // Each change makes three events; the subscriber must never wait for the other side.
    let (told, seen) = mpsc::sync_channel(CHANGES * 8);
    std::thread::scope(|scope| {
        let subscriber = scope.spawn(move || -> Result<()> {
            loop {
                let (came, event) = events.next()?;
                let kind = event["kind"].as_str().unwrap_or_default().to_owned();
                let op = event["op"].as_str().unwrap_or_default().to_owned();
                if told.send((came, kind, op)).is_err() {
                    return Ok(());
                }
            }
        });
        let times = change_all(&mut daemon.client(), vms, &seen);
        drop(seen);
        // One more event, which nobody takes, lets the subscriber end.
        let last = json!({"description": "the last change"});
        daemon.client().call("PATCH", &format!("/v1/vms/{}", name(0)), Some(&last))?;
        let ended = subscriber.join().map_err(|_| anyhow!("the subscriber failed"))?;
        let times = times?;
        ended?;
        Ok(times)
    })
}

type Seen = mpsc::Receiver<(Instant, String, String)>;

fn change_all(client: &mut Client, vms: usize, seen: &Seen) -> Result<(Vec<f64>, Vec<f64>)> {
    let (mut begun, mut done) = (Vec::new(), Vec::new());
    for n in 0..CHANGES {
        let vm = name(n * vms / CHANGES);
        let body = json!({"description": format!("change {n}")});
        let asked = Instant::now();
        let op = client.call("PATCH", &format!("/v1/vms/{vm}"), Some(&body))?;
        let op = op["id"].as_str().context("no operation")?.to_owned();
        let mut came: HashMap<String, Instant> = HashMap::new();
        while !came.contains_key("op.done") {
            let (at, kind, of) = seen
                .recv_timeout(CHANGE_LIMIT)
                .with_context(|| format!("change {n} of {vm} was not seen"))?;
            ensure!(of != op || kind != "op.failed", "the change of {vm} failed");
            if of == op {
                came.insert(kind, at);
            }
        }
        let since = |kind: &str| came.get(kind).map(|at| millis(at.duration_since(asked)));
        begun.push(since("op.begun").context("no event says that it began")?);
        done.push(since("op.done").context("no event says that it is done")?);
    }
    Ok((begun, done))
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_sort_as_their_numbers() {
        assert!(super::name(9) < super::name(10));
        assert_eq!(super::name(7999), "vm-07999");
    }
}
