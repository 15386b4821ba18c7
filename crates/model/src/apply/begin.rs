//! Admission of operations: who may begin what, and what is reserved while it runs.
//!
//! One operation at a time changes a VM. Only turning off may come while another one is under way:
//! it asks that one to stop and waits behind it, so that a hung start can always be ended.

use std::sync::Arc;

use crate::ClusterState;
use crate::DiskSource;
use crate::DiskSpec;
use crate::EventKind;
use crate::ImageId;
use crate::ImageRecord;
use crate::ImageState;
use crate::Millis;
use crate::Name;
use crate::OpId;
use crate::OpRecord;
use crate::OpRequest;
use crate::OpState;
use crate::Power;
use crate::Refused;
use crate::Severity;
use crate::UnixMillis;
use crate::VmId;
use crate::VmRecord;
use crate::VmSpec;
use crate::apply::Context;
use crate::apply::ha;
use crate::apply::image_subject;
use crate::apply::migrate;
use crate::apply::nics;
use crate::apply::platform;
use crate::apply::set;
use crate::apply::storage;
use crate::apply::vm_mut;
use crate::apply::vm_subject;
use crate::apply::volume;
use crate::spec::limits;

/// Most VMs, those in the recycle bin among them (FEATURES.md area 5: 8,000 in a cluster, with
/// room for the bin).
const VMS_MAX: usize = 20_000;

/// Most images.
const IMAGES_MAX: usize = 2_000;

pub(crate) fn begin(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    op: OpId,
    request: &OpRequest,
    limit: Millis,
) -> Result<(), Refused> {
    if state.ops.contains_key(&op) {
        return Err(Refused::IdTaken(op.to_string()));
    }
    let request = &storage::with_whole(state, request)?;
    // Reserved here, so that the end of the operation cannot fail for want of an address.
    nics::with_addresses(state, request)?;
    let target = match request {
        OpRequest::VmCreate { .. } => create(state, cx, op, request)?,
        OpRequest::ImageImport { image, name, .. } => import(state, cx, op, *image, name, request)?,
        OpRequest::ImageDelete { image } => delete_image(state, op, *image)?,
        _ => begin_on_vm(state, op, request)?,
    };
    let at = cx.proposal.at;
    let record = OpRecord {
        id: op,
        request: nics::with_addresses(state, request)?,
        target,
        actor: cx.proposal.actor.to_string(),
        begun: at,
        deadline: at.plus(limit),
        migration: None,
        state: OpState::Running { cancel_requested: false },
    };
    let text = format!("began to {}", record.title());
    let subject = match (request.vm(), request.image()) {
        (Some(vm), _) => vm_subject(state.vm(vm)?),
        (None, Some(image)) => image_subject(find_image(state, image)?),
        (None, None) => return Err(Refused::Invalid("the operation is about nothing".to_owned())),
    };
    cx.event(EventKind::OpBegun, Severity::Info, subject, text, Some(op));
    state.ops.insert(op, Arc::new(record));
    Ok(())
}

pub(crate) fn cancel(
    state: &mut ClusterState,
    _cx: &mut Context<'_>,
    op: OpId,
) -> Result<(), Refused> {
    state.op(op)?;
    let record = state.ops.get_mut(&op).map(Arc::make_mut);
    match record.map(|record| &mut record.state) {
        Some(OpState::Running { cancel_requested }) => {
            *cancel_requested = true;
            Ok(())
        }
        _ => Err(Refused::OpEnded(op)),
    }
}

fn begin_on_vm(state: &mut ClusterState, op: OpId, request: &OpRequest) -> Result<Name, Refused> {
    let id = request.vm().ok_or_else(|| Refused::Invalid("no VM is named".to_owned()))?;
    let vm = state.vm(id)?.clone();
    admit_bin(&vm, request)?;
    admit_busy(state, &vm, request)?;
    admit_power(&vm, request)?;
    admit_change(state, &vm, request)?;

    if let Some(first) = vm.busy()
        && let Some(record) = state.ops.get_mut(&first)
    {
        Arc::make_mut(record).state = OpState::Running { cancel_requested: true };
    }
    if vm.power == Power::Off && matches!(request, OpRequest::VmStart { .. }) {
        platform::freeze(state, id)?;
    }
    let vm = vm_mut(state, id)?;
    if matches!(request, OpRequest::VmStart { .. })
        || (matches!(request, OpRequest::VmResume { .. }) && vm.power == Power::Saved)
    {
        // The right to run is given here, once, and every process carries the number.
        vm.generation = vm.generation.next();
    }
    match request {
        OpRequest::VmMoveStorage { to, .. } => storage::begun(vm, *to),
        OpRequest::VmMigrate { storage: Some(target), .. } => storage::begun(vm, target.place),
        _ => {}
    }
    vm.ops.push(op);
    Ok(vm.name.clone())
}

