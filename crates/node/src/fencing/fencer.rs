//! Fences nodes, on the node that leads: from a wish in the state to a proof in the state.
//!
//! ```text
//!   wish ---> an administrator's word ------------------------------------> NodeFenced
//!     |-----> fence devices, level by level --- off, and not heard --------> NodeFenced
//!     |           | none, or all failed
//!     +-----> self-fencing lease: wait until it is over ------------------> NodeFenced
//!                 | not self-fencing: FenceEnd, with what to do
//! ```
//!
//! The node's account at the desk is closed before a proof is looked for, and opened again only when
//! the state has answered: no lease is granted to a node between its proof and its new epoch. While
//! a lease is only waited for, a node that is *suspected* may still renew it, and then need not be
//! fenced; one that is fenced by hand may not.

use std::sync::Arc;
use std::time::Duration;

use cluster::fence::Agents;
use cluster::fence::NoProof;
use cluster::fence::prove_off;
use cluster::guard::boot_time;
use cluster::lease::LeaseSettings;
use cluster::lease::Takeover;
use model::ClusterState;
use model::Command;
use model::FenceProof;
use model::FenceReason;
use model::FenceWish;
use model::Millis;
use model::NodeId;
use tokio::sync::watch;

use super::LeaderDesk;
use super::desk::ClosedAccount;
use crate::app::now;
use crate::truth::ProposeError;

/// How soon something is tried again that the state did not take for now.
const AGAIN: Duration = Duration::from_millis(500);
/// Longest sleep of a wait for the end of a lease: the node may come back meanwhile.
const LOOK: Duration = Duration::from_millis(250);

/// The task that fences.
pub(crate) struct Fencer {
    pub(crate) node: NodeId,
    pub(crate) settings: LeaseSettings,
    pub(crate) desk: Arc<LeaderDesk>,
    pub(crate) agents: Agents,
    pub(crate) states: watch::Receiver<Arc<ClusterState>>,
}

/// How one wish ended.
enum End {
    /// The account stays closed until the state has answered.
    Proof(FenceProof, ClosedAccount),
    Failed(String),
    NotNeeded,
    /// The wish is another one now, or this node does not lead any more.
    Overtaken,
}

