//! Whether packets pass: one datagram from a socket in one node to a socket in another.
//!
//! The sockets are the lab's own, made by a thread that enters the node's network namespace, so
//! that neither a frozen nor a broken node matters: what is tried is the network.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use rustix::thread::LinkNameSpaceType;
use rustix::thread::move_into_link_name_space;
use serde::Serialize;

use crate::error::LabError;
use crate::layout::Lab;
use crate::names::NodeName;
use crate::names::Wire;
use crate::state::LabState;

/// How long a datagram that is to come is waited for: the machine may be very busy.
const PASS_LIMIT: Duration = Duration::from_secs(5);

/// How long one that must not come is waited for. The kernel hands it over in microseconds, or it
/// was dropped; several are sent in this time.
const QUIET: Duration = Duration::from_millis(300);

/// Pause between two datagrams.
const EVERY: Duration = Duration::from_millis(25);

/// A direction on a network, and whether packets pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Probe {
    /// The sender.
    pub from: NodeName,
    /// The receiver.
    pub to: NodeName,
    /// The network.
    pub wire: Wire,
    /// Whether packets pass.
    pub passes: bool,
}

/// A direction on a network.
pub(crate) type Way = (NodeName, NodeName, Wire);

impl Lab {
    /// Tries each way between all nodes that have power.
    ///
    /// # Errors
    /// The lab is not up; a socket cannot be made.
    pub fn probe(&self, wires: &[Wire]) -> Result<Vec<Probe>, LabError> {
        let state = self.up_state()?;
        let on: Vec<_> =
            state.nodes.iter().filter(|(_, it)| it.on).map(|(node, _)| *node).collect();
        let mut ways = Vec::new();
        for &wire in wires {
            for &from in &on {
                ways.extend(on.iter().filter(|to| **to != from).map(|to| (from, *to, wire)));
            }
        }
        self.try_ways(&state, &ways)
    }

    /// Tries ways, all at the same time, until each is as the state's faults say, or it is clear
    /// that it is not.
    pub(crate) fn try_ways(&self, state: &LabState, ways: &[Way]) -> Result<Vec<Probe>, LabError> {
        let mut lanes = Vec::new();
        let mut senders: BTreeMap<(NodeName, Wire), UdpSocket> = BTreeMap::new();
        for &(from, to, wire) in ways {
            let receiver = self.socket_in(to, state.net.of(wire, to))?;
            let address = receiver.local_addr().map_err(LabError::io("bind in", self.dir()))?;
            if let Entry::Vacant(free) = senders.entry((from, wire)) {
                free.insert(self.socket_in(from, state.net.of(wire, from))?);
            }
            let wanted = state.faults.lets_pass(from, to, wire);
            lanes.push(Lane { way: (from, to, wire), receiver, address, wanted, passes: false });
        }
        let started = Instant::now();
        loop {
            for lane in lanes.iter_mut().filter(|lane| !lane.passes) {
                let (from, _, wire) = lane.way;
                // A refusal is an answer, too: nothing comes.
                let _ = senders[&(from, wire)].send_to(b"muster lab", lane.address);
            }
            thread::sleep(EVERY);
            for lane in &mut lanes {
                lane.passes |= lane.receiver.recv(&mut [0; 16]).is_ok();
            }
            let all_came = lanes.iter().all(|lane| lane.passes || !lane.wanted);
            let waited = started.elapsed();
            if waited >= PASS_LIMIT || all_came && waited >= QUIET {
                break;
            }
        }
        Ok(lanes.iter().map(Lane::outcome).collect())
    }

    /// A socket in a node.
    fn socket_in(&self, node: NodeName, address: Ipv4Addr) -> Result<UdpSocket, LabError> {
        let path = self.node_ns(node, "net");
        let made = thread::scope(|scope| scope.spawn(|| bind_in(&path, address)).join());
        let made = made.unwrap_or_else(|_| Err(std::io::Error::other("a thread broke down")));
        made.map_err(LabError::io("make a socket in", &path))
    }
}

struct Lane {
    way: Way,
    receiver: UdpSocket,
    address: SocketAddr,
    wanted: bool,
    passes: bool,
}

impl Lane {
    fn outcome(&self) -> Probe {
        let (from, to, wire) = self.way;
        Probe { from, to, wire, passes: self.passes }
    }
}

/// To be called on a thread of its own, which stays in the namespace.
fn bind_in(net: &Path, address: Ipv4Addr) -> std::io::Result<UdpSocket> {
    let namespace = File::open(net)?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    let socket = UdpSocket::bind((address, 0))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
