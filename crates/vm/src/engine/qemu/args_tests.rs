//! The command lines, as text that people can review.

use std::fs::File;

use model::Bytes;
use model::DiskId;
use model::Generation;
use model::MacAddr;
use model::NicId;
use model::VmId;
use uuid::Uuid;

use super::Channels;
use super::DiskFds;
use super::Parts;
use super::UefiFds;
use super::build;
use crate::engine::Accel;
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
use crate::engine::layout::Ports;
use crate::engine::qemu::image::Image;

fn disk(number: u128, formats: &[ImageFormat], bus: DiskBus, kind: DiskKind) -> DiskPlan {
    let file = |format: &ImageFormat| ImageFile { path: "/x".into(), format: *format };
    DiskPlan {
        id: DiskId::new(Uuid::from_u128(number)),
        kind,
        bus,
        chain: formats.iter().map(file).collect(),
        read_only: kind == DiskKind::Cdrom,
        boot_index: (number == 1).then_some(1),
    }
}

fn plan(profile: Profile) -> LaunchPlan {
    let legacy = profile == Profile::Legacy;
    LaunchPlan {
        vm: VmId::new(Uuid::from_u128(0xabc)),
        name: "web,1".to_owned(),
        generation: Generation::new(1),
        machine: if legacy { "pc-i440fx-10.0" } else { "pc-q35-10.0" }.to_owned(),
        cpu_model: "Nehalem-v1".to_owned(),
        accel: AccelChoice::Tcg,
        profile,
        firmware: FirmwarePlan::Bios,
        cpus: CpuPlan { count: 2, max: 4 },
        memory: MemoryPlan { size: Bytes::mib(512), max: Bytes::gib(2) },
        balloon: BalloonPlan::Present,
        disks: Vec::new(),
        nics: vec![NicPlan {
            id: NicId::new(Uuid::from_u128(9)),
            mac: MacAddr::from_bytes([0x52, 0x54, 0, 1, 2, 3]),
            model: if legacy { NicModel::E1000 } else { NicModel::Virtio },
            tap: File::open("/dev/null").unwrap().into(),
            link_up: true,
        }],
        layout: Layout::default(),
        restore: None,
        isolation: IsolationPlan::default(),
        vmgenid: Uuid::from_u128(0xdef),
        clock: ClockPolicy::Utc,
    }
}

/// The command line, one option a line.
fn line(plan: &LaunchPlan, accel: Accel, uefi: Option<&UefiFds>) -> String {
    let ports = Ports::place(&plan.layout, plan.profile, &plan.disks, &plan.nics, false).unwrap();
    let mut fd = 20;
    let mut next = || {
        fd += 1;
        fd - 1
    };
    let open = |disk: &DiskPlan| -> DiskFds {
        let files = disk.chain.iter().enumerate();
        files
            .map(|(at, file)| (next(), Image::pretend(file.format, disk.read_only || at > 0)))
            .collect()
    };
    let disks: Vec<DiskFds> = plan.disks.iter().map(open).collect();
    let parts = Parts {
        plan,
        accel,
        ports: &ports,
        cpus: plan.cpus.count,
        channels: Channels { qmp: 50, serial: 51, agent: 52 },
        disks: &disks,
        taps: &[60],
        uefi,
    };
    let args = build(&parts).unwrap();
    let mut text = String::new();
    for arg in args {
        text.push_str(if arg.starts_with('-') { "\n" } else { " " });
        text.push_str(&arg);
    }
    text.trim().to_owned()
}

#[test]
fn the_command_line_of_a_virtio_machine() {
    let mut plan = plan(Profile::Virtio);
    let thin = [ImageFormat::Qcow2, ImageFormat::Qcow2, ImageFormat::Raw];
    plan.disks = vec![
        disk(1, &thin, DiskBus::Virtio, DiskKind::Disk),
        disk(2, &[ImageFormat::Raw], DiskBus::Virtio, DiskKind::Cdrom),
        disk(3, &[ImageFormat::Raw], DiskBus::Ide, DiskKind::Cdrom),
    ];
    insta::assert_snapshot!(line(&plan, Accel::Tcg, None));
}

#[test]
fn the_command_line_of_a_uefi_machine() {
    let mut plan = plan(Profile::Virtio);
    plan.memory.max = plan.memory.size;
    plan.balloon = BalloonPlan::Absent;
    plan.clock = ClockPolicy::LocalTime;
    let uefi = UefiFds {
        code: (70, Image::pretend(ImageFormat::Raw, true)),
        vars: (71, Image::pretend(ImageFormat::Raw, false)),
    };
    insta::assert_snapshot!(line(&plan, Accel::Kvm, Some(&uefi)));
}

#[test]
fn the_command_line_of_a_legacy_machine() {
    let mut plan = plan(Profile::Legacy);
    plan.disks = vec![
        disk(1, &[ImageFormat::Qcow2], DiskBus::Ide, DiskKind::Disk),
        disk(2, &[ImageFormat::Raw], DiskBus::Ide, DiskKind::Disk),
        disk(3, &[ImageFormat::Raw], DiskBus::Ide, DiskKind::Cdrom),
    ];
    insta::assert_snapshot!(line(&plan, Accel::Tcg, None));
}

#[test]
fn devices_keep_their_places_from_run_to_run() {
    let mut plan = plan(Profile::Virtio);
    let raw = [ImageFormat::Raw];
    let new = |number| disk(number, &raw, DiskBus::Virtio, DiskKind::Disk);
    plan.disks = vec![new(1), new(2), new(3)];
    let first =
        Ports::place(&Layout::default(), plan.profile, &plan.disks, &plan.nics, false).unwrap();
    let layout = first.layout((plan.memory.size, plan.memory.max), (1, 1));
    // The second is taken away, a fourth comes before the others: who stays, stays.
    plan.disks = vec![new(4), new(3), new(1)];
    let second = Ports::place(&layout, plan.profile, &plan.disks, &plan.nics, false).unwrap();
    for number in [1, 3] {
        let id = DiskId::new(Uuid::from_u128(number));
        assert_eq!(first.disk(id), second.disk(id));
    }
    let gap = first.disk(DiskId::new(Uuid::from_u128(2)));
    assert_eq!(second.disk(DiskId::new(Uuid::from_u128(4))), gap);
    // A restore takes all or nothing.
    assert!(Ports::place(&layout, plan.profile, &plan.disks, &plan.nics, true).is_err());
    plan.disks = vec![new(3), new(2), new(1)];
    let same = Ports::place(&layout, plan.profile, &plan.disks, &plan.nics, true).unwrap();
    assert_eq!(same, first);
}

#[test]
fn thirty_two_disks_find_a_place_and_no_more() {
    let mut plan = plan(Profile::Virtio);
    let new = |number| disk(number, &[ImageFormat::Raw], DiskBus::Virtio, DiskKind::Disk);
    plan.disks = (1..=32).map(new).collect();
    let place = |plan: &LaunchPlan| {
        Ports::place(&Layout::default(), plan.profile, &plan.disks, &plan.nics, false)
    };
    assert_eq!(place(&plan).unwrap().count(), Ports::MAX);
    plan.disks.push(new(33));
    assert!(place(&plan).is_err());
    plan.disks = vec![new(1)];
    assert_eq!(place(&plan).unwrap().count(), 16);
}
