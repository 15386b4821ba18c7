//! This node as the target of migrations.

use std::sync::Arc;
use std::time::Duration;

use model::ClusterState;
use model::NodeId;
use model::OpFailure;
use model::OpId;
use model::OpRequest;
use model::VmRecord;
use peer::PeerStream;
use peer::Refusal;
use peer::RefusalCode;
use tokio::io::copy_bidirectional_with_sizes;
use vm::lifecycle::Host;
use vm::lifecycle::Lane;
use vm::lifecycle::Offer;
use vm::lifecycle::Prepared;
use vm::lifecycle::abandon_arrival;
use vm::lifecycle::prepare_arrival;
use vm::lifecycle::receive_files;
use vm::lifecycle::rehearse_arrival;
use vm::lifecycle::settle_arrival;

use super::Answer;
use super::Question;
use super::check;
use super::outlook;
use super::probe;
use super::storage;
use crate::app::App;
use crate::hub::Hub;
use crate::truth::Truth;

/// How long the state of this node may be behind the source's.
const BEHIND_MAX: Duration = Duration::from_secs(5);

/// How long what is left of an earlier machine of the VM may take to go.
const CLEAR_MAX: Duration = Duration::from_secs(15);

/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Bytes that are on the way at once, from the source and back to it.
const FORTH: usize = 128 * 1024;
const BACK: usize = 8 * 1024;

/// What it takes to receive guests. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Targets {
    node: NodeId,
    truth: Arc<dyn Truth>,
    hub: Hub,
    host: Arc<Host>,
}

fn failure(code: &str, message: impl Into<String>, hint: &str) -> OpFailure {
    OpFailure { code: code.to_owned(), message: message.into(), hint: hint.to_owned() }
}

/// The VM of a migration that is under way, from `from` to `to`.
pub(crate) fn under_way(
    state: &ClusterState,
    op: OpId,
    from: NodeId,
    to: NodeId,
) -> Option<&Arc<VmRecord>> {
    let record = state.ops.get(&op).filter(|op| op.is_running())?;
    let OpRequest::VmMigrate { vm, to: target, .. } = record.request else { return None };
    let vm = state.vms.get(&vm)?;
    (target == to && vm.owner == from && vm.busy() == Some(op)).then_some(vm)
}

impl Targets {
    pub(crate) fn new(node: NodeId, truth: Arc<dyn Truth>, host: Arc<Host>) -> Self {
        Self { node, truth, hub: Hub::default(), host }
    }

    /// The drivers of this node: they go on with what has arrived.
    pub(crate) fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Answers a question of a member.
    pub(crate) async fn serve(
        &self,
        app: &App,
        from: NodeId,
        body: &[u8],
    ) -> Result<Vec<u8>, Refusal> {
        let bad = |error: serde_json::Error| {
            Refusal::new(RefusalCode::Failed, error.to_string(), "give both the same version")
        };
        let question = serde_json::from_slice(body).map_err(bad)?;
        let answer = match question {
            Question::Plan { vm, to, storage } => {
                let checks = check::as_owner(app, vm, to, storage).await;
                Answer::Planned { checks }
            }
            Question::Outlook { moves } => {
                Answer::Expected { each: outlook::as_owner(app, &moves).await }
            }
            Question::Storage { vm, to } => {
                let checks = storage::as_owner(app, vm, to).await;
                Answer::Planned { checks }
            }
            Question::Check { vm, storage } => {
                Answer::Found { found: check::as_target(app, vm, storage).await }
            }
            Question::Rehearse { op } => self.rehearse(from, op).await,
            Question::Settle { op } => self.settle(from, op).await,
            Question::Prepare { offer } => {
                // A caller that has gone away must not leave half a machine: what was begun is
                // ended, and what nobody needs is taken away by whoever watches the operation.
                let targets = self.clone();
                let made = tokio::spawn(async move { targets.prepare(from, &offer).await });
                match made.await {
                    Ok(Ok(prepared)) => Answer::Ready { whole: prepared == Prepared::Whole },
                    Ok(Err(failure)) => Answer::Cannot { failure },
                    Err(error) => {
                        let failure = failure("internal", error.to_string(), "report this");
                        Answer::Cannot { failure }
                    }
                }
            }
            Question::Abandon { op } => {
                // Whose guest it is: nobody else's word ends a migration of others.
                let state = self.truth.state();
                let over = state.ops.get(&op).is_none_or(|op| !op.is_running());
                if over || under_way(&state, op, from, self.node).is_some() {
                    self.abandon(op).await;
                }
                Answer::Done
            }
        };
        serde_json::to_vec(&answer).map_err(bad)
    }

