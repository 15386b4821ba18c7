//! DHCP for NAT networks: fixed leases from the desired state, nothing for strangers.
//!
//! [`answer()`] is pure; [`serve`] is the socket around it. The socket is bound to the bridge, so it
//! hears broadcasts of that network only. A client without an address is answered by broadcast,
//! one that has an address by unicast.
//!
//! Trust boundary: every byte of a request comes from a guest. The rules have already dropped
//! requests whose hardware address is not the port's own (see `rules`).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Instant;

use model::MacAddr;
use tokio::net::UdpSocket;
use tokio::sync::watch;

use crate::limit::LogLimit;

mod answer;

pub use answer::Answer;
pub use answer::DhcpError;
pub use answer::Lease;
pub use answer::LeaseEvent;
pub use answer::Leases;
pub use answer::Reply;
pub use answer::answer;

/// A DHCP message is at most one Ethernet frame; what is longer is cut and then refused.
const PACKET_BYTES_MAX: usize = 1_500;
const DHCP_CLIENT_PORT: u16 = 68;

/// Leases that clients have taken, by hardware address. At most one entry per lease offered.
pub(crate) type Taken = Arc<Mutex<BTreeMap<MacAddr, Ipv4Addr>>>;

/// Answers clients until it is dropped.
pub(crate) async fn serve(
    socket: UdpSocket,
    network: String,
    leases: watch::Receiver<Arc<Leases>>,
    taken: Taken,
) {
    let mut buffer = [0; PACKET_BYTES_MAX];
    let mut malformed = LogLimit::default();
    let mut failures = LogLimit::default();
    loop {
        let length = match socket.recv_from(&mut buffer).await {
            Ok((length, _)) => length,
            Err(error) => {
                log_failure(&mut failures, &network, &error).await;
                continue;
            }
        };
        let leases = Arc::clone(&leases.borrow());
        match answer(&leases, &buffer[..length]) {
            Ok(answer) => {
                note(&network, &taken, answer.event);
                if let Some(reply) = answer.reply
                    && let Err(error) = send(&socket, &reply).await
                {
                    log_failure(&mut failures, &network, &error).await;
                }
            }
            Err(error) => {
                if let Some(suppressed) = malformed.pass(Instant::now()) {
                    tracing::warn!(network, %error, suppressed, "ignored a DHCP request");
                }
            }
        }
    }
}

async fn send(socket: &UdpSocket, reply: &Reply) -> std::io::Result<()> {
    let to = SocketAddrV4::new(reply.to.unwrap_or(Ipv4Addr::BROADCAST), DHCP_CLIENT_PORT);
    socket.send_to(&reply.bytes, (IpAddr::V4(*to.ip()), to.port())).await.map(|_| ())
}

/// A socket error may repeat at once (device down): yield, so that it cannot eat a core.
async fn log_failure(limit: &mut LogLimit, network: &str, error: &std::io::Error) {
    if let Some(suppressed) = limit.pass(Instant::now()) {
        tracing::warn!(network, %error, suppressed, "the DHCP socket failed");
    }
    tokio::time::sleep(crate::SOCKET_ERROR_PAUSE).await;
}

/// Remembers who took which lease. Repetitions (renewals) are not worth a line.
fn note(network: &str, taken: &Taken, event: Option<LeaseEvent>) {
    let Some(event) = event else { return };
    let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
    let before = match event {
        LeaseEvent::Taken { mac, address } => taken.insert(mac, address),
        LeaseEvent::Released { mac } | LeaseEvent::Declined { mac, .. } => taken.remove(&mac),
    };
    drop(taken);
    match (event, before) {
        (LeaseEvent::Taken { mac, address }, before) if before != Some(address) => {
            tracing::info!(network, %mac, %address, "a guest took its lease");
        }
        (LeaseEvent::Declined { mac, address }, Some(_)) => {
            tracing::warn!(network, %mac, %address, "a guest found its address in use");
        }
        _ => {}
    }
}
