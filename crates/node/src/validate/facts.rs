//! What a node says of itself and of its ways to the others, as it goes over the wire.
//!
//! | version | change |
//! | --- | --- |
//! | 1 | first |
//!
//! Fields may come; unknown ones are ignored. What comes from another node is a stranger's word: its
//! texts are cut and its lists shortened before a rule looks at it ([`Answer::held_to_limits`]).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::net::SocketAddr;

use api::types::Accelerator;
use model::Bytes;
use model::FenceDeviceId;
use model::NodeId;
use model::Platform;
use model::UnixMillis;
use model::VolumeId;
use serde::Deserialize;
use serde::Serialize;

/// Version of the words below.
pub(crate) const VERSION: u16 = 1;

/// Longest text that is taken from another node, in characters: a few lines of an error.
const TEXT_CHARS_MAX: usize = 1_000;

/// Longest list: ways to 64 nodes on 16 networks each.
const LIST_MAX: usize = 1_024;

/// What one node asks of another.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Question {
    pub(crate) version: u16,
    pub(crate) part: Part,
    /// How long the asked node may take, in milliseconds.
    pub(crate) limit_ms: u64,
}

/// Which part of the facts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Part {
    /// What time it is there.
    Clock,
    /// The host.
    Host,
    /// Flushes of its own directory and of the volumes.
    Disks,
    /// Its ways to the others.
    Links,
    /// What fence devices tell it.
    Fence,
    /// What it finds when it tries the witness out.
    Witness,
}

/// An answer, in the form of its part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Clock(UnixMillis),
    Host(Box<HostFacts>),
    Disks(Vec<DiskFacts>),
    Links(Vec<LinkFacts>),
    Fence(Vec<FenceFacts>),
    /// What is wrong with the witness; nothing: it kept its word, or there is none.
    Witness(Option<String>),
}

/// A host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct HostFacts {
    pub(crate) muster: String,
    pub(crate) kernel: String,
    pub(crate) qemu: Option<String>,
    /// Why machines cannot be started at all.
    pub(crate) engine_problem: Option<String>,
    pub(crate) accelerator: Option<Accelerator>,
    pub(crate) accelerator_reason: String,
    pub(crate) cpu: CpuFacts,
    /// What guests can get there; none where that is not known, or said by an older program.
    pub(crate) platform: Option<Platform>,
    pub(crate) memory: Bytes,
    pub(crate) addresses: Vec<AddressFacts>,
    pub(crate) guard: GuardFacts,
    /// The service that sets the clock, if one is seen.
    pub(crate) time_service: Option<String>,
    /// Limits that this host cannot enforce.
    pub(crate) missing_limits: Vec<String>,
    pub(crate) volumes: Vec<VolumeFacts>,
}

/// A processor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct CpuFacts {
    pub(crate) vendor: String,
    pub(crate) model: String,
    pub(crate) features: BTreeSet<String>,
}

/// One of the addresses at which others reach a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AddressFacts {
    pub(crate) address: SocketAddr,
    /// The device that has it, and how many bits name its network. Nothing: no device has it.
    pub(crate) device: Option<String>,
    pub(crate) prefix: Option<u8>,
}

/// The guard of a node, as its daemon sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct GuardFacts {
    /// Not needed: the node is alone.
    pub(crate) alone: bool,
    pub(crate) answers: bool,
    pub(crate) watchdog: bool,
    pub(crate) problem: Option<String>,
}

/// A volume, as a node finds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VolumeFacts {
    pub(crate) volume: VolumeId,
    pub(crate) problem: Option<String>,
}

/// A place where data is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct DiskFacts {
    /// The volume; nothing: the node's own directory.
    pub(crate) volume: Option<VolumeId>,
    pub(crate) path: String,
    pub(crate) filesystem: String,
    /// Options of the mount and of the file system.
    pub(crate) options: Vec<String>,
    pub(crate) device: Option<String>,
    /// `write back` or `write through`, from the block device's queue.
    pub(crate) cache: Option<String>,
    pub(crate) rotational: Option<bool>,
    /// How long each flush took, in microseconds: count, median, 99th percentile.
    pub(crate) flushes: u32,
    pub(crate) median_us: u64,
    pub(crate) p99_us: u64,
    /// Why nothing could be written.
    pub(crate) problem: Option<String>,
}

/// A way from a node to another on one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LinkFacts {
    pub(crate) to: NodeId,
    pub(crate) from_address: IpAddr,
    pub(crate) to_address: IpAddr,
    pub(crate) prefix: u8,
    pub(crate) sent: u32,
    pub(crate) answered: u32,
    pub(crate) min_us: u64,
    pub(crate) median_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) jitter_us: u64,
    /// The largest packet that the own device takes; 0: not known.
    pub(crate) mtu: u32,
    /// The largest that arrived in one piece.
    pub(crate) passed: Option<u32>,
    /// Another node that answered at that address.
    pub(crate) stranger: Option<NodeId>,
    pub(crate) problem: Option<String>,
}

