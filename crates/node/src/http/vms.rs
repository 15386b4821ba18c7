//! Virtual machines: listing, creating, changing, power.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::ApiError;
use api::ErrorKind;
use api::endpoint as ep;
use api::endpoint::Endpoint;
use api::settings::SettingsChangeView;
use api::types::ConsistencyView;
use api::types::FirstBootFileView;
use api::types::FirstBootView;
use api::types::FreezeView;
use api::types::OpView;
use api::types::VmCreateBody;
use api::types::VmSummary;
use api::types::VmView;
use futures::future::join_all;
use model::Bytes;
use model::ClusterState;
use model::Command;
use model::CpuSpec;
use model::MemorySpec;
use model::Millis;
use model::OpId;
use model::OpRequest;
use model::Pinned;
use model::Power;
use model::SettingsChange;
use model::VmId;
use model::VmRecord;
use model::VmSpec;
use peer::Method;

use crate::app::App;
use crate::app::new_uuid;
use crate::host;
use crate::http::Call;
use crate::http::Mounts;
use crate::http::bad_request;
use crate::http::devices;
use crate::platform;
use crate::views::promised;
use vm::cloudinit::Seed;
use vm::cloudinit::SeedInput;
use vm::guest::GuestServices;
use vm::guest::ServiceError;

/// Version of a VM configuration's meaning that new VMs get.
const CONFIG_VERSION: u32 = 1;

/// Memory of a VM that was created without saying how much.
const MEMORY_DEFAULT: Bytes = Bytes::gib(1);

/// Limits of operations. A verb that waits for nobody is short; one that moves memory or disks has
/// time for a slow disk.
pub(crate) mod time {
    use model::Millis;

    /// Nothing but our own work and a quick answer of QEMU.
    pub(crate) const QUICK: Millis = Millis::from_secs(60);
    /// Starting, restoring, saving, making disks.
    pub(crate) const LONG: Millis = Millis::from_secs(900);
    /// The guest has to do something: release a device, bring memory online.
    pub(crate) const GUEST: Millis = Millis::from_secs(90);
    /// Sending memory while the guest runs: 256 GiB over 1 Gb/s, twice.
    pub(crate) const MIGRATE: Millis = Millis::from_secs(5400);
    /// Copying disks while the guest runs: 30 TB at 100 MB/s, with room to spare.
    pub(crate) const STORAGE: Millis = Millis::from_secs(4 * 24 * 3600);
    /// Beyond the guest's patience in a shutdown, for ending the process.
    pub(crate) const SHUTDOWN_SPARE: Millis = Millis::from_secs(30);
    /// Fetching and converting an image.
    pub(crate) const IMPORT: Millis = Millis::from_secs(6 * 3600);
}

pub(crate) fn mount(mounts: &mut Mounts) {
    mounts.json::<ep::VmList, _, _>(list);
    mounts.json::<ep::VmShow, _, _>(show);
    mounts.json::<ep::VmHistory, _, _>(history);
    mounts.json::<ep::VmCreate, _, _>(create);
    mounts.json::<ep::VmFirstBoot, _, _>(first_boot);
    mounts.json::<ep::VmSet, _, _>(set);
    mounts.json::<ep::VmDelete, _, _>(delete);
    mounts.json::<ep::VmUndelete, _, _>(undelete);
    mounts.json::<ep::VmUpgrade, _, _>(upgrade);
    mounts.json::<ep::VmStart, _, _>(start);
    mounts.json::<ep::VmShutdown, _, _>(shutdown);
    mounts.json::<ep::VmOff, _, _>(|call| simple(call, |vm| OpRequest::VmOff { vm }, time::QUICK));
    mounts.json::<ep::VmPause, _, _>(|call| {
        simple(call, |vm| OpRequest::VmPause { vm }, time::QUICK)
    });
    mounts.json::<ep::VmResume, _, _>(resume);
    mounts.json::<ep::VmSave, _, _>(|call| simple(call, |vm| OpRequest::VmSave { vm }, time::LONG));
    mounts.json::<ep::VmReset, _, _>(|call| {
        simple(call, |vm| OpRequest::VmReset { vm }, time::QUICK)
    });
    mounts.json::<ep::VmFreeze, _, _>(freeze);
    mounts.json::<ep::VmThaw, _, _>(thaw);
}

/// The VM that the path's first parameter names.
pub(crate) fn find_vm<E: Endpoint>(call: &Call<E>) -> Result<Arc<VmRecord>, ApiError> {
    Ok(call.app.truth.state().find_vm(call.param(0))?.clone())
}

