//! What the API says of a validation: whether the hosts of a cluster fit together and can be relied
//! on.

use std::fmt;
use std::str::FromStr;

use model::Bytes;
use model::Name;
use model::UnixMillis;
use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

use crate::types::Accelerator;

/// One group of questions.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// Whether each node answers, and can enforce what it promises.
    Nodes,
    /// Whether the clocks say the same.
    Clock,
    /// Vendor and features of the processors, and what carries guests out.
    Cpu,
    /// Versions of Muster, QEMU and the kernel.
    Versions,
    /// Whether the loss of each node leaves room for its machines.
    Memory,
    /// Which networks there are between the nodes, and who is on them.
    Networks,
    /// Round trips on each network.
    Latency,
    /// Whether packets of full size pass on each network.
    Mtu,
    /// How long flushes take, and what is known of whether they are true.
    Disks,
    /// Whether each node sees each shared volume.
    Volumes,
    /// What makes sure that a lost node's machines do not run; whether fence devices answer.
    Fencing,
    /// Whether the witness keeps its word with each node.
    Witness,
}

impl Check {
    /// All, in the order in which they are shown.
    pub const ALL: [Self; 12] = [
        Self::Nodes,
        Self::Clock,
        Self::Cpu,
        Self::Versions,
        Self::Memory,
        Self::Networks,
        Self::Latency,
        Self::Mtu,
        Self::Disks,
        Self::Volumes,
        Self::Fencing,
        Self::Witness,
    ];

    /// Its word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::Clock => "clock",
            Self::Cpu => "cpu",
            Self::Versions => "versions",
            Self::Memory => "memory",
            Self::Networks => "networks",
            Self::Latency => "latency",
            Self::Mtu => "mtu",
            Self::Disks => "disks",
            Self::Volumes => "volumes",
            Self::Fencing => "fencing",
            Self::Witness => "witness",
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Check {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|check| check.as_str() == text).ok_or_else(|| {
            let all: Vec<_> = Self::ALL.iter().map(|check| check.as_str()).collect();
            format!("there is no check of that name; there are {}", all.join(", "))
        })
    }
}

/// What to validate.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ValidateBody {
    /// Only these checks; all if none is named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<Check>,
    /// Only findings on these nodes, by name or id, and on what is common to all; all if none is
    /// named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
    /// The token of a cluster that this host thinks of joining: it is compared with that one's
    /// nodes. The token is not used up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join_token: Option<String>,
}

/// Secrets stay out of logs.
impl fmt::Debug for ValidateBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValidateBody")
            .field("checks", &self.checks)
            .field("nodes", &self.nodes)
            .finish_non_exhaustive()
    }
}

/// The validation that the asked node is doing, and the last one that it did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ValidationView {
    /// The one under way.
    pub running: Option<ValidationProgressView>,
    /// The last one.
    pub report: Option<ValidationReport>,
}

/// How far a validation is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ValidationProgressView {
    /// When it began; its report has the same time.
    pub started: UnixMillis,
    /// What is being done.
    pub step: String,
    /// Steps that are done.
    pub done: u32,
    /// All steps.
    pub total: u32,
}

/// What a validation found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ValidationReport {
    /// When it began.
    pub started: UnixMillis,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// The cluster; absent for a host that is in none.
    pub cluster: Option<Name>,
    /// The node that asked the others.
    pub asked_by: Name,
    /// Version of Muster there.
    pub version: String,
    /// Which checks were made.
    pub checks: Vec<Check>,
    /// Findings that all is well.
    pub passed: u32,
    /// Findings that something is not as it could be. They stop nothing.
    pub warned: u32,
    /// Findings that something will not work.
    pub failed: u32,
    /// The findings, by check, the worst first.
    pub findings: Vec<FindingView>,
    /// What was learned of each node, by name.
    pub nodes: Vec<ValidatedNodeView>,
    /// What was measured between nodes.
    pub links: Vec<ValidatedLinkView>,
}

/// How a finding is to be taken, the best first.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Pass,
    /// It works, with a risk or a limit that is told.
    Warn,
    /// Something that a cluster needs does not work.
    Fail,
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FindingView {
    /// By which check.
    pub check: Check,
    /// Of what.
    pub subject: Subject,
    /// How it is to be taken.
    pub verdict: Verdict,
    /// What was found, in a sentence.
    pub text: String,
    /// What to do about it; empty if nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub advice: String,
    /// What was measured, where one number says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
}

/// A number and what it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Measured {
    /// The number.
    pub value: i64,
    /// Its unit.
    pub unit: Unit,
}

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Millionths of a second.
    Microseconds,
    /// Thousandths of a second.
    Milliseconds,
    /// Bytes.
    Bytes,
    /// Things.
    Count,
}

