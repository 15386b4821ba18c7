//! Asks all nodes for their facts, part by part, and puts the picture together.

use std::sync::Arc;
use std::time::Duration;

use api::validate::Check;
use api::validate::ValidatedAddressView;
use api::validate::ValidatedDiskView;
use api::validate::ValidatedLinkView;
use api::validate::ValidatedNodeView;
use futures::StreamExt;
use model::ClusterState;
use model::NodeId;
use model::WitnessPlace;
use peer::Method;
use tokio::time::Instant;

use super::Picture;
use super::Wish;
use super::collect;
use super::facts;
use super::facts::Answer;
use super::facts::Part;
use super::facts::Question;
use super::rules;
use super::rules::Asked;
use super::rules::ClockSample;
use super::rules::DevicePicture;
use super::rules::NodePicture;
use super::rules::VolumePicture;
use super::rules::WitnessPicture;
use crate::app::App;
use crate::app::now;
use crate::fencing;

/// Questions for the time to one node; the fastest answer counts.
const CLOCK_QUESTIONS: u32 = 5;

/// How long a node may take to tell the time.
const CLOCK_LIMIT: Duration = Duration::from_secs(3);

/// A part: which checks need it, how long it may take, and at how many nodes at once.
struct Plan {
    part: Part,
    words: &'static str,
    checks: &'static [Check],
    limit: Duration,
    at_once: usize,
}

/// In this order. Hosts first: whoever does not answer is not waited for again.
const PLANS: [Plan; 6] = [
    Plan {
        part: Part::Host,
        words: "asking hosts",
        checks: &Check::ALL,
        limit: Duration::from_secs(20),
        at_once: 16,
    },
    Plan {
        part: Part::Clock,
        words: "comparing clocks",
        checks: &[Check::Clock],
        limit: Duration::from_secs(10),
        at_once: 1,
    },
    // Shared disks would be measured under the load of the others.
    Plan {
        part: Part::Disks,
        words: "flushing disks",
        checks: &[Check::Disks],
        limit: Duration::from_secs(60),
        at_once: 2,
    },
    // Many devices take one session at a time.
    Plan {
        part: Part::Fence,
        words: "asking fence devices",
        checks: &[Check::Fencing],
        limit: Duration::from_secs(40),
        at_once: 2,
    },
    Plan {
        part: Part::Witness,
        words: "trying the witness out",
        checks: &[Check::Witness],
        limit: Duration::from_secs(20),
        at_once: 8,
    },
    Plan {
        part: Part::Links,
        words: "measuring networks",
        checks: &[Check::Networks, Check::Latency, Check::Mtu],
        limit: Duration::from_secs(60),
        at_once: 64,
    },
];

/// Asks everybody for all that the checks need.
pub(super) async fn all(app: &Arc<App>, wish: &Wish, until: Instant) -> Picture {
    let mut picture = known(app, &app.truth.state());
    let plans: Vec<&Plan> = PLANS
        .iter()
        .filter(|plan| plan.checks.iter().any(|check| wish.checks.contains(check)))
        .collect();
    let total = plans.len() * picture.nodes.len();
    let mut done = 0;
    for plan in plans {
        app.validations.step(plan.words, done, total);
        let asked: Vec<NodeId> = picture
            .nodes
            .iter()
            .filter(|node| !matches!(node.host, Some(Err(_))))
            .map(|node| node.id)
            .collect();
        done += picture.nodes.len() - asked.len();
        let answers =
            asked.into_iter().map(async |node| (node, part_of(app, node, plan, until).await));
        let mut answers = futures::stream::iter(answers).buffer_unordered(plan.at_once);
        while let Some((node, answer)) = answers.next().await {
            done += 1;
            app.validations.step(plan.words, done, total);
            if let Some(node) = picture.nodes.iter_mut().find(|it| it.id == node) {
                put(node, plan.part, answer);
            }
        }
    }
    picture
}