/// What a fence device said of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FenceFacts {
    pub(crate) device: FenceDeviceId,
    /// The node that it switches off.
    pub(crate) node: NodeId,
    pub(crate) says: FenceSays,
}

/// The answer of a fence device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FenceSays {
    On,
    Off,
    /// It could not be asked, and why.
    Failed(String),
}

impl LinkFacts {
    /// Before anything is measured.
    pub(crate) const fn begun(to: NodeId, from: IpAddr, target: IpAddr, prefix: u8) -> Self {
        Self {
            to,
            from_address: from,
            to_address: target,
            prefix,
            sent: 0,
            answered: 0,
            min_us: 0,
            median_us: 0,
            p99_us: 0,
            jitter_us: 0,
            mtu: 0,
            passed: None,
            stranger: None,
            problem: None,
        }
    }
}

fn cut(text: &mut String) {
    if let Some((at, _)) = text.char_indices().nth(TEXT_CHARS_MAX) {
        text.truncate(at);
    }
}

fn cut_opt(text: &mut Option<String>) {
    text.iter_mut().for_each(cut);
}

impl Answer {
    /// The answer with nothing too long in it.
    pub(crate) fn held_to_limits(mut self) -> Self {
        match &mut self {
            Self::Clock(_) => {}
            Self::Host(host) => host.hold(),
            Self::Disks(disks) => {
                disks.truncate(LIST_MAX);
                for disk in disks {
                    cut(&mut disk.path);
                    cut(&mut disk.filesystem);
                    disk.options.truncate(LIST_MAX);
                    disk.options.iter_mut().for_each(cut);
                    for text in [&mut disk.device, &mut disk.cache, &mut disk.problem] {
                        cut_opt(text);
                    }
                }
            }
            Self::Links(links) => {
                links.truncate(LIST_MAX);
                links.iter_mut().for_each(|link| cut_opt(&mut link.problem));
            }
            Self::Fence(list) => {
                list.truncate(LIST_MAX * 4);
                for said in list {
                    if let FenceSays::Failed(why) = &mut said.says {
                        cut(why);
                    }
                }
            }
            Self::Witness(problem) => cut_opt(problem),
        }
        self
    }
}

impl HostFacts {
    fn hold(&mut self) {
        self.platform = self.platform.take().filter(|it| it.validate().is_ok());
        let texts = [
            &mut self.muster,
            &mut self.kernel,
            &mut self.accelerator_reason,
            &mut self.cpu.vendor,
            &mut self.cpu.model,
        ];
        texts.into_iter().for_each(cut);
        let options = [
            &mut self.qemu,
            &mut self.engine_problem,
            &mut self.time_service,
            &mut self.guard.problem,
        ];
        options.into_iter().for_each(cut_opt);
        let features = std::mem::take(&mut self.cpu.features);
        let short = |mut feature: String| {
            cut(&mut feature);
            feature
        };
        self.cpu.features = features.into_iter().take(LIST_MAX).map(short).collect();
        self.addresses.truncate(LIST_MAX);
        self.addresses.iter_mut().for_each(|it| cut_opt(&mut it.device));
        self.missing_limits.truncate(LIST_MAX);
        self.missing_limits.iter_mut().for_each(cut);
        self.volumes.truncate(LIST_MAX);
        self.volumes.iter_mut().for_each(|it| cut_opt(&mut it.problem));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_another_node_are_held_to_limits() {
        let long = "\u{e9}".repeat(TEXT_CHARS_MAX * 2);
        let host = HostFacts {
            kernel: long.clone(),
            missing_limits: vec![long.clone(); LIST_MAX * 2],
            cpu: CpuFacts {
                features: (0..LIST_MAX * 3).map(|n| format!("{n}{long}")).collect(),
                ..CpuFacts::default()
            },
            ..HostFacts::default()
        };
        let Answer::Host(host) = Answer::Host(Box::new(host)).held_to_limits() else { panic!() };
        assert_eq!(host.kernel.chars().count(), TEXT_CHARS_MAX);
        assert_eq!(host.missing_limits.len(), LIST_MAX);
        assert_eq!(host.cpu.features.len(), LIST_MAX);
        assert!(host.cpu.features.iter().all(|it| it.chars().count() <= TEXT_CHARS_MAX));
        let Answer::Witness(Some(said)) = Answer::Witness(Some(long)).held_to_limits() else {
            panic!()
        };
        assert_eq!(said.chars().count(), TEXT_CHARS_MAX);
    }

    #[test]
    fn an_answer_of_a_newer_node_is_read() {
        let newer = serde_json::json!({ "host": { "muster": "9.0", "smell": "roses" } });
        let Answer::Host(host) = serde_json::from_value(newer).unwrap() else { panic!() };
        assert_eq!(host.muster, "9.0");
    }
}
