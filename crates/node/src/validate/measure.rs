//! Measures the ways from this node to the others: round trips and the largest packet that arrives.
//!
//! Probes go from a socket of their own to the other's heartbeat port, with the mark that no router
//! may cut them up. Answers are small, so a size is measured for the way there; the way back is
//! measured by the other node.

use std::io;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::UdpSocket;
use std::time::Duration;
use std::time::Instant;

use model::ClusterState;
use model::NodeId;
use peer::HeartbeatKey;
use peer::PROBE_BYTES_MAX;
use peer::PROBE_BYTES_MIN;
use peer::Probe;
use rustix::net::sockopt;
use rustix::net::sockopt::Ipv4PathMtuDiscovery;
use rustix::net::sockopt::Ipv6PathMtuDiscovery;

use super::disk::percentile;
use super::facts::LinkFacts;
use crate::ha::pulse::prefix_of;
use crate::ha::pulse::shares_prefix;

/// Messages that are measured on each way.
const MESSAGES: u32 = 60;

/// Pause between two of them: bursts would measure queues of our own making.
const PAUSE: Duration = Duration::from_millis(2);

/// How long an answer is waited for: as long as a node may be silent before others look at it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Messages without any answer after which a way is given up.
const GIVE_UP: u32 = 3;

/// How long the answer to a packet of some size is waited for at least, once answers are known to
/// come. Each loss of the search below costs this.
const SIZE_PATIENCE: Duration = Duration::from_millis(200);

/// How often a size is tried before it is called too large: one packet may be lost by chance.
const SIZE_TRIES: u32 = 3;

/// Connections that are made to measure the way of a host that is no member yet.
const CONNECTIONS: u32 = 5;

/// How long a connection may take: a lost packet is sent again after one second.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);

/// Headers before our bytes: IP without options, and UDP.
const HEADERS_V4: usize = 28;
const HEADERS_V6: usize = 48;

/// A way to another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Way {
    to: NodeId,
    from: IpAddr,
    target: SocketAddr,
    prefix: u8,
}

/// The ways of a node to the others: one for each network that it shares with them, else the one
/// that the preferred addresses make. The first one is another for each node, so that not all
/// measure to the same one at once.
pub(super) fn ways(state: &ClusterState, me: NodeId) -> Vec<Way> {
    let own: Vec<(IpAddr, u8)> = state
        .nodes
        .get(&me)
        .map(|node| node.facts.addresses.iter().map(|it| (it.ip(), network_of(it.ip()))).collect())
        .unwrap_or_default();
    let Some((preferred, prefix)) = own.first().copied() else { return Vec::new() };
    let after = state.nodes.values().filter(|node| node.id > me);
    let before = state.nodes.values().filter(|node| node.id < me);
    let mut ways = Vec::new();
    for node in after.chain(before) {
        let begun = ways.len();
        for target in &node.facts.addresses {
            let shared = own.iter().find(|(own, prefix)| shares_prefix(*own, target.ip(), *prefix));
            if let Some((from, prefix)) = shared.copied() {
                ways.push(Way { to: node.id, from, target: *target, prefix });
            }
        }
        if let (true, Some(target)) = (ways.len() == begun, node.facts.addresses.first()) {
            ways.push(Way { to: node.id, from: preferred, target: *target, prefix });
        }
    }
    ways
}

/// How many bits of an own address name its network.
pub(super) fn network_of(address: IpAddr) -> u8 {
    // All of 127.0.0.0/8 is this host's, whether a device names the address or not.
    match address {
        IpAddr::V4(own) if own.is_loopback() => 8,
        other => prefix_of(other),
    }
}

/// The way from this host to another's address before they share a key: connections are made to
/// its peer port, which takes one round trip each. How large a packet fits cannot be seen so.
pub(super) async fn connect(to: NodeId, target: SocketAddr, own: &[SocketAddr]) -> LinkFacts {
    let shared = own.iter().map(|own| (own.ip(), network_of(own.ip())));
    let shared: Vec<_> = shared.collect();
    let on = shared.iter().find(|(own, prefix)| shares_prefix(*own, target.ip(), *prefix));
    let (from, prefix) = on.or(shared.first()).copied().unwrap_or((target.ip(), 32));
    let mut facts = LinkFacts::begun(to, from, target.ip(), prefix);
    let mut took = Vec::new();
    while facts.sent < CONNECTIONS && (facts.answered > 0 || facts.sent == 0) {
        facts.sent += 1;
        let sent = Instant::now();
        let made = tokio::time::timeout(CONNECT_PATIENCE, tokio::net::TcpStream::connect(target));
        match made.await {
            Ok(Ok(_)) => {
                facts.answered += 1;
                took.push(u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX));
            }
            Ok(Err(error)) => facts.problem = Some(error.to_string()),
            Err(_) => {}
        }
    }
    summarize(&took, &mut facts);
    facts
}

