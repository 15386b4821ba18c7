//! What a virtual machine is made of: the configuration that an administrator wants.
//!
//! A spec is checked by [`VmSpec::validate`] before it enters the state, so every later reader may
//! rely on its limits.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

use crate::Bytes;
use crate::CpuCompat;
use crate::DiskId;
use crate::HaChange;
use crate::HaSpec;
use crate::ImageId;
use crate::MacAddr;
use crate::MigrateChange;
use crate::MigratePolicy;
use crate::Name;
use crate::NicId;

/// Limits of a VM's configuration, each with its reason.
pub mod limits {
    use crate::Bytes;

    /// Most virtual processors: what one APIC id byte addresses on every machine type we pin.
    pub const CPUS_MAX: u32 = 240;
    /// Least memory: below this no supported guest boots.
    pub const MEMORY_MIN: Bytes = Bytes::mib(32);
    /// Most memory of one VM: what 46 physical address bits leave after the devices.
    pub const MEMORY_MAX: Bytes = Bytes::gib(16 * 1024);
    /// Memory comes in steps of the virtio-mem block of x86-64 Linux guests.
    pub const MEMORY_STEP: Bytes = Bytes::mib(2);
    /// Most disks: one hot-plug port each.
    pub const DISKS_MAX: usize = 24;
    /// Most network adapters: one hot-plug port each.
    pub const NICS_MAX: usize = 8;
    /// Largest disk (FEATURES.md area 1: "no size cap under 64 TiB").
    pub const DISK_MAX: Bytes = Bytes::gib(64 * 1024);
    /// Disks come in steps of a sector of 4 KiB, the largest logical block in use.
    pub const DISK_STEP: Bytes = Bytes::new(4096);
    /// Most user keys and tags of one VM.
    pub const KEYS_MAX: usize = 64;
    /// Longest text of a key, tag or SSH key.
    pub const TEXT_MAX: usize = 16 * 1024;
    /// Largest raw user-data: the limit that public clouds set, so images expect it.
    pub const USER_DATA_MAX: usize = 64 * 1024;
    /// Longest description.
    pub const DESCRIPTION_MAX: usize = 1024;
}

/// Configuration of a virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Virtual processors.
    pub cpus: CpuSpec,
    /// Memory.
    pub memory: MemorySpec,
    /// What starts the guest's boot loader.
    #[serde(default)]
    pub firmware: Firmware,
    /// Which family of devices the guest sees.
    #[serde(default)]
    pub profile: DeviceProfile,
    /// Disks, in boot order.
    #[serde(default)]
    pub disks: Vec<DiskSpec>,
    /// Network adapters.
    #[serde(default)]
    pub nics: Vec<NicSpec>,
    /// Integration services.
    #[serde(default)]
    pub services: Services,
    /// First-boot configuration of the guest.
    #[serde(default)]
    pub cloud_init: Option<CloudInit>,
    /// What to do when the VM's process dies.
    #[serde(default)]
    pub on_crash: CrashPolicy,
    /// What to do when its node is lost.
    #[serde(default, skip_serializing_if = "HaSpec::is_default")]
    pub ha: HaSpec,
    /// How far a live migration may go.
    #[serde(default, skip_serializing_if = "MigratePolicy::is_default")]
    pub migration: MigratePolicy,
    /// Free text.
    #[serde(default)]
    pub description: String,
    /// Words to find and group VMs by.
    #[serde(default)]
    pub tags: Vec<Name>,
    /// Facts for the guest: readable inside it through the data exchange service.
    #[serde(default)]
    pub keys: BTreeMap<String, String>,
}

/// Virtual processors of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CpuSpec {
    /// How many the guest has, 1 to `max`. Can change while the VM runs.
    pub count: u32,
    /// How many it may be given without a stop, at most 240.
    pub max: u32,
    /// Share of the host's processors against other VMs when they are short, 1 to 10000.
    #[serde(default = "default_weight")]
    pub weight: u32,
    /// Most processor time, in percent of one host processor; none is no limit.
    #[serde(default)]
    pub cap_percent: Option<u32>,
    /// What they have when the VM is switched on.
    #[serde(default, skip_serializing_if = "CpuCompat::is_default")]
    pub compat: CpuCompat,
}

/// Memory of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MemorySpec {
    /// What the guest has. Can change while the VM runs, between its size at start and `max`.
    pub size: Bytes,
    /// What it may be given without a stop.
    pub max: Bytes,
    /// What the balloon leaves the guest; none is all of `size`.
    #[serde(default)]
    pub balloon: Option<Bytes>,
}

