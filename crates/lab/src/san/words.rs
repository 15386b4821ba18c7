//! What is said to the SAN: one line of JSON, then one line back; then the line is closed.

use serde::Deserialize;
use serde::Serialize;

use crate::names::NodeName;

/// Longest line: a status with 64 paths is well below it.
pub(crate) const LINE_MAX: u64 = 64 * 1024;

/// What becomes of the cache in a loss of power.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "fate")]
pub enum CacheFate {
    /// Nothing of it had been written.
    Lost,
    /// All of it had.
    Kept,
    /// Some of it, in any order, and some blocks in part: drawn from a seed.
    Drawn {
        /// The same seed and cache give the same medium.
        seed: u64,
    },
}

/// An order of the lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "order", deny_unknown_fields)]
pub(crate) enum Order {
    /// Say how it is.
    Status,
    /// Give a node a device for its path to each LUN, in a new life.
    Attach { node: NodeName },
    /// End the life of a node's paths.
    Detach { node: NodeName },
    /// Cut or mend a node's paths.
    Path { node: NodeName, up: bool },
    /// Make each command take so long.
    Delay { ms: u64 },
    /// Lose power.
    PowerLoss { cache: CacheFate },
}

/// A command of a node about the LUN's reservation, by the path that it came from: "exclusive access,
/// all registrants". Keys are decimal numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reserve", deny_unknown_fields)]
pub(crate) enum Reserve {
    /// Register a key in place of the one it had; the first one reserves the LUN.
    Register { key: u64 },
    /// Take its own key back.
    Unregister,
    /// End the reservation, with all keys.
    Clear,
    /// Say all keys.
    Keys,
    /// Say the key of this path, if it has one.
    Own,
    /// Take a key from whoever has it, and end its commands.
    PreemptAndAbort { key: u64 },
}

/// An answer; of the fields those that the question was about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Answer {
    /// Why it was not done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) devices: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) keys: Option<Vec<u64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<SanStatus>,
}

/// How the SAN is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SanStatus {
    /// Its LUNs, in the order of their numbers.
    pub luns: Vec<LunStatus>,
}

/// How a LUN is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LunStatus {
    /// `lun0` and so on.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes that a loss of power would take of it.
    pub cached: u64,
    /// Flushes since it was started.
    pub flushes: u64,
    /// Milliseconds that each command takes in addition.
    pub delay_ms: u64,
    /// Whether it is reserved.
    pub reserved: bool,
    /// The path of each node.
    pub paths: Vec<PathStatus>,
}

/// A node's path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathStatus {
    /// Whose.
    pub node: NodeName,
    /// Whether it carries commands.
    pub up: bool,
    /// Its block device on this machine; none while its node has no power.
    pub device: Option<String>,
    /// How often its node lost power.
    pub life: u64,
    /// Its reservation key.
    pub key: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_strictly() {
        let order: Order =
            serde_json::from_str(r#"{"order":"path","node":"n2","up":false}"#).unwrap();
        assert_eq!(order, Order::Path { node: NodeName::of(2), up: false });
        let fate = Order::PowerLoss { cache: CacheFate::Drawn { seed: 4 } };
        let text = serde_json::to_string(&fate).unwrap();
        assert_eq!(serde_json::from_str::<Order>(&text).unwrap(), fate);
        for bad in ["", "{}", r#"{"order":"burn"}"#, r#"{"order":"path","node":"x","up":1}"#] {
            assert!(serde_json::from_str::<Order>(bad).is_err(), "{bad}");
        }
        let reserve: Reserve = serde_json::from_str(r#"{"reserve":"keys"}"#).unwrap();
        assert_eq!(reserve, Reserve::Keys);
    }
}