fn admit_bin(vm: &VmRecord, request: &OpRequest) -> Result<(), Refused> {
    match (request, vm.deleted) {
        (OpRequest::VmPurge { .. }, None) => Err(Refused::NotDeleted(vm.name.clone())),
        (OpRequest::VmPurge { .. }, Some(_)) | (_, None) => Ok(()),
        (_, Some(_)) => Err(Refused::Deleted(vm.name.clone())),
    }
}

fn admit_busy(state: &ClusterState, vm: &VmRecord, request: &OpRequest) -> Result<(), Refused> {
    let Some(first) = vm.busy() else { return Ok(()) };
    let under_way = state.op(first)?;
    let waits_already = vm.ops.len() > 1;
    let stays_out = matches!(
        under_way.request,
        OpRequest::VmOff { .. } | OpRequest::VmCreate { .. } | OpRequest::VmPurge { .. }
    );
    if matches!(request, OpRequest::VmOff { .. }) && !waits_already && !stays_out {
        return Ok(());
    }
    Err(Refused::Busy { target: vm.name.clone(), op: first, verb: under_way.request.verb() })
}

fn admit_power(vm: &VmRecord, request: &OpRequest) -> Result<(), Refused> {
    use Power::Off;
    use Power::Paused;
    use Power::Running;
    use Power::Saved;
    let fits = match request {
        OpRequest::VmStart { .. } => matches!(vm.power, Off | Saved),
        OpRequest::VmShutdown { .. } | OpRequest::VmPause { .. } | OpRequest::VmReset { .. } => {
            vm.power == Running
        }
        // With its files, one without a process goes as it is.
        OpRequest::VmMigrate { storage, .. } => match vm.power {
            Running => true,
            Off | Saved => storage.is_some(),
            Paused => false,
        },
        // While a start is under way the settled state is still off, and it can be ended.
        OpRequest::VmOff { .. } => vm.power != Off || vm.busy().is_some(),
        OpRequest::VmResume { .. } => matches!(vm.power, Paused | Saved),
        OpRequest::VmSave { .. } => matches!(vm.power, Running | Paused),
        OpRequest::VmDelete { .. } => matches!(vm.power, Off | Saved),
        // A saved machine's devices are those of its file.
        OpRequest::DiskAdd { .. }
        | OpRequest::DiskRemove { .. }
        | OpRequest::DiskResize { .. }
        | OpRequest::NicAdd { .. }
        | OpRequest::NicRemove { .. } => vm.power != Saved,
        _ => true,
    };
    if fits {
        return Ok(());
    }
    Err(Refused::WrongPower { verb: request.verb(), target: vm.name.clone(), power: vm.power })
}

