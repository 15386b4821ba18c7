//! Volumes on LUNs: who mounts them. The rules are in the head comment of `crate::lun`.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ClusterState;
use crate::Coordination;
use crate::EventKind;
use crate::FsKind;
use crate::LunContents;
use crate::LunId;
use crate::LunPhase;
use crate::LunSeen;
use crate::Membership;
use crate::Name;
use crate::NodeId;
use crate::NodeRecord;
use crate::Power;
use crate::Refused;
use crate::Severity;
use crate::Speaker;
use crate::Subject;
use crate::VolumeId;
use crate::VolumeKind;
use crate::VolumeRecord;
use crate::apply::Context;
use crate::apply::ha::admit_epoch;
use crate::apply::ha::node_mut;
use crate::apply::volume;
use crate::ends_mounts;

/// Where volumes on LUNs are mounted, on every node.
const TOP: &str = "/muster/volumes";

/// Most LUNs that a node tells of: each is in the state of all.
const LUNS_MAX: usize = 256;

/// Most paths of a LUN on a node.
const PATHS_MAX: usize = 32;

/// Length of a UUID as text.
const UUID_LENGTH: usize = 36;

/// Longest text of an observation: a path, or why it cannot be read.
const TEXT_MAX: usize = 256;

/// What a volume on a LUN is to be.
pub(crate) struct Plan<'a> {
    pub(crate) id: VolumeId,
    pub(crate) name: &'a Name,
    pub(crate) lun: &'a LunId,
    pub(crate) fs: FsKind,
    pub(crate) uuid: &'a str,
    pub(crate) adopt: bool,
    pub(crate) by: Speaker,
}

pub(crate) fn seen(
    state: &mut ClusterState,
    node: NodeId,
    luns: &BTreeMap<LunId, LunSeen>,
) -> Result<(), Refused> {
    if luns.len() > LUNS_MAX {
        return Err(Refused::Limit { what: "LUNs of a node", most: LUNS_MAX });
    }
    let long = |seen: &LunSeen| {
        let text = seen.contents.words().len() > TEXT_MAX;
        text || seen.paths.len() > PATHS_MAX || seen.paths.iter().any(|path| path.len() > TEXT_MAX)
    };
    if luns.values().any(long) {
        return Err(Refused::Invalid("what is told of a LUN is too long".to_owned()));
    }
    node_mut(state, node)?.luns.clone_from(luns);
    Ok(())
}

/// The LUN is the volume's from here on; its holder formats it, or looks at what is on it.
pub(crate) fn create(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    plan: &Plan<'_>,
) -> Result<(), Refused> {
    volume::admit_new(state, plan.id, plan.name)?;
    let node = speaker(state, plan.by)?;
    let Some(seen) = node.luns.get(plan.lun) else {
        return Err(Refused::NoLun(plan.lun.clone()));
    };
    if let Some(other) = state.volumes.values().find(|other| other.kind.lun() == Some(plan.lun)) {
        let users = format!("volume {}", other.name);
        return Err(Refused::LunInUse { lun: plan.lun.clone(), users });
    }
    admit_contents(plan, seen)?;
    let kind = VolumeKind::Lun {
        path: format!("{TOP}/{}", plan.name),
        lun: plan.lun.clone(),
        fs: plan.fs,
        uuid: plan.uuid.to_owned(),
        fences: seen.fences,
    };
    volume::admit_path(state, &kind)?;
    let coordination = Coordination {
        epoch: 1,
        holder: Some(plan.by.node),
        wanted: None,
        maintenance: false,
        phase: LunPhase::Preparing { adopt: plan.adopt },
    };
    let text = format!("volume {} is being made on LUN {} by {}", plan.name, plan.lun, node.name);
    let record = VolumeRecord {
        id: plan.id,
        name: plan.name.clone(),
        kind,
        created: cx.proposal.at,
        coordination: Some(coordination),
    };
    event(cx, EventKind::VolumeCreated, Severity::Info, &record, text);
    state.volumes.insert(plan.id, Arc::new(record));
    Ok(())
}

