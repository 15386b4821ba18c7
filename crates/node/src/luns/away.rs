//! Machines leave a node that has lost its own path to their volume's LUN, live and in the background.
//!
//! ```text
//!   path lost for LOST_MIN --> nodes that were direct at each look since --> one machine at a time
//!        |                                                                  goes to one of them
//!        | direct again: forgotten        none (the LUN is gone for all): nothing moves
//! ```
//!
//! Through the coordinator a machine goes on, slower and without an error, so there is no hurry: what flaps
//! moves nothing. A path has to be away, and the other node's there, for a while; a machine that came by
//! a migration lately stays, wherever it came from; and what could not be moved is not tried again soon.
//! Nothing moves back by itself when the path returns.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use futures::future::join_all;
use model::Actor;
use model::AtLimit;
use model::ClusterState;
use model::Command;
use model::MigratePolicy;
use model::Millis;
use model::NodeId;
use model::OpId;
use model::OpRequest;
use model::Power;
use model::Proposal;
use model::UnixMillis;
use model::VmId;
use model::VmRecord;
use model::VolumeId;
use peer::Method;

use super::Luns;
use crate::app::new_uuid;
use crate::app::now;
use crate::cluster::peers::Peers;
use crate::dataplane::words::Told;
use crate::dataplane::words::Way;
use crate::ledger::NodeLedger;

/// How long a path has to be away, and another node's to be there. Longer than a cable that is plugged in
/// anew and a switch that starts again.
const LOST_MIN: Duration = Duration::from_secs(15);

/// How long a machine stays where a migration has brought it.
const STAYS: Millis = Millis::from_secs(300);

/// Until it is tried again with a machine.
const AGAIN: Duration = Duration::from_secs(300);

/// How often is looked: each is a question to a process of this host.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// How long another node may take to say how it reaches its volumes.
const ASK_LIMIT: Duration = Duration::from_secs(2);

/// Limit of a migration, as for other moves.
const MOVE_LIMIT: Millis = Millis::from_secs(3_600);

/// How a node reaches a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// Over its own path.
    Direct,
    /// Through the coordinator, since its own path does not work.
    Lost,
    /// Not known, or not at all; a coordinator that is being changed.
    Unsure,
}

impl Reach {
    fn of(told: Option<&Told>) -> Self {
        let shown = told.and_then(|it| it.shown.as_ref()).filter(|it| it.mounted);
        match shown.map(|it| it.way) {
            Some(Way::Direct | Way::FileRedirected) => Self::Direct,
            Some(Way::NoPath | Way::NoKey) => Self::Lost,
            Some(Way::Waiting) | None => Self::Unsure,
        }
    }
}

/// What is known of lost paths of this node.
#[derive(Debug, Default)]
struct Paths {
    lost: BTreeMap<VolumeId, Lost>,
    /// Machines that it was tried with.
    tried: BTreeMap<VmId, Instant>,
}

#[derive(Debug)]
struct Lost {
    since: Instant,
    /// Nodes that have been direct at each look, and since when.
    direct: BTreeMap<NodeId, Instant>,
}

/// A machine that shall go.
#[derive(Debug, PartialEq, Eq)]
struct Leaves {
    vm: VmId,
    to: NodeId,
    volume: VolumeId,
}

impl Paths {
    /// How this node reaches its volumes. Says of which the others have to be asked.
    fn own(&mut self, at: Instant, own: &BTreeMap<VolumeId, Reach>) -> BTreeSet<VolumeId> {
        for (volume, reach) in own {
            match reach {
                Reach::Direct => drop(self.lost.remove(volume)),
                Reach::Lost => {
                    let new = || Lost { since: at, direct: BTreeMap::new() };
                    self.lost.entry(*volume).or_insert_with(new);
                }
                Reach::Unsure => {}
            }
        }
        self.lost.retain(|volume, _| own.contains_key(volume));
        self.lost.keys().copied().collect()
    }

    /// How another node reaches one of them.
    fn other(&mut self, at: Instant, volume: VolumeId, node: NodeId, reach: Reach) {
        let Some(lost) = self.lost.get_mut(&volume) else { return };
        match reach {
            Reach::Direct => drop(lost.direct.entry(node).or_insert(at)),
            Reach::Lost | Reach::Unsure => drop(lost.direct.remove(&node)),
        }
    }

