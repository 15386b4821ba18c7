//! The leader's desk: the pure one of crate `cluster`, with the state and the clock around it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use async_trait::async_trait;
use cluster::fence::Heard;
use cluster::guard::boot_time;
use cluster::lease::BootTime;
use cluster::lease::Decision;
use cluster::lease::Desk;
use cluster::lease::LeaseAnswer;
use cluster::lease::LeaseRequest;
use cluster::lease::LeaseSettings;
use cluster::lease::Takeover;
use model::Actor;
use model::ClusterState;
use model::Command;
use model::NodeId;
use model::Proposal;
use tokio::time::Instant;

use super::known;
use crate::app::now;
use crate::truth::ProposeError;
use crate::truth::Truth;

/// Records that may have to be written for one answer: that the node is back, its terms, and both
/// again when something changes meanwhile.
const ROUNDS_MAX: usize = 8;

/// Whether this node leads, and a proof of it.
#[async_trait]
pub(crate) trait Leadership: Send + Sync {
    /// Whether this node believes that it leads.
    fn leads(&self) -> bool;

    /// Returns when a quorum has confirmed, after the call, that the state here is the newest: a
    /// linearizable read point.
    ///
    /// # Errors
    /// In words.
    async fn confirm(&self) -> Result<(), String>;
}

/// As the replicated log says. Its read point shows the newest state wherever the leader is by now,
/// and that state names whose reign it is.
pub(crate) struct ByLog(pub(crate) Arc<dyn Truth>);

#[async_trait]
impl Leadership for ByLog {
    fn leads(&self) -> bool {
        self.0.metrics().borrow().leads()
    }

    async fn confirm(&self) -> Result<(), String> {
        self.0.barrier().await.map_err(|error| error.to_string())
    }
}

/// A node whose beat was seen to change so lately is listened to on the volumes, too, before a fence
/// device is believed.
const BEATS_LATELY: Duration = Duration::from_secs(10);

/// How long that takes, in times between two beats: a look that begins after the device has spoken,
/// and the next one that finds a change, each of which may just have missed one.
const BEATS_TAKE: u32 = 4;

/// What a slow volume takes besides.
const SLOW: Duration = Duration::from_secs(2);

/// Signs of life of a node.
#[derive(Debug, Clone, Copy, Default)]
struct Signs {
    /// It lived at or after this.
    alive: Option<Instant>,
    /// When its beat on a volume was seen to change.
    beat: Option<Instant>,
    /// How often it beats.
    every: Duration,
}

/// Grants leases while this node leads.
pub(crate) struct LeaderDesk {
    node: NodeId,
    actor: Actor,
    settings: LeaseSettings,
    truth: Arc<dyn Truth>,
    leadership: Box<dyn Leadership>,
    /// The desk of this node's reign, if it had one. Held for an instant only.
    desk: Mutex<Option<Desk>>,
    /// One reign is begun at a time.
    beginning: tokio::sync::Mutex<()>,
    heard: Mutex<HashMap<NodeId, Signs>>,
}

impl LeaderDesk {
    pub(crate) fn new(
        node: NodeId,
        actor: Actor,
        settings: LeaseSettings,
        truth: Arc<dyn Truth>,
        leadership: Box<dyn Leadership>,
    ) -> Self {
        Self {
            node,
            actor,
            settings,
            truth,
            leadership,
            desk: Mutex::default(),
            beginning: tokio::sync::Mutex::default(),
            heard: Mutex::default(),
        }
    }

    /// Whether this node leads.
    pub(crate) fn leads(&self) -> bool {
        self.leadership.leads()
    }

    /// Answers a node's request for a lease. `from`: who it is by its certificate.
    pub(crate) async fn answer(&self, from: NodeId, request: LeaseRequest) -> LeaseAnswer {
        // Before anything that waits: the wait for a takeover counts from here.
        let arrived = boot_time();
        let refused = |why: String| LeaseAnswer::Refused { why };
        if from != request.node {
            return refused("a node asks for its own lease only".to_owned());
        }
        self.note_heard(from);
        if !self.leads() {
            return refused("this node does not lead".to_owned());
        }
        for _ in 0..ROUNDS_MAX {
            if let Err(why) = self.leadership.confirm().await {
                return refused(format!("nobody confirms that this node leads: {why}"));
            }
            if let Err(why) = self.ensure_reign().await {
                return refused(why);
            }
            let write = match self.decide(arrived, &request) {
                Some(Ok(Decision::Grant(grant))) => return LeaseAnswer::Granted { grant },
                Some(Ok(Decision::Fenced { epoch })) => return LeaseAnswer::Fenced { epoch },
                Some(Ok(Decision::Refuse(why))) => return refused(why.to_string()),
                Some(Err(why)) => return refused(why),
                // The reign ended between two lines.
                None => continue,
                Some(Ok(Decision::WriteTerms(terms))) => {
                    Command::NodeTerms { node: from, reign: self.reign(), terms }
                }
                Some(Ok(Decision::WriteReturn { epoch })) => {
                    Command::NodeBack { node: from, epoch }
                }
            };
            if let Err(why) = self.propose(write).await {
                return refused(format!("the state does not take it: {why}"));
            }
        }
        refused("the state changes too fast; ask again".to_owned())
    }

