//! High availability: who is heard, what the leader does about the loss of nodes, and the moves of
//! this node's VMs.
//!
//! ```text
//!   pulse (thread) -- heartbeats --+
//!   beats (thread a volume) -------+--> Watch (detector) --> verdicts, 5 times a second
//!                                                               |
//!   state ------------------------------------------> lead::next (pure) --> commands, if this leads
//!   state ------------------------------------------> moves::next (pure) --gate--> operations of own VMs
//! ```

pub(crate) mod answers;
mod beats;
mod gate;
mod lead;
mod moves;
pub(crate) mod pulse;
mod watch;
#[cfg(test)]
pub(crate) mod world;

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cluster::detect::Settings;
use cluster::detect::Verdict;
use cluster::guard::boot_time;
use cluster::lease::LeaseSettings;
use futures::StreamExt;
use model::ClusterState;
use model::Command;
use model::Millis;
use model::NodeId;
use model::OpId;
use model::Proposal;
use model::VmId;
use tokio::sync::watch as watch_channel;
use tokio::time::Instant;
use tokio::time::MissedTickBehavior;
use vm::lifecycle::LedgerError;

use crate::app::new_uuid;
use crate::app::now;
use crate::fencing;
use crate::fencing::LeaderDesk;
use crate::fencing::LeaseView;
use crate::ledger::NodeLedger;

pub(crate) use watch::Watch;

/// How often the leader looks at what is heard.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How often it also looks when nothing has changed: some things come by time alone.
const LOOK_ANYWAY: Duration = Duration::from_secs(1);

/// Commands under way at once: the log writes them together.
const COMMANDS_AT_ONCE: usize = 64;

/// A VM whose move failed is not moved again before.
const MOVE_AGAIN: Duration = Duration::from_secs(60);

/// A save or resume of a large VM on a slow volume.
const MOVE_LIMIT: Millis = Millis::from_secs(3_600);

/// How often it is looked whether more machines may leave at once, while some do.
const GATE_EVERY: Duration = Duration::from_secs(1);

/// What is measured of machines that leave this node.
pub(crate) struct Outgoing {
    /// Bytes that were carried to other nodes for migrations since the daemon began; only grows.
    pub(crate) carried: Arc<AtomicU64>,
    /// Processor time that a machine takes lately, in percent of one processor: the less it does, the less
    /// of its memory changes while it is sent.
    pub(crate) works: Box<dyn Fn(VmId) -> u32 + Send + Sync>,
}

impl Outgoing {
    /// For a node without anything to measure.
    pub(crate) fn unmeasured() -> Self {
        Self { carried: Arc::default(), works: Box::new(|_| 0) }
    }
}

/// What it is made of.
pub(crate) struct Ha {
    ledger: Arc<NodeLedger>,
    settings: LeaseSettings,
    lease: watch_channel::Receiver<LeaseView>,
    detect: Settings,
    /// Told of each heartbeat: a node that is heard is not off, whatever its fence device says.
    desk: Arc<LeaderDesk>,
    outgoing: Outgoing,
}

impl Ha {
    /// With what the parts of this node's fencing see and do.
    pub(crate) fn new(
        ledger: Arc<NodeLedger>,
        fencing: &fencing::Fencing,
        detect: Settings,
        outgoing: Outgoing,
    ) -> Self {
        let (lease, desk) = (fencing.lease.clone(), fencing.desk.clone());
        Self { ledger, settings: fencing.settings, lease, detect, desk, outgoing }
    }

    /// Sets everything going; it ends with the daemon.
    ///
    /// # Errors
    /// The settings cannot be, or there is no thread for heartbeats.
    pub(crate) fn start(self) -> anyhow::Result<Arc<Watch>> {
        let (node, truth) = (self.ledger.node, self.ledger.truth.clone());
        let watch = Arc::new(Watch::new(node, self.detect)?);
        let pulse = pulse::Pulse {
            me: node,
            incarnation: now().get(),
            watch: watch.clone(),
            states: truth.watch(),
        };
        std::thread::Builder::new().name("muster-pulse".to_owned()).spawn(|| pulse.run())?;
        tokio::spawn(beats::follow(node, watch.clone(), truth.watch()));
        self.decide(&watch);
        Ok(watch)
    }

    /// The part without threads: what is decided from what `watch` hears.
    pub(crate) fn decide(self, watch: &Arc<Watch>) {
        watch.tell(self.desk);
        tokio::spawn(move_own(self.ledger.clone(), self.outgoing));
        tokio::spawn(keep_epoch(self.ledger.clone(), self.lease));
        tokio::spawn(lead(self.ledger, self.settings, watch.clone()));
    }
}

