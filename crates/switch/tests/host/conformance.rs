//! What the switch may rely on, asked of the fake and of the real host.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use switch::Action;
use switch::Actual;
use switch::Desired;
use switch::FakeHost;
use switch::Host;
use switch::HostError;
use switch::HostRoute;
use switch::InstanceTag;
use switch::LinkKind;
use switch::LinkName;
use switch::LinuxHost;
use switch::PortError;
use switch::PortState;
use switch::Refused;
use switch::Switch;
use switch::SwitchConfig;
use switch::plan;

use crate::bridged;
use crate::nat;
use crate::network;
use crate::nic;
use crate::ns::Ns;
use crate::port;

/// A host and the hand of its administrator.
trait World: Send + Sync {
    fn host(&self) -> Arc<dyn Host>;
    fn add_bridge(&self, name: &str);
    fn add_route(&self, base: Ipv4Addr, prefix: u8);
}

struct Fake(Arc<FakeHost>);

impl World for Fake {
    fn host(&self) -> Arc<dyn Host> {
        Arc::clone(&self.0) as Arc<dyn Host>
    }

    fn add_bridge(&self, name: &str) {
        self.0.add_link(&LinkName::new(name), LinkKind::Bridge);
    }

    fn add_route(&self, base: Ipv4Addr, prefix: u8) {
        let link = LinkName::new("uplink");
        self.0.add_link(&link, LinkKind::Other);
        self.0.add_route(HostRoute { base, prefix, link: Some(link) });
    }
}

struct Real {
    ns: Arc<Ns>,
    host: Arc<LinuxHost>,
}

impl World for Real {
    fn host(&self) -> Arc<dyn Host> {
        Arc::clone(&self.host) as Arc<dyn Host>
    }

    fn add_bridge(&self, name: &str) {
        self.ns.run(&format!("ip link add {name} type bridge && ip link set {name} up"));
    }

    fn add_route(&self, base: Ipv4Addr, prefix: u8) {
        self.ns.run("ip link add uplink type veth peer name far && ip link set uplink up");
        self.ns.run(&format!("ip route add {base}/{prefix} dev uplink"));
    }
}

fn on_fake(case: impl AsyncFnOnce(&dyn World)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(case(&Fake(Arc::new(FakeHost::new()))));
}

fn on_real(case: impl AsyncFnOnce(&dyn World) + Send) {
    let ns = Ns::new();
    let inside = Arc::clone(&ns);
    ns.block_on(async move || {
        let host = Arc::new(LinuxHost::new().unwrap());
        case(&Real { ns: inside, host }).await;
    });
}

