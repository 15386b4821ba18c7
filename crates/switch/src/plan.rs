//! From desired and actual to a list of actions. Pure: no host is touched here.
//!
//! ```text
//!   1 delete taps nobody wants        their guests are gone or unplugged
//!   2 delete bridges nobody wants
//!   3 create bridges, give addresses  still down: nothing passes
//!   4 load the rules                  ports and networks are guarded before they can speak,
//!   5 forwarding on                   and a port's rules go after the port has gone (1 before 4)
//!   6 bridges up
//!   7 taps: attach, up
//! ```
//!
//! Each pass starts from what is there, so a pass that was cut anywhere is finished by the next.
//! A network or port that cannot be had is refused with a reason and does not hold up the others;
//! what already exists of it stays as it is.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use model::Ipv4Subnet;
use model::NetworkId;
use model::NetworkKind;
use model::NicId;

use crate::action::Action;
use crate::desired::Desired;
use crate::desired::NetworkSpec;
use crate::desired::PortSpec;
use crate::refused::Refused;
use crate::rules::NatRules;
use crate::rules::PortRules;
use crate::rules::RulesId;
use crate::rules::Ruleset;
use crate::rules::ruleset;
use crate::tag::InstanceTag;
use crate::tag::LinkName;

/// Routes this wide are default routes in disguise (VPN clients use 0.0.0.0/1 and 128.0.0.0/1).
const DEFAULT_ROUTE_PREFIX_MAX: u8 = 1;

/// What a device is, as far as we care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    /// A Linux bridge.
    Bridge,
    /// A tap or tun.
    Tap,
    /// Anything else.
    Other,
}

/// A device of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number for it; never reused while it exists.
    pub index: u32,
    /// What it is.
    pub kind: LinkKind,
    /// Administratively up.
    pub up: bool,
    /// MTU in bytes.
    pub mtu: u32,
    /// The bridge it is a port of.
    pub master: Option<LinkName>,
    /// IPv4 addresses with prefix length.
    pub addresses: Vec<(Ipv4Addr, u8)>,
    /// Whether the host itself speaks IPv6 on it. Only looked up for devices of ours.
    pub ipv6: bool,
    /// Counters from the device's side.
    pub counters: Counters,
}

/// Traffic of a port, as the guest sees it, since the tap was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes the guest received.
    pub rx_bytes: u64,
    /// Frames the guest received.
    pub rx_packets: u64,
    /// Bytes the guest sent.
    pub tx_bytes: u64,
    /// Frames the guest sent.
    pub tx_packets: u64,
}

/// An IPv4 route of the host's main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRoute {
    /// Destination.
    pub base: Ipv4Addr,
    /// Prefix length, 0 to 32.
    pub prefix: u8,
    /// The device it goes out of, where it has one.
    pub link: Option<LinkName>,
}

/// What is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Actual {
    /// All devices of the host's namespace.
    pub links: BTreeMap<LinkName, Link>,
    /// Our rules, when both tables carry the same digest.
    pub rules: Option<RulesId>,
    /// Whether any table of ours exists, whole or not.
    pub tables: bool,
    /// Whether the addresses of guests are being noted.
    pub learning: bool,
    /// Whether the host forwards IPv4.
    pub forwarding: bool,
    /// IPv4 routes.
    pub routes: Vec<HostRoute>,
}

/// What to do, and what cannot be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order of execution.
    pub actions: Vec<Action>,
    /// Networks that cannot be had, and why.
    pub refused_networks: BTreeMap<NetworkId, Refused>,
    /// Ports that cannot be had, and why.
    pub refused_ports: BTreeMap<NicId, Refused>,
}

/// Computes what is missing between desired and actual.
pub fn plan(tag: &InstanceTag, desired: &Desired, actual: &Actual) -> Plan {
    plan_with(tag, desired, actual, &mut RulesCache::default())
}

/// The rule set that was last asked for. Passes follow each other with the same ports (each start
/// of a machine is one), and building thousands of rules anew each time would be most of the work.
#[derive(Debug, Default)]
pub(crate) struct RulesCache(Option<(Vec<NatRules>, Vec<PortRules>, Ruleset)>);

