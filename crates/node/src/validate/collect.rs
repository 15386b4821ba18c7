//! Gathers the facts of this node, part by part. Nothing is changed by it, but for files of a moment.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use api::types::Accelerator;
use cluster::fence::Action;
use cluster::fence::Outcome;
use cluster::witness::probe::probe;
use futures::future::join_all;
use model::ClusterState;
use model::FenceDevice;
use model::NodeId;
use model::VolumeRecord;
use nix::ifaddrs::getifaddrs;
use peer::HeartbeatKey;
use vm::engine::Accel;

use super::disk;
use super::facts::AddressFacts;
use super::facts::Answer;
use super::facts::CpuFacts;
use super::facts::DiskFacts;
use super::facts::FenceFacts;
use super::facts::FenceSays;
use super::facts::GuardFacts;
use super::facts::HostFacts;
use super::facts::LinkFacts;
use super::facts::Part;
use super::facts::VolumeFacts;
use super::measure;
use crate::app::App;
use crate::app::now;
use crate::cluster::witness;
use crate::host;
use crate::platform;
use crate::volumes;

/// Files by which services that set the clock are known while they do.
const TIME_SERVICES: [(&str, &str); 4] = [
    ("systemd-timesyncd", "/run/systemd/timesync/synchronized"),
    ("chrony", "/run/chrony/chronyd.pid"),
    ("ntpsec", "/run/ntpd.pid"),
    ("ptp4l", "/run/ptp4l"),
];

/// Gathers a part; what is not known when `limit` is over is told so.
pub(super) async fn gather(app: &Arc<App>, part: Part, limit: Duration) -> Answer {
    let until = Instant::now() + limit;
    match part {
        Part::Clock => Answer::Clock(now()),
        Part::Host => Answer::Host(Box::new(host_facts(app).await)),
        Part::Disks => Answer::Disks(disks(app).await),
        Part::Links => Answer::Links(links(app, until).await),
        Part::Fence => Answer::Fence(fence(app, limit).await),
        Part::Witness => Answer::Witness(try_witness(app, limit).await),
    }
}

pub(super) async fn host_facts(app: &Arc<App>) -> HostFacts {
    let state = app.truth.state();
    let ability = app.ability().await;
    let (ability, engine_problem) = match ability {
        Ok(ability) => (Some(ability), None),
        Err(error) => (None, Some(crate::ports::chain(&error))),
    };
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let addresses = match state.nodes.get(&app.node) {
        Some(node) if state.cluster.is_some() => node.facts.addresses.clone(),
        _ => Vec::new(),
    };
    HostFacts {
        muster: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        qemu: ability.as_ref().map(|it| it.engine.clone()),
        engine_problem,
        accelerator: ability.as_ref().map(|it| match it.accel {
            Accel::Kvm => Accelerator::Kvm,
            Accel::Tcg => Accelerator::Tcg,
        }),
        accelerator_reason: ability.as_ref().map(|it| it.accel_reason.clone()).unwrap_or_default(),
        cpu: cpu(&cpuinfo),
        platform: ability.as_ref().and_then(platform::of),
        memory: host::memory().total,
        addresses: addresses.into_iter().map(address).collect(),
        guard: guard(app),
        time_service: TIME_SERVICES
            .iter()
            .find(|(_, file)| Path::new(file).exists())
            .map(|(name, _)| (*name).to_owned()),
        missing_limits: ability.map(|it| it.missing_limits).unwrap_or_default(),
        volumes: volume_facts(&state).await,
    }
}

/// Reads `/proc/cpuinfo`: of the first processor, with only those features that all have.
pub(super) fn cpu(text: &str) -> CpuFacts {
    let field = |names: &[&str]| {
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| names.contains(&name.trim()))
            .map(|(_, value)| value.trim().to_owned())
            .unwrap_or_default()
    };
    let mut features: Option<std::collections::BTreeSet<String>> = None;
    for line in text.lines() {
        let Some((name, value)) = line.split_once(':') else { continue };
        if !matches!(name.trim(), "flags" | "Features") {
            continue;
        }
        let these = value.split_whitespace();
        features = Some(match features {
            None => these.map(str::to_owned).collect(),
            Some(known) => these.filter(|it| known.contains(*it)).map(str::to_owned).collect(),
        });
    }
    CpuFacts {
        vendor: field(&["vendor_id", "CPU implementer"]),
        model: field(&["model name", "CPU part"]),
        features: features.unwrap_or_default(),
    }
}

