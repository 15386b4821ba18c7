//! A daemon whose VMs run and of which nobody wants anything.

use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use serde_json::json;

use crate::bench::daemon::Daemon;
use crate::bench::daemon::Engine;
use crate::bench::process;
use crate::bench::report::Report;
use crate::stop;

/// Memory of each fake VM: the least there is.
const MEMORY_MIB: u64 = 32;

/// How long the start of all VMs may take.
const CALM_LIMIT: Duration = Duration::from_secs(120);

/// What a start leaves to do is done after this.
const SETTLE: Duration = Duration::from_secs(5);

/// How often memory is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Targets, in the units of the report.
const RESIDENT_MIB: f64 = 80.0;
const CPU_PERCENT: f64 = 2.0;

/// With fake machines: what the daemon itself costs, without guests to talk to.
pub(super) fn measure(report: &mut Report, binary: &Path, vms: usize, seconds: u64) -> Result<()> {
    println!("\nIdle daemon with {vms} VMs, fake engine");
    let mut daemon = Daemon::new(binary, Engine::Fake)?;
    daemon.start()?;
    let mut client = daemon.client();
    for n in 0..vms {
        let body = json!({"name": format!("idle-{n}"), "memory": MEMORY_MIB << 20});
        client.post("/v1/vms", &body)?;
    }
    daemon.calm(CALM_LIMIT)?;
    for n in 0..vms {
        client.post(&format!("/v1/vms/idle-{n}/start"), &json!({}))?;
    }
    daemon.calm(CALM_LIMIT)?;
    watch(report, &daemon, &format!("idle daemon, {vms} VMs (fake)"), seconds)
        .with_context(|| format!("the daemon's last words:\n{}", daemon.log_tail()))
}

/// Watches a daemon that does nothing.
pub(super) fn watch(report: &mut Report, daemon: &Daemon, label: &str, seconds: u64) -> Result<()> {
    let pid = daemon.pid()?;
    stop::pass(SETTLE)?;
    let (began, used) = (Instant::now(), process::cpu_time(pid)?);
    let mut resident = 0.0_f64;
    while began.elapsed() < Duration::from_secs(seconds) {
        stop::pass(LOOK_EVERY)?;
        resident = resident.max(process::resident_mib(pid)?);
    }
    let busy = process::cpu_time(pid)?.saturating_sub(used);
    let percent = 100.0 * busy.as_secs_f64() / began.elapsed().as_secs_f64();
    report.at_most(
        format!("{label}: resident, most in {seconds} s"),
        resident,
        "MiB",
        RESIDENT_MIB,
    );
    report.at_most(format!("{label}: of one processor"), percent, "%", CPU_PERCENT);
    Ok(())
}
