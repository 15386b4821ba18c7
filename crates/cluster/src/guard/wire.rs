//! What is said on the guard's socket: one JSON object a line, a reply to each, in order.
//!
//! ```text
//!   daemon -> {"v":1,"ask":"grant","key":{"term":3,"seq":17},"epoch":0,"mode":"self_fence",...}\n
//!   guard  -> {"v":1,"ok":true,"status":{"stage":"open",...}}\n
//! ```
//!
//! | version | change |
//! | --- | --- |
//! | 1 | first |

use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

use crate::lease::BootTime;
use crate::lease::EndAll;
use crate::lease::Grant;
use crate::lease::GrantKey;
use crate::lease::Holding;
use crate::lease::Mode;
use crate::lease::Stage;

/// The version that is spoken.
pub const VERSION: u32 = 1;

/// The longest line, its end included: the largest request is a grant, about 200 bytes.
pub const LINE_MAX: usize = 1024;

/// Longest name of a cluster.
pub const SCOPE_MAX: usize = 64;

/// One line to the guard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The sender's version.
    pub v: u32,
    /// What is asked.
    #[serde(flatten)]
    pub ask: Ask,
}

/// What a daemon asks of its guard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Ask {
    /// How things are.
    Status,
    /// Grants from now on are of that cluster.
    Enter {
        /// Its id.
        scope: String,
    },
    /// Here is a lease.
    Grant(Grant),
    /// The node was fenced: end all machines. Asked again until it is done.
    EndAll {
        /// The node's new epoch.
        epoch: u64,
    },
}

/// One line from the guard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The guard's version.
    pub v: u32,
    /// Whether it was done.
    pub ok: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The grant is for a later epoch, and machines of an earlier one are left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_first: Option<u64>,
    /// How far the end of all machines is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<EndAll>,
    /// How things are after it.
    pub status: Status,
}

/// How things are with a guard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its process.
    pub pid: u32,
    /// The control group that it acts on.
    pub group: PathBuf,
    /// The guard's clock.
    pub now: BootTime,
    /// Where it stands.
    pub stage: Stage,
    /// No machine of an epoch before this one is left; nothing: not known.
    pub epoch: Option<u64>,
    /// The order of the newest grant.
    pub key: Option<GrantKey>,
    /// The kind of the newest grant.
    pub mode: Option<Mode>,
    /// Until when machines may be started; nothing: not now.
    pub start_until: Option<BootTime>,
    /// When the lease ends, or has ended.
    pub ends: Option<BootTime>,
    /// Whether a process is in the group of all machines.
    pub populated: bool,
    /// Whether the kernel says that the whole group stands still.
    pub frozen: bool,
    /// The longest time its watchdog could be set to, in milliseconds; 0: there is none.
    pub watchdog_ms: u64,
    /// Whether the watchdog runs.
    pub watchdog_armed: bool,
    /// What is not as it should be, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl Status {
    /// What the leader is told of it.
    pub fn holding(&self) -> Option<Holding> {
        Some(Holding { key: self.key?, mode: self.mode? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::LeaseGrant;

    #[test]
    fn the_lines_are_these() {
        let grant = Grant {
            lease: LeaseGrant {
                key: GrantKey { term: u64::MAX, seq: u64::MAX },
                epoch: u64::MAX,
                mode: Mode::SelfFence,
                lease_ms: u64::MAX,
                watchdog_ms: u64::MAX,
            },
            sent: BootTime::from_nanos(u64::MAX),
        };
        let text = serde_json::to_string(&Line { v: 1, ask: Ask::Grant(grant) }).unwrap();
        assert!(text.len() < LINE_MAX, "{text}");
        assert!(text.starts_with("{\"v\":1,\"ask\":\"grant\",\"key\":{\"term\":18446"), "{text}");
        assert_eq!(serde_json::from_str::<Line>(&text).unwrap().ask, Ask::Grant(grant));
        let text = "{\"v\":1,\"ask\":\"end_all\",\"epoch\":4,\"of the future\":true}";
        assert_eq!(serde_json::from_str::<Line>(text).unwrap().ask, Ask::EndAll { epoch: 4 });
    }
}
