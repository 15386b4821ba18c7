//! What a guest tells of itself, taken out of the agent's replies with limits on everything.

use serde_json::Value;

use super::client::AgentError;
use super::parts::PartKind;
use super::parts::Parts;

/// Adapters, addresses, file systems and users kept; more are of no use to anybody who looks.
const ITEMS_MAX: usize = 64;
/// Characters kept of any text.
const TEXT_CHARS_MAX: usize = 256;
/// Commands an agent may list; today's has about 50.
const COMMANDS_MAX: usize = 512;

/// What is known of a guest. All of it is the guest's word.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GuestFacts {
    /// Version of its agent.
    pub agent: Option<String>,
    /// Its operating system.
    pub os: Option<OsFacts>,
    /// Its host name.
    pub hostname: Option<String>,
    /// Its time zone, such as `CET (+01:00)`.
    pub timezone: Option<String>,
    /// Users that are signed in.
    pub users: Vec<String>,
    /// Its network adapters.
    pub interfaces: Vec<InterfaceFacts>,
    /// Its mounted file systems.
    pub filesystems: Vec<FilesystemFacts>,
    /// Its processors.
    pub processors: Option<Parts>,
    /// Its memory, in blocks.
    pub memory: Option<Parts>,
}

impl GuestFacts {
    pub(super) fn put_parts(&mut self, kind: PartKind, parts: Parts) {
        match kind {
            PartKind::Processors => self.processors = Some(parts),
            PartKind::Memory => self.memory = Some(parts),
        }
    }
}

/// A guest's operating system.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OsFacts {
    /// Short id such as `debian`.
    pub id: Option<String>,
    /// Version id such as `12`.
    pub version: Option<String>,
    /// Name for people, such as `Debian GNU/Linux 12 (bookworm)`.
    pub pretty: Option<String>,
    /// Kernel release.
    pub kernel: Option<String>,
    /// Machine, such as `x86_64`.
    pub machine: Option<String>,
}

/// A network adapter as the guest sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InterfaceFacts {
    /// Its name in the guest.
    pub name: String,
    /// Its Ethernet address in lower case, if it has one.
    pub mac: Option<String>,
    /// Its addresses with prefix, such as `10.77.0.5/24`.
    pub addresses: Vec<String>,
}

/// A file system as the guest sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FilesystemFacts {
    /// Where it is mounted.
    pub mountpoint: String,
    /// Its type.
    pub kind: String,
    /// Its size in bytes.
    pub total: Option<u64>,
    /// Bytes used of it.
    pub used: Option<u64>,
}

/// Version and usable commands of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AgentInfo {
    /// Its version.
    pub version: String,
    /// Commands that are there and enabled.
    pub commands: Vec<String>,
}

impl AgentInfo {
    /// Whether the agent has `command` and allows it.
    #[must_use]
    pub fn allows(&self, command: &str) -> bool {
        self.commands.iter().any(|known| known == command)
    }

    pub(super) fn parse(reply: &Value) -> Result<Self, AgentError> {
        let command = "guest-info";
        let wrong = |detail| AgentError::WrongShape { command, detail };
        let version = text(reply, "version").ok_or_else(|| wrong("no version"))?;
        let listed = reply.get("supported_commands").and_then(Value::as_array);
        let listed = listed.ok_or_else(|| wrong("no list of commands"))?;
        let commands = listed
            .iter()
            .take(COMMANDS_MAX)
            .filter(|item| item.get("enabled").and_then(Value::as_bool) == Some(true))
            .filter_map(|item| text(item, "name"))
            .collect();
        Ok(Self { version, commands })
    }
}

/// One question about the guest, and where its answer belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    Os,
    Hostname,
    Timezone,
    Users,
    Interfaces,
    Filesystems,
}

impl Question {
    pub(super) const ALL: [Self; 6] = [
        Self::Os,
        Self::Hostname,
        Self::Interfaces,
        Self::Timezone,
        Self::Users,
        Self::Filesystems,
    ];

