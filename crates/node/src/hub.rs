//! One driver for each VM of this node, told of what the state wants.
//!
//! At the daemon's start the state is what was on the disk. Others may have decided more meanwhile:
//! until a majority was asked, drivers only look, and none is told that its VM is gone from here.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::time::Duration;

use model::ClusterState;
use model::NodeId;
use model::OpRecord;
use model::VmId;
use model::VmRecord;
use vm::engine::Machine;
use vm::guest::GuestServices;
use vm::lifecycle::Freshness;
use vm::lifecycle::Host;
use vm::lifecycle::Status;
use vm::lifecycle::VmHandle;
use vm::lifecycle::Wanted;

use crate::truth::Truth;

/// How long until a majority that could not be asked is asked again: the question itself waits for some
/// seconds, so this is for what fails at once.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// The drivers. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Hub {
    handles: Arc<RwLock<HashMap<VmId, VmHandle>>>,
    /// Of VMs that are no longer this node's, until what they had here is gone.
    leaving: Arc<RwLock<Vec<(VmId, VmHandle)>>>,
}

impl Hub {
    /// What is seen of a VM; nothing for a VM of another node.
    pub(crate) fn status(&self, vm: VmId) -> Option<Status> {
        self.with(vm, VmHandle::status)
    }

    /// The machine of a VM, while it runs.
    pub(crate) fn machine(&self, vm: VmId) -> Option<Arc<dyn Machine>> {
        self.with(vm, VmHandle::machine).flatten()
    }

    /// The services of a VM's guest, while it runs.
    pub(crate) fn guest(&self, vm: VmId) -> Option<GuestServices> {
        self.with(vm, VmHandle::guest).flatten()
    }

    /// Ids of all VMs that have a process, with its id.
    pub(crate) fn running(&self) -> Vec<(VmId, u32)> {
        let handles = self.handles.read().unwrap_or_else(PoisonError::into_inner);
        handles
            .iter()
            .filter_map(|(vm, handle)| Some((*vm, handle.status().run?.info.pid)))
            .collect()
    }

    /// Whether anything is done for the VM here, also if it is only being taken away.
    pub(crate) fn has(&self, vm: VmId) -> bool {
        let mut leaving = self.leaving.write().unwrap_or_else(PoisonError::into_inner);
        leaving.retain(|(_, handle)| !handle.has_ended());
        leaving.iter().any(|(id, _)| *id == vm) || self.with(vm, |_| ()).is_some()
    }

    fn with<T>(&self, vm: VmId, look: impl FnOnce(&VmHandle) -> T) -> Option<T> {
        self.handles.read().unwrap_or_else(PoisonError::into_inner).get(&vm).map(look)
    }

    /// Follows the state until the daemon ends.
    pub(crate) async fn follow(self, node: NodeId, host: Arc<Host>, truth: Arc<dyn Truth>) {
        let mut states = truth.watch();
        let asked = ask_majority(truth);
        tokio::pin!(asked);
        let mut seen: HashMap<VmId, Wanted> = HashMap::new();
        let mut freshness = Freshness::MayBeOld;
        loop {
            let state = states.borrow_and_update().clone();
            self.bring_to(node, &host, (&state, freshness), &mut seen);
            tokio::select! {
                changed = states.changed() => if changed.is_err() { return },
                () = &mut asked, if freshness == Freshness::MayBeOld => {
                    freshness = Freshness::Newest;
                }
            }
        }
    }

    fn bring_to(
        &self,
        node: NodeId,
        host: &Arc<Host>,
        (state, freshness): (&ClusterState, Freshness),
        seen: &mut HashMap<VmId, Wanted>,
    ) {
        let mut fresh = Vec::new();
        let mut known = 0;
        // Runs at each change of the state and over all VMs, so it copies nothing that did not
        // change: with thousands of VMs that is what a change costs.
        for record in state.vms.values().filter(|vm| vm.owner == node) {
            let op = record.busy().and_then(|op| state.ops.get(&op));
            if let Some(old) = seen.get(&record.id) {
                known += 1;
                if old.freshness == freshness && same(old, record, op) {
                    continue;
                }
            }
            fresh.push(Wanted { record: record.clone(), op: op.cloned(), freshness });
        }
        let mut gone: Vec<VmId> = Vec::new();
        if seen.len() > known && freshness == Freshness::Newest {
            // One that belongs to another node by now is gone from here: its driver ends what is
            // left of its machine and touches none of its files.
            let ours = |vm: &VmId| state.vms.get(vm).is_some_and(|vm| vm.owner == node);
            gone.extend(seen.keys().filter(|vm| !ours(vm)));
        }
        if fresh.is_empty() && gone.is_empty() {
            return;
        }
        let mut handles = self.handles.write().unwrap_or_else(PoisonError::into_inner);
        for wanted in fresh {
            let vm = wanted.record.id;
            seen.insert(vm, wanted.clone());
            match handles.get(&vm) {
                Some(handle) => handle.want(Some(wanted)),
                None => {
                    handles.insert(vm, VmHandle::spawn(host.clone(), wanted));
                }
            }
        }
        for vm in gone {
            seen.remove(&vm);
            if let Some(handle) = handles.remove(&vm) {
                handle.want(None);
                let mut leaving = self.leaving.write().unwrap_or_else(PoisonError::into_inner);
                leaving.retain(|(_, handle)| !handle.has_ended());
                leaving.push((vm, handle));
            }
        }
    }
}

