//! What the switch does when the host fails it.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use switch::AddressSource;
use switch::Announced;
use switch::Desired;
use switch::FakeHost;
use switch::Host;
use switch::InstanceTag;
use switch::LinuxHost;
use switch::Neighbour;
use switch::PortError;
use switch::PortState;
use switch::Switch;
use switch::SwitchConfig;

use crate::nat;
use crate::network;
use crate::nic;
use crate::ns::Ns;
use crate::port;

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 5);

fn start(host: Arc<dyn Host>) -> Switch {
    let tag = InstanceTag::new("test").unwrap();
    Switch::start(SwitchConfig { tag, resolv_conf: PathBuf::from("/nonexistent") }, host)
}

fn desired() -> Desired {
    Desired { networks: vec![nat(1, "10.77.0.0/24")], ports: vec![port(1, 1, Some(GUEST))] }
}

#[tokio::test]
async fn a_port_that_cannot_be_finished_leaves_no_tap() {
    for failing in 0.. {
        let host = Arc::new(FakeHost::new());
        let switch = start(Arc::clone(&host) as Arc<dyn Host>);
        assert!(switch.apply(desired()).await.unwrap().is_clean());
        host.fail_after(failing);
        let opened = switch.open_port(nic(1)).await;
        let state = switch.observe().await.unwrap()[0].state;
        if opened.is_ok() {
            assert_eq!(state, PortState::Attached);
            assert!(failing >= 3, "{failing}");
            break;
        }
        assert!(matches!(opened, Err(PortError::Failed(_))), "{opened:?}");
        assert_eq!(state, PortState::Absent);
        switch.open_port(nic(1)).await.unwrap();
    }
}

#[tokio::test]
async fn a_failed_pass_says_what_failed_and_the_next_goes_on() {
    let host = Arc::new(FakeHost::new());
    let switch = start(Arc::clone(&host) as Arc<dyn Host>);
    host.fail_after(2);
    let report = switch.apply(desired()).await.unwrap();
    assert_eq!(report.changes, 2);
    let failure = report.failure.unwrap().to_string();
    assert!(failure.contains("failed to set the MTU of ntest"), "{failure}");
    assert!(switch.apply(desired()).await.unwrap().is_clean());
}

#[tokio::test]
async fn a_neighbour_with_the_ports_mac_is_an_address_of_the_guest() {
    let host = Arc::new(FakeHost::new());
    let switch = start(Arc::clone(&host) as Arc<dyn Host>);
    assert!(switch.apply(desired()).await.unwrap().is_clean());
    let tag = InstanceTag::new("test").unwrap();
    let links = host.observe(&tag, None).await.unwrap().links;
    let link_index = links[&tag.bridge(network(1))].index;
    let mac = port(1, 1, None).mac;
    let address = IpAddr::V4(GUEST);
    host.add_neighbour(Neighbour { link_index, mac, address });
    host.add_neighbour(Neighbour { link_index: link_index + 1, mac, address: [9; 4].into() });
    assert!(switch.observe().await.unwrap()[0].addresses.is_empty(), "the machine is off");
    let _machine = switch.open_port(nic(1)).await.unwrap();
    let seen = switch.observe().await.unwrap().remove(0).addresses;
    assert_eq!(seen.len(), 1);
    let v6: IpAddr = "fe80::5054:ff:fe00:1".parse().unwrap();
    for (tap, address) in [(tag.tap(nic(1)), v6), (tag.tap(nic(2)), [8; 4].into())] {
        host.announce(Announced { tap, address });
    }
    let seen_now = switch.observe().await.unwrap().remove(0).addresses;
    let addresses: Vec<IpAddr> = seen_now.iter().map(|seen| seen.address).collect();
    assert_eq!(addresses, [v6, address]);
    assert_eq!((seen[0].address, seen[0].source), (address, AddressSource::Neighbour));
}

#[test]
fn rules_that_somebody_flushed_or_changed_come_back() {
    let ns = Ns::new();
    let inside = Arc::clone(&ns);
    ns.block_on(async move || {
        let first = start(Arc::new(LinuxHost::new().unwrap()));
        assert!(first.apply(desired()).await.unwrap().is_clean());
        // What restarting Debian's nftables.service does.
        inside.run("nft flush ruleset");
        let report = first.apply(desired()).await.unwrap();
        assert_eq!(report.changes, 2, "rules, and the table of addresses");
        inside.run("nft list table bridge muster_test | grep -q 52:54:00:00:00:01");

        inside.run("nft flush chain bridge muster_test guard");
        let restarted = start(Arc::new(LinuxHost::new().unwrap()));
        assert_eq!(restarted.apply(desired()).await.unwrap().changes, 1);
        inside.run("nft list chain bridge muster_test guard | grep -q mtest");
    });
}

#[test]
fn a_taken_dns_port_costs_names_but_not_addresses() {
    let ns = Ns::new();
    ns.block_on(async || {
        let squatter = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 53)).unwrap();
        let switch = start(Arc::new(LinuxHost::new().unwrap()));
        let report = switch.apply(desired()).await.unwrap();
        let why = report.without_service[&network(1)].to_string();
        assert!(why.contains("DNS") && why.contains("ss -lnp 'sport = :53'"), "{why}");
        // DHCP is there: its port cannot be had a second time on that bridge.
        let taken = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 67));
        assert!(taken.is_err());
        drop(squatter);
        assert!(switch.apply(desired()).await.unwrap().is_clean());
    });
}
