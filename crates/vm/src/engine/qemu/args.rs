//! The command line of a machine: a pure function of its plan, its ports and its descriptors, so
//! that the same plan is the same machine on every run and for every restore.

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;

use model::Bytes;
use model::MacAddr;
use model::NicId;
use serde_json::Value;
use serde_json::json;

use super::image;
use super::image::Image;
use super::jit;
use crate::engine::Accel;
use crate::engine::BalloonPlan;
use crate::engine::ClockPolicy;
use crate::engine::DiskKind;
use crate::engine::DiskPlan;
use crate::engine::EngineError;
use crate::engine::LaunchPlan;
use crate::engine::NicModel;
use crate::engine::Profile;
use crate::engine::layout::Place;
use crate::engine::layout::Ports;

/// Memory comes and goes in blocks of this size: a huge page, the smallest step virtio-mem has.
pub(super) const MEMORY_BLOCK: Bytes = Bytes::mib(2);

/// Most queues of one disk; also keeps the number the same when processors come and go.
const QUEUES_MAX: u32 = 4;

/// First PCI device number of the hot-plug ports on the root complex.
const PORT_DEVICE: u8 = 0x10;

/// Where the descriptors of the machine's channels are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Channels {
    pub(super) qmp: i32,
    pub(super) serial: i32,
    pub(super) agent: i32,
}

/// Descriptors of one disk's images, top first: number in the process and what it is.
pub(super) type DiskFds = Vec<(i32, Image)>;

/// UEFI: code and variables.
#[derive(Debug)]
pub(super) struct UefiFds {
    pub(super) code: (i32, Image),
    pub(super) vars: (i32, Image),
}

/// Everything the command line is made from.
pub(super) struct Parts<'a> {
    pub(super) plan: &'a LaunchPlan,
    pub(super) accel: Accel,
    pub(super) ports: &'a Ports,
    /// Processors plugged at the start (of a saved machine: when it was saved).
    pub(super) cpus: u32,
    pub(super) channels: Channels,
    pub(super) disks: &'a [DiskFds],
    pub(super) taps: &'a [i32],
    pub(super) uefi: Option<&'a UefiFds>,
}

/// Key of a disk's place in node names, which QEMU limits to 31 characters.
pub(super) fn place_key(place: Place) -> String {
    match place {
        Place::Port(port) => format!("p{port:02}"),
        Place::Ide(number) => format!("i{number:02}"),
    }
}

/// Name of a disk's device.
pub(super) fn disk_device(disk: model::DiskId) -> String {
    format!("disk-{disk}")
}

/// Name of an adapter's device.
pub(super) fn nic_device(nic: NicId) -> String {
    format!("nic-{nic}")
}

/// Name of a processor's device; processor 0 has none.
pub(super) fn cpu_device(core: u32) -> String {
    format!("cpu-{core}")
}

struct Line(Vec<String>);

impl Line {
    fn flag(&mut self, name: &str) {
        self.0.push(format!("-{name}"));
    }

    fn pair(&mut self, name: &str, value: impl Into<String>) {
        self.flag(name);
        self.0.push(value.into());
    }

    fn json(&mut self, name: &str, value: &Value) {
        self.pair(name, value.to_string());
    }

    fn device(&mut self, value: &Value) {
        self.json("device", value);
    }
}

/// The arguments, without the program's own name.
pub(super) fn build(parts: &Parts<'_>) -> Result<Vec<String>, EngineError> {
    let mut line = Line(Vec::new());
    base(&mut line, parts);
    processors_and_memory(&mut line, parts);
    channels(&mut line, parts);
    fixed_devices(&mut line, parts);
    let legacy = parts.plan.profile == Profile::Legacy;
    if !legacy {
        ports(&mut line, parts.ports.count());
    }
    if let Some(uefi) = parts.uefi {
        for (key, (fd, image)) in [("code", &uefi.code), ("vars", &uefi.vars)] {
            line.pair("add-fd", format!("fd={fd},set={fd},opaque={key}"));
            for node in image.blockdevs(key, 0, true, *fd) {
                line.json("blockdev", &node);
            }
        }
    }
    for (disk, fds) in parts.plan.disks.iter().zip(parts.disks) {
        let place = parts.ports.disk(disk.id).ok_or(EngineError::NoSlot)?;
        let key = place_key(place);
        for (fd, _) in fds {
            line.pair("add-fd", format!("fd={fd},set={fd},opaque={key}"));
        }
        // From the bottom up: a node must exist before another names it as backing file.
        for (at, (fd, image)) in fds.iter().enumerate().rev() {
            for node in image.blockdevs(&key, at, at + 1 == fds.len(), *fd) {
                line.json("blockdev", &node);
            }
        }
        line.device(&disk_json(disk, place, legacy, parts.plan.cpus.max)?);
    }
    for (nic, fd) in parts.plan.nics.iter().zip(parts.taps) {
        let port = parts.ports.nic(nic.id).ok_or(EngineError::NoSlot)?;
        line.json("netdev", &json!({ "type": "tap", "id": netdev(port), "fd": fd.to_string() }));
        line.device(&nic_json(nic.id, nic.mac, nic.model, port, legacy));
    }
    Ok(line.0)
}

