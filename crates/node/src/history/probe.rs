//! What the kernel says of a process, a control group and the host: counters now, rates by the next look.
//!
//! Trust boundary: none. What is read here is the kernel's; what cannot be read or understood is absent.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::time::Instant;

use super::FIGURES;
use super::Values;

/// Counters that only grow, by the figure that their rate is.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Counters {
    /// Processor time in milliseconds.
    pub(super) cpu_ms: Option<u64>,
    /// Bytes read from disks.
    pub(super) disk_read: Option<u64>,
    /// Bytes written to disks.
    pub(super) disk_written: Option<u64>,
    /// Bytes received, from the object's point of view.
    pub(super) net_received: Option<u64>,
    /// Bytes sent.
    pub(super) net_sent: Option<u64>,
    /// Microseconds in which something waited for a processor, for memory, for a disk.
    pub(super) waits_us: [Option<u64>; 3],
}

/// One look at an object.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    pub(super) at: Instant,
    pub(super) counters: Counters,
    /// Bytes of memory that it takes.
    pub(super) memory: Option<u64>,
    /// Bytes of memory that it needs.
    pub(super) demand: Option<u64>,
}

/// The values of the time between two looks, in the order of `Figure::ALL`. What was not there at both is
/// absent, and so is what ran backwards: that is another counter.
pub(super) fn values(before: &Look, now: &Look) -> Values {
    let seconds = now.at.duration_since(before.at).as_secs_f64().max(0.001);
    let rate = |pick: fn(&Counters) -> Option<u64>, unit: f64| -> f32 {
        let grown = pick(&now.counters).zip(pick(&before.counters));
        grown
            .and_then(|(now, before)| now.checked_sub(before))
            .map_or(f32::NAN, |grown| short(grown, unit / seconds))
    };
    // A wait cannot be longer than the time in which it was; two clocks make it so by a little. (`min`
    // would make a hundred of what is not a number.)
    let wait = |pick: fn(&Counters) -> Option<u64>| {
        let percent = rate(pick, 0.000_1);
        if percent > 100.0 { 100.0 } else { percent }
    };
    let values: Values = [
        // Milliseconds in a second: a tenth of them is percent.
        rate(|it| it.cpu_ms, 0.1),
        now.memory.map_or(f32::NAN, |it| short(it, 1.0)),
        now.demand.map_or(f32::NAN, |it| short(it, 1.0)),
        rate(|it| it.disk_read, 1.0),
        rate(|it| it.disk_written, 1.0),
        rate(|it| it.net_received, 1.0),
        rate(|it| it.net_sent, 1.0),
        wait(|it| it.waits_us[0]),
        wait(|it| it.waits_us[1]),
        wait(|it| it.waits_us[2]),
    ];
    assert_eq!(values.len(), FIGURES, "one value for each figure");
    values
}

#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "for charts")]
fn short(value: u64, unit: f64) -> f32 {
    (value as f64 * unit) as f32
}

/// Looks at a machine's process.
pub(super) fn process(
    pid: u32,
    taps: &[String],
    traffic: &Traffic,
    demand: Option<u64>,
) -> Option<Look> {
    let dir = PathBuf::from(format!("/proc/{pid}"));
    let (used, resident) = crate::sample::read_process(pid)?;
    let io = fs::read_to_string(dir.join("io")).ok();
    let field = |name: &str| io.as_deref().and_then(|text| field(text, name));
    let group = fs::read_to_string(dir.join("cgroup")).ok();
    let group = group.as_deref().and_then(group_of);
    let mut counters = Counters {
        cpu_ms: u64::try_from(used.as_millis()).ok(),
        disk_read: field("read_bytes:"),
        disk_written: field("write_bytes:"),
        waits_us: group.as_deref().map_or([None; 3], waits),
        ..Counters::default()
    };
    for tap in taps {
        let Some((received, sent)) = traffic.0.get(tap) else { continue };
        // What the tap receives is what the guest sent.
        *counters.net_sent.get_or_insert(0) += received;
        *counters.net_received.get_or_insert(0) += sent;
    }
    Some(Look { at: Instant::now(), counters, memory: Some(resident.get()), demand })
}

