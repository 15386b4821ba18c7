//! Where devices are attached. Guests name devices by their address, and a saved state only fits a
//! machine of the same build, so the layout is kept from run to run.

use std::collections::BTreeMap;

use model::Bytes;
use model::DiskId;
use model::NicId;
use serde::Deserialize;
use serde::Serialize;

use super::DiskBus;
use super::DiskPlan;
use super::EngineError;
use super::NicPlan;
use super::Profile;

/// Device addresses of a machine, opaque to callers: store it, give it back.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Layout {
    /// Port of each disk.
    #[serde(default)]
    pub(super) disks: BTreeMap<DiskId, u8>,
    /// Port of each adapter.
    #[serde(default)]
    pub(super) nics: BTreeMap<NicId, u8>,
    /// Hot-plug ports the machine was built with; grows at a start, never while it runs.
    #[serde(default)]
    pub(super) ports: u8,
    /// Memory at boot and at most, of the run this layout is from: a saved state needs the same.
    #[serde(default)]
    pub(super) memory: Option<(Bytes, Bytes)>,
    /// Processors at the time of the layout, and at most.
    #[serde(default)]
    pub(super) cpus: Option<(u32, u32)>,
}

/// First port for disks; those below are for adapters, [`Ports::NICS`] of them.
const DISK_BASE: u8 = 8;

/// Disk ports come in steps of one PCI device with eight functions.
const PORT_STEP: u8 = 8;

/// Disk ports that are kept free at a start, for disks to come.
const SPARE_MIN: u8 = 3;

/// Places on the IDE (two channels) or SATA (six ports) controller.
const IDE_PLACES: u8 = 4;
const SATA_PLACES: u8 = 6;

/// Who sits on which port. Ports 0 to 7 are for adapters, from 8 on for disks. Disks on IDE or
/// SATA and the adapters of the legacy profile have numbers of their own kind in the same maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ports {
    profile: Profile,
    count: u8,
    disks: BTreeMap<DiskId, Place>,
    nics: BTreeMap<NicId, u8>,
}

/// Address of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// A PCI Express port.
    Port(u8),
    /// A place on the IDE or SATA controller.
    Ide(u8),
}

impl Place {
    /// One number for both kinds, as stored.
    fn code(self) -> u8 {
        match self {
            Self::Port(port) => port,
            Self::Ide(place) => IDE_CODE + place,
        }
    }

    fn decode(code: u8) -> Self {
        match code.checked_sub(IDE_CODE) {
            Some(place) => Self::Ide(place),
            None => Self::Port(code),
        }
    }
}

/// Stored numbers from here on are places on the IDE or SATA controller.
const IDE_CODE: u8 = 200;

impl Ports {
    /// Adapters that can be attached.
    pub(super) const NICS: u8 = DISK_BASE;
    /// Most ports of a machine: 8 for adapters, 32 for disks.
    pub(super) const MAX: u8 = 40;

    /// Gives every device of a plan its place: the one it had, else the first free one. With
    /// `exact` (a restore) every device must have had one, and the machine is built as it was.
    pub(super) fn place(
        old: &Layout,
        profile: Profile,
        disks: &[DiskPlan],
        nics: &[NicPlan],
        exact: bool,
    ) -> Result<Self, EngineError> {
        let mut ports = Self { profile, count: 0, disks: BTreeMap::new(), nics: BTreeMap::new() };
        for disk in disks {
            let ide = disk.bus == DiskBus::Ide;
            if profile == Profile::Legacy && !ide {
                return Err(EngineError::Unsupported {
                    what: "a virtio disk".to_owned(),
                    why: "the legacy profile has IDE disks only".to_owned(),
                });
            }
            let place = old.disks.get(&disk.id).copied().map(Place::decode);
            let usable = |place: &Place| match place {
                Place::Port(port) => !ide && (DISK_BASE..Self::MAX).contains(port),
                Place::Ide(number) => ide && *number < ports.ide_places(),
            };
            if let Some(place) = place.filter(usable) {
                if ports.disks.values().any(|taken| *taken == place) {
                    continue;
                }
                ports.insert_disk(disk.id, place)?;
            }
        }
        for nic in nics {
            if let Some(port) = old.nics.get(&nic.id).filter(|port| **port < Self::NICS)
                && !ports.nics.values().any(|taken| taken == port)
            {
                ports.nics.insert(nic.id, *port);
            }
        }
        let missing = disks.len() + nics.len() - ports.disks.len() - ports.nics.len();
        if exact {
            let all = old.disks.len() + old.nics.len() == disks.len() + nics.len();
            if missing > 0 || !all {
                let why = "it is from a machine with other devices";
                return Err(EngineError::Restore(why.to_owned()));
            }
            ports.count = old.ports.min(Self::MAX);
            return Ok(ports);
        }
        ports.count = Self::MAX;
        for disk in disks {
            if !ports.disks.contains_key(&disk.id) {
                match disk.bus {
                    DiskBus::Ide => ports.add_ide(disk.id)?,
                    DiskBus::Virtio => {
                        ports.add_disk(disk.id)?;
                    }
                }
            }
        }
        for nic in nics {
            if !ports.nics.contains_key(&nic.id) {
                ports.add_nic(nic.id)?;
            }
        }
        ports.count = ports.count_needed().max(old.ports.min(Self::MAX));
        Ok(ports)
    }