/// The firmware that starts the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Firmware {
    /// A PC BIOS (SeaBIOS).
    #[default]
    Bios,
    /// UEFI (OVMF), with variables of its own for each VM.
    Uefi,
}

/// The family of devices that a guest sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeviceProfile {
    /// Paravirtual devices; the guest needs virtio drivers, as every Linux has.
    #[default]
    Virtio,
    /// Emulated devices that old guests know: IDE, e1000, PS/2. Slow; no hot-plug.
    Legacy,
}

/// A virtual disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// Its id, which also names its file.
    pub id: DiskId,
    /// Its name within the VM.
    pub name: Name,
    /// What the guest sees as its size.
    pub size: Bytes,
    /// What it was made from.
    pub source: DiskSource,
    /// Format of its file.
    #[serde(default)]
    pub format: DiskFormat,
    /// The guest cannot write to it.
    #[serde(default)]
    pub read_only: bool,
}

/// What a disk was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum DiskSource {
    /// Nothing: it reads as zeroes until it is written.
    Blank,
    /// A thin copy of an image: unwritten blocks are read from it.
    Image {
        /// The image.
        image: ImageId,
    },
}

/// Format of a disk's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiskFormat {
    /// Grows as it is written; can be a thin copy.
    #[default]
    Qcow2,
    /// The plain bytes.
    Raw,
}

/// A virtual network adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NicSpec {
    /// Its id, which also names its port on the host.
    pub id: NicId,
    /// Its name within the VM.
    pub name: Name,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Name of the network it is plugged into.
    pub network: Name,
    /// Its address on a NAT network, given out by DHCP; none until the state machine chose one.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub address: Option<Ipv4Addr>,
    /// Whether the cable is in.
    #[serde(default = "yes")]
    pub link_up: bool,
}

/// Integration services: what passes between guest and host, each with its switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Services {
    /// Shut the guest down by its agent (the power button is pressed otherwise).
    #[serde(default = "yes")]
    pub shutdown: bool,
    /// Watch whether the guest answers.
    #[serde(default = "yes")]
    pub heartbeat: bool,
    /// Guest facts to the host, host facts and keys to the guest.
    #[serde(default = "yes")]
    pub exchange: bool,
    /// Set the guest's clock after a resume or restore. The clock at boot is the host's in any
    /// case.
    #[serde(default = "yes")]
    pub time_sync: bool,
    /// Freeze the guest's file systems for a consistent copy.
    #[serde(default = "yes")]
    pub backup: bool,
}

/// What happens when a VM's process dies without having been asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CrashPolicy {
    /// Start it again, at most three times in ten minutes.
    #[default]
    Restart,
    /// Leave it off.
    Stop,
}

/// First-boot configuration, given to the guest as a NoCloud disc that cloud-init reads.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CloudInit {
    /// The guest's host name; the VM's name where none is given.
    #[serde(default)]
    pub hostname: Option<Name>,
    /// A user to make, with the right to become root.
    #[serde(default)]
    pub user: Option<Name>,
    /// SSH public keys of that user (or of the image's default user).
    #[serde(default)]
    pub ssh_keys: Vec<String>,
    /// That user's password as a crypt(5) hash; none locks the password.
    #[serde(default)]
    pub password_hash: Option<String>,
    /// Fixed addresses by adapter name; adapters that are not named use DHCP.
    #[serde(default)]
    pub addresses: BTreeMap<Name, StaticAddress>,
    /// Raw user-data, used instead of what is generated from the fields above.
    #[serde(default)]
    pub user_data: Option<String>,
}

/// A fixed address in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StaticAddress {
    /// Address with prefix, such as `192.168.1.20/24`.
    #[schema(value_type = String)]
    pub address: String,
    /// The way out.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub gateway: Option<Ipv4Addr>,
    /// Name servers.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub dns: Vec<Ipv4Addr>,
}

/// What is fixed when a VM is created and never raised by itself (FEATURES.md area 1, "VM config
/// version").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pinned {
    /// Version of this configuration's meaning.
    pub config_version: u32,
    /// QEMU's versioned machine type, such as `pc-q35-10.0`.
    pub machine_type: String,
    /// QEMU's CPU model.
    pub cpu_model: String,
}

