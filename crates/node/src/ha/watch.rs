//! The detector with the clock, and the beats of all volumes together.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cluster::detect::BadSettings;
use cluster::detect::Detector;
use cluster::detect::Heard;
use cluster::detect::Path;
use cluster::detect::Settings;
use cluster::detect::Verdict;
use model::ClusterState;
use model::NodeId;
use model::VolumeId;
use tokio::sync::watch;
use tokio::time::Instant;

use super::beats::fresh_for;
use crate::fencing::LeaderDesk;

/// Time before the detector's first look; zero has a meaning of its own there.
const BEFORE: Duration = Duration::from_secs(1);

/// What is heard of the other nodes.
pub(crate) struct Watch {
    settings: Settings,
    begun: Instant,
    heard: Mutex<Ears>,
    /// Who else is told of each heartbeat.
    desk: OnceLock<Arc<LeaderDesk>>,
    /// A volume says that the quorum was forced without this node.
    pub(crate) given_up: watch::Sender<bool>,
    /// Set when the daemon ends, for the threads.
    pub(super) ended: AtomicBool,
}

struct Ears {
    detector: Detector,
    volumes: HashMap<VolumeId, Read>,
    /// How often the beat of a node was seen to change, on all volumes together.
    changes: HashMap<NodeId, u64>,
    looked: Duration,
}

/// What was read on a volume last.
struct Read {
    counters: HashMap<NodeId, u64>,
    /// When the look began: what was written after it was not read.
    begun: Instant,
    at: Duration,
}

/// Ends the threads.
pub(super) struct EndOnDrop(pub(super) Arc<Watch>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Relaxed);
    }
}

impl Watch {
    pub(crate) fn new(me: NodeId, settings: Settings) -> Result<Self, BadSettings> {
        let ears = Ears {
            detector: Detector::new(me, settings)?,
            volumes: HashMap::new(),
            changes: HashMap::new(),
            looked: BEFORE,
        };
        Ok(Self {
            settings,
            begun: Instant::now(),
            heard: Mutex::new(ears),
            desk: OnceLock::new(),
            given_up: watch::Sender::new(false),
            ended: AtomicBool::new(false),
        })
    }

    pub(super) const fn settings(&self) -> &Settings {
        &self.settings
    }

    fn now(&self) -> Duration {
        BEFORE + self.begun.elapsed()
    }

    fn ears(&self) -> MutexGuard<'_, Ears> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on, that one is told of each heartbeat, too.
    pub(super) fn tell(&self, desk: Arc<LeaderDesk>) {
        // Set once, at the start.
        let _ = self.desk.set(desk);
    }

    pub(crate) fn hears(&self) -> BTreeSet<NodeId> {
        self.ears().detector.hears(self.now())
    }

    pub(crate) fn heard(&self, path: Path, heard: Heard) {
        let from = heard.from;
        let fresh = self.ears().detector.heard(self.now(), path, heard);
        if let Some(desk) = self.desk.get().filter(|_| fresh) {
            desk.note_heard(from);
        }
    }

    /// The counters that were read on a volume, in a look that began at `begun`.
    pub(crate) fn beats(&self, volume: VolumeId, read: &[(NodeId, u64)], begun: Instant) {
        let now = self.now();
        let mut ears = self.ears();
        let Ears { detector, volumes, changes, .. } = &mut *ears;
        let counters = read.iter().copied().collect();
        let old = volumes.insert(volume, Read { counters, begun, at: now });
        for (node, counter) in read {
            let before = old
                .as_ref()
                .filter(|old| old.counters.get(node).is_some_and(|before| before != counter));
            let count = changes.entry(*node).or_default();
            *count += u64::from(before.is_some());
            detector.beat(now, *node, Some(*count));
            if let (Some(before), Some(desk)) = (before, self.desk.get()) {
                desk.note_beat(*node, before.begun, self.settings.beat_every);
            }
        }
    }

    /// A volume cannot be read.
    pub(super) fn no_beats(&self, volume: VolumeId) {
        let mut ears = self.ears();
        ears.volumes.remove(&volume);
        ears.forget_stale(self.now(), fresh_for(self.settings.beat_every));
    }

    /// What is thought of each node now.
    pub(super) fn look(&self, state: &ClusterState) -> BTreeMap<NodeId, Verdict> {
        let now = self.now();
        let mut ears = self.ears();
        // Who did not look for so long was not there to hear: its host was stopped, or this daemon.
        if now.saturating_sub(ears.looked) >= self.settings.silent_after {
            ears.detector.woke(now);
        }
        ears.looked = now;
        let members: BTreeSet<NodeId> = state.nodes.keys().copied().collect();
        ears.detector.members(now, &members);
        ears.forget_stale(now, fresh_for(self.settings.beat_every));
        members.iter().map(|node| (*node, ears.detector.verdict(now, *node))).collect()
    }

    /// The nodes that could be given VMs, as this node hears them.
    pub(crate) fn fit(&self, state: &ClusterState) -> BTreeSet<NodeId> {
        super::lead::fit(state, &|node| self.verdict(node) == Verdict::Alive)
    }

    /// What is thought of one node.
    pub(crate) fn verdict(&self, node: NodeId) -> Verdict {
        self.ears().detector.verdict(self.now(), node)
    }
}

impl Ears {
    /// Without a volume that was read lately, nothing is known of beats.
    fn forget_stale(&mut self, now: Duration, fresh: Duration) {
        if self.volumes.values().any(|read| now.saturating_sub(read.at) < fresh) {
            return;
        }
        for node in self.changes.keys() {
            self.detector.beat(now, *node, None);
        }
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
