//! Copies of a fake machine's disks. The files are real where they are there: what the fake guest has
//! written and got acknowledged is in them, or it is lost.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;

use model::Bytes;

use super::FakeHost;
use super::Fault;
use super::lock;
use super::machine::FakeVm;
use super::wire::Sender;
use crate::engine::EngineError;
use crate::engine::ImageSlot;
use crate::engine::MachineEvent;
use crate::engine::MirrorPhase;
use crate::engine::MirrorPlan;
use crate::engine::MirrorProgress;
use crate::engine::RunState;

/// What is copied at once.
const BLOCK: usize = 4096;

/// Looks until all of a disk is copied.
const LOOKS: u64 = 3;

/// A copy under way.
#[derive(Debug)]
pub(super) struct Mirror {
    to: To,
    phase: MirrorPhase,
    looks: u64,
    tight: bool,
    /// Whether it was asked to hold.
    holds: bool,
}

/// Where a copy goes.
#[derive(Debug)]
enum To {
    /// Held open, as by a process: whoever renames it changes nothing.
    File { path: PathBuf, file: File },
    /// The machine that waits for this one's migration.
    Machine(Sender),
}

impl To {
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::File { file, .. } => file.write_all_at(bytes, at),
            Self::Machine(sender) => {
                // A copy that is broken is no matter of the guest's.
                sender.write(at, bytes);
                Ok(())
            }
        }
    }
}

impl Mirror {
    fn new(to: To) -> Self {
        Self { to, phase: MirrorPhase::Copying, looks: 0, tight: false, holds: false }
    }

    /// What has come back from another machine since.
    fn hear(&mut self) {
        let To::Machine(sender) = &self.to else { return };
        if let Some(why) = sender.broken() {
            self.phase = MirrorPhase::Failed(why);
        } else if self.holds && self.phase == MirrorPhase::InStep && sender.has_all() {
            self.phase = MirrorPhase::Held;
        }
    }
}

fn refuse(why: &str) -> EngineError {
    EngineError::Command { command: "blockdev-mirror".to_owned(), why: why.to_owned() }
}

/// Begins a copy.
pub(super) fn begin(vm: &mut FakeVm, plan: &MirrorPlan) -> Result<(), EngineError> {
    let Some(target) = plan.chain.first().map(|file| file.path.clone()) else {
        return Err(refuse("there is no file to copy to"));
    };
    if vm.image(plan.slot).is_none() {
        return Err(EngineError::NotPlugged(format!("{:?}", plan.slot)));
    }
    let file = File::options().read(true).write(true).open(&target).map_err(|error| {
        let path = target.display().to_string();
        EngineError::Image { path, why: error.to_string() }
    })?;
    if vm.mirrors.contains_key(&plan.slot) {
        return Err(refuse("it is being copied already"));
    }
    vm.mirrors.insert(plan.slot, Mirror::new(To::File { path: target, file }));
    Ok(())
}

/// Begins a copy to the machine that waits.
pub(super) fn begin_out(vm: &mut FakeVm, slot: ImageSlot) -> Result<(), EngineError> {
    if vm.image(slot).is_none() {
        return Err(EngineError::NotPlugged(format!("{slot:?}")));
    }
    if vm.mirrors.contains_key(&slot) {
        return Err(refuse("it is being copied already"));
    }
    let sender = Sender::open(vm, slot)?;
    vm.mirrors.insert(slot, Mirror::new(To::Machine(sender)));
    Ok(())
}

/// How far all are. Each look brings them further.
pub(super) fn progress(host: &FakeHost, vm: &mut FakeVm) -> BTreeMap<ImageSlot, MirrorProgress> {
    let id = vm.run.vm;
    let stalls = host.has_fault(id, &Fault::MirrorStalls);
    let fails = host.find_fault(id, |fault| match fault {
        Fault::MirrorFails(why) => Some(why.clone()),
        _ => None,
    });
    let sources: BTreeMap<_, _> =
        vm.mirrors.keys().filter_map(|slot| Some((*slot, vm.image(*slot)?))).collect();
    for (slot, mirror) in &mut vm.mirrors {
        mirror.hear();
        if mirror.phase != MirrorPhase::Copying {
            continue;
        }
        if let Some(why) = &fails {
            mirror.phase = MirrorPhase::Failed(why.clone());
            continue;
        }
        if !stalls {
            mirror.looks = (mirror.looks + 1).min(LOOKS);
        }
        if mirror.tight && mirror.looks == LOOKS {
            // From here on each write goes to both.
            mirror.phase = match copy(&sources[slot], &mirror.to) {
                Ok(()) => MirrorPhase::InStep,
                Err(error) => MirrorPhase::Failed(error.to_string()),
            };
        }
    }
    let told = vm.mirrors.iter().map(|(slot, mirror)| {
        let progress = MirrorProgress {
            phase: mirror.phase.clone(),
            target: match &mirror.to {
                To::File { path, .. } => Some(path.clone()),
                To::Machine(_) => None,
            },
            done: Bytes::new(mirror.looks),
            total: Bytes::new(LOOKS),
        };
        (*slot, progress)
    });
    told.collect()
}

