//! The node's side of the lease: what a guard holds, and what follows from it at a moment.
//!
//! ```text
//!              grant                 2/3 of the lease            end of the lease
//!   Blocked ----------> Open ---------------------> Frozen ---------------------> Ended
//!     frozen, alive       run  <-------------------   alive                         killed
//!        ^                 ^        grant                                             |
//!        |                 +---------------------------------------- grant, and no process left
//!        |  no process left
//!     Clearing <--------- `end_all(epoch)`: the node was fenced; from any stage
//!       killed
//! ```
//!
//! Level-triggered: [`NodeLease::wanted`] says what shall be now, whatever was before. A guard that
//! was killed, paused or restarted therefore goes on correctly with nothing but the stored [`Held`].
//!
//! *Blocked* is where a guard begins that knows nothing: frozen, since a machine may be there whose
//! lease is over; not killed, since there may be none who took it over. Only a grant opens.

use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;

use super::BootTime;
use super::Grant;
use super::GrantKey;
use super::Mode;
use super::settings;

/// What a guard holds. Stored by it; everything else follows from the clock.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The newest grant.
    pub grant: Option<Grant>,
    /// No machine of an epoch before this one is left.
    pub epoch: Option<u64>,
    /// All machines are being ended for this epoch.
    pub clearing: Option<u64>,
    /// A self-fencing lease has come to its end, and its machines are not known to be gone.
    pub ending: bool,
    /// Which cluster the order of grants belongs to.
    pub scope: Option<String>,
}

/// Where a guard stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// No grant since the guard began: nothing runs.
    Blocked,
    /// Machines run.
    Open,
    /// Two thirds of the lease are over: machines stand still.
    Frozen,
    /// The lease is over: machines are killed.
    Ended,
    /// The node was fenced: its machines are killed before it may go on.
    Clearing,
}

/// What shall be at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The name of it.
    pub stage: Stage,
    /// Whether the group of all machines is frozen.
    pub frozen: bool,
    /// Whether everything in the group is killed.
    pub kill: bool,
    /// Whether the watchdog runs, and with which time.
    pub watchdog: Option<Duration>,
    /// Whether the watchdog is told that all is well.
    pub pet: bool,
    /// When this changes by itself.
    pub until: Option<BootTime>,
}

/// Why a grant is not taken. What was held before stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// Its request was sent after now: another host's clock or another boot's.
    #[error("its request was sent in the future")]
    Future,
    /// Its time is over already.
    #[error("it has ended already")]
    Over,
    /// A newer one, or this one, is held.
    #[error("a newer grant is held")]
    Older,
    /// It is for an epoch in which this node has been fenced since.
    #[error("it is for epoch {its}, and this node is at {ours}")]
    OldEpoch {
        /// The grant's.
        its: u64,
        /// The guard's.
        ours: u64,
    },
    /// The node was fenced: machines of the time before must end first.
    #[error("all machines must be ended before epoch {epoch} begins")]
    EndMachinesFirst {
        /// The grant's epoch.
        epoch: u64,
    },
    /// No leader gives such a lease.
    #[error("a lease of {0} ms, or its watchdog, is out of range")]
    Impossible(u64),
}

/// What has become of the wish to end all machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndAll {
    /// None is left, and the epoch is that one.
    Done,
    /// They are being killed.
    UnderWay,
    /// The guard is at a later epoch.
    Older,
}

/// The node's side of the lease.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeLease {
    held: Held,
}

impl NodeLease {
    /// Goes on with what was stored.
    pub fn new(held: Held) -> Self {
        Self { held }
    }

    /// What is held.
    pub fn held(&self) -> &Held {
        &self.held
    }

    /// Takes a grant. `populated`: whether a process is in the group of all machines.
    ///
    /// # Errors
    /// [`NotTaken`]; nothing has changed.
    pub fn take(&mut self, now: BootTime, grant: Grant, populated: bool) -> Result<(), NotTaken> {
        let lease = &grant.lease;
        let watchdog = Duration::from_millis(lease.watchdog_ms);
        if !settings::possible(lease.lease()) || !settings::possible_watchdog(watchdog) {
            return Err(NotTaken::Impossible(lease.lease_ms));
        }
        if grant.sent > now {
            return Err(NotTaken::Future);
        }
        // One without an end must be fresh, too: it may have been on its way since another time.
        if now >= grant.ends_at() {
            return Err(NotTaken::Over);
        }
        if self.held.grant.is_some_and(|held| held.lease.key >= lease.key) {
            return Err(NotTaken::Older);
        }
        let epoch = lease.epoch;
        if let Some(ours) = self.held.epoch.max(self.held.clearing)
            && epoch < ours
        {
            return Err(NotTaken::OldEpoch { its: epoch, ours });
        }
        // With an unknown epoch only a cluster of one may go on: nobody else could have fenced it.
        let same = match self.held.epoch {
            Some(ours) => ours == epoch && self.held.clearing.is_none(),
            None => lease.mode == Mode::Unlimited && self.held.clearing.is_none(),
        };
        if !same && populated {
            return Err(NotTaken::EndMachinesFirst { epoch });
        }
        self.held.grant = Some(grant);
        self.held.epoch = Some(epoch);
        self.held.clearing = None;
        self.held.ending &= populated;
        Ok(())
    }

