//! Where devices are attached. Guests name devices by their address, and a saved state only fits a
//! machine of the same build, so the layout is kept from run to run.

use std::collections::BTreeMap;

use model::Bytes;
use model::DiskId;
use model::NicId;
use serde::Deserialize;
use serde::Serialize;

/// Device addresses of a machine, opaque to callers: store it, give it back.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Layout {
    /// Port of each disk.
    #[serde(default)]
    pub(super) disks: BTreeMap<DiskId, u8>,
    /// Port of each adapter.
    #[serde(default)]
    pub(super) nics: BTreeMap<NicId, u8>,
    /// Hot-plug ports the machine was built with; grows at a start, never while it runs.
    #[serde(default)]
    pub(super) ports: u8,
    /// Memory at boot and at most, of the run this layout is from: a saved state needs the same.
    #[serde(default)]
    pub(super) memory: Option<(Bytes, Bytes)>,
    /// Processors at the time of the layout, and at most.
    #[serde(default)]
    pub(super) cpus: Option<(u32, u32)>,
}
