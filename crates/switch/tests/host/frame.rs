//! Frames made by hand, for guests that do not play by the rules.

use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

/// Offset of `chaddr` in a BOOTP message.
const CHADDR: usize = 28;

pub(crate) fn ethernet(source: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [[0xff; 6].as_slice(), &source, &kind.to_be_bytes(), payload].concat()
}

pub(crate) fn tagged(source: [u8; 6], vlan: u16, kind: u16, payload: &[u8]) -> Vec<u8> {
    let inner = [vlan.to_be_bytes(), kind.to_be_bytes()].concat();
    ethernet(source, 0x8100, &[&inner, payload].concat())
}

pub(crate) fn arp(mac: [u8; 6], address: Ipv4Addr, mark: &str) -> Vec<u8> {
    let request = [0, 1, 8, 0, 6, 4, 0, 1];
    let target = [0; 10];
    [request.as_slice(), &mac, &address.octets(), &target, mark.as_bytes()].concat()
}

pub(crate) fn udp(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    (from, to): (u16, u16),
    text: impl AsRef<[u8]>,
) -> Vec<u8> {
    let text = text.as_ref();
    let length = u16::try_from(8 + text.len()).unwrap();
    let mut header = vec![0x45, 0];
    header.extend_from_slice(&(20 + length).to_be_bytes());
    header.extend_from_slice(&[0, 0, 0, 0, 64, 17, 0, 0]);
    header.extend_from_slice(&source.octets());
    header.extend_from_slice(&destination.octets());
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    let ports = [from.to_be_bytes(), to.to_be_bytes(), length.to_be_bytes(), [0, 0]].concat();
    [header.as_slice(), &ports, text].concat()
}

/// A DHCP request in the name of a hardware address.
pub(crate) fn bootp(chaddr: [u8; 6], mark: &str) -> Vec<u8> {
    let mut bytes = vec![0; 240];
    bytes[..3].copy_from_slice(&[1, 1, 6]);
    bytes[CHADDR..CHADDR + 6].copy_from_slice(&chaddr);
    [&bytes, mark.as_bytes()].concat()
}

fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap();
    let source = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0xff, 0xfe00, 1);
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut header = vec![0x60, 0, 0, 0];
    header.extend_from_slice(&length.to_be_bytes());
    header.extend_from_slice(&[next, 255]);
    [header.as_slice(), &source.octets(), &all_nodes.octets(), payload].concat()
}

fn icmpv6(kind: u8, mark: &str) -> Vec<u8> {
    ipv6(58, &[&[kind, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0], mark.as_bytes()].concat())
}

pub(crate) fn router_advertisement(mark: &str) -> Vec<u8> {
    icmpv6(134, mark)
}

pub(crate) fn neighbour_solicitation(mark: &str) -> Vec<u8> {
    icmpv6(135, mark)
}

pub(crate) fn dhcpv6_reply(mark: &str) -> Vec<u8> {
    let length = u16::try_from(8 + mark.len()).unwrap().to_be_bytes();
    let ports = [547_u16.to_be_bytes(), 546_u16.to_be_bytes(), length, [0, 0]].concat();
    ipv6(17, &[&ports, mark.as_bytes()].concat())
}

fn checksum(header: &[u8]) -> u16 {
    let words =
        header.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}
