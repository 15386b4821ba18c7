//! What networks of hosts are for.

use std::sync::Arc;

use crate::ClusterNetworkRecord;
use crate::ClusterState;
use crate::EventKind;
use crate::IpSubnet;
use crate::Refused;
use crate::Severity;
use crate::Subject;
use crate::apply::Context;
use crate::cluster_network::PREFERENCE_MAX;

/// Most networks of hosts that something is said about.
const NETWORKS_MAX: usize = 64;

pub(crate) fn set(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    record: &ClusterNetworkRecord,
) -> Result<(), Refused> {
    let key = record.subnet.to_string();
    if state.cluster_networks.len() >= NETWORKS_MAX && !state.cluster_networks.contains_key(&key) {
        return Err(Refused::Limit { what: "networks of hosts", most: NETWORKS_MAX });
    }
    let other = |it: &&Arc<ClusterNetworkRecord>| {
        it.subnet != record.subnet && it.name.key() == record.name.key()
    };
    if state.cluster_networks.values().any(|it| other(&it)) {
        return Err(Refused::NameTaken { what: "network of hosts", name: record.name.clone() });
    }
    if record.migration.is_some_and(|it| !(1..=PREFERENCE_MAX).contains(&it)) {
        return Err(Refused::Invalid(format!(
            "the preference of a network is 1 (first) to {PREFERENCE_MAX} (last)"
        )));
    }
    let role = match record.migration {
        Some(place) => format!("migration, in place {place}"),
        None => "none of its own".to_owned(),
    };
    let text = format!("network {} of hosts is {}; its role: {role}", record.subnet, record.name);
    state.cluster_networks.insert(key, Arc::new(record.clone()));
    changed(state, cx, text);
    Ok(())
}

pub(crate) fn forget(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    subnet: IpSubnet,
) -> Result<(), Refused> {
    if state.cluster_networks.remove(&subnet.to_string()).is_none() {
        return Err(crate::state::not_found("cluster network", &subnet.to_string()));
    }
    changed(state, cx, format!("network {subnet} of hosts has no name and no role any more"));
    Ok(())
}

pub(crate) fn strict(state: &mut ClusterState, cx: &mut Context<'_>, strict: bool) {
    state.migration_strict = strict;
    let text = match strict {
        true => "machines move over networks with the migration role only",
        false => "machines move over other networks, too, where those with the role do not work",
    };
    changed(state, cx, text.to_owned());
}

fn changed(state: &ClusterState, cx: &mut Context<'_>, text: String) {
    let subject = match &state.cluster {
        Some(cluster) => Subject::Cluster { id: cluster.id, name: cluster.name.to_string() },
        None => return,
    };
    cx.event(EventKind::ClusterNetwork, Severity::Info, subject, text, None);
}
