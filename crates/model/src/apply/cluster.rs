//! Making the cluster, joining it, leaving it.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::ClusterId;
use crate::ClusterRecord;
use crate::ClusterState;
use crate::EventKind;
use crate::Gone;
use crate::GoneNode;
use crate::JoinTokenId;
use crate::JoinTokenRecord;
use crate::Membership;
use crate::Name;
use crate::NodeFacts;
use crate::NodeId;
use crate::NodeInterface;
use crate::NodeRecord;
use crate::OpFailure;
use crate::Refused;
use crate::Severity;
use crate::Subject;
use crate::VmId;
use crate::VmPlace;
use crate::VmRecord;
use crate::apply::Context;
use crate::apply::finish;
use crate::apply::history;
use crate::apply::lun;
use crate::apply::storage;
use crate::apply::vm_subject;
use crate::apply::witness;
use crate::state::not_found;

/// Most nodes of a cluster (DESIGN.md: one to sixty-four hosts).
const NODES_MAX: usize = 64;

/// Most join tokens at a time: people make one for each host or one for all.
const JOIN_TOKENS_MAX: usize = 100;

/// Most hosts that one token takes in.
const USES_MAX: u32 = 64;

/// Nodes that are gone and still known. Far beyond what a cluster sees in its life.
const GONE_MAX: usize = 10_000;

/// Addresses of all devices of one node.
const INTERFACES_MAX: usize = 64;

/// Addresses of one node: cluster networks.
const ADDRESSES_MAX: usize = 8;

/// Longest PEM text of the CA: ours have less than one kilobyte.
const PEM_CHARS_MAX: usize = 16 * 1024;

/// Longest version that a node says.
const VERSION_CHARS_MAX: usize = 64;

pub(crate) fn create(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    record: ClusterRecord,
    node: NodeId,
    key: &str,
) -> Result<(), Refused> {
    if let Some(cluster) = &state.cluster {
        return Err(Refused::InCluster(cluster.name.clone()));
    }
    let sound = |pem: &str| !pem.is_empty() && pem.len() <= PEM_CHARS_MAX;
    if !sound(&record.ca_certificate) || !sound(record.ca_key.reveal()) {
        return Err(Refused::Invalid("the cluster's CA has no sound certificate".to_owned()));
    }
    check_key(key)?;
    let mut first = found(state, node)?.clone();
    // Without a cluster there is nothing by which another node could have come.
    if state.nodes.len() != 1 {
        return Err(Refused::Invalid("the state has other nodes already".to_owned()));
    }
    first.key = Some(key.to_owned());
    first.joined = cx.proposal.at;
    let name = record.name.clone();
    let id = record.id;
    state.nodes.insert(node, Arc::new(first));
    state.cluster = Some(Arc::new(record));
    event(cx, EventKind::ClusterCreated, &(id, &name), format!("cluster {name} was made"));
    Ok(())
}

fn event(cx: &mut Context<'_>, kind: EventKind, (id, name): &(ClusterId, &Name), text: String) {
    let subject = Subject::Cluster { id: *id, name: name.to_string() };
    cx.event(kind, Severity::Info, subject, text, None);
}

pub(crate) fn token_create(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    record: JoinTokenRecord,
) -> Result<(), Refused> {
    let cluster = cluster(state)?;
    if state.join_tokens.contains_key(&record.id) {
        return Err(Refused::IdTaken(record.id.to_string()));
    }
    if record.digest.len() != 64 {
        return Err(Refused::Invalid("a token's digest has 64 hexadecimal digits".to_owned()));
    }
    if record.uses == 0 || record.uses > USES_MAX {
        return Err(Refused::Invalid(format!("a join token takes in 1 to {USES_MAX} hosts")));
    }
    if record.expires <= cx.proposal.at {
        return Err(Refused::Invalid("a join token must be valid for some time".to_owned()));
    }
    let now = cx.proposal.at;
    let valid = state.join_tokens.values().filter(|token| token.is_valid(now)).count();
    if valid >= JOIN_TOKENS_MAX {
        return Err(Refused::Limit { what: "join tokens", most: JOIN_TOKENS_MAX });
    }
    let text = format!("a join token for {} hosts was made", record.uses);
    // Those that have ended are of no use to anybody.
    let ended: Vec<_> = state
        .join_tokens
        .values()
        .filter(|token| !token.is_valid(now))
        .map(|token| token.id)
        .collect();
    for id in ended {
        state.join_tokens.remove(&id);
    }
    state.join_tokens.insert(record.id, Arc::new(record));
    event(cx, EventKind::JoinTokenCreated, &(cluster.id, &cluster.name), text);
    Ok(())
}

pub(crate) fn token_revoke(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: JoinTokenId,
) -> Result<(), Refused> {
    let cluster = cluster(state)?;
    if !state.join_tokens.contains_key(&id) {
        return Err(not_found("join token", &id.to_string()));
    }
    state.join_tokens.remove(&id);
    let text = format!("join token {id} is no longer valid");
    event(cx, EventKind::JoinTokenRevoked, &(cluster.id, &cluster.name), text);
    Ok(())
}