/// A change of a VM's configuration; what is absent stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmChange {
    /// New name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// Number of processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Most processors; only while the VM is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus_max: Option<u32>,
    /// Processor weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_weight: Option<u32>,
    /// Processor cap in percent of one host processor; 0 takes the cap off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_cap_percent: Option<u32>,
    /// What processors have from the next cold start on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_compat: Option<CpuCompat>,
    /// Memory size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Most memory; only while the VM is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_max: Option<Bytes>,
    /// What the balloon leaves the guest; the memory size empties the balloon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<Bytes>,
    /// Firmware; only while the VM is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<Firmware>,
    /// Device family; only while the VM is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<DeviceProfile>,
    /// Switches of the integration services.
    #[serde(default, skip_serializing_if = "ServiceChange::is_empty")]
    pub services: ServiceChange,
    /// What to do after a crash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_crash: Option<CrashPolicy>,
    /// What to do when its node is lost.
    #[serde(default, skip_serializing_if = "HaChange::is_empty")]
    pub ha: HaChange,
    /// How far a live migration may go.
    #[serde(default, skip_serializing_if = "MigrateChange::is_empty")]
    pub migration: MigrateChange,
    /// Description.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Tags, replacing those there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<Vec<Name>>,
    /// Keys to set; an empty value removes the key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub keys: BTreeMap<String, String>,
    /// First-boot configuration; takes effect at the next start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<CloudInit>,
}

/// Switches to change; what is absent stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceChange {
    /// Shutdown service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shutdown: Option<bool>,
    /// Heartbeat service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat: Option<bool>,
    /// Data exchange service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exchange: Option<bool>,
    /// Time service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_sync: Option<bool>,
    /// Backup service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<bool>,
}

/// A change of a network adapter; what is absent stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NicChange {
    /// Plug the cable in or pull it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_up: Option<bool>,
    /// Move it to another network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Name>,
    /// Its address on a NAT network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<Ipv4Addr>,
}

/// Why a configuration cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A number is outside its range.
    #[error("{field} is {value}; it must be {least} to {most}")]
    OutOfRange {
        /// Which one.
        field: &'static str,
        /// What was given.
        value: String,
        /// The least allowed.
        least: String,
        /// The most allowed.
        most: String,
    },
    /// A size is not a whole number of steps.
    #[error("{field} is {value}; it must be a multiple of {step}")]
    NotAStep {
        /// Which one.
        field: &'static str,
        /// What was given.
        value: Bytes,
        /// The step.
        step: Bytes,
    },
    /// More of a kind than allowed.
    #[error("{count} {what} are more than the {most} a VM can have")]
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// How many.
        count: usize,
        /// Most allowed.
        most: usize,
    },
    /// Two things of the VM have the same name, id or address.
    #[error("two {what} are called {value}")]
    Duplicate {
        /// What kind of things.
        what: &'static str,
        /// The name they share.
        value: String,
    },
    /// A text is too long or has characters that it cannot have.
    #[error("{field} {problem}")]
    BadText {
        /// Which one.
        field: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// A raw disk cannot be a thin copy.
    #[error("disk {0} is raw; a thin copy of an image must be qcow2")]
    RawThinCopy(Name),
}

const fn yes() -> bool {
    true
}

/// The weight that the control group has by itself.
const fn default_weight() -> u32 {
    100
}

impl Default for Services {
    fn default() -> Self {
        Self { shutdown: true, heartbeat: true, exchange: true, time_sync: true, backup: true }
    }
}

impl ServiceChange {
    /// Whether nothing would change.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl VmSpec {
    /// A spec with the given processors and memory and everything else as users expect it.
    pub fn new(cpus: u32, memory: Bytes) -> Self {
        Self {
            cpus: CpuSpec {
                count: cpus,
                max: cpus,
                weight: default_weight(),
                cap_percent: None,
                compat: CpuCompat::default(),
            },
            memory: MemorySpec { size: memory, max: memory, balloon: None },
            firmware: Firmware::default(),
            profile: DeviceProfile::default(),
            disks: Vec::new(),
            nics: Vec::new(),
            services: Services::default(),
            cloud_init: None,
            on_crash: CrashPolicy::default(),
            ha: HaSpec::default(),
            migration: MigratePolicy::default(),
            description: String::new(),
            tags: Vec::new(),
            keys: BTreeMap::new(),
        }
    }

