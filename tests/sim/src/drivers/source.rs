//! The source's side of a migration, and the first step of the guest at the target: the rule of
//! `vm/src/lifecycle/migrate/source.rs`, over simulated time.
//!
//! ```text
//!   Preparing -> Sending -> Last -> HandingOver -> (the VM is the target's)
//!       |           |         |          `-> the end of the operation, then the guest goes on
//!       `-----------+---------+------------> the guest goes on, the operation fails
//! ```

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use model::MigrateReport;
use model::MigrateResult;
use model::NodeId;
use model::OpFailure;
use model::OpId;
use model::OpOutcome;
use model::OpRecord;
use model::Power;
use model::VmId;
use model::VmRecord;
use vm::lifecycle::AfterHandover;
use vm::lifecycle::Handover;
use vm::lifecycle::HandoverNote;
use vm::lifecycle::Handovers;
use vm::lifecycle::LedgerError;

use super::Attempt;
use super::Migrations;
use super::Scene;
use super::Word;
use crate::ground::lock;
use crate::guard::short;
use crate::host::Host;
use crate::host::index_of;
use crate::plant::Plant;
use crate::wire::Content;
use crate::wire::Letter;

/// How long the target may take to get ready.
const PREPARE_MAX: u64 = 10_000;

/// How long nothing may move at the end.
const STALL_MAX: u64 = 3_000;

/// Until what was not answered is sent again, as TCP does.
const AGAIN: u64 = 300;

/// Until a handover of which nothing is known is proposed again.
const HANDOVER_AGAIN: u64 = 20;

/// Until an end that the state did not take is reported again.
const REPORT_AGAIN: Duration = Duration::from_millis(500);

/// The answer to a proposal, when it is there.
type Answer = Arc<Mutex<Option<Handover>>>;

/// A guest that is being sent.
pub(super) struct Sending {
    attempt: Attempt,
    to: NodeId,
    /// The operation's time is over then.
    deadline: u64,
    heard: Option<Heard>,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    Ready,
    Cannot,
    Loaded,
}

enum Phase {
    Preparing { again: u64 },
    Sending { until: u64 },
    Last { stood: u64, again: u64 },
    HandingOver { since: u64, handovers: Handovers, answer: Option<Answer>, again: u64 },
}

/// Why a migration stops at the source.
enum Stop {
    Cancelled,
    Failed(&'static str),
}

impl Sending {
    /// Whether the engine has not sent everything.
    pub(super) fn is_unfinished(&self) -> bool {
        matches!(self.phase, Phase::Last { .. })
    }
}

impl Migrations {
    /// What the state says to be over is over.
    pub(super) fn forget(&mut self, state: &model::ClusterState, me: NodeId) {
        let goes_on = |vm: &VmId, op: OpId| {
            let vm = state.vms.get(vm);
            vm.is_some_and(|vm| vm.owner == me && vm.busy() == Some(op))
        };
        self.sending.retain(|vm, sending| goes_on(vm, sending.attempt.op));
        for refused in std::mem::take(&mut *lock(&self.refused)) {
            self.ended.retain(|vm, op| (*vm, *op) != refused);
        }
        self.ended.retain(|vm, op| goes_on(vm, *op));
    }

    /// Whether a guest stands, and the last of it is on its way.
    pub(crate) fn sends_last(&self) -> bool {
        self.sending.values().any(Sending::is_unfinished)
    }

    /// Whether a handover is being decided.
    pub(crate) fn hands_over(&self) -> bool {
        let mut all = self.sending.values();
        all.any(|sending| matches!(sending.phase, Phase::HandingOver { .. }))
    }

    /// A word of the target.
    pub(super) fn heard(&mut self, word: &Word) {
        let (attempt, heard) = match word {
            Word::Ready(attempt) => (attempt, Heard::Ready),
            Word::Cannot(attempt) => (attempt, Heard::Cannot),
            Word::Loaded(attempt) => (attempt, Heard::Loaded),
            _ => return,
        };
        let sending = self.sending.values_mut().find(|sending| sending.attempt == *attempt);
        if let Some(sending) = sending {
            sending.heard = Some(heard);
        }
    }
}

impl Host {
    /// One turn of the operation at the VM's owner.
    pub(super) fn migrate(
        &mut self,
        scene: &mut Scene,
        record: &VmRecord,
        op: &OpRecord,
        to: NodeId,
    ) {
        if record.arrived_by() == Some(op.id) {
            if self.migrations.ended.get(&record.id) != Some(&op.id) {
                self.arrived(scene, record, op.id);
            }
            return;
        }
        if self.migrations.ended.contains_key(&record.id) {
            return;
        }
        let step = match self.migrations.sending.remove(&record.id) {
            None => self.begin(scene, record, op, to).map(Some),
            Some(sending) => self.step(scene, record, op, sending),
        };
        match step {
            Ok(Some(sending)) => drop(self.migrations.sending.insert(record.id, sending)),
            Ok(None) => drop(self.migrations.ended.insert(record.id, op.id)),
            Err(stop) => self.stopped(scene, record, op.id, to, stop),
        }
    }

