//! What live migrations would take that began now: for a dry run, for the estimate of a drain, and for
//! balancing, which moves nothing that does not converge.

use std::collections::BTreeMap;

use futures::StreamExt;
use futures::future::join_all;
use model::Bytes;
use model::MigrateForecast;
use model::NodeId;
use model::VmId;
use peer::Method;
use serde::Deserialize;
use serde::Serialize;

use super::Answer;
use super::Question;
use super::probe;
use crate::app::App;

/// Most migrations that a node is asked about at once: more than it has running machines.
const MOVES_MAX: usize = 1_000;

/// Machines that are looked at together.
const LOOKS_AT_ONCE: usize = 8;

/// How long a node may take for all of its machines.
const OUTLOOK_MAX: std::time::Duration = std::time::Duration::from_secs(30);

/// What is expected of one migration.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Outlook {
    /// Nothing where it could not be learnt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) forecast: Option<MigrateForecast>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) why: String,
}

impl Outlook {
    fn none(why: impl ToString) -> Self {
        Self { forecast: None, why: why.to_string() }
    }
}

/// Asks the owners of VMs what their migrations would take: of each its owner, the VM, and where to. Gives
/// one answer for each, in any order.
pub(crate) async fn expected(
    app: &App,
    moves: Vec<(NodeId, VmId, NodeId)>,
) -> Vec<(VmId, Outlook)> {
    let mut by_owner: BTreeMap<NodeId, Vec<(VmId, NodeId)>> = BTreeMap::new();
    for (owner, vm, to) in moves {
        by_owner.entry(owner).or_default().push((vm, to));
    }
    let asks = by_owner.into_iter().map(|(owner, moves)| async move {
        let vms: Vec<VmId> = moves.iter().map(|(vm, _)| *vm).collect();
        let each = ask(app, owner, moves).await;
        let missing = || Outlook::none("its node has not answered for it");
        let each = each.into_iter().chain(std::iter::repeat_with(missing));
        vms.into_iter().zip(each).collect::<Vec<_>>()
    });
    join_all(asks).await.into_iter().flatten().collect()
}

async fn ask(app: &App, owner: NodeId, moves: Vec<(VmId, NodeId)>) -> Vec<Outlook> {
    if owner == app.node {
        return as_owner(app, &moves).await;
    }
    let count = moves.len();
    let question = Question::Outlook { moves };
    match app.peers.ask(owner, Method::MIGRATE, &question, OUTLOOK_MAX).await {
        Ok(Answer::Expected { each }) => each,
        Ok(_) => vec![Outlook::none("its node does not understand the question"); count],
        Err(error) => vec![Outlook::none(error); count],
    }
}

/// The same for VMs of this node.
pub(super) async fn as_owner(app: &App, moves: &[(VmId, NodeId)]) -> Vec<Outlook> {
    let moves = &moves[..moves.len().min(MOVES_MAX)];
    let mut ways: BTreeMap<NodeId, Option<Bytes>> = BTreeMap::new();
    for (_, to) in moves {
        // One after the other: together they would measure each other.
        if !ways.contains_key(to) {
            let measured = probe::measure(&app.peers, *to).await;
            ways.insert(*to, measured.map(|(bandwidth, _)| bandwidth));
        }
    }
    let ways = &ways;
    let looks =
        moves.iter().copied().map(|(vm, to)| look(app, vm, ways.get(&to).copied().flatten()));
    futures::stream::iter(looks).buffered(LOOKS_AT_ONCE).collect().await
}

async fn look(app: &App, vm: VmId, bandwidth: Option<Bytes>) -> Outlook {
    let Some(bandwidth) = bandwidth else {
        return Outlook::none("the way to the other node could not be measured");
    };
    let Some(machine) = app.hub.machine(vm) else { return Outlook::none("it does not run") };
    let policy = app.truth.state().vms.get(&vm).map(|vm| vm.spec.migration).unwrap_or_default();
    match vm::lifecycle::outlook(&*machine, bandwidth, policy).await {
        Ok(forecast) => Outlook { forecast: Some(forecast), why: String::new() },
        Err(error) => Outlook::none(error),
    }
}