    /// Checks every limit.
    ///
    /// # Errors
    /// The first limit that does not hold.
    pub fn validate(&self) -> Result<(), SpecError> {
        self.validate_cpus()?;
        self.validate_memory()?;
        self.validate_disks()?;
        self.validate_nics()?;
        self.ha.validate().map_err(|problem| SpecError::BadText { field: "ha:", problem })?;
        let migration = self.migration.validate();
        migration.map_err(|problem| SpecError::BadText { field: "migration:", problem })?;
        self.validate_texts()
    }

    /// The disk of that id or name.
    pub fn disk(&self, id: DiskId) -> Option<&DiskSpec> {
        self.disks.iter().find(|disk| disk.id == id)
    }

    /// The adapter of that id.
    pub fn nic(&self, id: NicId) -> Option<&NicSpec> {
        self.nics.iter().find(|nic| nic.id == id)
    }

    fn validate_cpus(&self) -> Result<(), SpecError> {
        let cpus = &self.cpus;
        in_range("the most processors", cpus.max, 1, limits::CPUS_MAX)?;
        in_range("the number of processors", cpus.count, 1, cpus.max)?;
        in_range("the processor weight", cpus.weight, 1, 10_000)?;
        if let Some(cap) = cpus.cap_percent {
            in_range("the processor cap in percent", cap, 1, limits::CPUS_MAX * 100)?;
        }
        Ok(())
    }

    fn validate_memory(&self) -> Result<(), SpecError> {
        let memory = &self.memory;
        in_range("the memory", memory.size, limits::MEMORY_MIN, limits::MEMORY_MAX)?;
        in_range("the most memory", memory.max, memory.size, limits::MEMORY_MAX)?;
        in_steps("the memory", memory.size, limits::MEMORY_STEP)?;
        in_steps("the most memory", memory.max, limits::MEMORY_STEP)?;
        if let Some(balloon) = memory.balloon {
            in_range("the balloon's target", balloon, limits::MEMORY_MIN, memory.size)?;
        }
        Ok(())
    }

    fn validate_disks(&self) -> Result<(), SpecError> {
        at_most("disks", self.disks.len(), limits::DISKS_MAX)?;
        unique("disks", self.disks.iter().map(|disk| disk.name.key()))?;
        unique("disks", self.disks.iter().map(|disk| disk.id.to_string()))?;
        for disk in &self.disks {
            disk.validate()?;
        }
        Ok(())
    }

    fn validate_nics(&self) -> Result<(), SpecError> {
        at_most("network adapters", self.nics.len(), limits::NICS_MAX)?;
        unique("network adapters", self.nics.iter().map(|nic| nic.name.key()))?;
        unique("network adapters", self.nics.iter().map(|nic| nic.id.to_string()))?;
        unique("network adapters", self.nics.iter().map(|nic| nic.mac.to_string()))
    }

    fn validate_texts(&self) -> Result<(), SpecError> {
        text("the description", &self.description, limits::DESCRIPTION_MAX, TextKind::Lines)?;
        at_most("tags", self.tags.len(), limits::KEYS_MAX)?;
        at_most("keys", self.keys.len(), limits::KEYS_MAX)?;
        for (key, value) in &self.keys {
            if key.is_empty() {
                return Err(SpecError::BadText {
                    field: "a key",
                    problem: "cannot be empty".into(),
                });
            }
            text("a key", key, 128, TextKind::Line)?;
            text("a key's value", value, limits::TEXT_MAX, TextKind::Lines)?;
        }
        self.cloud_init.as_ref().map_or(Ok(()), CloudInit::validate)
    }
}

impl DiskSpec {
    /// Checks the disk by itself.
    ///
    /// # Errors
    /// The first limit that does not hold.
    pub fn validate(&self) -> Result<(), SpecError> {
        in_range("a disk's size", self.size, limits::DISK_STEP, limits::DISK_MAX)?;
        in_steps("a disk's size", self.size, limits::DISK_STEP)?;
        match (self.format, self.source) {
            (DiskFormat::Raw, DiskSource::Image { .. }) => {
                Err(SpecError::RawThinCopy(self.name.clone()))
            }
            _ => Ok(()),
        }
    }
}

impl CloudInit {
    /// Checks lengths and that single-line values are single lines.
    ///
    /// # Errors
    /// The first text that cannot be.
    pub fn validate(&self) -> Result<(), SpecError> {
        at_most("SSH keys", self.ssh_keys.len(), limits::KEYS_MAX)?;
        for key in &self.ssh_keys {
            text("an SSH key", key, limits::TEXT_MAX, TextKind::Line)?;
        }
        if let Some(hash) = &self.password_hash {
            text("the password hash", hash, 512, TextKind::Line)?;
        }
        for address in self.addresses.values() {
            address.validate()?;
        }
        match &self.user_data {
            Some(data) => text("the user-data", data, limits::USER_DATA_MAX, TextKind::Lines),
            None => Ok(()),
        }
    }
}

