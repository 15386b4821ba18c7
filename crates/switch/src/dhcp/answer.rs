//! The DHCP responder: a table of leases and a packet in, a packet out. Pure.
//!
//! ```text
//!   DISCOVER            -> OFFER the client's own lease
//!   REQUEST for it      -> ACK            (also renewal, rebinding and reboot)
//!   REQUEST for another -> NAK, so that the client starts over
//!   REQUEST to another server, INFORM without address, RELEASE, DECLINE -> silence
//!   INFORM              -> ACK with options, no address, no lease time
//!   hardware address without a lease -> silence
//! ```

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use dhcproto::Decodable;
use dhcproto::Decoder;
use dhcproto::Encodable;
use dhcproto::Encoder;
use dhcproto::v4::DhcpOption;
use dhcproto::v4::HType;
use dhcproto::v4::Message;
use dhcproto::v4::MessageType;
use dhcproto::v4::Opcode;
use dhcproto::v4::OptionCode;
use model::Ipv4Subnet;
use model::MacAddr;

/// Long enough that renewals are rare, short enough that a changed DNS or MTU is taken up within
/// the hour.
const LEASE_SECONDS: u32 = 3_600;
/// BOOTP messages have at least this length (RFC 951); some clients drop shorter ones.
const REPLY_BYTES_MIN: usize = 300;
/// Length of an Ethernet address in the `hlen` field.
const ETHERNET_HLEN: u8 = 6;
/// Where `hlen` stands in a packet.
const HLEN_OFFSET: usize = 2;
/// Where the options begin: after the fixed fields and the cookie.
const OPTIONS_OFFSET: usize = 240;
/// What makes a BOOTP message a DHCP message (RFC 2131, 3).
const MAGIC_COOKIE: [u8; 4] = [99, 130, 83, 99];
const OPTION_PAD: u8 = 0;
const OPTION_END: u8 = 255;
/// Code and length of the options that we read: requested address, message type, server.
const OPTIONS_READ: [(u8, usize); 3] = [(50, 4), (53, 1), (54, 4)];

/// What the server of one network gives out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leases {
    /// The network; its gateway is router, DNS server and DHCP server.
    pub subnet: Ipv4Subnet,
    /// The search domain.
    pub domain: String,
    /// MTU in bytes.
    pub mtu: u16,
    /// One lease per hardware address.
    pub by_mac: BTreeMap<MacAddr, Lease>,
}

/// What one client gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Its address.
    pub address: Ipv4Addr,
    /// Its host name.
    pub hostname: String,
}

/// A packet to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The client's address, or none: broadcast.
    pub to: Option<Ipv4Addr>,
    /// The packet.
    pub bytes: Vec<u8>,
}

/// What a request told about its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseEvent {
    /// The client uses the address from now on.
    Taken {
        /// The client.
        mac: MacAddr,
        /// Its address.
        address: Ipv4Addr,
    },
    /// The client has given its address back.
    Released {
        /// The client.
        mac: MacAddr,
    },
    /// The client found somebody else on its address.
    Declined {
        /// The client.
        mac: MacAddr,
        /// The address.
        address: Ipv4Addr,
    },
}

/// The outcome of a well-formed request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// What to send, if anything.
    pub reply: Option<Reply>,
    /// What to remember, if anything.
    pub event: Option<LeaseEvent>,
}

/// A request that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DhcpError {
    /// Not a DHCP message at all.
    #[error("the packet is not a DHCP message")]
    Malformed,
    /// A reply, a relayed request, or a request from something that is not Ethernet.
    #[error("the packet is not a request of a directly attached Ethernet client")]
    NotAClient,
    /// Our reply could not be encoded.
    #[error("the reply could not be encoded")]
    Encode,
}

/// Answers one packet.
pub fn answer(leases: &Leases, packet: &[u8]) -> Result<Answer, DhcpError> {
    // Looked at before decoding: the length says how much of the address field is read.
    if packet.get(HLEN_OFFSET) != Some(&ETHERNET_HLEN) {
        return Err(DhcpError::NotAClient);
    }
    let packet = essence(packet).ok_or(DhcpError::Malformed)?;
    let request = Message::decode(&mut Decoder::new(&packet)).map_err(|_| DhcpError::Malformed)?;
    let ours = request.opcode() == Opcode::BootRequest
        && request.htype() == HType::Eth
        && request.giaddr().is_unspecified();
    let chaddr: Option<[u8; 6]> = request.chaddr().try_into().ok();
    let (true, Some(chaddr)) = (ours, chaddr) else { return Err(DhcpError::NotAClient) };
    let mac = MacAddr::from_bytes(chaddr);
    let kind = request.opts().msg_type().ok_or(DhcpError::Malformed)?;
    let Some(lease) = leases.by_mac.get(&mac) else { return Ok(Answer::default()) };
    let address = lease.address;

    match kind {
        MessageType::Discover => Ok(Answer {
            reply: Some(grant(leases, lease, &request, MessageType::Offer)?),
            event: None,
        }),
        MessageType::Request => answer_request(leases, lease, mac, &request),
        MessageType::Inform if !request.ciaddr().is_unspecified() => {
            Ok(Answer { reply: Some(inform(leases, lease, &request)?), event: None })
        }
        MessageType::Release => {
            Ok(Answer { reply: None, event: Some(LeaseEvent::Released { mac }) })
        }
        MessageType::Decline => {
            Ok(Answer { reply: None, event: Some(LeaseEvent::Declined { mac, address }) })
        }
        _ => Ok(Answer::default()),
    }
}

