//! Live migration: what a VM allows for it, what was foretold, and what came true.

use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

use crate::Bytes;
use crate::Generation;
use crate::Millis;
use crate::OpId;

/// The word of a failure that says: the guest changes its memory faster than it can be sent.
pub const NO_CONVERGENCE: &str = "no_convergence";

/// What to do with a guest that changes its memory faster than it can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AtLimit {
    /// Give up; the guest goes on where it is.
    #[default]
    Cancel,
    /// Send the rest while the guest stands, however long that takes.
    Force,
    /// Quick migration instead: save it, move it, let it go on there.
    Quick,
}

/// How far a live migration of a VM may go (FEATURES.md D1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MigratePolicy {
    /// Longest pause of the guest that is accepted after ten passes, 50 ms to 60 s. A guest that
    /// can be moved with a shorter one gets a shorter one.
    pub max_pause: Millis,
    /// Whether the guest's processors may be slowed, to 30 % at the least, from the fifth pass on.
    pub throttle: bool,
    /// What to do when even that pause is not enough.
    pub at_limit: AtLimit,
    /// Most that a migration sends, in bytes per second, memory, disks and files together: at least
    /// 1 MiB; none is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bytes>,
}

/// A change of [`MigratePolicy`]; what is absent stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MigrateChange {
    /// Longest pause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_pause: Option<Millis>,
    /// Whether processors may be slowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttle: Option<bool>,
    /// What to do at the limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_limit: Option<AtLimit>,
    /// Most bytes per second; 0 is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bytes>,
}

/// What is expected of a live migration, from what was measured before its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MigrateForecast {
    /// From the first byte to a guest that runs at the target, in milliseconds.
    pub total_ms: u64,
    /// How long the guest stands, in milliseconds.
    pub pause_ms: u64,
    /// What the way between the nodes carries, in bytes per second.
    pub bandwidth: Bytes,
    /// Memory that the guest changes, in bytes per second, each page counted once.
    pub dirty_rate: Bytes,
    /// Whether the guest changes less than the way carries.
    pub converges: bool,
}

/// What a live migration took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct MigrateResult {
    /// From the first byte to a guest that runs at the target, in milliseconds.
    pub total_ms: u64,
    /// How long the guest stood, in milliseconds.
    pub pause_ms: u64,
    /// Of the pause: from the moment at which the target had everything to the decision of the cluster,
    /// as the target learnt it. In milliseconds.
    pub commit_ms: u64,
    /// Passes over the guest's memory.
    pub passes: u64,
    /// What was sent.
    pub bytes: Bytes,
    /// Memory that was not sent because it was empty: never used by the guest, or free and given back to
    /// the host. Zero where that is not known.
    #[serde(default, skip_serializing_if = "Bytes::is_zero")]
    pub empty: Bytes,
}

/// What an operation of this kind leaves behind.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct MigrateReport {
    /// What was expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted: Option<MigrateForecast>,
    /// What came true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<MigrateResult>,
    /// That it did not go over the network that it should, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
}

/// That a run came from another node by a live migration: a process of that run may go on only if
/// it was made by this very operation. (A takeover gives the same number to a run that starts from
/// the disks; a machine that had waited for a migration must never go on under that.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Arrival {
    /// The run.
    pub generation: Generation,
    /// The migration.
    pub op: OpId,
}

/// Limits of [`MigratePolicy::max_pause`], in milliseconds.
const PAUSE_MS: std::ops::RangeInclusive<u64> = 50..=60_000;

/// Least [`MigratePolicy::bandwidth`]: with less, connections would look broken.
const BANDWIDTH_MIN: Bytes = Bytes::mib(1);

impl Default for MigratePolicy {
    fn default() -> Self {
        Self {
            max_pause: Millis::new(2_000),
            throttle: true,
            at_limit: AtLimit::default(),
            bandwidth: None,
        }
    }
}

impl MigratePolicy {
    /// Whether this is what every VM has that nobody said anything about.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Checks every limit.
    ///
    /// # Errors
    /// A sentence on the first limit that does not hold.
    pub fn validate(&self) -> Result<(), String> {
        if !PAUSE_MS.contains(&self.max_pause.get()) {
            return Err("the longest pause must be 50 ms to 60 s".to_owned());
        }
        match self.bandwidth {
            Some(limit) if limit < BANDWIDTH_MIN => {
                Err("a migration may be limited to 1 MiB per second or more".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// The policy with a change.
    #[must_use]
    pub fn changed(self, change: &MigrateChange) -> Self {
        Self {
            max_pause: change.max_pause.unwrap_or(self.max_pause),
            throttle: change.throttle.unwrap_or(self.throttle),
            at_limit: change.at_limit.unwrap_or(self.at_limit),
            bandwidth: match change.bandwidth {
                Some(Bytes::ZERO) => None,
                other => other.or(self.bandwidth),
            },
        }
    }
}

impl MigrateChange {
    /// Whether nothing would change.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_the_speed_is_set_and_taken_away() {
        let change =
            |mib| MigrateChange { bandwidth: Some(Bytes::mib(mib)), ..MigrateChange::default() };
        let limited = MigratePolicy::default().changed(&change(20));
        assert_eq!(limited.bandwidth, Some(Bytes::mib(20)));
        assert!(limited.validate().is_ok());
        assert_eq!(limited.changed(&MigrateChange::default()), limited);
        assert!(limited.changed(&change(0)).is_default());
        let slow = MigratePolicy { bandwidth: Some(Bytes::new(1_000)), ..limited };
        assert!(slow.validate().is_err());
        let before = r#"{"max_pause":2000,"throttle":true,"at_limit":"cancel"}"#;
        let read: MigratePolicy = serde_json::from_str(before).unwrap();
        assert!(read.is_default());
        assert_eq!(serde_json::to_string(&read).unwrap(), before, "older nodes can read it");
    }
}