/// Begins an operation and shows it.
pub(crate) async fn begin<E: Endpoint>(
    call: &Call<E>,
    request: OpRequest,
    limit: Millis,
) -> Result<OpView, ApiError> {
    let op = call.app.begin(&call.caller.actor, request, limit).await?;
    view_op(&call.app, op)
}

pub(crate) fn view_op(app: &App, op: OpId) -> Result<OpView, ApiError> {
    Ok(app.op_view(app.truth.state().op(op)?))
}

async fn simple<E: Endpoint>(
    call: Call<E>,
    request: impl FnOnce(VmId) -> OpRequest,
    limit: Millis,
) -> Result<OpView, ApiError> {
    let vm = find_vm(&call)?.id;
    begin(&call, request(vm), limit).await
}

/// How long the list waits for a node: one that is away must not make it useless.
const ASK_TIMEOUT: Duration = Duration::from_millis(1_500);

/// What other nodes see of their machines. Of those that do not answer, the state has to do.
async fn seen_elsewhere(app: &App, state: &ClusterState) -> HashMap<VmId, VmSummary> {
    let owners: BTreeSet<_> =
        state.vms.values().map(|vm| vm.owner).filter(|owner| *owner != app.node).collect();
    let asked = owners.into_iter().map(|owner| async move {
        let seen: Result<Vec<VmSummary>, _> =
            app.peers.ask(owner, Method::MACHINES, &(), ASK_TIMEOUT).await;
        seen.unwrap_or_default()
    });
    let seen = join_all(asked).await;
    seen.into_iter().flatten().map(|summary| (summary.id, summary)).collect()
}

async fn list(call: Call<ep::VmList>) -> Result<Vec<VmSummary>, ApiError> {
    let state = call.app.truth.state();
    let mut seen = seen_elsewhere(&call.app, &state).await;
    let tag = call.query.tag.as_ref().map(|tag| tag.to_ascii_lowercase());
    let mut list: Vec<VmSummary> = state
        .vms
        .values()
        .filter(|vm| vm.deleted.is_some() == call.query.deleted)
        .filter(|vm| match &tag {
            Some(tag) => vm.spec.tags.iter().any(|it| it.key() == *tag),
            None => true,
        })
        .map(|vm| match seen.remove(&vm.id) {
            Some(summary) => summary,
            None => call.app.vm_summary(&state, vm),
        })
        .collect();
    list.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(list)
}

async fn show(call: Call<ep::VmShow>) -> Result<VmView, ApiError> {
    let state = call.app.truth.state();
    let vm = state.find_vm(call.param(0))?;
    Ok(call.app.vm_view(&state, vm))
}

async fn history(call: Call<ep::VmHistory>) -> Result<Vec<SettingsChangeView>, ApiError> {
    let state = call.app.truth.state();
    let vm = state.find_vm(call.param(0))?.id;
    let changes = state.history.get(&vm);
    let newest_first = changes.iter().flat_map(|changes| changes.iter().rev());
    let view = |change: &SettingsChange| SettingsChangeView {
        revision: change.revision,
        at: change.at,
        by: change.by.clone(),
        op: change.op,
        fields: change.fields(),
        back: change.back(),
    };
    Ok(newest_first.map(view).collect())
}

async fn create(call: Call<ep::VmCreate>) -> Result<OpView, ApiError> {
    let state = call.app.truth.state();
    let spec = spec(&state, &call.body)?;
    fits_host(&spec.memory)?;
    let ability = call.app.ability().await.map_err(|error| {
        ApiError::new(
            ErrorKind::Unavailable,
            "no_engine",
            crate::ports::chain(&error),
            "see what the node says: muster node show",
        )
    })?;
    let volume = match &call.body.volume {
        None => None,
        Some(volume) => Some(state.find_volume(volume)?.id),
    };
    let request = OpRequest::VmCreate {
        vm: VmId::new(new_uuid()),
        name: call.body.name.clone(),
        pinned: Pinned {
            config_version: CONFIG_VERSION,
            machine_type: platform::machine_type(&state, &ability, spec.profile),
            cpu_model: ability.cpu_model,
        },
        spec: Box::new(spec),
        owner: call.app.node,
        volume,
    };
    begin(&call, request, time::LONG).await
}

