//! People who migrate VMs: they begin it through any node, now and then think better of it, and now
//! and then let the target take no more VMs.

use std::sync::Arc;

use model::ClusterState;
use model::Command;
use model::MigratePolicy;
use model::Millis;
use model::NodeId;
use model::NodeMode;
use model::NodeRecord;
use model::OpId;
use model::OpRequest;
use model::Power;
use model::VmId;
use model::VmRecord;
use node::truth::Truth;
use sim::rng::Rng;
use uuid::Uuid;

use crate::ground::Ground;
use crate::guard::short;
use crate::host::Host;
use crate::host::index_of;
use crate::host::proposal;

/// Ids of their operations begin here.
const OPERATIONS: u128 = 1 << 65;

/// How often it is looked whether a node takes no VMs that should, in milliseconds.
const MODE_AGAIN: u64 = 500;

/// How long a start may take.
const START_LIMIT: Millis = Millis::from_secs(20);

/// What they are about.
pub(crate) struct Movers {
    rng: Rng,
    ground: Arc<Ground>,
    next: u64,
    operations: u128,
    /// Who takes no VMs, until when.
    closed: Option<(NodeId, u64)>,
    /// Now and then they save a VM and let it go on elsewhere.
    quick: bool,
    /// They only put things in order.
    rests: bool,
}

impl Movers {
    pub(crate) fn new(rng: Rng, ground: Arc<Ground>, quick: bool) -> Self {
        let next = ground.now() + 200;
        Self { rng, ground, next, operations: 0, closed: None, quick, rests: false }
    }

    /// They begin nothing more.
    pub(crate) fn rest(&mut self) {
        self.rests = true;
        self.closed = None;
    }

    /// `kept` takes no VMs because others want it so.
    pub(crate) fn turn(&mut self, hosts: &[Host], kept: Option<NodeId>) {
        self.open_again(hosts, kept);
        if self.rests || self.ground.now() < self.next {
            return;
        }
        self.next = self.ground.now() + self.rng.between(300, 2_400);
        let host = &hosts[self.rng.place(hosts.len())];
        let Some(state) = host.state() else { return };
        match (self.rng.below(20), under_way(&state)) {
            (0, Some((op, _))) => self.propose(host, Command::CancelOp { op }),
            (1, Some((_, node))) if self.closed.is_none() => {
                // One that is drained sends its VMs away, too.
                let mode = self.rng.pick(&[NodeMode::Standby, NodeMode::Drain]);
                let mode = mode.unwrap_or(NodeMode::Standby);
                self.closed = Some((node, self.ground.now() + self.rng.between(300, 6_000)));
                self.propose(host, Command::NodeSetMode { node, mode, with_storage: false });
            }
            _ => self.begin(host, &state, hosts),
        }
    }

    fn begin(&mut self, host: &Host, state: &ClusterState, hosts: &[Host]) {
        let idle = state.vms.values().filter(|vm| vm.busy().is_none());
        let idle: Vec<(VmId, NodeId)> = idle.map(|vm| (vm.id, vm.owner)).collect();
        let Some((vm, owner)) = self.rng.pick(&idle) else { return };
        let to = (index_of(owner) + 1 + self.rng.place(hosts.len() - 1)) % hosts.len();
        if self.quick && self.rng.permille(400) {
            let what = format!("asks {} to move {} to n{}", host.name, short(&vm), to + 1);
            self.ground.trace("m", &what);
            let to = Some(hosts[to].id);
            return self.propose(host, Command::VmMove { vm, to, quick: true });
        }
        let op = self.operation();
        let (to, policy) = (hosts[to].id, MigratePolicy::default());
        let request = Box::new(OpRequest::VmMigrate { vm, to, policy, storage: None });
        let limit = Millis::new(self.rng.between(1_000, 20_000));
        let what = format!("asks {} to migrate {} to n{}", host.name, short(&vm), index_of(to) + 1);
        self.ground.trace("m", &what);
        self.propose(host, Command::BeginOp { op, request, limit });
    }

    /// Lets nodes take VMs again. What was proposed to close one may come late, so the state is
    /// looked at, not the answer.
    fn open_again(&mut self, hosts: &[Host], kept: Option<NodeId>) {
        let now = self.ground.now();
        if self.closed.is_some_and(|(_, until)| now >= until) {
            self.closed = None;
        }
        if !now.is_multiple_of(MODE_AGAIN) {
            return;
        }
        let host = &hosts[self.rng.place(hosts.len())];
        let Some(state) = host.state() else { return };
        let closed = self.closed.map(|(node, _)| node);
        self.start_again(host, &state);
        let ours = |node: &&Arc<NodeRecord>| Some(node.id) != closed && Some(node.id) != kept;
        for node in state.nodes.values().filter(ours) {
            if node.mode != NodeMode::Active {
                let mode = NodeMode::Active;
                self.propose(
                    host,
                    Command::NodeSetMode { node: node.id, mode, with_storage: false },
                );
            }
        }
    }

    fn operation(&mut self) -> OpId {
        self.operations += 1;
        OpId::new(Uuid::from_u128(OPERATIONS + self.operations))
    }

    /// Starts what a takeover or a failed move has left saved or off.
    fn start_again(&mut self, host: &Host, state: &ClusterState) {
        let rests = |vm: &&Arc<VmRecord>| {
            matches!(vm.power, Power::Saved | Power::Off)
                && vm.busy().is_none()
                && vm.moving.is_none()
        };
        let Some(vm) = state.vms.values().find(rests).map(|vm| vm.id) else { return };
        let op = self.operation();
        self.ground.trace("m", &format!("asks {} to start {}", host.name, short(&vm)));
        let request = Box::new(OpRequest::VmStart { vm });
        self.propose(host, Command::BeginOp { op, request, limit: START_LIMIT });
    }

    fn propose(&self, host: &Host, command: Command) {
        let Some(daemon) = host.daemon() else { return };
        host.spawn(async move {
            // What is refused or lost was not asked for.
            let _ = daemon.truth().propose(proposal(command)).await;
        });
    }
}

/// A migration under way, and its target.
fn under_way(state: &ClusterState) -> Option<(OpId, NodeId)> {
    state.ops.values().filter(|op| op.is_running()).find_map(|op| match op.request {
        OpRequest::VmMigrate { to, .. } => Some((op.id, to)),
        _ => None,
    })
}
