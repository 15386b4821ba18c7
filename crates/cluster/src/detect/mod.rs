//! Dead, or only cut off? What is heard of other nodes, and what follows from it.
//!
//! ```text
//!   heartbeats, each network  --+
//!   beats on shared volumes   --+--> Detector --> Verdict for each node
//!   what others hear          --+      (pure)
//! ```
//!
//! Three channels decide (DESIGN.md section 5): every cluster network, a beat on each shared volume,
//! and the power state, which the fencing asks for by itself. The verdict is an opinion, never a
//! proof: who acts on it fences first.
//!
//! | verdict | heard on a network | beats on a volume | what follows |
//! | --- | --- | --- | --- |
//! | alive | yes, by us or by a node that we hear | | nothing |
//! | silent | not lately | not known yet | wait |
//! | isolated | no | yes | its VMs stay for the resiliency period |
//! | dead | no | no, or there is no volume | fence at once |
//!
//! A network that is lost alone changes no verdict; it is shown by [`Detector::paths`].
//!
//! No clock in here: each call says what time it is, as a span since any fixed point of this host's
//! boot-time clock.

#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use model::NodeId;

/// After so much silence an older incarnation is believed. Longer than anything that is decided by
/// silence, so that copies of old heartbeats cannot keep a dead node alive.
const OLDER_AFTER: Duration = Duration::from_secs(30);

/// When silence means something. Defaults: FEATURES.md D2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How often a node sends heartbeats on each network, 50 ms to 5 s.
    pub heartbeat_every: Duration,
    /// Silence on all networks after which a node is looked at, at least three heartbeats.
    pub silent_after: Duration,
    /// How often a node beats on each shared volume.
    pub beat_every: Duration,
    /// Silence on the volumes after which a node that is silent on the networks is dead, at least
    /// two beats.
    pub beatless_after: Duration,
    /// How long an isolated node keeps its VMs.
    pub resiliency: Duration,
}

/// Settings that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadSettings {
    /// The period of heartbeats is out of range.
    #[error("heartbeats come every 50 ms to 5 s")]
    Heartbeat,
    /// One lost heartbeat must not be a lost node.
    #[error("a node is silent after three heartbeats at least")]
    Silence,
    /// One late beat must not be a lost node.
    #[error("a node beats on no volume after two beats at least")]
    Beats,
}

/// A network between nodes, by its place in this node's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path(pub u8);

/// What is thought of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is heard.
    Alive,
    /// Nobody hears it, and what it does on the volumes is not known yet.
    Silent {
        /// Since when.
        since: Duration,
    },
    /// Nobody hears it, but it beats on a volume: it is cut off.
    Isolated {
        /// Since when.
        since: Duration,
        /// The time for which it keeps its VMs is over.
        over: bool,
    },
    /// Nothing is heard of it at all.
    Dead {
        /// Since when.
        since: Duration,
    },
}

/// What a heartbeat carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// Who sent it.
    pub from: NodeId,
    /// Changes with each start of its daemon.
    pub incarnation: u64,
    /// Grows within one incarnation; a heartbeat with an older number is a copy and is dropped.
    pub number: u64,
    /// Whom it hears itself, by its own networks.
    pub hears: BTreeSet<NodeId>,
}

#[derive(Debug, Default)]
struct Peer {
    /// When it was heard last, for each network.
    paths: BTreeMap<Path, Duration>,
    incarnation: u64,
    number: u64,
    /// Whom it hears, by its last heartbeat.
    hears: BTreeSet<NodeId>,
    /// The last beat on any volume, and when it was seen to change.
    beat: Option<(u64, Duration)>,
    /// Since when it is watched: before, its silence says nothing.
    since: Duration,
    /// Volumes on which its beats can be read.
    readable: bool,
}

/// What one node hears of the others.
#[derive(Debug)]
pub struct Detector {
    settings: Settings,
    me: NodeId,
    peers: BTreeMap<NodeId, Peer>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            heartbeat_every: Duration::from_millis(200),
            silent_after: Duration::from_secs(1),
            beat_every: Duration::from_millis(500),
            beatless_after: Duration::from_millis(1_500),
            resiliency: Duration::from_secs(240),
        }
    }
}

impl Settings {
    /// Checks what must hold between them.
    ///
    /// # Errors
    /// [`BadSettings`].
    pub fn validate(&self) -> Result<(), BadSettings> {
        let range = Duration::from_millis(50)..=Duration::from_secs(5);
        if !range.contains(&self.heartbeat_every) {
            return Err(BadSettings::Heartbeat);
        }
        if self.silent_after < self.heartbeat_every * 3 {
            return Err(BadSettings::Silence);
        }
        if self.beatless_after < self.beat_every * 2 {
            return Err(BadSettings::Beats);
        }
        Ok(())
    }
}