impl StaticAddress {
    fn validate(&self) -> Result<(), SpecError> {
        let bad = || SpecError::BadText {
            field: "a fixed address",
            problem: "must look like 192.168.1.20/24".into(),
        };
        let (address, prefix) = self.address.split_once('/').ok_or_else(bad)?;
        let _: Ipv4Addr = address.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        if prefix > 32 { Err(bad()) } else { Ok(()) }
    }
}

fn in_range<T: PartialOrd + std::fmt::Display>(
    field: &'static str,
    value: T,
    least: T,
    most: T,
) -> Result<(), SpecError> {
    if value < least || value > most {
        return Err(SpecError::OutOfRange {
            field,
            value: value.to_string(),
            least: least.to_string(),
            most: most.to_string(),
        });
    }
    Ok(())
}

fn in_steps(field: &'static str, value: Bytes, step: Bytes) -> Result<(), SpecError> {
    if value.is_multiple_of(step.get()) {
        Ok(())
    } else {
        Err(SpecError::NotAStep { field, value, step })
    }
}

fn at_most(what: &'static str, count: usize, most: usize) -> Result<(), SpecError> {
    if count > most { Err(SpecError::TooMany { what, count, most }) } else { Ok(()) }
}

fn unique(what: &'static str, values: impl Iterator<Item = String>) -> Result<(), SpecError> {
    let mut seen = std::collections::BTreeSet::new();
    for value in values {
        if !seen.insert(value.clone()) {
            return Err(SpecError::Duplicate { what, value });
        }
    }
    Ok(())
}

/// Whether a text may have more than one line.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TextKind {
    Line,
    Lines,
}

fn text(field: &'static str, value: &str, most: usize, kind: TextKind) -> Result<(), SpecError> {
    let problem = if value.len() > most {
        format!("has {} bytes; at most {most} are allowed", value.len())
    } else if value.contains('\0') {
        "cannot contain a zero byte".to_owned()
    } else if kind == TextKind::Line && value.contains(['\n', '\r']) {
        "must be a single line".to_owned()
    } else {
        return Ok(());
    };
    Err(SpecError::BadText { field, problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> VmSpec {
        VmSpec::new(1, Bytes::mib(128))
    }

    #[test]
    fn the_plain_spec_is_valid() {
        assert_eq!(spec().validate(), Ok(()));
    }

    #[test]
    fn each_limit_is_checked() {
        type Change = fn(&mut VmSpec);
        let cases: Vec<(Change, &str)> = vec![
            (|s| s.cpus.count = 0, "processors"),
            (|s| s.cpus.max = 1000, "processors"),
            (|s| s.cpus.weight = 0, "weight"),
            (|s| s.memory.size = Bytes::mib(1), "memory"),
            (|s| s.memory.size = Bytes::new((128 << 20) + 1), "memory"),
            (|s| s.memory.max = Bytes::mib(64), "memory"),
            (|s| s.memory.balloon = Some(Bytes::gib(1)), "balloon"),
            (|s| s.description = "x".repeat(2000), "description"),
            (|s| drop(s.keys.insert("a\nb".into(), "c".into())), "key"),
            (
                |s| {
                    s.cloud_init =
                        Some(CloudInit { ssh_keys: vec!["a\nb".into()], ..Default::default() });
                },
                "SSH",
            ),
        ];
        for (change, word) in cases {
            let mut spec = spec();
            change(&mut spec);
            let error = spec.validate().expect_err(word).to_string();
            assert!(error.contains(word), "{error} should name {word}");
        }
    }

    #[test]
    fn a_duplicate_disk_name_is_refused() {
        let mut spec = spec();
        for n in 0..2 {
            spec.disks.push(DiskSpec {
                id: DiskId::new(uuid::Uuid::from_u128(n)),
                name: "data".parse().unwrap(),
                size: Bytes::gib(1),
                source: DiskSource::Blank,
                format: DiskFormat::Qcow2,
                read_only: false,
            });
        }
        assert!(matches!(spec.validate(), Err(SpecError::Duplicate { .. })));
    }
}