/// The same words that a machine of this kind would get on its disc, made by the same code.
async fn first_boot(call: Call<ep::VmFirstBoot>) -> Result<FirstBootView, ApiError> {
    let spec = spec(&call.app.truth.state(), &call.body)?;
    let Some(config) = &spec.cloud_init else { return Ok(FirstBootView::default()) };
    let (vm, name) = (VmId::new(new_uuid()), &call.body.name);
    let seed = Seed::build(SeedInput { vm, name, config, nics: &spec.nics }).map_err(|error| {
        let hint = "change the first-boot configuration and look again";
        ApiError::new(ErrorKind::BadRequest, "first_boot", error.to_string(), hint)
    })?;
    let file = |(name, bytes): (&str, &[u8])| FirstBootFileView {
        name: name.to_owned(),
        text: String::from_utf8_lossy(bytes).into_owned(),
    };
    Ok(FirstBootView { files: seed.files().into_iter().map(file).collect() })
}

/// The whole configuration from what the user said.
fn spec(state: &ClusterState, body: &VmCreateBody) -> Result<VmSpec, ApiError> {
    let count = body.cpus.unwrap_or(1);
    let size = body.memory.unwrap_or(MEMORY_DEFAULT);
    let mut spec = VmSpec {
        cpus: CpuSpec {
            count,
            max: body.cpus_max.unwrap_or(count).max(count),
            weight: 100,
            cap_percent: None,
            compat: body.cpu_compat,
        },
        memory: MemorySpec { size, max: body.memory_max.unwrap_or(size).max(size), balloon: None },
        firmware: body.firmware,
        profile: body.profile,
        services: body.services,
        cloud_init: body.cloud_init.clone(),
        on_crash: body.on_crash,
        ha: body.ha.clone(),
        description: body.description.clone(),
        tags: body.tags.clone(),
        keys: body.keys.clone(),
        ..VmSpec::new(count, size)
    };
    for disk in &body.disks {
        let disk = devices::disk_spec(state, &spec.disks, disk)?;
        spec.disks.push(disk);
    }
    for nic in &body.nics {
        let nic = devices::nic_spec(&spec.nics, nic)?;
        spec.nics.push(nic);
    }
    spec.validate().map_err(model::Refused::from)?;
    Ok(spec)
}

/// A VM that could never be started here is refused at once, and so is a maximum that it could
/// never reach. The maximum promises nothing: what a VM has is promised when it starts, and what it
/// gets beyond that when it gets it (see [`has_room`]).
fn fits_host(memory: &MemorySpec) -> Result<(), ApiError> {
    let host = host::memory().total;
    let (what, hint) = if memory.size > host {
        (format!("{} of memory is", memory.size), "give it less memory")
    } else if memory.max > host {
        (format!("a maximum of {} of memory is", memory.max), "lower its maximum")
    } else {
        return Ok(());
    };
    let message = format!("{what} more than this host has ({host})");
    Err(ApiError::new(ErrorKind::BadRequest, "host_memory", message, hint))
}

async fn set(call: Call<ep::VmSet>) -> Result<OpView, ApiError> {
    let vm = find_vm(&call)?;
    let (was, change) = (vm.spec.memory, &call.body);
    if change.memory.is_some() || change.memory_max.is_some() {
        let size = change.memory.unwrap_or(was.size);
        let max = change.memory_max.unwrap_or(was.max).max(size);
        fits_host(&MemorySpec { size, max, balloon: None })?;
        if size > was.size && matches!(vm.power, Power::Running | Power::Paused) {
            has_room(&call.app, &vm, size.saturating_sub(was.size))?;
        }
    }
    let request = OpRequest::VmSet {
        vm: vm.id,
        change: Box::new(call.body.clone()),
        if_revision: call.query.if_revision,
    };
    begin(&call, request, time::GUEST).await
}

async fn delete(call: Call<ep::VmDelete>) -> Result<OpView, ApiError> {
    let vm = if call.query.purge { find_deleted(&call)? } else { find_vm(&call)? };
    let request = if call.query.purge {
        OpRequest::VmPurge { vm: vm.id }
    } else {
        OpRequest::VmDelete { vm: vm.id }
    };
    begin(&call, request, time::LONG).await
}

/// A VM in the recycle bin, by id or by the name it had, the one deleted last first.
fn find_deleted<E: Endpoint>(call: &Call<E>) -> Result<Arc<VmRecord>, ApiError> {
    let state = call.app.truth.state();
    let wanted = call.param(0);
    let found = state
        .vms
        .values()
        .filter(|vm| vm.deleted.is_some())
        .filter(|vm| vm.name.key() == wanted.to_ascii_lowercase() || vm.id.to_string() == wanted)
        .max_by_key(|vm| vm.deleted);
    match found {
        Some(vm) => Ok(vm.clone()),
        None => Ok(state.find_vm(wanted)?.clone()),
    }
}

