//! Nodes, networks, tokens, and the way out of the recycle bin.

use std::sync::Arc;

use crate::ClusterState;
use crate::EventKind;
use crate::Name;
use crate::NetworkId;
use crate::NetworkKind;
use crate::NetworkRecord;
use crate::NodeCapacity;
use crate::NodeId;
use crate::NodeRecord;
use crate::Refused;
use crate::Severity;
use crate::Subject;
use crate::TokenId;
use crate::TokenRecord;
use crate::VmId;
use crate::apply::Context;
use crate::apply::cluster;
use crate::apply::set;
use crate::apply::vm_mut;
use crate::apply::vm_subject;

/// Most networks: each NAT network is a bridge and a rule set on every node.
const NETWORKS_MAX: usize = 256;

/// Most tokens: each request compares with all of them.
const TOKENS_MAX: usize = 1_000;

/// Longest name of a network device (IFNAMSIZ of Linux, less the final zero).
const BRIDGE_CHARS_MAX: usize = 15;

pub(crate) fn node_started(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    node: NodeId,
    name: &Name,
    capacity: NodeCapacity,
) -> Result<(), Refused> {
    if let Some(gone) = state.gone.get(&node) {
        return Err(Refused::NodeGone { name: gone.name.clone(), how: gone.how });
    }
    let record = match (state.nodes.get(&node), &state.cluster) {
        (Some(known), _) => {
            cluster::check_unique(state, node, name, &[])?;
            // What the cluster knows of it outlives a restart: above all that it is fenced.
            let started = cx.proposal.at;
            NodeRecord { name: name.clone(), started, capacity, ..(**known).clone() }
        }
        (None, None) => {
            NodeRecord { capacity, ..NodeRecord::new(node, name.clone(), cx.proposal.at) }
        }
        // Only a join makes members of a cluster.
        (None, Some(_)) => return Err(Refused::NotMember(name.clone())),
    };
    let subject = record.subject();
    state.nodes.insert(node, Arc::new(record));
    cx.event(EventKind::NodeStarted, Severity::Info, subject, format!("{name} serves"), None);
    Ok(())
}

pub(crate) fn undelete(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: VmId,
    name: Option<&Name>,
) -> Result<(), Refused> {
    let vm = state.vm(id)?;
    if vm.deleted.is_none() {
        return Err(Refused::NotDeleted(vm.name.clone()));
    }
    if let Some(op) = vm.busy() {
        let verb = state.op(op)?.request.verb();
        return Err(Refused::Busy { target: vm.name.clone(), op, verb });
    }
    let name = name.unwrap_or(&vm.name).clone();
    set::name_free(state, &name, None)?;
    let vm = vm_mut(state, id)?;
    vm.deleted = None;
    vm.name = name.clone();
    let subject = vm_subject(vm);
    state.vm_names.insert(name.key(), id);
    let text = format!("{name} was taken out of the recycle bin");
    cx.event(EventKind::VmUndeleted, Severity::Info, subject, text, None);
    Ok(())
}

pub(crate) fn network_create(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: NetworkId,
    name: &Name,
    kind: &NetworkKind,
) -> Result<(), Refused> {
    if state.networks.len() >= NETWORKS_MAX {
        return Err(Refused::Limit { what: "networks", most: NETWORKS_MAX });
    }
    if state.networks.contains_key(&id) {
        return Err(Refused::IdTaken(id.to_string()));
    }
    if state.networks.values().any(|other| other.name.key() == name.key()) {
        return Err(Refused::NameTaken { what: "network", name: name.clone() });
    }
    match kind {
        NetworkKind::Bridge { bridge } => check_bridge_name(bridge)?,
        NetworkKind::Nat { subnet } => {
            let overlapping = state.networks.values().find(|other| {
                matches!(other.kind, NetworkKind::Nat { subnet: theirs } if theirs.overlaps(*subnet))
            });
            if let Some(other) = overlapping {
                return Err(Refused::Address {
                    network: name.clone(),
                    problem: format!("{subnet} overlaps network {}", other.name),
                });
            }
        }
    }
    let record =
        NetworkRecord { id, name: name.clone(), kind: kind.clone(), created: cx.proposal.at };
    let subject = Subject::Network { id, name: name.to_string() };
    state.networks.insert(id, Arc::new(record));
    let text = format!("network {name} was made");
    cx.event(EventKind::NetworkCreated, Severity::Info, subject, text, None);
    Ok(())
}

