//! The leader's side of the lease: who may have one, and when one is over.
//!
//! A desk lives as long as one term of one leader. What must survive it is in the replicated state:
//! the epoch of each node, whether it is fenced, and the terms ([`LeaseTerms`]) that its leases
//! never exceed. The desk says which record must be written first; it never assumes it.
//!
//! ```text
//!   terms of a node in the state
//!
//!     none  -- a guard holds a self-fencing grant of this term, and no other kind was given
//!      ^       since --> self-fencing, at most L and W
//!      |                         |
//!      +--- written *before* ----+--- written before a longer lease is given
//!           any other kind           written shorter only after the longer ones have ended
//! ```

use std::collections::BTreeMap;

use model::NodeId;

use super::BootTime;
use super::GrantKey;
use super::LeaseGrant;
use super::LeaseRequest;
use super::LeaseSettings;
use super::LeaseTerms;
use super::Mode;
use super::settings;

/// What the replicated state says of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Its epoch.
    pub epoch: u64,
    /// Whether it is fenced and has not returned.
    pub fenced: bool,
    /// What its leases never exceed; nothing: nothing can be concluded from time.
    pub terms: Option<LeaseTerms>,
    /// Whether there is no other node in the cluster.
    pub alone: bool,
    /// Whether something outside of it can prove that it is stopped.
    pub provable: bool,
}

/// What the leader does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Answer with this.
    Grant(LeaseGrant),
    /// Write these terms into the state, then decide again.
    WriteTerms(Option<LeaseTerms>),
    /// The node has ended its machines: write that it has returned with that epoch, then decide
    /// again.
    WriteReturn {
        /// Its new epoch.
        epoch: u64,
    },
    /// Answer that the node was fenced.
    Fenced {
        /// Its new epoch.
        epoch: u64,
    },
    /// Answer that there is none now.
    Refuse(NoLease),
}

/// Why there is no lease now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoLease {
    /// A takeover from this node is under way.
    #[error("this node is being fenced; it is told its new epoch when that is done")]
    BeingFenced,
    /// The guard is further than the state.
    #[error(
        "the node's guard is at epoch {guard} and the cluster at {cluster}: it belonged to another \
         cluster; restart muster guard with no machine running"
    )]
    AnotherCluster {
        /// The guard's epoch.
        guard: u64,
        /// The state's.
        cluster: u64,
    },
    /// Its watchdog is longer than takeover can reckon with.
    #[error("a watchdog of {0} ms is out of range; set watchdog_ms to at most 60000 on that node")]
    Watchdog(u64),
}

/// When a lease is called over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takeover {
    /// It is over: waited this long, in milliseconds, since the last possible grant.
    Over {
        /// How long.
        waited_ms: u64,
    },
    /// Not before this moment of the leader's clock, if nothing is granted meanwhile.
    At(BootTime),
    /// Never by time alone.
    NeedsProof,
}

/// What makes sure that a node's VMs do not run there any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Certainty {
    /// It is the only node.
    Alone,
    /// A fence device or reservation.
    Proof,
    /// Its guard, with or without a watchdog.
    SelfFencing {
        /// Whether a watchdog stands behind the guard.
        watchdog: bool,
        /// How long takeover waits, in milliseconds.
        takeover_ms: u64,
    },
    /// Nothing yet: the guard has not confirmed a self-fencing lease. An administrator's word only.
    None,
}

/// The leader's side, for one term.
#[derive(Debug)]
pub struct Desk {
    settings: LeaseSettings,
    term: u64,
    elected: BootTime,
    seq: u64,
    nodes: BTreeMap<NodeId, Entry>,
}

#[derive(Debug, Default)]
struct Entry {
    /// When the last request arrived that was granted.
    last: Option<BootTime>,
    /// The last grant of a kind that does not end by itself.
    last_other: Option<u64>,
    /// Since when nothing was given that goes beyond these terms.
    narrow: Option<(BootTime, LeaseTerms)>,
    /// The most that any self-fencing grant of this term allowed.
    widest: Option<LeaseTerms>,
    /// How many want that nothing is granted: it is being fenced.
    closed: u32,
}

impl Desk {
    /// A desk for the leader of `term`. `elected`: any moment of its clock from after it became
    /// leader.
    pub fn new(settings: LeaseSettings, term: u64, elected: BootTime) -> Self {
        Self { settings, term, elected, seq: 0, nodes: BTreeMap::new() }
    }

    /// The term.
    pub const fn term(&self) -> u64 {
        self.term
    }