fn base(line: &mut Line, parts: &Parts<'_>) {
    let plan = parts.plan;
    line.flag("nodefaults");
    line.flag("no-user-config");
    line.flag("S");
    line.pair("name", format!("guest={},debug-threads=on", plan.name.replace(',', ",,")));
    line.pair("uuid", plan.vm.to_string());
    let mut machine = format!("{},vmport=off,usb=off,dump-guest-core=off", plan.machine);
    if parts.uefi.is_some() {
        machine.push_str(",pflash0=coded0,pflash1=varsd0");
    }
    line.pair("machine", machine);
    match parts.accel {
        Accel::Kvm => line.pair("accel", "kvm"),
        Accel::Tcg => {
            let cache = jit::cache_mib(parts.cpus, plan.cpus.max);
            line.pair("accel", format!("tcg,thread=multi,tb-size={cache}"));
        }
    }
    let sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
    line.pair("sandbox", sandbox);
    line.pair("display", "none");
    line.pair("vnc", "none");
    line.pair("boot", "strict=on");
    // The guest's end is told by an event that a daemon may be too dead to hear: QEMU waits.
    line.pair("action", "shutdown=pause,panic=none");
    let clock = match plan.clock {
        ClockPolicy::Utc => "utc",
        ClockPolicy::LocalTime => "localtime",
    };
    line.pair("rtc", format!("base={clock},clock=host,driftfix=slew"));
    let pm = match plan.profile {
        Profile::Virtio => "ICH9-LPC",
        Profile::Legacy => "PIIX4_PM",
    };
    line.pair("global", format!("{pm}.disable_s3=1"));
    line.pair("global", format!("{pm}.disable_s4=1"));
}

fn processors_and_memory(line: &mut Line, parts: &Parts<'_>) {
    let plan = parts.plan;
    let max = plan.cpus.max;
    line.pair("cpu", plan.cpu_model.clone());
    // One from the start, the others as devices: only those can be taken away again.
    line.pair("smp", format!("cpus=1,maxcpus={max},sockets=1,cores={max},threads=1"));
    let kind = plan.cpu_model.split(',').next().unwrap_or_default();
    for core in 1..parts.cpus {
        line.device(&json!({
            "driver": format!("{kind}-x86_64-cpu"), "id": cpu_device(core),
            "socket-id": 0, "core-id": core, "thread-id": 0,
        }));
    }
    let (size, most) = (plan.memory.size, plan.memory.max);
    if plan.profile == Profile::Virtio && most > size {
        let room = most.saturating_sub(size);
        let memory = format!("size={}M,maxmem={}M,slots=1", size.as_mib(), most.as_mib());
        line.pair("m", memory);
        let backend = json!({
            "qom-type": "memory-backend-ram", "id": "vmem0-ram", "size": room.get(),
            "reserve": false,
        });
        line.json("object", &backend);
        line.device(&json!({
            "driver": "virtio-mem-pci", "id": "vmem0", "memdev": "vmem0-ram",
            "requested-size": 0, "block-size": MEMORY_BLOCK.get(), "bus": "pcie.0", "addr": "0x5",
        }));
    } else {
        line.pair("m", format!("size={}M", size.as_mib()));
    }
}

fn channels(line: &mut Line, parts: &Parts<'_>) {
    let Channels { qmp, serial, agent } = parts.channels;
    for (id, fd) in [("qmp", qmp), ("serial", serial), ("agent", agent)] {
        line.pair("chardev", format!("socket,id={id},fd={fd},server=on,wait=off"));
    }
    line.pair("mon", "chardev=qmp,mode=control");
    line.device(&json!({ "driver": "isa-serial", "chardev": "serial", "index": 0 }));
    match parts.plan.profile {
        Profile::Legacy => {
            line.device(&json!({ "driver": "isa-serial", "chardev": "agent", "index": 1 }));
        }
        Profile::Virtio => {
            line.device(&json!({
                "driver": "virtio-serial-pci", "id": "vser0", "bus": "pcie.0", "addr": "0x3",
            }));
            line.device(&json!({
                "driver": "virtserialport", "id": "agent0", "bus": "vser0.0", "nr": 1,
                "chardev": "agent", "name": "org.qemu.guest_agent.0",
            }));
        }
    }
}