/// The device that has an address.
pub(super) fn address(address: std::net::SocketAddr) -> AddressFacts {
    let ip = address.ip();
    let mut device = None;
    for interface in getifaddrs().into_iter().flatten() {
        let Some(own) = interface.address else { continue };
        let is_it = match ip {
            std::net::IpAddr::V4(ip) => own.as_sockaddr_in().is_some_and(|own| own.ip() == ip),
            std::net::IpAddr::V6(ip) => own.as_sockaddr_in6().is_some_and(|own| own.ip() == ip),
        };
        if is_it {
            device = Some(interface.interface_name);
            break;
        }
    }
    if device.is_none() && ip.is_loopback() {
        device = Some("lo".to_owned());
    }
    let prefix = device.as_ref().map(|_| measure::network_of(ip));
    AddressFacts { address, device, prefix }
}

fn guard(app: &App) -> GuardFacts {
    let lease = app.fencing.lease.borrow().clone();
    GuardFacts {
        alone: lease.alone.is_some(),
        answers: lease.guard.is_some(),
        watchdog: lease.guard.as_ref().is_some_and(|guard| guard.watchdog_ms > 0),
        problem: lease.guard.and_then(|guard| guard.problem).or(lease.trouble),
    }
}

/// Runs something that may hang with a file system away from the tasks of the daemon.
async fn apart<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    tokio::time::timeout(limit, tokio::task::spawn_blocking(work)).await.ok()?.ok()
}

/// How long a file system may take: a healthy one needs a fraction of a second.
const STORAGE_LIMIT: Duration = Duration::from_secs(15);

async fn volume_facts(state: &ClusterState) -> Vec<VolumeFacts> {
    let shares = state.volumes.values().filter(|it| it.coordination.is_none());
    join_all(shares.map(|record| volume(record.clone()))).await
}

async fn volume(record: Arc<VolumeRecord>) -> VolumeFacts {
    let volume = record.id;
    let checked =
        apart(STORAGE_LIMIT, move || volumes::check(&record).err().map(|error| error.to_string()));
    let problem = checked.await.unwrap_or_else(|| Some(hangs()));
    VolumeFacts { volume, problem }
}

fn hangs() -> String {
    format!("it does not answer within {} s", STORAGE_LIMIT.as_secs())
}

/// One place after the other: they may share a disk.
pub(super) async fn disks(app: &App) -> Vec<DiskFacts> {
    let state = app.truth.state();
    let mut places = vec![(None, app.config.data_dir.clone())];
    let usable = |volume: &&Arc<VolumeRecord>| volumes::check(volume).is_ok();
    let checked = state.clone();
    // Looked at apart, since a mount may hang.
    let shares = apart(STORAGE_LIMIT, move || {
        let usable = checked.volumes.values().filter(usable);
        usable.map(|it| (Some(it.id), PathBuf::from(it.kind.path()))).collect::<Vec<_>>()
    });
    places.extend(shares.await.unwrap_or_default());
    let mut facts = Vec::new();
    for (volume, path) in places {
        let shown = path.display().to_string();
        let looked = apart(STORAGE_LIMIT, move || disk::look(volume, &path)).await;
        facts.push(looked.unwrap_or_else(|| DiskFacts {
            volume,
            path: shown,
            problem: Some(hangs()),
            ..DiskFacts::default()
        }));
    }
    facts
}

async fn links(app: &App, until: Instant) -> Vec<LinkFacts> {
    let state = app.truth.state();
    let Some(cluster) = state.cluster.clone() else { return Vec::new() };
    let me = app.node;
    let measured = tokio::task::spawn_blocking(move || {
        let key = HeartbeatKey::new(cluster.id, &cluster.ca_key);
        let ways = measure::ways(&state, me);
        // What does not fit into the time is not measured, and the rules say so.
        let measured = ways.iter().take_while(|_| Instant::now() < until);
        measured.map(|way| measure::measure(&key, me, way, until)).collect()
    });
    measured.await.unwrap_or_default()
}