/// A LUN that holds something is not formatted, and only what a volume can be is adopted. Whoever
/// formats it looks again, right before.
fn admit_contents(plan: &Plan<'_>, seen: &LunSeen) -> Result<(), Refused> {
    if plan.uuid.len() != UUID_LENGTH || seen.read_only {
        return Err(Refused::Invalid(format!("LUN {} cannot be written", plan.lun)));
    }
    let fine = match &seen.contents {
        LunContents::Empty => !plan.adopt,
        LunContents::Volume { fs, uuid } => plan.adopt && *fs == plan.fs && uuid == plan.uuid,
        // What is reserved is in use by somebody who is not known here: another cluster, another system.
        LunContents::Foreign { .. }
        | LunContents::Reserved
        | LunContents::Unknown
        | LunContents::Unreadable { .. } => false,
    };
    if fine {
        return Ok(());
    }
    Err(Refused::LunHolds { lun: plan.lun.clone(), what: seen.contents.words() })
}

pub(crate) fn prepared(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: VolumeId,
    epoch: u64,
    by: Speaker,
) -> Result<(), Refused> {
    let (record, now) = held_by(state, id, epoch, by)?;
    match now.phase {
        LunPhase::Ready => return Ok(()),
        LunPhase::Leaving { .. } => return Err(leaving(&record)),
        LunPhase::Preparing { .. } => {}
    }
    change(state, id, |it| it.phase = LunPhase::Ready)?;
    let text = format!("volume {} at {} can be used", record.name, record.kind.path());
    event(cx, EventKind::VolumeCreated, Severity::Info, &record, text);
    Ok(())
}

/// The holder has unmounted it.
pub(crate) fn give_back(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: VolumeId,
    epoch: u64,
    by: Speaker,
) -> Result<(), Refused> {
    let (record, _) = held_by(state, id, epoch, by)?;
    change(state, id, |it| {
        it.holder = None;
        it.wanted = it.wanted.filter(|wanted| *wanted != by.node);
    })?;
    let text = format!("{} has given volume {} back", name_of(state, by.node), record.name);
    event(cx, EventKind::VolumeCoordinator, Severity::Info, &record, text);
    Ok(())
}

/// A node becomes the coordinator.
pub(crate) fn claim(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: VolumeId,
    epoch: u64,
    by: Speaker,
) -> Result<(), Refused> {
    let node = speaker(state, by)?;
    let record = state.find_volume(&id.to_string())?.clone();
    let now = coordination(&record)?;
    admit_claim(state, &record, now, epoch, node)?;
    let (text, severity) = match now.holder {
        None => (format!("{} coordinates volume {}", node.name, record.name), Severity::Info),
        Some(lost) => (
            format!(
                "{} has taken volume {} over from {}, which is fenced",
                node.name,
                record.name,
                name_of(state, lost)
            ),
            Severity::Warning,
        ),
    };
    let grown = epoch.checked_add(1);
    let grown = grown.ok_or_else(|| Refused::Invalid("no epoch is left".to_owned()))?;
    change(state, id, |it| {
        it.epoch = grown;
        it.holder = Some(by.node);
        it.wanted = it.wanted.filter(|wanted| *wanted != by.node);
    })?;
    event(cx, EventKind::VolumeCoordinator, severity, &record, text);
    Ok(())
}

