//! What follows from a forcing of the quorum.
//!
//! This command stands in the log beside the new list of voters, which no refusal takes back: so it
//! is carried out whatever the state is, and names that are gone meanwhile are passed over.

use std::collections::BTreeSet;
use std::sync::Arc;

use uuid::Uuid;

use crate::ClusterState;
use crate::EventKind;
use crate::FenceProof;
use crate::Fenced;
use crate::ForcedRecord;
use crate::Membership;
use crate::NodeId;
use crate::Power;
use crate::Refused;
use crate::Severity;
use crate::Subject;
use crate::WitnessRecord;
use crate::apply::Context;

/// How far the runs of VMs jump: beyond any number that the nodes which are given up can have
/// reached without this half hearing of it.
const RUNS: u64 = 1 << 20;

pub(crate) fn quorum(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    lost: &BTreeSet<NodeId>,
    word: Uuid,
    witness: NodeId,
) -> Result<(), Refused> {
    let cluster = state.cluster.clone().ok_or(Refused::NoCluster)?;
    let at = cx.proposal.at;
    let by = cx.proposal.actor.to_string();
    let mut names = Vec::new();
    for id in lost {
        let Some(node) = state.nodes.get_mut(id).map(Arc::make_mut) else { continue };
        node.membership = Membership::Lost;
        node.fence.wish = None;
        node.fence.failure = None;
        node.epoch += 1;
        node.fenced.get_or_insert(Fenced { at, proof: FenceProof::Statement });
        names.push(node.name.to_string());
    }
    let of_lost: Vec<_> = state
        .vms
        .values()
        // One that runs on a node which goes on keeps its number: it is that run.
        .filter(|vm| vm.volume.is_some() && (lost.contains(&vm.owner) || vm.power == Power::Off))
        .map(|vm| vm.id)
        .collect();
    for id in of_lost {
        if let Some(vm) = state.vms.get_mut(&id).map(Arc::make_mut) {
            vm.generation = vm.generation.plus(RUNS);
        }
    }
    if let Some(record) = state.witness.take() {
        let record = Arc::unwrap_or_clone(record);
        state.witness = Some(Arc::new(WitnessRecord { id: witness, ..record }));
    }
    let before = state.forced.as_ref();
    let earlier = before.into_iter().flat_map(|forced| &forced.lost);
    let record = ForcedRecord {
        count: before.map_or(0, |forced| forced.count) + 1,
        word,
        lost: earlier.chain(lost).copied().collect(),
        at,
        by,
    };
    state.forced = Some(Arc::new(record));
    let text = format!(
        "the quorum was forced; given up: {}. They may come back only as new nodes",
        names.join(", ")
    );
    let subject = Subject::Cluster { id: cluster.id, name: cluster.name.to_string() };
    cx.event(EventKind::QuorumForced, Severity::Error, subject, text, None);
    Ok(())
}
