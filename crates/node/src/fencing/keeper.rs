//! Keeps this node's lease: asks for it, hands it to the guard, and tells what is held.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cluster::guard::GuardGone;
use cluster::guard::GuardLine;
use cluster::guard::GuardWay;
use cluster::guard::Status;
use cluster::guard::boot_time;
use cluster::guard::stop_group;
use cluster::guard::wire::Ask;
use cluster::guard::wire::Reply;
use cluster::lease::BootTime;
use cluster::lease::EndAll;
use cluster::lease::Grant;
use cluster::lease::LeaseAnswer;
use cluster::lease::LeaseRequest;
use cluster::lease::LeaseSettings;
use cluster::lease::Mode;
use model::ClusterState;
use model::NodeId;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio::time::timeout;

use super::LeaseSource;
use super::is_alone;
use crate::truth::Truth;

/// How soon it is looked again whether all machines have ended.
const END_AGAIN: Duration = Duration::from_millis(100);
/// How soon a guard that is not there is looked for again.
const GUARD_AGAIN: Duration = Duration::from_millis(250);

/// The same where nothing depends on it.
const GUARD_AGAIN_ALONE: Duration = Duration::from_secs(1);
/// How often a guard is looked at between renewals.
const GUARD_LOOK: Duration = Duration::from_millis(500);

/// What is known of this node's lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeaseView {
    /// In a cluster of one, this node's epoch: machines may be started without a lease.
    pub(crate) alone: Option<u64>,
    /// The guard, when it answered last; nothing: it does not answer.
    pub(crate) guard: Option<Status>,
    /// This node's epoch in its own copy of the state, unless it is fenced there. As long as it is
    /// not the lease's, that copy may not know yet which VMs were taken over meanwhile.
    pub(crate) known: Option<u64>,
    /// What keeps this node from a lease, in words.
    pub(crate) trouble: Option<String>,
}

/// The task that keeps the lease.
pub(crate) struct Keeper {
    pub(crate) node: NodeId,
    pub(crate) settings: LeaseSettings,
    pub(crate) guard: Arc<dyn GuardWay>,
    /// The control group above all machines, for the case that the guard is gone.
    pub(crate) group: Option<PathBuf>,
    pub(crate) truth: Arc<dyn Truth>,
    pub(crate) source: Arc<dyn LeaseSource>,
    pub(crate) published: watch::Sender<LeaseView>,
    pub(crate) client: Option<Box<dyn GuardLine>>,
    /// What the guard said last.
    pub(crate) last: Option<Status>,
}

/// The epoch of a node that is alone.
fn alone(state: &ClusterState, node: NodeId) -> Option<u64> {
    if is_alone(state, node) { state.nodes.get(&node).map(|record| record.epoch) } else { None }
}

impl LeaseView {
    /// Before anything was asked.
    pub(crate) fn unknown(state: &ClusterState, node: NodeId) -> Self {
        Self {
            alone: alone(state, node),
            guard: None,
            known: None,
            trouble: Some("it is just starting".to_owned()),
        }
    }

    /// For which epoch machines may be started now.
    ///
    /// # Errors
    /// Why not, in words.
    pub(crate) fn may_start(&self, now: BootTime) -> Result<u64, String> {
        if let Some(epoch) = self.alone {
            return Ok(epoch);
        }
        let Some(guard) = &self.guard else {
            return Err("the guard does not answer; start it: systemctl start muster-guard".into());
        };
        if guard.start_until.is_some_and(|until| now < until)
            && let Some(epoch) = guard.epoch
        {
            if self.known == Some(epoch) {
                return Ok(epoch);
            }
            return Err("this node is back, and its copy of the state is not yet; it comes by \
                        itself, see: muster cluster status"
                .to_owned());
        }
        let why = self.trouble.clone().unwrap_or_else(|| "the lease has run out".to_owned());
        Err(format!("{why}; see: muster cluster status"))
    }
}

impl Keeper {
    /// Lives as long as the daemon.
    pub(crate) async fn run(mut self) {
        loop {
            let alone = alone(&self.truth.state(), self.node);
            let turned = match self.turn(alone).await {
                Ok(pause) => self.watch_guard(alone, pause).await,
                Err(gone) => Err(gone),
            };
            if let Err(gone) = turned {
                self.client = None;
                self.stand_in(alone);
                self.publish(alone, None, Some(gone.to_string()));
                tokio::time::sleep(if alone.is_some() { GUARD_AGAIN_ALONE } else { GUARD_AGAIN })
                    .await;
            }
        }
    }