    /// Decides on a request that arrived at `now`. To be called *after* a quorum has confirmed the
    /// leader since then, with what the state says after that.
    pub fn decide(&mut self, now: BootTime, known: Known, request: &LeaseRequest) -> Decision {
        let (elected, term, longest) = (self.elected, self.term, self.settings);
        let entry = self.nodes.entry(request.node).or_default();
        if entry.closed > 0 {
            return Decision::Refuse(NoLease::BeingFenced);
        }
        if let Some(guard) = request.epoch
            && guard > known.epoch
        {
            return Decision::Refuse(NoLease::AnotherCluster { guard, cluster: known.epoch });
        }
        let ended = request.epoch == Some(known.epoch);
        match (known.fenced, ended) {
            (true, true) => return Decision::WriteReturn { epoch: known.epoch },
            (true, false) => return Decision::Fenced { epoch: known.epoch },
            (false, false) if request.epoch.is_some() => {
                return Decision::Fenced { epoch: known.epoch };
            }
            (false, _) => {}
        }
        let watchdog = std::time::Duration::from_millis(request.watchdog_ms);
        if !settings::possible_watchdog(watchdog) {
            return Decision::Refuse(NoLease::Watchdog(request.watchdog_ms));
        }
        let mode = match (known.alone, known.provable) {
            (true, _) => Mode::Unlimited,
            (false, true) => Mode::Proof,
            (false, false) => Mode::SelfFence,
        };
        let terms = longest.terms(watchdog);
        if mode == Mode::SelfFence {
            let confirmed = request.holding.is_some_and(|holding| {
                holding.mode == Mode::SelfFence
                    && holding.key.term == term
                    && entry.last_other.is_none_or(|other| holding.key.seq > other)
            });
            match known.terms {
                None if confirmed => return Decision::WriteTerms(Some(entry.widest(terms))),
                None => {}
                Some(written) if !written.covers(terms) => {
                    return Decision::WriteTerms(Some(written.max(terms)));
                }
                Some(written) if written != terms => {
                    // Nothing wider was given since the later of these two; once all that was
                    // given before has ended, the record may follow.
                    if let Some((since, narrow)) = entry.narrow
                        && narrow == terms
                        && now >= since.max(elected).plus(longest.takeover_after(written))
                    {
                        return Decision::WriteTerms(Some(terms));
                    }
                }
                Some(_) => {}
            }
        } else if known.terms.is_some() {
            return Decision::WriteTerms(None);
        }
        self.seq += 1;
        entry.granted(now, self.seq, mode, terms);
        Decision::Grant(LeaseGrant {
            key: GrantKey { term, seq: self.seq },
            epoch: known.epoch,
            mode,
            lease_ms: terms.lease_ms,
            watchdog_ms: terms.watchdog_ms,
        })
    }

    /// When the node's lease is called over.
    pub fn takeover(&self, now: BootTime, node: NodeId, known: Known) -> Takeover {
        let Some(terms) = known.terms else { return Takeover::NeedsProof };
        let last = self.nodes.get(&node).and_then(|entry| entry.last);
        let from = last.map_or(self.elected, |last| last.max(self.elected));
        let at = from.plus(self.settings.takeover_after(terms));
        if now < at {
            return Takeover::At(at);
        }
        let waited_ms = u64::try_from(now.since(from).as_millis()).unwrap_or(u64::MAX);
        Takeover::Over { waited_ms }
    }

    /// Grants nothing to that node from now on: it is being fenced. Must come before the proof is
    /// looked for, and stay until the state has taken or refused it. Counted.
    pub fn close(&mut self, node: NodeId) {
        self.nodes.entry(node).or_default().closed += 1;
    }

    /// The state has taken the proof, or the fencing has failed: grants again, once each who has
    /// closed says so.
    pub fn open(&mut self, node: NodeId) {
        if let Some(entry) = self.nodes.get_mut(&node) {
            entry.closed = entry.closed.saturating_sub(1);
        }
    }

    /// How long ago the node's last granted request arrived here.
    pub fn last_grant(&self, node: NodeId) -> Option<BootTime> {
        self.nodes.get(&node)?.last
    }
}

impl Entry {
    fn granted(&mut self, now: BootTime, seq: u64, mode: Mode, terms: LeaseTerms) {
        // Requests may be decided in another order than they arrived.
        self.last = self.last.max(Some(now));
        if mode != Mode::SelfFence {
            self.last_other = Some(seq);
            self.narrow = None;
            return;
        }
        self.widest = Some(self.widest(terms));
        if self.narrow.is_none_or(|(_, narrow)| narrow != terms) {
            self.narrow = Some((now, terms));
        }
    }

    /// All that was given and what is to be given: any of it may be held.
    fn widest(&self, terms: LeaseTerms) -> LeaseTerms {
        self.widest.map_or(terms, |widest| widest.max(terms))
    }
}

impl Known {
    /// What makes sure that the node's VMs do not run there any more, in a word for a person.
    pub fn certainty(&self, settings: &LeaseSettings) -> Certainty {
        match self.terms {
            _ if self.alone => Certainty::Alone,
            _ if self.provable => Certainty::Proof,
            Some(terms) => Certainty::SelfFencing {
                watchdog: terms.watchdog_ms > 0,
                takeover_ms: u64::try_from(settings.takeover_after(terms).as_millis())
                    .unwrap_or(u64::MAX),
            },
            None => Certainty::None,
        }
    }
}
