//! Whether the files of a VM can go with it to another node, before a byte is copied.

use api::migrate::CheckView;
use model::Actor;
use model::Bytes;
use model::ClusterState;
use model::Command;
use model::MigratePolicy;
use model::Millis;
use model::NodeId;
use model::OpId;
use model::OpRequest;
use model::Proposal;
use model::StorageTarget;
use model::VmId;
use model::VmPlace;
use model::VmRecord;
use vm::lifecycle::VmFiles;
use vm::lifecycle::room_for_files;
use vm::lifecycle::taken_by;

use super::check::check;
use crate::app::App;
use crate::app::new_uuid;
use crate::app::now;

/// What the owner finds, and what the target must know to look further.
pub(super) async fn as_owner(
    app: &App,
    state: &ClusterState,
    vm: &VmRecord,
    to: NodeId,
    place: VmPlace,
) -> (CheckView, Option<(StorageTarget, Bytes)>) {
    let target = match admitted(state, vm.id, to, place) {
        Ok(target) => target,
        Err(found) => return (found, None),
    };
    if let Err(error) = app.volumes.ready(vm) {
        let found = (error.to_string(), "see on its node: muster volume list");
        return (check("files", Err(found)), None);
    }
    let (files, below) = (VmFiles::new(&app.volumes.vms_dir(vm), vm.id), images(app, vm, &target));
    // Storage that hangs must not keep others waiting.
    let taken = tokio::task::spawn_blocking(move || taken_by(&files, &below)).await;
    match taken.map_err(std::io::Error::other).flatten() {
        Ok(taken) => {
            let whole = match target.whole.len() {
                0 => String::new(),
                count => format!("; {count} thin copies come as whole disks"),
            };
            (check("files", Ok(format!("they take {taken}{whole}"))), Some((target, taken)))
        }
        Err(error) => {
            let found = (error.to_string(), "see on its node: muster volume list");
            (check("files", Err(found)), None)
        }
    }
}

/// Files of images that come along within disks.
fn images(app: &App, vm: &VmRecord, target: &StorageTarget) -> Vec<std::path::PathBuf> {
    let whole = vm.spec.disks.iter().filter(|disk| target.whole.contains(&disk.id));
    whole
        .filter_map(|disk| match disk.source {
            model::DiskSource::Image { image } => Some(app.volumes.image_path(image)),
            model::DiskSource::Blank => None,
        })
        .collect()
}

/// Whether the state would let it begin, and what it would make of the request.
fn admitted(
    state: &ClusterState,
    vm: VmId,
    to: NodeId,
    place: VmPlace,
) -> Result<StorageTarget, CheckView> {
    let op = OpId::new(new_uuid());
    let storage = Some(Box::new(StorageTarget { place, whole: Vec::new() }));
    let policy = MigratePolicy::default();
    let request = Box::new(OpRequest::VmMigrate { vm, to, policy, storage });
    let command = Command::BeginOp { op, request, limit: Millis::from_secs(1) };
    let proposal = Proposal { at: now(), actor: Actor::new("check"), command };
    // On a copy of it, which shares all that does not change.
    let mut copy = state.clone();
    if let Err(refused) = copy.apply(&proposal) {
        return Err(check("files", Err((refused.to_string(), &refused.hint()))));
    }
    match copy.ops.get(&op).map(|op| &op.request) {
        Some(OpRequest::VmMigrate { storage: Some(target), .. }) => Ok((**target).clone()),
        _ => Err(check("files", Err(("it was not begun".to_owned(), "report this")))),
    }
}

/// What the target finds: whether its place is there, and has room.
pub(super) async fn as_target(
    app: &App,
    vm: &VmRecord,
    target: &StorageTarget,
    needed: Bytes,
) -> Vec<CheckView> {
    let there = vm.in_storage(target);
    if let Err(error) = app.volumes.ready(&there) {
        let found = (error.to_string(), "see on that node: muster volume list");
        return vec![check("volume", Err(found))];
    }
    let dir = app.volumes.vms_dir(&there);
    let room = tokio::task::spawn_blocking(move || room_for_files(&dir, needed)).await;
    let room = room.map_err(|error| error.to_string()).flatten();
    vec![match room {
        Ok(()) => check("room", Ok(format!("there is room for {needed}"))),
        Err(why) => check("room", Err((why, "free space there, or choose another node or volume"))),
    }]
}