impl RulesCache {
    fn get(&mut self, tag: &InstanceTag, nats: Vec<NatRules>, ports: Vec<PortRules>) -> &Ruleset {
        let known = self.0.take().filter(|(n, p, _)| *n == nats && *p == ports);
        let (_, _, rules) = self.0.insert(known.unwrap_or_else(|| {
            let rules = ruleset(tag, &nats, &ports);
            (nats, ports, rules)
        }));
        rules
    }
}

/// [`plan`], with the rule set of the last time at hand.
pub(crate) fn plan_with(
    tag: &InstanceTag,
    desired: &Desired,
    actual: &Actual,
    cache: &mut RulesCache,
) -> Plan {
    let mut plan = Plan::default();
    let networks = accept_networks(tag, desired, actual, &mut plan.refused_networks);
    let ports =
        accept_ports(tag, desired, &networks, &plan.refused_networks, &mut plan.refused_ports);

    let out = &mut plan.actions;
    delete_unwanted(tag, desired, actual, out);
    for network in networks.values() {
        prepare_bridge(tag, network, actual, out);
    }
    rules(tag, (&networks, &ports), desired, actual, cache, out);
    let nat = networks.values().any(|network| network.subnet().is_some());
    if nat && !actual.forwarding {
        out.push(Action::EnableForwarding);
    }
    for network in networks.values().filter(|network| network.subnet().is_some()) {
        let bridge = tag.bridge(network.id);
        if !actual.links.get(&bridge).is_some_and(|link| link.up) {
            out.push(Action::SetUp(bridge));
        }
    }
    for port in &ports {
        attach(tag, networks[&port.network], port, actual, out);
    }
    plan
}

/// The bridge that carries a network.
pub(crate) fn bridge_of(tag: &InstanceTag, network: &NetworkSpec) -> LinkName {
    match &network.kind {
        NetworkKind::Nat { .. } => tag.bridge(network.id),
        NetworkKind::Bridge { bridge } => LinkName::new(bridge.as_str()),
    }
}

fn accept_networks<'d>(
    tag: &InstanceTag,
    desired: &'d Desired,
    actual: &Actual,
    refused: &mut BTreeMap<NetworkId, Refused>,
) -> BTreeMap<NetworkId, &'d NetworkSpec> {
    let mut accepted: BTreeMap<NetworkId, &NetworkSpec> = BTreeMap::new();
    // Networks that already stand come first: a newcomer never takes a running network's subnet.
    let stands = |network: &NetworkSpec| {
        let subnet = network.subnet();
        let link = actual.links.get(&bridge_of(tag, network));
        subnet.zip(link).is_some_and(|(subnet, link)| has_gateway(link, subnet))
    };
    let (standing, new): (Vec<_>, Vec<_>) = desired.networks.iter().partition(|n| stands(n));
    for network in standing.into_iter().chain(new) {
        let verdict = match &network.kind {
            NetworkKind::Nat { subnet } => {
                check_nat(tag, network, *subnet, stands(network), &accepted, actual)
            }
            NetworkKind::Bridge { bridge } => check_bridge(network, bridge, actual),
        };
        match verdict {
            Ok(()) => {
                accepted.insert(network.id, network);
            }
            Err(reason) => {
                refused.insert(network.id, reason);
            }
        }
    }
    accepted
}

fn check_nat(
    tag: &InstanceTag,
    network: &NetworkSpec,
    subnet: Ipv4Subnet,
    stands: bool,
    accepted: &BTreeMap<NetworkId, &NetworkSpec>,
    actual: &Actual,
) -> Result<(), Refused> {
    let bridge = tag.bridge(network.id);
    for other in accepted.values() {
        if tag.bridge(other.id) == bridge {
            return Err(Refused::ShortIdCollision { link: bridge });
        }
        if let Some(other_subnet) = other.subnet().filter(|s| s.overlaps(subnet)) {
            return Err(Refused::SubnetOverlap {
                network: network.name.to_string(),
                subnet,
                other: other.name.to_string(),
                other_subnet,
            });
        }
    }
    match actual.links.get(&bridge) {
        Some(link) if link.kind != LinkKind::Bridge => {
            return Err(Refused::NameTaken { link: bridge });
        }
        _ => {}
    }
    // A route that came after the network does not tear the network down.
    if stands {
        return Ok(());
    }
    let ours = tag.bridge_prefix();
    let conflict = actual.routes.iter().find(|route| {
        // A bridge of ours that carries other addresses is on its way out or being renumbered.
        let foreign = !route.link.as_ref().is_some_and(|link| link.as_str().starts_with(&ours));
        foreign && route.prefix > DEFAULT_ROUTE_PREFIX_MAX && overlaps(route, subnet)
    });
    match conflict {
        None => Ok(()),
        Some(route) => Err(Refused::RouteConflict {
            network: network.name.to_string(),
            subnet,
            route: format!("{}/{}", route.base, route.prefix),
            link: route.link.as_ref().map_or("no device".to_owned(), LinkName::to_string),
        }),
    }
}

