//! What was changed in a machine's settings.

use model::FieldChange;
use model::OpId;
use model::Revision;
use model::UnixMillis;
use model::VmChange;
use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

/// One change of a machine's settings. The newest 50 are kept of each machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SettingsChangeView {
    /// The revision of the configuration that it made.
    pub revision: Revision,
    /// When.
    pub at: UnixMillis,
    /// Who, as it stands in events.
    pub by: String,
    /// The operation, if it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub op: Option<OpId>,
    /// What changed. Values that may be secrets are not kept: keys for the guest, and its first-boot
    /// configuration.
    pub fields: Vec<FieldChange>,
    /// The change that sets these settings to what they were before, to be sent as any other;
    /// none where only disks, adapters or withheld values changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back: Option<VmChange>,
}