    /// Carries a connection of a migration into the machine that waits for it: one of the node that
    /// the guest comes from, and of nobody else, since what comes becomes the guest's memory or disk.
    pub(crate) async fn stream(&self, from: NodeId, op: &str, lane: Lane, mut stream: PeerStream) {
        let state = self.truth.state();
        let op: Option<OpId> = op.parse().ok();
        let op = op.filter(|op| under_way(&state, *op, from, self.node).is_some());
        if let (Lane::Files, Some(op)) = (lane, op) {
            drop(state);
            if let Err(error) = receive_files(&self.host, op, &mut stream).await {
                tracing::warn!(%op, %error, "the files of a machine did not come");
            }
            return;
        }
        let Some(machine) = op.and_then(|op| self.host.arrivals.machine(op)) else {
            tracing::warn!(%from, ?op, "a connection of a migration that nothing waits for");
            return;
        };
        drop(state);
        let ours = match lane {
            Lane::Memory => machine.incoming_connect().await,
            Lane::Disks | Lane::Files => machine.receive_connect().await,
        };
        let mut ours = match ours {
            Ok(ours) => ours,
            Err(error) => {
                tracing::warn!(%error, "a machine that waits takes no connection");
                return;
            }
        };
        drop(machine);
        // Either end notices that the other one has gone.
        let _ = copy_bidirectional_with_sizes(&mut stream, &mut ours, FORTH, BACK).await;
    }

    /// What has come so far of the disks of a guest of that node is made durable.
    async fn rehearse(&self, from: NodeId, op: OpId) -> Answer {
        let host = self.host.clone();
        self.for_source(from, op, async move { rehearse_arrival(&host, op).await }).await
    }

    /// The disks of a guest that comes from that node are there.
    async fn settle(&self, from: NodeId, op: OpId) -> Answer {
        let host = self.host.clone();
        self.for_source(from, op, async move { settle_arrival(&host, op).await }).await
    }

    /// Does something for the node that a guest comes from, and for nobody else.
    async fn for_source(
        &self,
        from: NodeId,
        op: OpId,
        work: impl Future<Output = Result<(), OpFailure>> + Send + 'static,
    ) -> Answer {
        let state = self.truth.state();
        if under_way(&state, op, from, self.node).is_none() {
            let hint = "see the cluster: muster cluster status";
            let failure = failure("stale", "the target does not know of this migration", hint);
            return Answer::Cannot { failure };
        }
        drop(state);
        // Not to be left half-way when the caller goes away.
        match tokio::spawn(work).await {
            Ok(Ok(())) => Answer::Done,
            Ok(Err(failure)) => Answer::Cannot { failure },
            Err(error) => {
                Answer::Cannot { failure: failure("internal", error.to_string(), "report this") }
            }
        }
    }

    async fn prepare(&self, from: NodeId, offer: &Offer) -> Result<Prepared, OpFailure> {
        let mut states = self.truth.watch();
        let begun = states.wait_for(|state| under_way(state, offer.op, from, self.node).is_some());
        let stale = || {
            let hint = "see the cluster: muster cluster status";
            failure("stale", "the target does not know of this migration", hint)
        };
        let known = tokio::time::timeout(BEHIND_MAX, begun).await;
        let state = known.map_err(|_| stale())?.map_err(|_| stale())?.clone();
        let record = under_way(&state, offer.op, from, self.node).ok_or_else(stale)?;
        // Its files come only to where the state says.
        let along = state.ops.get(&offer.op).and_then(|op| match &op.request {
            OpRequest::VmMigrate { storage, .. } => storage.as_deref(),
            _ => None,
        });
        if record.id != offer.vm || along != offer.storage.as_ref().map(|files| &files.target) {
            return Err(stale());
        }
        self.clear(record).await?;
        let prepared = prepare_arrival(&self.host, record, offer).await?;
        tokio::spawn(self.clone().watch(offer.op, from));
        Ok(prepared)
    }

