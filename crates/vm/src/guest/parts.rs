//! Processors and memory as the guest's kernel has them.
//!
//! What is plugged while a guest runs is not in use yet: its kernel has to bring it online. Most
//! distributions do so by a rule of their own, some do not. Then it is done through the agent.

use serde_json::Value;
use serde_json::json;

use super::client::AgentError;

/// Parts of a kind that are looked at: 16 TiB in blocks of 128 MiB.
const PARTS_MAX: usize = 128 << 10;

/// Parts that are switched by one command: each may take the guest tens of milliseconds.
pub(super) const SWITCHED_AT_ONCE: usize = 32;

/// What comes in parts that the guest's kernel switches on and off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartKind {
    /// Processors.
    Processors,
    /// Blocks of memory.
    Memory,
}

/// How much of a kind the guest's kernel has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parts {
    /// Parts that are in use.
    pub online: u64,
    /// Parts that are there and not in use.
    pub offline: u64,
    /// Size of a part: 1 for processors, bytes for memory.
    pub unit: u64,
}

impl Parts {
    /// What is in use: processors, or bytes in whole blocks.
    #[must_use]
    pub fn in_use(&self) -> u64 {
        self.online.saturating_mul(self.unit)
    }

    /// What is there and not in use: processors, or bytes in whole blocks.
    #[must_use]
    pub fn idle(&self) -> u64 {
        self.offline.saturating_mul(self.unit)
    }

    pub(super) fn of(parts: &[Part], unit: u64) -> Self {
        let online = parts.iter().filter(|part| part.online).count() as u64;
        Self { online, offline: parts.len() as u64 - online, unit }
    }
}

/// One processor or block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    id: u64,
    online: bool,
    can_offline: bool,
}

impl PartKind {
    pub(super) fn get(self) -> &'static str {
        match self {
            Self::Processors => "guest-get-vcpus",
            Self::Memory => "guest-get-memory-blocks",
        }
    }

    pub(super) fn set(self) -> &'static str {
        match self {
            Self::Processors => "guest-set-vcpus",
            Self::Memory => "guest-set-memory-blocks",
        }
    }

    fn id(self) -> &'static str {
        match self {
            Self::Processors => "logical-id",
            Self::Memory => "phys-index",
        }
    }

    /// The parts in a reply, the lowest first.
    pub(super) fn parse(self, reply: &Value) -> Result<Vec<Part>, AgentError> {
        let wrong = |detail| AgentError::WrongShape { command: self.get(), detail };
        let items = reply.as_array().ok_or_else(|| wrong("not a list"))?;
        let part = |item: &Value| {
            let online = item.get("online").and_then(Value::as_bool)?;
            let can_offline = item.get("can-offline").and_then(Value::as_bool).unwrap_or(false);
            Some(Part { id: item.get(self.id())?.as_u64()?, online, can_offline })
        };
        let parts: Option<Vec<Part>> = items.iter().take(PARTS_MAX).map(part).collect();
        let mut parts = parts.ok_or_else(|| wrong("a part without number or state"))?;
        parts.sort_by_key(|part| part.id);
        parts.dedup_by_key(|part| part.id);
        Ok(parts)
    }

    /// The arguments that switch parts.
    pub(super) fn arguments(self, ids: &[u64], online: bool) -> Value {
        let item = |id: &u64| json!({ self.id(): id, "online": online });
        let items: Vec<Value> = ids.iter().map(item).collect();
        match self {
            Self::Processors => json!({ "vcpus": items }),
            Self::Memory => json!({ "mem-blks": items }),
        }
    }
}

/// What is there and not in use.
pub(super) fn offline(parts: &[Part]) -> Vec<u64> {
    parts.iter().filter(|part| !part.online).map(|part| part.id).collect()
}

/// What to switch off so that `keep` stay on: the highest first, as the machine takes them away.
pub(super) fn surplus(parts: &[Part], keep: u64) -> Vec<u64> {
    let online = parts.iter().filter(|part| part.online).count() as u64;
    let too_many = usize::try_from(online.saturating_sub(keep)).unwrap_or(usize::MAX);
    let able = parts.iter().rev().filter(|part| part.online && part.can_offline);
    able.take(too_many).map(|part| part.id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processors() -> Vec<Part> {
        let reply = json!([
            { "logical-id": 3, "online": true, "can-offline": true },
            { "logical-id": 0, "online": true, "can-offline": false },
            { "logical-id": 1, "online": false, "can-offline": true },
            { "logical-id": 2, "online": true, "can-offline": true },
            { "logical-id": 2, "online": false },
        ]);
        PartKind::Processors.parse(&reply).unwrap()
    }

    #[test]
    fn a_reply_is_counted_and_what_is_off_is_found() {
        let parts = processors();
        assert_eq!(Parts::of(&parts, 1), Parts { online: 3, offline: 1, unit: 1 });
        assert_eq!(offline(&parts), [1]);
        let blocks = Parts { online: 3, offline: 2, unit: 128 << 20 };
        assert_eq!((blocks.in_use() >> 20, blocks.idle() >> 20), (384, 256));
        assert_eq!(Parts { online: u64::MAX, offline: 0, unit: 2 }.in_use(), u64::MAX);
    }

    #[test]
    fn the_highest_go_first_and_the_one_that_cannot_stays() {
        let parts = processors();
        assert_eq!(surplus(&parts, 3), [0; 0]);
        assert_eq!(surplus(&parts, 2), [3]);
        assert_eq!(surplus(&parts, 0), [3, 2]);
    }

    #[test]
    fn nonsense_is_refused() {
        for reply in [json!({}), json!([1]), json!([{ "logical-id": -1, "online": true }])] {
            assert!(PartKind::Processors.parse(&reply).is_err(), "{reply}");
        }
        assert_eq!(PartKind::Memory.parse(&json!([])).unwrap(), []);
    }

    #[test]
    fn commands_are_those_of_the_protocol() {
        let wanted = json!({ "mem-blks": [{ "phys-index": 7, "online": true }] });
        assert_eq!(PartKind::Memory.arguments(&[7], true), wanted);
        let wanted = json!({ "vcpus": [{ "logical-id": 1, "online": false }] });
        assert_eq!(PartKind::Processors.arguments(&[1], false), wanted);
    }
}
