//! The switch against hosts: one conformance suite for the fake and the real one, and real guests
//! on the real one.
//!
//! Each real test runs in network namespaces of its own, held by a descriptor only: they are gone
//! when the test ends, however it ends. Needs root, nft, ip (iproute2) and busybox (udhcpc).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

mod conformance;

mod faults;
mod frame;
mod guests;
mod ns;

use std::net::Ipv4Addr;

use model::NetworkId;
use model::NetworkKind;
use model::NicId;
use switch::MTU_DEFAULT;
use switch::NetworkSpec;
use switch::PortSpec;
use uuid::Uuid;

fn nic(n: u128) -> NicId {
    NicId::new(Uuid::from_u128(0xfeed_0000_0000 + n))
}

fn network(n: u128) -> NetworkId {
    NetworkId::new(Uuid::from_u128(0xbeef_0000_0000 + n))
}

fn nat(n: u128, subnet: &str) -> NetworkSpec {
    NetworkSpec {
        id: network(n),
        name: format!("net{n}").parse().unwrap(),
        kind: NetworkKind::Nat { subnet: subnet.parse().unwrap() },
        mtu: MTU_DEFAULT,
    }
}

fn bridged(n: u128, bridge: &str) -> NetworkSpec {
    let kind = NetworkKind::Bridge { bridge: bridge.to_owned() };
    NetworkSpec { kind, ..nat(n, "10.0.0.0/24") }
}

/// Port `n` of the network, on a machine `vm<n>` with MAC `52:54:00:00:00:<n>`.
fn port(n: u8, network_number: u128, address: Option<Ipv4Addr>) -> PortSpec {
    PortSpec {
        nic: nic(n.into()),
        vm: format!("vm{n}").parse().unwrap(),
        network: network(network_number),
        mac: format!("52:54:00:00:00:{n:02x}").parse().unwrap(),
        address,
    }
}
