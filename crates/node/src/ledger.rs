//! What drivers report, on its way into the state and to the subscribers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use model::Actor;
use model::Command;
use model::Event;
use model::EventKind;
use model::Exit;
use model::Generation;
use model::NodeId;
use model::OpId;
use model::OpOutcome;
use model::Proposal;
use model::Severity;
use model::Speaker;
use model::Subject;
use model::UnixMillis;
use model::VmId;
use model::VmPlace;
use vm::lifecycle::Handover;
use vm::lifecycle::HandoverNote;
use vm::lifecycle::Ledger;
use vm::lifecycle::LedgerError;
use vm::lifecycle::Progress;

use crate::app::now;
use crate::events::Events;
use crate::truth::ProposeError;
use crate::truth::Truth;

/// How far the operations under way are.
#[derive(Debug, Default)]
pub(crate) struct Progresses {
    by_op: Mutex<HashMap<OpId, Progress>>,
    /// Something was set.
    moved: tokio::sync::watch::Sender<()>,
}

impl Progresses {
    /// Waits until an operation is elsewhere than where it is now.
    pub(crate) async fn moved(&self, op: OpId) {
        let mut moved = self.moved.subscribe();
        let begin = self.get(op);
        while self.get(op) == begin {
            if moved.changed().await.is_err() {
                return;
            }
        }
    }

    pub(crate) fn get(&self, op: OpId) -> Option<Progress> {
        self.by_op.lock().unwrap_or_else(PoisonError::into_inner).get(&op).cloned()
    }

    pub(crate) fn set(&self, op: OpId, progress: Progress) {
        self.by_op.lock().unwrap_or_else(PoisonError::into_inner).insert(op, progress);
        self.moved.send_replace(());
    }

    pub(crate) fn forget(&self, op: OpId) {
        self.by_op.lock().unwrap_or_else(PoisonError::into_inner).remove(&op);
    }
}

/// The ledger of this node.
pub(crate) struct NodeLedger {
    pub(crate) node: NodeId,
    /// The epoch in which this daemon works: the one that the state had when its machines were last
    /// known to be its own.
    pub(crate) epoch: Arc<AtomicU64>,
    pub(crate) actor: Actor,
    pub(crate) truth: Arc<dyn Truth>,
    pub(crate) events: Events,
    pub(crate) progresses: Arc<Progresses>,
}

impl NodeLedger {
    /// This node in its present epoch.
    pub(crate) fn speaker(&self) -> Speaker {
        Speaker { node: self.node, epoch: self.epoch.load(Ordering::SeqCst) }
    }

    pub(crate) async fn propose(&self, command: Command) -> Result<(), LedgerError> {
        let proposal = Proposal { at: now(), actor: self.actor.clone(), command };
        match self.truth.propose(proposal).await {
            Ok(_) => Ok(()),
            Err(ProposeError::Refused(refused)) => Err(LedgerError::Refused(refused)),
            Err(ProposeError::Unavailable(why)) => Err(LedgerError::Unavailable(why.to_owned())),
            // A report may be repeated: what was done already is refused then.
            Err(error @ ProposeError::Unknown) => Err(LedgerError::Unavailable(error.to_string())),
        }
    }

    /// Tells of something seen of a VM.
    pub(crate) fn observe(&self, vm: VmId, kind: EventKind, severity: Severity, text: String) {
        let name = match self.truth.state().vms.get(&vm) {
            Some(record) => record.name.to_string(),
            None => return,
        };
        let subject = Subject::Vm { id: vm, name };
        let event = Event { at: now(), kind, severity, subject, text, actor: None, op: None };
        self.events.observe(event);
    }
}

#[async_trait]
impl Ledger for NodeLedger {
    async fn finish(&self, op: OpId, outcome: OpOutcome) -> Result<(), LedgerError> {
        let by = self.speaker();
        self.propose(Command::FinishOp { op, outcome: Box::new(outcome), by }).await?;
        self.progresses.forget(op);
        Ok(())
    }

    async fn hand_over(&self, note: HandoverNote) -> Handover {
        let HandoverNote { op, generation, report } = note;
        let (by, report) = (self.speaker(), Box::new(report));
        let command = Command::VmHandover { op, generation, report, by };
        let proposal = Proposal { at: now(), actor: self.actor.clone(), command };
        match self.truth.propose(proposal).await {
            Ok(_) => Handover::Done,
            Err(ProposeError::Refused(refused)) => {
                // An earlier one of which nothing was known may have been taken in.
                let state = self.truth.state();
                let vm = state.ops.get(&op).and_then(|op| op.request.vm());
                match vm.and_then(|vm| state.vms.get(&vm)) {
                    Some(vm) if vm.arrived_by() == Some(op) => Handover::Done,
                    _ => Handover::Refused(refused.to_string()),
                }
            }
            Err(ProposeError::Unavailable(why)) => Handover::NotSent(why.to_owned()),
            Err(error @ ProposeError::Unknown) => Handover::Unknown(error.to_string()),
        }
    }

    async fn storage_moved(&self, op: OpId, generation: Generation) -> Handover {
        let command = Command::VmStorageMoved { op, generation, by: self.speaker() };
        let proposal = Proposal { at: now(), actor: self.actor.clone(), command };
        match self.truth.propose(proposal).await {
            Ok(_) => Handover::Done,
            Err(ProposeError::Refused(refused)) => Handover::Refused(refused.to_string()),
            Err(ProposeError::Unavailable(why)) => Handover::NotSent(why.to_owned()),
            Err(error @ ProposeError::Unknown) => Handover::Unknown(error.to_string()),
        }
    }

    async fn copy_gone(&self, vm: VmId, place: VmPlace) -> Result<(), LedgerError> {
        self.propose(Command::VmCopyGone { vm, place }).await
    }

    async fn exited(&self, vm: VmId, run: Generation, exit: Exit) -> Result<(), LedgerError> {
        self.propose(Command::VmExited { vm, generation: run, exit }).await
    }

    fn progress(&self, op: OpId, progress: Progress) {
        self.progresses.set(op, progress);
    }

    fn note(&self, vm: VmId, severity: Severity, text: String) {
        match severity {
            Severity::Info => tracing::info!(%vm, %text, "note"),
            Severity::Warning | Severity::Error => tracing::warn!(%vm, %text, "note"),
        }
        self.observe(vm, EventKind::VmWarning, severity, text);
    }

    fn now(&self) -> UnixMillis {
        now()
    }
}