/// Who wants to join.
pub(crate) struct Joining<'a> {
    pub(crate) node: NodeId,
    pub(crate) name: &'a Name,
    pub(crate) key: &'a str,
    pub(crate) facts: &'a NodeFacts,
    pub(crate) digest: &'a str,
}

pub(crate) fn join(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    joining: &Joining<'_>,
) -> Result<(), Refused> {
    let Joining { node, name, key, facts, digest } = *joining;
    let now = cx.proposal.at;
    cluster(state)?;
    check_key(key)?;
    check_facts(facts)?;
    let token = state.join_tokens.values().find(|token| token.digest == digest);
    if let Some(known) = state.nodes.get(&node) {
        // The same host asks again because the answer was lost on the way.
        if token.is_some() && known.key.as_deref() == Some(key) && known.name == *name {
            return Ok(());
        }
        return Err(Refused::IdTaken(node.to_string()));
    }
    let token = token.filter(|token| token.is_valid(now)).ok_or(Refused::JoinToken)?.id;
    if let Some(gone) = state.gone.get(&node) {
        return Err(Refused::NodeGone { name: gone.name.clone(), how: gone.how });
    }
    if state.nodes.len() >= NODES_MAX {
        return Err(Refused::Limit { what: "nodes", most: NODES_MAX });
    }
    check_unique(state, node, name, &facts.addresses)?;
    if state.nodes.values().any(|other| other.key.as_deref() == Some(key)) {
        return Err(Refused::Invalid("another node has the same key".to_owned()));
    }
    if let Some(token) = state.join_tokens.get_mut(&token) {
        Arc::make_mut(token).uses -= 1;
    }
    let record = NodeRecord {
        facts: facts.clone(),
        key: Some(key.to_owned()),
        joined: now,
        ..NodeRecord::new(node, name.clone(), now)
    };
    let subject = record.subject();
    state.nodes.insert(node, Arc::new(record));
    witness::give_slot(state, node);
    cx.event(EventKind::NodeJoined, Severity::Info, subject, format!("{name} joined"), None);
    Ok(())
}

pub(crate) fn facts(
    state: &mut ClusterState,
    node: NodeId,
    facts: &NodeFacts,
) -> Result<(), Refused> {
    check_facts(facts)?;
    let record = found(state, node)?;
    check_unique(state, node, &record.name, &facts.addresses)?;
    let mut record = record.clone();
    // Those are told by themselves, by another part of the node.
    let interfaces = record.facts.interfaces.clone();
    record.facts = NodeFacts { interfaces, ..facts.clone() };
    state.nodes.insert(node, Arc::new(record));
    Ok(())
}

pub(crate) fn leave(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    node: NodeId,
) -> Result<(), Refused> {
    cluster(state)?;
    let record = found(state, node)?.clone();
    if state.nodes.len() == 1 {
        return Err(Refused::LastNode(record.name));
    }
    let users = owned(state, node);
    if !users.is_empty() {
        return Err(Refused::OwnsVms { node: record.name, users: users.join(", ") });
    }
    if record.membership == Membership::Leaving {
        return Ok(());
    }
    let (subject, text) = (record.subject(), format!("{} leaves the cluster", record.name));
    let record = NodeRecord { membership: Membership::Leaving, ..record };
    state.nodes.insert(node, Arc::new(record));
    cx.event(EventKind::NodeLeaving, Severity::Info, subject, text, None);
    Ok(())
}

pub(crate) fn gone(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    node: NodeId,
) -> Result<(), Refused> {
    cluster(state)?;
    let record = found(state, node)?.clone();
    if record.membership != Membership::Leaving {
        return Err(Refused::Invalid(format!("{} has not asked to leave", record.name)));
    }
    // Since it asked to leave, a VM may have been made there.
    let users = owned(state, node);
    if !users.is_empty() {
        return Err(Refused::OwnsVms { node: record.name, users: users.join(", ") });
    }
    admit_no_volumes(state, &record)?;
    let text = format!("{} has left the cluster", record.name);
    remove(state, cx, &record, Gone::Left);
    cx.event(EventKind::NodeLeft, Severity::Info, record.subject(), text, None);
    Ok(())
}

pub(crate) fn evict(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    node: NodeId,
    forget_vms: bool,
) -> Result<(), Refused> {
    cluster(state)?;
    let record = found(state, node)?.clone();
    if state.nodes.len() == 1 {
        return Err(Refused::LastNode(record.name));
    }
    // VMs on volumes belong to whoever takes them over; only the others can go with their node.
    let stay = |vm: &VmRecord| is_there(vm, node) && (vm.volume.is_some() || !forget_vms);
    if state.vms.values().any(|vm| stay(vm)) {
        let users = owned(state, node).join(", ");
        return Err(Refused::OwnsVms { node: record.name, users });
    }
    admit_no_volumes(state, &record)?;
    let there: Vec<_> =
        state.vms.values().filter(|vm| is_there(vm, node)).map(|vm| vm.id).collect();
    if !there.is_empty() && record.fenced.is_none() {
        return Err(Refused::NotFenced(record.name));
    }
    for vm in there {
        forget(state, cx, vm, &record.name)?;
    }
    let text = format!("{} was evicted from the cluster", record.name);
    remove(state, cx, &record, Gone::Evicted);
    cx.event(EventKind::NodeEvicted, Severity::Warning, record.subject(), text, None);
    Ok(())
}