fn copy(from: &Path, to: &To) -> io::Result<()> {
    for (at, block) in (0..).zip(std::fs::read(from)?.chunks(BLOCK)) {
        // Thin stays thin.
        if block.iter().any(|byte| *byte != 0) {
            to.write(at * BLOCK as u64, block)?;
        }
    }
    Ok(())
}

/// Makes writes wait for both files, and asks those that are in step to hold.
pub(super) fn tighten(vm: &mut FakeVm) {
    for mirror in vm.mirrors.values_mut() {
        mirror.tight = true;
    }
}

pub(super) fn hold(vm: &mut FakeVm) {
    for mirror in vm.mirrors.values_mut() {
        match (&mirror.phase, &mirror.to) {
            (MirrorPhase::InStep, To::File { .. }) => mirror.phase = MirrorPhase::Held,
            (MirrorPhase::InStep, To::Machine(sender)) if !mirror.holds => {
                // Whoever is gone does not answer this either.
                sender.write(0, &[]);
                mirror.holds = true;
            }
            _ => {}
        }
    }
    vm.emit(MachineEvent::MirrorMoved);
}

/// The new files are the machine's.
pub(super) fn pivot(host: &FakeHost, vm: &mut FakeVm) -> Result<(), EngineError> {
    let fits =
        |mirror: &Mirror| mirror.phase == MirrorPhase::Held && matches!(mirror.to, To::File { .. });
    if !vm.mirrors.values().all(fits) {
        return Err(refuse("it is not held"));
    }
    if host.has_fault(vm.run.vm, &Fault::PivotFails) {
        return Err(refuse("it does not let go"));
    }
    for (slot, mirror) in std::mem::take(&mut vm.mirrors) {
        let To::File { path, file } = mirror.to else { continue };
        let opened = format!("/proc/self/fd/{}", file.as_raw_fd());
        vm.set_image(slot, std::fs::read_link(opened).unwrap_or(path));
    }
    Ok(())
}

/// All are given up.
pub(super) fn cancel(vm: &mut FakeVm) {
    vm.mirrors.clear();
    vm.emit(MachineEvent::MirrorMoved);
}

impl FakeHost {
    /// The guest writes a number to the beginning of each of its disks. True if it was acknowledged.
    pub fn guest_writes(&self, vm: model::VmId, number: u64) -> bool {
        let Some(fake) = lock(&self.0.vms).get(&vm).cloned() else { return false };
        let fake = lock(&fake);
        let held = fake.mirrors.values().any(|mirror| mirror.phase == MirrorPhase::Held);
        if fake.exit.is_some() || fake.state != RunState::Running || held {
            return false;
        }
        let both = fake.mirrors.iter().filter(|(_, it)| it.phase == MirrorPhase::InStep);
        let number = number.to_be_bytes();
        let write =
            |path: &PathBuf| File::options().write(true).open(path)?.write_all_at(&number, 0);
        let mut all = true;
        for mirror in both.filter(|(slot, _)| **slot != ImageSlot::Firmware) {
            all &= mirror.1.to.write(0, &number).is_ok();
        }
        fake.writers().iter().all(|path| write(path).is_ok()) && all
    }

    /// What the guest reads at the beginning of its first disk, if it can read now.
    pub fn guest_reads(&self, vm: model::VmId) -> Option<u64> {
        let fake = lock(&self.0.vms).get(&vm).cloned()?;
        let fake = lock(&fake);
        let held = fake.mirrors.values().any(|mirror| mirror.phase == MirrorPhase::Held);
        if fake.exit.is_some() || fake.state != RunState::Running || held {
            return None;
        }
        let mut number = [0; 8];
        File::open(fake.writers().first()?).ok()?.read_exact_at(&mut number, 0).ok()?;
        Some(u64::from_be_bytes(number))
    }

    /// The files that a machine's process writes to as its own.
    pub fn writes_to(&self, vm: model::VmId) -> Vec<PathBuf> {
        let fake = lock(&self.0.vms).get(&vm).cloned();
        fake.map(|fake| lock(&fake).writers()).unwrap_or_default()
    }
}