/// The packet with only those options that we read, each once and of its right length.
///
/// The decoder of dhcproto 0.15 panics on some malformed options (client FQDN, for one), so it
/// never gets to see what a guest put there beyond these.
fn essence(packet: &[u8]) -> Option<Vec<u8>> {
    let (header, mut options) = packet.split_at_checked(OPTIONS_OFFSET)?;
    header.ends_with(&MAGIC_COOKIE).then_some(())?;
    let mut kept = header.to_vec();
    let mut seen = Vec::with_capacity(OPTIONS_READ.len());
    while let Some((&code, rest)) = options.split_first() {
        if code == OPTION_END {
            break;
        }
        if code == OPTION_PAD {
            options = rest;
            continue;
        }
        let (&length, rest) = rest.split_first()?;
        let (value, rest) = rest.split_at_checked(length.into())?;
        options = rest;
        let Some((_, right)) = OPTIONS_READ.iter().find(|(read, _)| *read == code) else {
            continue;
        };
        if value.len() != *right || seen.contains(&code) {
            return None;
        }
        seen.push(code);
        kept.extend_from_slice(&[code, length]);
        kept.extend_from_slice(value);
    }
    kept.push(OPTION_END);
    Some(kept)
}

fn answer_request(
    leases: &Leases,
    lease: &Lease,
    mac: MacAddr,
    request: &Message,
) -> Result<Answer, DhcpError> {
    if let Some(DhcpOption::ServerIdentifier(server)) =
        request.opts().get(OptionCode::ServerIdentifier)
        && *server != leases.subnet.gateway()
    {
        return Ok(Answer::default());
    }
    let wanted = match request.opts().get(OptionCode::RequestedIpAddress) {
        Some(DhcpOption::RequestedIpAddress(address)) => *address,
        _ => request.ciaddr(),
    };
    if wanted != lease.address {
        return Ok(Answer { reply: Some(refuse(leases, request)?), event: None });
    }
    let event = Some(LeaseEvent::Taken { mac, address: lease.address });
    Ok(Answer { reply: Some(grant(leases, lease, request, MessageType::Ack)?), event })
}

/// A reply that carries an address.
fn grant(
    leases: &Leases,
    lease: &Lease,
    request: &Message,
    kind: MessageType,
) -> Result<Reply, DhcpError> {
    let mut reply = base(leases, request, kind);
    reply.set_yiaddr(lease.address).set_ciaddr(request.ciaddr());
    reply.opts_mut().insert(DhcpOption::AddressLeaseTime(LEASE_SECONDS));
    describe(leases, lease, &mut reply);
    encode(&reply, unicast(request))
}

fn inform(leases: &Leases, lease: &Lease, request: &Message) -> Result<Reply, DhcpError> {
    let mut reply = base(leases, request, MessageType::Ack);
    reply.set_ciaddr(request.ciaddr());
    describe(leases, lease, &mut reply);
    encode(&reply, unicast(request))
}

/// Always by broadcast: the client's idea of its address is what is wrong.
fn refuse(leases: &Leases, request: &Message) -> Result<Reply, DhcpError> {
    encode(&base(leases, request, MessageType::Nak), None)
}

fn base(leases: &Leases, request: &Message, kind: MessageType) -> Message {
    let mut reply = Message::default();
    reply
        .set_opcode(Opcode::BootReply)
        .set_htype(HType::Eth)
        .set_xid(request.xid())
        .set_flags(request.flags())
        .set_chaddr(request.chaddr());
    reply.opts_mut().insert(DhcpOption::MessageType(kind));
    reply.opts_mut().insert(DhcpOption::ServerIdentifier(leases.subnet.gateway()));
    reply
}

fn describe(leases: &Leases, lease: &Lease, reply: &mut Message) {
    let gateway = leases.subnet.gateway();
    let options = reply.opts_mut();
    options.insert(DhcpOption::SubnetMask(leases.subnet.mask()));
    options.insert(DhcpOption::BroadcastAddr(leases.subnet.broadcast()));
    options.insert(DhcpOption::Router(vec![gateway]));
    options.insert(DhcpOption::DomainNameServer(vec![gateway]));
    options.insert(DhcpOption::DomainName(leases.domain.clone()));
    options.insert(DhcpOption::Hostname(lease.hostname.clone()));
    options.insert(DhcpOption::InterfaceMtu(leases.mtu));
}

fn unicast(request: &Message) -> Option<Ipv4Addr> {
    let wants_broadcast = request.flags().broadcast() || request.ciaddr().is_unspecified();
    (!wants_broadcast).then(|| request.ciaddr())
}

fn encode(message: &Message, to: Option<Ipv4Addr>) -> Result<Reply, DhcpError> {
    let mut bytes = Vec::with_capacity(REPLY_BYTES_MIN);
    message.encode(&mut Encoder::new(&mut bytes)).map_err(|_| DhcpError::Encode)?;
    if bytes.len() < REPLY_BYTES_MIN {
        bytes.resize(REPLY_BYTES_MIN, 0);
    }
    Ok(Reply { to, bytes })
}

#[cfg(test)]
#[path = "answer_test.rs"]
mod tests;
