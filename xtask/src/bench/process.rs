//! What the kernel knows of a process.

use std::fs;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;

/// Ticks in a second of `/proc/PID/stat`: part of the kernel's interface to programs, the same on
/// every machine that we run on, whatever its timer does.
const TICKS_PER_SECOND: u64 = 100;

/// Processor time that a process has used.
pub(super) fn cpu_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| path.clone())?;
    let (_, rest) = stat.rsplit_once(')').with_context(|| path.clone())?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut ticks = || -> Result<u64> { Ok(fields.next().context("too short")?.parse()?) };
    let used = ticks().with_context(|| path.clone())? + ticks().with_context(|| path.clone())?;
    Ok(Duration::from_millis(used * 1000 / TICKS_PER_SECOND))
}

/// Resident memory in MiB.
pub(super) fn resident_mib(pid: u32) -> Result<f64> {
    status_mib(pid, "VmRSS:")
}

/// The most resident memory that there was, in MiB.
pub(super) fn peak_mib(pid: u32) -> Result<f64> {
    status_mib(pid, "VmHWM:")
}

fn status_mib(pid: u32, field: &str) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| path.clone())?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.trim().strip_suffix("kB"))
        .with_context(|| format!("no {field} in {path}"))?;
    Ok(kib.trim().parse::<f64>()? / 1024.0)
}

/// Load average of the last minute: what else this machine had to do while a figure was taken.
pub(super) fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(f64::NAN)
}

/// Memory of this machine in MiB.
pub(super) fn host_memory_mib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text.lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    kib.unwrap_or(0) / 1024
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_is_there() {
        let pid = std::process::id();
        assert!(super::resident_mib(pid).unwrap() > 0.0);
        assert!(super::peak_mib(pid).unwrap() >= super::resident_mib(pid).unwrap() / 2.0);
        super::cpu_time(pid).unwrap();
        assert!(super::host_memory_mib() > 0);
        assert!(super::load() >= 0.0);
    }
}