/// What the state says, before anybody is asked.
fn known(app: &App, state: &ClusterState) -> Picture {
    let settings = app.fencing.settings;
    let mut nodes: Vec<NodePicture> = state
        .nodes
        .values()
        .map(|record| NodePicture {
            id: record.id,
            name: record.name.to_string(),
            addresses: record.facts.addresses.iter().map(std::net::SocketAddr::ip).collect(),
            certainty: fencing::certainty(state, &settings, record.id),
            fenced: record.fenced.is_some(),
            clock: None,
            host: None,
            disks: None,
            links: None,
            fence: None,
            witness: None,
        })
        .collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    let shares = state.volumes.values().filter(|it| it.coordination.is_none());
    let volumes = shares.map(|it| {
        let path = it.kind.path().to_owned();
        (it.id, VolumePicture { name: it.name.to_string(), path })
    });
    let devices = state.fence_devices.values().map(|it| {
        let nodes = it.nodes.keys().copied().collect();
        (it.id, DevicePicture { name: it.name.to_string(), nodes })
    });
    Picture {
        nodes,
        losses: crate::http::losses(state, &app.ha.fit(state)),
        volumes: volumes.collect(),
        devices: devices.collect(),
        witness: state.witness.as_ref().map(|record| witness(&record.place)),
    }
}

fn witness(place: &WitnessPlace) -> WitnessPicture {
    match place {
        WitnessPlace::Directory { path } => {
            WitnessPicture { place: path.clone(), host: None, path: Some(path.clone()) }
        }
        WitnessPlace::Block { path, .. } => {
            WitnessPicture { place: path.clone(), host: None, path: None }
        }
        WitnessPlace::Object { url, .. } => {
            WitnessPicture { place: url.clone(), host: None, path: None }
        }
        WitnessPlace::Remote { address, .. } => {
            WitnessPicture { place: address.to_string(), host: Some(address.ip()), path: None }
        }
    }
}

/// A part as it goes into the picture.
enum Got {
    Facts(Answer),
    Clock(ClockSample),
}

async fn part_of(app: &Arc<App>, node: NodeId, plan: &Plan, until: Instant) -> Result<Got, String> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err("there was no time left".to_owned());
    }
    let limit = plan.limit.min(left);
    if plan.part == Part::Clock {
        return clock_of(app, node).await.map(Got::Clock);
    }
    question(app, node, plan.part, limit).await.map(Got::Facts)
}

pub(super) async fn question(
    app: &Arc<App>,
    node: NodeId,
    part: Part,
    limit: Duration,
) -> Result<Answer, String> {
    if node == app.node {
        let gathered = tokio::time::timeout(limit, collect::gather(app, part, limit)).await;
        return gathered.map_err(|_| format!("it took longer than {} s", limit.as_secs()));
    }
    // It shall have its word back before this node stops to wait.
    let there = limit.mul_f32(0.9);
    let limit_ms = u64::try_from(there.as_millis()).unwrap_or(u64::MAX);
    let question = Question { version: facts::VERSION, part, limit_ms };
    let answer: Result<Answer, _> = app.peers.ask(node, Method::VALIDATE, &question, limit).await;
    answer.map(Answer::held_to_limits).map_err(|error| error.to_string())
}

/// Compares clocks: the answer is taken to be of the middle of the fastest round trip.
async fn clock_of(app: &Arc<App>, node: NodeId) -> Result<ClockSample, String> {
    if node == app.node {
        return Ok(ClockSample { ahead_ms: 0, round_trip_ms: 0 });
    }
    let mut best: Option<ClockSample> = None;
    for _ in 0..CLOCK_QUESTIONS {
        let (before, sent) = (now(), Instant::now());
        let Answer::Clock(there) = question(app, node, Part::Clock, CLOCK_LIMIT).await? else {
            return Err("its answer is of another kind".to_owned());
        };
        // Our own clock may be set meanwhile; the time that passed is told by one that is not.
        let round_trip_ms = i64::try_from(sent.elapsed().as_millis()).unwrap_or(i64::MAX);
        let millis = |at: model::UnixMillis| i64::try_from(at.get()).unwrap_or(i64::MAX);
        let middle = millis(before).saturating_add(round_trip_ms / 2);
        let sample = ClockSample { ahead_ms: millis(there).saturating_sub(middle), round_trip_ms };
        if best.is_none_or(|best| round_trip_ms < best.round_trip_ms) {
            best = Some(sample);
        }
    }
    best.ok_or_else(|| "it was not asked".to_owned())
}

