//! Host facts and user keys as the guest finds them.

use std::collections::BTreeMap;

use model::Name;
use model::VmId;
use serde_json::json;

/// Where the guest finds the file. `/run` is empty after each boot: no old host's word stays.
pub const HOST_FILE: &str = "/run/muster/host.json";
/// Its directory.
pub(super) const HOST_DIR: &str = "/run/muster";
/// Where it is put in a guest whose agent can neither find nor make the directory.
pub const HOST_FILE_FALLBACK: &str = "/run/muster-host.json";

/// Version of the file's layout. 1: first.
const LAYOUT: u32 = 1;

/// What a guest may know of its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// Name of the host it runs on.
    pub host: String,
    /// Its id.
    pub vm: VmId,
    /// Its name.
    pub name: Name,
    /// Version of the platform.
    pub platform_version: String,
    /// Keys that users have set on the VM.
    pub keys: BTreeMap<String, String>,
}

impl HostFacts {
    /// The file: JSON, keys sorted, a line end at its end.
    #[must_use]
    pub fn to_json(&self) -> String {
        let keys: BTreeMap<&str, &str> =
            self.keys.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let value = json!({
            "layout": LAYOUT,
            "host": { "name": self.host },
            "keys": keys,
            "platform": { "name": "muster", "version": self.platform_version },
            "vm": { "id": self.vm.to_string(), "name": self.name.as_str() },
        });
        format!("{value:#}\n")
    }
}

/// Whether the guest has the host's facts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Exchange {
    /// Switched off, nothing to tell, or no agent yet.
    #[default]
    None,
    /// The guest has them in the named file.
    Written(&'static str),
    /// The agent does not let us write files.
    Refused,
}
