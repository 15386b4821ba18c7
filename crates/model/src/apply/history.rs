//! Notes changes of settings, whichever command made them.

use std::sync::Arc;

use crate::ClusterState;
use crate::Command;
use crate::OpId;
use crate::Proposal;
use crate::SettingsChange;
use crate::VmId;
use crate::VmRecord;
use crate::history;

/// A VM as it was before a command that may change its settings.
pub(super) struct Before {
    vm: Arc<VmRecord>,
    by: String,
    op: Option<OpId>,
}

/// What to compare with after the command; none for commands that change nobody's settings.
pub(super) fn before(state: &ClusterState, proposal: &Proposal) -> Option<Before> {
    let whose = |op: &OpId| {
        let record = state.ops.get(op)?;
        Some((record.request.vm()?, record.actor.clone(), Some(*op)))
    };
    let (vm, by, op): (VmId, String, Option<OpId>) = match &proposal.command {
        Command::FinishOp { op, .. }
        | Command::VmHandover { op, .. }
        | Command::VmStorageMoved { op, .. } => whose(op)?,
        Command::VmUpgrade { vm } | Command::VmUndelete { vm, .. } => {
            (*vm, proposal.actor.to_string(), None)
        }
        _ => return None,
    };
    Some(Before { vm: state.vms.get(&vm)?.clone(), by, op })
}

/// Notes what the command changed.
pub(super) fn after(state: &mut ClusterState, proposal: &Proposal, before: Before) {
    let id = before.vm.id;
    let Some(now) = state.vms.get(&id) else {
        forget(state, id);
        return;
    };
    if Arc::ptr_eq(now, &before.vm) {
        return;
    }
    let Some(difference) = SettingsChange::between(&before.vm, now) else { return };
    let change = SettingsChange {
        revision: now.revision,
        at: proposal.at,
        by: before.by,
        op: before.op,
        before: difference.before,
        after: difference.after,
        others: difference.others,
    };
    let mut changes = state.history.get(&id).map(|known| known.to_vec()).unwrap_or_default();
    history::add(&mut changes, change);
    state.history.insert(id, Arc::new(changes));
}

/// Of a VM that is no more nothing is kept.
pub(super) fn forget(state: &mut ClusterState, vm: VmId) {
    // A map that has no such key is not copied.
    if state.history.contains_key(&vm) {
        state.history.remove(&vm);
    }
}
