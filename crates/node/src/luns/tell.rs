//! Tells the cluster which LUNs this node sees, as long as it knows it otherwise.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::Actor;
use model::Command;
use model::LunId;
use model::LunSeen;
use model::NodeId;
use model::Proposal;

use super::Luns;
use crate::app::now;
use crate::truth::ProposeError;
use crate::truth::Truth;

/// Looks, and tells what has changed. What a node that is no member sees is told to nobody.
///
/// # Errors
/// The state takes no changes now.
pub(super) async fn tell(
    luns: &Luns,
    node: NodeId,
    actor: &Actor,
    truth: &Arc<dyn Truth>,
) -> Result<(), ProposeError> {
    let _alone = luns.telling().await;
    let Some(before) = truth.state().nodes.get(&node).cloned() else { return Ok(()) };
    let looking = luns.clone();
    let looked = tokio::task::spawn_blocking(move || looking.look_for(&before)).await;
    let Ok(seen) = looked else { return Ok(()) };
    let state = truth.state();
    let Some(record) = state.nodes.get(&node) else { return Ok(()) };
    if record.luns == seen {
        return Ok(());
    }
    propose(node, actor, truth, seen).await
}

async fn propose(
    node: NodeId,
    actor: &Actor,
    truth: &Arc<dyn Truth>,
    luns: BTreeMap<LunId, LunSeen>,
) -> Result<(), ProposeError> {
    let command = Command::NodeLunsSet { node, luns };
    let proposal = Proposal { at: now(), actor: actor.clone(), command };
    truth.propose(proposal).await.map(drop)
}
