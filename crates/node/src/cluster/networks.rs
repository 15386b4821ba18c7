//! Networks that hosts have in common: what this node tells of its own, and what people are shown.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use api::cluster_network::ClusterNetworkNode;
use api::cluster_network::ClusterNetworkView;
use api::cluster_network::ClusterNetworksView;
use model::Actor;
use model::ClusterState;
use model::Command;
use model::IpSubnet;
use model::Name;
use model::NetworkKind;
use model::NodeId;
use model::NodeInterface;
use model::Proposal;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use crate::app::now;
use crate::truth::Truth;

/// How often the devices of the host are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Most addresses that are told.
const INTERFACES_MAX: usize = 64;

/// Tells the cluster the addresses of this host's devices, as long as it knows others.
pub(crate) async fn tell((node, name): (NodeId, Name), truth: Arc<dyn Truth>) {
    let actor = Actor::new(&format!("node {name}"));
    let mut states = truth.watch();
    loop {
        let state = states.borrow_and_update().clone();
        if let Some(interfaces) = fresh(&state, node, &interfaces()) {
            let command = Command::NodeInterfacesSet { node, interfaces };
            let proposal = Proposal { at: now(), actor: actor.clone(), command };
            if let Err(error) = truth.propose(proposal).await {
                tracing::info!(%error, "the cluster does not know yet in which networks this is");
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What is to be told, if the cluster knows otherwise. A host by itself has nobody to reach.
fn fresh(state: &ClusterState, node: NodeId, seen: &[NodeInterface]) -> Option<Vec<NodeInterface>> {
    state.cluster.as_ref()?;
    let known = &state.nodes.get(&node)?.facts;
    let own_nat = |address: IpAddr| {
        state.networks.values().any(|network| match &network.kind {
            NetworkKind::Nat { subnet } => IpSubnet::of(subnet.base().into(), subnet.prefix())
                .is_some_and(|subnet| subnet.contains(address)),
            NetworkKind::Bridge { .. } => false,
        })
    };
    let mut interfaces: Vec<NodeInterface> =
        seen.iter().copied().filter(|it| !own_nat(it.address)).collect();
    interfaces.sort_unstable();
    interfaces.dedup();
    interfaces.truncate(INTERFACES_MAX);
    (known.interfaces != interfaces).then_some(interfaces)
}

/// Addresses of devices that are up, without those that only this host can reach.
fn interfaces() -> Vec<NodeInterface> {
    let mut found = Vec::new();
    for device in getifaddrs().into_iter().flatten() {
        let up = device.flags.contains(InterfaceFlags::IFF_UP);
        if !up || device.flags.contains(InterfaceFlags::IFF_LOOPBACK) {
            continue;
        }
        let (Some(address), Some(mask)) = (device.address, device.netmask) else { continue };
        let pair = match (address.as_sockaddr_in(), mask.as_sockaddr_in()) {
            (Some(address), Some(mask)) => {
                Some((IpAddr::V4(address.ip()), u32::from(mask.ip()).count_ones()))
            }
            _ => match (address.as_sockaddr_in6(), mask.as_sockaddr_in6()) {
                (Some(address), Some(mask)) => {
                    Some((IpAddr::V6(address.ip()), u128::from(mask.ip()).count_ones()))
                }
                _ => None,
            },
        };
        let Some((address, prefix)) = pair else { continue };
        let far = match address {
            IpAddr::V4(it) => !it.is_link_local() && !it.is_unspecified(),
            IpAddr::V6(it) => !it.is_unicast_link_local() && !it.is_unspecified(),
        };
        if let (true, Ok(prefix)) = (far, u8::try_from(prefix)) {
            found.push(NodeInterface { address, prefix });
        }
    }
    found
}

/// All networks, for people.
pub(crate) fn view(state: &ClusterState) -> ClusterNetworksView {
    let mut members: BTreeMap<IpSubnet, Vec<ClusterNetworkNode>> = BTreeMap::new();
    for record in state.cluster_networks.values() {
        members.entry(record.subnet).or_default();
    }
    for node in state.nodes.values() {
        for interface in &node.facts.interfaces {
            let Some(subnet) = interface.subnet() else { continue };
            let entry = ClusterNetworkNode { node: node.name.clone(), address: interface.address };
            members.entry(subnet).or_default().push(entry);
        }
    }
    let said = |subnet: &IpSubnet| state.cluster_networks.get(&subnet.to_string());
    let mut networks: Vec<ClusterNetworkView> = members
        .into_iter()
        .filter(|(subnet, nodes)| nodes.len() > 1 || said(subnet).is_some())
        .map(|(subnet, mut nodes)| {
            nodes.sort_by(|a, b| a.node.cmp(&b.node));
            let is_in = |name: &Name| nodes.iter().any(|it| it.node == *name);
            let missing = state.nodes.values().map(|node| &node.name).filter(|it| !is_in(it));
            let mut missing: Vec<Name> = missing.cloned().collect();
            missing.sort();
            let mut calls = state.nodes.values().flat_map(|node| &node.facts.addresses);
            ClusterNetworkView {
                subnet,
                name: said(&subnet).map(|record| record.name.clone()),
                cluster: calls.any(|address| subnet.contains(address.ip())),
                migration: said(&subnet).and_then(|record| record.migration),
                nodes,
                missing,
            }
        })
        .collect();
    networks.sort_by_key(|it| (it.migration.unwrap_or(u8::MAX), it.subnet));
    ClusterNetworksView { networks, strict: state.migration_strict }
}

#[cfg(test)]
mod tests {
    use model::ClusterNetworkRecord;

    use super::*;
    use crate::ha::world::World;
    use crate::ha::world::node;

    fn at(address: &str) -> NodeInterface {
        NodeInterface { address: address.parse().unwrap(), prefix: 24 }
    }

    #[test]
    fn a_node_tells_of_what_others_can_reach_and_only_when_it_is_news() {
        let mut world = World::new(2);
        let seen = [at("10.1.0.1"), at("10.77.0.1"), at("10.1.0.1")];
        assert_eq!(fresh(&world.state, node(1), &seen), None, "it is alone");
        world.form_cluster();
        world.ok(Command::NetworkCreate {
            network: model::NetworkId::new(uuid::Uuid::from_u128(7)),
            name: "nat".parse().unwrap(),
            kind: NetworkKind::Nat { subnet: "10.77.0.0/24".parse().unwrap() },
        });
        let interfaces = fresh(&world.state, node(1), &seen).unwrap();
        assert_eq!(interfaces, [at("10.1.0.1")], "each node has the guests' gateway");
        world.ok(Command::NodeInterfacesSet { node: node(1), interfaces });
        assert_eq!(fresh(&world.state, node(1), &seen), None, "that is known");
    }

    #[test]
    fn people_see_networks_of_several_nodes_and_who_is_not_in_them() {
        let mut world = World::new(3);
        world.form_cluster();
        for (n, addresses) in [(1, vec!["10.1.0.1", "10.2.0.1"]), (2, vec!["10.1.0.2"])] {
            let interfaces = addresses.into_iter().map(at).collect();
            world.ok(Command::NodeInterfacesSet { node: node(n), interfaces });
        }
        let shown = |world: &World| {
            let view = view(&world.state);
            let words = |it: &ClusterNetworkView| {
                (it.subnet.to_string(), it.nodes.len(), it.missing.len(), it.migration)
            };
            view.networks.iter().map(words).collect::<Vec<_>>()
        };
        assert_eq!(shown(&world), [("10.1.0.0/24".to_owned(), 2, 1, None)]);
        let subnet = "10.2.0.0/24".parse().unwrap();
        let record =
            ClusterNetworkRecord { subnet, name: "fast".parse().unwrap(), migration: Some(1) };
        world.ok(Command::ClusterNetworkSet { record: Box::new(record) });
        assert_eq!(shown(&world)[0], ("10.2.0.0/24".to_owned(), 1, 2, Some(1)), "it was named");
    }

    #[test]
    fn this_host_has_no_loopback_to_tell_of() {
        assert!(interfaces().iter().all(|it| !it.address.is_loopback()));
    }
}
