//! Leases, the way to a node's fencing, fence devices. What a fenced node loses is in `ha`.

use std::sync::Arc;

use crate::ClusterState;
use crate::EventKind;
use crate::FenceDevice;
use crate::FenceDeviceId;
use crate::FenceFailure;
use crate::FenceProof;
use crate::FenceReason;
use crate::FenceWish;
use crate::LeaseReign;
use crate::LeaseTerms;
use crate::NodeId;
use crate::NodeRecord;
use crate::Refused;
use crate::Severity;
use crate::Subject;
use crate::apply::Context;
use crate::apply::ha::node_mut;
use crate::apply::ha::node_subject;
use crate::state::not_found;

/// Most fence devices: one or two for each of 64 nodes, and some to spare.
const DEVICES_MAX: usize = 256;
/// Most options of a device; the agent with the most has about 80.
const OPTIONS_MAX: usize = 100;
/// Longest option, name or value: a path or a password.
const OPTION_BYTES_MAX: usize = 1_024;
/// Longest text of a statement, a failure or the output of an agent that is kept.
const TEXT_BYTES_MAX: usize = 4_096;
/// Levels of fence devices.
const LEVELS: std::ops::RangeInclusive<u8> = 1..=9;
/// Time of one call of an agent, in seconds.
const TIMEOUT_S: std::ops::RangeInclusive<u32> = 1..=300;

pub(crate) fn reign(state: &mut ClusterState, reign: u64, leader: NodeId) -> Result<(), Refused> {
    if reign <= state.lease_reign.reign {
        let now = state.lease_reign.reign;
        return Err(Refused::Invalid(format!("reign {reign} is not after {now}")));
    }
    state.lease_reign = LeaseReign { reign, leader: Some(leader) };
    Ok(())
}

pub(crate) fn terms(
    state: &mut ClusterState,
    node: NodeId,
    reign: u64,
    terms: Option<LeaseTerms>,
) -> Result<(), Refused> {
    of_this_reign(state, reign)?;
    node_mut(state, node)?.fence.terms = terms;
    Ok(())
}

pub(crate) fn begin(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    node: NodeId,
    reason: &FenceReason,
) -> Result<(), Refused> {
    let record = state.node(node)?;
    if let FenceReason::Suspected { what } = reason {
        short("a reason", what)?;
    }
    if record.fenced.is_some() {
        return Err(Refused::Invalid(format!("{} is fenced already", record.name)));
    }
    // A person's word replaces what waits for a machine's; nothing else does.
    let word = matches!(reason, FenceReason::ConfirmedOff);
    if record.fence.wish.is_some() && !word {
        return Err(Refused::Invalid(format!("{} is being fenced already", record.name)));
    }
    let wish = FenceWish {
        reason: reason.clone(),
        actor: cx.proposal.actor.to_string(),
        since: cx.proposal.at,
    };
    let record = node_mut(state, node)?;
    record.fence.wish = Some(wish);
    record.fence.failure = None;
    let why = match reason {
        FenceReason::Suspected { what } => format!("it is taken for dead: {what}"),
        FenceReason::Manual => "an administrator wants it".to_owned(),
        FenceReason::ConfirmedOff => "an administrator states that it is off".to_owned(),
    };
    let text = format!("{} is to be fenced: {why}", record.name);
    let subject = node_subject(record);
    cx.event(EventKind::NodeFencing, Severity::Warning, subject, text, None);
    Ok(())
}

/// The wish ends without a proof.
pub(crate) fn end(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    node: NodeId,
    reign: u64,
    why: Option<&str>,
) -> Result<(), Refused> {
    of_this_reign(state, reign)?;
    short("a failure", why.unwrap_or_default())?;
    let at = cx.proposal.at;
    let record = node_mut(state, node)?;
    if record.fence.wish.take().is_none() {
        return Ok(());
    }
    record.fence.failure = why.map(|why| FenceFailure { at, why: why.to_owned() });
    let (severity, text) = match why {
        Some(why) => (Severity::Error, format!("{} could not be fenced: {why}", record.name)),
        None => (Severity::Info, format!("{} need not be fenced any more", record.name)),
    };
    let subject = node_subject(record);
    cx.event(EventKind::NodeFenceEnded, severity, subject, text, None);
    Ok(())
}