impl Fencer {
    /// Lives as long as the daemon.
    pub(crate) async fn run(mut self) {
        let mut running: Vec<(NodeId, FenceWish, tokio::task::JoinHandle<()>)> = Vec::new();
        let me = Arc::new(Worker {
            node: self.node,
            settings: self.settings,
            desk: self.desk.clone(),
            agents: self.agents.clone(),
            states: self.states.clone(),
        });
        loop {
            let state = self.states.borrow_and_update().clone();
            running.retain(|(_, _, task)| !task.is_finished());
            if self.desk.leads() {
                for (node, record) in &state.nodes {
                    let Some(wish) = &record.fence.wish else { continue };
                    let there = running.iter().any(|(of, at, _)| of == node && at == wish);
                    if !there {
                        let task = tokio::spawn(me.clone().fence(*node, wish.clone()));
                        running.push((*node, wish.clone(), task));
                    }
                }
            }
            // A task that ended without an outcome, and a leadership that began, are seen by time.
            tokio::select! {
                changed = self.states.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
    }
}

struct Worker {
    node: NodeId,
    settings: LeaseSettings,
    desk: Arc<LeaderDesk>,
    agents: Agents,
    states: watch::Receiver<Arc<ClusterState>>,
}

impl Worker {
    async fn fence(self: Arc<Self>, node: NodeId, wish: FenceWish) {
        if let Err(why) = self.desk.ensure_reign().await {
            tracing::warn!(why, "fencing waits");
            return;
        }
        let reign = self.desk.reign();
        tracing::warn!(%node, reason = ?wish.reason, "fencing");
        let end = self.prove(node, &wish).await;
        let (command, _closed) = match end {
            End::Proof(proof, closed) => {
                let state = self.state();
                let Some(record) = state.nodes.get(&node) else { return };
                let epoch = record.epoch;
                (Command::NodeFenced { node, epoch, reign, proof }, Some(closed))
            }
            End::Failed(why) => (Command::FenceEnd { node, reign, why: Some(cut(why)) }, None),
            End::NotNeeded => (Command::FenceEnd { node, reign, why: None }, None),
            End::Overtaken => return,
        };
        // No answer is no refusal: it may have been taken.
        while let Err(error) = self.desk.propose(command.clone()).await {
            if let ProposeError::Refused(refused) = error {
                tracing::warn!(%refused, "the state does not take the end of a fencing");
                break;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn prove(&self, node: NodeId, wish: &FenceWish) -> End {
        if node == self.node {
            return End::Failed(
                "it leads the cluster, and does not fence itself; switch it off by hand".to_owned(),
            );
        }
        let closed = self.desk.close(node);
        if wish.reason == FenceReason::ConfirmedOff {
            return self.word(node, closed);
        }
        let devices: Vec<_> = self.state().fence_devices.values().cloned().collect();
        let tried = prove_off(&self.agents, &devices, node, self.desk.as_ref(), now).await;
        let why = match tried {
            Ok(proof) => return End::Proof(proof, closed),
            Err(NoProof::NoDevice) => NoProof::NoDevice.to_string(),
            Err(NoProof::Failed(why)) => {
                tracing::error!(%node, why, "no fence device succeeded");
                why
            }
        };
        // One that is fenced by hand gets no lease any more; a suspected one may come back.
        let by_hand = matches!(wish.reason, FenceReason::Manual).then_some(closed);
        self.wait_for_lease(node, wish, why, by_hand).await
    }

    /// An administrator's word counts, unless the node itself contradicts it.
    fn word(&self, node: NodeId, closed: ClosedAccount) -> End {
        match self.desk.last_grant(node) {
            Some(ago) if ago < self.settings.lease => End::Failed(format!(
                "it renewed its lease {} s ago, so it is not off; cut its power and say it again \
                 after {} s",
                ago.as_secs(),
                self.settings.lease.as_secs()
            )),
            _ => End::Proof(FenceProof::Statement, closed),
        }
    }

    async fn wait_for_lease(
        &self,
        node: NodeId,
        wish: &FenceWish,
        why: String,
        by_hand: Option<ClosedAccount>,
    ) -> End {
        let begun = boot_time();
        loop {
            let current = self.state();
            let same = current
                .nodes
                .get(&node)
                .is_some_and(|record| record.fence.wish.as_ref() == Some(wish));
            if !same || !self.desk.leads() {
                return End::Overtaken;
            }
            // Closed before it is looked at, so that nothing is granted after the look.
            let closed = self.desk.close(node);
            let at = match self.desk.takeover(node) {
                Takeover::Over { waited_ms } => {
                    return End::Proof(
                        FenceProof::LeaseOver { waited: Millis::new(waited_ms) },
                        closed,
                    );
                }
                Takeover::NeedsProof => {
                    return End::Failed(format!(
                        "{why}; its lease does not end by itself, so it needs proof: cut its power \
                         and say so (muster cluster confirm-off)"
                    ));
                }
                Takeover::At(at) => at,
            };
            drop(closed);
            let renewed =
                || self.desk.last_grant(node).is_some_and(|ago| boot_time().since(begun) > ago);
            if by_hand.is_none() && renewed() {
                return End::NotNeeded;
            }
            tokio::time::sleep(at.since(boot_time()).min(LOOK)).await;
        }
    }

    fn state(&self) -> Arc<ClusterState> {
        self.states.borrow().clone()
    }
}

/// What the state keeps of a text.
fn cut(mut why: String) -> String {
    const MOST: usize = 4_000;
    if why.len() > MOST {
        let end = (0..=MOST).rev().find(|at| why.is_char_boundary(*at)).unwrap_or_default();
        why.truncate(end);
    }
    why
}
