//! From facts to findings. Pure: what was gathered comes in as a [`Picture`], findings go out.
//!
//! Each rule says that all is well, too, so that a report shows what was looked at. Texts name what
//! was found, advice says what to do; limits stand as constants with their reasons.

mod hosts;
mod network;
mod safety;
mod storage;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::ha::LossView;
use api::validate::Check;
use api::validate::FindingView;
use api::validate::Measured;
use api::validate::Subject;
use api::validate::Unit;
use api::validate::Verdict;
use cluster::lease::Certainty;
use model::FenceDeviceId;
use model::NodeId;
use model::VolumeId;

use super::facts::DiskFacts;
use super::facts::FenceFacts;
use super::facts::HostFacts;
use super::facts::LinkFacts;

pub(super) use hosts::ahead_of_middle;
pub(super) use network::network_of;
pub(super) use network::subnet;

/// All that the rules look at.
#[derive(Debug, Clone, Default)]
pub(super) struct Picture {
    /// By name.
    pub(super) nodes: Vec<NodePicture>,
    /// What would not run after the loss of each node.
    pub(super) losses: Vec<LossView>,
    pub(super) volumes: BTreeMap<VolumeId, VolumePicture>,
    pub(super) devices: BTreeMap<FenceDeviceId, DevicePicture>,
    pub(super) witness: Option<WitnessPicture>,
}

/// What a node was asked and said. Nothing: it was not asked.
pub(super) type Asked<T> = Option<Result<T, String>>;

/// A node.
#[derive(Debug, Clone)]
pub(super) struct NodePicture {
    pub(super) id: NodeId,
    pub(super) name: String,
    /// What the state says of its addresses.
    pub(super) addresses: Vec<IpAddr>,
    /// What makes sure that a lost node's machines do not run.
    pub(super) certainty: Option<Certainty>,
    pub(super) fenced: bool,
    pub(super) clock: Asked<ClockSample>,
    pub(super) host: Asked<HostFacts>,
    pub(super) disks: Asked<Vec<DiskFacts>>,
    pub(super) links: Asked<Vec<LinkFacts>>,
    pub(super) fence: Asked<Vec<FenceFacts>>,
    pub(super) witness: Asked<Option<String>>,
}

/// A node's clock beside that of the asking node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ClockSample {
    /// How far it is ahead, in milliseconds.
    pub(super) ahead_ms: i64,
    /// How long the question took; half of it is the error of the other number, at most.
    pub(super) round_trip_ms: i64,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VolumePicture {
    pub(super) name: String,
    pub(super) path: String,
}

/// A fence device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DevicePicture {
    pub(super) name: String,
    /// The nodes that it switches off.
    pub(super) nodes: Vec<NodeId>,
}

/// The witness.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct WitnessPicture {
    /// Where it is, for people.
    pub(super) place: String,
    /// The address of the machine that it is on.
    pub(super) host: Option<IpAddr>,
    /// The directory that it lies in.
    pub(super) path: Option<String>,
}

impl Picture {
    pub(super) fn name(&self, node: NodeId) -> String {
        let known = self.nodes.iter().find(|it| it.id == node);
        known.map_or_else(|| node.to_string(), |it| it.name.clone())
    }

    /// The nodes that said something of their hosts.
    fn hosts(&self) -> Vec<(&NodePicture, &HostFacts)> {
        let said = |node: &&NodePicture| matches!(node.host, Some(Ok(_)));
        self.nodes
            .iter()
            .filter(said)
            .filter_map(|node| Some((node, node.host.as_ref()?.as_ref().ok()?)))
            .collect()
    }
}

/// Findings of those checks, by check, the worst first.
pub(super) fn findings(picture: &Picture, checks: &[Check]) -> Vec<FindingView> {
    let mut all = Vec::new();
    for check in Check::ALL.into_iter().filter(|check| checks.contains(check)) {
        let mut found = match check {
            Check::Nodes => hosts::nodes(picture),
            Check::Clock => hosts::clock(picture),
            Check::Cpu => hosts::cpu(picture),
            Check::Versions => hosts::versions(picture),
            Check::Memory => hosts::memory(picture),
            Check::Networks => network::networks(picture),
            Check::Latency => network::latency(picture),
            Check::Mtu => network::mtu(picture),
            Check::Disks => storage::disks(picture),
            Check::Volumes => storage::volumes(picture),
            Check::Fencing => safety::fencing(picture),
            Check::Witness => safety::witness(picture),
        };
        found.sort_by(|a, b| (b.verdict, &a.subject).cmp(&(a.verdict, &b.subject)));
        all.extend(found);
    }
    all
}

fn finding(
    check: Check,
    verdict: Verdict,
    subject: Subject,
    text: impl Into<String>,
) -> FindingView {
    FindingView {
        check,
        subject,
        verdict,
        text: text.into(),
        advice: String::new(),
        measured: None,
    }
}

/// What may be added to a finding.
trait With {
    fn advice(self, advice: impl Into<String>) -> Self;
    fn measured(self, value: u64, unit: Unit) -> Self;
}

impl With for FindingView {
    fn advice(mut self, advice: impl Into<String>) -> Self {
        self.advice = advice.into();
        self
    }

    fn measured(mut self, value: u64, unit: Unit) -> Self {
        self.measured = Some(Measured { value: i64::try_from(value).unwrap_or(i64::MAX), unit });
        self
    }
}

fn node(node: &NodePicture) -> Subject {
    Subject::Node { node: node.name.clone() }
}

/// Findings that nodes did not say a part of what was asked, although they answer otherwise.
fn unsaid<T>(
    picture: &Picture,
    check: Check,
    part: impl Fn(&NodePicture) -> &Asked<T>,
) -> Vec<FindingView> {
    let mut found = Vec::new();
    for it in &picture.nodes {
        if let (Some(Err(why)), false) = (part(it), matches!(it.host, Some(Err(_)))) {
            let text = format!("this could not be looked at there: {why}");
            let advice =
                "validate again; if it stays, look at that node's log: journalctl -u muster";
            found.push(finding(check, Verdict::Warn, node(it), text).advice(advice));
        }
    }
    found
}

/// Microseconds for people.
fn shown(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..100_000 => format!("{}.{} ms", us / 1_000, us % 1_000 / 100),
        100_000..10_000_000 => format!("{} ms", us / 1_000),
        _ => format!("{} s", us / 1_000_000),
    }
}

/// Milliseconds for people.
fn shown_ms(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..10_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        _ => format!("{} s", ms / 1_000),
    }
}

/// The first of a list, and how many more there are.
fn some_of<S: AsRef<str>>(list: impl IntoIterator<Item = S>, most: usize) -> String {
    let list: Vec<S> = list.into_iter().collect();
    let first: Vec<&str> = list.iter().take(most).map(AsRef::as_ref).collect();
    match list.len().saturating_sub(most) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}
