//! Which questions are ours, and their answers. Pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use hickory_proto::op::Edns;
use hickory_proto::op::Message;
use hickory_proto::op::MessageType;
use hickory_proto::op::OpCode;
use hickory_proto::op::Query;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::DNSClass;
use hickory_proto::rr::Name;
use hickory_proto::rr::RData;
use hickory_proto::rr::Record;
use hickory_proto::rr::RecordType;
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::rdata::PTR;
use hickory_proto::rr::rdata::SOA;
use model::Ipv4Subnet;

/// The domain of guests: `.internal` is reserved for private use and never delegated.
pub const DOMAIN: &str = "muster.internal";

/// Short, so that a machine that was made anew is found at once.
const TTL_SECONDS: u32 = 5;
/// What we can take by UDP: the value that avoids fragments everywhere (DNS flag day 2020).
const UDP_PAYLOAD_MAX: u16 = 1_232;
/// Length of a DNS header.
const HEADER_BYTES: usize = 12;
/// The bit that tells a reply from a question, in the third byte.
const QR_BIT: u8 = 0x80;
/// Labels in the reverse name of one IPv4 address: four numbers, `in-addr`, `arpa`.
const REVERSE_LABELS: usize = 6;

/// The names of one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    /// Its addresses; their reverse names are ours.
    pub subnet: Ipv4Subnet,
    /// Addresses by bare name, in lower case.
    pub names: BTreeMap<String, Vec<Ipv4Addr>>,
}

/// What to do with a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Send this back.
    Reply(Vec<u8>),
    /// Ask the host's resolvers.
    Forward,
    /// Not a question: say nothing.
    Ignore,
}

/// Decides on one packet.
pub fn answer(zone: &Zone, packet: &[u8]) -> Verdict {
    if packet.len() < HEADER_BYTES || packet[2] & QR_BIT != 0 {
        return Verdict::Ignore;
    }
    let id = u16::from_be_bytes([packet[0], packet[1]]);
    let Ok(request) = Message::from_vec(packet) else {
        return encode(&Message::error_msg(id, OpCode::Query, ResponseCode::FormErr));
    };
    if request.metadata.message_type != MessageType::Query {
        return Verdict::Ignore;
    }
    let op_code = request.metadata.op_code;
    if op_code != OpCode::Query {
        return encode(&Message::error_msg(id, op_code, ResponseCode::NotImp));
    }
    let [query] = request.queries.as_slice() else {
        return encode(&Message::error_msg(id, op_code, ResponseCode::FormErr));
    };
    if query.query_class() != DNSClass::IN {
        return encode(&respond(&request, query, ResponseCode::Refused));
    }
    match local(zone, query) {
        Some(local) => encode(&local_reply(&request, query, local)),
        None if matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR) => {
            encode(&respond(&request, query, ResponseCode::Refused))
        }
        None => Verdict::Forward,
    }
}

/// A reply that says "try again": we could not ask anybody.
pub(crate) fn server_failure(packet: &[u8]) -> Option<Vec<u8>> {
    let request = Message::from_vec(packet).ok()?;
    let query = request.queries.first()?;
    respond(&request, query, ResponseCode::ServFail).to_vec().ok()
}

enum Local {
    /// Ours, and does not exist.
    Unknown,
    /// Ours, and these are its records of the type asked for; perhaps none.
    Known(Vec<RData>),
}

fn local(zone: &Zone, query: &Query) -> Option<Local> {
    let labels: Vec<String> = query
        .name()
        .iter()
        .map(|label| String::from_utf8_lossy(label).to_ascii_lowercase())
        .collect();
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    if let [a, b, c, d, "in-addr", "arpa"] = labels.as_slice() {
        let text = format!("{d}.{c}.{b}.{a}");
        let address: Ipv4Addr = text.parse().ok()?;
        return zone.subnet.contains(address).then(|| reverse(zone, query, address));
    }
    let bare = match labels.as_slice() {
        // The root and its servers are not ours.
        [] => return None,
        [..] if labels.len() >= REVERSE_LABELS && labels.ends_with(&["in-addr", "arpa"]) => {
            return None;
        }
        [name @ .., "muster", "internal"] => name.join("."),
        [name] if matches!(query.query_type(), RecordType::A | RecordType::AAAA) => {
            (*name).to_owned()
        }
        _ => return None,
    };
    if bare.is_empty() {
        return Some(Local::Known(Vec::new()));
    }
    let Some(addresses) = zone.names.get(&bare) else { return Some(Local::Unknown) };
    let wanted = matches!(query.query_type(), RecordType::A | RecordType::ANY);
    let records = addresses.iter().filter(|_| wanted).map(|a| RData::A(A(*a))).collect();
    Some(Local::Known(records))
}

fn reverse(zone: &Zone, query: &Query, address: Ipv4Addr) -> Local {
    let found = zone.names.iter().find(|(_, addresses)| addresses.contains(&address));
    let Some((name, _)) = found else { return Local::Unknown };
    let wanted = matches!(query.query_type(), RecordType::PTR | RecordType::ANY);
    let name = Name::from_ascii(format!("{name}.{DOMAIN}.")).ok().filter(|_| wanted);
    Local::Known(name.map(|name| RData::PTR(PTR(name))).into_iter().collect())
}

fn local_reply(request: &Message, query: &Query, local: Local) -> Message {
    let (code, records) = match local {
        Local::Unknown => (ResponseCode::NXDomain, Vec::new()),
        Local::Known(records) => (ResponseCode::NoError, records),
    };
    let mut reply = respond(request, query, code);
    reply.metadata.authoritative = true;
    if records.is_empty() {
        // Without a SOA, resolvers in guests do not remember that the name does not exist.
        reply.add_authority(soa());
    }
    let name = query.name();
    let record = |data| Record::from_rdata(name.clone(), TTL_SECONDS, data);
    reply.add_answers(records.into_iter().map(record));
    reply
}

fn soa() -> Record {
    let domain = Name::from_ascii(format!("{DOMAIN}.")).unwrap_or_else(|_| Name::root());
    let ttl = i32::try_from(TTL_SECONDS).unwrap_or(i32::MAX);
    let soa = SOA::new(domain.clone(), domain.clone(), 1, ttl, ttl, ttl, TTL_SECONDS);
    Record::from_rdata(domain, TTL_SECONDS, RData::SOA(soa))
}

fn respond(request: &Message, query: &Query, code: ResponseCode) -> Message {
    let mut reply = Message::response(request.metadata.id, request.metadata.op_code);
    reply.metadata.recursion_desired = request.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.metadata.response_code = code;
    reply.add_query(query.clone());
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_PAYLOAD_MAX);
        reply.set_edns(edns);
    }
    reply
}

fn encode(message: &Message) -> Verdict {
    message.to_vec().map_or(Verdict::Ignore, Verdict::Reply)
}

#[cfg(test)]
#[path = "answer_test.rs"]
mod tests;