/// How an attempt to get one answer ended.
enum Tried {
    Answered(Duration),
    /// Nothing came, and why if that is known.
    Lost(Option<io::Error>),
    /// The own device does not take a packet of that size.
    TooLarge,
}

struct Prober<'a> {
    key: &'a HeartbeatKey,
    me: NodeId,
    to: NodeId,
    socket: UdpSocket,
    headers: usize,
    stranger: Option<NodeId>,
}

/// Measures one way. It blocks, at most until shortly after `until`.
pub(super) fn measure(key: &HeartbeatKey, me: NodeId, way: &Way, until: Instant) -> LinkFacts {
    let mut facts = LinkFacts::begun(way.to, way.from, way.target.ip(), way.prefix);
    let mut prober = match Prober::open(key, me, way) {
        Ok(prober) => prober,
        Err(error) => {
            facts.problem = Some(error.to_string());
            return facts;
        }
    };
    facts.mtu = prober.device_mtu();
    let took = prober.round_trips(&mut facts, until);
    if !took.is_empty() {
        summarize(&took, &mut facts);
        let patience = SIZE_PATIENCE.max(Duration::from_micros(facts.p99_us.saturating_mul(4)));
        facts.passed = prober.largest(facts.mtu, patience.min(PATIENCE), until);
    }
    facts.stranger = prober.stranger;
    facts
}

/// Puts round trips, in microseconds and in their order, together.
fn summarize(took: &[u64], facts: &mut LinkFacts) {
    let differences: u64 = took.windows(2).map(|two| two[0].abs_diff(two[1])).sum();
    let pairs = u64::try_from(took.len().saturating_sub(1)).unwrap_or(u64::MAX);
    facts.jitter_us = differences.checked_div(pairs).unwrap_or_default();
    let mut sorted = took.to_vec();
    sorted.sort_unstable();
    facts.min_us = sorted.first().copied().unwrap_or_default();
    facts.median_us = percentile(&sorted, 50);
    facts.p99_us = percentile(&sorted, 99);
}

impl<'a> Prober<'a> {
    fn open(key: &'a HeartbeatKey, me: NodeId, way: &Way) -> io::Result<Self> {
        let socket = UdpSocket::bind((way.from, 0))?;
        let headers = if way.from.is_ipv4() {
            sockopt::set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?;
            HEADERS_V4
        } else {
            sockopt::set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE)?;
            HEADERS_V6
        };
        // From now on nothing comes in from anywhere else.
        socket.connect(way.target)?;
        Ok(Self { key, me, to: way.to, socket, headers, stranger: None })
    }

    fn device_mtu(&self) -> u32 {
        let mtu = if self.headers == HEADERS_V4 {
            sockopt::ip_mtu(&self.socket)
        } else {
            sockopt::ipv6_mtu(&self.socket)
        };
        mtu.unwrap_or_default()
    }

    /// One question of a size, and its answer.
    fn ask(&mut self, bytes: usize, patience: Duration) -> Tried {
        let number = random();
        let question = Probe { from: self.me, number, answers: None };
        let packet = self.key.encode_probe(&question, bytes);
        let sent = Instant::now();
        match self.socket.send(&packet) {
            Ok(_) => {}
            Err(error)
                if error.raw_os_error() == Some(rustix::io::Errno::MSGSIZE.raw_os_error()) =>
            {
                return Tried::TooLarge;
            }
            Err(error) => return Tried::Lost(Some(error)),
        }
        let mut answer = [0; PROBE_BYTES_MIN + 1];
        loop {
            let left = patience.saturating_sub(sent.elapsed());
            // Zero would mean no limit.
            if left.is_zero() || self.socket.set_read_timeout(Some(left)).is_err() {
                return Tried::Lost(None);
            }
            let count = match self.socket.recv(&mut answer) {
                Ok(count) => count,
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => return Tried::Lost(None),
                    ErrorKind::Interrupted => continue,
                    _ => return Tried::Lost(Some(error)),
                },
            };
            let Ok(probe) = self.key.decode_probe(&answer[..count]) else { continue };
            if probe.number != number || probe.answers.map(usize::from) != Some(packet.len()) {
                continue;
            }
            if probe.from != self.to {
                self.stranger = Some(probe.from);
            }
            return Tried::Answered(sent.elapsed());
        }
    }

    /// Round trips in microseconds, in their order; what was sent and answered goes to the facts.
    fn round_trips(&mut self, facts: &mut LinkFacts, until: Instant) -> Vec<u64> {
        let mut took = Vec::new();
        // The first one finds the neighbour's address; that is not what is measured.
        let _ = self.ask(PROBE_BYTES_MIN, PATIENCE);
        while facts.sent < MESSAGES && Instant::now() < until {
            facts.sent += 1;
            match self.ask(PROBE_BYTES_MIN, PATIENCE) {
                Tried::Answered(time) => {
                    facts.answered += 1;
                    took.push(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
                }
                Tried::Lost(Some(error)) => facts.problem = Some(error.to_string()),
                Tried::Lost(None) | Tried::TooLarge => {}
            }
            if facts.answered == 0 && facts.sent >= GIVE_UP {
                break;
            }
            std::thread::sleep(PAUSE);
        }
        took
    }

    /// The largest packet, with headers, that arrives in one piece.
    fn largest(&mut self, mtu: u32, patience: Duration, until: Instant) -> Option<u32> {
        let bytes = usize::try_from(mtu).ok()?.checked_sub(self.headers)?;
        let most = bytes.clamp(PROBE_BYTES_MIN, PROBE_BYTES_MAX);
        if self.passes(most, patience) {
            return u32::try_from(most + self.headers).ok();
        }
        // The smallest size passes, else there were no round trips.
        let (mut good, mut bad) = (PROBE_BYTES_MIN, most);
        while bad - good > 1 && Instant::now() < until {
            let middle = good + (bad - good) / 2;
            if self.passes(middle, patience) {
                good = middle;
            } else {
                bad = middle;
            }
        }
        u32::try_from(good + self.headers).ok()
    }

    fn passes(&mut self, bytes: usize, patience: Duration) -> bool {
        for _ in 0..SIZE_TRIES {
            match self.ask(bytes, patience) {
                Tried::Answered(_) => return true,
                Tried::TooLarge => return false,
                Tried::Lost(_) => {}
            }
        }
        false
    }
}