    /// Ends all machines, since the node was fenced and `epoch` is its new one. Repeated until it is
    /// done.
    pub fn end_all(&mut self, epoch: u64, populated: bool) -> EndAll {
        if self.held.epoch.max(self.held.clearing) > Some(epoch) {
            return EndAll::Older;
        }
        if self.held.epoch == Some(epoch) && self.held.clearing.is_none() {
            return EndAll::Done;
        }
        self.held.clearing = Some(epoch);
        self.seen(populated);
        if self.held.clearing.is_none() { EndAll::Done } else { EndAll::UnderWay }
    }

    /// The grants from now on are of that cluster. Another cluster counts its terms and epochs anew,
    /// so what was held is forgotten; with machines only a cluster of one may do that (it gets its
    /// name), and they go on. Answers whether it was done.
    pub fn enter(&mut self, scope: &str, populated: bool) -> bool {
        if self.held.scope.as_deref() == Some(scope) {
            return true;
        }
        let scope = Some(scope.to_owned());
        if !populated {
            self.held = Held { scope, ..Held::default() };
            return true;
        }
        match &mut self.held.grant {
            None if self.held.epoch.is_none() && self.held.clearing.is_none() => {}
            Some(grant) if grant.lease.mode == Mode::Unlimited && !self.held.ending => {
                grant.lease.key = GrantKey::default();
            }
            _ => return false,
        }
        self.held.scope = scope;
        true
    }

    /// What shall be now. Also notes what the clock alone has brought about.
    pub fn wanted(&mut self, now: BootTime, populated: bool) -> Wanted {
        if let Some(grant) = self.held.grant
            && grant.lease.mode == Mode::SelfFence
            && now >= grant.ends_at()
        {
            self.held.ending = true;
        }
        self.seen(populated);
        let armed = self.watchdog();
        let stands = |stage, kill, pet, until| Wanted {
            stage,
            frozen: true,
            kill,
            watchdog: armed,
            pet,
            until,
        };
        if self.held.clearing.is_some() {
            return stands(Stage::Clearing, populated, !populated, None);
        }
        let Some(grant) = self.held.grant else {
            return stands(Stage::Blocked, false, true, None);
        };
        match grant.lease.mode {
            Mode::SelfFence if now >= grant.ends_at() => {
                stands(Stage::Ended, populated, !populated, None)
            }
            // The lease that ended before this one still has machines that do not die.
            _ if self.held.ending => stands(Stage::Ended, populated, !populated, None),
            Mode::SelfFence if now >= grant.freeze_at() => {
                stands(Stage::Frozen, false, true, Some(grant.ends_at()))
            }
            Mode::SelfFence => self.open(Some(grant.freeze_at())),
            Mode::Unlimited | Mode::Proof => self.open(None),
        }
    }

    fn open(&self, until: Option<BootTime>) -> Wanted {
        let watchdog = self.watchdog();
        Wanted { stage: Stage::Open, frozen: false, kill: false, watchdog, pet: true, until }
    }

    /// A watchdog runs only under a lease that ends by itself: a cluster of one is not reset because
    /// its guard hangs.
    fn watchdog(&self) -> Option<Duration> {
        let lease = self.held.grant?.lease;
        let time = Duration::from_millis(lease.watchdog_ms);
        (lease.mode == Mode::SelfFence && !time.is_zero()).then_some(time)
    }

    /// With no process left, what had to be killed is dead.
    fn seen(&mut self, populated: bool) {
        if populated {
            return;
        }
        if let Some(epoch) = self.held.clearing.take() {
            // What was granted was granted for an earlier epoch.
            self.held.epoch = Some(epoch);
            self.held.grant = None;
        }
        self.held.ending = false;
    }
}
