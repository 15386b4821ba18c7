//! From a VM's record to the engine's launch plan.

use std::path::Path;
use std::path::PathBuf;

use model::Bytes;
use model::DeviceProfile;
use model::DiskFormat;
use model::DiskSource;
use model::DiskSpec;
use model::Firmware;
use model::ImageId;
use model::NicSpec;
use model::VmRecord;

use crate::engine::AccelChoice;
use crate::engine::BalloonPlan;
use crate::engine::ClockPolicy;
use crate::engine::CpuPlan;
use crate::engine::DiskBus;
use crate::engine::DiskKind;
use crate::engine::DiskPlan;
use crate::engine::FirmwarePlan;
use crate::engine::ImageFile;
use crate::engine::ImageFormat;
use crate::engine::IsolationPlan;
use crate::engine::LaunchPlan;
use crate::engine::Layout;
use crate::engine::MemoryPlan;
use crate::engine::NicModel;
use crate::engine::NicPlan;
use crate::engine::Profile;
use crate::engine::RestorePlan;
use crate::lifecycle::VmFiles;

/// The id of the cloud-init disc among a VM's disks: none that is made at random.
pub(crate) const SEED_DISK: model::DiskId = model::DiskId::new(uuid::Uuid::from_u128(0x5eed));

/// What a plan needs besides the record.
pub(crate) struct Parts {
    pub(crate) layout: Layout,
    pub(crate) nics: Vec<NicPlan>,
    pub(crate) seed: Option<PathBuf>,
    pub(crate) restore: Option<RestorePlan>,
    pub(crate) generation_id: uuid::Uuid,
}

/// Processors and memory that a machine begins with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) cpus: u32,
    pub(crate) memory: Bytes,
}

impl Size {
    /// What a machine on this host begins with: a saved guest comes back with what it had when it
    /// was saved.
    pub(crate) fn of(record: &VmRecord, restored: bool) -> Self {
        match &record.saved {
            Some(saved) if restored => Self { cpus: saved.cpus, memory: saved.boot_memory },
            _ => Self { cpus: record.spec.cpus.count, memory: record.spec.memory.size },
        }
    }
}

pub(crate) fn launch(
    record: &VmRecord,
    files: &VmFiles,
    image_path: &dyn Fn(ImageId) -> PathBuf,
    parts: Parts,
    size: Size,
) -> LaunchPlan {
    let spec = &record.spec;
    let mut disks: Vec<DiskPlan> = Vec::new();
    for (index, spec_disk) in spec.disks.iter().enumerate() {
        let place = u32::try_from(index).unwrap_or(u32::MAX).saturating_add(1);
        disks.push(disk(record, files, image_path, spec_disk, Some(place)));
    }
    if let Some(seed) = &parts.seed {
        disks.push(seed_disc(record, seed));
    }
    let Size { cpus, memory } = size;
    LaunchPlan {
        vm: record.id,
        name: record.name.to_string(),
        generation: record.generation,
        machine: record.pinned.machine_type.clone(),
        cpu_model: match &record.cpu {
            Some(cpu) => cpu.to_qemu(),
            None => record.pinned.cpu_model.clone(),
        },
        accel: AccelChoice::Auto,
        profile: profile(record),
        firmware: match spec.firmware {
            Firmware::Bios => FirmwarePlan::Bios,
            Firmware::Uefi => FirmwarePlan::Uefi { vars: files.uefi_vars() },
        },
        cpus: CpuPlan { count: cpus, max: spec.cpus.max },
        memory: MemoryPlan { size: memory, max: spec.memory.max },
        balloon: BalloonPlan::Present,
        disks,
        nics: parts.nics,
        layout: parts.layout,
        restore: parts.restore,
        isolation: IsolationPlan {
            slot: record.slot,
            cpu_weight: spec.cpus.weight,
            cpu_cap_percent: spec.cpus.cap_percent,
            memory_limit: None,
        },
        vmgenid: parts.generation_id,
        clock: ClockPolicy::Utc,
    }
}

pub(crate) fn disk(
    record: &VmRecord,
    files: &VmFiles,
    image_path: &dyn Fn(ImageId) -> PathBuf,
    disk: &DiskSpec,
    boot_index: Option<u32>,
) -> DiskPlan {
    let format = match disk.format {
        DiskFormat::Qcow2 => ImageFormat::Qcow2,
        DiskFormat::Raw => ImageFormat::Raw,
    };
    let mut chain = vec![ImageFile { path: files.disk(disk), format }];
    if let DiskSource::Image { image } = disk.source {
        chain.push(ImageFile { path: image_path(image), format: ImageFormat::Qcow2 });
    }
    DiskPlan {
        id: disk.id,
        kind: DiskKind::Disk,
        bus: bus(record),
        chain,
        read_only: disk.read_only,
        boot_index,
    }
}

pub(crate) fn nic(record: &VmRecord, nic: &NicSpec, tap: std::os::fd::OwnedFd) -> NicPlan {
    NicPlan {
        id: nic.id,
        mac: nic.mac,
        model: match record.spec.profile {
            DeviceProfile::Virtio => NicModel::Virtio,
            DeviceProfile::Legacy => NicModel::E1000,
        },
        tap,
        link_up: nic.link_up,
    }
}

fn seed_disc(record: &VmRecord, seed: &Path) -> DiskPlan {
    DiskPlan {
        id: SEED_DISK,
        kind: DiskKind::Cdrom,
        bus: bus(record),
        chain: vec![ImageFile { path: seed.to_owned(), format: ImageFormat::Raw }],
        read_only: true,
        boot_index: None,
    }
}

fn profile(record: &VmRecord) -> Profile {
    match record.spec.profile {
        DeviceProfile::Virtio => Profile::Virtio,
        DeviceProfile::Legacy => Profile::Legacy,
    }
}

fn bus(record: &VmRecord) -> DiskBus {
    match record.spec.profile {
        DeviceProfile::Virtio => DiskBus::Virtio,
        DeviceProfile::Legacy => DiskBus::Ide,
    }
}