/// Looks at the host. `promised` is the memory that its machines may use.
pub(super) fn host(traffic: &Traffic, promised: u64) -> Look {
    let memory = crate::host::memory();
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let (disk_read, disk_written) =
        disks(&read("/proc/diskstats"), |name| Path::new("/sys/block").join(name).exists());
    let (received, sent) =
        traffic.host(|name| Path::new("/sys/class/net").join(name).join("device").exists());
    let counters = Counters {
        cpu_ms: cpu_ms(&read("/proc/stat")),
        disk_read: Some(disk_read),
        disk_written: Some(disk_written),
        net_received: Some(received),
        net_sent: Some(sent),
        waits_us: ["cpu", "memory", "io"]
            .map(|kind| wait_us(&read(&format!("/proc/pressure/{kind}")))),
    };
    let used = memory.total.saturating_sub(memory.available);
    Look { at: Instant::now(), counters, memory: Some(used.get()), demand: Some(promised) }
}

/// Bytes that each device of the network has received and sent.
#[derive(Debug, Default)]
pub(super) struct Traffic(HashMap<String, (u64, u64)>);

impl Traffic {
    /// Of all devices of this daemon's network namespace.
    pub(super) fn read() -> Self {
        Self::parse(&fs::read_to_string("/proc/self/net/dev").unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let (name, rest) = line.split_once(':')?;
            let mut fields = rest.split_whitespace();
            let received = fields.next()?.parse().ok()?;
            let sent = fields.nth(7)?.parse().ok()?;
            Some((name.trim().to_owned(), (received, sent)))
        };
        Self(text.lines().filter_map(line).collect())
    }

    /// Of the host's own cards; where it has none, as in a lab, of all but the loop.
    fn host(&self, is_card: impl Fn(&str) -> bool) -> (u64, u64) {
        let cards: Vec<_> = self.0.iter().filter(|(name, _)| is_card(name)).collect();
        let all = self.0.iter().filter(|(name, _)| cards.is_empty() && *name != "lo");
        let sum = |sum: (u64, u64), it: &(u64, u64)| {
            (sum.0.saturating_add(it.0), sum.1.saturating_add(it.1))
        };
        cards.iter().copied().chain(all).map(|(_, it)| it).fold((0, 0), sum)
    }
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
}

/// The control group (version 2) of a process.
fn group_of(cgroup: &str) -> Option<PathBuf> {
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let root = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
    root.iter().map(|root| Path::new(root).join(path)).find(|dir| dir.join("cgroup.procs").exists())
}

fn waits(group: &Path) -> [Option<u64>; 3] {
    ["cpu", "memory", "io"].map(|kind| {
        wait_us(&fs::read_to_string(group.join(format!("{kind}.pressure"))).unwrap_or_default())
    })
}

/// Total of a pressure file's `some` line, in microseconds.
fn wait_us(pressure: &str) -> Option<u64> {
    let some = pressure.lines().find(|line| line.starts_with("some "))?;
    some.split_whitespace().find_map(|part| part.strip_prefix("total="))?.parse().ok()
}

/// Time that all processors have worked, in milliseconds (proc(5), `stat`; without idle and iowait, and
/// without guest time, which user time has in it already).
fn cpu_ms(stat: &str) -> Option<u64> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> = line.split_whitespace().filter_map(|it| it.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, steal, ..] = fields.as_slice() else {
        return None;
    };
    let ticks = [user, nice, system, irq, softirq, steal].into_iter().sum::<u64>();
    Some(ticks.saturating_mul(1_000) / rustix::param::clock_ticks_per_second().max(1))
}