fn overlaps(route: &HostRoute, subnet: Ipv4Subnet) -> bool {
    let prefix = u32::from(route.prefix.min(subnet.prefix()));
    let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
    (u32::from(route.base) ^ u32::from(subnet.base())) & mask == 0
}

fn check_bridge(network: &NetworkSpec, bridge: &str, actual: &Actual) -> Result<(), Refused> {
    let what = match actual.links.get(&LinkName::new(bridge)) {
        Some(link) if link.kind == LinkKind::Bridge => return Ok(()),
        Some(_) => "is a device of another kind",
        None => "does not exist on this host",
    };
    let name = network.name.to_string();
    Err(Refused::NoHostBridge { network: name, bridge: bridge.to_owned(), what })
}

fn accept_ports<'d>(
    tag: &InstanceTag,
    desired: &'d Desired,
    networks: &BTreeMap<NetworkId, &NetworkSpec>,
    refused_networks: &BTreeMap<NetworkId, Refused>,
    refused: &mut BTreeMap<NicId, Refused>,
) -> Vec<&'d PortSpec> {
    let mut accepted: Vec<&PortSpec> = Vec::new();
    let mut taps: BTreeSet<LinkName> = BTreeSet::new();
    let mut macs = BTreeMap::new();
    let mut addresses = BTreeMap::new();
    for port in &desired.ports {
        let verdict = check_port(port, networks, refused_networks).and_then(|()| {
            let tap = tag.tap(port.nic);
            if taps.contains(&tap) {
                return Err(Refused::ShortIdCollision { link: tap });
            }
            if let Some(other) = macs.get(&(port.network, port.mac)) {
                let what = format!("MAC address {}", port.mac);
                return Err(Refused::Duplicate { what, other: *other });
            }
            let key = port.address.map(|address| (port.network, address));
            if let Some((_, address)) = key
                && let Some(other) = key.and_then(|key| addresses.get(&key))
            {
                let what = format!("IP address {address}");
                return Err(Refused::Duplicate { what, other: *other });
            }
            taps.insert(tap);
            macs.insert((port.network, port.mac), port.nic);
            if let Some(key) = key {
                addresses.insert(key, port.nic);
            }
            Ok(())
        });
        match verdict {
            Ok(()) => accepted.push(port),
            Err(reason) => {
                refused.insert(port.nic, reason);
            }
        }
    }
    accepted
}

fn check_port(
    port: &PortSpec,
    networks: &BTreeMap<NetworkId, &NetworkSpec>,
    refused: &BTreeMap<NetworkId, Refused>,
) -> Result<(), Refused> {
    if let Some(reason) = refused.get(&port.network) {
        return Err(Refused::NetworkRefused(Box::new(reason.clone())));
    }
    let network = networks.get(&port.network).ok_or(Refused::NoNetwork(port.network))?;
    if let Some((subnet, address)) = network.subnet().zip(port.address) {
        let special = [subnet.base(), subnet.gateway(), subnet.broadcast()];
        if !subnet.contains(address) || special.contains(&address) {
            return Err(Refused::BadAddress { address, subnet });
        }
    }
    Ok(())
}

fn delete_unwanted(tag: &InstanceTag, desired: &Desired, actual: &Actual, out: &mut Vec<Action>) {
    // Refused ones count as wanted: what exists of them stays until somebody takes them out.
    let taps: BTreeSet<LinkName> = desired.ports.iter().map(|port| tag.tap(port.nic)).collect();
    let bridges: BTreeSet<LinkName> = desired
        .networks
        .iter()
        .filter(|network| network.subnet().is_some())
        .map(|network| tag.bridge(network.id))
        .collect();
    let unwanted = |prefix: String, kind: LinkKind, wanted: &BTreeSet<LinkName>| {
        actual
            .links
            .iter()
            .filter(|(name, link)| name.as_str().starts_with(&prefix) && link.kind == kind)
            .filter(|(name, _)| !wanted.contains(*name))
            .map(|(name, _)| Action::DeleteLink(name.clone()))
            .collect::<Vec<_>>()
    };
    out.extend(unwanted(tag.tap_prefix(), LinkKind::Tap, &taps));
    out.extend(unwanted(tag.bridge_prefix(), LinkKind::Bridge, &bridges));
}

