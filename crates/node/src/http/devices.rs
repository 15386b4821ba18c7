//! Disks and network adapters of VMs.

use api::ApiError;
use api::ErrorKind;
use api::endpoint as ep;
use api::endpoint::Endpoint;
use api::types::DiskAddBody;
use api::types::NicAddBody;
use api::types::OpView;
use model::Bytes;
use model::ClusterState;
use model::DiskId;
use model::DiskSource;
use model::DiskSpec;
use model::MacAddr;
use model::Name;
use model::NicId;
use model::NicSpec;
use model::OpRequest;
use model::VmRecord;
use model::limits;

use crate::app::new_uuid;
use crate::http::Call;
use crate::http::Mounts;
use crate::http::bad_request;
use crate::http::vms::begin;
use crate::http::vms::find_vm;
use crate::http::vms::time;

/// First bytes of the addresses that we make up: the range that QEMU's guests have by custom.
const MAC_PREFIX: [u8; 3] = [0x52, 0x54, 0x00];

/// Name of the network that an adapter is on if nobody says another.
const NETWORK_DEFAULT: &str = "nat";

pub(crate) fn mount(mounts: &mut Mounts) {
    mounts.json::<ep::DiskAdd, _, _>(disk_add);
    mounts.json::<ep::DiskRemove, _, _>(disk_remove);
    mounts.json::<ep::DiskResize, _, _>(disk_resize);
    mounts.json::<ep::NicAdd, _, _>(nic_add);
    mounts.json::<ep::NicRemove, _, _>(nic_remove);
    mounts.json::<ep::NicSet, _, _>(nic_set);
}

async fn disk_add(call: Call<ep::DiskAdd>) -> Result<OpView, ApiError> {
    let vm = find_vm(&call)?;
    let disk = disk_spec(&call.app.truth.state(), &vm.spec.disks, &call.body)?;
    begin(&call, OpRequest::DiskAdd { vm: vm.id, disk }, time::LONG).await
}

async fn disk_remove(call: Call<ep::DiskRemove>) -> Result<OpView, ApiError> {
    let vm = find_vm(&call)?;
    let disk = find_disk(&call, &vm)?;
    begin(&call, OpRequest::DiskRemove { vm: vm.id, disk }, time::GUEST).await
}

async fn disk_resize(call: Call<ep::DiskResize>) -> Result<OpView, ApiError> {
    let vm = find_vm(&call)?;
    let disk = find_disk(&call, &vm)?;
    let size = round_up(call.body.size);
    begin(&call, OpRequest::DiskResize { vm: vm.id, disk, size }, time::LONG).await
}

async fn nic_add(call: Call<ep::NicAdd>) -> Result<OpView, ApiError> {
    let vm = find_vm(&call)?;
    let nic = nic_spec(&vm.spec.nics, &call.body)?;
    begin(&call, OpRequest::NicAdd { vm: vm.id, nic }, time::QUICK).await
}

async fn nic_remove(call: Call<ep::NicRemove>) -> Result<OpView, ApiError> {
    let vm = find_vm(&call)?;
    let nic = find_nic(&call, &vm)?;
    begin(&call, OpRequest::NicRemove { vm: vm.id, nic }, time::GUEST).await
}

async fn nic_set(call: Call<ep::NicSet>) -> Result<OpView, ApiError> {
    let vm = find_vm(&call)?;
    let nic = find_nic(&call, &vm)?;
    let change = call.body.clone();
    begin(&call, OpRequest::NicSet { vm: vm.id, nic, change }, time::QUICK).await
}

/// A disk from what the user said, beside those that are there.
pub(crate) fn disk_spec(
    state: &ClusterState,
    others: &[DiskSpec],
    body: &DiskAddBody,
) -> Result<DiskSpec, ApiError> {
    let image = match &body.image {
        None => None,
        Some(image) => Some(state.find_image(image)?),
    };
    let size = body.size.or_else(|| image.and_then(|image| image.virtual_size()));
    let size = match (size, image) {
        (Some(size), _) => round_up(size),
        (None, Some(image)) => {
            return Err(model::Refused::ImageNotReady(image.name.clone()).into());
        }
        (None, None) => return Err(bad_request("a blank disk needs a size, such as size=20G")),
    };
    Ok(DiskSpec {
        id: DiskId::new(new_uuid()),
        name: match &body.name {
            Some(name) => name.clone(),
            None => free_name("disk", others.iter().map(|disk| &disk.name))?,
        },
        size,
        source: match image {
            Some(image) => DiskSource::Image { image: image.id },
            None => DiskSource::Blank,
        },
        format: body.format,
        read_only: body.read_only,
    })
}

/// An adapter from what the user said, beside those that are there.
pub(crate) fn nic_spec(others: &[NicSpec], body: &NicAddBody) -> Result<NicSpec, ApiError> {
    let id = NicId::new(new_uuid());
    let mac = body.mac.unwrap_or_else(|| {
        // The last bytes of the id are random.
        let bytes = id.uuid().into_bytes();
        let [a, b, c] = MAC_PREFIX;
        MacAddr::from_bytes([a, b, c, bytes[13], bytes[14], bytes[15]])
    });
    Ok(NicSpec {
        id,
        name: match &body.name {
            Some(name) => name.clone(),
            None => free_name("net", others.iter().map(|nic| &nic.name))?,
        },
        mac,
        network: match &body.network {
            Some(network) => network.clone(),
            None => name(NETWORK_DEFAULT)?,
        },
        address: body.address,
        link_up: true,
    })
}

/// `disk0`, `disk1`, ...: the first that is free.
fn free_name<'a>(
    stem: &str,
    taken: impl Iterator<Item = &'a Name> + Clone,
) -> Result<Name, ApiError> {
    let free = (0..=taken.clone().count())
        .map(|n| format!("{stem}{n}"))
        .find(|name| taken.clone().all(|other| other.key() != *name))
        .unwrap_or_else(|| stem.to_owned());
    name(&free)
}

fn name(text: &str) -> Result<Name, ApiError> {
    text.parse().map_err(|error: model::NameError| bad_request(&error.to_string()))
}

/// Sizes that are not whole blocks are rounded up: images have sizes that nobody chose.
fn round_up(size: Bytes) -> Bytes {
    let step = limits::DISK_STEP.get();
    Bytes::new(size.get().div_ceil(step).saturating_mul(step))
}

fn find_disk<E: Endpoint>(call: &Call<E>, vm: &VmRecord) -> Result<DiskId, ApiError> {
    let wanted = call.param(1);
    let key = wanted.to_ascii_lowercase();
    vm.spec
        .disks
        .iter()
        .find(|disk| disk.name.key() == key || disk.id.to_string() == wanted)
        .map(|disk| disk.id)
        .ok_or_else(|| no_device("disk", wanted, vm))
}

fn find_nic<E: Endpoint>(call: &Call<E>, vm: &VmRecord) -> Result<NicId, ApiError> {
    let wanted = call.param(1);
    let key = wanted.to_ascii_lowercase();
    vm.spec
        .nics
        .iter()
        .find(|nic| nic.name.key() == key || nic.id.to_string() == wanted)
        .map(|nic| nic.id)
        .ok_or_else(|| no_device("adapter", wanted, vm))
}

fn no_device(what: &str, wanted: &str, vm: &VmRecord) -> ApiError {
    let wanted: String = wanted.chars().take(80).collect();
    ApiError::new(
        ErrorKind::NotFound,
        "not_found",
        format!("{} has no {what} {wanted}", vm.name),
        format!("see what it has: muster vm show {}", vm.name),
    )
}