    /// Rebuilds the table of a machine that runs.
    pub(super) fn of_running(layout: &Layout, profile: Profile) -> Self {
        Self {
            profile,
            count: layout.ports,
            disks: layout.disks.iter().map(|(id, code)| (*id, Place::decode(*code))).collect(),
            nics: layout.nics.clone(),
        }
    }

    fn ide_places(&self) -> u8 {
        match self.profile {
            Profile::Legacy => IDE_PLACES,
            Profile::Virtio => SATA_PLACES,
        }
    }

    fn count_needed(&self) -> u8 {
        if self.profile == Profile::Legacy {
            return 0;
        }
        let port = |place: &Place| match place {
            Place::Port(port) => *port + 1,
            Place::Ide(_) => 0,
        };
        let top = self.disks.values().map(port).max().unwrap_or(0);
        let used = u8::try_from(self.disks.len()).unwrap_or(Self::MAX) + DISK_BASE + SPARE_MIN;
        top.max(used).next_multiple_of(PORT_STEP).clamp(DISK_BASE + PORT_STEP, Self::MAX)
    }

    fn insert_disk(&mut self, disk: DiskId, place: Place) -> Result<(), EngineError> {
        match self.disks.insert(disk, place) {
            None => Ok(()),
            Some(_) => Err(EngineError::AlreadyPlugged(format!("disk {disk}"))),
        }
    }

    fn add_ide(&mut self, disk: DiskId) -> Result<(), EngineError> {
        let free = (0..self.ide_places())
            .map(Place::Ide)
            .find(|place| !self.disks.values().any(|taken| taken == place))
            .ok_or(EngineError::NoSlot)?;
        self.insert_disk(disk, free)
    }

    /// Gives a new disk a free port.
    pub(super) fn add_disk(&mut self, disk: DiskId) -> Result<u8, EngineError> {
        let free = (DISK_BASE..self.count)
            .find(|port| !self.disks.values().any(|taken| *taken == Place::Port(*port)))
            .ok_or(EngineError::NoSlot)?;
        self.insert_disk(disk, Place::Port(free))?;
        Ok(free)
    }

    /// Gives a new adapter a free port.
    pub(super) fn add_nic(&mut self, nic: NicId) -> Result<u8, EngineError> {
        let free = (0..Self::NICS)
            .find(|port| !self.nics.values().any(|taken| taken == port))
            .ok_or(EngineError::NoSlot)?;
        match self.nics.insert(nic, free) {
            None => Ok(free),
            Some(_) => Err(EngineError::AlreadyPlugged(format!("adapter {nic}"))),
        }
    }

    pub(super) fn remove_disk(&mut self, disk: DiskId) {
        self.disks.remove(&disk);
    }

    pub(super) fn remove_nic(&mut self, nic: NicId) {
        self.nics.remove(&nic);
    }

    /// Number of ports the machine is built with.
    pub(super) fn count(&self) -> u8 {
        self.count
    }

    pub(super) fn disk(&self, disk: DiskId) -> Option<Place> {
        self.disks.get(&disk).copied()
    }

    pub(super) fn nic(&self, nic: NicId) -> Option<u8> {
        self.nics.get(&nic).copied()
    }

    /// The table as callers store it.
    pub(super) fn layout(&self, memory: (Bytes, Bytes), cpus: (u32, u32)) -> Layout {
        Layout {
            disks: self.disks.iter().map(|(id, place)| (*id, place.code())).collect(),
            nics: self.nics.clone(),
            ports: self.count,
            memory: Some(memory),
            cpus: Some(cpus),
        }
    }
}