fn admit_claim(
    state: &ClusterState,
    record: &VolumeRecord,
    now: &Coordination,
    epoch: u64,
    node: &NodeRecord,
) -> Result<(), Refused> {
    let refuse = |why: String| Err(Refused::Invalid(why));
    if now.epoch != epoch {
        return refuse(format!(
            "epoch {epoch} of volume {} is over; it is {}",
            record.name, now.epoch
        ));
    }
    if matches!(now.phase, LunPhase::Ready) && now.maintenance {
        return refuse(format!("volume {} is in maintenance", record.name));
    }
    if node.membership != Membership::Member {
        return refuse(format!("{} is not a member any more", node.name));
    }
    match now.holder {
        Some(holder) if holder == node.id => {
            refuse(format!("{} coordinates volume {} already", node.name, record.name))
        }
        Some(holder) => match &state.node(holder)?.fenced {
            Some(fenced) if ends_mounts(&fenced.proof, record.kind.fences()) => Ok(()),
            _ => refuse(format!(
                "{} may still write to volume {}",
                name_of(state, holder),
                record.name
            )),
        },
        None => match now.wanted {
            Some(wanted) if wanted != node.id && is_well(state, wanted) => refuse(format!(
                "volume {} is on its way to {}",
                record.name,
                name_of(state, wanted)
            )),
            _ => Ok(()),
        },
    }
}

/// An administrator wants another coordinator.
pub(crate) fn hand_to(state: &mut ClusterState, id: VolumeId, to: NodeId) -> Result<(), Refused> {
    let record = state.find_volume(&id.to_string())?.clone();
    let now = coordination(&record)?;
    if !matches!(now.phase, LunPhase::Ready) || now.maintenance {
        let name = &record.name;
        return Err(Refused::Invalid(format!(
            "volume {name} is not in use, so nobody can have it"
        )));
    }
    let node = state.node(to)?;
    if !is_well(state, to) {
        return Err(Refused::Invalid(format!("{} cannot take it now", node.name)));
    }
    if record.kind.lun().is_none_or(|lun| !node.luns.contains_key(lun)) {
        return Err(Refused::NoPath { node: node.name.clone(), volume: record.name.clone() });
    }
    if now.holder == Some(to) {
        return change(state, id, |it| it.wanted = None);
    }
    change(state, id, |it| it.wanted = Some(to))
}

pub(crate) fn maintenance(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: VolumeId,
    on: bool,
) -> Result<(), Refused> {
    let record = state.find_volume(&id.to_string())?.clone();
    let now = coordination(&record)?;
    if !matches!(now.phase, LunPhase::Ready) {
        return Err(Refused::Invalid(format!("volume {} is not ready", record.name)));
    }
    if now.maintenance == on {
        return Ok(());
    }
    if on {
        admit_unmount(state, &record)?;
    }
    change(state, id, |it| it.maintenance = on)?;
    let word = if on { "begins" } else { "is over" };
    let text = format!("maintenance of volume {} {word}", record.name);
    event(cx, EventKind::VolumeMaintenance, Severity::Info, &record, text);
    Ok(())
}

/// It is to be forgotten, with its file system or without.
pub(crate) fn leave(state: &mut ClusterState, id: VolumeId, wipe: bool) -> Result<(), Refused> {
    let record = state.find_volume(&id.to_string())?.clone();
    coordination(&record)?;
    volume::admit_unused(state, &record)?;
    change(state, id, |it| {
        it.phase = LunPhase::Leaving { wipe };
        it.wanted = None;
        it.maintenance = false;
    })
}

/// The holder has unmounted it, and wiped it where that was wanted.
pub(crate) fn gone(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: VolumeId,
    epoch: u64,
    by: Speaker,
) -> Result<(), Refused> {
    let (record, now) = held_by(state, id, epoch, by)?;
    let LunPhase::Leaving { wipe } = now.phase else {
        return Err(Refused::Invalid(format!("volume {} is to stay", record.name)));
    };
    let others = crate::attached_elsewhere(state, &record, by.node);
    if !others.is_empty() {
        return Err(Refused::InUse {
            what: "volume",
            name: record.name.clone(),
            users: others.join(", "),
        });
    }
    let what = if wipe { "its file system is destroyed" } else { "its file system stays" };
    let text = format!("volume {} was forgotten; {what}", record.name);
    event(cx, EventKind::VolumeDeleted, Severity::Info, &record, text);
    volume::forget(state, id);
    Ok(())
}

