//! Facts about this host: memory, processors, space. Read anew each time; all are cheap.

use std::path::Path;

use model::Bytes;
use model::NodeCapacity;

/// Memory of the host.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Memory {
    pub(crate) total: Bytes,
    pub(crate) available: Bytes,
}

/// Reads `/proc/meminfo`. Zeroes where it cannot be read, which no caller takes for room.
pub(crate) fn memory() -> Memory {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(|rest| rest.trim_start_matches(':').trim().strip_suffix("kB"))
            .and_then(|number| number.trim().parse::<u64>().ok())
            .map_or(Bytes::ZERO, |kib| Bytes::new(kib.saturating_mul(1024)))
    };
    Memory { total: field("MemTotal"), available: field("MemAvailable") }
}

/// Number of processors that this daemon may use.
pub(crate) fn cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

/// What this host has for VMs: its memory less what it keeps for itself.
pub(crate) fn capacity(reserve_mib: u64) -> NodeCapacity {
    NodeCapacity { cpus: cpus(), memory: memory().total.saturating_sub(Bytes::mib(reserve_mib)) }
}

/// Size and free space of the file system that holds a path.
pub(crate) fn space(path: &Path) -> (Bytes, Bytes) {
    match rustix::fs::statvfs(path) {
        Ok(stat) => (
            Bytes::new(stat.f_blocks.saturating_mul(stat.f_frsize)),
            Bytes::new(stat.f_bavail.saturating_mul(stat.f_frsize)),
        ),
        Err(_) => (Bytes::ZERO, Bytes::ZERO),
    }
}

/// The host's name as the kernel knows it, made fit for a name of ours.
pub(crate) fn name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let fit: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '.') { c } else { '-' })
        .take(63)
        .collect();
    let fit = fit.trim_start_matches(['-', '.']);
    if fit.is_empty() { "node".to_owned() } else { fit.to_owned() }
}
