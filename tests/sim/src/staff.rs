//! People who take a node out of the cluster and bring its host back as a new one, whatever goes wrong
//! meanwhile.
//!
//! ```text
//!   Rest -> Emptying: the node takes no VMs, its own go elsewhere; it is evicted as soon as the state lets it
//!           (too long: it stays)
//!        -> Gone: its daemon may still run, on what it had, and is nobody any more
//!        -> Joining: its host has a new disk and a new id, and asks to join until it is a member
//! ```

use std::sync::Arc;

use model::ClusterState;
use model::Command;
use model::NodeId;
use model::NodeMode;
use node::truth::Truth;
use sim::rng::Rng;

use crate::ground::Ground;
use crate::host::Host;
use crate::host::proposal;
use crate::setup;

/// How often they look, in milliseconds.
const LOOK: u64 = 300;

/// How long a node may take to be empty.
const EMPTYING_MAX: u64 = 12_000;

/// What they are about.
enum Errand {
    Rest { until: u64 },
    Emptying { host: usize, since: u64 },
    Gone { host: usize, until: u64 },
    Joining { host: usize },
}

/// What the world does for them.
pub(crate) enum Deed {
    /// The host gets a new disk, and its node a new id.
    Renew { host: usize },
}

pub(crate) struct Staff {
    rng: Rng,
    ground: Arc<Ground>,
    errand: Errand,
    /// They begin nothing more.
    rests: bool,
}

impl Staff {
    pub(crate) fn new(mut rng: Rng, ground: Arc<Ground>) -> Self {
        let until = ground.now() + rng.between(1_000, 8_000);
        Self { rng, ground, errand: Errand::Rest { until }, rests: false }
    }

    /// They only end what they have begun.
    pub(crate) fn rest(&mut self) {
        self.rests = true;
    }

    /// Whether a host is out of the cluster, or about to be.
    pub(crate) fn is_busy(&self) -> bool {
        !matches!(self.errand, Errand::Rest { .. })
    }

    /// Whom they want empty: nobody else opens it.
    pub(crate) fn closes(&self, hosts: &[Host]) -> Option<NodeId> {
        match self.errand {
            Errand::Emptying { host, .. } if !self.rests => Some(hosts[host].id),
            _ => None,
        }
    }

    fn trace(&self, what: &str) {
        self.ground.trace("a", what);
    }

    /// `newest` is the newest state that anybody has applied.
    pub(crate) fn turn(&mut self, hosts: &[Host], newest: &ClusterState) -> Option<Deed> {
        let now = self.ground.now();
        if !now.is_multiple_of(LOOK) {
            return None;
        }
        // What they have asked for may come when they do not think of it any more.
        let gone = hosts.iter().position(|host| newest.gone.contains_key(&host.id));
        if let (Errand::Rest { .. } | Errand::Emptying { .. }, Some(host)) = (&self.errand, gone) {
            // Until it is looked after, what is left there may still do what it can.
            let until = now + if self.rests { 0 } else { self.rng.below(5_000) };
            self.trace(&format!("{} is evicted", hosts[host].name));
            self.ground.tally(|tally| tally.evicted += 1);
            self.errand = Errand::Gone { host, until };
            return None;
        }
        match self.errand {
            Errand::Rest { until } if now >= until && !self.rests => self.choose(hosts, newest),
            Errand::Rest { .. } => {}
            Errand::Emptying { host, since } => self.empty(hosts, newest, host, since),
            Errand::Gone { host, until } if now >= until => {
                self.errand = Errand::Joining { host };
                return Some(Deed::Renew { host });
            }
            Errand::Gone { .. } => {}
            Errand::Joining { host } => {
                if newest.nodes.contains_key(&hosts[host].id) {
                    self.trace(&format!("{} is a member again", hosts[host].name));
                    self.errand = Errand::Rest { until: now + self.rng.between(4_000, 12_000) };
                } else {
                    let join = setup::join(host, hosts[host].id);
                    let by = self.somebody(hosts, host);
                    self.propose(by, join);
                }
            }
        }
        None
    }

    fn choose(&mut self, hosts: &[Host], newest: &ClusterState) {
        let host = self.rng.place(hosts.len());
        // One at a time, and not while a log is being made anew.
        let whole = newest.nodes.values().all(|node| node.rebuild.is_none());
        if !whole || hosts.iter().any(|host| host.lost.is_some()) {
            return;
        }
        self.trace(&format!("want {} out", hosts[host].name));
        self.errand = Errand::Emptying { host, since: self.ground.now() };
    }

    fn empty(&mut self, hosts: &[Host], newest: &ClusterState, host: usize, since: u64) {
        let (now, node) = (self.ground.now(), hosts[host].id);
        if self.rests || now > since + EMPTYING_MAX {
            self.trace(&format!("{} stays", hosts[host].name));
            self.errand = Errand::Rest { until: now + self.rng.between(2_000, 8_000) };
            return;
        }
        let mode = newest.nodes.get(&node).map(|node| node.mode);
        if mode == Some(NodeMode::Active) {
            let mode = NodeMode::Drain;
            let by = self.somebody(hosts, host);
            self.propose(by, Command::NodeSetMode { node, mode, with_storage: false });
        } else {
            let by = self.somebody(hosts, host);
            if votes_are_left(hosts, by, node) {
                self.propose(by, Command::NodeEvict { node, forget_vms: false });
            }
        }
    }

    /// Any host but that which it is about.
    fn somebody<'a>(&mut self, hosts: &'a [Host], about: usize) -> &'a Host {
        &hosts[(about + 1 + self.rng.place(hosts.len() - 1)) % hosts.len()]
    }

    fn propose(&self, by: &Host, command: Command) {
        let Some(daemon) = by.daemon() else { return };
        by.spawn(async move {
            // What is refused or lost is asked for again.
            let _ = daemon.truth().propose(proposal(command)).await;
        });
    }
}

/// Whether the others can take the node's vote away: what the API looks at before it proposes an eviction
/// (`node::http::cluster`). Who is evicted is heard no more at once.
fn votes_are_left(hosts: &[Host], by: &Host, node: NodeId) -> bool {
    let Some(voters) = by.metrics().map(|metrics| metrics.voters()) else { return false };
    let up = |host: &&Host| {
        let there = host.powered && !host.daemon_stands() && host.daemon().is_some();
        there && host.id != node && voters.contains(&host.id)
    };
    !voters.contains(&node) || hosts.iter().filter(up).count() > voters.len() / 2
}
