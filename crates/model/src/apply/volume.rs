//! Volumes.

use std::sync::Arc;

use crate::ClusterState;
use crate::EventKind;
use crate::ImageId;
use crate::ImagePlace;
use crate::Name;
use crate::NodeId;
use crate::OpRecord;
use crate::OpRequest;
use crate::Refused;
use crate::Severity;
use crate::Subject;
use crate::VmPlace;
use crate::VolumeId;
use crate::VolumeKind;
use crate::VolumeRecord;
use crate::apply::Context;
use crate::apply::storage;

/// Most volumes: each one is looked at by every node each second.
const VOLUMES_MAX: usize = 256;

/// Longest path (PATH_MAX of Linux, less room for what stands below it).
const PATH_MAX: usize = 3_000;

pub(crate) fn create(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: VolumeId,
    name: &Name,
    kind: &VolumeKind,
) -> Result<(), Refused> {
    admit_new(state, id, name)?;
    if kind.lun().is_some() {
        return Err(Refused::Invalid("a volume on a LUN is made by its coordinator".to_owned()));
    }
    admit_path(state, kind)?;
    let record = VolumeRecord {
        id,
        name: name.clone(),
        kind: kind.clone(),
        created: cx.proposal.at,
        coordination: None,
    };
    state.volumes.insert(id, Arc::new(record));
    let subject = Subject::Volume { id, name: name.to_string() };
    let text = format!("volume {name} at {} can be used", kind.path());
    cx.event(EventKind::VolumeCreated, Severity::Info, subject, text, None);
    Ok(())
}

pub(crate) fn admit_new(state: &ClusterState, id: VolumeId, name: &Name) -> Result<(), Refused> {
    if state.volumes.len() >= VOLUMES_MAX {
        return Err(Refused::Limit { what: "volumes", most: VOLUMES_MAX });
    }
    if state.volumes.contains_key(&id) {
        return Err(Refused::IdTaken(id.to_string()));
    }
    if state.volumes.values().any(|other| other.name.key() == name.key()) {
        return Err(Refused::NameTaken { what: "volume", name: name.clone() });
    }
    Ok(())
}

pub(crate) fn admit_path(state: &ClusterState, kind: &VolumeKind) -> Result<(), Refused> {
    check_path(kind.path())?;
    match state.volumes.values().find(|other| overlap(&other.kind, kind)) {
        None => Ok(()),
        Some(other) => Err(Refused::Invalid(format!(
            "{} lies in or above volume {}, at {}",
            kind.path(),
            other.name,
            other.kind.path()
        ))),
    }
}

fn check_path(path: &str) -> Result<(), Refused> {
    let plain =
        |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
    let fine = path.len() <= PATH_MAX
        && path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(plain));
    if fine {
        return Ok(());
    }
    Err(Refused::Invalid(
        "a share's path begins with / and has no empty parts and no '.' or '..'".to_owned(),
    ))
}

fn overlap(one: &VolumeKind, other: &VolumeKind) -> bool {
    let below = |path: &str, top: &str| {
        path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    below(one.path(), other.path()) || below(other.path(), one.path())
}

pub(crate) fn delete(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: VolumeId,
) -> Result<(), Refused> {
    let record = state.find_volume(&id.to_string())?.clone();
    if record.coordination.is_some() {
        return Err(Refused::Invalid(format!("volume {} lies on a LUN", record.name)));
    }
    admit_unused(state, &record)?;
    forget(state, id);
    let subject = Subject::Volume { id, name: record.name.to_string() };
    let text = format!("volume {} was forgotten; its files stay", record.name);
    cx.event(EventKind::VolumeDeleted, Severity::Info, subject, text, None);
    Ok(())
}

pub(crate) fn forget(state: &mut ClusterState, id: VolumeId) {
    state.volumes.remove(&id);
    storage::forget_copies(state, VmPlace::Volume { volume: id });
}

/// Checks that new files may lie on a volume.
pub(crate) fn admit_use(state: &ClusterState, id: VolumeId) -> Result<(), Refused> {
    let record = state.find_volume(&id.to_string())?;
    match &record.coordination {
        Some(now) if !now.in_use() => Err(Refused::Invalid(format!(
            "volume {} takes no files now; see: muster volume show {}",
            record.name, record.name
        ))),
        _ => Ok(()),
    }
}

/// VMs whose files are on their way to a volume, by name.
pub(crate) fn coming(state: &ClusterState, id: VolumeId) -> impl Iterator<Item = &str> {
    let place = VmPlace::Volume { volume: id };
    let comes = move |op: &&Arc<OpRecord>| match &op.request {
        OpRequest::VmMoveStorage { to, .. } => *to == place,
        OpRequest::VmMigrate { storage: Some(target), .. } => target.place == place,
        _ => false,
    };
    let running = state.ops.values().filter(|op| op.is_running());
    running.filter(comes).map(|op| op.target.as_str())
}

/// Checks that nothing lies on a volume or is on its way there.
pub(crate) fn admit_unused(state: &ClusterState, record: &VolumeRecord) -> Result<(), Refused> {
    let id = record.id;
    let vms = state.vms.values().filter(|vm| vm.volume == Some(id)).map(|vm| vm.name.as_str());
    let images = state
        .images
        .values()
        .filter(|image| matches!(image.place, ImagePlace::Volume { volume, .. } if volume == id))
        .map(|image| image.name.as_str());
    let users: Vec<&str> = vms.chain(images).chain(coming(state, id)).take(5).collect();
    if users.is_empty() {
        return Ok(());
    }
    Err(Refused::InUse { what: "volume", name: record.name.clone(), users: users.join(", ") })
}

/// Checks where an image shall lie.
pub(crate) fn admit_place(state: &ClusterState, place: ImagePlace) -> Result<(), Refused> {
    state.node(place.executor())?;
    match place {
        ImagePlace::Node { .. } => Ok(()),
        ImagePlace::Volume { volume, .. } => admit_use(state, volume),
    }
}

/// Checks that a VM with that volume and owner can read the image: one on a volume can be read
/// everywhere, one of a node only by a VM that cannot leave that node.
pub(crate) fn admit_image(
    state: &ClusterState,
    image: ImageId,
    volume: Option<VolumeId>,
    owner: NodeId,
) -> Result<(), Refused> {
    let Some(image) = state.images.get(&image) else {
        return Err(crate::state::not_found("image", &image.to_string()));
    };
    match (image.place, volume) {
        (ImagePlace::Volume { .. }, _) => Ok(()),
        (ImagePlace::Node { node }, None) if node == owner => Ok(()),
        (ImagePlace::Node { .. }, None) => Err(Refused::Invalid(format!(
            "image {} lies on another node; import it to a volume, or make the VM there",
            image.name
        ))),
        (ImagePlace::Node { .. }, Some(_)) => Err(Refused::Invalid(format!(
            "image {} lies on one node, and a VM on a volume must be able to run on each; import \
             it to a volume: muster image import --volume NAME",
            image.name
        ))),
    }
}