fn put(node: &mut NodePicture, part: Part, answer: Result<Got, String>) {
    fn take<T>(answer: Result<Got, String>, pick: impl FnOnce(Got) -> Option<T>) -> Asked<T> {
        let other = || "its answer is of another kind".to_owned();
        Some(answer.and_then(|got| pick(got).ok_or_else(other)))
    }
    match part {
        Part::Clock => {
            node.clock = take(answer, |got| match got {
                Got::Clock(sample) => Some(sample),
                Got::Facts(_) => None,
            });
        }
        Part::Host => {
            node.host = take(answer, |got| match got {
                Got::Facts(Answer::Host(host)) => Some(*host),
                _ => None,
            });
        }
        Part::Disks => {
            node.disks = take(answer, |got| match got {
                Got::Facts(Answer::Disks(disks)) => Some(disks),
                _ => None,
            });
        }
        Part::Links => {
            node.links = take(answer, |got| match got {
                Got::Facts(Answer::Links(links)) => Some(links),
                _ => None,
            });
        }
        Part::Fence => {
            node.fence = take(answer, |got| match got {
                Got::Facts(Answer::Fence(said)) => Some(said),
                _ => None,
            });
        }
        Part::Witness => {
            node.witness = take(answer, |got| match got {
                Got::Facts(Answer::Witness(said)) => Some(said),
                _ => None,
            });
        }
    }
}

/// What was learned of each node.
pub(super) fn node_views(picture: &Picture) -> Vec<ValidatedNodeView> {
    let ahead = rules::ahead_of_middle(picture);
    let view = |node: &NodePicture| {
        let host = node.host.clone().and_then(Result::ok);
        let disks = node.disks.clone().and_then(Result::ok).unwrap_or_default();
        let answered = host.is_some();
        let host = host.unwrap_or_default();
        ValidatedNodeView {
            node: node.name.clone(),
            answered,
            muster: host.muster,
            qemu: host.qemu,
            kernel: host.kernel,
            cpu_features: u32::try_from(host.cpu.features.len()).unwrap_or(u32::MAX),
            cpu_vendor: host.cpu.vendor,
            cpu_model: host.cpu.model,
            accelerator: host.accelerator,
            memory: host.memory,
            clock_ahead_ms: ahead.iter().find(|(id, ..)| *id == node.id).map(|(_, ms, _)| *ms),
            addresses: host
                .addresses
                .into_iter()
                .map(|it| ValidatedAddressView {
                    network: it.prefix.map(|prefix| rules::subnet(it.address.ip(), prefix)),
                    address: it.address.to_string(),
                    device: it.device,
                })
                .collect(),
            disks: disks
                .into_iter()
                .map(|disk| ValidatedDiskView {
                    place: match disk.volume {
                        None => "data".to_owned(),
                        Some(id) => {
                            let known = picture.volumes.get(&id);
                            known.map_or_else(|| id.to_string(), |volume| volume.name.clone())
                        }
                    },
                    path: disk.path,
                    filesystem: disk.filesystem,
                    device: disk.device,
                    cache: disk.cache,
                    flushes: disk.flushes,
                    flush_median_us: disk.median_us,
                    flush_p99_us: disk.p99_us,
                })
                .collect(),
        }
    };
    picture.nodes.iter().map(view).collect()
}

/// What was measured between nodes.
pub(super) fn link_views(picture: &Picture) -> Vec<ValidatedLinkView> {
    let mut views = Vec::new();
    for node in &picture.nodes {
        let Some(Ok(links)) = &node.links else { continue };
        views.extend(links.iter().map(|link| ValidatedLinkView {
            from: node.name.clone(),
            to: picture.name(link.to),
            network: rules::network_of(link),
            sent: link.sent,
            answered: link.answered,
            min_us: link.min_us,
            median_us: link.median_us,
            p99_us: link.p99_us,
            jitter_us: link.jitter_us,
            mtu: link.mtu,
            passed: link.passed,
        }));
    }
    views
}