impl Detector {
    /// A detector that has heard nothing yet.
    ///
    /// # Errors
    /// [`BadSettings`].
    pub fn new(me: NodeId, settings: Settings) -> Result<Self, BadSettings> {
        settings.validate()?;
        Ok(Self { settings, me, peers: BTreeMap::new() })
    }

    /// The settings.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Who is in the cluster now. A node that is new begins its time here.
    pub fn members(&mut self, now: Duration, members: &BTreeSet<NodeId>) {
        self.peers.retain(|node, _| members.contains(node));
        for node in members.iter().filter(|node| **node != self.me) {
            self.peers.entry(*node).or_insert_with(|| Peer { since: now, ..Peer::default() });
        }
    }

    /// This node could not hear for a while: silence until now says nothing.
    pub fn woke(&mut self, now: Duration) {
        for peer in self.peers.values_mut() {
            peer.since = now;
        }
    }

    /// A heartbeat came. False if it is from a stranger, or a copy of an older one.
    pub fn heard(&mut self, now: Duration, path: Path, heard: Heard) -> bool {
        let Some(peer) = self.peers.get_mut(&heard.from) else { return false };
        // The same heartbeat is sent on every network: the same number again is no copy if it
        // comes another way, so only older ones are dropped.
        let copy = match heard.incarnation.cmp(&peer.incarnation) {
            Ordering::Greater => false,
            Ordering::Equal => heard.number < peer.number,
            // An older incarnation is a copy, too, unless the clock that numbers them was set back:
            // then nothing else is heard.
            Ordering::Less => peer.paths.values().any(|at| now.saturating_sub(*at) < OLDER_AFTER),
        };
        if copy {
            return false;
        }
        peer.incarnation = heard.incarnation;
        peer.number = heard.number;
        peer.hears = heard.hears;
        peer.paths.insert(path, now);
        true
    }

    /// The beat of a node on a volume reads `counter`; nothing if the volume cannot be read here.
    pub fn beat(&mut self, now: Duration, node: NodeId, counter: Option<u64>) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Some(counter) = counter else {
            peer.readable = false;
            return;
        };
        peer.readable = true;
        match peer.beat {
            Some((last, _)) if last == counter => {}
            // What stands there when it is read for the first time may be old: only a change is a
            // sign of life.
            None => peer.beat = Some((counter, Duration::ZERO)),
            Some(_) => peer.beat = Some((counter, now)),
        }
    }

    /// Whom this node hears by its own networks, for its heartbeats.
    pub fn hears(&self, now: Duration) -> BTreeSet<NodeId> {
        self.peers
            .iter()
            .filter(|(_, peer)| peer.heard_by_us(now, &self.settings))
            .map(|(node, _)| *node)
            .collect()
    }

    /// What is thought of a node now. Strangers are dead since ever; this node itself is alive.
    pub fn verdict(&self, now: Duration, node: NodeId) -> Verdict {
        if node == self.me {
            return Verdict::Alive;
        }
        let Some(peer) = self.peers.get(&node) else {
            return Verdict::Dead { since: Duration::ZERO };
        };
        if peer.heard_by_us(now, &self.settings) || self.heard_by_others(now, node) {
            return Verdict::Alive;
        }
        let last = peer.paths.values().copied().max().unwrap_or_default().max(peer.since);
        if now.saturating_sub(last) < self.settings.silent_after {
            return Verdict::Alive;
        }
        let since = last;
        match peer.beat {
            Some((_, changed))
                if changed > Duration::ZERO
                    && now.saturating_sub(changed) < self.settings.beatless_after =>
            {
                // A beat that changed only before the silence began proves nothing about now.
                if changed > last {
                    let over = now.saturating_sub(since) >= self.settings.resiliency;
                    Verdict::Isolated { since, over }
                } else {
                    Verdict::Silent { since }
                }
            }
            // Beats were not looked at yet, or once only, which says nothing: give them the time that
            // one takes.
            None | Some((_, Duration::ZERO))
                if peer.readable && now.saturating_sub(last) < self.settings.beatless_after =>
            {
                Verdict::Silent { since }
            }
            _ => Verdict::Dead { since },
        }
    }

    /// When each network to a node last carried a heartbeat of it.
    pub fn paths(&self, node: NodeId) -> BTreeMap<Path, Duration> {
        self.peers.get(&node).map(|peer| peer.paths.clone()).unwrap_or_default()
    }

    /// Whether a node that we hear hears it.
    fn heard_by_others(&self, now: Duration, node: NodeId) -> bool {
        self.peers
            .iter()
            .filter(|(other, _)| **other != node)
            .any(|(_, peer)| peer.heard_by_us(now, &self.settings) && peer.hears.contains(&node))
    }
}

impl Peer {
    fn heard_by_us(&self, now: Duration, settings: &Settings) -> bool {
        self.paths.values().any(|heard| now.saturating_sub(*heard) < settings.silent_after)
    }
}
