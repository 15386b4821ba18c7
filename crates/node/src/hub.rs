//! One driver for each VM of this node, told of what the state wants.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;

use model::ClusterState;
use model::NodeId;
use model::OpRecord;
use model::VmId;
use model::VmRecord;
use tokio::sync::watch;
use vm::engine::Machine;
use vm::guest::GuestServices;
use vm::lifecycle::Host;
use vm::lifecycle::Status;
use vm::lifecycle::VmHandle;
use vm::lifecycle::Wanted;

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
    pub(crate) async fn follow(
        self,
        node: NodeId,
        host: Arc<Host>,
        mut states: watch::Receiver<Arc<ClusterState>>,
    ) {
        let mut seen: HashMap<VmId, Wanted> = HashMap::new();
        loop {
            let state = states.borrow_and_update().clone();
            self.bring_to(node, &host, &state, &mut seen);
            if states.changed().await.is_err() {
                return;
            }
        }
    }

    fn bring_to(
        &self,
        node: NodeId,
        host: &Arc<Host>,
        state: &ClusterState,
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
                if same(old, record, op) {
                    continue;
                }
            }
            fresh.push(Wanted { record: record.clone(), op: op.cloned() });
        }
        let mut gone: Vec<VmId> = Vec::new();
        if seen.len() > known {
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

/// Whether nothing changed: records are shared, so the same pointer is the same content.
fn same(old: &Wanted, record: &Arc<VmRecord>, op: Option<&Arc<OpRecord>>) -> bool {
    let same_op = match (&old.op, op) {
        (None, None) => true,
        (Some(old), Some(new)) => Arc::ptr_eq(old, new),
        _ => false,
    };
    same_op && Arc::ptr_eq(&old.record, record)
}
