//! Configuration of the daemon: a TOML file, overridden by the command line.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::UdpSocket;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use cluster::detect::Settings;
use cluster::lease::LeaseSettings;
use model::Ipv4Subnet;
use serde::Deserialize;

/// Where the peer port listens if nothing is said.
const PEER_PORT_ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 7444);

/// Where the packaged daemon finds its configuration.
pub const DEFAULT_FILE: &str = "/etc/muster/config.toml";

/// The watchdog that is used if it is there and no other is named.
const WATCHDOG_DEFAULT: &str = "/dev/watchdog";

/// Everything that can be set. Each field has a default, so an empty file is a valid one.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// State, images and VMs. Must be on a local file system.
    pub data_dir: PathBuf,
    /// Sockets and records of running machines; empty after a boot of the host.
    pub run_dir: PathBuf,
    /// The API's Unix socket; `api.sock` in the run directory where it is not set.
    pub socket: Option<PathBuf>,
    /// Group whose members may use the socket with the role operator. Root may do everything.
    pub operator_group: String,
    /// Group whose members may use the socket with the role administrator.
    pub admin_group: String,
    /// Address of the TLS port; none is no TLS port. Port 0 takes a free one.
    pub tls_listen: Option<SocketAddr>,
    /// Where the peer port listens, which opens when this host makes or joins a cluster.
    pub cluster_listen: SocketAddr,
    /// Addresses at which other nodes reach the peer port, one for each cluster network, the
    /// preferred one first. Where none is named: the one that `cluster_listen` names, or the one
    /// by which this host reaches others.
    pub cluster_addresses: Vec<SocketAddr>,
    /// How long a node must have been silent until its loss is taken for confirmed and its vote
    /// away, in seconds: longer than a restart of its daemon.
    pub cluster_lost_after_s: u64,
    /// Name of this node; the host's name where it is not set.
    pub node_name: Option<String>,
    /// Address range of the network `nat` that a new node begins with.
    pub nat_subnet: Ipv4Subnet,
    /// Whether this daemon makes networks on the host; without, adapters cannot be plugged in.
    pub networking: bool,
    /// The machine engine.
    pub engine: EngineKind,
    /// Path of the QEMU program; searched for where it is not set.
    pub qemu: Option<PathBuf>,
    /// The most that processors of machines get on this host: a CPU model of QEMU's, such as
    /// `Haswell-v4`, or `max` for all that it can give. Where it is not set: all of it under KVM,
    /// and the least model under emulation.
    pub guest_cpu: Option<String>,
    /// The newest version of machine types on this host, such as `10.0`; the newest that its QEMU
    /// knows where it is not set.
    pub guest_machine: Option<String>,
    /// Control group that was delegated to this daemon's machines, where relative a path from the v2
    /// mount; groups are made at the top of the mount where it is not set.
    pub control_group: Option<PathBuf>,
    /// Folders whose block devices are LUNs: each is named by a text file beside it, `NAME.wwid`, and where
    /// there is a socket `NAME.sock` it takes reservations. For SANs that are neither SCSI nor NVMe, such
    /// as that of `muster lab`. SCSI and NVMe devices with a WWID are found without it.
    pub disk_folders: Vec<PathBuf>,
    /// First host user id of machines: a VM's process runs as this plus its slot.
    pub uid_base: u32,
    /// How long a deleted VM stays in the recycle bin, in days.
    pub recycle_days: u64,
    /// After how many seconds without a key, a click or a touch a session of the web console ends;
    /// 0 is never. The same on all nodes.
    pub session_idle_s: u64,
    /// Host memory that VMs never get, in MiB.
    pub memory_reserve_mib: u64,
    /// How long a lease of a node lasts, in milliseconds, 2,000 to 120,000; the same on all nodes.
    pub lease_ms: u64,
    /// What the guard may need after the end of a lease until the last process is gone, in
    /// milliseconds, 1,000 to 300,000; the same on all nodes.
    pub guard_margin_ms: u64,
    /// When a lease is called over without proof, in milliseconds from the last possible grant; the
    /// least that is safe where it is not set.
    pub takeover_ms: Option<u64>,
    /// The watchdog of this host: a device, `none`, or where it is not set `/dev/watchdog` if there
    /// is one.
    pub watchdog: Option<PathBuf>,
    /// The longest time to set the watchdog to, in whole seconds, 2 to 60.
    pub watchdog_s: u64,
    /// How often a heartbeat goes to the other nodes on each cluster network, in milliseconds, 50
    /// to 5000.
    pub heartbeat_ms: u64,
    /// Silence on all networks after which a node is looked at, in milliseconds; at least three
    /// heartbeats.
    pub silent_ms: u64,
    /// How often this node beats on each shared volume, in milliseconds.
    pub beat_ms: u64,
    /// Silence on the volumes after which a node that is silent on the networks is dead, in
    /// milliseconds; at least two beats.
    pub beatless_ms: u64,
    /// How long a node that is only cut off keeps its VMs, in seconds, where a fence device must
    /// be asked before they are started elsewhere.
    pub resiliency_s: u64,
}