fn check_bridge_name(bridge: &str) -> Result<(), Refused> {
    let fine = !bridge.is_empty()
        && bridge.len() <= BRIDGE_CHARS_MAX
        && bridge.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && !matches!(bridge, "." | "..");
    if fine {
        return Ok(());
    }
    Err(Refused::Invalid(
        "a bridge's name has 1 to 15 letters, digits, '-', '_' or '.'; list yours with: ip link \
         show type bridge"
            .to_owned(),
    ))
}

pub(crate) fn network_delete(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: NetworkId,
) -> Result<(), Refused> {
    let Some(network) = state.networks.get(&id) else {
        return Err(crate::state::not_found("network", &id.to_string()));
    };
    let name = network.name.clone();
    let key = name.key();
    let pending = |op: &Arc<crate::OpRecord>| {
        op.is_running()
            && match &op.request {
                crate::OpRequest::NicAdd { nic, .. } => nic.network.key() == key,
                crate::OpRequest::NicSet { change, .. } => {
                    change.network.as_ref().is_some_and(|network| network.key() == key)
                }
                _ => false,
            }
    };
    let users: Vec<&str> = state
        .vms
        .values()
        .filter(|vm| vm.spec.nics.iter().any(|nic| nic.network.key() == key))
        .map(|vm| vm.name.as_str())
        .chain(state.ops.values().filter(|op| pending(op)).map(|op| op.target.as_str()))
        .take(5)
        .collect();
    if !users.is_empty() {
        let users = users.join(", ");
        return Err(Refused::InUse { what: "network", name, users });
    }
    state.networks.remove(&id);
    let subject = Subject::Network { id, name: name.to_string() };
    let text = format!("network {name} is gone");
    cx.event(EventKind::NetworkDeleted, Severity::Info, subject, text, None);
    Ok(())
}

pub(crate) fn token_create(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    record: TokenRecord,
) -> Result<(), Refused> {
    if state.tokens.len() >= TOKENS_MAX {
        return Err(Refused::Limit { what: "tokens", most: TOKENS_MAX });
    }
    if state.tokens.contains_key(&record.id) {
        return Err(Refused::IdTaken(record.id.to_string()));
    }
    if state.tokens.values().any(|other| other.name.key() == record.name.key()) {
        return Err(Refused::NameTaken { what: "token", name: record.name });
    }
    if record.digest.len() != 64 {
        return Err(Refused::Invalid("a token's digest has 64 hexadecimal digits".to_owned()));
    }
    if let Some(key) = &record.certificate {
        certificate_free(state, key)?;
    }
    let subject = Subject::Token { id: record.id, name: record.name.to_string() };
    let text = match record.certificate {
        None => format!("token {} was made for the role {}", record.name, record.role),
        Some(_) => {
            format!("{} may sign in by certificate with the role {}", record.name, record.role)
        }
    };
    state.tokens.insert(record.id, Arc::new(record));
    cx.event(EventKind::TokenCreated, Severity::Info, subject, text, None);
    Ok(())
}

/// Checks that a certificate's key stands for nobody yet, above all for no node: what a node's key
/// proves is that a node speaks, and it lies on a disk without a password.
fn certificate_free(state: &ClusterState, key: &str) -> Result<(), Refused> {
    if key.len() != 64 {
        return Err(Refused::Invalid("a key's digest has 64 hexadecimal digits".to_owned()));
    }
    if let Some(node) = state.nodes.values().find(|node| node.key.as_deref() == Some(key)) {
        return Err(Refused::Invalid(format!(
            "this is the certificate of node {}; an administrator needs one of their own",
            node.name
        )));
    }
    match state.tokens.values().find(|token| token.certificate.as_deref() == Some(key)) {
        Some(token) => Err(Refused::Invalid(format!(
            "the certificate's key is that of token {} already; revoke that one first",
            token.name
        ))),
        None => Ok(()),
    }
}

pub(crate) fn token_revoke(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: TokenId,
) -> Result<(), Refused> {
    let Some(token) = state.tokens.remove(&id) else {
        return Err(crate::state::not_found("token", &id.to_string()));
    };
    super::session::token_gone(state, id);
    let subject = Subject::Token { id, name: token.name.to_string() };
    let text = format!("token {} is no longer valid", token.name);
    cx.event(EventKind::TokenRevoked, Severity::Info, subject, text, None);
    Ok(())
}