    /// Decides with the state that is there at that instant. The lock is held over both, so that a
    /// fencing which has closed this node's account is not missed. Nothing: no reign.
    fn decide(
        &self,
        arrived: BootTime,
        request: &LeaseRequest,
    ) -> Option<Result<Decision, String>> {
        let mut desk = self.desk();
        let state = self.truth.state();
        let desk = desk.as_mut().filter(|desk| self.reigns(desk, &state))?;
        Some(match known(&state, request.node) {
            Some(known) => Ok(desk.decide(arrived, known, request)),
            None => Err("the cluster does not know this node; it was evicted".to_owned()),
        })
    }

    /// Begins a reign if this node has none. Its clock starts only now, so whatever was granted
    /// before counts as granted until now.
    pub(crate) async fn ensure_reign(&self) -> Result<(), String> {
        let has =
            || self.desk().as_ref().is_some_and(|desk| self.reigns(desk, &self.truth.state()));
        if has() {
            return Ok(());
        }
        let _one = self.beginning.lock().await;
        if has() {
            return Ok(());
        }
        let term = self.truth.state().lease_reign.reign + 1;
        let begun = self.propose(Command::LeaseReign { reign: term, leader: self.node }).await;
        begun.map_err(|why| format!("its reign cannot begin: {why}"))?;
        *self.desk() = Some(Desk::new(self.settings, term, boot_time()));
        tracing::info!(term, "this node grants leases");
        Ok(())
    }

    fn reigns(&self, desk: &Desk, state: &ClusterState) -> bool {
        let reign = state.lease_reign;
        reign.reign == desk.term() && reign.leader == Some(self.node)
    }

    /// The number of this node's reign; nothing that the state takes without one.
    pub(crate) fn reign(&self) -> u64 {
        self.desk().as_ref().map_or(0, Desk::term)
    }

    /// Grants nothing to a node that is being fenced, until what is returned is dropped.
    pub(crate) fn close(self: &Arc<Self>, node: NodeId) -> ClosedAccount {
        let mut desk = self.desk();
        let term = desk.as_mut().map_or(0, |desk| {
            desk.close(node);
            desk.term()
        });
        ClosedAccount { desk: self.clone(), node, term }
    }

    /// When the node's lease is called over, as of now.
    pub(crate) fn takeover(&self, node: NodeId) -> Takeover {
        let desk = self.desk();
        let state = self.truth.state();
        match (desk.as_ref().filter(|desk| self.reigns(desk, &state)), known(&state, node)) {
            (Some(desk), Some(known)) => desk.takeover(boot_time(), node, known),
            _ => Takeover::NeedsProof,
        }
    }

    /// How long ago the node was granted a lease in this reign.
    pub(crate) fn last_grant(&self, node: NodeId) -> Option<std::time::Duration> {
        let last = self.desk().as_ref()?.last_grant(node)?;
        Some(boot_time().since(last))
    }

    /// Notes that something of a node arrived: heartbeats tell this, too.
    pub(crate) fn note_heard(&self, node: NodeId) {
        self.signs().entry(node).or_default().alive = Some(Instant::now());
    }

    /// Notes that a node, which beats `every` so often, has written to a volume after `since`.
    pub(crate) fn note_beat(&self, node: NodeId, since: Instant, every: Duration) {
        let mut signs = self.signs();
        let signs = signs.entry(node).or_default();
        signs.alive = signs.alive.max(Some(since));
        signs.beat = Some(Instant::now());
        signs.every = every;
    }

    fn signs(&self) -> MutexGuard<'_, HashMap<NodeId, Signs>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) async fn propose(&self, command: Command) -> Result<(), ProposeError> {
        let proposal = Proposal { at: now(), actor: self.actor.clone(), command };
        self.truth.propose(proposal).await.map(|_| ())
    }

    fn desk(&self) -> MutexGuard<'_, Option<Desk>> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nothing is granted to a node while this lives.
pub(crate) struct ClosedAccount {
    desk: Arc<LeaderDesk>,
    node: NodeId,
    term: u64,
}

impl Drop for ClosedAccount {
    fn drop(&mut self) {
        // The desk of a later reign was never closed by this.
        if let Some(desk) = self.desk.desk().as_mut().filter(|desk| desk.term() == self.term) {
            desk.open(self.node);
        }
    }
}

impl Heard for LeaderDesk {
    fn since(&self, node: NodeId, since: Instant) -> bool {
        self.signs().get(&node).is_some_and(|signs| signs.alive.is_some_and(|at| at > since))
    }

    fn takes(&self, node: NodeId) -> Duration {
        let signs = self.signs().get(&node).copied().unwrap_or_default();
        match signs.beat.is_some_and(|beat| beat.elapsed() < BEATS_LATELY) {
            true => signs.every * BEATS_TAKE + SLOW,
            false => Duration::ZERO,
        }
    }
}
