//! Heartbeats on every cluster network: one thread sends and hears them.
//!
//! A thread of its own, before all others of the daemon: a daemon that is busy must not look dead.
//! It holds one socket for each address of this node; a heartbeat goes to those addresses of the
//! others that lie in the same network, so a path is one network (DESIGN.md section 5).

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use cluster::detect::Heard;
use cluster::detect::Path;
use model::ClusterState;
use model::NodeId;
use nix::ifaddrs::getifaddrs;
use peer::HEARTBEAT_BYTES_MAX;
use peer::Heartbeat;
use peer::HeartbeatKey;
use peer::PROBE_BYTES_MAX;
use peer::is_probe;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::event::poll;
use tokio::sync::watch;

use super::Watch;

/// How often a socket that could not be opened, and the addresses of interfaces, are looked at.
const REOPEN_EVERY: Duration = Duration::from_secs(5);

/// The longest datagram that is read.
const DATAGRAM_BYTES_MAX: usize = PROBE_BYTES_MAX;
const _: () = assert!(DATAGRAM_BYTES_MAX >= HEARTBEAT_BYTES_MAX, "heartbeats fit");

/// Probes that are answered between two heartbeats: two nodes that measure at once and then some.
/// Heartbeats must not wait for more.
const ANSWERS_MAX: u32 = 1_000;

/// How far before other threads this one goes: -20 is first.
const NICE: i32 = -15;

/// One address of this node.
struct Port {
    path: Path,
    address: SocketAddr,
    prefix: u8,
    socket: UdpSocket,
}

/// The thread.
pub(super) struct Pulse {
    pub(super) me: NodeId,
    /// Changes with each start of the daemon: when it started, in milliseconds.
    pub(super) incarnation: u64,
    pub(super) watch: Arc<Watch>,
    pub(super) states: watch::Receiver<Arc<ClusterState>>,
}

impl Pulse {
    /// Runs until the daemon ends.
    pub(super) fn run(mut self) {
        // Without the right to it, it goes on as it is.
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE);
        let mut ports: Vec<Port> = Vec::new();
        let mut reopen = Instant::now();
        let mut number = 0;
        while !self.watch.ended.load(Ordering::Relaxed) {
            let state = self.states.borrow_and_update().clone();
            let every = self.watch.settings().heartbeat_every;
            let next = Instant::now() + every;
            let key = state.cluster.as_ref().map(|it| HeartbeatKey::new(it.id, &it.ca_key));
            let Some(key) = key else {
                // Alone: nobody is there to hear it.
                ports.clear();
                std::thread::sleep(every);
                continue;
            };
            if Instant::now() >= reopen {
                self.open(&state, &mut ports);
                reopen = Instant::now() + REOPEN_EVERY;
            }
            number += 1;
            self.send(&state, &key, &ports, number);
            self.hear(&state, &key, &ports, next);
        }
    }

    /// Brings the sockets to what the state says of this node's addresses.
    fn open(&self, state: &ClusterState, ports: &mut Vec<Port>) {
        let Some(me) = state.nodes.get(&self.me) else { return };
        let wanted = &me.facts.addresses;
        ports.retain(|port| wanted.contains(&port.address));
        for (n, address) in wanted.iter().enumerate() {
            if ports.iter().any(|port| port.address == *address) {
                continue;
            }
            let Ok(n) = u8::try_from(n) else { break };
            match open(*address) {
                Ok(socket) => {
                    let prefix = prefix_of(address.ip());
                    ports.push(Port { path: Path(n), address: *address, prefix, socket });
                }
                Err(error) => {
                    tracing::warn!(%address, %error, "no heartbeats can be sent from this address");
                }
            }
        }
    }

    fn send(&self, state: &ClusterState, key: &HeartbeatKey, ports: &[Port], number: u64) {
        let hears = self.watch.hears();
        let heartbeat = Heartbeat { from: self.me, incarnation: self.incarnation, number, hears };
        let bytes = key.encode(&heartbeat);
        for node in state.nodes.values().filter(|node| node.id != self.me) {
            let addresses = &node.facts.addresses;
            let mut sent = BTreeSet::new();
            for port in ports {
                for to in addresses.iter().filter(|to| same_network(port, to)) {
                    sent.insert(*to);
                    // A full queue or a missing route is silence, and silence is what is watched.
                    let _ = port.socket.send_to(&bytes, to);
                }
            }
            // Addresses behind a router are reached by whatever way there is.
            if let Some(port) = ports.first() {
                for to in addresses.iter().filter(|to| !sent.contains(*to)) {
                    let _ = port.socket.send_to(&bytes, to);
                }
            }
        }
    }

    fn hear(&self, state: &ClusterState, key: &HeartbeatKey, ports: &[Port], until: Instant) {
        let mut bytes = [0; DATAGRAM_BYTES_MAX + 1];
        let mut answers = 0;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            if ports.is_empty() {
                std::thread::sleep(left);
                return;
            }
            let mut fds: Vec<_> =
                ports.iter().map(|port| PollFd::new(&port.socket, PollFlags::IN)).collect();
            let Ok(timeout) = Timespec::try_from(left) else { return };
            if poll(&mut fds, Some(&timeout)).is_err() {
                // Interrupted; the time that is left is looked at again.
                continue;
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            for (port, _) in ports.iter().zip(ready).filter(|(_, ready)| *ready) {
                while let Ok((count, from)) = port.socket.recv_from(&mut bytes) {
                    if is_probe(&bytes[..count]) {
                        if answers < ANSWERS_MAX {
                            answers += 1;
                            self.answer(state, key, port, &bytes[..count], from);
                        }
                    } else if let Ok(heartbeat) = key.decode(&bytes[..count]) {
                        self.watch.heard(port.path, heard(heartbeat));
                    }
                }
            }
        }
    }

    /// Answers a probe of a member, to an address of that member only.
    fn answer(
        &self,
        state: &ClusterState,
        key: &HeartbeatKey,
        port: &Port,
        bytes: &[u8],
        to: SocketAddr,
    ) {
        let is_of = |node: &NodeId| {
            let addresses = state.nodes.get(node).map(|node| &node.facts.addresses);
            addresses.is_some_and(|all| all.iter().any(|address| address.ip() == to.ip()))
        };
        if let Ok((node, answer)) = key.answer_probe(self.me, bytes)
            && is_of(&node)
        {
            // One that is lost is what the other side measures.
            let _ = port.socket.send_to(&answer, to);
        }
    }
}