/// A number that nobody can guess.
fn random() -> u64 {
    let mut bytes = [0; 8];
    // Without randomness from the kernel, this process would not have come so far.
    let _ = getrandom::fill(&mut bytes);
    u64::from_be_bytes(bytes)
}

/// The largest packet that is tried on a device of that size.
pub(super) fn tried(mtu: u32, is_ipv4: bool) -> u32 {
    let headers = if is_ipv4 { HEADERS_V4 } else { HEADERS_V6 };
    mtu.min(u32::try_from(PROBE_BYTES_MAX + headers).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::sync::atomic::Ordering;

    use model::ClusterId;
    use model::SecretText;
    use uuid::Uuid;

    use super::*;

    fn node(n: u128) -> NodeId {
        NodeId::new(Uuid::from_u128(n))
    }

    fn key() -> HeartbeatKey {
        HeartbeatKey::new(ClusterId::new(Uuid::from_u128(1)), &SecretText::new("s"))
    }

    /// Answers probes as node `me`, but not those over `most` bytes.
    fn answering(me: NodeId, most: usize, end: &Arc<AtomicBool>) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let end = end.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; PROBE_BYTES_MAX + 1];
            while !end.load(Ordering::Relaxed) {
                let Ok((count, from)) = socket.recv_from(&mut bytes) else { continue };
                if count <= most
                    && let Ok((_, answer)) = key().answer_probe(me, &bytes[..count])
                {
                    socket.send_to(&answer, from).unwrap();
                }
            }
        });
        address
    }

    fn measured(answering_as: u128, most: usize) -> LinkFacts {
        let end = Arc::new(AtomicBool::new(false));
        let target = answering(node(answering_as), most, &end);
        let way = Way { to: node(2), from: "127.0.0.1".parse().unwrap(), target, prefix: 8 };
        let until = Instant::now() + Duration::from_secs(60);
        let facts = measure(&key(), node(1), &way, until);
        end.store(true, Ordering::Relaxed);
        facts
    }

    #[test]
    fn a_good_way_is_measured() {
        let facts = measured(2, usize::MAX);
        assert_eq!((facts.sent, facts.answered), (MESSAGES, MESSAGES), "{facts:?}");
        assert!(facts.min_us <= facts.median_us && facts.median_us <= facts.p99_us, "{facts:?}");
        assert_eq!(facts.passed, Some(tried(facts.mtu, true)));
        assert_eq!(facts.stranger, None);
    }

    #[test]
    fn the_largest_packet_is_found_to_the_byte() {
        assert_eq!(measured(2, 1_372).passed, Some(1_400));
    }

    #[test]
    fn who_answers_at_anothers_address_is_named() {
        assert_eq!(measured(3, usize::MAX).stranger, Some(node(3)));
    }

    #[test]
    fn silence_is_given_up_soon() {
        let facts = measured(2, 0);
        assert_eq!((facts.sent, facts.answered, facts.passed), (GIVE_UP, 0, None), "{facts:?}");
    }

    #[test]
    fn jitter_is_the_mean_change_from_one_to_the_next() {
        let mut facts = measured(2, 0);
        summarize(&[100, 300, 200, 200], &mut facts);
        assert_eq!((facts.min_us, facts.median_us, facts.jitter_us), (100, 200, 100));
    }
}