fn remove(state: &mut ClusterState, cx: &Context<'_>, record: &NodeRecord, how: Gone) {
    let gone = GoneNode {
        id: record.id,
        name: record.name.clone(),
        at: cx.proposal.at,
        how,
        by: cx.proposal.actor.to_string(),
    };
    state.nodes.remove(&record.id);
    lun::not_wanted(state, record.id);
    storage::forget_copies(state, VmPlace::Node { node: record.id });
    state.gone.insert(record.id, Arc::new(gone));
    // Ids are sorted by time: the first one is the oldest.
    if state.gone.len() > GONE_MAX {
        let oldest = state.gone.keys().next().copied();
        oldest.and_then(|oldest| state.gone.remove(&oldest));
    }
}

/// A node's mount of a volume must have ended, or another node have it, before it is forgotten.
fn admit_no_volumes(state: &ClusterState, record: &NodeRecord) -> Result<(), Refused> {
    let volumes = lun::held(state, record.id);
    if volumes.is_empty() {
        return Ok(());
    }
    Err(Refused::Coordinates { node: record.name.clone(), volumes: volumes.join(", ") })
}

/// Some of the VMs that live on a node or are on their way to it, also in the recycle bin.
fn owned(state: &ClusterState, node: NodeId) -> Vec<&str> {
    const SHOWN: usize = 5;
    let here = state.vms.values().filter(|vm| is_there(vm, node));
    here.map(|vm| vm.name.as_str()).take(SHOWN).collect()
}

fn is_there(vm: &VmRecord, node: NodeId) -> bool {
    vm.owner == node || vm.moving.as_ref().is_some_and(|moving| moving.to == node)
}

/// Takes the record of a VM away whose disks went with their node.
fn forget(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: VmId,
    node: &Name,
) -> Result<(), Refused> {
    let vm = state.vm(id)?.clone();
    for op in &vm.ops {
        let failure = OpFailure {
            code: "node_evicted".to_owned(),
            message: format!("{node} was evicted"),
            hint: String::new(),
        };
        finish::fail(state, cx, *op, failure)?;
    }
    if vm.deleted.is_none() {
        state.vm_names.remove(&vm.name.key());
    }
    state.vms.remove(&id);
    history::forget(state, id);
    let text = format!("{} is not known any more: its disks are those of {node}", vm.name);
    cx.event(EventKind::VmForgotten, Severity::Warning, vm_subject(&vm), text, None);
    Ok(())
}

fn cluster(state: &ClusterState) -> Result<Arc<ClusterRecord>, Refused> {
    state.cluster.clone().ok_or(Refused::NoCluster)
}

fn found(state: &ClusterState, node: NodeId) -> Result<&NodeRecord, Refused> {
    match state.nodes.get(&node) {
        Some(record) => Ok(record),
        None => Err(not_found("node", &node.to_string())),
    }
}

fn check_key(key: &str) -> Result<(), Refused> {
    if key.len() == 64 && key.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(());
    }
    Err(Refused::Invalid("the digest of a node's key has 64 hexadecimal digits".to_owned()))
}

pub(crate) fn interfaces(
    state: &mut ClusterState,
    node: NodeId,
    interfaces: &[NodeInterface],
) -> Result<(), Refused> {
    if interfaces.len() > INTERFACES_MAX {
        return Err(Refused::Limit { what: "interfaces of a node", most: INTERFACES_MAX });
    }
    let mut record = (**state.node(node)?).clone();
    record.facts.interfaces = interfaces.to_vec();
    state.nodes.insert(node, Arc::new(record));
    Ok(())
}

fn check_facts(facts: &NodeFacts) -> Result<(), Refused> {
    if facts.addresses.len() > ADDRESSES_MAX {
        return Err(Refused::Limit { what: "addresses of a node", most: ADDRESSES_MAX });
    }
    if facts.version.chars().count() > VERSION_CHARS_MAX {
        return Err(Refused::Invalid("the version of a node is too long".to_owned()));
    }
    let unusable = |address: &&SocketAddr| address.ip().is_unspecified() || address.port() == 0;
    match facts.addresses.iter().find(unusable) {
        None => Ok(()),
        Some(address) => Err(Refused::Invalid(format!(
            "{address} is no address at which others can reach a node; set cluster_addresses"
        ))),
    }
}

/// Names and addresses are each those of one node.
pub(crate) fn check_unique(
    state: &ClusterState,
    node: NodeId,
    name: &Name,
    addresses: &[SocketAddr],
) -> Result<(), Refused> {
    for other in state.nodes.values().filter(|other| other.id != node) {
        if other.name.key() == name.key() {
            return Err(Refused::NameTaken { what: "node", name: name.clone() });
        }
        if let Some(address) = addresses.iter().find(|one| other.facts.addresses.contains(one)) {
            return Err(Refused::NodeAddress { address: *address, node: other.name.clone() });
        }
    }
    Ok(())
}