fn fixed_devices(line: &mut Line, parts: &Parts<'_>) {
    let plan = parts.plan;
    line.device(&json!({ "driver": "vmgenid", "guid": plan.vmgenid.to_string() }));
    if plan.profile == Profile::Legacy {
        line.device(&json!({ "driver": "VGA", "id": "vga0", "bus": "pci.0", "addr": "0x2" }));
        line.device(&json!({ "driver": "pvpanic" }));
        return;
    }
    let pci = |driver: &str, id: &str, addr: &str| json!({ "driver": driver, "id": id, "bus": "pcie.0", "addr": addr });
    line.device(&pci("VGA", "vga0", "0x1"));
    let rng = json!({ "qom-type": "rng-random", "id": "rng0-src", "filename": "/dev/urandom" });
    line.json("object", &rng);
    let mut rng = pci("virtio-rng-pci", "rng0", "0x2");
    rng["rng"] = json!("rng0-src");
    line.device(&rng);
    if plan.balloon == BalloonPlan::Present {
        let mut balloon = pci("virtio-balloon-pci", "balloon0", "0x4");
        balloon["deflate-on-oom"] = json!(true);
        balloon["free-page-reporting"] = json!(true);
        line.device(&balloon);
    }
    line.device(&pci("qemu-xhci", "usb0", "0x6"));
    line.device(&json!({ "driver": "usb-tablet", "id": "tablet0", "bus": "usb0.0", "port": "1" }));
    line.device(&pci("pvpanic-pci", "panic0", "0x7"));
}

fn ports(line: &mut Line, count: u8) {
    for port in 0..count {
        line.device(&json!({
            "driver": "pcie-root-port", "id": format!("rp{port:02}"), "bus": "pcie.0",
            "addr": format!("{:#x}.{}", PORT_DEVICE + port / 8, port % 8),
            "multifunction": port % 8 == 0, "chassis": port + 1, "port": port,
            // All our devices are modern: the 64 KiB of I/O ports would end at 16 slots.
            "io-reserve": 0,
        }));
    }
}

/// The device of a disk.
pub(super) fn disk_json(
    disk: &DiskPlan,
    place: Place,
    legacy: bool,
    cpus_max: u32,
) -> Result<Value, EngineError> {
    let node = image::top_node(&place_key(place));
    let cd = disk.kind == DiskKind::Cdrom;
    let serial = disk.id.uuid().simple().to_string()[..20].to_owned();
    let mut device = match place {
        Place::Port(port) => json!({
            "driver": "virtio-blk-pci", "bus": format!("rp{port:02}"),
            "num-queues": cpus_max.clamp(1, QUEUES_MAX), "write-cache": "on",
        }),
        Place::Ide(number) if cd || !disk.read_only => {
            let (bus, unit) = if legacy { (number / 2, number % 2) } else { (number, 0) };
            let driver = if cd { "ide-cd" } else { "ide-hd" };
            json!({ "driver": driver, "bus": format!("ide.{bus}"), "unit": unit })
        }
        Place::Ide(_) => {
            return Err(EngineError::Unsupported {
                what: "a read-only IDE disk".to_owned(),
                why: "IDE knows none; attach it as a CD or use the virtio profile".to_owned(),
            });
        }
    };
    device["id"] = json!(disk_device(disk.id));
    device["drive"] = json!(node);
    device["serial"] = json!(serial);
    if let Some(index) = disk.boot_index {
        device["bootindex"] = json!(index);
    }
    Ok(device)
}

/// Name of an adapter's back end.
pub(super) fn netdev(port: u8) -> String {
    format!("net{port:02}")
}

/// The device of an adapter.
pub(super) fn nic_json(id: NicId, mac: MacAddr, model: NicModel, port: u8, legacy: bool) -> Value {
    let (bus, addr) = match legacy {
        true => ("pci.0".to_owned(), format!("{:#x}", PORT_DEVICE + port)),
        false => (format!("rp{port:02}"), "0x0".to_owned()),
    };
    json!({
        "driver": match model {
            NicModel::Virtio => "virtio-net-pci",
            NicModel::E1000 => "e1000",
        },
        "id": nic_device(id), "netdev": netdev(port), "mac": mac.to_string(),
        "bus": bus, "addr": addr,
        // No network boot, so no boot ROM and none of the seconds it takes.
        "romfile": "",
    })
}