fn heard(heartbeat: Heartbeat) -> Heard {
    let Heartbeat { from, incarnation, number, hears } = heartbeat;
    Heard { from, incarnation, number, hears }
}

fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn same_network(port: &Port, to: &SocketAddr) -> bool {
    shares_prefix(port.address.ip(), to.ip(), port.prefix)
}

/// Whether two addresses are equal in their first `prefix` bits.
pub(crate) fn shares_prefix(one: IpAddr, other: IpAddr, prefix: u8) -> bool {
    let (one, other, bits) = match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => {
            (u128::from(one.to_bits()) << 96, u128::from(other.to_bits()) << 96, 32)
        }
        (IpAddr::V6(one), IpAddr::V6(other)) => (one.to_bits(), other.to_bits(), 128),
        _ => return false,
    };
    let prefix = u32::from(prefix.min(bits));
    prefix == 0 || (one ^ other) >> (128 - prefix) == 0
}

/// How many bits of an address of this host name its network; all of them where that is not known.
pub(crate) fn prefix_of(address: IpAddr) -> u8 {
    let all = if address.is_ipv4() { 32 } else { 128 };
    let Ok(interfaces) = getifaddrs() else { return all };
    for interface in interfaces {
        let (Some(own), Some(mask)) = (interface.address, interface.netmask) else { continue };
        let bits = match address {
            IpAddr::V4(wanted) => own
                .as_sockaddr_in()
                .filter(|own| own.ip() == wanted)
                .and(mask.as_sockaddr_in())
                .map(|mask| mask.ip().to_bits().count_ones()),
            IpAddr::V6(wanted) => own
                .as_sockaddr_in6()
                .filter(|own| own.ip() == wanted)
                .and(mask.as_sockaddr_in6())
                .map(|mask| mask.ip().to_bits().count_ones()),
        };
        if let Some(bits) = bits {
            return u8::try_from(bits).unwrap_or(all);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_told_apart() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(shares_prefix(ip("10.90.1.11"), ip("10.90.1.12"), 24));
        assert!(!shares_prefix(ip("10.90.1.11"), ip("10.90.2.12"), 24));
        assert!(shares_prefix(ip("10.90.1.11"), ip("10.90.2.12"), 16));
        assert!(shares_prefix(ip("fd00::1"), ip("fd00::2"), 64));
        assert!(!shares_prefix(ip("fd00::1"), ip("fd00::2"), 128));
        assert!(!shares_prefix(ip("10.0.0.1"), ip("fd00::2"), 0));
        assert!(shares_prefix(ip("10.0.0.1"), ip("192.0.2.1"), 0));
    }

    #[test]
    fn the_network_of_an_own_address_is_known() {
        assert_eq!(prefix_of(ip_of_loopback()), 8);
        assert_eq!(prefix_of("192.0.2.77".parse().unwrap()), 32);
    }

    fn ip_of_loopback() -> IpAddr {
        "127.0.0.1".parse().unwrap()
    }
}