/// Keeps the epoch in which this daemon speaks: the one for which it may start machines. Between a
/// fencing and the end of all machines of before, it stays the old one, which the state refuses.
async fn keep_epoch(ledger: Arc<NodeLedger>, mut lease: watch_channel::Receiver<LeaseView>) {
    loop {
        if let Ok(epoch) = lease.borrow_and_update().may_start(boot_time()) {
            ledger.epoch.store(epoch, Ordering::SeqCst);
        }
        if lease.changed().await.is_err() {
            return;
        }
    }
}

/// Looks at what is heard, and acts while this node leads.
async fn lead(ledger: Arc<NodeLedger>, lease: LeaseSettings, watch: Arc<Watch>) {
    let _end = watch::EndOnDrop(watch.clone());
    let metrics = ledger.truth.metrics();
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last: Option<(Arc<ClusterState>, BTreeMap<NodeId, Verdict>, Instant)> = None;
    let mut moved: HashMap<VmId, Instant> = HashMap::new();
    loop {
        ticks.tick().await;
        let state = ledger.truth.state();
        let verdicts = watch.look(&state);
        if !metrics.borrow().leads() {
            last = None;
            continue;
        }
        let same = last.as_ref().is_some_and(|(old, heard, at)| {
            Arc::ptr_eq(old, &state)
                && kinds(heard) == kinds(&verdicts)
                && at.elapsed() < LOOK_ANYWAY
        });
        if same {
            continue;
        }
        let mut commands = {
            let certainty = |node| fencing::certainty(&state, &lease, node);
            let (me, verdicts) = (ledger.node, &verdicts);
            lead::next(&state, &lead::Seen { me, verdicts, certainty: &certainty, now: now() })
        };
        moved.retain(|_, at| at.elapsed() < MOVE_AGAIN);
        commands.retain(|command| match command {
            Command::VmMove { vm, to: Some(_), .. } => !moved.contains_key(vm),
            _ => true,
        });
        for command in &commands {
            if let Command::VmMove { vm, to: Some(_), .. } = command {
                moved.insert(*vm, Instant::now());
            }
        }
        last = Some((state, verdicts, Instant::now()));
        carry_out(&ledger, commands).await;
    }
}

/// Verdicts without their times.
fn kinds(verdicts: &BTreeMap<NodeId, Verdict>) -> Vec<(NodeId, u8)> {
    let kind = |verdict: &Verdict| match verdict {
        Verdict::Alive => 0,
        Verdict::Silent { .. } => 1,
        Verdict::Isolated { over: false, .. } => 2,
        Verdict::Isolated { over: true, .. } => 3,
        Verdict::Dead { .. } => 4,
    };
    verdicts.iter().map(|(node, verdict)| (*node, kind(verdict))).collect()
}

/// Proposes commands, the first ones first. What is refused was overtaken; it is looked at anew.
async fn carry_out(ledger: &NodeLedger, commands: Vec<Command>) {
    let propose = async |command: Command| {
        tracing::info!(?command, "high availability");
        let proposal = Proposal { at: now(), actor: ledger.actor.clone(), command };
        if let Err(error) = ledger.truth.propose(proposal).await {
            tracing::warn!(%error, "the state did not take it");
        }
    };
    futures::stream::iter(commands).map(propose).buffered(COMMANDS_AT_ONCE).collect::<()>().await;
}

/// Carries moves of this node's VMs out.
async fn move_own(ledger: Arc<NodeLedger>, outgoing: Outgoing) {
    let mut states = ledger.truth.watch();
    let mut gate = gate::Gate::new();
    loop {
        let state = states.borrow_and_update().clone();
        let mut failed = false;
        let due = moves::next(&state, ledger.node);
        let (going, waiting) = (moves::going(&state, ledger.node), moves::waiting(&due));
        gate.look(Instant::now(), going, waiting, outgoing.carried.load(Ordering::Relaxed));
        let due = moves::admitted(&state, due, gate.room(going), &*outgoing.works);
        for next in due {
            let command = match next.clone() {
                moves::Next::Begin(request) => {
                    let op = OpId::new(new_uuid());
                    Command::BeginOp { op, request: Box::new(request), limit: MOVE_LIMIT }
                }
                moves::Next::Rehome { vm, to } => Command::VmRehome { vm, to },
            };
            let mut proposed = ledger.propose(command).await;
            if let Err(LedgerError::Refused(why)) = &proposed
                && let Some(command) = moves::refused(&next, why)
            {
                tracing::warn!(%why, "a move ends before it begins");
                proposed = ledger.propose(command).await;
            }
            match proposed {
                Ok(()) | Err(LedgerError::Refused(_)) => {}
                Err(LedgerError::Unavailable(why)) => {
                    tracing::warn!(why, "a move waits");
                    failed = true;
                }
            }
        }
        let changed = states.changed();
        if failed || waiting > 0 {
            let again = if failed { LOOK_ANYWAY } else { GATE_EVERY };
            let _ = tokio::time::timeout(again, changed).await;
        } else if changed.await.is_err() {
            return;
        }
    }
}
