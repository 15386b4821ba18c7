//! DHCP and DNS of one NAT network: three tasks that read the current names and leases.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use model::Ipv4Subnet;
use model::MacAddr;
use model::Name;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::desired::Desired;
use crate::desired::NetworkSpec;
use crate::dhcp;
use crate::dhcp::Lease;
use crate::dhcp::Leases;
use crate::dhcp::Taken;
use crate::dns;
use crate::dns::Upstreams;
use crate::dns::Zone;
use crate::host::DnsSockets;
use crate::host::HostError;
use crate::host::ServiceSockets;

/// The running servers of a network. Dropping it ends them.
pub(crate) struct Service {
    subnet: Ipv4Subnet,
    leases: watch::Sender<Arc<Leases>>,
    zone: watch::Sender<Arc<Zone>>,
    taken: Taken,
    whole: bool,
    tasks: JoinSet<()>,
}

impl Service {
    /// Starts the servers on open sockets. The error tells why the resolver does not run.
    pub(crate) fn start(
        sockets: ServiceSockets,
        network: &NetworkSpec,
        subnet: Ipv4Subnet,
        desired: &Desired,
        upstreams: &Arc<Upstreams>,
    ) -> (Self, Option<HostError>) {
        let (leases, leases_now) = watch::channel(Arc::new(leases(network, subnet, desired)));
        let (zone, _) = watch::channel(Arc::new(zone(network, subnet, desired)));
        let taken: Taken = Arc::new(Mutex::new(BTreeMap::new()));
        let mut tasks = JoinSet::new();
        let name = network.name.to_string();
        tasks.spawn(dhcp::serve(sockets.dhcp, name, leases_now, Arc::clone(&taken)));
        let dns = sockets.dns.map(|DnsSockets { udp, tcp }| {
            let zone = zone.subscribe();
            tasks.spawn(dns::serve_udp(udp, zone.clone(), Arc::clone(upstreams)));
            tasks.spawn(dns::serve_tcp(tcp, zone, Arc::clone(upstreams)));
        });
        (Self { subnet, leases, zone, taken, whole: dns.is_ok(), tasks }, dns.err())
    }

    /// Whether every server runs. One that could not get its port is tried again in the next pass.
    pub(crate) fn is_whole(&self) -> bool {
        self.whole
    }

    /// Whether it still serves this subnet with all its tasks.
    pub(crate) fn serves(&mut self, subnet: Ipv4Subnet) -> bool {
        // The servers never end by themselves: one that has ended has panicked.
        self.subnet == subnet && self.tasks.try_join_next().is_none()
    }

    /// Ends the servers; their ports are free when this returns.
    pub(crate) async fn stop(mut self) {
        self.tasks.shutdown().await;
    }

    /// Takes over changed names and leases.
    pub(crate) fn update(&self, network: &NetworkSpec, desired: &Desired) {
        let leases = leases(network, self.subnet, desired);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.retain(|mac, address| {
            leases.by_mac.get(mac).is_some_and(|lease| lease.address == *address)
        });
        self.leases.send_replace(Arc::new(leases));
        self.zone.send_replace(Arc::new(zone(network, self.subnet, desired)));
    }

    /// The lease that a client has taken.
    pub(crate) fn taken(&self, mac: MacAddr) -> Option<Ipv4Addr> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).get(&mac).copied()
    }
}

fn leases(network: &NetworkSpec, subnet: Ipv4Subnet, desired: &Desired) -> Leases {
    let by_mac = desired
        .ports
        .iter()
        .filter(|port| port.network == network.id)
        .filter_map(|port| {
            let address = port.address.filter(|address| subnet.contains(*address))?;
            Some((port.mac, Lease { address, hostname: hostname(&port.vm) }))
        })
        .collect();
    Leases { subnet, domain: dns::DOMAIN.to_owned(), mtu: network.mtu, by_mac }
}

fn zone(network: &NetworkSpec, subnet: Ipv4Subnet, desired: &Desired) -> Zone {
    let mut names: BTreeMap<String, Vec<Ipv4Addr>> = BTreeMap::new();
    for port in desired.ports.iter().filter(|port| port.network == network.id) {
        let Some(address) = port.address.filter(|address| subnet.contains(*address)) else {
            continue;
        };
        let (name, host) = (port.vm.key(), hostname(&port.vm));
        if host != name {
            names.entry(host).or_default().push(address);
        }
        names.entry(name).or_default().push(address);
    }
    Zone { subnet, names }
}

/// A machine's name as a host name, in which `_` may not stand (RFC 1123).
fn hostname(name: &Name) -> String {
    name.key().replace('_', "-")
}
