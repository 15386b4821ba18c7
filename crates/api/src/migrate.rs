//! Words of the API about live migration, of machines and of their storage.

use model::MigrateChange;
use model::MigrateForecast;
use model::Name;
use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

use crate::types::OpView;

/// A live migration to begin.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmMigrateBody {
    /// Name or id of the target; the best node where none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Only say whether it could be.
    #[serde(default)]
    pub dry_run: bool,
    /// Other than the VM's own policy, this time.
    #[serde(default, skip_serializing_if = "MigrateChange::is_empty")]
    pub policy: MigrateChange,
    /// Whether its files come with it, for a VM that lies where the target does not reach.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub with_storage: bool,
    /// Name or id of the volume that they go to; none is the target's own disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
}

/// One thing that must be so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckView {
    /// What was looked at: `machine`, `clocks`, `place`, `volume`...
    pub what: String,
    /// Whether it is so.
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// What to do about it; empty if it is so.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hint: String,
}

/// Whether a VM can be migrated, and its migration if it was begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmMigrateView {
    /// The VM.
    pub vm: Name,
    /// Where it is.
    pub from: Name,
    /// Where it goes.
    pub to: Name,
    /// All that was looked at.
    pub checks: Vec<CheckView>,
    /// Whether all of it is so.
    pub fits: bool,
    /// What it is expected to take, for a dry run of one that fits and runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted: Option<MigrateForecast>,
    /// The migration; none if it was not begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub op: Option<OpView>,
}

/// A move of a VM's storage to begin.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmMoveStorageBody {
    /// Name or id of the volume to move to; none is the own disks of the VM's node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Only say whether it could be.
    #[serde(default)]
    pub dry_run: bool,
}

/// Whether a VM's storage can be moved, and the operation if it was begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmMoveStorageView {
    /// The VM.
    pub vm: Name,
    /// The volume it lies on; none is the own disks of its node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Name>,
    /// The volume it goes to; none is the own disks of its node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Name>,
    /// All that was looked at.
    pub checks: Vec<CheckView>,
    /// Whether all of it is so.
    pub fits: bool,
    /// The operation; none if it was not begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub op: Option<OpView>,
}