fn prepare_bridge(
    tag: &InstanceTag,
    network: &NetworkSpec,
    actual: &Actual,
    out: &mut Vec<Action>,
) {
    let Some(subnet) = network.subnet() else { return };
    let name = tag.bridge(network.id);
    let link = actual.links.get(&name);
    if link.is_none() {
        let alias = format!("muster network {}", network.name);
        let mac = tag.bridge_mac(network.id);
        out.push(Action::CreateBridge { name: name.clone(), mac, alias });
    }
    if link.is_none_or(|link| link.ipv6) {
        out.push(Action::SilenceIpv6(name.clone()));
    }
    let mtu = u32::from(network.mtu);
    if link.is_none_or(|link| link.mtu != mtu) {
        out.push(Action::SetMtu { link: name.clone(), mtu });
    }
    let wanted = (subnet.gateway(), subnet.prefix());
    let addresses = link.map(|link| link.addresses.as_slice()).unwrap_or_default();
    for &(address, prefix) in addresses.iter().filter(|have| **have != wanted) {
        out.push(Action::RemoveAddress { link: name.clone(), address, prefix });
    }
    if !addresses.contains(&wanted) {
        out.push(Action::AddAddress { link: name, address: wanted.0, prefix: wanted.1 });
    }
}

fn has_gateway(link: &Link, subnet: Ipv4Subnet) -> bool {
    link.kind == LinkKind::Bridge && link.addresses.contains(&(subnet.gateway(), subnet.prefix()))
}

fn rules(
    tag: &InstanceTag,
    (networks, ports): (&BTreeMap<NetworkId, &NetworkSpec>, &[&PortSpec]),
    desired: &Desired,
    actual: &Actual,
    cache: &mut RulesCache,
    out: &mut Vec<Action>,
) {
    if desired.networks.is_empty() && desired.ports.is_empty() {
        if actual.tables || actual.learning {
            out.push(Action::RemoveRules);
        }
        return;
    }
    let nats: Vec<NatRules> = networks
        .values()
        .filter_map(|n| n.subnet().map(|subnet| NatRules { bridge: tag.bridge(n.id), subnet }))
        .collect();
    let ports: Vec<PortRules> = ports
        .iter()
        .map(|port| PortRules {
            tap: tag.tap(port.nic),
            spec: (*port).clone(),
            nat: networks[&port.network].subnet().is_some(),
        })
        .collect();
    let wanted = cache.get(tag, nats, ports);
    if actual.rules.as_ref() != Some(&wanted.id) {
        out.push(Action::LoadRules(wanted.clone()));
    }
    if !actual.learning {
        out.push(Action::LearnAddresses);
    }
}

fn attach(
    tag: &InstanceTag,
    network: &NetworkSpec,
    port: &PortSpec,
    actual: &Actual,
    out: &mut Vec<Action>,
) {
    let tap = tag.tap(port.nic);
    let Some(link) = actual.links.get(&tap).filter(|link| link.kind == LinkKind::Tap) else {
        return;
    };
    let bridge = bridge_of(tag, network);
    if link.ipv6 {
        out.push(Action::SilenceIpv6(tap.clone()));
    }
    let mtu = match network.subnet() {
        Some(_) => u32::from(network.mtu),
        None => actual.links.get(&bridge).map_or(link.mtu, |bridge| bridge.mtu),
    };
    if link.mtu != mtu {
        out.push(Action::SetMtu { link: tap.clone(), mtu });
    }
    if link.master.as_ref() != Some(&bridge) {
        out.push(Action::Attach { tap: tap.clone(), bridge });
    }
    if !link.up {
        out.push(Action::SetUp(tap));
    }
}

#[cfg(test)]
#[path = "plan_test.rs"]
mod tests;
