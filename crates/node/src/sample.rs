//! Observations of processes and ports, taken now and then: processor time, memory, addresses.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use model::Bytes;
use model::EventKind;
use model::NicId;
use model::Severity;
use model::VmId;
use vm::guest::Heartbeat;

use crate::hub::Hub;
use crate::ledger::NodeLedger;
use crate::ports::SwitchPorts;

/// How often. Fifty VMs cost some 100 small reads, well under a thousandth of a processor.
const EVERY: Duration = Duration::from_secs(4);

/// What is seen of a VM's process.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ProcessSample {
    /// Processor time lately, in percent of one host processor.
    pub(crate) cpu_percent: u32,
    /// Memory that the process takes.
    pub(crate) resident: Bytes,
}

/// The last observations.
#[derive(Default)]
pub(crate) struct Samples {
    processes: Mutex<HashMap<VmId, ProcessSample>>,
    addresses: Mutex<HashMap<NicId, Vec<IpAddr>>>,
    taps: Mutex<HashMap<NicId, String>>,
}

impl Samples {
    pub(crate) fn process(&self, vm: VmId) -> ProcessSample {
        let processes = self.processes.lock().unwrap_or_else(PoisonError::into_inner);
        processes.get(&vm).copied().unwrap_or_default()
    }

    pub(crate) fn addresses(&self, nic: NicId) -> Vec<IpAddr> {
        let addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        addresses.get(&nic).cloned().unwrap_or_default()
    }

    /// Name of an adapter's device on this host, while there is one.
    pub(crate) fn tap(&self, nic: NicId) -> Option<String> {
        self.taps.lock().unwrap_or_else(PoisonError::into_inner).get(&nic).cloned()
    }

    /// Takes samples until the daemon ends.
    pub(crate) async fn follow(
        self: Arc<Self>,
        hub: Hub,
        ports: Arc<SwitchPorts>,
        ledger: Arc<NodeLedger>,
    ) {
        let mut last: HashMap<VmId, (Instant, Duration)> = HashMap::new();
        let mut beats: HashMap<VmId, Heartbeat> = HashMap::new();
        let mut timer = tokio::time::interval(EVERY);
        loop {
            timer.tick().await;
            let running = hub.running();
            let mut samples = HashMap::new();
            let mut next = HashMap::new();
            for (vm, pid) in &running {
                let Some((used, resident)) = read_process(*pid) else { continue };
                let now = Instant::now();
                let cpu_percent = last.get(vm).map_or(0, |(then, before)| {
                    let spent = used.saturating_sub(*before).as_millis();
                    let passed = now.duration_since(*then).as_millis().max(1);
                    u32::try_from(spent * 100 / passed).unwrap_or(u32::MAX)
                });
                samples.insert(*vm, ProcessSample { cpu_percent, resident });
                next.insert(*vm, (now, used));
            }
            last = next;
            beats = tell_heartbeats(&hub, &ledger, &running, &beats);
            *self.processes.lock().unwrap_or_else(PoisonError::into_inner) = samples;
            let mut addresses = HashMap::new();
            let mut taps = HashMap::new();
            if !running.is_empty() {
                for port in ports.observe().await {
                    let seen = port.addresses.iter().map(|seen| seen.address).collect();
                    addresses.insert(port.nic, seen);
                    taps.insert(port.nic, port.tap.to_string());
                }
            }
            *self.taps.lock().unwrap_or_else(PoisonError::into_inner) = taps;
            *self.addresses.lock().unwrap_or_else(PoisonError::into_inner) = addresses;
        }
    }
}

/// Tells of each guest whose heartbeat is not what it was; what all are now.
fn tell_heartbeats(
    hub: &Hub,
    ledger: &NodeLedger,
    running: &[(VmId, u32)],
    before: &HashMap<VmId, Heartbeat>,
) -> HashMap<VmId, Heartbeat> {
    let mut now = HashMap::new();
    for (vm, _) in running {
        let Some(guest) = hub.guest(*vm) else { continue };
        let beat = guest.status().borrow().heartbeat;
        now.insert(*vm, beat);
        let old = before.get(vm).copied().unwrap_or_default();
        if beat == old {
            continue;
        }
        let (severity, words) = match beat {
            Heartbeat::Ok => (Severity::Info, "the guest answers"),
            Heartbeat::NoContact => (Severity::Warning, "the guest has missed some heartbeats"),
            Heartbeat::Lost => (Severity::Error, "the guest has been silent for long"),
            Heartbeat::NotInstalled => (Severity::Info, "the guest has not answered yet"),
            Heartbeat::Off => (Severity::Info, "the heartbeat service is off"),
        };
        ledger.observe(*vm, EventKind::VmObserved, severity, words.to_owned());
    }
    now
}

/// Processor time and resident memory of a process (proc(5): `stat` fields 14 and 15, `statm`
/// field 2).
pub(crate) fn read_process(pid: u32) -> Option<(Duration, Bytes)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let ticks = rustix::param::clock_ticks_per_second().max(1);
    let used = Duration::from_millis((user + system).saturating_mul(1000) / ticks);
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    let page = rustix::param::page_size() as u64;
    Some((used, Bytes::new(pages.saturating_mul(page))))
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_has_used_some_memory() {
        let (_, resident) = super::read_process(std::process::id()).unwrap();
        assert!(resident.get() > 0);
    }
}
