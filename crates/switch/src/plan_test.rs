use model::Name;
use uuid::Uuid;

use super::*;

fn tag() -> InstanceTag {
    InstanceTag::new("test").unwrap()
}

fn network(n: u128, subnet: &str) -> NetworkSpec {
    NetworkSpec {
        id: NetworkId::new(Uuid::from_u128(n)),
        name: format!("net{n}").parse::<Name>().unwrap(),
        kind: NetworkKind::Nat { subnet: subnet.parse().unwrap() },
        mtu: 1500,
    }
}

fn port(n: u8, network: u128, address: Option<[u8; 4]>) -> PortSpec {
    PortSpec {
        nic: NicId::new(Uuid::from_u128(n.into())),
        vm: format!("vm{n}").parse::<Name>().unwrap(),
        network: NetworkId::new(Uuid::from_u128(network)),
        mac: format!("52:54:00:00:00:{n:02x}").parse().unwrap(),
        address: address.map(Ipv4Addr::from),
    }
}

fn desired() -> Desired {
    Desired {
        networks: vec![network(1, "10.77.0.0/24")],
        ports: vec![port(1, 1, Some([10, 77, 0, 5]))],
    }
}

fn link(kind: LinkKind) -> Link {
    Link {
        index: 1,
        kind,
        up: false,
        mtu: 1500,
        master: None,
        addresses: Vec::new(),
        ipv6: true,
        counters: Counters::default(),
    }
}

fn texts(plan: &Plan) -> Vec<String> {
    plan.actions.iter().map(Action::to_string).collect()
}

#[test]
fn a_port_speaks_only_after_its_rules_are_loaded() {
    let mut actual = Actual::default();
    actual.links.insert(tag().tap(desired().ports[0].nic), link(LinkKind::Tap));
    actual.links.insert(LinkName::new("mtest99999999"), link(LinkKind::Tap));
    actual.links.insert(LinkName::new("ntest99999999"), link(LinkKind::Bridge));
    let plan = plan(&tag(), &desired(), &actual);
    let expected = [
        "delete mtest99999999",
        "delete ntest99999999",
        "make the bridge ntest00000001",
        "keep the host's IPv6 off ntest00000001",
        "set the MTU of ntest00000001 to 1500",
        "give 10.77.0.1/24 to ntest00000001",
        "load 19 packet rules",
        "note the addresses of guests",
        "let the host forward IPv4",
        "set ntest00000001 up",
        "keep the host's IPv6 off mtest00000001",
        "attach mtest00000001 to ntest00000001",
        "set mtest00000001 up",
    ];
    assert_eq!(texts(&plan), expected);
}

#[test]
fn devices_of_others_are_never_touched() {
    let mut actual = Actual::default();
    // Another instance, a device that only looks like ours, and an ordinary one.
    for name in ["motherabcdef01", "nothrabcdef01", "eth0", "docker0"] {
        actual.links.insert(LinkName::new(name), link(LinkKind::Bridge));
    }
    actual.links.insert(LinkName::new("mtest0000000f"), link(LinkKind::Other));
    assert_eq!(plan(&tag(), &Desired::default(), &actual), Plan::default());
}

#[test]
fn a_device_with_our_name_that_is_no_bridge_refuses_the_network() {
    let mut actual = Actual::default();
    let name = tag().bridge(desired().networks[0].id);
    actual.links.insert(name.clone(), link(LinkKind::Other));
    let plan = plan(&tag(), &desired(), &actual);
    let reason = &plan.refused_networks[&desired().networks[0].id];
    assert_eq!(*reason, Refused::NameTaken { link: name });
}

#[test]
fn routes_conflict_when_they_overlap_either_way_but_default_routes_do_not() {
    let refused = |base: [u8; 4], prefix| {
        let route = HostRoute { base: base.into(), prefix, link: Some(LinkName::new("eth0")) };
        let actual = Actual { routes: vec![route], ..Actual::default() };
        !plan(&tag(), &desired(), &actual).refused_networks.is_empty()
    };
    assert!(refused([10, 77, 0, 0], 24));
    assert!(refused([10, 0, 0, 0], 8));
    assert!(refused([10, 77, 0, 77], 32));
    assert!(!refused([10, 77, 1, 0], 24));
    assert!(!refused([0, 0, 0, 0], 0));
    assert!(!refused([0, 0, 0, 0], 1));
}

#[test]
fn a_network_that_stands_is_not_torn_down_by_a_later_route() {
    let mut actual = Actual::default();
    let mut bridge = link(LinkKind::Bridge);
    bridge.addresses.push(([10, 77, 0, 1].into(), 24));
    actual.links.insert(tag().bridge(desired().networks[0].id), bridge);
    let link = Some(LinkName::new("eth0"));
    actual.routes.push(HostRoute { base: [10, 77, 0, 0].into(), prefix: 24, link });
    assert!(plan(&tag(), &desired(), &actual).refused_networks.is_empty());
}

#[test]
fn the_network_that_stands_wins_over_a_newcomer_with_its_addresses() {
    let mut actual = Actual::default();
    let mut bridge = link(LinkKind::Bridge);
    bridge.addresses.push(([10, 77, 0, 1].into(), 24));
    actual.links.insert(tag().bridge(desired().networks[0].id), bridge);
    let mut desired = desired();
    desired.networks.insert(0, network(2, "10.77.0.0/16"));
    let plan = plan(&tag(), &desired, &actual);
    let refused: Vec<_> = plan.refused_networks.values().map(Refused::to_string).collect();
    assert_eq!(
        refused,
        ["network net2 (10.77.0.0/16) overlaps network net1 (10.77.0.0/24); give one of them \
          another subnet"]
    );
}

#[test]
fn ports_that_cannot_be_had_are_refused_one_by_one() {
    let mut desired = desired();
    desired.ports.extend([
        port(2, 1, Some([10, 77, 0, 5])),
        port(3, 1, Some([10, 77, 0, 1])),
        port(4, 1, Some([10, 78, 0, 5])),
        port(5, 9, None),
        PortSpec { mac: desired.ports[0].mac, ..port(6, 1, None) },
        PortSpec { nic: desired.ports[0].nic, ..port(7, 1, None) },
        port(8, 1, Some([10, 77, 0, 8])),
    ]);
    // The seventh shares its id with the first, so both verdicts stand under one key.
    let plan = plan(&tag(), &desired, &Actual::default());
    let refused: Vec<String> = plan.refused_ports.values().map(Refused::to_string).collect();
    let expected = [
        "two ids share the short name mtest00000001",
        "IP address 10.77.0.5 is already in use",
        "address 10.77.0.1 cannot be given",
        "address 10.78.0.5 cannot be given",
        "the NIC's network 00000000-0000-0000-0000-000000000009 does not exist",
        "MAC address 52:54:00:00:00:01 is already in use",
    ];
    assert_eq!(refused.len(), expected.len(), "{refused:#?}");
    for (refused, expected) in refused.iter().zip(expected) {
        assert!(refused.contains(expected), "{refused}");
    }
}

#[test]
fn a_changed_reservation_changes_the_rules_and_nothing_else() {
    let tag = tag();
    let wanted = |desired: &Desired| {
        let plan = plan(&tag, desired, &Actual::default());
        plan.actions.into_iter().find_map(|action| match action {
            Action::LoadRules(ruleset) => Some(ruleset.id),
            _ => None,
        })
    };
    let mut moved = desired();
    moved.ports[0].address = Some([10, 77, 0, 6].into());
    assert_eq!(wanted(&desired()), wanted(&desired()));
    assert_ne!(wanted(&desired()), wanted(&moved));
}