/// Checks what the operation would change, against the configuration as it is.
fn admit_change(state: &ClusterState, vm: &VmRecord, request: &OpRequest) -> Result<(), Refused> {
    match request {
        OpRequest::VmSet { change, if_revision, .. } => {
            if let Some(wanted) = *if_revision
                && wanted != vm.revision
            {
                return Err(Refused::Stale { target: vm.name.clone(), is: vm.revision, wanted });
            }
            set::admit(state, vm, change)
        }
        OpRequest::VmMigrate { to, policy, storage, .. } => {
            policy.validate().map_err(Refused::Invalid)?;
            migrate::admit(state, vm, *to, storage.as_deref())
        }
        OpRequest::VmMoveStorage { to, .. } => storage::admit(state, vm, *to),
        OpRequest::DiskAdd { disk, .. } => {
            not_legacy_running(vm, "take another disk")?;
            admit_disk(state, disk)?;
            if let DiskSource::Image { image } = disk.source {
                volume::admit_image(state, image, vm.volume, vm.owner)?;
            }
            let mut spec = vm.spec.clone();
            spec.disks.push(disk.clone());
            Ok(spec.validate()?)
        }
        OpRequest::DiskRemove { disk, .. } => {
            not_legacy_running(vm, "give a disk away")?;
            find_disk(vm, *disk).map(drop)
        }
        OpRequest::DiskResize { disk, size, .. } => {
            let disk = find_disk(vm, *disk)?;
            if *size <= disk.size {
                return Err(Refused::CannotShrink {
                    disk: disk.name.clone(),
                    is: disk.size,
                    wanted: *size,
                });
            }
            DiskSpec { size: *size, ..disk.clone() }.validate().map_err(Refused::from)
        }
        OpRequest::NicAdd { nic, .. } => {
            not_legacy_running(vm, "take another adapter")?;
            let mut spec = vm.spec.clone();
            spec.nics.push(nic.clone());
            spec.validate()?;
            nics::admit(state, vm.id, nic)
        }
        OpRequest::NicRemove { nic, .. } => {
            not_legacy_running(vm, "give an adapter away")?;
            nics::find(vm, *nic).map(drop)
        }
        OpRequest::NicSet { nic, change, .. } => {
            let mut changed = nics::find(vm, *nic)?.clone();
            nics::change(&mut changed, change);
            nics::admit(state, vm.id, &changed)
        }
        _ => Ok(()),
    }
}

fn not_legacy_running(vm: &VmRecord, what: &'static str) -> Result<(), Refused> {
    if vm.spec.profile == crate::DeviceProfile::Legacy && vm.power != Power::Off {
        return Err(Refused::Legacy { target: vm.name.clone(), what });
    }
    Ok(())
}

pub(crate) fn find_disk(vm: &VmRecord, disk: crate::DiskId) -> Result<&DiskSpec, Refused> {
    vm.spec.disk(disk).ok_or_else(|| crate::state::not_found("disk", &disk.to_string()))
}

/// A disk that is a thin copy needs an image that is ready and not larger.
fn admit_disk(state: &ClusterState, disk: &DiskSpec) -> Result<(), Refused> {
    let used = |vm: &Arc<VmRecord>| vm.spec.disk(disk.id).is_some();
    if state.vms.values().any(used) {
        return Err(Refused::IdTaken(disk.id.to_string()));
    }
    let DiskSource::Image { image } = disk.source else { return Ok(()) };
    let image = find_image(state, image)?;
    let Some(least) = image.virtual_size() else {
        return Err(Refused::ImageNotReady(image.name.clone()));
    };
    if disk.size < least {
        return Err(Refused::SmallerThanImage {
            disk: disk.name.clone(),
            wanted: disk.size,
            least,
        });
    }
    Ok(())
}

fn create(
    state: &mut ClusterState,
    cx: &Context<'_>,
    op: OpId,
    request: &OpRequest,
) -> Result<Name, Refused> {
    let OpRequest::VmCreate { vm, name, spec, pinned, owner, volume } = request else {
        return Err(Refused::Invalid("not a creation".to_owned()));
    };
    admit_create(state, *vm, name, spec)?;
    state.node(*owner)?;
    if let Some(volume) = volume {
        volume::admit_use(state, *volume)?;
    }
    for disk in &spec.disks {
        if let DiskSource::Image { image } = disk.source {
            volume::admit_image(state, image, *volume, *owner)?;
        }
    }
    let mut spec = VmSpec::clone(spec);
    nics::assign_addresses(state, *vm, &mut spec.nics)?;
    let record = VmRecord {
        id: *vm,
        name: name.clone(),
        spec,
        pinned: pinned.clone(),
        owner: *owner,
        slot: free_slot(state),
        generation: crate::Generation::default(),
        revision: crate::Revision::new(1),
        power: Power::Off,
        saved: None,
        ops: vec![op],
        last_exit: None,
        crashes: Vec::new(),
        volume: *volume,
        takeovers: Vec::new(),
        answered: None,
        moving: None,
        arrival: None,
        cpu: None,
        copies: Vec::new(),
        created: created_at(cx),
        deleted: None,
    };
    state.vm_names.insert(name.key(), *vm);
    state.vms.insert(*vm, Arc::new(record));
    Ok(name.clone())
}

fn created_at(cx: &Context<'_>) -> UnixMillis {
    cx.proposal.at
}

