//! From devices to a proof: levels in order, all devices of a level.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use model::DeviceSaid;
use model::FenceDevice;
use model::FenceProof;
use model::NodeId;
use model::UnixMillis;
use tokio::time::Instant;

use super::agent::Action;
use super::agent::Agents;
use super::agent::Called;
use super::agent::Outcome;

/// How often *off* is tried on one device.
const OFF_TRIES: u32 = 2;
/// Pause between two questions for the status of a device that still says on: many need seconds.
const STATUS_AGAIN: Duration = Duration::from_millis(200);
/// How long a node is listened to after all devices have said off. Two of the heartbeats that a
/// living node sends; short against the seconds that a takeover has.
const LISTEN: Duration = Duration::from_millis(450);

/// Whether the node was heard after a moment: a heartbeat, a request for a lease, a beat on a volume,
/// anything.
pub trait Heard: Send + Sync {
    /// Whether anything that it sent or wrote after `since` is known.
    fn since(&self, node: NodeId, since: Instant) -> bool;

    /// How long it takes at most until that is known of a node that lives, if longer than a
    /// heartbeat: a node that is cut off from all networks and writes to a volume is read there only
    /// now and then.
    fn takes(&self, node: NodeId) -> Duration;
}

/// Why there is no proof.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoProof {
    /// The node has no device.
    #[error("it has no fence device; add one: muster fence device add")]
    NoDevice,
    /// Every level failed.
    #[error("{0}")]
    Failed(String),
}

/// Switches a node off through its devices. `now`: the time for the record.
///
/// # Errors
/// [`NoProof`], with what each device said.
pub async fn prove_off(
    agents: &Agents,
    devices: &[Arc<FenceDevice>],
    node: NodeId,
    heard: &dyn Heard,
    now: impl Fn() -> UnixMillis + Send + Sync,
) -> Result<FenceProof, NoProof> {
    let mut levels: BTreeMap<u8, Vec<&FenceDevice>> = BTreeMap::new();
    for device in devices.iter().filter(|device| device.nodes.contains_key(&node)) {
        levels.entry(device.level).or_default().push(device);
    }
    if levels.is_empty() {
        return Err(NoProof::NoDevice);
    }
    let mut failures = Vec::new();
    for (level, devices) in levels {
        match try_level(agents, &devices, node, heard, &now).await {
            Ok(said) => return Ok(FenceProof::Devices { said }),
            Err(why) => failures.push(format!("level {level}: {why}")),
        }
    }
    Err(NoProof::Failed(failures.join("; ")))
}

async fn try_level(
    agents: &Agents,
    devices: &[&FenceDevice],
    node: NodeId,
    heard: &dyn Heard,
    now: &(impl Fn() -> UnixMillis + Send + Sync),
) -> Result<Vec<DeviceSaid>, String> {
    let mut offs = Vec::new();
    for device in devices {
        offs.push(switch_off(agents, device, node).await?);
    }
    let all_off = Instant::now();
    let mut said = Vec::new();
    for (device, off) in devices.iter().zip(offs) {
        let output = confirm(agents, device, node, &off).await?;
        let device = device.name.clone();
        said.push(DeviceSaid { device, level: devices[0].level, output, at: now() });
    }
    let quiet = all_off + LISTEN.max(heard.takes(node));
    while !heard.since(node, all_off) && Instant::now() < quiet {
        let rest = quiet.saturating_duration_since(Instant::now());
        tokio::time::sleep(rest.min(STATUS_AGAIN)).await;
    }
    if heard.since(node, all_off) {
        let names: Vec<&str> = devices.iter().map(|device| device.name.as_str()).collect();
        return Err(format!("{} says off, and the node is still heard", names.join(" and ")));
    }
    Ok(said)
}

async fn switch_off(agents: &Agents, device: &FenceDevice, node: NodeId) -> Result<Called, String> {
    let plug = plug(device, node);
    let mut last = String::new();
    for _ in 0..OFF_TRIES {
        let called = agents.call(device, plug, Action::Off).await;
        if called.outcome == Outcome::Done {
            return Ok(called);
        }
        last = in_words(device, Action::Off, &called);
        // One that takes all its time, or is not there, would do so again.
        if called.outcome != Outcome::Failed {
            break;
        }
    }
    Err(last)
}

/// Returns once the device says that it is off.
async fn confirm(
    agents: &Agents,
    device: &FenceDevice,
    node: NodeId,
    off: &Called,
) -> Result<String, String> {
    let plug = plug(device, node);
    let end = Instant::now() + Duration::from_secs(device.timeout_s.into());
    loop {
        let called = agents.call(device, plug, Action::Status).await;
        match called.outcome {
            Outcome::IsOff => return Ok(called.output),
            Outcome::Done if Instant::now() < end => tokio::time::sleep(STATUS_AGAIN).await,
            Outcome::Done => {
                return Err(format!("{}: off was done, and its status is still on", device.name));
            }
            _ => {
                if agents.knows_status(device).await == Some(false) {
                    return Ok(format!("{} (it has no action status)", off.output));
                }
                return Err(in_words(device, Action::Status, &called));
            }
        }
    }
}

fn plug(device: &FenceDevice, node: NodeId) -> Option<&str> {
    device.nodes.get(&node)?.as_deref()
}

fn in_words(device: &FenceDevice, action: Action, called: &Called) -> String {
    let name = &device.name;
    let action = action.as_str();
    let last = called.output.lines().last().unwrap_or("it said nothing");
    match &called.outcome {
        Outcome::Late => format!("{name}: {action} took more than {} s", device.timeout_s),
        Outcome::NotStarted(why) => format!("{name}: {why}"),
        Outcome::Failed => format!("{name}: {action} failed: {last}"),
        Outcome::Done => format!("{name}: {action} says on"),
        Outcome::IsOff => format!("{name}: {action} says off"),
    }
}