    /// The next machine that leaves.
    fn next(
        &mut self,
        state: &ClusterState,
        me: NodeId,
        (at, now): (Instant, UnixMillis),
    ) -> Option<Leaves> {
        self.tried.retain(|_, tried| at.duration_since(*tried) < AGAIN);
        let own = || state.vms.values().filter(|vm| vm.owner == me);
        // One at a time: each is a memory that is sent, beside disks that come slowly enough.
        if own().any(|vm| vm.moving.is_some() || is_migrating(state, vm)) {
            return None;
        }
        own().find_map(|vm| {
            let volume = vm.volume?;
            let lost = self.lost.get(&volume)?;
            let long = |since: Instant| at.duration_since(since) >= LOST_MIN;
            if !long(lost.since) || self.tried.contains_key(&vm.id) || !may_leave(state, vm, now) {
                return None;
            }
            let direct = lost.direct.iter().filter(|(_, since)| long(**since));
            let to = placement::choose(state, &direct.map(|(node, _)| *node).collect(), vm).ok()?;
            self.tried.insert(vm.id, at);
            Some(Leaves { vm: vm.id, to, volume })
        })
    }
}

fn is_migrating(state: &ClusterState, vm: &VmRecord) -> bool {
    let op = vm.busy().and_then(|op| state.ops.get(&op));
    op.is_some_and(|op| matches!(op.request, OpRequest::VmMigrate { .. }))
}

fn may_leave(state: &ClusterState, vm: &VmRecord, now: UnixMillis) -> bool {
    let came = vm.arrived_by().and_then(|op| state.ops.get(&op));
    let lately = came.is_some_and(|op| now.since(op.begun) < STAYS);
    vm.power == Power::Running && vm.busy().is_none() && vm.deleted.is_none() && !lately
}

/// The shell around it.
pub(crate) struct Away {
    pub(crate) luns: Luns,
    pub(crate) ledger: Arc<NodeLedger>,
    pub(crate) peers: Peers,
}

impl Away {
    /// Works until the daemon ends.
    pub(crate) async fn run(self) {
        let mut paths = Paths::default();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let state = self.ledger.truth.state();
            self.look(&mut paths, &state).await;
            if let Some(leaves) = paths.next(&state, self.ledger.node, (Instant::now(), now())) {
                self.send_away(&state, &leaves).await;
            }
        }
    }

    async fn look(&self, paths: &mut Paths, state: &ClusterState) {
        // Where a LUN takes no reservations, only the coordinator has a path, and that is as it should be.
        let fenced: Vec<VolumeId> = state
            .volumes
            .values()
            .filter(|it| it.coordination.is_some() && it.kind.fences())
            .map(|it| it.id)
            .collect();
        if fenced.is_empty() {
            return;
        }
        let told = self.luns.told().await;
        let reach = |told: &[Told], volume| Reach::of(told.iter().find(|it| it.volume == volume));
        let own = fenced.into_iter().map(|volume| (volume, reach(&told, volume))).collect();
        let lost = paths.own(Instant::now(), &own);
        if lost.is_empty() {
            return;
        }
        let others = state.nodes.keys().copied().filter(|node| *node != self.ledger.node);
        let asked = others.map(|node| async move {
            let told = self.peers.ask::<_, Vec<Told>>(node, Method::VOLUMES, &(), ASK_LIMIT).await;
            (node, told.unwrap_or_default())
        });
        for (node, told) in join_all(asked).await {
            for volume in &lost {
                paths.other(Instant::now(), *volume, node, reach(&told, *volume));
            }
        }
    }

    async fn send_away(&self, state: &ClusterState, leaves: &Leaves) {
        let Leaves { vm, to, volume } = *leaves;
        let Some(record) = state.vms.get(&vm) else { return };
        // It does well enough here: what the guest would have to suffer for it is not worth it.
        let policy = MigratePolicy { at_limit: AtLimit::Cancel, ..record.spec.migration };
        let request = Box::new(OpRequest::VmMigrate { vm, to, policy, storage: None });
        let op = OpId::new(new_uuid());
        let command = Command::BeginOp { op, request, limit: MOVE_LIMIT };
        let volume = state.volumes.get(&volume).map(|it| it.name.to_string()).unwrap_or_default();
        // So it stands in the operation, and in each event of it: who has done that, and why.
        let actor = Actor::new(&format!(
            "{}, which has lost its own path to the LUN of volume {volume}",
            self.ledger.actor
        ));
        match self.ledger.truth.propose(Proposal { at: now(), actor, command }).await {
            Ok(_) => {
                tracing::warn!(vm = %record.name, %to, volume, "it leaves: no path of its own")
            }
            Err(error) => tracing::info!(vm = %record.name, %error, "it stays for now"),
        }
    }
}

#[cfg(test)]
#[path = "away_tests.rs"]
mod tests;
