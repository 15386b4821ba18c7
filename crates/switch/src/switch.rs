//! The handle through which everybody else uses the switch.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use model::MacAddr;
use model::NetworkId;
use model::NicId;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

use crate::desired::Desired;
use crate::host::Host;
use crate::host::HostError;
use crate::owner::Owner;
use crate::owner::Request;
use crate::plan::Counters;
use crate::refused::Refused;
use crate::tag::InstanceTag;
use crate::tag::LinkName;

/// Requests that wait for the owner. Callers wait for room: there is one caller per machine.
const QUEUE_MAX: usize = 64;

/// What a switch needs to know about its daemon.
#[derive(Debug, Clone)]
pub struct SwitchConfig {
    /// Tells this daemon's kernel objects from another's.
    pub tag: InstanceTag,
    /// The host's list of resolvers, normally `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
}

/// Handle to the task that owns this host's network. The task, and with it DHCP and DNS, ends when
/// the last handle goes; bridges, rules and machines' taps stay as they are.
#[derive(Clone)]
pub struct Switch {
    requests: mpsc::Sender<Request>,
}

/// The owner's task has ended; only a shutdown or a bug of ours does that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the switch has stopped; restart the daemon and look for a panic in its log")]
pub struct Stopped;

/// Outcome of one pass.
#[derive(Debug, Default)]
#[must_use]
pub struct Report {
    /// How many changes were made. Zero: everything was as it should be.
    pub changes: usize,
    /// Networks that cannot be had now.
    pub refused_networks: BTreeMap<NetworkId, Refused>,
    /// Ports that cannot be had now.
    pub refused_ports: BTreeMap<NicId, Refused>,
    /// NAT networks whose DHCP or DNS does not run, and why. The next pass tries again.
    pub without_service: BTreeMap<NetworkId, HostError>,
    /// What ended the pass early. The next pass tries again.
    pub failure: Option<ActionFailure>,
}

/// An action that failed, with its cause.
#[derive(Debug, thiserror::Error)]
#[error("the host's network is not as it should be: {action}")]
pub struct ActionFailure {
    /// What was tried.
    pub action: String,
    /// Why it failed.
    pub source: HostError,
}

/// Why a port could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// No such port in the desired state.
    #[error("NIC {0} has no port on this host; apply a desired state with it first")]
    Unknown(NicId),
    /// The port or its network cannot be had.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The host failed.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A change that the port needs failed.
    #[error(transparent)]
    Failed(#[from] ActionFailure),
    /// The switch has ended.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// What is seen of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortObservation {
    /// The NIC.
    pub nic: NicId,
    /// Name of its tap.
    pub tap: LinkName,
    /// Its hardware address; frames from any other are dropped.
    pub mac: MacAddr,
    /// Whether the tap exists and works.
    pub state: PortState,
    /// Addresses seen, without help from the guest, best source first.
    pub addresses: Vec<SeenAddress>,
    /// Traffic since the tap was made, from the guest's point of view.
    pub counters: Counters,
}

/// State of a port's tap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortState {
    /// No tap: the machine does not run.
    Absent,
    /// A tap that is down or on no bridge.
    Detached,
    /// A tap on its bridge, up.
    Attached,
}

/// An address of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenAddress {
    /// The address.
    pub address: IpAddr,
    /// How we know.
    pub source: AddressSource,
}

/// How an address became known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AddressSource {
    /// The guest took its DHCP lease.
    Lease,
    /// The guest announced it by ARP or IPv6 neighbour discovery.
    Announced,
    /// The host has spoken with it.
    Neighbour,
}

impl Report {
    /// Whether the host is as desired.
    pub fn is_clean(&self) -> bool {
        self.failure.is_none()
            && self.refused_networks.is_empty()
            && self.refused_ports.is_empty()
            && self.without_service.is_empty()
    }
}

impl Switch {
    /// Starts the owner on the running tokio runtime. Nothing is touched before the first `apply`.
    pub fn start(config: SwitchConfig, host: Arc<dyn Host>) -> Self {
        let (requests, inbox) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(Owner::new(config, host).run(inbox));
        Self { requests }
    }

    /// Takes over a desired state and brings the host there. Safe to repeat at any time.
    pub async fn apply(&self, desired: Desired) -> Result<Report, Stopped> {
        self.ask(|reply| Request::Apply { desired, reply }).await
    }

    /// Makes the tap of a NIC, with its rules in force, on its bridge and up. The tap lives as long
    /// as the descriptor (in whatever process) does; it has a virtio-net header (`IFF_VNET_HDR`).
    pub async fn open_port(&self, nic: NicId) -> Result<OwnedFd, PortError> {
        self.ask(|reply| Request::OpenPort { nic, reply }).await?
    }

    /// What is seen of all desired ports.
    pub async fn observe(&self) -> Result<Vec<PortObservation>, PortError> {
        Ok(self.ask(|reply| Request::Observe { reply }).await??)
    }

    /// Removes every kernel object of the instance and stops its servers.
    pub async fn remove_all(&self) -> Result<Report, Stopped> {
        self.apply(Desired::default()).await
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<T, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }
}