async fn undelete(call: Call<ep::VmUndelete>) -> Result<VmView, ApiError> {
    let vm = find_deleted(&call)?.id;
    let command = Command::VmUndelete { vm, name: call.body.name.clone() };
    call.app.propose(&call.caller.actor, command).await?;
    let state = call.app.truth.state();
    Ok(call.app.vm_view(&state, state.vm(vm)?))
}

async fn upgrade(call: Call<ep::VmUpgrade>) -> Result<VmView, ApiError> {
    let vm = find_vm(&call)?.id;
    call.app.propose(&call.caller.actor, Command::VmUpgrade { vm }).await?;
    let state = call.app.truth.state();
    Ok(call.app.vm_view(&state, state.vm(vm)?))
}

async fn start(call: Call<ep::VmStart>) -> Result<OpView, ApiError> {
    let vm = find_vm(&call)?;
    has_room(&call.app, &vm, vm.spec.memory.size)?;
    begin(&call, OpRequest::VmStart { vm: vm.id }, time::LONG).await
}

async fn resume(call: Call<ep::VmResume>) -> Result<OpView, ApiError> {
    let vm = find_vm(&call)?;
    if vm.power == Power::Saved {
        has_room(&call.app, &vm, vm.spec.memory.size)?;
    }
    begin(&call, OpRequest::VmResume { vm: vm.id }, time::LONG).await
}

/// Memory is promised once: a host that swaps serves nobody.
fn has_room(app: &App, vm: &VmRecord, needs: Bytes) -> Result<(), ApiError> {
    let total = host::memory().total;
    let reserve = Bytes::mib(app.config.memory_reserve_mib);
    let promised = promised(&app.truth.state(), app.node);
    let room = total.saturating_sub(reserve).saturating_sub(promised);
    if needs <= room {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorKind::Conflict,
        "host_memory",
        format!(
            "{} needs {needs}; this host has {total}, of which {promised} are promised and \
             {reserve} kept for itself",
            vm.name
        ),
        "shut another VM down, or give this one less: muster vm set NAME --memory SIZE",
    ))
}

async fn shutdown(call: Call<ep::VmShutdown>) -> Result<OpView, ApiError> {
    let body = call.body;
    if !(1..=3600).contains(&body.patience_s) {
        return Err(bad_request("the patience is 1 to 3600 seconds"));
    }
    let vm = find_vm(&call)?.id;
    let patience = Millis::from_secs(body.patience_s);
    let request = OpRequest::VmShutdown { vm, patience, then_off: body.then_off };
    let limit = Millis::new(patience.get() + time::SHUTDOWN_SPARE.get());
    begin(&call, request, limit).await
}

async fn freeze(call: Call<ep::VmFreeze>) -> Result<FreezeView, ApiError> {
    let vm = find_vm(&call)?;
    let frozen = guest(&call.app, &vm)?.freeze().await.map_err(|error| guest_error(&error))?;
    let filesystems = u32::try_from(frozen.filesystems).unwrap_or(u32::MAX);
    Ok(FreezeView { filesystems, frozen: true, consistency: None })
}

async fn thaw(call: Call<ep::VmThaw>) -> Result<FreezeView, ApiError> {
    let vm = find_vm(&call)?;
    let good = guest(&call.app, &vm)?.thaw().await.map_err(|error| guest_error(&error))?;
    let consistency = Some(match good {
        vm::guest::Consistency::Filesystem => ConsistencyView::Filesystem,
        vm::guest::Consistency::Crash => ConsistencyView::Crash,
    });
    Ok(FreezeView { filesystems: 0, frozen: false, consistency })
}

fn guest(app: &App, vm: &VmRecord) -> Result<GuestServices, ApiError> {
    app.hub.guest(vm.id).ok_or_else(|| not_running(vm))
}

pub(crate) fn not_running(vm: &VmRecord) -> ApiError {
    ApiError::new(
        ErrorKind::Conflict,
        "not_running",
        format!("{} does not run", vm.name),
        format!("start it first: muster vm start {}", vm.name),
    )
}

fn guest_error(error: &ServiceError) -> ApiError {
    let (kind, code) = match error {
        ServiceError::Off(_) => (ErrorKind::Conflict, "service_off"),
        ServiceError::AlreadyFrozen | ServiceError::NothingToFreeze => {
            (ErrorKind::Conflict, "freeze")
        }
        ServiceError::Busy | ServiceError::Gone => (ErrorKind::Conflict, "not_running"),
        _ => (ErrorKind::Failed, "guest_agent"),
    };
    let hint = "see the guest's services: muster vm show NAME";
    ApiError::new(kind, code, crate::ports::chain(error), hint)
}