    /// Waits for the next renewal; a guard that goes away meanwhile is noticed.
    async fn watch_guard(&mut self, alone: Option<u64>, pause: Duration) -> Result<(), GuardGone> {
        let end = Instant::now() + pause;
        while Instant::now() < end {
            tokio::time::sleep_until(end.min(Instant::now() + GUARD_LOOK)).await;
            let status = self.ask(Ask::Status).await?.status;
            let trouble = self.published.borrow().trouble.clone();
            self.publish(alone, Some(status), trouble);
        }
        Ok(())
    }

    /// Once around: look at the guard, ask for a lease, hand it over. Returns how long to wait.
    async fn turn(&mut self, alone: Option<u64>) -> Result<Duration, GuardGone> {
        let status = self.ask(Ask::Status).await?.status;
        // From before the request is sent, by the clock of the guard.
        let sent = boot_time();
        let request = LeaseRequest {
            node: self.node,
            epoch: status.epoch,
            holding: status.holding(),
            watchdog_ms: status.watchdog_ms,
        };
        // A slower answer is worth nothing, since the next one is asked for by then.
        let limit = self.settings.renew_every() * 2;
        let answer = match timeout(limit, self.source.ask(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer in {} s", limit.as_secs())),
        };
        let every = self.settings.renew_every();
        let (reply, trouble, pause) = match answer {
            Ok(LeaseAnswer::Granted { grant }) => {
                let reply = self.ask(Ask::Grant(Grant { lease: grant, sent })).await?;
                match reply.end_first {
                    Some(epoch) => self.end_all(epoch).await?,
                    None => {
                        let why = reply.why.as_ref().map(|why| format!("the guard: {why}"));
                        (reply, why, every)
                    }
                }
            }
            Ok(LeaseAnswer::Fenced { epoch }) => self.end_all(epoch).await?,
            Ok(LeaseAnswer::Refused { why }) | Err(why) => {
                (self.ask(Ask::Status).await?, Some(format!("no lease: {why}")), every / 2)
            }
        };
        self.publish(alone, Some(reply.status), trouble);
        Ok(pause)
    }

    /// Has all machines ended, since the node was fenced.
    async fn end_all(
        &mut self,
        epoch: u64,
    ) -> Result<(Reply, Option<String>, Duration), GuardGone> {
        let reply = self.ask(Ask::EndAll { epoch }).await?;
        if reply.ended == Some(EndAll::Done) {
            return Ok((reply, Some("this node was fenced".to_owned()), Duration::ZERO));
        }
        tracing::warn!(epoch, "this node was fenced; all its machines are being ended");
        let why = "this node was fenced; its machines are being ended".to_owned();
        Ok((reply, Some(why), END_AGAIN))
    }

    async fn ask(&mut self, ask: Ask) -> Result<Reply, GuardGone> {
        if self.client.is_none() {
            let mut client = self.guard.connect().await?;
            self.check_group(&client.ask(Ask::Status).await?.status)?;
            let scope = self.node.to_string();
            let reply = client.ask(Ask::Enter { scope }).await?;
            if let Some(why) = reply.why {
                tracing::error!(why, "the guard does not take this node");
            }
            self.client = Some(client);
        }
        match &mut self.client {
            Some(client) => client.ask(ask).await,
            None => unreachable!("it was just connected"),
        }
    }

    /// A guard of another group would stop nothing of ours.
    fn check_group(&self, status: &Status) -> Result<(), GuardGone> {
        match &self.group {
            Some(group) if *group != status.group => Err(GuardGone::other_group(&status.group)),
            _ => Ok(()),
        }
    }

    /// The guard is gone: what it would do at the end of the lease is done from here, as long as it
    /// does not come back. It is the guard's work, and this is the second line.
    fn stand_in(&self, alone: Option<u64>) {
        let Some(last) = &self.last else { return };
        let over =
            last.mode == Some(Mode::SelfFence) && last.ends.is_some_and(|ends| boot_time() >= ends);
        let Some(group) = &self.group else { return };
        if alone.is_some() || !over {
            return;
        }
        if let Err(error) = stop_group(group) {
            tracing::error!(%error, "the guard is gone, the lease is over, and machines stay");
        }
    }

    fn publish(&mut self, alone: Option<u64>, guard: Option<Status>, trouble: Option<String>) {
        if let Some(status) = &guard {
            self.last = Some(status.clone());
        }
        let state = self.truth.state();
        let record = state.nodes.get(&self.node).filter(|record| record.fenced.is_none());
        let known = record.map(|record| record.epoch);
        self.published.send_if_modified(|view| {
            if trouble.is_some() && trouble != view.trouble && alone.is_none() {
                tracing::warn!(trouble, "lease");
            }
            let next = LeaseView { alone, guard, known, trouble };
            let changed = *view != next;
            *view = next;
            changed
        });
    }
}