/// Asks each device for the power of each of its nodes; devices at once, the nodes of one device one
/// after the other, since many devices take one session at a time.
async fn fence(app: &Arc<App>, limit: Duration) -> Vec<FenceFacts> {
    let state = app.truth.state();
    let until = tokio::time::Instant::now() + limit;
    let asked = state.fence_devices.values().map(|device| ask_device(app, device, until));
    join_all(asked).await.into_iter().flatten().collect()
}

async fn ask_device(
    app: &App,
    device: &FenceDevice,
    until: tokio::time::Instant,
) -> Vec<FenceFacts> {
    let mut said = Vec::new();
    let nodes: &BTreeMap<NodeId, Option<String>> = &device.nodes;
    for (node, plug) in nodes {
        let asked = app.fencing.agents.call(device, plug.as_deref(), Action::Status);
        let says = match tokio::time::timeout_at(until, asked).await {
            Err(_) => FenceSays::Failed("there was no answer in the time for this check".into()),
            Ok(called) => match called.outcome {
                Outcome::Done => FenceSays::On,
                Outcome::IsOff => FenceSays::Off,
                Outcome::Failed => FenceSays::Failed(failure(&called.output)),
                Outcome::Late => {
                    FenceSays::Failed(format!("it took more than {} s", device.timeout_s))
                }
                Outcome::NotStarted(why) => FenceSays::Failed(why),
            },
        };
        said.push(FenceFacts { device: device.id, node: *node, says });
    }
    said
}

/// The last line of what a program printed.
fn failure(output: &str) -> String {
    let last = output.lines().rev().find(|line| !line.trim().is_empty());
    last.map_or_else(|| "it failed and said nothing".to_owned(), |line| line.trim().to_owned())
}

/// Tries the witness out as is done before it is first used.
async fn try_witness(app: &App, limit: Duration) -> Option<String> {
    let state = app.truth.state();
    let record = state.witness.as_ref()?;
    let store = match witness::open(&record.place, record.id, app.node) {
        Ok(store) => store,
        Err(why) => return Some(why),
    };
    match tokio::time::timeout(limit, probe(&*store)).await {
        Ok(Ok(())) => {}
        Ok(Err(unfit)) => return Some(unfit.to_string()),
        Err(_) => return Some(format!("it does not answer within {} s", limit.as_secs())),
    }
    match app.witness.condition(record.id) {
        witness::Condition::Refused(why) | witness::Condition::Away(why) => Some(why),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_read_in_the_words_of_each_architecture() {
        let x86 = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Xeon\n\
                   flags\t\t: fpu vme avx\n\nprocessor\t: 1\nflags\t\t: fpu avx sse\n";
        let facts = cpu(x86);
        assert_eq!((facts.vendor.as_str(), facts.model.as_str()), ("GenuineIntel", "Xeon"));
        // Only what all processors have can be promised.
        assert_eq!(facts.features.into_iter().collect::<Vec<_>>(), ["avx", "fpu"]);
        let arm = "processor\t: 0\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\n";
        assert_eq!(cpu(arm).vendor, "0x41");
        assert_eq!(cpu(""), CpuFacts::default());
    }

    #[test]
    fn this_host_is_known() {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        assert!(!cpu(&text).features.is_empty());
        let here = address("127.0.0.1:7444".parse().unwrap());
        assert_eq!((here.device.as_deref(), here.prefix), (Some("lo"), Some(8)));
        let elsewhere = address("192.0.2.77:7444".parse().unwrap());
        assert_eq!((elsewhere.device, elsewhere.prefix), (None, None));
    }

    #[test]
    fn the_last_words_of_a_program_are_its_reason() {
        assert_eq!(failure("trying\nFailed: no route\n\n"), "Failed: no route");
        assert!(failure(" \n").contains("said nothing"));
    }
}
