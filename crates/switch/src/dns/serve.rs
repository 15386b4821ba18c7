//! The sockets of the DNS server. Everything it starts ends with it.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use model::Ipv4Subnet;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::dns::answer::Verdict;
use crate::dns::answer::Zone;
use crate::dns::answer::answer;
use crate::dns::answer::server_failure;
use crate::dns::upstream::Transport;
use crate::dns::upstream::Upstreams;
use crate::limit::LogLimit;

/// Forwarded questions of one network that wait for an answer: each holds a socket.
const IN_FLIGHT_MAX: usize = 256;
/// Of these by one guest, so that one cannot take the service from the others.
const IN_FLIGHT_PER_GUEST_MAX: usize = 64;
/// TCP connections of one network.
const CONNECTIONS_MAX: usize = 32;
/// Of these by one guest.
const CONNECTIONS_PER_GUEST_MAX: usize = 8;
/// A TCP client that neither asks nor reads for so long is let go.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// A question fits in this; longer ones are no honest ones.
const QUESTION_BYTES_MAX: usize = 4_096;

/// Tasks under way, counted by the guest that caused them.
struct Work {
    tasks: JoinSet<Ipv4Addr>,
    by_guest: BTreeMap<Ipv4Addr, usize>,
    all_max: usize,
    guest_max: usize,
}

impl Work {
    fn new(all_max: usize, guest_max: usize) -> Self {
        Self { tasks: JoinSet::new(), by_guest: BTreeMap::new(), all_max, guest_max }
    }

    fn admit(&mut self, guest: Ipv4Addr) -> bool {
        let count = self.by_guest.get(&guest).copied().unwrap_or_default();
        let admitted = self.tasks.len() < self.all_max && count < self.guest_max;
        if admitted {
            self.by_guest.insert(guest, count + 1);
        }
        admitted
    }

    fn spawn(&mut self, guest: Ipv4Addr, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(async move {
            task.await;
            guest
        });
    }

    /// Waits for one task to end; for ever where there is none.
    async fn finished(&mut self) {
        match self.tasks.join_next().await {
            None => std::future::pending().await,
            Some(Ok(guest)) => {
                if let Some(count) = self.by_guest.get_mut(&guest) {
                    *count -= 1;
                    if *count == 0 {
                        self.by_guest.remove(&guest);
                    }
                }
            }
            // A task that panicked has lost its guest's name; its place stays taken for that
            // guest alone, and the panic is in the log.
            Some(Err(_)) => {}
        }
    }
}

/// Serves questions by UDP until it is dropped.
pub(crate) async fn serve_udp(
    socket: UdpSocket,
    zone: watch::Receiver<Arc<Zone>>,
    upstreams: Arc<Upstreams>,
) {
    let socket = Arc::new(socket);
    let mut work = Work::new(IN_FLIGHT_MAX, IN_FLIGHT_PER_GUEST_MAX);
    let mut limit = LogLimit::default();
    let mut buffer = [0; QUESTION_BYTES_MAX];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            () = work.finished() => continue,
        };
        let (length, from) = match received {
            Ok(received) => received,
            Err(error) => {
                log_failure(&mut limit, &error).await;
                continue;
            }
        };
        let zone = Arc::clone(&zone.borrow());
        let Some(guest) = guest(&zone.subnet, from) else { continue };
        let packet = &buffer[..length];
        let reply = match answer(&zone, packet) {
            Verdict::Ignore => None,
            Verdict::Reply(reply) => Some(reply),
            Verdict::Forward if work.admit(guest) => {
                let question = packet.to_vec();
                let (socket, upstreams) = (Arc::clone(&socket), Arc::clone(&upstreams));
                let own = zone.subnet.gateway();
                work.spawn(guest, async move {
                    let reply = upstreams.ask(own, &question, Transport::Udp).await;
                    if let Some(reply) = reply.or_else(|| server_failure(&question)) {
                        let _ = socket.send_to(&reply, from).await;
                    }
                });
                None
            }
            Verdict::Forward => server_failure(packet),
        };
        if let Some(reply) = reply {
            // A guest that does not take its answer asks again.
            let _ = socket.send_to(&reply, from).await;
        }
    }
}

/// Serves questions by TCP until it is dropped.
pub(crate) async fn serve_tcp(
    listener: TcpListener,
    zone: watch::Receiver<Arc<Zone>>,
    upstreams: Arc<Upstreams>,
) {
    let mut work = Work::new(CONNECTIONS_MAX, CONNECTIONS_PER_GUEST_MAX);
    let mut limit = LogLimit::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = work.finished() => continue,
        };
        match accepted {
            Ok((stream, from)) => {
                let subnet = zone.borrow().subnet;
                // A connection too many is closed at once: the resolver tries again later.
                if let Some(guest) = guest(&subnet, from)
                    && work.admit(guest)
                {
                    let (zone, upstreams) = (zone.clone(), Arc::clone(&upstreams));
                    work.spawn(guest, async move {
                        // A guest may hang up at any point; that ends its connection only.
                        let _ = converse(stream, &zone, &upstreams).await;
                    });
                }
            }
            Err(error) => log_failure(&mut limit, &error).await,
        }
    }
}

async fn converse(
    mut stream: TcpStream,
    zone: &watch::Receiver<Arc<Zone>>,
    upstreams: &Upstreams,
) -> io::Result<()> {
    loop {
        let question = tokio::time::timeout(TCP_IDLE, read_question(&mut stream)).await??;
        let zone = Arc::clone(&zone.borrow());
        let reply = match answer(&zone, &question) {
            Verdict::Ignore => return Ok(()),
            Verdict::Reply(reply) => Some(reply),
            Verdict::Forward => upstreams
                .ask(zone.subnet.gateway(), &question, Transport::Tcp)
                .await
                .or_else(|| server_failure(&question)),
        };
        let Some(reply) = reply else { return Ok(()) };
        let length = u16::try_from(reply.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend_from_slice(&reply);
        tokio::time::timeout(TCP_IDLE, stream.write_all(&framed)).await??;
    }
}

async fn read_question(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > QUESTION_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut question = vec![0; length];
    stream.read_exact(&mut question).await?;
    Ok(question)
}

/// The address of an asker that may ask: a guest of the network, or the host itself.
fn guest(subnet: &Ipv4Subnet, from: SocketAddr) -> Option<Ipv4Addr> {
    match from.ip() {
        IpAddr::V4(address) if subnet.contains(address) => Some(address),
        _ => None,
    }
}

async fn log_failure(limit: &mut LogLimit, error: &io::Error) {
    if let Some(suppressed) = limit.pass(Instant::now()) {
        tracing::warn!(%error, suppressed, "a DNS socket failed");
    }
    tokio::time::sleep(crate::SOCKET_ERROR_PAUSE).await;
}