macro_rules! conformance {
    ($($case:ident),* $(,)?) => {
        mod fake {
            $(#[test] fn $case() { super::on_fake(super::$case); })*
        }
        mod real {
            $(#[test] fn $case() { super::on_real(super::$case); })*
        }
    };
}

conformance!(
    a_nat_network_is_made_once_and_then_left_alone,
    a_tap_lives_as_long_as_its_descriptor,
    a_restarted_switch_puts_living_taps_back,
    a_route_in_the_way_refuses_the_network_and_no_other,
    a_pass_cut_anywhere_is_finished_by_the_next,
    an_unwanted_port_goes_before_its_rules,
    a_running_machine_moves_to_another_network,
    a_network_can_be_renumbered,
    a_bridged_network_leaves_the_bridge_as_it_is,
    two_instances_do_not_touch_each_other,
    remove_all_leaves_nothing,
);

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 5);

fn tag(text: &str) -> InstanceTag {
    InstanceTag::new(text).unwrap()
}

fn switch(world: &dyn World, tag_text: &str) -> Switch {
    let resolv_conf = PathBuf::from("/nonexistent/resolv.conf");
    Switch::start(SwitchConfig { tag: tag(tag_text), resolv_conf }, world.host())
}

fn one_port() -> Desired {
    Desired { networks: vec![nat(1, "10.77.0.0/24")], ports: vec![port(1, 1, Some(GUEST))] }
}

async fn look(world: &dyn World, tag_text: &str) -> Actual {
    world.host().observe(&tag(tag_text), None).await.unwrap()
}

async fn apply_clean(switch: &Switch, desired: &Desired) -> usize {
    let report = switch.apply(desired.clone()).await.unwrap();
    assert!(report.is_clean(), "{report:?}");
    report.changes
}

async fn port_state(switch: &Switch) -> PortState {
    switch.observe().await.unwrap()[0].state
}

async fn a_nat_network_is_made_once_and_then_left_alone(world: &dyn World) {
    let switch = switch(world, "test");
    assert!(apply_clean(&switch, &one_port()).await > 0);

    let actual = look(world, "test").await;
    let bridge = &actual.links[&tag("test").bridge(network(1))];
    assert_eq!(bridge.kind, LinkKind::Bridge);
    assert_eq!(bridge.addresses, vec![(Ipv4Addr::new(10, 77, 0, 1), 24)]);
    assert!(bridge.up && !bridge.ipv6);
    assert!(actual.forwarding && actual.rules.is_some() && actual.learning);

    assert_eq!(apply_clean(&switch, &one_port()).await, 0);
}

async fn a_tap_lives_as_long_as_its_descriptor(world: &dyn World) {
    let switch = switch(world, "test");
    assert!(matches!(switch.open_port(nic(1)).await, Err(PortError::Unknown(_))));
    apply_clean(&switch, &one_port()).await;
    assert_eq!(port_state(&switch).await, PortState::Absent);

    let descriptor = switch.open_port(nic(1)).await.unwrap();
    assert_eq!(port_state(&switch).await, PortState::Attached);
    let again = switch.open_port(nic(1)).await;
    assert!(matches!(again, Err(PortError::Host(HostError::TapBusy(_)))), "{again:?}");
    assert_eq!(port_state(&switch).await, PortState::Attached);
    assert_eq!(apply_clean(&switch, &one_port()).await, 0);

    drop(descriptor);
    assert_eq!(port_state(&switch).await, PortState::Absent);
    assert_eq!(apply_clean(&switch, &one_port()).await, 0);
    switch.open_port(nic(1)).await.unwrap();
}

async fn a_restarted_switch_puts_living_taps_back(world: &dyn World) {
    let first = switch(world, "test");
    apply_clean(&first, &one_port()).await;
    let _machine = first.open_port(nic(1)).await.unwrap();
    drop(first);
    // While the daemon was away somebody took the bridge from under the tap.
    let bridge = tag("test").bridge(network(1));
    world.host().perform(&tag("test"), &Action::DeleteLink(bridge)).await.unwrap();

    let second = switch(world, "test");
    apply_clean(&second, &one_port()).await;
    assert_eq!(port_state(&second).await, PortState::Attached);
    assert_eq!(apply_clean(&second, &one_port()).await, 0);
}

async fn a_route_in_the_way_refuses_the_network_and_no_other(world: &dyn World) {
    world.add_route(Ipv4Addr::new(10, 77, 0, 128), 25);
    let switch = switch(world, "test");
    let mut desired = one_port();
    desired.networks.push(nat(2, "10.78.0.0/24"));
    desired.ports.push(port(2, 2, None));
    let report = switch.apply(desired).await.unwrap();
    assert!(report.failure.is_none(), "{report:?}");

    let refused = report.refused_networks[&network(1)].to_string();
    assert!(refused.contains("10.77.0.128/25 through uplink"), "{refused}");
    assert!(refused.contains("ip route del 10.77.0.128/25"), "{refused}");
    assert!(matches!(report.refused_ports[&nic(1)], Refused::NetworkRefused(_)));
    assert!(matches!(switch.open_port(nic(1)).await, Err(PortError::Refused(_))));
    switch.open_port(nic(2)).await.unwrap();
    let actual = look(world, "test").await;
    assert!(!actual.links.contains_key(&tag("test").bridge(network(1))));
    assert!(!actual.links.contains_key(&tag("test").tap(nic(1))));
}

/// From an old state with a living machine to a new one, killed before each action in turn.
async fn a_pass_cut_anywhere_is_finished_by_the_next(world: &dyn World) {
    let old = one_port();
    let new = Desired {
        networks: vec![nat(1, "10.79.0.0/24"), nat(2, "10.78.0.0/24")],
        ports: vec![port(2, 2, Some(Ipv4Addr::new(10, 78, 0, 9))), port(3, 1, None)],
    };
    let host = world.host();
    let tag = tag("test");
    let mut steps = 0;
    for cut in 0.. {
        let setup = switch(world, "test");
        apply_clean(&setup, &old).await;
        let _machine = setup.open_port(nic(1)).await.unwrap();
        drop(setup);
        // A tap that was opened just before the daemon died.
        let _early = host.open_tap(&tag.tap(nic(2))).await.unwrap();

        let actions = plan(&tag, &new, &host.observe(&tag, None).await.unwrap()).actions;
        for action in actions.iter().take(cut) {
            host.perform(&tag, action).await.unwrap();
        }
        let restarted = switch(world, "test");
        apply_clean(&restarted, &new).await;
        let left = plan(&tag, &new, &host.observe(&tag, None).await.unwrap());
        assert_eq!(left.actions, Vec::new(), "after a cut at {cut}");
        assert!(restarted.remove_all().await.unwrap().is_clean());
        steps = actions.len();
        if cut == steps {
            break;
        }
    }
    assert!(steps >= 8, "{steps}");
}

async fn an_unwanted_port_goes_before_its_rules(world: &dyn World) {
    let switch = switch(world, "test");
    apply_clean(&switch, &one_port()).await;
    let _machine = switch.open_port(nic(1)).await.unwrap();

    let without = Desired { ports: Vec::new(), ..one_port() };
    let actual = look(world, "test").await;
    let actions = plan(&tag("test"), &without, &actual).actions;
    let [Action::DeleteLink(tap), Action::LoadRules(_)] = actions.as_slice() else {
        panic!("{actions:?}")
    };
    assert_eq!(*tap, tag("test").tap(nic(1)));
    apply_clean(&switch, &without).await;
    assert!(!look(world, "test").await.links.contains_key(tap));
}

async fn a_running_machine_moves_to_another_network(world: &dyn World) {
    let switch = switch(world, "test");
    let mut desired = one_port();
    desired.networks.push(nat(2, "10.78.0.0/24"));
    apply_clean(&switch, &desired).await;
    let _machine = switch.open_port(nic(1)).await.unwrap();
    let before = look(world, "test").await.links[&tag("test").tap(nic(1))].index;

    desired.networks[1].mtu = 1400;
    desired.ports[0].network = network(2);
    desired.ports[0].address = Some(Ipv4Addr::new(10, 78, 0, 5));
    apply_clean(&switch, &desired).await;
    let tap = look(world, "test").await.links[&tag("test").tap(nic(1))].clone();
    assert_eq!(tap.master, Some(tag("test").bridge(network(2))));
    assert_eq!((tap.index, tap.mtu), (before, 1400), "the same tap, so the machine keeps its card");
    assert_eq!(port_state(&switch).await, PortState::Attached);
}

async fn a_network_can_be_renumbered(world: &dyn World) {
    let switch = switch(world, "test");
    apply_clean(&switch, &one_port()).await;
    let moved = Desired { networks: vec![nat(1, "10.80.0.0/20")], ports: Vec::new() };
    apply_clean(&switch, &moved).await;
    let actual = look(world, "test").await;
    let bridge = &actual.links[&tag("test").bridge(network(1))];
    assert_eq!(bridge.addresses, vec![(Ipv4Addr::new(10, 80, 0, 1), 20)]);
    assert_eq!(apply_clean(&switch, &moved).await, 0);
}

async fn a_bridged_network_leaves_the_bridge_as_it_is(world: &dyn World) {
    let switch = switch(world, "test");
    let desired = Desired { networks: vec![bridged(1, "br0")], ports: vec![port(1, 1, None)] };
    let report = switch.apply(desired.clone()).await.unwrap();
    assert!(matches!(report.refused_networks[&network(1)], Refused::NoHostBridge { .. }));

    world.add_bridge("br0");
    let before = look(world, "test").await.links[&LinkName::new("br0")].clone();
    apply_clean(&switch, &desired).await;
    let machine = switch.open_port(nic(1)).await.unwrap();
    let actual = look(world, "test").await;
    let tap = &actual.links[&tag("test").tap(nic(1))];
    assert_eq!(tap.master, Some(LinkName::new("br0")));
    assert!(!actual.forwarding, "bridging needs no forwarding");

    drop(machine);
    assert!(switch.remove_all().await.unwrap().is_clean());
    let after = look(world, "test").await.links[&LinkName::new("br0")].clone();
    assert_eq!((before.index, before.addresses), (after.index, after.addresses));
}

async fn two_instances_do_not_touch_each_other(world: &dyn World) {
    let (one, two) = (switch(world, "aaaa"), switch(world, "bbbb"));
    apply_clean(&one, &one_port()).await;
    let same_ids =
        Desired { networks: vec![nat(1, "10.88.0.0/24")], ports: vec![port(1, 1, None)] };
    // The same subnet is refused: the first instance's bridge is a route like any other.
    let report = two.apply(one_port()).await.unwrap();
    assert!(matches!(report.refused_networks[&network(1)], Refused::RouteConflict { .. }));
    apply_clean(&two, &same_ids).await;
    let _first = one.open_port(nic(1)).await.unwrap();
    let _second = two.open_port(nic(1)).await.unwrap();

    assert!(two.remove_all().await.unwrap().is_clean());
    assert_eq!(apply_clean(&one, &one_port()).await, 0);
    assert_eq!(port_state(&one).await, PortState::Attached);
}

async fn remove_all_leaves_nothing(world: &dyn World) {
    world.add_bridge("br0");
    let before = look(world, "test").await;
    let switch = switch(world, "test");
    let mut desired = one_port();
    desired.networks.push(bridged(2, "br0"));
    desired.ports.push(port(2, 2, None));
    apply_clean(&switch, &desired).await;
    let _machines =
        [switch.open_port(nic(1)).await.unwrap(), switch.open_port(nic(2)).await.unwrap()];

    assert!(switch.remove_all().await.unwrap().is_clean());
    let after = look(world, "test").await;
    let names = |actual: &Actual| actual.links.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&after), names(&before));
    assert_eq!(after.routes, before.routes);
    assert!(after.rules.is_none() && !after.tables && !after.learning);
    assert!(switch.observe().await.unwrap().is_empty());
}
