//! Puts the parts together.

use std::path::PathBuf;
use std::sync::Arc;

use cluster::fence::Agents;
use cluster::guard::GuardOf;
use cluster::guard::GuardWay;
use cluster::lease::LeaseSettings;
use cluster::raft::RaftTransport;
use cluster::raft::Timing;
use model::Actor;
use model::Name;
use model::NodeId;
use tokio::sync::watch;

use super::ByLog;
use super::Fencer;
use super::Fencing;
use super::Keeper;
use super::LeaderDesk;
use super::LeaseSource;
use super::LeaseView;
use super::OutSource;
use super::PeerSource;
use crate::config::Config;
use crate::start::machines_group;
use crate::truth::Truth;

/// What the parts are made of.
pub(crate) struct Assembly<'a> {
    pub(crate) settings: LeaseSettings,
    pub(crate) node: NodeId,
    pub(crate) name: &'a Name,
    pub(crate) truth: &'a Arc<dyn Truth>,
    pub(crate) transport: Arc<dyn RaftTransport>,
    pub(crate) guard: Arc<dyn GuardWay>,
    pub(crate) group: Option<PathBuf>,
    pub(crate) agents: Agents,
    /// Its node was taken out of the cluster.
    pub(crate) out: bool,
}

/// What runs as long as the daemon.
pub(crate) struct LeaseTask {
    keeper: Keeper,
    fencer: Fencer,
}

impl LeaseTask {
    /// Sets it going.
    pub(crate) fn go(self) {
        tokio::spawn(self.keeper.run());
        tokio::spawn(self.fencer.run());
    }
}

impl Fencing {
    /// The parts for this node, not going yet.
    ///
    /// # Errors
    /// The configuration breaks the arithmetic of leases.
    pub(crate) fn new(
        config: &Config,
        node: NodeId,
        name: &Name,
        truth: &Arc<dyn Truth>,
        transport: Arc<dyn RaftTransport>,
        out: bool,
    ) -> anyhow::Result<(Self, LeaseTask)> {
        let settings = lease_settings(config)?;
        Ok(Self::assemble(Assembly {
            settings,
            node,
            name,
            truth,
            transport,
            guard: Arc::new(GuardOf(config.run_dir.clone())),
            // Without control groups there are no real machines.
            group: machines_group(config).ok(),
            agents: Agents::default(),
            out,
        }))
    }

    /// Puts them together, whatever stands for the host.
    pub(crate) fn assemble(parts: Assembly<'_>) -> (Self, LeaseTask) {
        let Assembly { settings, node, name, truth, transport, guard, group, agents, out } = parts;
        let actor = Actor::new(&format!("node {name}"));
        let leadership = Box::new(ByLog(truth.clone()));
        let desk = Arc::new(LeaderDesk::new(node, actor, settings, truth.clone(), leadership));
        let metrics = truth.metrics();
        let peers = PeerSource {
            node,
            desk: desk.clone(),
            transport,
            leader: Box::new(move || metrics.borrow().leader),
            // A later answer is not waited for: the next one is asked for by then.
            timeout: settings.renew_every() * 2,
        };
        let source: Arc<dyn LeaseSource> = match out {
            false => Arc::new(peers),
            true => Arc::new(OutSource::new(&truth.state(), node)),
        };
        let (published, lease) = watch::channel(LeaseView::unknown(&truth.state(), node));
        let keeper = Keeper {
            node,
            settings,
            guard,
            group,
            truth: truth.clone(),
            source,
            published,
            client: None,
            last: None,
        };
        let fencer = Fencer {
            node,
            settings,
            desk: desk.clone(),
            agents: agents.clone(),
            states: truth.watch(),
        };
        (Self { settings, desk, agents, lease }, LeaseTask { keeper, fencer })
    }
}

/// The settings of the lease, if they keep the arithmetic.
fn lease_settings(config: &Config) -> anyhow::Result<LeaseSettings> {
    let settings = config.lease_settings();
    let watchdog = config.watchdog().map(|(_, time)| time).unwrap_or_default();
    // Leases must outlast a change of leader.
    settings.check(Timing::default().election_max, watchdog)?;
    Ok(settings)
}