pub(crate) fn admit_create(
    state: &ClusterState,
    vm: VmId,
    name: &Name,
    spec: &VmSpec,
) -> Result<(), Refused> {
    if state.vms.len() >= VMS_MAX {
        return Err(Refused::Limit { what: "VMs", most: VMS_MAX });
    }
    if state.vms.contains_key(&vm) {
        return Err(Refused::IdTaken(vm.to_string()));
    }
    set::name_free(state, name, None)?;
    spec.validate()?;
    ha::admit_after(state, name, &spec.ha.after)?;
    for disk in &spec.disks {
        admit_disk(state, disk)?;
    }
    for nic in &spec.nics {
        nics::admit(state, vm, nic)?;
    }
    Ok(())
}

/// The lowest number that no VM has. Numbers above the count of VMs need not be looked at: one
/// below is free then.
pub(crate) fn free_slot(state: &ClusterState) -> u32 {
    let mut used = vec![false; state.vms.len() + 1];
    for vm in state.vms.values() {
        if let Some(slot) = used.get_mut(vm.slot as usize) {
            *slot = true;
        }
    }
    let free = used.iter().position(|used| !used).unwrap_or(used.len());
    u32::try_from(free).unwrap_or(u32::MAX)
}

fn import(
    state: &mut ClusterState,
    cx: &Context<'_>,
    op: OpId,
    image: ImageId,
    name: &Name,
    request: &OpRequest,
) -> Result<Name, Refused> {
    let OpRequest::ImageImport { source, format, sha256, place, .. } = request else {
        return Err(Refused::Invalid("not an import".to_owned()));
    };
    admit_image(state, image, name)?;
    if let Some(sum) = sha256
        && (sum.len() != 64 || !sum.bytes().all(|b| b.is_ascii_hexdigit()))
    {
        return Err(Refused::Invalid("a SHA-256 has 64 hexadecimal digits".to_owned()));
    }
    volume::admit_place(state, *place)?;
    let (crate::ImageSource::File { path: from } | crate::ImageSource::Url { url: from }) = source;
    if from.is_empty() || from.len() > limits::TEXT_MAX || from.contains('\0') {
        return Err(Refused::Invalid("the source is empty or too long".to_owned()));
    }
    let record = ImageRecord {
        id: image,
        name: name.clone(),
        source: source.clone(),
        format: *format,
        state: ImageState::Importing { op },
        place: *place,
        created: cx.proposal.at,
    };
    state.images.insert(image, Arc::new(record));
    Ok(name.clone())
}

/// Checks that there may be another image, of this id and name.
pub(crate) fn admit_image(
    state: &ClusterState,
    image: ImageId,
    name: &Name,
) -> Result<(), Refused> {
    if state.images.len() >= IMAGES_MAX {
        return Err(Refused::Limit { what: "images", most: IMAGES_MAX });
    }
    if state.images.contains_key(&image) {
        return Err(Refused::IdTaken(image.to_string()));
    }
    if state.images.values().any(|other| other.name.key() == name.key()) {
        return Err(Refused::NameTaken { what: "image", name: name.clone() });
    }
    Ok(())
}

fn delete_image(state: &mut ClusterState, op: OpId, image: ImageId) -> Result<Name, Refused> {
    let record = find_image(state, image)?;
    let name = record.name.clone();
    match record.state {
        ImageState::Importing { op } => {
            let verb = crate::Verb::ImageImport;
            return Err(Refused::Busy { target: name, op, verb });
        }
        ImageState::Deleting { op } => {
            let verb = crate::Verb::ImageDelete;
            return Err(Refused::Busy { target: name, op, verb });
        }
        ImageState::Ready { .. } => {}
    }
    let users = state.users_of_image(image);
    if !users.is_empty() {
        let names: Vec<&str> = users.iter().take(5).map(|name| name.as_str()).collect();
        let users = format!("{} VMs: {}", users.len(), names.join(", "));
        return Err(Refused::InUse { what: "image", name, users });
    }
    if let Some(record) = state.images.get_mut(&image) {
        Arc::make_mut(record).state = ImageState::Deleting { op };
    }
    Ok(name)
}

fn find_image(state: &ClusterState, image: ImageId) -> Result<&Arc<ImageRecord>, Refused> {
    state.images.get(&image).ok_or_else(|| crate::state::not_found("image", &image.to_string()))
}