    pub(super) fn command(self) -> &'static str {
        match self {
            Self::Os => "guest-get-osinfo",
            Self::Hostname => "guest-get-host-name",
            Self::Timezone => "guest-get-timezone",
            Self::Users => "guest-get-users",
            Self::Interfaces => "guest-network-get-interfaces",
            Self::Filesystems => "guest-get-fsinfo",
        }
    }

    /// Puts an answer in its place.
    pub(super) fn take(self, reply: &Value, facts: &mut GuestFacts) -> Result<(), AgentError> {
        let command = self.command();
        let wrong = |detail| AgentError::WrongShape { command, detail };
        let list = || reply.as_array().ok_or_else(|| wrong("not a list"));
        let object = || reply.as_object().map(|_| reply).ok_or_else(|| wrong("not an object"));
        match self {
            Self::Os => facts.os = Some(os(object()?)),
            Self::Hostname => facts.hostname = text(object()?, "host-name"),
            Self::Timezone => facts.timezone = timezone(object()?),
            Self::Users => {
                let mut users: Vec<String> =
                    list()?.iter().take(ITEMS_MAX).filter_map(|item| text(item, "user")).collect();
                users.sort();
                users.dedup();
                facts.users = users;
            }
            Self::Interfaces => {
                facts.interfaces = list()?.iter().take(ITEMS_MAX).filter_map(interface).collect();
            }
            Self::Filesystems => {
                let mut found: Vec<_> =
                    list()?.iter().take(ITEMS_MAX).filter_map(filesystem).collect();
                found.sort_by(|a: &FilesystemFacts, b| a.mountpoint.cmp(&b.mountpoint));
                facts.filesystems = found;
            }
        }
        Ok(())
    }
}

fn os(reply: &Value) -> OsFacts {
    OsFacts {
        id: text(reply, "id"),
        version: text(reply, "version-id"),
        pretty: text(reply, "pretty-name"),
        kernel: text(reply, "kernel-release"),
        machine: text(reply, "machine"),
    }
}

fn timezone(reply: &Value) -> Option<String> {
    /// No zone is further than 14 hours from UTC; 26 is generous.
    const OFFSET_SECONDS_MAX: u64 = 26 * 3600;
    let offset = reply.get("offset").and_then(Value::as_i64)?;
    if offset.unsigned_abs() > OFFSET_SECONDS_MAX {
        return None;
    }
    let sign = if offset < 0 { '-' } else { '+' };
    let minutes = offset.unsigned_abs() / 60;
    let offset = format!("{sign}{:02}:{:02}", minutes / 60, minutes % 60);
    Some(match text(reply, "zone") {
        Some(zone) => format!("{zone} ({offset})"),
        None => offset,
    })
}

fn interface(item: &Value) -> Option<InterfaceFacts> {
    let addresses = item.get("ip-addresses").and_then(Value::as_array);
    let addresses = addresses.map(Vec::as_slice).unwrap_or_default();
    Some(InterfaceFacts {
        name: text(item, "name")?,
        mac: text(item, "hardware-address").map(|mac| mac.to_ascii_lowercase()),
        addresses: addresses.iter().take(ITEMS_MAX).filter_map(address).collect(),
    })
}

/// Only what really is an address passes: these are shown and used as such.
fn address(item: &Value) -> Option<String> {
    let ip: std::net::IpAddr = item.get("ip-address")?.as_str()?.parse().ok()?;
    let prefix = item.get("prefix").and_then(Value::as_u64);
    let longest = if ip.is_ipv4() { 32 } else { 128 };
    Some(match prefix.filter(|prefix| *prefix <= longest) {
        Some(prefix) => format!("{ip}/{prefix}"),
        None => ip.to_string(),
    })
}

fn filesystem(item: &Value) -> Option<FilesystemFacts> {
    Some(FilesystemFacts {
        mountpoint: text(item, "mountpoint")?,
        kind: text(item, "type").unwrap_or_default(),
        total: item.get("total-bytes").and_then(Value::as_u64),
        used: item.get("used-bytes").and_then(Value::as_u64),
    })
}

/// A text out of an object: cut, printable, not empty.
fn text(object: &Value, key: &str) -> Option<String> {
    let text: String = object
        .get(key)?
        .as_str()?
        .chars()
        .take(TEXT_CHARS_MAX)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    (!text.is_empty()).then_some(text)
}