/// What a finding is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
// In the document, `Subject` is that of events.
#[schema(as = FindingSubject)]
pub enum Subject {
    /// All nodes together.
    Cluster,
    /// One node.
    Node {
        /// Its name.
        node: String,
    },
    /// The way from one node to another.
    Pair {
        /// Who sends.
        from: String,
        /// Who receives.
        to: String,
        /// Subnet of the network; absent where it is about the nodes themselves.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        network: Option<String>,
    },
    /// A network between nodes.
    Network {
        /// Its subnet.
        network: String,
    },
    /// A shared volume, everywhere or on one node.
    Volume {
        /// Its name.
        volume: String,
        /// The node.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<String>,
    },
    /// A fence device.
    Device {
        /// Its name.
        device: String,
        /// The node that it switches off.
        node: String,
    },
}

impl Subject {
    /// Names of the nodes that it is about; none: it is about all.
    pub fn nodes(&self) -> Vec<&str> {
        match self {
            Self::Cluster | Self::Network { .. } | Self::Volume { node: None, .. } => Vec::new(),
            Self::Node { node }
            | Self::Volume { node: Some(node), .. }
            | Self::Device { node, .. } => vec![node],
            Self::Pair { from, to, .. } => vec![from, to],
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster => f.write_str("cluster"),
            Self::Node { node } => f.write_str(node),
            Self::Pair { from, to, network: None } => write!(f, "{from} -> {to}"),
            Self::Pair { from, to, network: Some(network) } => {
                write!(f, "{from} -> {to} on {network}")
            }
            Self::Network { network } => write!(f, "network {network}"),
            Self::Volume { volume, node: None } => write!(f, "volume {volume}"),
            Self::Volume { volume, node: Some(node) } => write!(f, "volume {volume} on {node}"),
            Self::Device { device, node } => write!(f, "device {device} for {node}"),
        }
    }
}

/// What was learned of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ValidatedNodeView {
    /// Its name.
    pub node: String,
    /// Whether it answered. If not, all else is empty.
    pub answered: bool,
    /// Version of Muster.
    pub muster: String,
    /// Version of QEMU.
    pub qemu: Option<String>,
    /// Release of the kernel.
    pub kernel: String,
    /// Vendor of the processor.
    pub cpu_vendor: String,
    /// Model of the processor.
    pub cpu_model: String,
    /// How many features the processor has.
    pub cpu_features: u32,
    /// What carries the guests' processors out.
    pub accelerator: Option<Accelerator>,
    /// Host memory.
    pub memory: Bytes,
    /// How far its clock is ahead of the middle one of all nodes, in milliseconds.
    pub clock_ahead_ms: Option<i64>,
    /// Its addresses on the cluster's networks.
    pub addresses: Vec<ValidatedAddressView>,
    /// Where it keeps data, and how that behaves.
    pub disks: Vec<ValidatedDiskView>,
}

/// An address of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ValidatedAddressView {
    /// The address.
    pub address: String,
    /// The network device that has it; absent if none has.
    pub device: Option<String>,
    /// Its network.
    pub network: Option<String>,
}

/// A place where a node keeps data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ValidatedDiskView {
    /// `data` for the node's own directory, else the name of the volume.
    pub place: String,
    /// Its path.
    pub path: String,
    /// The kind of file system.
    pub filesystem: String,
    /// The block device below it, where there is one.
    pub device: Option<String>,
    /// What the kernel says of the device's cache: `write back` or `write through`.
    pub cache: Option<String>,
    /// How many small writes were flushed.
    pub flushes: u32,
    /// Half of them took at most this long, in microseconds.
    pub flush_median_us: u64,
    /// All but one in a hundred took at most this long, in microseconds.
    pub flush_p99_us: u64,
}

/// What was measured from one node to another on one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ValidatedLinkView {
    /// Who sent.
    pub from: String,
    /// Who answered.
    pub to: String,
    /// The network's subnet.
    pub network: String,
    /// Messages that were sent.
    pub sent: u32,
    /// Messages that were answered.
    pub answered: u32,
    /// The fastest round trip, in microseconds.
    pub min_us: u64,
    /// Half of the round trips took at most this long, in microseconds.
    pub median_us: u64,
    /// All but one in a hundred took at most this long, in microseconds.
    pub p99_us: u64,
    /// How much two round trips in a row differ, on average, in microseconds.
    pub jitter_us: u64,
    /// The largest packet that the sender's device takes, in bytes.
    pub mtu: u32,
    /// The largest packet that arrived in one piece, in bytes; absent if it was not tried.
    pub passed: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::Check;
    use super::Subject;

    #[test]
    fn each_check_is_known_by_its_word() {
        for check in Check::ALL {
            assert_eq!(check.as_str().parse(), Ok(check));
            assert_eq!(serde_json::to_value(check).unwrap(), check.as_str());
        }
        assert!("nothing".parse::<Check>().unwrap_err().contains("witness"));
    }

    #[test]
    fn a_subject_names_its_nodes() {
        let pair =
            Subject::Pair { from: "a".into(), to: "b".into(), network: Some("10.0.0.0/8".into()) };
        assert_eq!(pair.nodes(), ["a", "b"]);
        assert_eq!(pair.to_string(), "a -> b on 10.0.0.0/8");
        assert!(Subject::Cluster.nodes().is_empty());
    }
}