/// Ends when the state has all that was acknowledged anywhere before the call: with a majority.
async fn ask_majority(truth: Arc<dyn Truth>) {
    while let Err(error) = truth.barrier().await {
        tracing::info!(%error, "machines are left as they are: what is known of them may be old");
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// Whether nothing changed: records are shared, so the same pointer is the same content.
fn same(old: &Wanted, record: &Arc<VmRecord>, op: Option<&Arc<OpRecord>>) -> bool {
    let same_op = match (&old.op, op) {
        (None, None) => true,
        (Some(old), Some(new)) => Arc::ptr_eq(old, new),
        _ => false,
    };
    same_op && Arc::ptr_eq(&old.record, record)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::AtomicU64;

    use async_trait::async_trait;
    use cluster::raft::LeaderError;
    use cluster::raft::Metrics;
    use cluster::raft::ProposeError;
    use model::Actor;
    use model::Applied;
    use model::Bytes;
    use model::Command;
    use model::OpId;
    use model::OpRequest;
    use model::Power;
    use model::Proposal;
    use model::VmSpec;
    use tokio::sync::watch;
    use uuid::Uuid;
    use vm::engine::fake::FakeEngine;
    use vm::engine::fake::FakeHost;
    use vm::image::DiskTool;
    use vm::lifecycle::Nowhere;

    use super::*;
    use crate::events::Events;
    use crate::ledger::NodeLedger;
    use crate::ledger::Progresses;
    use crate::ports::SwitchPorts;

    const NODE: NodeId = NodeId::new(Uuid::from_u128(1));
    const VM: VmId = VmId::new(Uuid::from_u128(0x100));
    const PATIENCE: Duration = Duration::from_secs(60);

    /// A state of which a majority can be asked, or not.
    struct Known {
        state: watch::Sender<Arc<ClusterState>>,
        majority: watch::Sender<bool>,
    }

    impl Known {
        fn new(state: &Arc<ClusterState>, majority: bool) -> Arc<Self> {
            let state = watch::Sender::new(state.clone());
            Arc::new(Self { state, majority: watch::Sender::new(majority) })
        }
    }

    #[async_trait]
    impl Truth for Known {
        async fn propose(&self, proposal: Proposal) -> Result<Applied, ProposeError> {
            let mut state = ClusterState::clone(&self.state());
            let applied = state.apply(&proposal).map_err(ProposeError::Refused)?;
            self.state.send_replace(Arc::new(state));
            Ok(applied)
        }

        fn state(&self) -> Arc<ClusterState> {
            self.state.borrow().clone()
        }

        fn watch(&self) -> watch::Receiver<Arc<ClusterState>> {
            self.state.subscribe()
        }

        async fn barrier(&self) -> Result<(), LeaderError> {
            match *self.majority.borrow() {
                true => Ok(()),
                false => Err(LeaderError::Unavailable("nobody answers")),
            }
        }

        fn metrics(&self) -> watch::Receiver<Metrics> {
            unreachable!("nobody asks for the log")
        }
    }

    impl Known {
        async fn change(&self, command: Command) {
            let (at, actor) = (crate::app::now(), Actor::new("test"));
            self.propose(Proposal { at, actor, command }).await.unwrap();
        }

        /// The VM is made and started by the drivers.
        async fn start_vm(&self) {
            let create = OpRequest::VmCreate {
                vm: VM,
                name: "a".parse().unwrap(),
                spec: Box::new(VmSpec::new(1, Bytes::mib(128))),
                pinned: model::Pinned {
                    config_version: 1,
                    machine_type: "pc-q35-10.0".to_owned(),
                    cpu_model: "Nehalem-v1".to_owned(),
                },
                owner: NODE,
                volume: None,
            };
            for (n, request) in [create, OpRequest::VmStart { vm: VM }].into_iter().enumerate() {
                let op = OpId::new(Uuid::from_u128(10 + n as u128));
                let (request, limit) = (Box::new(request), model::Millis::from_secs(60));
                self.change(Command::BeginOp { op, request, limit }).await;
                until("it is done", || self.state().vms.values().all(|it| it.busy().is_none()))
                    .await;
            }
        }
    }

    /// A daemon's drivers over the machines of `fake`.
    fn daemon(fake: &FakeHost, dir: PathBuf, truth: Arc<Known>) -> (Hub, impl Drop) {
        let truth: Arc<dyn Truth> = truth;
        let ledger = NodeLedger {
            node: NODE,
            epoch: Arc::new(AtomicU64::new(0)),
            actor: Actor::new("node h1"),
            truth: truth.clone(),
            events: Events::new(),
            progresses: Arc::new(Progresses::default()),
        };
        let host = Arc::new(Host {
            engine: Arc::new(FakeEngine::new(fake)),
            ledger: Arc::new(ledger),
            ports: Arc::new(SwitchPorts::new(NODE, truth.clone(), None)),
            disks: DiskTool::new("/usr/bin/qemu-img", None),
            vms_dir: Box::new(move |_| dir.clone()),
            volume_ready: Box::new(|_| Ok(())),
            image_path: Box::new(|image| PathBuf::from(image.to_string())),
            mover: Arc::new(Nowhere),
            arrivals: Arc::default(),
            rights: Arc::new(vm::lifecycle::Everybody),
            host_name: "h1".to_owned(),
        });
        let hub = Hub::default();
        let task = tokio::spawn(hub.clone().follow(NODE, host, truth));
        (hub, Ends(task))
    }

    struct Ends(tokio::task::JoinHandle<()>);

    impl Drop for Ends {
        fn drop(&mut self) {
            self.0.abort();
        }
    }

    async fn until(what: &str, done: impl Fn() -> bool) {
        let end = tokio::time::Instant::now() + PATIENCE;
        while !done() {
            assert!(tokio::time::Instant::now() < end, "never: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The way of the log to the newest state leads over states in which the VM is of another run, is
    /// another node's, and is not there: none of it is the last word.
    #[tokio::test]
    async fn no_state_on_the_way_to_the_newest_ends_a_machine() {
        let (fake, dir) = (FakeHost::new(), tempfile::tempdir().unwrap());
        let truth = Known::new(&Arc::default(), true);
        let capacity = model::NodeCapacity { cpus: 4, memory: Bytes::mib(4_096) };
        let name = "h1".parse().unwrap();
        truth.change(Command::NodeStarted { node: NODE, name, capacity }).await;
        let (hub, ends) = daemon(&fake, dir.path().to_owned(), truth.clone());
        let runs = |hub: &Hub| hub.status(VM).and_then(|status| status.run).map(|run| run.info);
        truth.start_vm().await;
        let old = truth.state();
        let vm = old.vms.get(&VM).unwrap();
        assert_eq!(vm.power, Power::Running);
        fake.crash(VM);
        until("it runs again", || {
            runs(&hub).is_some_and(|it| it.generation > vm.generation) && fake.alive() == [VM]
        })
        .await;
        let newest = truth.state();
        let pid = runs(&hub).unwrap().pid;
        drop((hub, ends));
        let truth = Known::new(&old, false);
        let (hub, _ends) = daemon(&fake, dir.path().to_owned(), truth.clone());
        until("it is shown", || runs(&hub).is_some_and(|it| it.pid == pid)).await;
        let mut away = ClusterState::clone(&old);
        let mut record = model::VmRecord::clone(vm);
        record.owner = NodeId::new(Uuid::from_u128(2));
        away.vms.insert(VM, Arc::new(record));
        for state in [Arc::new(away), Arc::<ClusterState>::default(), old.clone()] {
            truth.state.send_replace(state);
            // What is told to a driver is done at once.
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!(fake.alive(), [VM]);
        }
        truth.state.send_replace(newest);
        truth.majority.send_replace(true);
        tokio::time::sleep(ASK_AGAIN + Duration::from_millis(200)).await;
        assert_eq!(runs(&hub).unwrap().pid, pid, "it went on");
        // From now on a word is the last one.
        truth.state.send_replace(Arc::default());
        until("it is ended", || fake.alive().is_empty()).await;
    }
}