/// Whether a proof can be one at all for that node.
pub(crate) fn admit_proof(node: &NodeRecord, proof: &FenceProof) -> Result<(), Refused> {
    match proof {
        FenceProof::LeaseOver { waited } => {
            let Some(terms) = node.fence.terms else {
                return Err(Refused::Invalid(format!(
                    "the lease of {} does not end by itself, so its end proves nothing",
                    node.name
                )));
            };
            // The leader waits longer; less than this is wrong whatever its settings are.
            if waited.get() <= terms.lease_ms.saturating_add(terms.watchdog_ms) {
                return Err(Refused::Invalid(format!(
                    "{} ms are less than the lease of {}",
                    waited.get(),
                    node.name
                )));
            }
            Ok(())
        }
        FenceProof::Devices { said } if said.is_empty() || said.len() > DEVICES_MAX => {
            Err(Refused::Invalid("no device has said anything".to_owned()))
        }
        FenceProof::Devices { said } => {
            said.iter().try_for_each(|said| short("a device's output", &said.output))
        }
        FenceProof::Reservation { .. } | FenceProof::Statement | FenceProof::Left => Ok(()),
    }
}

pub(crate) fn device_add(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    device: &FenceDevice,
) -> Result<(), Refused> {
    if state.fence_devices.len() >= DEVICES_MAX {
        return Err(Refused::Limit { what: "fence devices", most: DEVICES_MAX });
    }
    if state.fence_devices.contains_key(&device.id) {
        return Err(Refused::IdTaken(device.id.to_string()));
    }
    if state.fence_devices.values().any(|other| other.name.key() == device.name.key()) {
        return Err(Refused::NameTaken { what: "fence device", name: device.name.clone() });
    }
    check_device(device)?;
    for node in device.nodes.keys() {
        state.node(*node)?;
    }
    let mut device = device.clone();
    device.created = cx.proposal.at;
    let subject = Subject::FenceDevice { id: device.id, name: device.name.to_string() };
    let text = format!("fence device {} was added at level {}", device.name, device.level);
    state.fence_devices.insert(device.id, Arc::new(device));
    cx.event(EventKind::FenceChanged, Severity::Info, subject, text, None);
    Ok(())
}

pub(crate) fn device_remove(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: FenceDeviceId,
) -> Result<(), Refused> {
    let Some(device) = state.fence_devices.remove(&id) else {
        return Err(not_found("fence device", &id.to_string()));
    };
    let subject = Subject::FenceDevice { id, name: device.name.to_string() };
    let text = format!("fence device {} is gone", device.name);
    cx.event(EventKind::FenceChanged, Severity::Warning, subject, text, None);
    Ok(())
}

fn check_device(device: &FenceDevice) -> Result<(), Refused> {
    let bad = |text: &str| Err(Refused::Invalid(text.to_owned()));
    let word = |text: &str| {
        !text.is_empty()
            && text.len() <= 64
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
    };
    if !device.agent.starts_with("fence_") || !word(&device.agent) {
        return bad("an agent is a program of the fence-agents package, such as fence_ipmilan");
    }
    if !LEVELS.contains(&device.level) {
        return bad("a level is a number from 1 to 9");
    }
    if !TIMEOUT_S.contains(&device.timeout_s) {
        return bad("a timeout has 1 to 300 seconds");
    }
    if device.nodes.is_empty() {
        return bad("a fence device needs at least one node that it switches off");
    }
    if device.options.len() + device.secrets.len() > OPTIONS_MAX {
        return Err(Refused::Limit { what: "options of a fence device", most: OPTIONS_MAX });
    }
    let plugs = device.nodes.values().flatten().map(|plug| ("plug", plug));
    let options = device.options.iter().chain(&device.secrets);
    let options = options.map(|(name, value)| (name.as_str(), value));
    for (name, value) in options.clone().chain(plugs) {
        // Options reach the program as lines.
        if !word(name) || value.len() > OPTION_BYTES_MAX || value.chars().any(char::is_control) {
            return Err(Refused::Invalid(format!(
                "option {} cannot be: names have letters, digits, '_' and '-', values no line ends",
                name.chars().take(64).collect::<String>().escape_debug()
            )));
        }
    }
    for (name, _) in options {
        if matches!(name, "action" | "plug" | "port" | "nodename") {
            return Err(Refused::Invalid(format!("option {name} is set by muster itself")));
        }
    }
    Ok(())
}

/// A proof that a former leader measured says nothing of what this one has granted since.
pub(crate) fn of_this_reign(state: &ClusterState, reign: u64) -> Result<(), Refused> {
    if state.lease_reign.reign == reign {
        return Ok(());
    }
    let now = state.lease_reign.reign;
    Err(Refused::Invalid(format!("it is of reign {reign}, and {now} is the present one")))
}

fn short(what: &str, text: &str) -> Result<(), Refused> {
    if text.len() <= TEXT_BYTES_MAX {
        return Ok(());
    }
    Err(Refused::Invalid(format!("{what} has at most {TEXT_BYTES_MAX} bytes")))
}