/// The volumes that a node holds, by name: it cannot go before it has given them back.
pub(crate) fn held(state: &ClusterState, node: NodeId) -> Vec<&str> {
    let holds = |it: &&Arc<VolumeRecord>| {
        it.coordination.as_ref().is_some_and(|it| it.holder == Some(node))
    };
    state.volumes.values().filter(holds).map(|it| it.name.as_str()).collect()
}

/// Forgets the wish for a node that is gone.
pub(crate) fn not_wanted(state: &mut ClusterState, node: NodeId) {
    let wants = |it: &Coordination| it.wanted == Some(node);
    let which: Vec<VolumeId> = state
        .volumes
        .values()
        .filter(|it| it.coordination.as_ref().is_some_and(wants))
        .map(|it| it.id)
        .collect();
    for id in which {
        // It was just found.
        let _ = change(state, id, |it| it.wanted = None);
    }
}

/// Files of running machines keep it mounted, and so do files that come.
fn admit_unmount(state: &ClusterState, record: &VolumeRecord) -> Result<(), Refused> {
    let on_it = state.vms.values().filter(|vm| vm.volume == Some(record.id));
    let open = on_it
        .filter(|vm| matches!(vm.power, Power::Running | Power::Paused) || vm.busy().is_some());
    let open = open.map(|vm| vm.name.as_str());
    let users: Vec<&str> = open.chain(volume::coming(state, record.id)).take(5).collect();
    if users.is_empty() {
        return Ok(());
    }
    Err(Refused::InUse { what: "volume", name: record.name.clone(), users: users.join(", ") })
}

fn is_well(state: &ClusterState, node: NodeId) -> bool {
    let node = state.nodes.get(&node);
    node.is_some_and(|it| it.fenced.is_none() && it.membership == Membership::Member)
}

/// The node that speaks, in its present epoch and not fenced.
fn speaker(state: &ClusterState, by: Speaker) -> Result<&NodeRecord, Refused> {
    let node = state.node(by.node)?;
    admit_epoch(node, by.epoch)?;
    if node.fenced.is_some() {
        return Err(Refused::Invalid(format!("{} is fenced", node.name)));
    }
    Ok(node)
}

fn held_by(
    state: &ClusterState,
    id: VolumeId,
    epoch: u64,
    by: Speaker,
) -> Result<(Arc<VolumeRecord>, Coordination), Refused> {
    speaker(state, by)?;
    let record = state.find_volume(&id.to_string())?.clone();
    let now = coordination(&record)?.clone();
    if now.epoch == epoch && now.holder == Some(by.node) {
        return Ok((record, now));
    }
    Err(Refused::Invalid(format!(
        "volume {} is another coordinator's by now, in epoch {}",
        record.name, now.epoch
    )))
}

fn coordination(record: &VolumeRecord) -> Result<&Coordination, Refused> {
    record.coordination.as_ref().ok_or_else(|| Refused::NotOnLun(record.name.clone()))
}

fn leaving(record: &VolumeRecord) -> Refused {
    Refused::Invalid(format!("volume {} is being taken away", record.name))
}

fn change(
    state: &mut ClusterState,
    id: VolumeId,
    change: impl FnOnce(&mut Coordination),
) -> Result<(), Refused> {
    let record = state.volumes.get_mut(&id).map(Arc::make_mut);
    let Some(now) = record.and_then(|record| record.coordination.as_mut()) else {
        return Err(crate::state::not_found("volume", &id.to_string()));
    };
    let before = now.epoch;
    change(now);
    assert!(now.epoch >= before, "the epoch of a volume goes back");
    Ok(())
}

fn name_of(state: &ClusterState, node: NodeId) -> String {
    state.nodes.get(&node).map_or_else(|| node.to_string(), |it| it.name.to_string())
}

fn event(
    cx: &mut Context<'_>,
    kind: EventKind,
    severity: Severity,
    record: &VolumeRecord,
    text: String,
) {
    let subject = Subject::Volume { id: record.id, name: record.name.to_string() };
    cx.event(kind, severity, subject, text, None);
}
