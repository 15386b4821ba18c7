//! The lease of this node, and, on the node that leads, everybody's leases and fencing.
//!
//! ```text
//!   every node                                    the node that leads
//!   keeper --- LeaseRequest (peer RPC) ---------> desk: one reign, decides on grants
//!     |  <---- grant, or "you were fenced" ------   |
//!     v                                             v
//!   guard (socket): freezes, kills               fencer: wishes in the state -> proof -> NodeFenced
//!     |
//!     v
//!   permit: machines start only under a live lease
//! ```
//!
//! A *reign* is the time in which one leader grants. Its number is in the state and only grows. Who
//! has the present one may grant, after a linearizable read has shown that it still is the present
//! one; a proof that was measured under an earlier reign is refused by the state. So it does not
//! matter what a deposed leader believes.
//!
//! A cluster of one needs no guard: its lease has no end, and machines start without one.

mod desk;
mod fencer;
mod keeper;
mod permit;
mod setup;
mod source;
#[cfg(test)]
mod tests;
use std::sync::Arc;

use cluster::lease::Certainty;
use cluster::lease::Known;
use cluster::lease::LeaseSettings;
use model::ClusterState;
use model::NodeId;

use desk::ByLog;
pub(crate) use desk::LeaderDesk;
use fencer::Fencer;
use keeper::Keeper;
pub(crate) use keeper::LeaseView;
pub(crate) use permit::PermitEngine;
pub(crate) use setup::Assembly;
pub(crate) use setup::LeaseTask;
use source::LeaseSource;
use source::OutSource;
use source::PeerSource;
pub(crate) use source::serve;

/// What the API and others of the daemon see of it.
pub(crate) struct Fencing {
    pub(crate) settings: LeaseSettings,
    pub(crate) desk: Arc<LeaderDesk>,
    pub(crate) agents: cluster::fence::Agents,
    pub(crate) lease: tokio::sync::watch::Receiver<LeaseView>,
}

/// Whether `node` is in a cluster of one: then nobody could take anything over. A node that knows
/// only others, or nobody, is one that joins and has not heard all yet.
fn is_alone(state: &ClusterState, node: NodeId) -> bool {
    state.nodes.len() == 1 && state.nodes.contains_key(&node)
}

/// What the state says of a node, for the arithmetic of leases. Nothing: no such node.
pub(crate) fn known(state: &ClusterState, node: NodeId) -> Option<Known> {
    let record = state.nodes.get(&node)?;
    Some(Known {
        epoch: record.epoch,
        fenced: record.fenced.is_some(),
        terms: record.fence.terms,
        alone: is_alone(state, node),
        provable: state.fence_devices.values().any(|device| device.nodes.contains_key(&node)),
    })
}

/// What makes sure that a node's VMs do not run there any more, when they are to run elsewhere.
pub(crate) fn certainty(
    state: &ClusterState,
    settings: &LeaseSettings,
    node: NodeId,
) -> Option<Certainty> {
    Some(known(state, node)?.certainty(settings))
}