/// Which machine engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineKind {
    /// Real machines.
    Qemu,
    /// Machines that only pretend: for measuring and trying the control plane with thousands.
    Fake,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("/var/lib/muster"),
            run_dir: PathBuf::from("/run/muster"),
            socket: None,
            operator_group: "muster".to_owned(),
            admin_group: "muster-admin".to_owned(),
            tls_listen: None,
            cluster_listen: PEER_PORT_ANY,
            cluster_addresses: Vec::new(),
            cluster_lost_after_s: 30,
            node_name: None,
            nat_subnet: "10.77.0.0/24".parse().expect("a constant that a test checks"),
            networking: true,
            engine: EngineKind::Qemu,
            qemu: None,
            guest_cpu: None,
            guest_machine: None,
            control_group: None,
            disk_folders: Vec::new(),
            uid_base: 2_000_000_000,
            recycle_days: 7,
            session_idle_s: 30 * 60,
            memory_reserve_mib: 512,
            lease_ms: 10_000,
            guard_margin_ms: 10_000,
            takeover_ms: None,
            watchdog: None,
            watchdog_s: 15,
            heartbeat_ms: 200,
            silent_ms: 1_000,
            beat_ms: 500,
            beatless_ms: 1_500,
            resiliency_s: 240,
        }
    }
}

impl Config {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// The file cannot be read, or has a line that is not understood; the message names it.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("the configuration {} cannot be read", path.display()))?;
        toml::from_str(&text).with_context(|| format!("in the configuration {}", path.display()))
    }

    /// Reads the packaged configuration file if there is one, else takes the defaults.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn read_default() -> anyhow::Result<Self> {
        let path = Path::new(DEFAULT_FILE);
        if path.exists() { Self::read(path) } else { Ok(Self::default()) }
    }

    /// Addresses that others are told for the peer port; none if that cannot be known.
    pub fn peer_addresses(&self) -> Vec<SocketAddr> {
        if !self.cluster_addresses.is_empty() {
            return self.cluster_addresses.clone();
        }
        if !self.cluster_listen.ip().is_unspecified() {
            return vec![self.cluster_listen];
        }
        // No packet is sent: the kernel tells which of its addresses it would use for the world.
        let outward = || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
            socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
            Some(SocketAddr::new(socket.local_addr().ok()?.ip(), self.cluster_listen.port()))
        };
        outward().into_iter().collect()
    }

    /// The settings of the lease.
    pub fn lease_settings(&self) -> LeaseSettings {
        LeaseSettings {
            lease: Duration::from_millis(self.lease_ms),
            guard_margin: Duration::from_millis(self.guard_margin_ms),
            takeover: self.takeover_ms.map(Duration::from_millis),
        }
    }

    /// When silence of a node means something.
    pub fn detect_settings(&self) -> Settings {
        Settings {
            heartbeat_every: Duration::from_millis(self.heartbeat_ms),
            silent_after: Duration::from_millis(self.silent_ms),
            beat_every: Duration::from_millis(self.beat_ms),
            beatless_after: Duration::from_millis(self.beatless_ms),
            resiliency: Duration::from_secs(self.resiliency_s),
        }
    }

    /// The watchdog device and its time, where there is one.
    pub fn watchdog(&self) -> Option<(PathBuf, Duration)> {
        let path = match &self.watchdog {
            Some(path) if path.as_os_str() == "none" => return None,
            Some(path) => path.clone(),
            None => PathBuf::from(WATCHDOG_DEFAULT),
        };
        let wanted = self.watchdog.is_some() || path.exists();
        wanted.then_some((path, Duration::from_secs(self.watchdog_s)))
    }

    /// The API's Unix socket.
    pub fn socket_path(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| self.run_dir.join("api.sock"))
    }
}

#[cfg(test)]
mod tests {
    use super::Config;

    #[test]
    fn an_empty_file_is_the_default() {
        let config: Config = toml::from_str("").unwrap();
        assert_eq!(config.nat_subnet.to_string(), "10.77.0.0/24");
    }

    #[test]
    fn a_misspelt_key_is_named() {
        let error = toml::from_str::<Config>("data_dirr = '/x'").unwrap_err().to_string();
        assert!(error.contains("data_dirr"), "{error}");
    }
}