    fn begin(
        &mut self,
        scene: &mut Scene,
        record: &VmRecord,
        op: &OpRecord,
        to: NodeId,
    ) -> Result<Sending, Stop> {
        let (vm, now) = (record.id, self.ground.now());
        if self.launches.remove(&vm).is_some() {
            // Whoever starts a machine by itself stops that when an operation begins.
            scene.body.machines.remove(&vm);
        }
        let left = op.deadline.since(scene.daemon.ledger().now()).get();
        if op.cancel_requested() {
            return Err(Stop::Cancelled);
        } else if left == 0 {
            return Err(Stop::Failed("deadline"));
        }
        match scene.body.machines.get(&vm) {
            // A proposal of an earlier daemon may still be on its way.
            Some(machine) if machine.sent => return Err(Stop::Failed("interrupted")),
            Some(machine) if machine.cpus && to != self.id => {}
            _ => return Err(Stop::Failed("not_running")),
        }
        let attempt = Attempt { op: op.id, begun: now };
        self.trace(&format!("sends {} to n{}", short(&vm), index_of(to) + 1));
        self.ground.tally(|tally| tally.migrations += 1);
        let phase = Phase::Preparing { again: now };
        Ok(Sending { attempt, to, deadline: now + left, heard: None, phase })
    }

    /// One step; nothing when the VM is the target's.
    fn step(
        &mut self,
        scene: &mut Scene,
        record: &VmRecord,
        op: &OpRecord,
        mut sending: Sending,
    ) -> Result<Option<Sending>, Stop> {
        let now = self.ground.now();
        if let Phase::HandingOver { since, mut handovers, answer, again } = sending.phase {
            let answered = answer.as_ref().and_then(|answer| lock(answer).take());
            sending.phase = match (answered, &answer) {
                (Some(answered), _) => {
                    match self.judge(&mut handovers, answered, now - since) {
                        AfterHandover::Leave => return Ok(None),
                        AfterHandover::Stand(_) => return Err(Stop::Failed("handover")),
                        AfterHandover::GoOn(_) => {
                            self.resume(scene, record.id);
                            return Err(Stop::Failed("handover"));
                        }
                        AfterHandover::Again(_) => {}
                    }
                    let again = now + HANDOVER_AGAIN;
                    Phase::HandingOver { since, handovers, answer: None, again }
                }
                (None, None) if now >= again => {
                    let answer = Some(self.propose_handover(scene, record, op.id));
                    Phase::HandingOver { since, handovers, answer, again }
                }
                _ => Phase::HandingOver { since, handovers, answer, again },
            };
            return Ok(Some(sending));
        }
        if op.cancel_requested() {
            return Err(Stop::Cancelled);
        } else if now > sending.deadline {
            return Err(Stop::Failed("deadline"));
        }
        self.send(scene, record, &mut sending)?;
        Ok(Some(sending))
    }

    /// Everything before the decision.
    fn send(
        &mut self,
        scene: &mut Scene,
        record: &VmRecord,
        sending: &mut Sending,
    ) -> Result<(), Stop> {
        let (now, attempt, to) = (self.ground.now(), sending.attempt, index_of(sending.to));
        let heard = sending.heard.take();
        let Some(machine) = scene.body.machines.get_mut(&record.id) else {
            return Err(Stop::Failed("machine_ended"));
        };
        let post = |content| {
            let content = Content::Word(content);
            scene.wire.send(Letter { from: self.index, to, content });
        };
        if heard == Some(Heard::Cannot) {
            return Err(Stop::Failed("target"));
        }
        match &mut sending.phase {
            Phase::Preparing { .. } if heard == Some(Heard::Ready) => {
                // The passes.
                let until = now + self.ground.between(100, 1_500);
                sending.phase = Phase::Sending { until };
            }
            Phase::Preparing { .. } if now > attempt.begun + PREPARE_MAX => {
                return Err(Stop::Failed("target"));
            }
            Phase::Preparing { again } if now >= *again => {
                *again = now + AGAIN;
                let (vm, generation) = (record.id, record.generation);
                post(Word::Prepare { attempt, vm, generation });
            }
            Phase::Sending { until } if now >= *until => {
                machine.cpus = false;
                sending.phase = Phase::Last { stood: now, again: now + AGAIN };
                post(Word::Last { attempt, stood: now });
            }
            Phase::Last { .. } if heard == Some(Heard::Loaded) => {
                machine.sent = true;
                let handovers = Handovers::default();
                sending.phase =
                    Phase::HandingOver { since: now, handovers, answer: None, again: now };
            }
            Phase::Last { stood, .. } if now > *stood + STALL_MAX => {
                return Err(Stop::Failed("migration"));
            }
            Phase::Last { stood, again } if now >= *again => {
                *again = now + AGAIN;
                post(Word::Last { attempt, stood: *stood });
            }
            _ => {}
        }
        Ok(())
    }