    /// Waits until nothing of an earlier stay of the VM is here: what ends that would end the new
    /// machine, too.
    async fn clear(&self, record: &VmRecord) -> Result<(), OpFailure> {
        for (vm, op) in self.host.arrivals.all() {
            if vm == record.id {
                abandon_arrival(&self.host, Some(record), vm, op).await;
            }
        }
        let cleared = async {
            while self.hub.has(record.id) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(CLEAR_MAX, cleared).await.map_err(|_| {
            let hint = "see: muster node show NODE, and its log";
            failure("not_clear", "an earlier machine of it has not ended there yet", hint)
        })
    }

    /// Takes a machine away when its migration has ended without it.
    async fn watch(self, op: OpId, from: NodeId) {
        let mut states = self.truth.watch();
        let over = |state: &Arc<ClusterState>| under_way(state, op, from, self.node).is_none();
        let (state, waits) = match states.wait_for(over).await {
            Ok(state) => {
                let record = state.ops.get(&op).and_then(|op| op.request.vm());
                let vm = record.and_then(|vm| state.vms.get(&vm));
                // It has arrived: its driver takes the machine.
                let arrived =
                    |vm: &&Arc<VmRecord>| vm.owner == self.node && vm.arrived_by() == Some(op);
                let arrived = vm.is_some_and(|vm| arrived(&vm));
                (state.clone(), !arrived)
            }
            Err(_) => return,
        };
        drop(state);
        if waits {
            self.abandon(op).await;
        }
    }

    async fn abandon(&self, op: OpId) {
        let waiting = self.host.arrivals.all();
        let Some((vm, _)) = waiting.into_iter().find(|(_, waits_for)| *waits_for == op) else {
            return;
        };
        let state = self.truth.state();
        let record = state.vms.get(&vm);
        if let Some(record) = record.filter(|vm| vm.owner == self.node) {
            // It is this node's meanwhile. By the handover: then its driver takes the machine. By a
            // takeover: then its driver ends it, and by now there may be one in its place.
            if record.arrived_by() != Some(op) {
                drop(self.host.arrivals.take(vm, op));
            }
            return;
        }
        abandon_arrival(&self.host, record.map(|record| &**record), vm, op).await;
    }

    /// Answers somebody who measures the way here.
    pub(crate) async fn probe(&self, stream: PeerStream) {
        probe::answer(stream).await;
    }
}

#[cfg(test)]
mod tests {
    use model::Command;
    use model::HaSpec;
    use model::MigratePolicy;
    use model::Speaker;

    use super::*;
    use crate::ha::world::World;
    use crate::ha::world::node;
    use crate::ha::world::vm;

    #[test]
    fn only_the_owner_sends_and_only_to_where_the_state_says() {
        let mut world = World::new(3);
        world.add(1, node(1), HaSpec::default());
        let to = node(2);
        let policy = MigratePolicy::default();
        let op = world.begin(OpRequest::VmMigrate { vm: vm(1), to, policy, storage: None });
        let way = |world: &World, from, to| under_way(&world.state, op, from, to).is_some();
        assert!(way(&world, node(1), node(2)));
        assert!(!way(&world, node(3), node(2)), "a member whose guest it is not");
        assert!(!way(&world, node(1), node(3)), "a member that it does not go to");
        let generation = world.vm(1).generation;
        let by = Speaker { node: node(1), epoch: 0 };
        world.ok(Command::VmHandover { op, generation, report: Box::default(), by });
        assert!(!way(&world, node(1), node(2)), "it has arrived: nothing more may come");
    }
}