/// Bytes read from and written to whole disks; parts and devices that stand on others are not counted
/// twice.
fn disks(diskstats: &str, is_whole: impl Fn(&str) -> bool) -> (u64, u64) {
    const STACKED: [&str; 6] = ["loop", "ram", "dm-", "md", "zram", "nbd"];
    const SECTOR: u64 = 512;
    let mut sum = (0_u64, 0_u64);
    for line in diskstats.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, _, name, _, _, read, _, _, _, written, ..] = fields.as_slice() else { continue };
        if STACKED.iter().any(|kind| name.starts_with(kind)) || !is_whole(name) {
            continue;
        }
        let number = |text: &str| text.parse::<u64>().unwrap_or_default().saturating_mul(SECTOR);
        sum = (sum.0.saturating_add(number(read)), sum.1.saturating_add(number(written)));
    }
    sum
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn rates_are_what_grew_between_two_looks() {
        let at = Instant::now();
        let counters = Counters { cpu_ms: Some(1_000), disk_read: Some(10), ..Counters::default() };
        let before = Look { at, counters, memory: Some(5), demand: None };
        let counters = Counters {
            cpu_ms: Some(4_000),
            disk_read: Some(4),
            net_sent: Some(9),
            waits_us: [None, Some(5), None],
            ..counters
        };
        let now =
            Look { at: at + Duration::from_secs(2), counters, memory: Some(7), demand: Some(3) };
        let values = values(&before, &now);
        assert_eq!(values[..3], [150.0, 7.0, 3.0], "1.5 processors");
        assert!(values[3].is_nan(), "a counter that ran backwards is another one");
        assert!(values[4..].iter().all(|it| it.is_nan()), "{values:?}");
    }

    #[test]
    fn a_wait_is_a_part_of_the_time() {
        let at = Instant::now();
        let look = |seconds: u64, waits: u64| Look {
            at: at + Duration::from_secs(seconds),
            counters: Counters { waits_us: [Some(waits), None, Some(0)], ..Counters::default() },
            memory: None,
            demand: None,
        };
        let of = |waits: u64| values(&look(0, 0), &look(1, waits));
        assert_eq!(of(250_000)[7], 25.0);
        assert_eq!(of(1_100_000)[7], 100.0);
        assert_eq!(of(0)[9], 0.0);
        assert!(of(0)[8].is_nan());
    }

    #[test]
    fn the_kernels_words_are_understood() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets\n    lo: 9 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n  eth0:  100 1 0 0 0 0 0 0 50 1 0 0 0 0 0 0\n tap0: 7 1 0 0 0 0 0 0 8 1 0 0 0 0 0 0\n";
        let traffic = Traffic::parse(text);
        assert_eq!(traffic.0.get("tap0"), Some(&(7, 8)));
        assert_eq!(traffic.host(|name| name == "eth0"), (100, 50));
        assert_eq!(traffic.host(|_| false), (107, 58));
        let pressure =
            "some avg10=0.00 avg60=0.00 avg300=0.00 total=123\nfull avg10=0.00 total=7\n";
        assert_eq!(wait_us(pressure), Some(123));
        assert_eq!(wait_us("nonsense"), None);
        let hundred = rustix::param::clock_ticks_per_second();
        assert_eq!(cpu_ms(&format!("cpu  {hundred} 0 0 99 99 0 0 0 5 0\ncpu0")), Some(1_000));
        assert_eq!(cpu_ms("cpu 1 2"), None);
        let disk =
            "8 0 sda 1 0 4 0 1 0 2 0 0\n8 1 sda1 1 0 4 0 1 0 2 0 0\n7 0 loop0 1 0 9 0 1 0 9 0 0\n";
        assert_eq!(disks(disk, |name| name != "sda1"), (2_048, 1_024));
        assert_eq!(field("rchar: 1\nread_bytes: 77\n", "read_bytes:"), Some(77));
    }

    #[test]
    fn this_process_and_this_host_can_be_looked_at() {
        let traffic = Traffic::read();
        let look = process(std::process::id(), &[], &traffic, None).unwrap();
        assert!(look.memory.unwrap() > 0 && look.counters.cpu_ms.is_some());
        assert_eq!(process(u32::MAX, &[], &traffic, None).map(|it| it.memory), None);
        let host = host(&traffic, 0);
        assert!(host.counters.cpu_ms.unwrap() > 0 && host.memory.unwrap() > 0);
    }
}