    fn propose_handover(&self, scene: &Scene, record: &VmRecord, op: OpId) -> Answer {
        self.trace(&format!("hands {} over", short(&record.id)));
        let (ledger, answer) = (scene.daemon.ledger(), Answer::default());
        let measured = Some(MigrateResult::default());
        let report = MigrateReport { measured, ..MigrateReport::default() };
        let note = HandoverNote { op, generation: record.generation, report };
        let place = answer.clone();
        self.spawn(async move {
            let heard = ledger.hand_over(note).await;
            *lock(&place) = Some(heard);
        });
        answer
    }

    /// What follows from an answer; by the real rule, but for the planted fault.
    fn judge(&self, handovers: &mut Handovers, answer: Handover, waited: u64) -> AfterHandover {
        self.trace(&format!("its handover: {answer:?}"));
        self.ground.tally(|tally| match &answer {
            Handover::Done => {}
            Handover::Refused(_) => tally.refused += 1,
            Handover::NotSent(_) => tally.not_sent += 1,
            Handover::Unknown(_) => tally.unsure += 1,
        });
        match answer {
            Handover::Unknown(why) if self.ground.has(Plant::GoOnUnsure) => {
                AfterHandover::GoOn(why)
            }
            answer => handovers.answered(answer, Duration::from_millis(waited)),
        }
    }

    /// The guest goes on where it is.
    fn resume(&self, scene: &mut Scene, vm: VmId) {
        if let Some(machine) = scene.body.machines.get_mut(&vm) {
            (machine.sent, machine.cpus) = (false, true);
            self.trace(&format!("{} goes on here", short(&vm)));
        }
    }

    /// After a migration that stopped: an engine that has not sent everything lets its guest go on;
    /// one that has waits for the end of the operation.
    fn stopped(&mut self, scene: &mut Scene, record: &VmRecord, op: OpId, to: NodeId, stop: Stop) {
        let vm = record.id;
        // A guest that was sent may still be handed over: the target sees in the state when that
        // cannot happen any more.
        let unsent = scene.body.machines.get(&vm).filter(|machine| !machine.sent).copied();
        if let Some(machine) = unsent.filter(|_| to != self.id) {
            if !machine.cpus {
                self.resume(scene, vm);
            }
            let content = Content::Word(Word::Abandon(op));
            scene.wire.send(Letter { from: self.index, to: index_of(to), content });
        }
        let outcome = match stop {
            Stop::Cancelled => OpOutcome::Cancelled { power: None },
            Stop::Failed(code) => failed(code),
        };
        self.finish(scene, vm, op, outcome);
    }

    /// The VM is this host's since the handover: its guest goes on.
    fn arrived(&mut self, scene: &mut Scene, record: &VmRecord, op: OpId) {
        let (vm, word) = (record.id, short(&record.id));
        self.migrations.waiting.remove(&vm);
        let machine = scene.body.machines.get_mut(&vm);
        let machine = machine
            .filter(|machine| machine.arrival.is_some_and(|arrival| arrival.attempt.op == op));
        let outcome = match machine {
            Some(machine) => {
                machine.cpus = true;
                self.trace(&format!("runs {word} g{}, which has arrived", record.generation));
                self.ground.tally(|tally| tally.arrived += 1);
                OpOutcome::Migrated { measured: MigrateResult::default() }
            }
            None => failed("lost_on_arrival"),
        };
        self.finish(scene, vm, op, outcome);
    }

    /// Reports the end of an operation until the state has it.
    pub(super) fn finish(&mut self, scene: &Scene, vm: VmId, op: OpId, outcome: OpOutcome) {
        let how = match &outcome {
            OpOutcome::Failed { failure, .. } => failure.code.clone(),
            OpOutcome::Cancelled { .. } => "cancelled".to_owned(),
            _ => "done".to_owned(),
        };
        self.trace(&format!("its operation on {}: {how}", short(&vm)));
        self.migrations.ended.insert(vm, op);
        let (ledger, refused) = (scene.daemon.ledger(), self.migrations.refused.clone());
        self.spawn(async move {
            loop {
                let said = ledger.finish(op, outcome.clone()).await;
                let Err(error) = said else { return };
                tokio::time::sleep(REPORT_AGAIN).await;
                if let LedgerError::Refused(_) = error {
                    return lock(&refused).push((vm, op));
                }
            }
        });
    }
}

fn failed(code: &str) -> OpOutcome {
    failure(code, None)
}

/// An operation that failed, and what its VM is then, if that is not what it was.
pub(super) fn failure(code: &str, power: Option<Power>) -> OpOutcome {
    let failure = OpFailure {
        code: code.to_owned(),
        message: "it was not done".to_owned(),
        hint: "see the trace".to_owned(),
    };
    OpOutcome::Failed { failure, power }
}
